//! The pool's decisions and its shared knowledge, pure: no sockets, files, clock, threads or randomness.
//!
//! A pool's knowledge is a [`book::Book`] of [`record`]s. Each record has one writer who signs it and numbers its versions;
//! nothing needs more than two hosts that talk to each other now and then. [`view`] reads the book as people see it: hosts,
//! LANs, images and VMs by name. [`place`] decides where a VM goes, [`lease`] who may run one whose host may be lost, [`lan`] who
//! may use which address, [`ticket`] is the text that lets a host in.

pub mod book;
pub mod key;
pub mod lan;
pub mod lease;
pub mod place;
pub mod record;
pub mod ticket;
pub mod view;

pub use book::Book;
pub use key::Key;
pub use record::{Body, Record, Signed};
pub use ticket::Ticket;
