//! A connection that is kept, and the road that it takes: whether that is lost, and how large a packet comes through.
//!
//! QUIC looks for the largest datagram that arrives by trying (RFC 8899), with DF set, so that the answer holds where routers are silent too, and
//! for LANs between the same two hosts. A search that is underway tells of less than there is.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use iroh::{
    TransportAddr,
    endpoint::{Connection, LocalTransportAddr, PathStats},
};

use crate::kept::Link;

/// What is looked for at most: a packet of 1,500 bytes. No host takes more (noq's `max_udp_payload_size`).
pub const DATAGRAM_BYTES_MAX: u16 = 1500 - IPV4_HEADER_BYTES;
/// How near the search comes.
pub const STEP_BYTES: u16 = 2;
const IPV4_HEADER_BYTES: u16 = 20 + 8;
/// What every path of QUIC carries (RFC 9000 section 14), and what it falls back to when it lost much.
const DATAGRAM_BYTES_MIN: u16 = 1200;
/// A search takes ten steps, each up to three datagrams that are lost, each noticed within so much.
const SEARCH_ROUND_TRIPS: u32 = 100;
const SEARCH_TIME: Duration = Duration::from_secs(5);

/// How the path that a connection takes is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoadLook {
    /// Where it begins, if the system says so.
    pub from: Option<IpAddr>,
    /// Where it ends.
    pub to: SocketAddr,
    /// There and back.
    pub rtt: Duration,
    /// Packets from here.
    pub sent: u64,
    /// Those of them that did not arrive.
    pub lost: u64,
    /// The largest packet that comes through, if it goes by IPv4 and that has been found out.
    pub bytes: Option<u16>,
}

/// One connection.
#[derive(Debug, Clone)]
pub struct Road {
    /// It.
    pub connection: Connection,
    since: Instant,
}

impl Road {
    /// Of a connection that has just been made.
    pub fn new(connection: Connection) -> Self {
        Self { connection, since: Instant::now() }
    }

    /// Whether all of its paths begin at addresses that are not this host's any more.
    pub fn is_lost(&self, is_own: impl Fn(IpAddr) -> bool) -> bool {
        let paths = self.connection.paths();
        let is_lost = |local: &LocalTransportAddr| matches!(local, LocalTransportAddr::Ip(Some(local)) if !is_own(local.to_canonical()));
        !paths.is_empty() && paths.iter().all(|path| is_lost(path.local_addr()))
    }

    /// How it is now; none before its first path is found.
    pub fn look(&self) -> Option<RoadLook> {
        let paths = self.connection.paths();
        let path = paths.iter().find(|path| path.is_selected())?;
        let TransportAddr::Ip(to) = path.remote_addr() else { return None };
        let LocalTransportAddr::Ip(from) = path.local_addr() else { return None };
        let stats = path.stats();
        // What was sent to find out what comes through is meant to be lost.
        let lost = stats.lost_packets.saturating_sub(stats.lost_plpmtud_probes);
        let sent = stats.sent_packets.saturating_sub(stats.sent_plpmtud_probes);
        Some(RoadLook { from: *from, to: *to, rtt: stats.rtt, sent, lost, bytes: self.path_bytes() })
    }

    /// The largest IPv4 packet that comes through, if it goes by IPv4 and that has been found out.
    pub fn path_bytes(&self) -> Option<u16> {
        let paths = self.connection.paths();
        let path = paths.iter().find(|path| path.is_selected())?;
        let TransportAddr::Ip(to) = path.remote_addr() else { return None };
        to.ip().to_canonical().is_ipv4().then(|| found(&path.stats(), self.since.elapsed()))?
    }
}

impl Link for Road {
    fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

fn found(stats: &PathStats, age: Duration) -> Option<u16> {
    let is_searched = age >= SEARCH_TIME.saturating_add(stats.rtt.saturating_mul(SEARCH_ROUND_TRIPS));
    let fell_back = stats.black_holes_detected > 0 && stats.current_mtu <= DATAGRAM_BYTES_MIN;
    let is_all = stats.current_mtu + STEP_BYTES > DATAGRAM_BYTES_MAX;
    (is_searched && !fell_back || is_all).then(|| if is_all { DATAGRAM_BYTES_MAX } else { stats.current_mtu } + IPV4_HEADER_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_told_once_it_is_known() {
        let told = |datagram: u16, black_holes: u64, age_s: u64| {
            let mut stats = PathStats::default();
            (stats.current_mtu, stats.black_holes_detected, stats.rtt) = (datagram, black_holes, Duration::from_millis(50));
            found(&stats, Duration::from_secs(age_s))
        };
        // The search takes 5 s and a hundred round trips here.
        assert_eq!((told(1272, 0, 9), told(1272, 0, 10)), (None, Some(1300)));
        assert_eq!((told(1472, 0, 0), told(1471, 0, 0), told(1470, 0, 0)), (Some(1500), Some(1500), None));
        assert_eq!((told(1470, 0, 10), told(1200, 0, 10)), (Some(1498), Some(1228)));
        // It lost much, for whatever reason, and looks again in a minute.
        assert_eq!((told(1200, 1, 10), told(1272, 1, 10)), (None, Some(1300)));
    }
}
