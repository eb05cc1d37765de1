//! virtio-net (virtio 1.3 §5.1): one queue pair, served by one thread, between a guest's rings and a [`FramePort`].
//!
//! ```text
//!   guest tx ring ──copy──► buffer ──► port.send … port.flush at the end of a burst
//!   guest rx ring ◄──copy── port.receive, while the guest has buffers
//! ```
//!
//! Frames are whole: up to 64 KiB with their offload header, both ways. A received frame for which the guest has too few buffers waits in
//! one holding place, and behind it the port (whose socket drops what it cannot keep); only what no buffer of this guest can ever take is
//! dropped, and counted. There is no control queue: one MAC address, no filters, all frames that the port yields are the guest's.

mod counters;
pub mod header;
mod pair;
mod port;
mod rx;
mod saved;
mod tx;

#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use rebec_offload::Accepts;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use crate::limit::Rate;
use crate::virtio::{DeviceKind, LiveConfig, QueueEnvironment, QueueSetup, QueueState, StartError, VirtioDevice, worker::Worker};
pub use counters::NetCounters;
pub use header::HEADER_BYTES;
use pair::{EachWay, Limits, Pair, Station};
pub use port::{FramePort, ReceivedFrame};
use saved::SavedNet;

/// The receive ring is the longer one: a 64 KiB frame takes more than 40 of a driver's merged buffers.
const QUEUE_SIZES: [u16; 2] = [1024, 256];
/// Number of the receive ring; the other one transmits.
const RX: u16 = 0;

const FEATURES: &[u32] = &[
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
];

/// A network card.
pub struct NetDevice {
    mac: [u8; 6],
    mtu: u16,
    config: [u8; 12],
    counters: Arc<NetCounters>,
    state: State,
}

enum State {
    Stopped(Station),
    Running(Worker<Pair>),
    /// Its thread panicked. Only a new device helps.
    Lost,
}

impl fmt::Debug for NetDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetDevice").field("mac", &self.mac).field("mtu", &self.mtu).finish_non_exhaustive()
    }
}

impl NetDevice {
    /// A card with an address and an MTU whose frames go through `port`.
    pub fn new(mac: [u8; 6], mtu: u16, port: Box<dyn FramePort>) -> Self {
        let counters = Arc::new(NetCounters::default());
        // struct virtio_net_config (§5.1.4): mac, status, max_virtqueue_pairs, mtu.
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac);
        config[6..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config[8..10].copy_from_slice(&1_u16.to_le_bytes());
        config[10..].copy_from_slice(&mtu.to_le_bytes());
        let state = State::Stopped(Station::new(port, Arc::clone(&counters)));
        Self { mac, mtu, config, counters, state }
    }

    /// The same card that lets no more through a second than each of these rates, each way: its VM's and its LAN's. Before its queues are started.
    pub fn limited(mut self, rates: [&Arc<Rate>; 2]) -> Self {
        if let State::Stopped(station) = &mut self.state {
            *station.limits = EachWay { rx: Limits::new(rates), tx: Limits::new(rates) };
        }
        self
    }

    /// What went through so far; stays valid after the device is gone.
    pub fn counters(&self) -> Arc<NetCounters> {
        Arc::clone(&self.counters)
    }
}

/// What the driver takes in received frames. Segmentation without checksums cannot be (§5.1.3.1), so it is not believed.
fn accepts(features: u64) -> Accepts {
    let has = |bit: u32| features & 1 << bit != 0;
    let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
    let (tcp4, tcp6) = (checksum && has(VIRTIO_NET_F_GUEST_TSO4), checksum && has(VIRTIO_NET_F_GUEST_TSO6));
    Accepts { checksum, tcp4, tcp6, ecn: (tcp4 || tcp6) && has(VIRTIO_NET_F_GUEST_ECN) }
}

impl VirtioDevice for NetDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        FEATURES.iter().fold(0, |all, bit| all | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        self.config.to_vec()
    }

    fn live_config(&self) -> Option<Arc<dyn LiveConfig>> {
        None
    }

    fn start_queues(&mut self, queues: Vec<QueueSetup>, environment: QueueEnvironment) -> Result<(), StartError> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Stopped(mut station) => {
                station.port.set_accepts(accepts(environment.features));
                let pair = match Pair::new(station, queues, &environment) {
                    Ok(pair) => pair,
                    Err((station, error)) => {
                        self.state = State::Stopped(station);
                        return Err(error);
                    }
                };
                match Worker::start(&*environment.threads, "virtio-net", pair, Pair::run) {
                    Ok(worker) => self.state = State::Running(worker),
                    Err((pair, error)) => {
                        self.state = State::Stopped(pair.into_station());
                        return Err(error.into());
                    }
                }
                Ok(())
            }
            other => {
                self.state = other;
                Err(StartError::Host(std::io::Error::other("the device already runs or was lost")))
            }
        }
    }

    fn stop_queues(&mut self) -> Vec<(u16, QueueState)> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Running(worker) => {
                let Some(pair) = worker.stop() else { return Vec::new() };
                let states = pair.states();
                self.state = State::Stopped(pair.into_station());
                states
            }
            other => {
                self.state = other;
                Vec::new()
            }
        }
    }

    fn save(&self) -> Vec<u8> {
        let port = match &self.state {
            State::Stopped(station) => station.port.saved(),
            State::Running(_) | State::Lost => Vec::new(),
        };
        SavedNet { mac: self.mac, mtu: self.mtu, port }.encode()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        let saved = SavedNet::decode(saved, self.mac, self.mtu)?;
        match &mut self.state {
            State::Stopped(station) => station.port.restore(&saved.port),
            State::Running(_) | State::Lost => Err("the device runs".to_owned()),
        }
    }
}
