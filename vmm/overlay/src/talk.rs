//! Who talks to whom: bytes and packets between a port's guest and each other station, counted always.
//!
//! The port's one thread counts, anybody reads: no lock, and nothing is allocated once the table stands. A station has the first free place at or
//! behind the one that its MAC leads to; where sixteen are taken it is counted among the others, as is what goes to all.

use std::sync::atomic::{AtomicU64, Ordering};

use rebec_vmm_api::MacAddr;

/// Stations that are told apart: those that one guest talks to, not all of a LAN.
pub const PLACES: usize = 512;
/// Places that are looked at for one station.
const PROBES: usize = 16;

/// What passed between the guest and one station.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of frames to it.
    pub tx_bytes: u64,
    /// Frames to it, as many as they were cut into.
    pub tx_packets: u64,
    /// Bytes of frames from it.
    pub rx_bytes: u64,
    /// Frames from it, before any were joined.
    pub rx_packets: u64,
}

#[derive(Debug, Default)]
struct Place {
    /// The MAC and a bit above it; 0 while the place is free. Written once.
    station: AtomicU64,
    counts: [AtomicU64; 4],
}

/// The counts of one port.
#[derive(Debug)]
pub struct Talk {
    places: Box<[Place]>,
    others: Place,
}

impl Default for Talk {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| Place::default()).collect(), others: Place::default() }
    }
}

impl Talk {
    /// Counts what went to a station.
    pub fn sent(&self, to: MacAddr, bytes: u64, packets: u64) {
        self.count(to, [bytes, packets, 0, 0]);
    }

    /// Counts what came from one.
    pub fn received(&self, from: MacAddr, bytes: u64, packets: u64) {
        self.count(from, [0, 0, bytes, packets]);
    }

    fn count(&self, station: MacAddr, more: [u64; 4]) {
        let place = if station.is_multicast() { &self.others } else { self.place(number(station)) };
        for (count, more) in place.counts.iter().zip(more).filter(|(_, more)| *more > 0) {
            // One thread writes, so that nothing comes between.
            count.store(count.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        }
    }

    fn place(&self, number: u64) -> &Place {
        // MACs of a LAN differ in their last bits; a multiplication spreads whatever differs.
        let first = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize;
        for probe in 0..PROBES {
            let place = &self.places[(first + probe) % PLACES];
            match place.station.load(Ordering::Relaxed) {
                0 => {
                    place.station.store(number, Ordering::Relaxed);
                    return place;
                }
                known if known == number => return place,
                _ => {}
            }
        }
        &self.others
    }

    /// What was counted of each station so far, and, under the broadcast address, of all others.
    pub fn read(&self) -> Vec<(MacAddr, Traffic)> {
        let known = self.places.iter().filter_map(|place| match place.station.load(Ordering::Relaxed) {
            0 => None,
            number => {
                let [_, _, mac @ ..] = number.to_be_bytes();
                Some((MacAddr(mac), place.read()))
            }
        });
        let others = Some((MacAddr::BROADCAST, self.others.read())).filter(|(_, traffic)| *traffic != Traffic::default());
        known.chain(others).collect()
    }
}

impl Place {
    fn read(&self) -> Traffic {
        let [tx_bytes, tx_packets, rx_bytes, rx_packets] = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        Traffic { tx_bytes, tx_packets, rx_bytes, rx_packets }
    }
}

fn number(station: MacAddr) -> u64 {
    let [a, b, c, d, e, f] = station.0;
    u64::from_be_bytes([1, 0, a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn station(number: u16) -> MacAddr {
        let [high, low] = number.to_be_bytes();
        MacAddr([0x52, 0x54, 10, 7, high, low])
    }

    #[test]
    fn each_station_has_a_row_and_what_goes_to_all_another() {
        let talk = Talk::default();
        for number in 0..256 {
            talk.sent(station(number), 100, 2);
            talk.received(station(number), u64::from(number), 1);
        }
        talk.sent(MacAddr::BROADCAST, 60, 1);
        talk.sent(MacAddr([0x33, 0x33, 0, 0, 0, 1]), 70, 1);
        let rows: BTreeMap<_, _> = talk.read().into_iter().map(|(mac, traffic)| (mac.0, traffic)).collect();
        assert_eq!(rows.len(), 257);
        for number in 0..256 {
            let expected = Traffic { tx_bytes: 100, tx_packets: 2, rx_bytes: number.into(), rx_packets: 1 };
            assert_eq!(rows[&station(number).0], expected);
        }
        assert_eq!(rows[&MacAddr::BROADCAST.0], Traffic { tx_bytes: 130, tx_packets: 2, ..Traffic::default() });
    }

    #[test]
    fn a_full_table_loses_no_byte() {
        let talk = Talk::default();
        (0..5000).for_each(|number| talk.sent(station(number), 1, 1));
        let rows = talk.read();
        assert_eq!(rows.iter().map(|(_, traffic)| traffic.tx_bytes).sum::<u64>(), 5000);
        assert!(rows.len() > PLACES * 9 / 10 && rows.len() <= PLACES + 1, "{}", rows.len());
    }
}
