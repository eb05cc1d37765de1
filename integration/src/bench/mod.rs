//! The figures that have targets: each is measured by the command that prints it, beside its target and its peers.
//!
//! A row is a file: `boot` counts instructions in a lab machine; `machines` boots four of them; `memory`, `arrived`, `moves`, `base` and `lan` measure the VMM users get, in the namespace lab;
//! `pool` measures agents there, `requests` a disk's small reads, `disks` the reading and the import of disk images;
//! `engine`, `donors` and `trade` run examples of `vmm/migrate`, `vmm/process` and `appliance/simulate`. Each returns [`Figure`]s, which `tasks::bench` prints. Nothing is judged here but the figures themselves.

pub mod arrived;
pub mod base;
pub mod boot;
pub mod disks;
pub mod donors;
pub mod engine;
pub mod lan;
pub mod machines;
pub mod memory;
pub mod moves;
pub mod pool;
pub mod requests;
pub mod trade;

pub use crate::figure::{Figure, Peer, Target, table};
