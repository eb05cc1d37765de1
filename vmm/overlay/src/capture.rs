//! What passes a port, as a file that packet dissectors read: pcapng (draft-ietf-opsawg-pcapng), blocks in little endian, and which frames are wanted.
//!
//! ```text
//! section header | interface description | enhanced packet ... | interface statistics: how many there were, how many were lost
//! ```
//! Frames are those between the guest and its port: before they are cut, summed and sealed, and after they were opened and joined. So one may be of
//! 64 KiB, and have the pseudo header's sum where its checksum is to be.

use std::{net::IpAddr, str::FromStr, time::Duration};

use rebec_offload::FrameBytes;
use rebec_vmm_api::MacAddr;

use crate::frame::{ARP, Ethernet, ICMPV6, IPV4, IPV6, Ip, TCP, UDP, Version, word};

/// Words of one filter.
const TERMS_MAX: usize = 16;
/// Of a captured frame, what is written at most.
pub const SNAP_BYTES: usize = 256 << 10;
const ICMP: u8 = 1;

/// Which way a frame went, in pcapng's numbers, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the guest.
    In = 1,
    /// From the guest.
    Out = 2,
}

/// A filter that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "filter: {0}: expected words joined by `and`, each perhaps after `not`: arp, ip, ip6, tcp, udp, icmp, icmp6, multicast, host ADDRESS, port NUMBER, ether MAC"
)]
pub struct BadFilter(String);

/// Which frames are wanted: those of which all of this is true.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter(Vec<(bool, Term)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Term {
    Arp,
    Ip(Version),
    Protocol(u8),
    Multicast,
    Host(IpAddr),
    Port(u16),
    Ether(MacAddr),
}

impl FromStr for Filter {
    type Err = BadFilter;

    fn from_str(text: &str) -> Result<Self, BadFilter> {
        let (mut words, mut terms) = (text.split_whitespace().peekable(), vec![]);
        while words.peek().is_some() {
            let is_wanted = words.next_if_eq(&"not").is_none();
            let term = term(&mut words)?;
            terms.push((is_wanted, term));
            match words.next() {
                None if terms.len() <= TERMS_MAX => break,
                Some("and") if terms.len() < TERMS_MAX && words.peek().is_some() => {}
                None | Some("and") => return Err(BadFilter(format!("it ends with `and`, or has more than {TERMS_MAX} terms"))),
                Some(other) => return Err(BadFilter(format!("`{other}`"))),
            }
        }
        Ok(Self(terms))
    }
}

fn term<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<Term, BadFilter> {
    let word = words.next().ok_or_else(|| BadFilter("nothing after `not`".to_owned()))?;
    let mut value = || words.next().ok_or_else(|| BadFilter(format!("nothing after `{word}`")));
    let wrong = |value: &str| BadFilter(format!("`{word} {value}`"));
    Ok(match word {
        "arp" => Term::Arp,
        "ip" => Term::Ip(Version::V4),
        "ip6" => Term::Ip(Version::V6),
        "tcp" => Term::Protocol(TCP),
        "udp" => Term::Protocol(UDP),
        "icmp" => Term::Protocol(ICMP),
        "icmp6" => Term::Protocol(ICMPV6),
        "multicast" => Term::Multicast,
        "host" => value().and_then(|value| value.parse().map(Term::Host).map_err(|_| wrong(value)))?,
        "port" => value().and_then(|value| value.parse().map(Term::Port).map_err(|_| wrong(value)))?,
        "ether" => value().and_then(|value| value.parse().map(Term::Ether).map_err(|_| wrong(value)))?,
        other => return Err(BadFilter(format!("`{other}`"))),
    })
}

impl Filter {
    /// Whether a frame that begins with these bytes is wanted.
    pub fn wants(&self, frame: &[u8]) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let Some(ethernet) = Ethernet::parse(frame) else { return false };
        let ip = Ip::parse(frame, &ethernet);
        self.0.iter().all(|(is_wanted, term)| term.is_of(frame, &ethernet, ip.as_ref()) == *is_wanted)
    }
}

impl Term {
    fn is_of(self, frame: &[u8], ethernet: &Ethernet, ip: Option<&Ip>) -> bool {
        match self {
            Self::Arp => ethernet.ethertype == ARP,
            Self::Ip(Version::V4) => ethernet.ethertype == IPV4,
            Self::Ip(Version::V6) => ethernet.ethertype == IPV6,
            Self::Protocol(protocol) => ip.is_some_and(|ip| ip.protocol == protocol && (ip.version == Version::V6 || protocol != ICMPV6)),
            Self::Multicast => ethernet.destination.is_multicast(),
            Self::Ether(mac) => ethernet.source == mac || ethernet.destination == mac,
            Self::Port(port) => ip.filter(|ip| ip.protocol == TCP || ip.protocol == UDP).is_some_and(|ip| {
                // A later piece of a packet has no ports.
                let is_first = ip.version == Version::V6 || word(frame, ip.network + 6).is_some_and(|word| word & 0x1fff == 0);
                is_first && (word(frame, ip.transport) == Some(port) || word(frame, ip.transport + 2) == Some(port))
            }),
            Self::Host(IpAddr::V4(host)) => {
                let at = match ethernet.ethertype {
                    ARP => [14, 24],
                    IPV4 => [12, 16],
                    _ => return false,
                };
                at.iter().any(|at| frame.get(ethernet.network + at..).is_some_and(|bytes| bytes.starts_with(&host.octets())))
            }
            Self::Host(IpAddr::V6(host)) => {
                let at = |at: usize| frame.get(ethernet.network + at..).is_some_and(|bytes| bytes.starts_with(&host.octets()));
                ethernet.ethertype == IPV6 && (at(8) || at(24))
            }
        }
    }
}

/// What a capture begins with: a section, and its one interface.
pub fn begin(name: &str, filter: &str) -> Vec<u8> {
    let mut bytes = block(0x0a0d_0d0a, &[&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]], &[(4, b"rebec")]);
    let (name, filter) = (&name.as_bytes()[..name.len().min(64)], &filter.as_bytes()[..filter.len().min(256)]);
    // Ethernet, whole frames; times count nanoseconds; the filter as a text.
    let options: [(u16, &[u8]); 3] = [(2, name), (9, &[9]), (11, &[&[0], filter].concat())];
    bytes.extend(block(1, &[&1_u16.to_le_bytes(), &[0; 2], &(SNAP_BYTES as u32).to_le_bytes()], &options));
    bytes
}

/// One frame, in place of what is in `into`. `since_1970` is when.
pub fn packet(into: &mut Vec<u8>, since_1970: Duration, way: Way, frame: &FrameBytes<'_>) {
    let kept = frame.len().min(SNAP_BYTES);
    let total = (32 + kept.next_multiple_of(4) + 12) as u32;
    into.clear();
    for word in [6, total, 0].into_iter().chain(time(since_1970)).chain([kept as u32, frame.len() as u32]) {
        into.extend(word.to_le_bytes());
    }
    let mut left = kept;
    for piece in frame.iter() {
        let piece = &piece[..piece.len().min(left)];
        into.extend_from_slice(piece);
        left -= piece.len();
    }
    into.resize(into.len().next_multiple_of(4), 0);
    let [low, high] = 2_u16.to_le_bytes();
    into.extend([low, high, 4, 0, way as u8, 0, 0, 0, 0, 0, 0, 0]);
    into.extend(total.to_le_bytes());
}

/// How many frames there were that were wanted, and how many of them were lost as nobody took them in time.
pub fn statistics(since_1970: Duration, received: u64, dropped: u64) -> Vec<u8> {
    let [high, low] = time(since_1970).map(u32::to_le_bytes);
    block(5, &[&[0; 4], &high, &low], &[(4, &received.to_le_bytes()), (5, &dropped.to_le_bytes())])
}

/// Upper and lower half.
fn time(since_1970: Duration) -> [u32; 2] {
    let nanos = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
    [(nanos >> 32) as u32, nanos as u32]
}

fn block(kind: u32, body: &[&[u8]], options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = [&kind.to_le_bytes()[..], &[0; 4], &body.concat()].concat();
    for (code, value) in options {
        bytes.extend([code.to_le_bytes(), (value.len() as u16).to_le_bytes()].concat());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes.extend([0; 4]);
    let total = ((bytes.len() + 4) as u32).to_le_bytes();
    bytes[4..8].copy_from_slice(&total);
    bytes.extend(total);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Tcp, samples::*};

    fn wants(filter: &str, frame: &[u8]) -> bool {
        filter.parse::<Filter>().unwrap().wants(frame)
    }

    #[test]
    fn words_say_which_frames_are_wanted() {
        let (tcp, udp) = (tcp(Version::V4, 1, Tcp::ACK, b"abc"), udp(Version::V6, b"abc"));
        for (filter, of_tcp, of_udp) in [
            ("", true, true),
            ("tcp", true, false),
            ("not tcp", false, true),
            ("ip6 and udp", false, true),
            ("port 53", false, true),
            ("port 8080 and host 10.0.0.2", true, false),
            ("host 10.0.0.3", false, false),
            ("host fd00::2 and not arp", false, true),
            ("ether 52:54:00:00:00:01", true, true),
            ("multicast", false, false),
            ("icmp6", false, false),
        ] {
            assert_eq!((wants(filter, &tcp), wants(filter, &udp)), (of_tcp, of_udp), "{filter}");
        }
        let question = ethernet(
            MacAddr::BROADCAST,
            MINE,
            ARP,
            &[0, 1, 8, 0, 6, 4, 0, 1, 1, 1, 1, 1, 1, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2],
        );
        assert!(wants("arp and host 10.0.0.2 and multicast", &question) && !wants("ip", &question));
        for wrong in ["tcpp", "tcp and", "and", "not", "port", "port 70000", "host web", "tcp udp", &["tcp"; 17].join(" and ")] {
            let error = wrong.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains("expected words joined by `and`"), "{wrong}: {error}");
        }
    }

    /// As tshark shows them: lengths at both ends of each block, and everything a multiple of four.
    #[test]
    fn blocks_are_whole() {
        let frame = tcp(Version::V4, 1, Tcp::ACK, b"abc");
        let mut bytes = begin("web", "tcp");
        let mut one = vec![];
        packet(
            &mut one,
            Duration::new(1_700_000_000, 5),
            Way::Out,
            &FrameBytes::scattered(&frame[..20], &frame, &[20..30, 30..frame.len()]),
        );
        bytes.extend(&one);
        bytes.extend(statistics(Duration::new(1_700_000_001, 0), 7, 3));
        let (mut at, mut kinds) = (0, vec![]);
        while at < bytes.len() {
            let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
            let length = word(at + 4) as usize;
            assert_eq!((length % 4, word(at + length - 4) as usize), (0, length));
            kinds.push(word(at));
            at += length;
        }
        assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 5]);
        let nanos = u64::from(u32::from_le_bytes(*one[12..].first_chunk().unwrap())) << 32
            | u64::from(u32::from_le_bytes(*one[16..].first_chunk().unwrap()));
        assert_eq!(nanos, 1_700_000_000_000_000_005);
        assert_eq!((&one[28..28 + frame.len()], one[28 + frame.len().next_multiple_of(4) + 4]), (&frame[..], 2));
    }

    proptest! {
        #[test]
        fn any_text_and_any_frame_do_no_harm(text in "[ a-z0-9.:]{0,60}", frame in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(filter) = text.parse::<Filter>() {
                let _wanted = filter.wants(&frame);
            }
            for filter in ["tcp and port 5", "host 10.0.0.1", "host fd00::1", "not udp and not port 7"] {
                let _wanted = wants(filter, &frame);
            }
        }
    }
}
