//! A NIC's attachment to its LAN: the driver of `rebec-overlay` over one UDP socket.
//!
//! It owns the socket and the clock and decides nothing: the overlay switches, cuts and joins. The socket is bound before the process is
//! sealed and lives as long as the process; a guest reset attaches a new [`LanPort`] to it.
//!
//! ```text
//! control thread   Lan  --- Fdb snapshot (swapped) --->  LanPort   the NIC's queue thread: send, flush, receive
//!                       <-- counters (atomics) --------
//!                       --- roads, captures --->
//!                  Forwarder   after a move, on a thread of its own: the queues stand still by then, so the socket has one reader
//! ```
//!
//! A port that seals has a key pair of its own, made with it; where it does not, whoever can send to the endpoint can speak on the LAN.

mod counters;
mod forwarder;
mod port;
mod roads;
mod sealing;
mod socket;
mod tap;
pub mod told;

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::OwnedFd,
    sync::{Arc, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwap;
pub use forwarder::Forwarder;
pub use port::LanPort;
use rebec_devices::limit::{PerSecond, Rate};
use rebec_overlay::{Counters, FarPort, Fdb, FdbError, Port, PortConfig, Relay, Talk, Traffic, Zone, vxlan::Vni};
use rebec_vmm_api::{MacAddr, NetConfig, Peer, PortKey};
pub use roads::RoadError;
pub use sealing::PeerKeyError;
pub use tap::Tap;

use self::{counters::SharedCounters, port::NextTap, roads::Roads, sealing::Sealing, socket::Source};

/// Why a NIC could not be attached to its LAN.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// The local endpoint is taken, or is no address of this machine.
    #[error("net {mac}: listen on UDP {local}: give local= an address of this machine and a port that is free")]
    Bind {
        /// The NIC.
        mac: MacAddr,
        /// Its endpoint.
        local: SocketAddrV4,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket that was handed over is another.
    #[error("net {mac}: the socket that was handed over is not bound to UDP {local}, nor to its port alone; hand over one that is")]
    Given {
        /// The NIC.
        mac: MacAddr,
        /// What `local=` says.
        local: SocketAddrV4,
    },
    /// The label does not fit.
    #[error("net {mac}: vni {vni} is not a number below 16777216")]
    Vni {
        /// The NIC.
        mac: MacAddr,
        /// The label.
        vni: u32,
    },
    /// No random bytes for its key.
    #[error("net {mac}: make the port's key")]
    Key {
        /// The NIC.
        mac: MacAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing can be waited for.
    #[error("net {mac}: make what its thread waits for")]
    Wait {
        /// The NIC.
        mac: MacAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Its host's address has changed, and its socket is bound to the old one.
    #[error("net {mac}: its socket is bound to {local} and cannot leave from another address; start the VM anew, or move it")]
    Bound {
        /// The NIC.
        mac: MacAddr,
        /// Where it listens.
        local: SocketAddrV4,
    },
    /// An entry of the forwarding database cannot be.
    #[error("net {mac}: peer {peer}@{endpoint}")]
    Peer {
        /// The NIC.
        mac: MacAddr,
        /// The station.
        peer: MacAddr,
        /// Where it should live.
        endpoint: SocketAddrV4,
        /// Why not.
        source: FdbError,
    },
}

/// One NIC's place on its LAN, for the control thread. Clones are the same place.
#[derive(Debug, Clone)]
pub struct Lan {
    config: PortConfig,
    vni: u32,
    socket: Arc<UdpSocket>,
    roads: Arc<Roads>,
    source: Arc<Source>,
    fdb: Arc<ArcSwap<Fdb>>,
    sealing: Option<Arc<Sealing>>,
    next_tap: NextTap,
    counters: Arc<SharedCounters>,
    talk: Arc<Talk>,
    rate: Arc<Rate>,
}

impl Lan {
    /// Binds the socket, if none is given that is, and takes in the peers of the command line. To be called before the process is sealed.
    pub fn bind(config: &NetConfig, given: Option<UdpSocket>) -> Result<Self, LanError> {
        let mac = config.mac;
        let vni = Vni::new(config.vni).ok_or(LanError::Vni { mac, vni: config.vni })?;
        let bind = |source| LanError::Bind { mac, local: config.local, source };
        let socket = given.map_or_else(|| UdpSocket::bind(config.local), Ok).and_then(socket::prepare).map_err(bind)?;
        let source = Source::of(&socket, config.local).ok_or(LanError::Given { mac, local: config.local })?;
        let local = source.endpoint();
        let mut fdb = Fdb::default();
        for peer in &config.peers {
            add_to(&mut fdb, local, peer).map_err(|source| LanError::Peer { mac, peer: peer.mac, endpoint: peer.endpoint, source })?;
        }
        Ok(Self {
            config: PortConfig {
                vni,
                mac,
                mtu: config.mtu.unwrap_or(NetConfig::MTU),
                lease: config.lease,
                sealed: config.sealed,
                trunk: config.trunk,
                zone: config.domain.as_deref().map(|domain| Zone { domain: domain.into(), label: config.name.as_deref().map(Into::into) }),
                prefix6: config.prefix6,
            },
            vni: config.vni,
            roads: Arc::new(Roads::new(&socket).map_err(|source| LanError::Wait { mac, source })?),
            next_tap: NextTap::default(),
            socket: Arc::new(socket),
            source: Arc::new(source),
            fdb: Arc::new(ArcSwap::from_pointee(fdb)),
            sealing: config.sealed.then(|| Sealing::new(vni).map(Arc::new)).transpose().map_err(|source| LanError::Key { mac, source })?,
            counters: Arc::default(),
            talk: Arc::default(),
            rate: Arc::default(),
        })
    }

    /// Largest IP packet of the NIC, for life.
    pub fn mtu(&self) -> u16 {
        self.config.mtu
    }

    /// The NIC's address.
    pub fn mac(&self) -> MacAddr {
        self.config.mac
    }

    /// The LAN's label.
    pub fn vni(&self) -> u32 {
        self.vni
    }

    /// What the LAN lets through a second, each way.
    pub fn rate(&self) -> &Arc<Rate> {
        &self.rate
    }

    /// From now on it is this; 0 is as much as goes.
    pub fn limit(&self, bits: u64) {
        const BITS: u64 = 8;
        self.rate.set(PerSecond { requests: 0, bytes: bits.div_ceil(BITS) });
    }

    /// Where others reach it.
    pub fn local(&self) -> SocketAddrV4 {
        self.source.endpoint()
    }

    /// The host's address is another: frames leave from there.
    pub fn leave_from(&self, address: Ipv4Addr) -> Result<(), LanError> {
        let moved = self.source.leave_from(address);
        if moved { Ok(()) } else { Err(LanError::Bound { mac: self.config.mac, local: self.local() }) }
    }

    /// The frame port of the NIC's device. One at a time: two would share the socket's datagrams out between them.
    pub fn port(&self) -> io::Result<LanPort> {
        let port = Port::new(self.config.clone(), self.talk.clone());
        Ok(LanPort::new(port, self))
    }

    /// Says where a station lives, from the next frame on. An entry for the NIC itself is accepted and has no effect: `fdb-add` tells every
    /// port of a VM the same.
    pub fn fdb_add(&self, peer: &Peer) -> Result<(), FdbError> {
        if peer.mac == self.config.mac {
            return Ok(());
        }
        self.edit_fdb(|fdb| add_to(fdb, self.local(), peer))
    }

    /// A road to the port of this host that is behind an endpoint: frames to there take it instead of the network, for as long as that port lives.
    pub fn road_add(&self, endpoint: SocketAddrV4, socket: OwnedFd) -> Result<(), RoadError> {
        self.roads.add(endpoint, socket)
    }

    /// How many of those there are.
    pub fn roads(&self) -> usize {
        self.roads.count()
    }

    /// Begins a capture, in place of the one that there was.
    pub fn tap(&self, tap: Tap) -> io::Result<()> {
        *self.next_tap.lock().unwrap_or_else(PoisonError::into_inner) = Some(tap);
        self.roads.knock()
    }

    /// The public key of this port, if it seals.
    pub fn key(&self) -> Option<PortKey> {
        self.sealing.as_ref().map(|sealing| sealing.key())
    }

    /// Says whose key is behind an endpoint, and what port that is: who is there hears this port and is heard.
    pub fn peer_key_add(&self, endpoint: SocketAddrV4, key: PortKey, port: FarPort) -> Result<(), PeerKeyError> {
        let sealing = self.sealing.as_ref().ok_or(PeerKeyError::Unsealed)?;
        // Before the key, so that nobody is heard as more than it is.
        self.edit_fdb(|fdb| fdb.add_port(endpoint, port))?;
        sealing.add(endpoint, key)
    }

    /// Forgets whose key is behind an endpoint, if it is known.
    pub fn peer_key_remove(&self, endpoint: SocketAddrV4) -> Result<(), PeerKeyError> {
        self.sealing.as_ref().ok_or(PeerKeyError::Unsealed)?.remove(endpoint);
        self.edit_fdb(|fdb| {
            fdb.remove_port(endpoint);
            Ok(())
        })?;
        Ok(())
    }

    /// Forgets a station, if it is known.
    pub fn fdb_remove(&self, station: MacAddr) -> Result<(), FdbError> {
        self.edit_fdb(|fdb| {
            fdb.remove(station);
            Ok(())
        })
    }

    /// The control thread is the only writer, so nothing is lost between load and store.
    fn edit_fdb(&self, edit: impl FnOnce(&mut Fdb) -> Result<(), FdbError>) -> Result<(), FdbError> {
        let mut fdb = Fdb::clone(&self.fdb.load());
        edit(&mut fdb)?;
        self.fdb.store(Arc::new(fdb));
        Ok(())
    }

    /// The NIC has moved to `to`: what sends on the datagrams that still arrive here, until `until`. The queues must be stopped.
    pub fn forwarder(&self, to: SocketAddrV4, until: Instant) -> Forwarder {
        Forwarder::new(
            Relay::new(&self.config, to, until),
            self.socket.clone(),
            self.roads.clone(),
            self.source.clone(),
            self.fdb.clone(),
            self.sealing.clone(),
        )
    }

    /// What passed since the machine was built, and what did not.
    pub fn counters(&self) -> Counters {
        self.counters.load()
    }

    /// Who talked to whom since then.
    pub fn talk(&self) -> Vec<(MacAddr, Traffic)> {
        self.talk.read()
    }
}

fn add_to(fdb: &mut Fdb, local: SocketAddrV4, peer: &Peer) -> Result<(), FdbError> {
    fdb.add(local, peer.mac, peer.endpoint)?;
    if let Some(name) = &peer.name {
        fdb.add_label(peer.mac, name);
    }
    peer.ip.map_or(Ok(()), |ip| fdb.add_address(peer.mac, ip))
}
