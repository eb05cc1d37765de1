//! The device contract: what a virtio device offers to a transport and what it gets back. Neither sees the other.
//!
//! ```text
//!            start_queues(states, kicks, ram, signals)
//!   stopped ────────────────────────────────────────────► running: one thread per disk or queue pair
//!      ▲                                                      │
//!      └────────────── stop_queues() -> states ◄──────────────┘
//!
//!   pause   = stop_queues, keep the states           resume = start_queues from them
//!   save    = pause, then states + device part       restore = the part, then resume
//!   reset   = stop_queues, forget the states
//! ```
//!
//! A stopped device has no request in flight: a chain taken from a ring is either used or still available. So the states say
//! everything, and a ring is always looked at once after a start, because kicks are not part of them.

pub(crate) mod chain;
pub mod pci;
pub(crate) mod ring;
pub(crate) mod saved;
pub(crate) mod single;
pub(crate) mod wait;
pub(crate) mod worker;

use std::{fmt::Debug, sync::Arc};

use vmm_sys_util::eventfd::EventFd;

use crate::{GuestRam, Threads, room::Blocks};

pub use pci::PciTransport;
pub use virtio_queue::QueueState;

/// What a device is, by its number in virtio 1.3 §5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceKind {
    /// Network card, §5.1.
    Net = 1,
    /// Block device, §5.2.
    Block = 2,
    /// Entropy source, §5.4.
    Rng = 4,
    /// Memory that the guest lends, §5.5.
    Balloon = 5,
    /// Memory that it takes in and gives back, §5.15.
    Mem = 24,
}

/// How a device reaches its driver. Implemented by a transport, called from queue threads.
pub trait Signals: Send + Sync + Debug {
    /// Buffers of `queue` were used and the driver wants to know.
    fn used(&self, queue: u16);
    /// The device found its rings broken and stopped: DEVICE_NEEDS_RESET, told by a configuration change (§2.1.2).
    fn broken(&self);
}

/// One queue to start.
#[derive(Debug)]
pub struct QueueSetup {
    /// Its number.
    pub index: u16,
    /// Where it stands: from the driver's registers, from an earlier stop or from a saved part.
    pub state: QueueState,
    /// Readable when the driver has made buffers available.
    pub kick: EventFd,
}

/// Everything a device needs to run its queues.
#[derive(Clone)]
pub struct QueueEnvironment {
    /// Guest memory.
    pub ram: GuestRam,
    /// The road to the driver.
    pub signals: Arc<dyn Signals>,
    /// Makes the threads.
    pub threads: Arc<dyn Threads>,
    /// Which blocks of its room the guest has, where there is one.
    pub blocks: Option<Arc<Blocks>>,
    /// Feature bits that both sides agreed on.
    pub features: u64,
    /// The machine came from another place or time since these queues last ran.
    pub arrived: bool,
}

/// Why queues did not start. The device stays stopped and the driver sees DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The driver's addresses or sizes make no ring.
    #[error("queue {index}: {what}")]
    Queue {
        /// Which queue.
        index: u16,
        /// What is wrong.
        what: String,
    },
    /// No thread, descriptor or the like.
    #[error("start a queue thread: {0}")]
    Host(#[from] std::io::Error),
}

/// The part of a configuration space that a running driver changes, by its requests or by writing there. Called by vCPU threads: it never waits.
pub trait LiveConfig: Send + Sync {
    /// Puts that part into a copy of the space.
    fn overlay(&self, config: &mut [u8]);
    /// The driver writes there.
    fn write(&self, at: u64, data: &[u8]);
}

/// A virtio device model. It never sees its transport.
pub trait VirtioDevice: Send {
    /// What it is.
    fn kind(&self) -> DeviceKind;
    /// Feature bits of this device. The transport adds those of the rings (VERSION_1, EVENT_IDX, INDIRECT_DESC).
    fn features(&self) -> u64;
    /// Largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// The configuration space, as it is now. Its transport is told when it has changed.
    fn config(&self) -> Vec<u8>;
    /// What of that space changes without a word, or is the driver's to write; none, where nothing is.
    fn live_config(&self) -> Option<Arc<dyn LiveConfig>>;
    /// Runs the queues that the driver made ready. Looks at each ring once, kick or not.
    fn start_queues(&mut self, queues: Vec<QueueSetup>, environment: QueueEnvironment) -> Result<(), StartError>;
    /// Ends all work in flight and returns the queues' states in order of their index; empty if none run.
    fn stop_queues(&mut self) -> Vec<(u16, QueueState)>;
    /// What a stopped device knows beside its queues, versioned by the device's `saved.rs`.
    fn save(&self) -> Vec<u8>;
    /// Takes what [`VirtioDevice::save`] gave, on a stopped device. Hostile bytes are refused with a reason.
    fn restore(&mut self, saved: &[u8]) -> Result<(), String>;
}
