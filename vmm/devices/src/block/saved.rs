//! The saved form of a block device beside its queue: what a driver may have seen of it and must see again elsewhere.

use serde::{Deserialize, Serialize};

use crate::virtio::saved;

/// Version of the form.
const VERSION: u16 = 1;
/// Length of a disk's identity (virtio 1.3 §5.2.6, VIRTIO_BLK_ID_BYTES).
pub(super) const ID_BYTES: usize = 20;

/// What travels with a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedBlock {
    pub(super) id: [u8; ID_BYTES],
    pub(super) bytes: u64,
    pub(super) read_only: bool,
}

impl SavedBlock {
    pub(super) fn encode(&self) -> Vec<u8> {
        saved::encode(VERSION, self)
    }

    /// Reads a part and holds it against the disk that is here.
    pub(super) fn decode(bytes: &[u8], disk_bytes: u64, read_only: bool) -> Result<Self, String> {
        let saved: Self = saved::decode(VERSION, bytes)?;
        if saved.bytes != disk_bytes {
            return Err(format!("its disk has {} bytes, the one here has {disk_bytes}", saved.bytes));
        }
        if saved.read_only != read_only {
            let (there, here) = if read_only { ("writable", "read only") } else { ("read only", "writable") };
            return Err(format!("its disk is {there}, the one here is {here}"));
        }
        Ok(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SavedBlock {
        SavedBlock { id: *b"root.qcow2\0\0\0\0\0\0\0\0\0\0", bytes: 1 << 20, read_only: false }
    }

    #[test]
    fn golden_bytes() {
        let expected = [&[1, 0], b"root.qcow2\0\0\0\0\0\0\0\0\0\0".as_slice(), &[0x80, 0x80, 0x40, 0]].concat();
        assert_eq!(sample().encode(), expected);
        assert_eq!(SavedBlock::decode(&expected, 1 << 20, false), Ok(sample()));
    }

    #[test]
    fn another_disk_another_version_and_cut_bytes_are_refused() {
        let bytes = sample().encode();
        assert!(SavedBlock::decode(&bytes, 1 << 21, false).unwrap_err().contains("1048576"));
        assert!(SavedBlock::decode(&bytes, 1 << 20, true).unwrap_err().contains("read only"));
        assert!(SavedBlock::decode(&[&[2, 0], &bytes[2..]].concat(), 1 << 20, false).is_err());
        for cut in 0..bytes.len() {
            assert!(SavedBlock::decode(&bytes[..cut], 1 << 20, false).is_err(), "cut at {cut}");
        }
    }
}
