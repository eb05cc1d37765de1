//! The internet checksum (RFC 1071): a one's complement sum of 16-bit words, computed eight bytes at a time.
//!
//! The sum is the same in any byte order as long as words are read and written in the same one (RFC 1071 §2.B), so bytes are added as they
//! lie in memory and nothing is swapped on the way.

/// A sum under way. Every piece but the last must have an even length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes; an odd last byte counts as if a zero followed.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        // 32-bit halves into 64-bit lanes cannot overflow below 16 GiB and have no carry chain, so that the compiler uses vectors.
        let mut lanes = [0_u64; 8];
        let (blocks, tail) = words.as_chunks::<4>();
        for block in blocks {
            for (at, word) in block.iter().enumerate() {
                let word = u64::from_ne_bytes(*word);
                lanes[2 * at] += word & 0xffff_ffff;
                lanes[2 * at + 1] += word >> 32;
            }
        }
        for word in tail {
            let word = u64::from_ne_bytes(*word);
            lanes[0] += word & 0xffff_ffff;
            lanes[1] += word >> 32;
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let last = u64::from_ne_bytes(last);
        lanes[2] += last & 0xffff_ffff;
        lanes[3] += last >> 32;
        lanes.into_iter().fold(self, Self::add)
    }

    /// Adds one 16-bit value.
    #[must_use]
    pub fn word(self, value: u16) -> Self {
        self.add(u64::from(u16::from_ne_bytes(value.to_be_bytes())))
    }

    /// Adds one 32-bit value.
    #[must_use]
    pub fn double(self, value: u32) -> Self {
        self.add(u64::from(u32::from_ne_bytes(value.to_be_bytes())))
    }

    fn add(self, value: u64) -> Self {
        let (sum, carry) = self.0.overflowing_add(value);
        Self(sum + u64::from(carry))
    }

    /// The sum as it stands in a field that a later stage completes (virtio 1.3 §5.1.6.2): not inverted.
    pub fn partial(self) -> [u8; 2] {
        let mut sum = self.0;
        // Three folds carry 64 bits into 16: 64 -> 33 -> 18 -> 17, and the last addition cannot carry again.
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        (sum as u16).to_ne_bytes()
    }

    /// The checksum as it goes into a header.
    pub fn finish(self) -> [u8; 2] {
        let [high, low] = self.partial();
        [!high, !low]
    }

    /// The checksum for TCP and UDP fields, where zero would mean that there is none (RFC 768).
    pub fn finish_nonzero(self) -> [u8; 2] {
        match self.finish() {
            [0, 0] => [0xff, 0xff],
            sum => sum,
        }
    }

    /// Whether this is the sum of bytes that contain their own right checksum.
    pub fn is_right(self) -> bool {
        self.partial() == [0xff, 0xff]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §1, word by word.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&bytes).partial(), [0xdd, 0xf2]);
        assert_eq!(Sum::default().bytes(&bytes).finish(), [0x22, 0x0d]);
    }

    #[test]
    fn many_carries_fold() {
        assert_eq!(Sum::default().bytes(&[0xff; 65_536]).finish(), naive(&[0xff; 65_536]).to_be_bytes());
        assert_eq!(Sum(u64::MAX).partial(), [0xff, 0xff]);
        assert_eq!(Sum(u64::MAX).word(1).partial(), [0, 1]);
    }

    proptest! {
        #[test]
        fn any_pieces_sum_as_one(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..150) {
            let cut = (2 * cut).min(bytes.len() & !1);
            let sum = Sum::default().bytes(&bytes[..cut]).bytes(&bytes[cut..]);
            prop_assert_eq!(sum.finish(), naive(&bytes).to_be_bytes());
        }

        #[test]
        fn values_sum_as_their_bytes(value: u32, word: u16) {
            let bytes = [value.to_be_bytes().as_slice(), &word.to_be_bytes()].concat();
            prop_assert_eq!(Sum::default().double(value).word(word).finish(), naive(&bytes).to_be_bytes());
        }
    }
}
