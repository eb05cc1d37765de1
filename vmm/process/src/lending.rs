//! Lends this VM's contents to VMs that arrive on this host: one thread an asker, copies only, at most a few at a time.

use std::sync::Arc;

use rebec_devices::Threads;
use rebec_kvm::Ram;
use rebec_vmm_api::control::{ControlError, ErrorCode, ResponseBody};

use crate::{
    control::Reply,
    moving::donor::{self, Judges},
    threads::WorkThreads,
};

/// Askers served at once: each costs a thread and one batch of copies.
const ASKERS_MAX: usize = 4;

/// Counts who is being served.
#[derive(Default)]
pub struct Lending {
    /// One more reference for each asker.
    served: Arc<()>,
}

impl Lending {
    /// Turns the asker's connection into one that asks for contents and serves it on a thread of its own.
    pub fn start(&self, ram: Ram, reply: Reply) {
        if Arc::strong_count(&self.served) > ASKERS_MAX {
            let message = format!("donate: {ASKERS_MAX} VMs are being served already; try again later");
            return reply.send(ResponseBody::Error(ControlError { code: ErrorCode::Busy, message }));
        }
        // They work behind devices: a VM that lends must not pay for it with its network.
        let judges = match Judges::start(&WorkThreads, &ram) {
            Ok(judges) => judges,
            Err(error) => {
                let message = format!("donate: {error:#}");
                return reply.send(ResponseBody::Error(ControlError { code: ErrorCode::Failed, message }));
            }
        };
        let seat = self.served.clone();
        let serve = move || {
            let served = reply.hand_over().map_err(anyhow::Error::from).and_then(|stream| donor::serve(&ram, &judges, stream));
            if let Err(error) = served {
                log::info!("lender: {error:#}");
            }
            drop(seat);
        };
        if let Err(error) = WorkThreads.spawn("lender", Box::new(serve)) {
            log::warn!("lender: start its thread: {error}");
        }
    }
}
