//! The saved form of a balloon beside its queues: what is asked of the guest and what it says it has lent. Which pages those are, the guest alone knows.

use serde::{Deserialize, Serialize};

use crate::virtio::saved;

/// Version of the form.
const VERSION: u16 = 1;

/// What travels with a balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedBalloon {
    pub(super) asked_pages: u32,
    pub(super) lent_pages: u32,
}

impl SavedBalloon {
    pub(super) fn encode(&self) -> Vec<u8> {
        saved::encode(VERSION, self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        saved::decode(VERSION, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let (saved, expected) = (SavedBalloon { asked_pages: 300, lent_pages: 5 }, [1, 0, 0xac, 2, 5]);
        assert_eq!((saved.encode(), SavedBalloon::decode(&expected)), (expected.to_vec(), Ok(saved)));
        assert!(SavedBalloon::decode(&expected[..4]).is_err() && SavedBalloon::decode(&[2, 0, 1, 1]).is_err());
    }
}
