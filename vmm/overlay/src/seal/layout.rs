//! Where things lie in a sealed datagram: ESP in UDP (RFC 3948 §2.1, RFC 4303 §2, RFC 4106 §3), in transport mode around the UDP that carries VXLAN.
//!
//! ```text
//! 0       4            8       16                24        32                                    len-16
//! | SPI:4 | sequence:4 | IV:8  | inner UDP:8     | VXLAN:8 | frame | 1 2 3.. | pad:1 | next:1=17 | tag:16 |
//! |---------- in the clear ----|------------------------ encrypted -----------------------------|
//! ```
//!
//! The sequence is the lower half of a 64-bit number; the upper half is authenticated and not sent (RFC 4303 §2.2.1). This port writes the whole
//! number as IV as well, so that a receiver never has to guess.

use std::ops::Range;

use super::key::{IV_BYTES, TAG_BYTES};

/// What stands before the payload (the VXLAN header and the frame).
pub const HEAD_BYTES: usize = CLEAR_BYTES + UDP_BYTES;
/// What a sealed datagram is longer than its payload, at most.
pub const OVERHEAD_BYTES_MAX: usize = HEAD_BYTES + ALIGNMENT - 1 + TRAILER_BYTES + TAG_BYTES;

pub(super) const CLEAR_BYTES: usize = 8 + IV_BYTES;
const UDP_BYTES: usize = 8;
const TRAILER_BYTES: usize = 2;
const ALIGNMENT: usize = 4;
const NEXT_UDP: u8 = 17;
/// The port of VXLAN (RFC 7348 §5). Linux finds its device by it; a port of ours by the SPI.
const VXLAN_PORT: u16 = 4789;

/// Bytes of the datagram that carries a payload.
pub fn sealed_bytes(payload: usize) -> usize {
    CLEAR_BYTES + (UDP_BYTES + payload + TRAILER_BYTES).next_multiple_of(ALIGNMENT) + TAG_BYTES
}

/// Writes everything of a datagram that needs no key, and says where its payload goes.
pub fn frame(datagram: &mut [u8], payload: usize) -> &mut [u8] {
    let end = datagram.len() - TAG_BYTES;
    let udp_bytes = (UDP_BYTES + payload) as u16;
    let [a, b] = VXLAN_PORT.to_be_bytes();
    let [c, d] = udp_bytes.to_be_bytes();
    // No checksum: what the tag covers needs none, and it would have to know the addresses that a NAT writes.
    datagram[CLEAR_BYTES..HEAD_BYTES].copy_from_slice(&[a, b, a, b, c, d, 0, 0]);
    let padding = end - TRAILER_BYTES - (HEAD_BYTES + payload);
    for (number, byte) in (1..).zip(&mut datagram[HEAD_BYTES + payload..end - TRAILER_BYTES]) {
        *byte = number;
    }
    datagram[end - TRAILER_BYTES] = padding as u8;
    datagram[end - 1] = NEXT_UDP;
    &mut datagram[HEAD_BYTES..HEAD_BYTES + payload]
}

/// Where the payload lies in what was between the clear head and the tag, once that is decrypted. `None` if it is laid out otherwise.
pub(super) fn payload(plain: &[u8]) -> Option<Range<usize>> {
    let (body, &[padding, next]) = plain.split_last_chunk::<TRAILER_BYTES>()?;
    let end = body.len().checked_sub(usize::from(padding))?;
    let &[_, _, _, _, c, d, _, _] = body.first_chunk::<UDP_BYTES>()?;
    let udp_bytes = usize::from(u16::from_be_bytes([c, d]));
    // Linux may put more behind the UDP datagram than its length says (RFC 4303 §2.7).
    (next == NEXT_UDP && (UDP_BYTES..=end).contains(&udp_bytes)).then_some(UDP_BYTES..udp_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_packet_fits_a_wire_of_1500_bytes() {
        let payload = crate::vxlan::HEADER_BYTES + 14 + 4 + 1400;
        assert!(20 + 8 + sealed_bytes(payload) <= 1500, "{}", 28 + sealed_bytes(payload));
    }

    #[test]
    fn what_is_framed_is_found_again_whatever_its_length() {
        for bytes in 0..64 {
            let mut datagram = vec![0xee; sealed_bytes(bytes)];
            frame(&mut datagram, bytes).fill(7);
            assert_eq!((datagram.len() - CLEAR_BYTES) % ALIGNMENT, 0);
            assert!(datagram.len() - bytes <= OVERHEAD_BYTES_MAX);
            let plain = &datagram[CLEAR_BYTES..datagram.len() - TAG_BYTES];
            let found = payload(plain).unwrap();
            assert_eq!(&plain[found], vec![7; bytes]);
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let mut datagram = vec![0; sealed_bytes(20)];
        frame(&mut datagram, 20);
        let plain = datagram[CLEAR_BYTES..datagram.len() - TAG_BYTES].to_vec();
        let with = |at: usize, value: u8| {
            let mut plain = plain.clone();
            plain[at] = value;
            plain
        };
        let end = plain.len();
        for wrong in [with(end - 1, 6), with(end - 2, 30), with(5, 7), with(4, 1), with(5, 29), vec![], vec![0, 17], vec![0; 9]] {
            assert_eq!(payload(&wrong), None, "{wrong:?}");
        }
    }
}
