//! The VXLAN header (RFC 7348 §5) in front of each frame.
//!
//! ```text
//!  0               1               2               3
//! |R|R|R|R|I|R|R|R|            reserved (24 bits)                 |
//! |                VNI (24 bits)                  |   reserved    |
//! ```
//!
//! I must be set; reserved bits are sent as zero and ignored on receipt, as the RFC says.

/// Bytes of the header.
pub const HEADER_BYTES: usize = 8;
/// Everything that stands between an inner IP packet and the outer link: outer IPv4 and UDP headers, this one, the inner Ethernet header.
pub const OVERHEAD_BYTES: usize = 20 + 8 + HEADER_BYTES + 14;

const FLAG_I: u8 = 0x08;

/// A LAN's label on the wire: 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vni(u32);

impl Vni {
    /// A label, if it fits in 24 bits.
    pub fn new(number: u32) -> Option<Self> {
        (number < 1 << 24).then_some(Self(number))
    }

    /// The header of this LAN's datagrams.
    pub fn header(self) -> [u8; HEADER_BYTES] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [FLAG_I, 0, 0, 0, a, b, c, 0]
    }
}

/// Why a datagram holds no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotVxlan {
    /// Shorter than the header.
    Short,
    /// The I flag is clear, so there is no VNI.
    NoVni,
}

/// Splits a datagram into its label and its frame.
pub fn open(datagram: &[u8]) -> Result<(Vni, &[u8]), NotVxlan> {
    let Some((&[flags, _, _, _, a, b, c, _], frame)) = datagram.split_first_chunk::<HEADER_BYTES>() else {
        return Err(NotVxlan::Short);
    };
    if flags & FLAG_I == 0 {
        return Err(NotVxlan::NoVni);
    }
    Ok((Vni(u32::from_be_bytes([0, a, b, c])), frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        assert_eq!(Vni::new(0x12_3456).unwrap().header(), [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(Vni::new(1 << 24), None);
    }

    #[test]
    fn the_flag_is_needed_and_reserved_bits_are_not_looked_at() {
        assert_eq!(open(&[8, 0, 0, 0, 0, 0, 7]), Err(NotVxlan::Short));
        assert_eq!(open(&[0xf7, 0, 0, 0, 0, 0, 7, 0, 1]), Err(NotVxlan::NoVni));
        assert_eq!(open(&[0xff, 1, 2, 3, 0, 0, 7, 9, 1]), Ok((Vni(7), &[1][..])));
    }
}
