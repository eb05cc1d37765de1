//! Addresses of a LAN. Its home host hands parts of the range to hosts; each host gives addresses out of its parts by itself,
//! so that a site that is cut off can still create ports, and no address is given twice.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use minicbor::{Decode, Encode};

use crate::key::{Id, Key, Nonce};

/// LANs that one VM may be on.
pub const NICS_MAX: usize = 8;

/// A LAN.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LanBody {
    /// Of which its id is made.
    #[n(0)]
    pub nonce: Nonce,
    /// Its name.
    #[n(1)]
    pub name: String,
    /// Its label on the wire.
    #[n(2)]
    pub vni: u32,
    /// First address of its range.
    #[n(3)]
    pub network: Ipv4Addr,
    /// Length of the range's prefix.
    #[n(4)]
    pub prefix: u8,
    /// Largest packet, for life.
    #[n(5)]
    pub mtu: u16,
    /// Parts of the range that hosts may give out by themselves.
    #[n(6)]
    pub leases: Vec<RangeLease>,
    /// When it was created, in seconds since 1970.
    #[n(7)]
    pub created: u64,
    /// Other domains whose hosts may have a part of the range, and so VMs on it.
    #[n(8)]
    pub domains: Vec<Key>,
    /// Whether frames are sealed on their way, for life; a LAN of a build that knew no seals says nothing.
    #[n(9)]
    pub sealed: Option<bool>,
    /// Bits that each of its ports may send a second, and receive; as many as go where nothing is said.
    #[n(10)]
    pub port_bits: Option<u64>,
}

/// Part of a LAN's range in the hands of one host.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RangeLease {
    /// The host.
    #[n(0)]
    pub host: Key,
    /// First address.
    #[n(1)]
    pub first: Ipv4Addr,
    /// How many.
    #[n(2)]
    pub count: u32,
    /// By chance: the same addresses in the same hands once more are another part. One that an older home handed out has none, and stays.
    #[n(3)]
    pub tag: Option<u64>,
}

impl RangeLease {
    /// Whether an address is one of these.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        u32::from(address).checked_sub(self.first.into()).is_some_and(|nth| nth < self.count)
    }

    /// Whether it has an address that another one has.
    pub fn overlaps(&self, other: &Self) -> bool {
        let ends = |lease: &Self| u64::from(u32::from(lease.first)) + u64::from(lease.count);
        u64::from(u32::from(self.first)) < ends(other) && u64::from(u32::from(other.first)) < ends(self)
    }
}

/// One NIC.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NicBody {
    /// The LAN.
    #[n(0)]
    pub lan: Id,
    /// Its label on the wire.
    #[n(1)]
    pub vni: u32,
    /// The NIC's address.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub mac: [u8; 6],
    /// Its address on the LAN.
    #[n(3)]
    pub address: Ipv4Addr,
    /// Length of the LAN's prefix.
    #[n(4)]
    pub prefix: u8,
    /// Whether its port seals, as all of its LAN do.
    #[n(5)]
    pub sealed: Option<bool>,
    /// Its LAN's largest packet, where that is not [`MTU`].
    #[n(6)]
    pub mtu: Option<u16>,
    /// Whether its guest bridges, and so speaks for stations that nobody else has.
    #[n(7)]
    pub trunk: Option<bool>,
}

impl NicBody {
    /// Whether its port seals.
    pub fn is_sealed(&self) -> bool {
        self.sealed == Some(true)
    }

    /// Whether its guest bridges.
    pub fn is_trunk(&self) -> bool {
        self.trunk == Some(true)
    }

    /// Where its port answers questions for names: an address of the LAN that no VM gets.
    pub fn resolver(&self) -> Ipv4Addr {
        Ipv4Addr::from((u32::from(self.address) & !(size(self.prefix.clamp(1, 32)) - 1)).saturating_add(RESOLVER))
    }

    /// What addresses begin with that guests of its LAN make themselves: a unique local prefix (RFC 4193), whose chance is the LAN's id.
    pub fn prefix6(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f, g, ..] = self.lan.0;
        Ipv6Addr::from([0xfd, a, b, c, d, e, f, g, 0, 0, 0, 0, 0, 0, 0, 0])
    }
}

/// Addresses that are handed to a host at a time: a few at first, then as many as it has, up to the most.
const LEASE_ADDRESSES_MIN: u32 = 4;
const LEASE_ADDRESSES_MAX: u32 = 16;
/// Parts of one LAN's range.
pub(crate) const LEASES_MAX: usize = 1024;
/// Addresses at the start of a range that no VM gets: the network's, a gateway's and the port's own.
const RESERVED: u32 = 8;
/// Which of these answers for names.
const RESOLVER: u32 = 2;
/// The largest range.
const PREFIX_MIN: u8 = 12;
/// The smallest range: one lease beside the reserved addresses.
const PREFIX_MAX: u8 = 27;
/// What a LAN's packets may have where nobody says otherwise: an Internet path carries it inside VXLAN and a seal.
pub const MTU: u16 = 1400;
/// What they may have at least, for IPv6, and at most, for wires of 9,000 bytes.
pub const MTU_MIN: u16 = 1280;
/// See [`MTU_MIN`].
pub const MTU_MAX: u16 = 8900;

/// What a path between hosts carries is known up to this: the MTU of Ethernet.
pub const WAY_BYTES_KNOWN: u16 = 1500;
/// What a packet is longer by between hosts: outer IPv4 and UDP, VXLAN and the inner Ethernet header; with a seal and its padding at most.
const WAY_PLAIN_BYTES: u16 = 20 + 8 + 8 + 14;
/// The same of one whose frames are sealed.
pub const WAY_SEALED_BYTES: u16 = 96;

/// The largest packet between hosts of a LAN.
pub const fn way_bytes(mtu: u16, is_sealed: bool) -> u16 {
    mtu.saturating_add(if is_sealed { WAY_SEALED_BYTES } else { WAY_PLAIN_BYTES })
}

/// A text that is not a usable address range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "range `{0}`: expected the first address and length of a private IPv4 range from /{PREFIX_MIN} to /{PREFIX_MAX}, as in 10.5.0.0/24"
)]
pub struct BadRange(String);

/// Reads `10.5.0.0/24`.
pub fn parse_range(text: &str) -> Result<(Ipv4Addr, u8), BadRange> {
    let bad = || BadRange(text.to_owned());
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let (address, prefix): (Ipv4Addr, u8) = (address.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?);
    let usable = (PREFIX_MIN..=PREFIX_MAX).contains(&prefix) && address.is_private();
    if usable && u32::from(address) & (size(prefix) - 1) == 0 { Ok((address, prefix)) } else { Err(bad()) }
}

/// A free `10.N.M.0/24`, tried from `seed` on.
pub fn free_range(taken: &[(Ipv4Addr, u8)], seed: u16) -> (Ipv4Addr, u8) {
    let candidate = |n: u16| Ipv4Addr::new(10, (n >> 8) as u8, n as u8, 0);
    let free = (0..=u16::MAX).map(|step| candidate(seed.wrapping_add(step))).find(|candidate| {
        let first = u32::from(*candidate);
        taken.iter().all(|(other, prefix)| first + 255 < u32::from(*other) || first > u32::from(*other) + (size(*prefix) - 1))
    });
    (free.unwrap_or_else(|| candidate(seed)), 24)
}

/// Whether a LAN that another host wrote can be reckoned with: a range of a permitted size, and parts that lie in it.
pub fn is_sound(lan: &LanBody) -> bool {
    if !(PREFIX_MIN..=PREFIX_MAX).contains(&lan.prefix) || u32::from(lan.network) & (size(lan.prefix) - 1) != 0 {
        return false;
    }
    let (low, high) = (u64::from(u32::from(lan.network)), u64::from(u32::from(lan.network)) + u64::from(size(lan.prefix)));
    lan.leases.iter().all(|lease| {
        let first = u64::from(u32::from(lease.first));
        low <= first && first + u64::from(lease.count) <= high
    })
}

/// Whether a NIC is where its VM's home may put one: at an address that the LAN's home handed it, with the MAC that goes with it.
pub fn admits(lan: &LanBody, home: &Key, nic: &NicBody) -> bool {
    let is_of_address = (0..NICS_MAX as u8).any(|nth| nic.mac == mac_of(nic.address, nth));
    is_of_address && lan.leases.iter().any(|lease| lease.host == *home && lease.has(nic.address))
}

/// The next part of the range for a host: the first place where as many are free as it gets, or the largest there is. None when all is handed out.
pub fn next_lease(lan: &LanBody, host: Key, tag: u64) -> Option<RangeLease> {
    if lan.leases.len() >= LEASES_MAX {
        return None;
    }
    let held = lan.leases.iter().filter(|lease| lease.host == host).fold(0u32, |sum, lease| sum.saturating_add(lease.count));
    let wanted = held.clamp(LEASE_ADDRESSES_MIN, LEASE_ADDRESSES_MAX);
    let gaps = gaps(lan);
    // The first of the largest.
    let largest = || gaps.iter().rev().max_by_key(|(_, count)| *count);
    let (first, count) = gaps.iter().find(|(_, count)| *count >= wanted).or_else(largest)?;
    Some(RangeLease { host, first: (*first).into(), count: wanted.min(*count), tag: Some(tag) })
}

/// What is in nobody's hands: first addresses, and how many from there on.
fn gaps(lan: &LanBody) -> Vec<(u32, u32)> {
    let network = u32::from(lan.network);
    // The last address is the broadcast address.
    let end = network + (size(lan.prefix) - 1);
    let mut taken: Vec<(u32, u32)> =
        lan.leases.iter().map(|lease| (u32::from(lease.first), u32::from(lease.first).saturating_add(lease.count))).collect();
    taken.sort_unstable();
    let (mut gaps, mut from) = (vec![], network + RESERVED);
    for (first, after) in taken.into_iter().chain([(end, end)]) {
        if first > from {
            gaps.push((from, first - from));
        }
        from = from.max(after);
    }
    gaps
}

/// Takes parts of a host's back, those of these tags. Whether there were any: one that was taken back before, or is another host's, is none.
pub fn take_back(lan: &mut LanBody, host: &Key, tags: &[u64]) -> bool {
    let before = lan.leases.len();
    lan.leases.retain(|lease| lease.host != *host || lease.tag.is_none_or(|tag| !tags.contains(&tag)));
    lan.leases.len() < before
}

/// An address that this host may give out and has not; none when its parts are used up.
pub fn free_address(lan: &LanBody, host: Key, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let own = lan.leases.iter().filter(|lease| lease.host == host);
    own.flat_map(|lease| (0..lease.count).map(|n| Ipv4Addr::from(u32::from(lease.first) + n))).find(|address| !used.contains(address))
}

/// The MAC of the port with that address: unique in its LAN because the address is. Of a VM that has the same address on several LANs, the others'
/// ports have other MACs: `nth` counts them from 0.
pub fn mac_of(address: Ipv4Addr, nth: u8) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x52, 0x54 + nth, a, b, c, d]
}

fn size(prefix: u8) -> u32 {
    1 << (32 - u32::from(prefix))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::Name;

    fn lan(prefix: u8) -> LanBody {
        LanBody {
            nonce: Name([0; 16]),
            name: "lab".into(),
            vni: 7,
            network: Ipv4Addr::new(10, 16, 0, 0),
            prefix,
            mtu: MTU,
            leases: vec![],
            created: 0,
            domains: vec![],
            sealed: None,
            port_bits: None,
        }
    }

    #[test]
    fn a_range_that_cannot_be_reckoned_with_is_not_sound() {
        let lease = |first, count| RangeLease { host: Name([1; 32]), first, count, tag: None };
        let good = LanBody { leases: vec![lease(Ipv4Addr::new(10, 16, 0, 8), 16)], ..lan(24) };
        assert!(is_sound(&good));
        for bad in [
            LanBody { prefix: 0, ..good.clone() },
            LanBody { prefix: 33, ..good.clone() },
            LanBody { network: Ipv4Addr::new(10, 16, 0, 1), ..good.clone() },
            LanBody { leases: vec![lease(Ipv4Addr::new(10, 16, 0, 8), u32::MAX)], ..good.clone() },
            LanBody { leases: vec![lease(Ipv4Addr::BROADCAST, 1)], ..good.clone() },
            LanBody { leases: vec![lease(Ipv4Addr::new(10, 15, 255, 255), 1)], ..good },
        ] {
            assert!(!is_sound(&bad), "{bad:?}");
        }
    }

    #[test]
    fn a_vm_has_no_mac_twice_and_only_those_of_its_address() {
        let address = Ipv4Addr::new(10, 16, 0, 9);
        let home = Name([1; 32]);
        let lan = LanBody { leases: vec![RangeLease { host: home, first: Ipv4Addr::new(10, 16, 0, 8), count: 4, tag: None }], ..lan(24) };
        let nic = |mac| NicBody { lan: Name([2; 16]), vni: 7, mac, address, prefix: 24, sealed: None, mtu: None, trunk: None };
        let macs: Vec<_> = (0..NICS_MAX as u8).map(|nth| mac_of(address, nth)).collect();
        assert_eq!((macs[0], macs.iter().collect::<BTreeSet<_>>().len()), ([0x52, 0x54, 10, 16, 0, 9], NICS_MAX));
        assert!(macs.iter().all(|mac| admits(&lan, &home, &nic(*mac)) && mac[0] & 3 == 2));
        for other in [mac_of(address, NICS_MAX as u8), mac_of(Ipv4Addr::new(10, 16, 0, 10), 0), [0; 6]] {
            assert!(!admits(&lan, &home, &nic(other)));
        }
    }

    #[test]
    fn a_nic_knows_where_names_are_told_and_what_its_addresses_begin_with() {
        let address = Ipv4Addr::new(10, 16, 3, 9);
        let lan = Name([0xab, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        let nic = NicBody { lan, vni: 7, mac: mac_of(address, 0), address, prefix: 20, sealed: None, mtu: None, trunk: None };
        assert_eq!((nic.resolver(), nic.prefix6().to_string()), (Ipv4Addr::new(10, 16, 0, 2), "fdab:102:304:506::".to_owned()));
        assert_eq!(NicBody { prefix: 0, address: Ipv4Addr::BROADCAST, ..nic }.resolver(), Ipv4Addr::new(128, 0, 0, 2));
    }

    #[test]
    fn a_range_serves_many_hosts_that_need_little_and_few_that_need_much() {
        let mut lan = lan(24);
        let served =
            (0..).take_while(|host: &u8| next_lease(&lan, Name([*host; 32]), 0).map(|lease| lan.leases.push(lease)).is_some()).count();
        assert_eq!(served, 62);
        let mut lan = LanBody { leases: vec![], ..lan };
        let counts: Vec<u32> = std::iter::from_fn(|| {
            let lease = next_lease(&lan, Name([1; 32]), 0)?;
            lan.leases.push(lease.clone());
            Some(lease.count)
        })
        .take(5)
        .collect();
        assert_eq!(counts, [4, 4, 8, 16, 16]);
    }

    #[test]
    fn ranges_are_read_and_refused() {
        assert_eq!(parse_range("10.5.0.0/24"), Ok((Ipv4Addr::new(10, 5, 0, 0), 24)));
        for text in ["", "10.5.0.0", "10.5.0.0/33", "10.5.0.1/24", "8.8.8.0/24", "10.0.0.0/8", "10.5.0.0/30", "x/24"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }

    proptest! {
        /// Parts that are given back, by a turn of their host's, leave gaps that others get.
        #[test]
        fn no_address_is_given_twice_and_all_lie_in_the_range(
            prefix in 20u8..=27,
            turns in prop::collection::vec((0u8..4, prop::option::weighted(0.2, any::<prop::sample::Index>())), 1..200),
        ) {
            let (mut lan, mut used) = (lan(prefix), BTreeSet::new());
            for (turn, (asker, returns)) in turns.into_iter().enumerate() {
                let host = Name([asker; 32]);
                if let Some(which) = returns.filter(|_| !lan.leases.is_empty()) {
                    let lease = which.get(&lan.leases).clone();
                    used.retain(|address| !lease.has(*address));
                    let tags = [lease.tag.unwrap()];
                    prop_assert!(!take_back(&mut lan, &Name([9; 32]), &tags), "a host takes another's");
                    prop_assert!(take_back(&mut lan, &lease.host, &tags) && !take_back(&mut lan, &lease.host, &tags));
                }
                let mut given = free_address(&lan, host, &used);
                if given.is_none() && let Some(lease) = next_lease(&lan, host, turn as u64) {
                    prop_assert!(lan.leases.iter().all(|other| !other.overlaps(&lease)));
                    lan.leases.push(lease);
                    given = free_address(&lan, host, &used);
                    prop_assert!(given.is_some());
                }
                let Some(address) = given else {
                    // Nothing lies idle where somebody gets nothing.
                    prop_assert_eq!(lan.leases.iter().map(|lease| lease.count).sum::<u32>(), size(prefix) - 1 - RESERVED);
                    continue;
                };
                prop_assert!(used.insert(address));
                let offset = u32::from(address) - u32::from(lan.network);
                prop_assert!((RESERVED..size(prefix) - 1).contains(&offset));
            }
        }

        #[test]
        fn a_free_range_overlaps_no_other(seeds in prop::collection::vec(any::<u16>(), 1..50)) {
            let mut taken: Vec<(Ipv4Addr, u8)> = vec![(Ipv4Addr::new(10, 0, 0, 0), 12)];
            for seed in seeds {
                let (first, prefix) = free_range(&taken, seed);
                let (low, high) = (u32::from(first), u32::from(first) + 255);
                prop_assert!(taken.iter().all(|(other, prefix)| high < u32::from(*other) || low > u32::from(*other) + size(*prefix) - 1));
                taken.push((first, prefix));
            }
        }
    }
}
