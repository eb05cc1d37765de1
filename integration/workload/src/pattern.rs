//! Content that says what it is: any block can be made again from a few numbers and compared.

/// Bytes of a block on disk, on the wire and of a page.
pub const BLOCK_BYTES: usize = 4096;
/// Numbers at the beginning of a block.
const HEADER_BYTES: usize = 32;

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Whose: a connection, a file, a memory.
    pub owner: u64,
    /// Where it belongs.
    pub place: u64,
    /// Which version of that place.
    pub version: u64,
}

/// `REBECBLK`.
const MAGIC: u64 = u64::from_le_bytes(*b"REBECBLK");

impl Label {
    /// Fills a block. Every second block is incompressible; the others are like text, or nearly zero.
    pub fn fill(self, block: &mut [u8; BLOCK_BYTES]) {
        for (at, number) in [MAGIC, self.owner, self.place, self.version].into_iter().enumerate() {
            block[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        let body = &mut block[HEADER_BYTES..];
        let mut state = self.owner ^ self.place.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.version.rotate_left(32);
        let mut next = || {
            // splitmix64: each output depends on all of the state.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        match self.place % 4 {
            0 | 2 => body.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&next().to_le_bytes())),
            1 => {
                let word = next().to_le_bytes().map(|byte| b'a' + byte % 26);
                body.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&word));
            }
            _ => {
                body.fill(0);
                body[..8].copy_from_slice(&next().to_le_bytes());
            }
        }
    }

    /// Reads what a block says it is; none if it is no block.
    pub fn read(block: &[u8; BLOCK_BYTES]) -> Option<Self> {
        let number = |at: usize| block[at * 8..at * 8 + 8].try_into().map(u64::from_le_bytes).ok();
        (number(0)? == MAGIC).then_some(())?;
        Some(Self { owner: number(1)?, place: number(2)?, version: number(3)? })
    }

    /// Whether a block is exactly this one.
    pub fn matches(self, block: &[u8; BLOCK_BYTES]) -> bool {
        let mut expected = [0; BLOCK_BYTES];
        self.fill(&mut expected);
        expected == *block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_says_what_it_is_and_one_bit_betrays_it() {
        for place in 0..8 {
            let label = Label { owner: 7, place, version: 3 };
            let mut block = [0; BLOCK_BYTES];
            label.fill(&mut block);
            assert_eq!(Label::read(&block), Some(label));
            assert!(label.matches(&block));
            assert!(!Label { version: 4, ..label }.matches(&block));
            block[4000] ^= 1;
            assert!(!label.matches(&block));
        }
        assert_eq!(Label::read(&[0; BLOCK_BYTES]), None);
    }
}
