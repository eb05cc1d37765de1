//! Who a VM talks to lately: what its ports have counted, looked at from time to time, as rates that fade. Pure.
//!
//! A look adds what came since the one before and lets what was fade: what is a minute old counts half. A VMM that starts anew counts from nothing,
//! and so does what it says.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rebec_vmm_api::{
    MacAddr,
    control::{NetTalk, StationTalk},
};

/// Between two looks.
pub const PERIOD: Duration = Duration::from_secs(10);
/// Time in which what was counts half.
pub const HALF_LIFE: Duration = Duration::from_secs(60);
/// Pairs of NIC and station that one VM has at most: more than a VMM says at a time.
const FLOWS_MAX: usize = 1024;
/// A rate in bytes a second that is none.
const NOTHING: f64 = 0.5;

/// What passes between a VM's NICs and other stations.
#[derive(Debug, Default)]
pub struct Traffic {
    looked: Option<Instant>,
    flows: BTreeMap<(MacAddr, MacAddr), Flow>,
}

/// What passes between one NIC and one station.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// All that its VMM has counted.
    pub counted: StationTalk,
    /// Bytes a second to the station, lately.
    pub tx_rate: f64,
    /// Bytes a second from it, lately.
    pub rx_rate: f64,
}

impl Traffic {
    /// Takes what a VMM says now. What came before the first look has no time, and so no rate.
    pub fn look(&mut self, now: Instant, talk: &[NetTalk]) {
        let passed = self.looked.map(|looked| now.saturating_duration_since(looked).as_secs_f64());
        self.looked = Some(now);
        let kept = passed.map_or(1.0, |passed| (-passed / HALF_LIFE.as_secs_f64()).exp2());
        for flow in self.flows.values_mut() {
            (flow.tx_rate, flow.rx_rate) = (flow.tx_rate * kept, flow.rx_rate * kept);
        }
        for (net, counted) in talk.iter().flat_map(|net| net.stations.iter().map(|station| (net.mac, station))) {
            let known = self.flows.get(&(net, counted.mac)).copied();
            if known.is_none() && self.flows.len() >= FLOWS_MAX {
                continue;
            }
            let before = known.map_or((0, 0), |flow| (flow.counted.tx_bytes, flow.counted.rx_bytes));
            let share = |now: u64, before: u64| match passed {
                // Fewer than before: the VMM is another.
                Some(passed) if passed > 0.0 => now.checked_sub(before).unwrap_or(now) as f64 / passed * (1.0 - kept),
                _ => 0.0,
            };
            let (tx, rx) = known.map_or((0.0, 0.0), |flow| (flow.tx_rate, flow.rx_rate));
            let flow = Flow {
                counted: *counted,
                tx_rate: tx + share(counted.tx_bytes, before.0),
                rx_rate: rx + share(counted.rx_bytes, before.1),
            };
            self.flows.insert((net, counted.mac), flow);
        }
        let said = |net: &MacAddr, station: &MacAddr| {
            talk.iter().any(|said| said.mac == *net && said.stations.iter().any(|said| said.mac == *station))
        };
        self.flows.retain(|(net, station), flow| flow.tx_rate + flow.rx_rate > NOTHING || said(net, station));
    }

    /// By NIC and station; under the broadcast address, what went to all and what was not told apart.
    pub fn flows(&self) -> impl Iterator<Item = (MacAddr, &Flow)> {
        self.flows.iter().map(|((net, _), flow)| (*net, flow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(rows: &[(u8, u64, u64)]) -> Vec<NetTalk> {
        let row = |(number, tx_bytes, rx_bytes): &(u8, u64, u64)| StationTalk {
            mac: MacAddr([2, 0, 0, 0, 0, *number]),
            tx_bytes: *tx_bytes,
            tx_packets: 1,
            rx_bytes: *rx_bytes,
            rx_packets: 1,
        };
        vec![NetTalk { mac: MacAddr([2; 6]), stations: rows.iter().map(row).collect() }]
    }

    fn rates(traffic: &Traffic) -> Vec<(u8, u64, u64)> {
        traffic.flows().map(|(_, flow)| (flow.counted.mac.0[5], flow.tx_rate.round() as u64, flow.rx_rate.round() as u64)).collect()
    }

    #[test]
    fn a_steady_rate_is_told_and_fades_by_halves() {
        let (mut traffic, start) = (Traffic::default(), Instant::now());
        let at = |look: u64| start + PERIOD * look as u32;
        // A kilobyte a second one way and a hundred bytes the other, for ten minutes.
        for look in 0..60 {
            traffic.look(at(look), &talk(&[(1, 5_000_000 + 10_000 * look, 1000 * look)]));
        }
        let [(1, tx, rx)] = rates(&traffic)[..] else { panic!("{:?}", rates(&traffic)) };
        assert!((990..=1000).contains(&tx) && (99..=100).contains(&rx), "{tx} {rx}");
        let still = talk(&[(1, 5_000_000 + 10_000 * 59, 1000 * 59)]);
        (60..66).for_each(|look| traffic.look(at(look), &still));
        assert!(rates(&traffic)[0].1.abs_diff(tx / 2) <= 1, "{:?} of {tx}", rates(&traffic));
    }

    #[test]
    fn a_vmm_that_starts_anew_counts_from_nothing_and_who_is_gone_goes() {
        let (mut traffic, start) = (Traffic::default(), Instant::now());
        traffic.look(start, &talk(&[(1, 1_000_000, 0), (2, 7, 7)]));
        assert_eq!(rates(&traffic), [(1, 0, 0), (2, 0, 0)]);
        traffic.look(start + PERIOD, &talk(&[(1, 6000, 0)]));
        let tx = rates(&traffic);
        // Six thousand in ten seconds, of which as much counts as ten seconds do.
        assert_eq!(tx, [(1, (600.0 * (1.0 - (-1.0_f64 / 6.0).exp2())).round() as u64, 0)]);
        traffic.look(start + PERIOD * 200, &[]);
        assert_eq!(rates(&traffic), []);
    }

    #[test]
    fn the_table_has_a_limit() {
        let (mut traffic, start) = (Traffic::default(), Instant::now());
        for round in 0..20_u8 {
            let stations = (0..=255).map(|last| StationTalk {
                mac: MacAddr([2, 0, 0, 0, round, last]),
                tx_bytes: u64::from(round) << 30,
                tx_packets: 1,
                rx_bytes: 0,
                rx_packets: 0,
            });
            traffic.look(start + PERIOD * u32::from(round), &[NetTalk { mac: MacAddr([2; 6]), stations: stations.collect() }]);
        }
        assert!(traffic.flows.len() <= FLOWS_MAX);
    }
}
