//! What records are about, and what they are called.

use serde::{Deserialize, Serialize};

use crate::key::{Id, Key};

/// What a record is about. The order is that of authority: who reads records in it can judge each by those before. A number that
/// this version does not know is a kind too: such records are kept and passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Kind(pub u16);

impl Kind {
    /// What is void of its writer.
    pub const FLOOR: Self = Self(0);
    /// The pool itself.
    pub const POOL: Self = Self(1);
    /// A domain.
    pub const DOMAIN: Self = Self(2);
    /// A host's membership.
    pub const MEMBER: Self = Self(3);
    /// A key that acts for a domain.
    pub const HELPER: Self = Self(4);
    /// A user of a domain.
    pub const USER: Self = Self(5);
    /// Where a domain's broker is.
    pub const BROKER: Self = Self(6);
    /// A host's facts.
    pub const HOST: Self = Self(8);
    /// A host's parts.
    pub const PARTS: Self = Self(9);
    /// A LAN.
    pub const LAN: Self = Self(10);
    /// An image.
    pub const IMAGE: Self = Self(11);
    /// A VM as it should be.
    pub const VM: Self = Self(12);
    /// A VM as it is.
    pub const SEEN: Self = Self(13);
    /// What two domains agreed about a machine.
    pub const CONTRACT: Self = Self(14);
}

/// The name of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordKey {
    /// What it is about.
    pub kind: Kind,
    /// Which one.
    pub id: Id,
    /// Who writes it.
    pub writer: Key,
}
