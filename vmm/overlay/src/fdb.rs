//! The forwarding database: behind which VXLAN endpoint a station lives.
//!
//! Location is control-plane knowledge. [`Fdb`] is a snapshot that the control thread edits and swaps whole; the frame path only reads it.
//! An endpoint may be marked *physical*: a machine behind which stations live that no control plane knows (a Linux vxlan device with a
//! bridge, a switch). The mark is the all-zero MAC, as `bridge fdb append 00:00:00:00:00:00 dst IP` writes it. Only frames from such a
//! machine teach, into [`Learned`], which belongs to the frame path, is bounded, ages, and is asked only when the snapshot knows nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::{Duration, Instant},
};

use rebec_vmm_api::{MacAddr, dhcp_lease::is_host};

/// Stations in one snapshot: a LAN of some thousands, 64 KiB of table.
pub const ENTRIES_MAX: usize = 4096;
/// Endpoints one frame is copied to. Each copy is a system call on the guest's own queue: 128 are some hundred microseconds.
pub const FLOOD_MAX: usize = 128;
/// Learnt stations of one port.
pub const LEARNED_MAX: usize = 1024;
/// How long a learnt station is believed without being heard: the default of a Linux bridge and of a Linux vxlan device.
pub const AGE_MAX: Duration = Duration::from_secs(300);

/// How long a table that was found full counts as full.
const FULL_TIME: Duration = Duration::from_secs(1);

/// The station of an entry that names an endpoint only: flood to it, and learn from it.
pub const ANY_STATION: MacAddr = MacAddr([0; 6]);

/// Why an entry was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FdbError {
    /// A group has no place; floods go everywhere anyway.
    #[error("MAC {0} is a group address: give the address of a station, or 00:00:00:00:00:00 for an endpoint that is flooded to")]
    Group(MacAddr),
    /// It would make the port send to itself.
    #[error("endpoint {0} is this port's own: give the endpoint of another port")]
    Own(SocketAddrV4),
    /// Port 0 or an address that no datagram is sent to.
    #[error("endpoint {0} cannot be sent to: give a unicast IPv4 address and a port")]
    Endpoint(SocketAddrV4),
    /// No station has this address, or there is none to have it.
    #[error("address {0} of MAC {1}: give the unicast IPv4 address of a station that is in the forwarding database")]
    Address(Ipv4Addr, MacAddr),
    /// The table is at its limit.
    #[error("the forwarding database holds {ENTRIES_MAX} stations, its limit: remove some first")]
    Full,
}

/// What the control plane says of the port behind an endpoint, with its key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FarPort {
    /// Whose port it is; one of nobody in particular speaks for stations that no other port has.
    pub station: Option<MacAddr>,
    /// Whether stations that nobody knows live behind it as well: its guest bridges.
    pub trunk: bool,
    /// Whether it takes frames whose checksum was left to the seal.
    pub takes_partial: bool,
}

/// An immutable snapshot, edited by copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fdb {
    stations: BTreeMap<[u8; 6], SocketAddrV4>,
    /// What was said of ports along with their keys.
    ports: BTreeMap<SocketAddrV4, FarPort>,
    /// Which of them are whose.
    held: BTreeSet<([u8; 6], SocketAddrV4)>,
    /// What stations are called, in small letters.
    labels: BTreeMap<[u8; 6], Arc<str>>,
    /// Who is called so, in order.
    called: BTreeSet<(Arc<str>, [u8; 6])>,
    /// Whose address it is; at most one of each station.
    addresses: BTreeMap<Ipv4Addr, [u8; 6]>,
    physical: Vec<SocketAddrV4>,
    /// Addresses of all endpoints, in order.
    machines: Vec<Ipv4Addr>,
    flood: Vec<SocketAddrV4>,
    flood_cut: usize,
    /// Which stations are behind which endpoint, in order.
    placed: Vec<(SocketAddrV4, [u8; 6])>,
}

impl Fdb {
    /// Says that `station` lives behind `endpoint`, as seen by a port at `local`; replaces what was said before.
    pub fn add(&mut self, local: SocketAddrV4, station: MacAddr, endpoint: SocketAddrV4) -> Result<(), FdbError> {
        if station.is_multicast() {
            return Err(FdbError::Group(station));
        }
        if endpoint == local {
            return Err(FdbError::Own(endpoint));
        }
        let ip = endpoint.ip();
        if endpoint.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
            return Err(FdbError::Endpoint(endpoint));
        }
        let full = self.stations.len() + self.physical.len() >= ENTRIES_MAX;
        if station == ANY_STATION {
            if !self.physical.contains(&endpoint) {
                if full {
                    return Err(FdbError::Full);
                }
                self.physical.push(endpoint);
            }
        } else {
            if full && !self.stations.contains_key(&station.0) {
                return Err(FdbError::Full);
            }
            self.stations.insert(station.0, endpoint);
        }
        self.gather_flood();
        Ok(())
    }

    /// Says which address a known station has. It had no other, and nobody else has it: the last word counts.
    pub fn add_address(&mut self, station: MacAddr, address: Ipv4Addr) -> Result<(), FdbError> {
        if !is_host(address) || !self.stations.contains_key(&station.0) {
            return Err(FdbError::Address(address, station));
        }
        self.addresses.retain(|_, owner| *owner != station.0);
        self.addresses.insert(address, station.0);
        Ok(())
    }

    /// Forgets a station and its address, or, for [`ANY_STATION`], every physical endpoint. Whether anything was there.
    pub fn remove(&mut self, station: MacAddr) -> bool {
        let removed = if station == ANY_STATION {
            !std::mem::take(&mut self.physical).is_empty()
        } else {
            self.addresses.retain(|_, owner| *owner != station.0);
            self.forget_label(station);
            self.stations.remove(&station.0).is_some()
        };
        self.gather_flood();
        removed
    }

    /// Says what a known station is called; two may be called the same.
    pub fn add_label(&mut self, station: MacAddr, label: &str) {
        if !self.stations.contains_key(&station.0) {
            return;
        }
        self.forget_label(station);
        let label: Arc<str> = label.to_ascii_lowercase().into();
        self.called.insert((label.clone(), station.0));
        self.labels.insert(station.0, label);
    }

    fn forget_label(&mut self, station: MacAddr) {
        if let Some(label) = self.labels.remove(&station.0) {
            self.called.remove(&(label, station.0));
        }
    }

    /// What a station is called.
    pub fn label(&self, station: MacAddr) -> Option<&str> {
        self.labels.get(&station.0).map(AsRef::as_ref)
    }

    /// The addresses of all that are called so, in small letters.
    pub fn addresses_of(&self, label: &str) -> impl Iterator<Item = Ipv4Addr> {
        let label: Arc<str> = label.into();
        let all = (label.clone(), [0; 6])..=(label, [0xff; 6]);
        let stations: Vec<_> = self.called.range(all).map(|(_, station)| *station).collect();
        let owned = self.addresses.iter().filter(move |(_, owner)| stations.contains(owner));
        owned.map(|(address, _)| *address)
    }

    /// Says what the port behind an endpoint is.
    pub fn add_port(&mut self, endpoint: SocketAddrV4, port: FarPort) -> Result<(), FdbError> {
        if self.ports.len() >= ENTRIES_MAX && !self.ports.contains_key(&endpoint) {
            return Err(FdbError::Full);
        }
        self.remove_port(endpoint);
        self.held.extend(port.station.map(|station| (station.0, endpoint)));
        self.ports.insert(endpoint, port);
        Ok(())
    }

    /// Forgets what the port behind an endpoint is.
    pub fn remove_port(&mut self, endpoint: SocketAddrV4) {
        let station = self.ports.remove(&endpoint).and_then(|port| port.station);
        station.map(|station| self.held.remove(&(station.0, endpoint)));
    }

    /// What was said of the port behind an endpoint.
    pub fn port(&self, endpoint: SocketAddrV4) -> FarPort {
        self.ports.get(&endpoint).copied().unwrap_or_default()
    }

    /// Whether some port but the one behind `endpoint` is known to be the place of a station.
    pub fn is_elsewhere(&self, station: MacAddr, endpoint: Option<SocketAddrV4>) -> bool {
        const FIRST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        const LAST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::BROADCAST, u16::MAX);
        match self.endpoint(station) {
            Some(at) => Some(at) != endpoint,
            None => self.held.range((station.0, FIRST)..=(station.0, LAST)).any(|(_, at)| Some(*at) != endpoint),
        }
    }

    /// Whether a datagram from here may be of a port of this LAN, where nothing but the address says so.
    pub fn is_known(&self, ip: Ipv4Addr) -> bool {
        self.machines.binary_search(&ip).is_ok()
    }

    /// Whose address this is.
    pub fn station_with(&self, address: Ipv4Addr) -> Option<MacAddr> {
        self.addresses.get(&address).map(|station| MacAddr(*station))
    }

    /// Where a station lives.
    pub fn endpoint(&self, station: MacAddr) -> Option<SocketAddrV4> {
        self.stations.get(&station.0).copied()
    }

    /// Every known endpoint once, up to [`FLOOD_MAX`]: physical ones first, because nothing else reaches what lives behind them.
    pub fn flood(&self) -> &[SocketAddrV4] {
        &self.flood
    }

    /// The stations behind an endpoint.
    pub fn stations_at(&self, endpoint: SocketAddrV4) -> impl Iterator<Item = [u8; 6]> {
        let from = self.placed.partition_point(|(at, _)| *at < endpoint);
        self.placed[from..].iter().take_while(move |(at, _)| *at == endpoint).map(|(_, station)| *station)
    }

    /// Endpoints beyond the limit of [`Self::flood`].
    pub fn flood_cut(&self) -> usize {
        self.flood_cut
    }

    /// The physical endpoint at an address. A Linux vxlan device sends from any port (a hash of the inner flow), so only the address tells.
    pub fn physical_at(&self, ip: Ipv4Addr) -> Option<SocketAddrV4> {
        self.physical.iter().copied().find(|endpoint| *endpoint.ip() == ip)
    }

    fn gather_flood(&mut self) {
        let mut endpoints: Vec<_> = self.stations.values().copied().collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        self.machines = endpoints.iter().chain(&self.physical).map(|endpoint| *endpoint.ip()).collect();
        self.machines.sort_unstable();
        self.machines.dedup();
        endpoints.retain(|endpoint| !self.physical.contains(endpoint));
        let mut flood = self.physical.clone();
        flood.extend(endpoints);
        self.flood_cut = flood.len().saturating_sub(FLOOD_MAX);
        flood.truncate(FLOOD_MAX);
        self.flood = flood;
        self.placed = self.stations.iter().map(|(station, endpoint)| (*endpoint, *station)).collect();
        self.placed.sort_unstable();
    }
}

/// What frames from physical endpoints taught.
#[derive(Debug, Default)]
pub struct Learned {
    stations: BTreeMap<[u8; 6], Sighting>,
    /// When the table was last looked through for room, in vain.
    full_since: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Sighting {
    endpoint: SocketAddrV4,
    seen: Instant,
}

impl Learned {
    /// Notes that `station` spoke from behind `endpoint`. `false` if there was no room.
    pub fn see(&mut self, now: Instant, station: MacAddr, endpoint: SocketAddrV4) -> bool {
        if station.is_multicast() || station == ANY_STATION {
            return true;
        }
        if self.stations.len() >= LEARNED_MAX && !self.stations.contains_key(&station.0) && !self.make_room(now) {
            return false;
        }
        self.stations.insert(station.0, Sighting { endpoint, seen: now });
        true
    }

    /// Forgets what is too old. A full table is not looked through for every frame of who sends from ever new addresses.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.full_since.is_some_and(|since| now.saturating_duration_since(since) < FULL_TIME) {
            return false;
        }
        self.stations.retain(|_, sighting| now.saturating_duration_since(sighting.seen) < AGE_MAX);
        let has_room = self.stations.len() < LEARNED_MAX;
        self.full_since = (!has_room).then_some(now);
        has_room
    }

    /// Where a station was last heard, if not too long ago.
    pub fn endpoint(&self, now: Instant, station: MacAddr) -> Option<SocketAddrV4> {
        let sighting = self.stations.get(&station.0)?;
        (now.saturating_duration_since(sighting.seen) < AGE_MAX).then_some(sighting.endpoint)
    }

    /// Stations held, too old ones included.
    pub fn len(&self) -> usize {
        self.stations.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.stations.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4789);

    fn endpoint(number: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 1, (number >> 8) as u8, number as u8), 4789)
    }

    fn station(number: u16) -> MacAddr {
        let [high, low] = number.to_be_bytes();
        MacAddr([2, 0, 0, 0, high, low])
    }

    #[test]
    fn the_last_word_of_the_control_plane_counts() {
        let mut fdb = Fdb::default();
        fdb.add(LOCAL, station(1), endpoint(1)).unwrap();
        fdb.add(LOCAL, station(2), endpoint(1)).unwrap();
        fdb.add(LOCAL, station(1), endpoint(2)).unwrap();
        assert_eq!(fdb.endpoint(station(1)), Some(endpoint(2)));
        assert_eq!(fdb.flood(), [endpoint(1), endpoint(2)]);
        assert!(fdb.remove(station(2)));
        assert!(!fdb.remove(station(2)));
        assert_eq!(fdb.flood(), [endpoint(2)]);
    }

    #[test]
    fn what_cannot_be_sent_to_is_refused() {
        let mut fdb = Fdb::default();
        assert_eq!(fdb.add(LOCAL, MacAddr::BROADCAST, endpoint(1)), Err(FdbError::Group(MacAddr::BROADCAST)));
        assert_eq!(fdb.add(LOCAL, station(1), LOCAL), Err(FdbError::Own(LOCAL)));
        for bad in ["10.0.0.2:0", "0.0.0.0:4789", "239.1.1.1:4789", "255.255.255.255:4789"] {
            let bad = bad.parse().unwrap();
            assert_eq!(fdb.add(LOCAL, station(1), bad), Err(FdbError::Endpoint(bad)));
        }
        assert_eq!(fdb, Fdb::default());
    }

    #[test]
    fn floods_reach_a_limited_number_of_endpoints_and_the_rest_is_known() {
        let mut fdb = Fdb::default();
        for number in 0..FLOOD_MAX as u16 + 5 {
            fdb.add(LOCAL, station(number), endpoint(number)).unwrap();
        }
        fdb.add(LOCAL, ANY_STATION, endpoint(9999)).unwrap();
        assert_eq!(fdb.flood().len(), FLOOD_MAX);
        assert_eq!(fdb.flood_cut(), 6);
        assert_eq!(fdb.flood()[0], endpoint(9999));
    }

    #[test]
    fn the_table_has_a_limit_and_still_takes_changes() {
        let mut fdb = Fdb::default();
        for number in 0..ENTRIES_MAX as u16 {
            fdb.add(LOCAL, station(number), endpoint(1)).unwrap();
        }
        assert_eq!(fdb.add(LOCAL, station(9000), endpoint(1)), Err(FdbError::Full));
        assert_eq!(fdb.add(LOCAL, ANY_STATION, endpoint(1)), Err(FdbError::Full));
        assert_eq!(fdb.add(LOCAL, station(7), endpoint(2)), Ok(()));
    }

    #[test]
    fn learnt_stations_age_and_make_room_only_when_old() {
        let start = Instant::now();
        let mut learned = Learned::default();
        for number in 0..LEARNED_MAX as u16 {
            assert!(learned.see(start, station(number), endpoint(1)));
        }
        assert!(!learned.see(start + AGE_MAX / 2, station(5000), endpoint(1)));
        assert!(learned.see(start + AGE_MAX / 2, station(0), endpoint(2)));
        assert_eq!(learned.endpoint(start + AGE_MAX / 2, station(0)), Some(endpoint(2)));
        assert_eq!(learned.endpoint(start + AGE_MAX, station(1)), None);
        assert!(learned.see(start + AGE_MAX, station(5000), endpoint(1)));
        assert_eq!(learned.len(), 2);
        assert!(learned.see(start, MacAddr::BROADCAST, endpoint(1)) && learned.see(start, ANY_STATION, endpoint(1)));
        assert_eq!(learned.len(), 2);
    }

    #[test]
    fn a_full_table_is_looked_through_once_a_second() {
        let start = Instant::now();
        let mut learned = Learned::default();
        assert!((0..LEARNED_MAX as u16).all(|number| learned.see(start, station(number), endpoint(1))));
        assert!(!learned.see(start + AGE_MAX - FULL_TIME / 2, station(5000), endpoint(1)));
        // All of them are too old by now, and the table was looked through just before.
        assert!(!learned.see(start + AGE_MAX, station(5001), endpoint(1)));
        assert_eq!(learned.len(), LEARNED_MAX);
        assert!(learned.see(start + AGE_MAX + FULL_TIME, station(5002), endpoint(1)));
        assert_eq!(learned.len(), 1);
    }

    #[test]
    fn a_physical_machine_is_known_by_its_address() {
        let mut fdb = Fdb::default();
        fdb.add(LOCAL, ANY_STATION, endpoint(3)).unwrap();
        fdb.add(LOCAL, station(1), endpoint(4)).unwrap();
        assert_eq!(fdb.physical_at(*endpoint(3).ip()), Some(endpoint(3)));
        assert_eq!(fdb.physical_at(*endpoint(4).ip()), None);
    }
}
