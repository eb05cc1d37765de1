//! A VM whose right to run was granted away before this process began: nobody here may start it until the target of that move has
//! spoken. `ctl migrate` to that target asks; if it released the VM, the VM starts here from its disk.

use std::{
    os::fd::OwnedFd,
    sync::mpsc::{SyncSender, sync_channel},
};

use anyhow::{Context, Result};
use rebec_devices::Threads;
use rebec_migrate::Record;

use crate::{
    boot_plan::BootPlan,
    control::Reply,
    held::{ColdStart, Held},
    ledger::LedgerFile,
    moving::{Settled, settle_source},
    threads::ServiceThreads,
};

/// The last record, and how to start the VM should it be ours after all.
pub struct Unsettled {
    record: Record,
    ledger: LedgerFile,
    cold: ColdStart,
}

/// What asking came to.
pub struct Asked {
    pub unsettled: Box<Unsettled>,
    /// An error: the target was not reached.
    pub settled: Result<Settled>,
    pub reply: Reply,
}

impl Unsettled {
    pub fn new(record: Record, ledger: LedgerFile, cold: ColdStart) -> Box<Self> {
        Box::new(Self { record, ledger, cold })
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Starts the VM here from its disk: the target let go of it.
    pub fn start(self, epoch: u64) -> Result<(Held, BootPlan)> {
        self.cold.start(self.record.vm, epoch, self.ledger)
    }
}

/// A VM whose target is to be asked.
pub struct Question {
    pub unsettled: Box<Unsettled>,
    pub connections: Vec<OwnedFd>,
    pub reply: Reply,
}

/// A thread that waits to ask; it gives `back` what that came to. Made before anything is given away.
pub fn thread(back: impl FnOnce(Box<Asked>) + Send + 'static) -> Result<SyncSender<Question>> {
    let (give, take) = sync_channel::<Question>(1);
    let body = move || {
        let Ok(Question { mut unsettled, connections, reply }) = take.recv() else { return };
        let Unsettled { record, ledger, .. } = &mut *unsettled;
        let settled = settle_source(*record, &ServiceThreads, connections, |record| ledger.write(record));
        back(Box::new(Asked { unsettled, settled, reply }));
    };
    ServiceThreads.spawn("settle", Box::new(body)).context("start the thread that asks the target")?;
    Ok(give)
}
