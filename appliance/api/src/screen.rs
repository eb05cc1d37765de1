//! The state of a host in the words of its status screen. The agent writes it as JSON to `--screen FILE` (a new file in
//! place of the old one, never a torn one) whenever it changes; `rebec init` draws it.

use serde::{Deserialize, Serialize};

/// What the screen shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Screen {
    /// Version of Rebec.
    pub version: String,
    /// The host's name in its pool, or the one it would take.
    pub host: String,
    /// Full fingerprint of the host's key: 64 hexadecimal digits.
    pub fingerprint: String,
    /// Addresses others reach this host at.
    pub addresses: Vec<String>,
    /// Where the API listens, as `https://ADDRESS:PORT`; none before there is an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// How the clock is kept; none where its agent does not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<String>,
    /// Whether VMs can run here.
    pub kvm: Kvm,
    /// How far the host is with its pool.
    pub join: Join,
    /// VMs that run here.
    pub vms: u32,
}

/// Whether VMs can run on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Kvm {
    /// They can.
    Ready,
    /// They cannot.
    Absent {
        /// Why, and what to do about it.
        reason: String,
    },
}

/// How far a host is with its pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Join {
    /// It belongs to no pool and holds no ticket.
    Alone,
    /// It holds a ticket and is at it.
    Joining {
        /// What it waits for or tries.
        what: String,
    },
    /// It is a member.
    Joined {
        /// The pool's name.
        pool: String,
        /// The domain's name.
        domain: String,
    },
    /// Its ticket was refused.
    Refused {
        /// Why, and what to do about it.
        reason: String,
    },
}
