//! What is known of a pool and believed, and who may ask what. Pure: no sockets, files, clock, threads or randomness.
//!
//! A pool's knowledge is a [`book::Book`] of [`record`]s. Each record has one writer who signs it and numbers its versions;
//! nothing needs more than two hosts that talk to each other now and then. [`view`] reads the book as people see it: hosts,
//! LANs, images and VMs by name. [`authority`] answers who may ask what, [`warrant`] who gave a command, [`grant`] who holds a VM, [`contract`] what domains agreed about machines, [`contracts`] what that lets come. [`lan`] says who may use which address, [`ticket`] is the text that lets a host in.

pub mod authority;
mod body;
pub mod book;
pub mod census;
pub mod contract;
pub mod contracts;
pub mod gossip;
pub mod grant;
pub mod key;
mod kind;
pub mod lan;
mod name;
pub mod names;
pub mod record;
mod role;
#[cfg(test)]
mod samples;
pub mod ticket;
pub mod view;
pub mod warrant;

pub use book::Book;
pub use grant::Grant;
pub use key::Key;
pub use record::{Body, Record, Signed};
pub use role::Role;
pub use ticket::Ticket;
pub use warrant::Warrant;
