//! The pool's decisions, pure: no sockets, files, clock, threads or randomness. What they stand on is in `rebec_book`.
//!
//! [`place`] decides where a VM goes, [`lease`] who may run one whose host may be lost, [`trade`] what a domain lends, borrows and wants back.

pub mod lease;
pub mod place;
pub mod trade;
