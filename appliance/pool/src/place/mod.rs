//! Where VMs go: one plan for all that want a place, each with the reason, and for each that finds none the reason of every host.
//!
//! ```text
//! book, who answers ── World::of, once ──► World {hosts, room, contracts, labels, who is where}
//!                                             │
//!                    Want of each VM ────► plan ──► steps: this VM to that host, and what that stands on
//!                                             │     refusals: what each host said
//!                                          explain ──► one VM: what each host says
//! ```
//! A plan is made from its world, its wants and a seed alone. What one step takes is gone for the next: no room is promised twice, neither a host's nor a
//! contract's. A step is void once the VM's epoch, the host's record or the contract that it stands on is another ([`Basis::holds`]).

mod keeper;
mod no;
mod plan;
mod stays;
#[cfg(test)]
mod tests;
mod want;
mod world;

pub use self::{
    keeper::choose_keeper,
    plan::{Basis, Choice, Plan, Refusal, Step, Verdict, choose, explain, plan},
    stays::stays_in,
    want::Want,
    world::{Candidate, Now, World},
};
