//! A kernel that was unpacked before, and the digest of what it was unpacked from: whoever has the same bytes again has the same kernel.
//!
//! ```text
//! the ELF │ BLAKE3 of the packed kernel (32) │ "RBKERNL1"
//! ```
//! `rebec-vmm unpack --disk` makes it of an image, sealed, and nothing else writes it: no VM can change what another starts from.

use std::{fs::File, io, os::unix::fs::FileExt as _};

const MAGIC: [u8; 8] = *b"RBKERNL1";
const END_BYTES: usize = blake3::OUT_LEN + MAGIC.len();

/// One that is at hand.
pub struct KnownKernel {
    /// The ELF, with its end.
    pub file: File,
    packed: blake3::Hash,
}

impl KnownKernel {
    /// Reads what it was unpacked from.
    pub fn open(file: File) -> io::Result<Self> {
        let mut end = [0; END_BYTES];
        let at = file.metadata()?.len().checked_sub(END_BYTES as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        file.read_exact_at(&mut end, at)?;
        let (digest, magic) = end.split_at(blake3::OUT_LEN);
        if magic != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not what `rebec-vmm unpack --disk` writes"));
        }
        let packed = blake3::Hash::from_slice(digest).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Self { file, packed })
    }

    /// What follows the ELF of a kernel that was packed so.
    pub fn end(packed: &[u8]) -> [u8; END_BYTES] {
        let mut end = [0; END_BYTES];
        end[..blake3::OUT_LEN].copy_from_slice(blake3::hash(packed).as_bytes());
        end[blake3::OUT_LEN..].copy_from_slice(&MAGIC);
        end
    }

    /// Whether it is this one, unpacked.
    pub fn is_of(&self, packed: &[u8]) -> bool {
        blake3::hash(packed) == self.packed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_every_byte_that_it_was_unpacked_from() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"the elf", 0).unwrap();
        assert!(KnownKernel::open(file.try_clone().unwrap()).is_err());
        file.write_all_at(&KnownKernel::end(b"packed"), 7).unwrap();
        let known = KnownKernel::open(file.try_clone().unwrap()).unwrap();
        assert!(known.is_of(b"packed") && !known.is_of(b"Packed") && !known.is_of(b"packed "));
        file.write_all_at(b"X", 7 + END_BYTES as u64 - 1).unwrap();
        assert!(KnownKernel::open(file).is_err());
    }
}
