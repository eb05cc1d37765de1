//! Live migration's drivers: they own sockets, threads and copies, and take no decision. `rebec_migrate` decides.
//!
//! ```text
//! source: owner --MigrateOptions, sockets--> Outgoing::run     engine <-> control reader, one worker a stream
//! target: receive --listener, donors-->      Incoming::run     engine <-> control reader, one worker a stream, one thread a donor
//! donor:  owner --socket after `donate`-->   donor::serve      answers until the asker leaves
//! ```
//!
//! The page's road: dirty log -> `source` -> `streams` (copy, judge, pack, write) ~~ TCP ~~ `streams` (read, unpack, verify) -> guest
//! memory or disk (`spaces`). The dirty bit is cleared first, then the unit is copied, then the copy is judged.
//!
//! Memory of a side: a stream's worker holds at most `LANE_BATCHES_MAX` batches of 128 KiB and one packed frame (source), or
//! one frame and its units (target): below 12 MiB with sixteen streams.

mod ahead;
mod base;
mod connection;
pub mod donor;
mod landing;
mod lobby;
mod settle;
mod source;
mod spaces;
mod streams;
mod target;

use std::{io, net::SocketAddrV4, sync::Arc, time::Instant};

use rebec_bits::BitSet;
use rebec_devices::disk::Disk;
use rebec_kvm::Ram;
use rebec_migrate::Record;

pub use ahead::Populate;
pub use base::{BaseDigests, write_digests};
pub use settle::{Settled, settle_source};
pub use source::{Canceller, Outgoing};
pub use target::{Arrived, Incoming};

/// The machine as a move sees it. The owner of the VM implements it.
pub trait MovingMachine {
    /// Its memory.
    fn ram(&self) -> &Ram;
    /// Its disks in order.
    fn disks(&self) -> &[Arc<Disk>];
    /// For each disk, kept digests of the base that it stands on.
    fn bases(&self) -> &[Option<Arc<BaseDigests>>];
    /// Where each NIC's port listens, in order.
    fn ports(&self) -> Vec<SocketAddrV4>;
    /// Starts to log the writes of CPUs and devices to memory; what was marked before may be forgotten or reported.
    fn dirty_log_start(&self) -> anyhow::Result<()>;
    /// Moves the marks of CPUs and devices into `pages`.
    fn dirty_log_take(&self, pages: &mut BitSet) -> anyhow::Result<()>;
    /// Ends the log.
    fn dirty_log_stop(&self) -> anyhow::Result<()>;
    /// Holds the vCPUs back for so many percent of the time; 0 ends it.
    fn throttle(&self, percent: u8);
    /// Stops vCPUs and devices; the instant at which the last vCPU stood still.
    fn pause(&self) -> anyhow::Result<Instant>;
    /// Lets them run (on) at an epoch.
    fn resume(&self, epoch: u64) -> anyhow::Result<()>;
    /// `SavedMachine` bytes of the paused machine, for a target of this version of the move protocol.
    fn save(&self, version: u16) -> anyhow::Result<Vec<u8>>;
    /// Takes what `save` said into a machine that has not run.
    fn restore(&self, saved: &[u8]) -> anyhow::Result<()>;
    /// How memory is mapped ahead, in a machine that has not run; `None` if it cannot be.
    fn populator(&self) -> Option<Populate>;
    /// Makes a record durable. On an error the file is cut back, so that the record before it still counts.
    fn write_ledger(&self, record: Record) -> io::Result<()>;
}
