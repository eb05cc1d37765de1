//! The pool's decisions, pure: no sockets, files, clock, threads or randomness. What they stand on is in `rebec_book`.
//!
//! [`candidates`] are the hosts in question, [`place`] decides where a VM goes, [`assign`] at which epoch, [`lease`] who may run one whose host may be
//! lost, [`trade`] what a domain lends, borrows and wants back.

pub mod assign;
pub mod candidates;
pub mod lease;
pub mod place;
pub mod trade;
