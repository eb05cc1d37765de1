//! Connections between hosts, by key, and what each may take. Every stream of QUIC carries one HTTP/1.1 exchange, served by a router that
//! the agent brings, so there is one protocol; who asks is known from the connection and cannot be claimed. Routes, books and what is
//! asked are the agent's. Modules in the order a request travels:
//!
//! ```text
//! question (asks, in the words of versions) -> mesh, road and line (QUIC by key) or bulk (TCP)  ~~ network ~~  handshakes -> visitor (streams of one connection) -> door -> serve -> router
//!                                                                     accept (TCP, Unix socket) -> serve::tls -> bulk -> door
//! ```
//!
//! | limit | of whom | where |
//! |---|---|---|
//! | handshakes of QUIC side by side; above half of them an address has to prove itself | all, one address | `handshakes` |
//! | connections that are kept | one key, all | `kept` |
//! | places, one request at a time, its body, its time | strangers: who is no member | `visitor`, `door`, `body` |
//! | connections of a listener | one address, all | `accept`, `serve::LIMITS` |
//! | addresses that are dialled, dials at a time | one peer | `question`, `mesh` |

pub mod accept;
pub mod bulk;
pub mod listen;
pub mod serve;
pub mod versions;

mod body;
mod door;
mod handshakes;
mod kept;
mod line;
mod mesh;
mod peer;
mod question;
mod road;
mod shares;
mod visitor;

#[cfg(test)]
mod tests;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::{door::Door, line::Stream, mesh::Mesh, peer::Peer, question::read_answer, road::RoadLook};

/// A lock whose holder cannot leave it in a half-changed state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
