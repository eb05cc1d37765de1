//! The real book and the real gossip of a whole pool in one process and virtual time, from one seed.
//!
//! ```text
//! world    the records of a pool, signed          network   when a message arrives, and what it costs
//! host     one host: book, engine, its account    hostile   the one that forges, replays, floods and lies
//! pool     all of them: events in their order     course    a pool from its beginning to hosts that are lost, and what came of it
//! resident one book in a process of its own: what it takes, and how fast it is read
//! ```
//! Two things are not as on a real host, and the figures say so: a record that many books have is decoded and kept once, and its
//! signature is looked at once; what both cost a host is measured apart and added.
//!
//! A crate of its own because it is optimised, and the lab is not: what is measured is the engine.

mod course;
mod host;
mod hostile;
mod network;
mod pool;
pub mod resident;
pub mod world;

pub use course::{Course, LOST, REST, run};
pub use host::{Account, KINDS, Told};
pub use network::HEAD_BYTES;

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// From which everything follows.
    pub seed: u64,
    /// Hosts, also the silent ones and the hostile one.
    pub hosts: usize,
    /// Domains, of about equal size.
    pub domains: usize,
    /// VMs that each host has.
    pub vms: usize,
    /// Of a hundred hosts, those that are silent all the time.
    pub silent_percent: usize,
    /// Records that the pool writes in a second.
    pub changes_s: usize,
    /// Seconds in which that is measured, after a while in which hosts find each other.
    pub seconds: u64,
}
