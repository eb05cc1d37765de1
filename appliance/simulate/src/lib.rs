//! What trade between domains would have done to the jobs of real clusters: `rebec simulate`.
//!
//! ```text
//! FILE.swf ── trace ──► jobs ─┐          ┌── queue, cluster: EASY backfill in each domain
//!                             ├─► simulation ── market: the functions of rebec_pool::trade, every interval
//! policy, costs, seed ────────┘          └──► seen ──► outcome ──► table, JSON, plots
//! ```
//! The decisions are the brokers' own, run by the same code. What is simulated is what they act on: schedulers, machines that boot and halt, VMs that
//! are slower than machines and that move. Time is in whole seconds and nothing depends on the order of a map, so the same input gives the same output.
//! Files are read by the caller, who hands in readers; nothing here opens one. [`spot`] asks what it is worth that a VM moves when its machine is withdrawn.

pub mod costs;
pub mod made;
pub mod outcome;
pub mod plots;
pub mod simulation;
pub mod spot;
pub mod trace;

mod cluster;
mod market;
mod queue;

#[cfg(test)]
mod tests;

pub use self::{
    costs::Costs,
    outcome::Outcome,
    simulation::{DomainSetup, Seen, Setup, simulate},
    trace::Trace,
};
