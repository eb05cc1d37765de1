//! What the thread that owns the VM hears. One bounded queue; the senders are vCPU threads, control connections, the
//! threads that move the VM, and whoever hears signals.

use std::sync::{Arc, mpsc::SyncSender};

use anyhow::Result;

use crate::{
    control::ControlRequest,
    departure::Departed,
    held::Held,
    unsettled::Asked,
    vm::{self, MachineEvent},
};

/// Room for every sender at once: 16 vCPUs, 8 control connections, power, moves and signals.
pub const EVENTS_MAX: usize = 64;

/// Something happened that the owner of the VM decides about.
pub enum Event {
    /// A caller on the control socket wants something.
    Control(ControlRequest),
    /// The guest turned itself off or asked for a reset, or a vCPU cannot go on.
    Machine(MachineEvent),
    /// A VM came in and runs, or will not come.
    Arrived(Result<Box<Held>>),
    /// A move out is over; the VM comes back with its outcome.
    Departed(Box<Departed>),
    /// The target of an old move was asked who may run the VM.
    Asked(Box<Asked>),
    /// Late frames of a VM that moved away were forwarded long enough.
    ForwardingEnded,
    /// The guest is to turn itself off; one that does not listen is ended.
    PowerButton,
    /// This process was told to end.
    Terminate,
}

impl From<ControlRequest> for Event {
    fn from(request: ControlRequest) -> Self {
        Self::Control(request)
    }
}

/// Where a machine reports to: its vCPU threads must not wait for the owner. The queue has room for every sender once, and a machine is heard once.
pub fn machine_report(events: SyncSender<Event>) -> vm::Report {
    Arc::new(move |event| {
        if events.try_send(Event::Machine(event)).is_err() {
            log::debug!("an event of the guest found the queue full: an earlier one is being dealt with");
        }
    })
}
