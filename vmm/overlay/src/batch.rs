//! Datagrams side by side, so that one system call sends many.
//!
//! A run is what one `sendmsg` with UDP_SEGMENT carries: datagrams of one size for one destination, only the last shorter, in one buffer.
//! The kernel takes at most [`DATAGRAMS_MAX`] of them and [`RUN_BYTES_MAX`] bytes; a datagram that does not fit the run begins the next.
//! The buffer is the size of one run: what is written into it is sent while it is still in the cache.

use std::net::SocketAddrV4;

use crate::seal::layout;

/// Datagrams in one run: UDP_MAX_SEGMENTS of Linux before 6.9.
pub const DATAGRAMS_MAX: usize = 64;
/// Bytes in one run: the largest UDP payload over IPv4.
pub const RUN_BYTES_MAX: usize = 65_507;

/// Where runs go. The driver's socket; in tests, a list.
pub trait Wire {
    /// Sends datagrams of `stride` bytes each, the last one perhaps shorter, and may seal them in place first. Counts what it loses by itself: a
    /// frame path has no one to tell.
    fn send(&mut self, to: SocketAddrV4, datagrams: &mut [u8], stride: usize);

    /// Whether the port behind an endpoint is of this host, and there is a road to it that is no network. Without such roads there is nothing to say.
    fn is_near(&mut self, _to: SocketAddrV4) -> bool {
        false
    }

    /// Sends one record (`near.rs`) on that road; what it has no room for is lost, and counted. Whether there is such a road: if not, the network is.
    fn send_near(&mut self, _to: SocketAddrV4, _head: &[u8], _frame: &[u8]) -> bool {
        false
    }
}

/// The run under way.
#[derive(Debug)]
pub struct Batch {
    buffer: Box<[u8]>,
    used: usize,
    stride: usize,
    /// The last datagram was shorter: nothing may follow.
    closed: bool,
    /// Several endpoints get a copy each: a flood.
    to: Vec<SocketAddrV4>,
    sent: u64,
    /// The run of a flood of a sealed LAN, once more for each who gets it.
    copy: Option<Box<[u8]>>,
}

impl Batch {
    /// Of a port whose datagrams are to be sealed, or of one whose are not.
    pub fn new(sealed: bool) -> Self {
        let buffer = || vec![0; RUN_BYTES_MAX].into();
        Self { buffer: buffer(), used: 0, stride: 0, closed: false, to: Vec::new(), sent: 0, copy: sealed.then(buffer) }
    }

    /// Space for the payload of one datagram, VXLAN header and frame, with what a sealed one has around it.
    pub fn payload(&mut self, to: &[SocketAddrV4], bytes: usize, wire: &mut impl Wire) -> &mut [u8] {
        if self.copy.is_none() {
            return self.datagram(to, bytes, wire);
        }
        layout::frame(self.datagram(to, layout::sealed_bytes(bytes), wire), bytes)
    }

    /// Space for one datagram of `bytes` bytes, 1 to [`RUN_BYTES_MAX`], to every endpoint of `to`. Sends the run under way first if this
    /// datagram cannot join it.
    fn datagram(&mut self, to: &[SocketAddrV4], bytes: usize, wire: &mut impl Wire) -> &mut [u8] {
        let joins = self.used > 0
            && !self.closed
            && bytes <= self.stride
            && self.used + bytes <= RUN_BYTES_MAX
            && self.used / self.stride < DATAGRAMS_MAX
            && self.to == to;
        if !joins {
            self.flush(wire);
            self.stride = bytes;
            self.to.extend_from_slice(to);
        }
        self.closed = bytes < self.stride;
        self.sent += to.len() as u64;
        let start = self.used;
        self.used += bytes;
        &mut self.buffer[start..start + bytes]
    }

    /// Sends the run under way.
    pub fn flush(&mut self, wire: &mut impl Wire) {
        let run = &mut self.buffer[..self.used];
        if let Some((last, others)) = self.to.split_last() {
            for to in others {
                match &mut self.copy {
                    Some(copy) => {
                        let copy = &mut copy[..self.used];
                        copy.copy_from_slice(run);
                        wire.send(*to, copy, self.stride);
                    }
                    None => wire.send(*to, run, self.stride),
                }
            }
            wire.send(*last, run, self.stride);
        }
        (self.used, self.stride, self.closed) = (0, 0, false);
        self.to.clear();
    }

    /// Datagrams taken so far, a copy for each endpoint.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// What was sent: destination, stride, bytes.
    #[derive(Debug, Default)]
    pub(crate) struct Sent(pub(crate) Vec<(SocketAddrV4, usize, Vec<u8>)>);

    impl Wire for Sent {
        fn send(&mut self, to: SocketAddrV4, datagrams: &mut [u8], stride: usize) {
            assert!(datagrams.len() <= RUN_BYTES_MAX && datagrams.len().div_ceil(stride) <= DATAGRAMS_MAX);
            self.0.push((to, stride, datagrams.to_vec()));
        }
    }

    fn endpoint(number: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, number), 4789)
    }

    fn runs(datagrams: &[(u8, usize)]) -> Vec<(u8, usize, usize)> {
        let (mut batch, mut sent) = (Batch::new(false), Sent::default());
        for (to, bytes) in datagrams {
            batch.datagram(&[endpoint(*to)], *bytes, &mut sent).fill(*to);
        }
        batch.flush(&mut sent);
        batch.flush(&mut sent);
        assert_eq!(batch.sent(), datagrams.len() as u64);
        sent.0.iter().map(|(to, stride, bytes)| (to.ip().octets()[3], *stride, bytes.len())).collect()
    }

    #[test]
    fn a_run_is_of_one_size_and_one_destination_and_only_its_end_is_short() {
        assert_eq!(runs(&[(1, 100), (1, 100), (1, 60), (1, 60), (1, 100)]), [(1, 100, 260), (1, 60, 60), (1, 100, 100)]);
        assert_eq!(runs(&[(1, 100), (2, 100), (2, 100), (1, 100)]), [(1, 100, 100), (2, 100, 200), (1, 100, 100)]);
        assert_eq!(runs(&[]), []);
    }

    #[test]
    fn a_run_stays_within_the_kernels_limits() {
        assert_eq!(runs(&[(1, 64); 130]), [(1, 64, 64 * 64), (1, 64, 64 * 64), (1, 64, 2 * 64)]);
        assert_eq!(runs(&[(1, 1422); 47]), [(1, 1422, 46 * 1422), (1, 1422, 1422)]);
        assert_eq!(runs(&[(1, RUN_BYTES_MAX), (1, 1)]), [(1, RUN_BYTES_MAX, RUN_BYTES_MAX), (1, 1, 1)]);
    }

    #[test]
    fn a_flood_is_written_once_and_sent_to_each() {
        let (mut batch, mut sent) = (Batch::new(false), Sent::default());
        let everyone = [endpoint(1), endpoint(2)];
        batch.datagram(&everyone, 4, &mut sent).copy_from_slice(b"1234");
        batch.datagram(&everyone, 4, &mut sent).copy_from_slice(b"5678");
        batch.datagram(&everyone[..1], 4, &mut sent).copy_from_slice(b"only");
        batch.flush(&mut sent);
        let expected = [(endpoint(1), 4, b"12345678".to_vec()), (endpoint(2), 4, b"12345678".to_vec()), (endpoint(1), 4, b"only".to_vec())];
        assert_eq!(sent.0, expected);
        assert_eq!(batch.sent(), 5);
    }
}
