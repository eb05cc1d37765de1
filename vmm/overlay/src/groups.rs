//! Who wants to hear which group: what stations say in IGMP (RFC 1112, RFC 2236, RFC 3376) and MLD (RFC 2710, RFC 3810), listened to as RFC 4541 has it.
//!
//! ```text
//! report, leave   from a station of the LAN, to all      a station asked for groups, or wants one no more
//! question        from this port to its guest alone      every 125 s: what it wants is said again, and heard by all
//! empty report    from this port in its guest's name     likewise: a guest that wants nothing says nothing, and is known by this to be heard
//! ```
//! A multicast then goes to who asked, to who bridges and to physical machines, and to every station that has not been heard for so long that all
//! it wants must have been said. So what is not known goes to all, as before: a station of a guest or a port that says nothing of groups has
//! everything. What is for the link itself (224.0.0.0/24, ff02::/16), and what speaks of groups, goes to all.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use rebec_vmm_api::MacAddr;

use crate::{
    checksum::Sum,
    discovery::made_of,
    fdb::Fdb,
    frame::{ETHERNET_BYTES, Ethernet, ICMPV6, IPV4, IPV6, Ip, Version, word},
    reply::SERVER_MAC,
};

/// Between two questions (RFC 3376 §8.2).
const QUERY_EVERY: Duration = Duration::from_secs(125);
/// How long a station must have been heard until what it did not ask for is kept from it, and how long what it said counts: two questions and the
/// time to answer (RFC 3376 §8.4).
const INTERVAL: Duration = Duration::from_secs(260);
/// After a guest's first frame, before its first question: it may not listen yet.
const FIRST_AFTER: Duration = Duration::from_secs(10);
/// Stations that are listened to, of each protocol.
pub const STATIONS_MAX: usize = 2048;
/// Groups of one station. Who asks for more gets everything.
pub const GROUPS_MAX: usize = 64;
/// Groups of all stations together.
pub const ASKED_MAX: usize = 8192;

const IGMP: u8 = 2;
const HOP_BY_HOP: u8 = 0;

/// What one report says of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It is wanted.
    Joins(IpAddr),
    /// It is wanted no more.
    Leaves(IpAddr),
}

/// The protocol and a station.
type Speaker = (Family, [u8; 6]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

#[derive(Debug, Clone)]
struct Heard {
    /// Without a gap since then.
    since: Instant,
    last: Instant,
    /// Where its frames came from, should nobody know where it is.
    at: SocketAddrV4,
    groups: BTreeMap<IpAddr, Instant>,
}

/// What is known of the groups of one LAN, at one port.
#[derive(Debug, Default)]
pub struct Groups {
    heard: BTreeMap<Speaker, Heard>,
    asked: usize,
    next_query: Option<Instant>,
}

impl Groups {
    /// The guest has sent something: it will be asked.
    pub fn begin(&mut self, now: Instant) {
        self.next_query.get_or_insert(now + FIRST_AFTER);
    }

    /// The guest has come here: what it wants is not known at this port.
    pub fn arrive(&mut self, now: Instant) {
        self.next_query = Some(now + FIRST_AFTER);
    }

    /// When [`Self::is_due`] will say so.
    pub fn next_query(&self) -> Option<Instant> {
        self.next_query
    }

    /// Whether questions are to be asked now; forgets what was not said again.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if self.next_query.is_none_or(|due| now < due) {
            return false;
        }
        self.next_query = Some(now + QUERY_EVERY);
        let is_fresh = |since: Instant| now.saturating_duration_since(since) <= INTERVAL;
        self.heard.retain(|_, heard| is_fresh(heard.last));
        for heard in self.heard.values_mut() {
            heard.groups.retain(|_, said| is_fresh(*said));
        }
        self.asked = self.heard.values().map(|heard| heard.groups.len()).sum();
        true
    }

    /// Listens to a frame of another station, which came from `at`.
    pub fn heard(&mut self, now: Instant, at: SocketAddrV4, frame: &[u8], ethernet: &Ethernet) {
        if !ethernet.destination.is_multicast() || ethernet.destination == MacAddr::BROADCAST {
            return;
        }
        let Some((family, report)) = report(frame, ethernet) else { return };
        let speaker = (family, ethernet.source.0);
        if self.heard.len() >= 2 * STATIONS_MAX && !self.heard.contains_key(&speaker) {
            return;
        }
        let heard = self.heard.entry(speaker).or_insert_with(|| Heard { since: now, last: now, at, groups: BTreeMap::new() });
        if now.saturating_duration_since(heard.last) > INTERVAL {
            heard.since = now;
        }
        (heard.last, heard.at) = (now, at);
        let before = heard.groups.len();
        let mut too_many = false;
        each(report, |said| match said {
            Said::Leaves(group) => drop(heard.groups.remove(&group)),
            Said::Joins(group) if is_of_the_link(group) => {}
            Said::Joins(group) => {
                let is_new = !heard.groups.contains_key(&group);
                if is_new
                    && (heard.groups.len() >= GROUPS_MAX || self.asked + heard.groups.len() - before.min(heard.groups.len()) >= ASKED_MAX)
                {
                    too_many = true;
                } else {
                    heard.groups.insert(group, now);
                }
            }
        });
        self.asked = self.asked + heard.groups.len() - before;
        if too_many {
            // Not all that it wants can be kept in mind, so it gets everything for as long as that is so.
            heard.since = now;
        }
    }

    /// Who is to have a multicast for `group`: endpoints, in the order of the flood.
    pub fn takers(&self, now: Instant, fdb: &Fdb, group: IpAddr, to: &mut Vec<SocketAddrV4>) {
        let family = if group.is_ipv4() { Family::V4 } else { Family::V6 };
        let wants = |station: [u8; 6]| match self.heard.get(&(family, station)) {
            Some(heard)
                if now.saturating_duration_since(heard.last) <= INTERVAL && now.saturating_duration_since(heard.since) > INTERVAL =>
            {
                heard.groups.get(&group).is_some_and(|said| now.saturating_duration_since(*said) <= INTERVAL)
            }
            _ => true,
        };
        to.extend(fdb.flood().iter().copied().filter(|endpoint| {
            let mut stations = fdb.stations_at(*endpoint).peekable();
            // Behind one of which no station is told anything may be.
            stations.peek().is_none()
                || fdb.port(*endpoint).trunk
                || fdb.physical_at(*endpoint.ip()) == Some(*endpoint)
                || stations.any(wants)
        }));
    }
}

/// The group that a frame is for, if who wants it is asked: an untagged IP packet to a group beyond the link that does not speak of groups itself.
pub fn group_of(frame: &[u8], ethernet: &Ethernet) -> Option<IpAddr> {
    if !ethernet.destination.is_multicast() || ethernet.network != ETHERNET_BYTES {
        return None;
    }
    let ip = Ip::parse(frame, ethernet)?;
    let group = match ip.version {
        Version::V4 => IpAddr::from(*frame.get(ip.network + 16..)?.first_chunk::<4>()?),
        Version::V6 => IpAddr::from(*frame.get(ip.network + 24..)?.first_chunk::<16>()?),
    };
    let speaks_of_groups = match ip.version {
        Version::V4 => ip.protocol == IGMP,
        // Of the first, which is version 1, the group itself is the destination.
        Version::V6 => report(frame, ethernet).is_some(),
    };
    (group.is_multicast() && !is_of_the_link(group) && !speaks_of_groups).then_some(group)
}

fn is_of_the_link(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(group) => matches!(group.octets(), [224, 0, 0, _]),
        // Interface-local and link-local (RFC 7346).
        IpAddr::V6(group) => group.octets()[1] & 0xf <= 2,
    }
}

/// The message of a frame that says what its station wants, if it is one.
fn report<'a>(frame: &'a [u8], ethernet: &Ethernet) -> Option<(Family, &'a [u8])> {
    if ethernet.network != ETHERNET_BYTES {
        return None;
    }
    match ethernet.ethertype {
        IPV4 => {
            let ip = Ip::parse(frame, ethernet).filter(|ip| ip.protocol == IGMP)?;
            let is_later_piece = word(frame, ip.network + 6)? & 0x1fff != 0;
            let message = frame.get(ip.transport..ip.end.min(frame.len()))?;
            (!is_later_piece && matches!(message, [0x12 | 0x16 | 0x17 | 0x22, _, _, _, _, _, _, _, ..])).then_some((Family::V4, message))
        }
        IPV6 => {
            let ip = Ip::parse(frame, ethernet).filter(|ip| ip.protocol == HOP_BY_HOP)?;
            let &[next, length] = frame.get(ip.transport..)?.first_chunk::<2>()?;
            let at = ip.transport + (usize::from(length) + 1) * 8;
            let message = frame.get(at..ip.end.min(frame.len())).filter(|_| next == ICMPV6)?;
            let is_whole = matches!(message, [131 | 132, ..] if message.len() >= 24) || matches!(message, [143, _, _, _, _, _, _, _, ..]);
            is_whole.then_some((Family::V6, message))
        }
        _ => None,
    }
}

/// Says each thing that a report says. One that is cut short ends where it does.
fn each(report: &[u8], mut said: impl FnMut(Said)) {
    let v4 = |at: usize| report.get(at..)?.first_chunk::<4>().map(|group| IpAddr::from(*group));
    let v6 = |at: usize| report.get(at..)?.first_chunk::<16>().map(|group| IpAddr::from(*group));
    match report[0] {
        0x12 | 0x16 => v4(4).into_iter().for_each(|group| said(Said::Joins(group))),
        0x17 => v4(4).into_iter().for_each(|group| said(Said::Leaves(group))),
        131 => v6(8).into_iter().for_each(|group| said(Said::Joins(group))),
        132 => v6(8).into_iter().for_each(|group| said(Said::Leaves(group))),
        kind => {
            let address_bytes = if kind == 143 { 16 } else { 4 };
            let mut at = 8;
            // Each takes at least 8 bytes, so a frame's length is the limit.
            for _ in 0..word(report, 6).unwrap_or_default() {
                let group = if kind == 143 { v6(at + 4) } else { v4(at + 4) };
                let (Some(group), Some(sources)) = (group, word(report, at + 2)) else { return };
                match report[at] {
                    // Include, change to include: nothing of nobody is nothing.
                    1 | 3 if sources == 0 => said(Said::Leaves(group)),
                    1..=5 => said(Said::Joins(group)),
                    _ => {}
                }
                at += 4 + address_bytes + usize::from(sources) * address_bytes + usize::from(report[at + 1]) * 4;
            }
        }
    }
}

/// What a port asks its guest: which groups, of either protocol.
pub fn questions() -> [Vec<u8>; 2] {
    let igmp = summed(Sum::default(), vec![0x11, 100, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0], 2);
    let source = made_of(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), SERVER_MAC);
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mld = [&[130, 0, 0, 0, 0x27, 0x10, 0, 0][..], &[0; 16], &[2, 125, 0, 0]].concat();
    [igmp_frame(SERVER_MAC, Ipv4Addr::new(224, 0, 0, 1), igmp), mld_frame(SERVER_MAC, source, to, mld)]
}

/// What a port says in its guest's name: that it would say which groups it wants.
pub fn reports(guest: MacAddr) -> [Vec<u8>; 2] {
    let igmp = summed(Sum::default(), vec![0x22, 0, 0, 0, 0, 0, 0, 0], 2);
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
    let mld = vec![143, 0, 0, 0, 0, 0, 0, 0];
    [igmp_frame(guest, Ipv4Addr::new(224, 0, 0, 22), igmp), mld_frame(guest, Ipv6Addr::UNSPECIFIED, to, mld)]
}

fn summed(pseudo: Sum, mut message: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = pseudo.bytes(&message).finish();
    message[at..at + 2].copy_from_slice(&sum);
    message
}

/// From no address: a router of groups in the guest is not outvoted (RFC 4541 §2.1.1).
fn igmp_frame(station: MacAddr, to: Ipv4Addr, message: Vec<u8>) -> Vec<u8> {
    let [_, b, c, d] = to.octets();
    let total = (24 + message.len()) as u16;
    let header =
        [&[0x46, 0xc0][..], &total.to_be_bytes(), &[0, 0, 0x40, 0, 1, IGMP, 0, 0, 0, 0, 0, 0], &to.octets(), &[0x94, 4, 0, 0]].concat();
    let header = summed(Sum::default(), header, 10);
    [&[1, 0, 0x5e, b & 0x7f, c, d][..], &station.0, &IPV4.to_be_bytes(), &header, &message].concat()
}

fn mld_frame(station: MacAddr, source: Ipv6Addr, to: Ipv6Addr, message: Vec<u8>) -> Vec<u8> {
    let (source, to, bytes) = (source.octets(), to.octets(), message.len() as u16);
    let pseudo = Sum::default().bytes(&source).bytes(&to).word(bytes).word(u16::from(ICMPV6));
    let message = summed(pseudo, message, 2);
    let router_alert = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
    let header = [&[0x60, 0, 0, 0][..], &(bytes + 8).to_be_bytes(), &[HOP_BY_HOP, 1], &source, &to, &router_alert].concat();
    [&[0x33, 0x33][..], &to[12..], &station.0, &IPV6.to_be_bytes(), &header, &message].concat()
}

/// What a frame says of groups, and for which it is.
#[cfg(test)]
fn look(frame: &[u8]) -> (Vec<Said>, Option<IpAddr>) {
    let (mut all, Some(ethernet)) = (vec![], Ethernet::parse(frame)) else { return (vec![], None) };
    if let Some((_, report)) = report(frame, &ethernet) {
        each(report, |said| all.push(said));
    }
    (all, group_of(frame, &ethernet))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{UDP, samples::ethernet};

    const OWN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 4789);
    const GROUP: [u8; 4] = [239, 1, 2, 3];

    fn station(number: u8) -> MacAddr {
        MacAddr([0x52, 0x54, 0, 0, 0, number])
    }

    fn endpoint(number: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, number), 4789)
    }

    fn fdb() -> Fdb {
        let mut fdb = Fdb::default();
        (1..=3).for_each(|number| fdb.add(OWN, station(number), endpoint(number)).unwrap());
        fdb
    }

    fn hear(groups: &mut Groups, now: Instant, number: u8, frame: &[u8]) {
        let mut frame = frame.to_vec();
        frame[6..12].copy_from_slice(&station(number).0);
        groups.heard(now, endpoint(number), &frame, &Ethernet::parse(&frame).unwrap());
    }

    /// A report of version 3 about one group.
    fn v3(kind: u8, group: [u8; 4], sources: u16) -> Vec<u8> {
        let mut message = vec![0x22, 0, 0, 0, 0, 0, 0, 1, kind, 0];
        message.extend(sources.to_be_bytes());
        message.extend(group);
        message.extend(vec![9; 4 * usize::from(sources)]);
        igmp_frame(station(1), Ipv4Addr::new(224, 0, 0, 22), message)
    }

    fn takers(groups: &Groups, now: Instant, fdb: &Fdb, group: IpAddr) -> Vec<u8> {
        let mut to = vec![];
        groups.takers(now, fdb, group, &mut to);
        to.iter().map(|endpoint| endpoint.ip().octets()[3]).collect()
    }

    /// As long as it takes, with each station's port and guest saying what they say.
    fn warmed(now: Instant) -> (Groups, Instant) {
        let mut groups = Groups::default();
        for round in 0..4 {
            let at = now + round * QUERY_EVERY;
            hear(&mut groups, at, 1, &reports(station(1))[0]);
            hear(&mut groups, at, 2, &v3(2, GROUP, 0));
        }
        (groups, now + 3 * QUERY_EVERY)
    }

    #[test]
    fn a_group_goes_to_who_asked_and_to_who_was_never_heard() {
        let start = Instant::now();
        let (mut groups, now) = warmed(start);
        let fdb = fdb();
        assert_eq!(takers(&groups, start, &fdb, GROUP.into()), [1, 2, 3], "not heard for long enough");
        assert_eq!(takers(&groups, now, &fdb, GROUP.into()), [2, 3]);
        assert_eq!(takers(&groups, now, &fdb, [239, 9, 9, 9].into()), [3]);
        assert_eq!(takers(&groups, now, &fdb, "ff0e::1".parse().unwrap()), [1, 2, 3], "of the other protocol nothing was said");
        hear(&mut groups, now, 2, &v3(3, GROUP, 0));
        assert_eq!(takers(&groups, now, &fdb, GROUP.into()), [3]);
        hear(&mut groups, now, 2, &v3(3, GROUP, 2));
        assert_eq!(takers(&groups, now, &fdb, GROUP.into()), [2, 3], "of two sources");
        // Whoever falls silent gets everything again: its port may have been replaced by one that says nothing.
        assert_eq!(takers(&groups, now + INTERVAL + Duration::from_secs(1), &fdb, GROUP.into()), [1, 2, 3]);
    }

    #[test]
    fn who_bridges_and_physical_machines_get_all() {
        let (groups, now) = warmed(Instant::now());
        let mut fdb = fdb();
        fdb.add(OWN, crate::fdb::ANY_STATION, endpoint(7)).unwrap();
        fdb.add_port(endpoint(1), crate::fdb::FarPort { station: Some(station(1)), trunk: true, takes_partial: true }).unwrap();
        assert_eq!(takers(&groups, now, &fdb, [239, 9, 9, 9].into()), [7, 1, 3]);
    }

    #[test]
    fn who_asks_for_more_than_can_be_kept_gets_everything() {
        let (mut groups, now) = warmed(Instant::now());
        for number in 0..=GROUPS_MAX as u8 {
            hear(&mut groups, now, 1, &v3(4, [239, 5, 0, number], 0));
        }
        assert_eq!(groups.heard[&(Family::V4, station(1).0)].groups.len(), GROUPS_MAX);
        assert_eq!(takers(&groups, now, &fdb(), [239, 9, 9, 9].into()), [1, 3]);
        for number in 0..=255 {
            let mut frame = v3(4, [239, 6, 0, 1], 0);
            frame[6..12].copy_from_slice(&[2, 9, 0, 0, 0, number]);
            groups.heard(now, endpoint(1), &frame, &Ethernet::parse(&frame).unwrap());
        }
        let counted: usize = groups.heard.values().map(|heard| heard.groups.len()).sum();
        assert_eq!(groups.asked, counted);
        assert!(groups.next_query().is_none());
        groups.begin(now);
        assert!(!groups.is_due(now) && groups.is_due(now + FIRST_AFTER));
        assert!(groups.is_due(now + 3 * INTERVAL) && groups.heard.is_empty() && groups.asked == 0, "nothing is kept for ever");
    }

    #[test]
    fn what_is_for_the_link_and_what_speaks_of_groups_goes_to_all() {
        let udp = |to: [u8; 4]| {
            let header = [&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP, 0, 0, 10, 0, 0, 1][..], &to, &[0, 9, 0, 9, 0, 8, 0, 0]].concat();
            ethernet(MacAddr([1, 0, 0x5e, to[1] & 0x7f, to[2], to[3]]), station(1), IPV4, &header)
        };
        assert_eq!(look(&udp([239, 1, 2, 3])).1, Some(GROUP.into()));
        assert_eq!(look(&udp([224, 0, 0, 251])).1, None);
        assert_eq!(look(&udp([10, 0, 0, 255])).1, None);
        let tagged = [&udp([239, 1, 2, 3])[..12], &[0x81, 0, 0, 5], &udp([239, 1, 2, 3])[12..]].concat();
        assert_eq!(look(&tagged).1, None);
        let v2 = igmp_frame(station(1), Ipv4Addr::from(GROUP), vec![0x16, 0, 0, 0, 239, 1, 2, 3]);
        assert_eq!(look(&v2), (vec![Said::Joins(GROUP.into())], None));
        let v1 = [&[131, 0, 0, 0, 0, 0, 0, 0][..], &"ff0e::5".parse::<Ipv6Addr>().unwrap().octets()].concat();
        let v1 = mld_frame(station(1), Ipv6Addr::UNSPECIFIED, "ff0e::5".parse().unwrap(), v1);
        assert_eq!(look(&v1), (vec![Said::Joins("ff0e::5".parse().unwrap())], None));
    }

    /// Bytes of RFC 3376 §4.1 and RFC 3810 §5.1, summed by hand.
    #[test]
    fn golden_bytes_of_the_questions() {
        let [igmp, mld] = questions();
        let expected = [
            &[1, 0, 0x5e, 0, 0, 1, 2, 0, 0xa9, 0xfe, 0xa9, 0xfd, 8, 0][..],
            &[0x46, 0xc0, 0, 36, 0, 0, 0x40, 0, 1, 2, 0x04, 0x13, 0, 0, 0, 0, 224, 0, 0, 1, 0x94, 4, 0, 0],
            &[0x11, 100, 0xec, 0x1e, 0, 0, 0, 0, 2, 125, 0, 0],
        ];
        assert_eq!(igmp, expected.concat());
        assert_eq!((mld.len(), &mld[..6], mld[20], mld[54]), (14 + 40 + 8 + 28, &[0x33, 0x33, 0, 0, 0, 1][..], 0, ICMPV6));
        assert_eq!((look(&igmp).0.len(), look(&mld).0.len()), (0, 0), "a question asks for nothing");
        for report in reports(station(1)) {
            assert_eq!(look(&report), (vec![], None));
        }
    }

    proptest! {
        #[test]
        fn any_report_is_listened_to_without_harm(kind in prop::sample::select(vec![0x12_u8, 0x16, 0x17, 0x22, 131, 132, 143]), rest in prop::collection::vec(any::<u8>(), 0..600)) {
            let message = [&[kind][..], &rest].concat();
            let frame = if kind > 0x7f {
                mld_frame(station(1), Ipv6Addr::UNSPECIFIED, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16), [&message[..], &[0; 4]].concat())
            } else {
                igmp_frame(station(1), Ipv4Addr::new(224, 0, 0, 22), [&message[..], &[0; 4]].concat())
            };
            let (said, group) = look(&frame);
            prop_assert!(said.len() <= frame.len() / 8 && group.is_none());
            let mut groups = Groups::default();
            hear(&mut groups, Instant::now(), 1, &frame);
            let counted: usize = groups.heard.values().map(|heard| heard.groups.len()).sum();
            prop_assert!(groups.asked == counted && counted <= GROUPS_MAX);
        }
    }
}
