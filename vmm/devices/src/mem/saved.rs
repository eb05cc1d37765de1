//! The saved form of a memory device beside its queue: what is asked of the guest and what it has.

use serde::{Deserialize, Serialize};

use crate::virtio::saved;

/// Version of the form.
const VERSION: u16 = 1;

/// What travels with a memory device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedMem {
    /// Where the room begins and ends.
    pub(super) start: u64,
    pub(super) end: u64,
    /// Bytes that the guest is asked to have.
    pub(super) asked: u64,
    /// One bit for each block: whether it has it.
    pub(super) taken: Vec<u8>,
}

impl SavedMem {
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
        let saved = SavedMem { start: 4 << 30, end: (4 << 30) + (128 << 20), asked: 4 << 20, taken: vec![3, 0, 0, 0, 0, 0, 0, 0x80] };
        let expected =
            [1, 0, 0x80, 0x80, 0x80, 0x80, 0x10, 0x80, 0x80, 0x80, 0xc0, 0x10, 0x80, 0x80, 0x80, 2, 8, 3, 0, 0, 0, 0, 0, 0, 0x80];
        assert_eq!(saved.encode(), expected);
        assert_eq!(SavedMem::decode(&expected), Ok(saved));
        for cut in 0..expected.len() {
            assert!(SavedMem::decode(&expected[..cut]).is_err(), "cut at {cut}");
        }
    }
}
