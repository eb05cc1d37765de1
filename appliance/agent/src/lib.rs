//! The agent of a host: owns its VMMs, disks, mesh and API. Modules in the order a command travels:
//!
//! ```text
//! http (Unix socket, TLS, mesh) -> orders (what is wanted is now durable; a host is chosen) -> vm (VMMs and their control sockets)
//!                                  knowledge (the book)     peers (the same HTTP, to other agents; the gossip)
//! ```
//! Each is a handle that takes those below it; `Agent` is all of them, and only start-up and routes name it.
//!
//! The agent may be killed at any time: VMMs outlive it, and a new agent adopts them through their control sockets.

mod agent;
mod audit;
mod broker;
mod bulletin;
mod chance;
mod descriptors;
mod errand;
mod forward;
mod holder;
mod http;
mod identity;
mod invitations;
mod jobs;
mod keeper;
mod knowledge;
mod later;
mod logs;
mod machine;
mod names;
mod options;
mod orders;
mod peers;
mod pool;
mod roles;
mod run;
mod screen;
mod stall;
mod store;
mod tokens;
mod upkeep;
mod vm;
mod warrants;

use rebec_host::{depot, derived, facts};
use rebec_peer as mesh;

pub use later::Later;
pub use options::Options;
pub use rebec_links::{Addressing, Vlan};
pub use run::{MESH_PORT, run};
