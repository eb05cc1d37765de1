//! The pool's decisions, pure: no sockets, files, clock, threads or randomness. What they stand on is in `rebec_book`.
//!
//! [`place`] decides where VMs go, [`assign`] at which epoch, [`lease`] who may run one whose host may be
//! lost, [`ranges`] which addresses of a LAN go back to where they came from,
//! [`replace`] which host has taken another's place, [`trade`] what a domain lends, borrows and wants back.

pub mod assign;
pub mod lease;
pub mod place;
pub mod ranges;
pub mod replace;
pub mod trade;
