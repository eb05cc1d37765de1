//! A later version of the agent, as the lab plays it: a program of the lab's gives this with the other options. `rebec agent` gives none.
//! What it adds stands for what later versions will: a kind of records, fields in bodies, a question.

use rebec_book::{Body, record::Kind};
use rebec_vmm_api::Versions;

/// What a later version does otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Later {
    /// What it is called.
    pub rebec: &'static str,
    /// What it speaks with other hosts.
    pub peer: Versions,
    /// What it speaks in moves.
    pub moves: Versions,
    /// What it writes where this version would write a body.
    pub body: fn(&Body, Vec<u8>) -> Vec<u8>,
    /// A kind of records that this version does not know, and what such a record says.
    pub kind: (Kind, &'static [u8]),
    /// What it asks other hosts, and this version does not.
    pub question: &'static str,
}

/// The version of Rebec that a host is of.
pub fn rebec(later: Option<Later>) -> &'static str {
    later.map_or(env!("CARGO_PKG_VERSION"), |later| later.rebec)
}

/// What it speaks in moves: its VMMs are of its own version.
pub fn moves(later: Option<Later>) -> Versions {
    later.map_or(rebec_migrate::frame::VERSIONS, |later| later.moves)
}
