//! Trade: what a domain lends, borrows and wants back. Pure, like all of this crate: brokers and the simulator run the same functions.
//!
//! ```text
//! policy file ── file ──► policy        demand: n = d - [(P - L) + V]
//!                            │             │
//!          World {now, policy, holdings, demand, idle, lent}
//!                            │
//!     recall::plan   n > 0: what is lent comes back first, what costs least before the rest
//!     lend::offer    n < 0: what others may ask for
//!     borrow::plan   n > 0: from whom; n < 0: what is given back
//!     lend::plan     each that asks: so many, until then, or why not
//!
//!     broker         the same for a real domain: what its book says becomes that world, what is decided becomes contracts and steps
//!     queue          what a scheduler says of its queue becomes demand
//!     account        what contracts come to, by month
//! ```
//! A plan is made from its world alone: it holds no time, chance or float, and each of its steps and refusals says which line of the policy made it.

pub mod account;
pub mod borrow;
pub mod broker;
pub mod calendar;
pub mod demand;
pub mod file;
pub mod lend;
pub mod plan;
pub mod policy;
pub mod queue;
pub mod recall;
pub mod world;

#[cfg(test)]
mod tests;
