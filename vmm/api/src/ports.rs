//! What is said of ports on the control socket: how they are, who talked to whom, and what is to be captured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{mac::MacAddr, port_key::PortKey};

/// What passes a port, for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// The NIC whose port it is.
    pub net: MacAddr,
    /// What the interface is called in the file.
    pub name: String,
    /// Which frames are wanted, in words; all where nothing is said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub filter: String,
    /// How long it lasts at most.
    pub seconds: u32,
    /// How long the file becomes at most.
    pub bytes_max: u64,
}

impl Capture {
    /// The longest: a day.
    pub const SECONDS_MAX: u32 = 86_400;
}

/// One NIC's counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatus {
    /// The NIC.
    pub mac: MacAddr,
    /// Its LAN.
    pub vni: u32,
    /// Frames the guest sent and received, large frames counted once.
    pub tx_frames: u64,
    /// Frames handed to the guest.
    pub rx_frames: u64,
    /// Frames dropped for any reason.
    pub dropped: u64,
    /// Those by reason, where there were any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drops: BTreeMap<String, u64>,
    /// The public key of its port, if that seals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PortKey>,
    /// Ports of this host that are reached by no network.
    #[serde(default, skip_serializing_if = "is_none_of")]
    pub roads: u64,
    /// Frames to and from those.
    #[serde(default, skip_serializing_if = "is_none_of")]
    pub near_frames: u64,
    /// Copies of multicasts that were not sent, as nobody there had asked for the group.
    #[serde(default, skip_serializing_if = "is_none_of")]
    pub spared: u64,
}

fn is_none_of(count: &u64) -> bool {
    *count == 0
}

/// What passed between one NIC and the stations of its LAN since the VMM started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetTalk {
    /// The NIC.
    pub mac: MacAddr,
    /// By station; under the broadcast address, what went to all and what there was no room to tell apart.
    pub stations: Vec<StationTalk>,
}

/// What passed between a NIC and one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StationTalk {
    /// The station.
    pub mac: MacAddr,
    /// Bytes of frames to it.
    pub tx_bytes: u64,
    /// Frames to it, as they were on the wire.
    pub tx_packets: u64,
    /// Bytes of frames from it.
    pub rx_bytes: u64,
    /// Frames from it, as they were on the wire.
    pub rx_packets: u64,
}
