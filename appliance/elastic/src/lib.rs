//! `rebec-elastic`: what a scheduler's queue wants becomes a domain's demand, and the domain's own and borrowed machines become the scheduler's nodes.
//!
//! It is a client of the agent's API with a role of its own (`scheduler`), and runs beside the scheduler.
//! ```text
//! config       the file that says which scheduler, which image, which LAN
//! scheduler    its programs' answers: queue and nodes ◄── program  runs them, bounded in time and bytes
//!    │ queue                        │ nodes
//! demand       what is told of it   fleet   what is to be done about nodes, from all that is known
//!    │ POST /v1/demand              │ POST /v1/vms, the scheduler's own commands
//! run          the driver: asks, tells, carries out
//! ```
//! Contracts are the brokers' affair: a node is put on each machine that a contract gives, and goes when the machine is called back and its job has ended.
//! Nothing is kept on a disk: what there is, is what the agent and the scheduler say.

pub mod config;
pub mod demand;
pub mod fleet;
pub mod program;
pub mod run;
pub mod scheduler;
