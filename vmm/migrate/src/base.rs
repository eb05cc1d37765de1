//! What a base holds, taken once and kept in a file: the inner digest of each unit, and a name for all of them together.
//! Two disks that stand on bases of one name show the same bytes wherever their own layers say nothing.
//!
//! ```text
//! digest:[32]*  "RBBD" version:u16 reserved:u16 bytes:u64 name:[32]
//! ```
//! Little endian. `bytes` is the virtual size; `digest` is a unit's BLAKE3 hash, zeros for a unit of zeros; `name` is BLAKE3 over `bytes` and all
//! digests. Bytes in, checked values out; no I/O.

use rebec_layout::DISK_BYTES_MAX;
use serde::{Deserialize, Serialize};

use crate::{
    bytes::array,
    page::{self, Digest, Inner, Key},
    unit::{UNIT_BYTES, units_of},
};

/// Bytes after the last digest.
pub const SUMMARY_BYTES: usize = 48;
/// Bytes of one digest.
pub const DIGEST_BYTES: usize = 32;
const MAGIC: [u8; 4] = *b"RBBD";
const VERSION: u16 = 1;
/// Of a unit that holds nothing but zeros.
const ZERO: [u8; DIGEST_BYTES] = [0; DIGEST_BYTES];

/// Names the content of a base, whatever file it is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseName(pub [u8; 32]);

/// The end of a file of digests: one that was cut off has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Virtual size of the base.
    pub bytes: u64,
    /// Name of its content.
    pub name: BaseName,
}

/// Why a file is no file of digests.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BaseError {
    /// Something else.
    #[error("not a file of digests")]
    Foreign,
    /// Another version of it.
    #[error("digests of version {0}, this program knows {VERSION}: take them again with `rebec-vmm digests`")]
    Version(u16),
    /// A size that no disk has.
    #[error("digests of a base of {0} bytes, which no disk has")]
    Size(u64),
    /// Not all of it, or more.
    #[error("{is} bytes of digests where {wanted} belong")]
    Length {
        /// Of the file.
        is: u64,
        /// By its summary.
        wanted: u64,
    },
}

impl Summary {
    /// The bytes that are kept.
    pub fn to_bytes(&self) -> [u8; SUMMARY_BYTES] {
        let mut bytes = [0; SUMMARY_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[16..].copy_from_slice(&self.name.0);
        bytes
    }

    /// Reads the end of a file of so many bytes.
    ///
    /// # Errors
    /// When it is no file of digests, or not a whole one.
    pub fn from_end(bytes: &[u8; SUMMARY_BYTES], file_bytes: u64) -> Result<Self, BaseError> {
        if bytes[..4] != MAGIC {
            return Err(BaseError::Foreign);
        }
        match u16::from_le_bytes(array(bytes, 4)) {
            VERSION => {}
            other => return Err(BaseError::Version(other)),
        }
        let summary = Self { bytes: u64::from_le_bytes(array(bytes, 8)), name: BaseName(array(bytes, 16)) };
        match summary.bytes {
            0..=DISK_BYTES_MAX if summary.file_bytes() == file_bytes => Ok(summary),
            0..=DISK_BYTES_MAX => Err(BaseError::Length { is: file_bytes, wanted: summary.file_bytes() }),
            _ => Err(BaseError::Size(summary.bytes)),
        }
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        digest_at(units_of(self.bytes)) + SUMMARY_BYTES as u64
    }
}

/// Where the digest of a unit begins.
pub fn digest_at(unit: u64) -> u64 {
    unit * DIGEST_BYTES as u64
}

/// Takes digests from the first unit to the last.
pub struct Taking {
    bytes: u64,
    hasher: blake3::Hasher,
}

impl Taking {
    /// Begins with a base of this virtual size.
    pub fn new(bytes: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes.to_le_bytes());
        Self { bytes, hasher }
    }

    /// Appends the digests of the next whole units to `out`; a last unit that is partly filled ends in zeros.
    pub fn take(&mut self, units: &[u8], out: &mut Vec<u8>) {
        let before = out.len();
        for unit in units.chunks_exact(UNIT_BYTES) {
            out.extend_from_slice(&if page::is_zero(unit) { ZERO } else { page::inner(unit).0 });
        }
        self.hasher.update(&out[before..]);
    }

    /// The next units are zeros, and so are their digests.
    pub fn take_zeros(&mut self, units: usize) {
        self.hasher.update(&vec![0; units * DIGEST_BYTES]);
    }

    /// All units were taken.
    pub fn finish(self) -> Summary {
        Summary { bytes: self.bytes, name: BaseName(*self.hasher.finalize().as_bytes()) }
    }
}

/// The wire digests of units whose kept digests are `kept`; `None` for a unit of zeros.
pub fn wire_digests<'a>(key: &'a Key, kept: &'a [u8]) -> impl Iterator<Item = Option<Digest>> + 'a {
    let kept = kept.chunks_exact(DIGEST_BYTES).map(|digest| array::<DIGEST_BYTES>(digest, 0));
    kept.map(|digest| (digest != ZERO).then(|| page::wire(key, &Inner(digest))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let summary = Summary { bytes: 0x0102_0304, name: BaseName([7; 32]) };
        let expected = [&b"RBBD\x01\0\0\0\x04\x03\x02\x01\0\0\0\0"[..], &[7; 32]].concat();
        assert_eq!(summary.to_bytes()[..], expected);
        assert_eq!(Summary::from_end(&summary.to_bytes(), summary.file_bytes()), Ok(summary));
        assert_eq!(Summary { bytes: 4097, ..summary }.file_bytes(), 48 + 64);
    }

    #[test]
    fn what_is_no_summary_is_refused() {
        let summary = Summary { bytes: 4096, name: BaseName([7; 32]) };
        let with = |at: usize, byte: u8| {
            let mut bytes = summary.to_bytes();
            bytes[at] = byte;
            Summary::from_end(&bytes, 80)
        };
        assert!(with(0, b'R').is_ok());
        assert_eq!(with(0, b'X'), Err(BaseError::Foreign));
        assert_eq!(with(4, 2), Err(BaseError::Version(2)));
        assert!(matches!(with(15, 1), Err(BaseError::Size(_))));
        assert_eq!(with(9, 32), Err(BaseError::Length { is: 80, wanted: 48 + 2 * 32 }));
    }

    #[test]
    fn kept_digests_give_the_wire_digests_of_the_content() {
        let key = Key([3; 32]);
        let units = [[5; UNIT_BYTES], [0; UNIT_BYTES], [6; UNIT_BYTES]].concat();
        let (mut taking, mut kept) = (Taking::new(units.len() as u64), vec![]);
        taking.take(&units, &mut kept);
        let wire: Vec<_> = wire_digests(&key, &kept).collect();
        assert_eq!(wire, [Some(page::digest(&key, &[5; UNIT_BYTES])), None, Some(page::digest(&key, &[6; UNIT_BYTES]))]);
    }

    #[test]
    fn the_name_is_of_the_content_alone() {
        let name = |bytes: u64, pieces: &[&[u8]]| {
            let mut taking = Taking::new(bytes);
            pieces.iter().for_each(|piece| taking.take(piece, &mut vec![]));
            taking.finish().name
        };
        let (five, zero) = ([5; UNIT_BYTES], [0; UNIT_BYTES]);
        assert_eq!(name(8192, &[&five, &zero]), name(8192, &[&[five, zero].concat()]));
        assert_ne!(name(8192, &[&five, &zero]), name(8192, &[&zero, &five]));
        assert_ne!(name(8192, &[&five, &zero]), name(8191, &[&five, &zero]));
        let mut skipping = Taking::new(8192);
        skipping.take(&five, &mut vec![]);
        skipping.take_zeros(1);
        assert_eq!(skipping.finish().name, name(8192, &[&five, &zero]));
    }
}
