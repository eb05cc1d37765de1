//! Live migration as two pure engines. What it is not: it opens no socket, reads no clock, starts no thread and never
//! touches a page. `vmm/process/src/moving` drives it.
//!
//! A 4 KiB unit (a page of memory or a piece of a disk) travels through the modules in this order:
//! ```text
//! unit     which units exist, which stream carries each
//! page     zero? digest? compress, and at the far end: unpack, verify
//! frame    one batch of units on a data connection
//! message  what both sides say on the control connection
//! source   the side that runs the VM now: rounds, prediction, handover
//! ~~ network ~~
//! target   the side that will: index of held content, applying, handover
//! index    which contents the target's host already holds, and the filter that tells the source
//! base     what a base holds, kept in a file, and the name by which both sides know that theirs are the same
//! donor    how another VMM on the target's host lends contents
//! ledger   the durable right to run, and what may follow from it
//! ```
//! Both engines have one shape: `handle(now, input)`, `poll_output()`, `next_deadline()`, `tick(now)`. Time is a
//! [`std::time::Duration`] since any fixed moment. Formats are drawn in `docs/formats/{wire,handover,base,donor,ledger}.md`.

mod bytes;
mod digest;

pub mod unit;

pub mod page;

pub mod frame;

pub mod message;

pub mod source;

pub mod target;

pub mod index;

pub mod base;

pub mod donor;

pub mod ledger;

pub use ledger::{MoveId, Record, VmId};
pub use source::{Source, SourceConfig, SourceInput, SourceOutput};
pub use target::{Target, TargetInput, TargetOutput};
pub use unit::{RUN_UNITS, STREAMS_MAX, Space, UNIT_BYTES};
