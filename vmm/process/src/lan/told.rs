//! What ports say of themselves on the control socket.

use std::cmp::Reverse;

use rebec_overlay::{Reason, Traffic};
use rebec_vmm_api::{
    MacAddr,
    control::{NetStatus, NetTalk, StationTalk},
};

use super::Lan;

/// How each port is.
pub fn net_status(lans: &[Lan]) -> Vec<NetStatus> {
    let one = |lan: &Lan| {
        let counters = lan.counters();
        NetStatus {
            mac: lan.mac(),
            vni: lan.vni(),
            tx_frames: counters.tx_frames,
            rx_frames: counters.rx_frames,
            dropped: counters.dropped.iter().sum(),
            drops: Reason::ALL
                .into_iter()
                .map(|reason| (reason.name().to_owned(), counters.of(reason)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            key: lan.key(),
            roads: lan.roads() as u64,
            near_frames: counters.near,
            spared: counters.spared,
        }
    };
    lans.iter().map(one).collect()
}

/// The stations with whom there was most, as many as a line has room for; the others are counted together.
pub fn net_talk(lans: &[Lan]) -> Vec<NetTalk> {
    const STATIONS_MAX: usize = 256;
    let one = |lan: &Lan| {
        let mut talk = lan.talk();
        talk.sort_by_key(|(mac, traffic)| (*mac == MacAddr::BROADCAST, Reverse(traffic.tx_bytes.saturating_add(traffic.rx_bytes))));
        let rest = talk.split_off(talk.len().min(STATIONS_MAX / lans.len().max(1)));
        let row = |(mac, traffic): &(MacAddr, Traffic)| {
            let Traffic { tx_bytes, tx_packets, rx_bytes, rx_packets } = *traffic;
            StationTalk { mac: *mac, tx_bytes, tx_packets, rx_bytes, rx_packets }
        };
        let mut stations: Vec<_> = talk.iter().map(row).collect();
        let others = rest.iter().map(row).reduce(|sum, row| StationTalk {
            mac: MacAddr::BROADCAST,
            tx_bytes: sum.tx_bytes.saturating_add(row.tx_bytes),
            tx_packets: sum.tx_packets.saturating_add(row.tx_packets),
            rx_bytes: sum.rx_bytes.saturating_add(row.rx_bytes),
            rx_packets: sum.rx_packets.saturating_add(row.rx_packets),
        });
        stations.extend(others.map(|others| StationTalk { mac: MacAddr::BROADCAST, ..others }));
        NetTalk { mac: lan.mac(), stations }
    };
    lans.iter().map(one).collect()
}
