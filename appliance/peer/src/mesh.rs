//! QUIC connections between hosts, by key. A connection is used in both directions, whoever dialled: a host behind NAT is reached through
//! the one it opened.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use iroh::{
    Endpoint, EndpointAddr, PublicKey, RelayMode, SecretKey,
    endpoint::{BindOpts, Connection, IdleTimeout, MtuDiscoveryConfig, QuicTransportConfig, presets},
};
use rebec_book::{Key, key::Name};
use rebec_vmm_api::Versions;

use crate::{
    Door, Peer,
    bulk::Bulk,
    handshakes::Handshakes,
    kept::{IN_ALL, Kept, PER_KEY},
    line::Line,
    lock,
    peer::CONNECT_TIME,
    road::{self, Road, RoadLook},
    versions::PROTOCOL,
    visitor::{Goodbye, STRANGER_STREAMS_MAX, STRANGER_WINDOW_BYTES, Visitor},
};

/// HTTP/1.1 on each stream. Which version of the questions is spoken is said with each of them: `versions`.
const ALPN: &[u8] = b"rebec/1";
/// A connection without a sign of life ends; live ones are kept so by pings.
const IDLE_TIME: Duration = Duration::from_secs(8);
const PING_PERIOD: Duration = Duration::from_secs(2);
/// Unread data on one stream; more would let noq close the connection (docs/notes/mesh.md).
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// A dial that several may wait for; a reason is told to each.
type Dial = Shared<BoxFuture<'static, Result<Connection, String>>>;

/// Connections to other hosts.
pub struct Mesh {
    /// Connections for many bytes.
    pub bulk: Bulk,
    /// What this side speaks.
    pub(crate) speaks: Versions,
    pub(crate) endpoint: Endpoint,
    connections: Arc<Connections>,
    dials: Arc<Mutex<HashMap<Key, Dial>>>,
}

/// Connections that are open.
struct Connections {
    kept: Mutex<Kept<Road>>,
    door: OnceLock<Door>,
}

impl Mesh {
    /// Binds the endpoint.
    pub async fn open(secret: SecretKey, port: u16) -> Result<Self> {
        let mut search = MtuDiscoveryConfig::default();
        search.upper_bound(road::DATAGRAM_BYTES_MAX).minimum_change(road::STEP_BYTES);
        let transport = QuicTransportConfig::builder()
            .stream_receive_window(STREAM_WINDOW_BYTES.into())
            .receive_window(STRANGER_WINDOW_BYTES.into())
            .max_concurrent_bidi_streams(STRANGER_STREAMS_MAX.into())
            .max_concurrent_uni_streams(0u32.into())
            // Nobody reads any.
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIME)?))
            .keep_alive_interval(PING_PERIOD)
            .mtu_discovery_config(Some(search))
            .build();
        let bulk = Bulk::new(&secret)?;
        let endpoint = Endpoint::builder(presets::Minimal)
            .secret_key(secret)
            .relay_mode(RelayMode::Disabled)
            .alpns(vec![ALPN.to_vec()])
            .transport_config(transport)
            .clear_ip_transports()
            .bind_addr(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?
            // A kernel may have no IPv6.
            .bind_addr_with_opts(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), BindOpts::default().set_is_required(false))?
            .bind()
            .await
            .with_context(|| format!("mesh: listen on UDP port {port}; is another agent running?"))?;
        let connections = Connections { kept: Mutex::new(Kept::new(IN_ALL)), door: OnceLock::new() };
        Ok(Self { bulk, speaks: PROTOCOL, endpoint, connections: Arc::new(connections), dials: Arc::default() })
    }

    /// In other versions than this program's.
    pub fn speaking(self, speaks: Versions) -> Self {
        Self { speaks, ..self }
    }

    /// What this side speaks with other hosts.
    pub fn speaks(&self) -> Versions {
        self.speaks
    }

    /// The port that others reach this host at.
    pub fn port(&self) -> u16 {
        self.endpoint.bound_sockets().iter().find(|address| address.is_ipv4()).map_or(0, SocketAddr::port)
    }

    /// Takes connections until the endpoint ends; each stream, also of connections that this side opened, comes to the door.
    pub async fn accept(&self, door: Door) {
        self.connections.door.get_or_init(|| door);
        let handshakes = Handshakes::new();
        while let Some(incoming) = self.endpoint.accept().await {
            let Some((incoming, underway)) = handshakes.admit(incoming) else { continue };
            let connections = self.connections.clone();
            tokio::spawn(async move {
                match tokio::time::timeout(CONNECT_TIME, incoming).await {
                    Ok(Ok(connection)) => {
                        drop(underway);
                        if let Err(goodbye) = connections.keep(connection, false) {
                            log::debug!("mesh: an incoming connection is ended: {goodbye}");
                        }
                    }
                    Ok(Err(error)) => log::debug!("mesh: an incoming connection failed: {error}"),
                    Err(_) => log::debug!("mesh: an incoming connection took too long"),
                }
            });
        }
    }

    /// The connection for a question: one that is kept, or a new one.
    pub(crate) async fn line(&self, peer: &Peer) -> Result<Line> {
        match self.connections.newest(&peer.key) {
            Some(road) => Ok(Line::new(road.connection, true)),
            None => Ok(Line::new(self.dial(peer).await.map_err(|why| anyhow!(why))?, false)),
        }
    }

    /// Addresses of this host are others: connections whose own end is at none of these end here, and whoever is asked next is dialled anew. iroh would look
    /// for another path for up to 15 s, and send what dials the same host over the lost one too, as long as one connection has it.
    pub async fn addresses_changed(&self, is_own: impl Fn(IpAddr) -> bool) {
        let lost: Vec<_> = lock(&self.connections.kept).all().filter(|road| road.is_lost(&is_own)).cloned().collect();
        for road in lost {
            Goodbye::Moved.say(&road.connection);
        }
        self.endpoint.network_change().await;
    }

    /// The largest IPv4 packet that comes through to a host, 1,500 bytes at most; none where that has not been found out.
    pub fn path_bytes(&self, key: &Key) -> Option<u16> {
        self.connections.newest(key)?.path_bytes()
    }

    /// How the path to a host is; none where no connection is open.
    pub fn road(&self, key: &Key) -> Option<RoadLook> {
        self.connections.newest(key)?.look()
    }

    /// Waits until nothing comes over a connection any more though its host answers. A newer one is kept then.
    pub(crate) async fn deaf(&self, peer: &Peer, line: &Line) {
        line.deaf(async || {
            // It may have dialled meanwhile.
            let newer = self.connections.newest(&peer.key).is_some_and(|newest| !line.is_over(&newest.connection));
            newer || self.dial(peer).await.is_ok()
        })
        .await;
    }

    /// Dials a host; those who want the same one meanwhile wait for the same dial.
    fn dial(&self, peer: &Peer) -> Dial {
        let mut dials = lock(&self.dials);
        if let Some(dial) = dials.get(&peer.key) {
            return dial.clone();
        }
        let (peer, endpoint) = (peer.clone(), self.endpoint.clone());
        let (connections, all) = (self.connections.clone(), self.dials.clone());
        let key = peer.key;
        // A task of its own: it goes on and leaves the list, whoever still waits for it.
        let dialling = tokio::spawn(async move {
            let result = async {
                let connection = dial(&endpoint, &peer).await.map_err(|error| format!("{error:#}"))?;
                connections.keep(connection.clone(), true).map_err(|goodbye| goodbye.to_string())?;
                Ok(connection)
            };
            let result = result.await;
            lock(&all).remove(&peer.key);
            result
        });
        let dial = async move { dialling.await.unwrap_or_else(|error| Err(error.to_string())) }.boxed().shared();
        dials.insert(key, dial.clone());
        dial
    }

    /// The connections to a host.
    #[cfg(test)]
    pub(crate) fn connections_to(&self, key: &Key) -> Vec<Connection> {
        lock(&self.connections.kept).open(key).into_iter().map(|road| road.connection).collect()
    }

    /// Ends all connections.
    pub async fn close(&self) {
        self.endpoint.close().await;
    }
}

async fn dial(endpoint: &Endpoint, peer: &Peer) -> Result<Connection> {
    let id = PublicKey::from_bytes(&peer.key.0).context("its key is not one")?;
    let ports: Vec<u16> = endpoint.bound_sockets().iter().map(SocketAddr::port).collect();
    let is_other = |address: &&SocketAddr| !(ports.contains(&address.port()) && is_own(address.ip()));
    let others: Vec<_> = peer.dialled().iter().filter(is_other).copied().collect();
    anyhow::ensure!(!others.is_empty(), "no address of it is known that is not this host's own");
    let address = others.into_iter().fold(EndpointAddr::new(id), EndpointAddr::with_ip_addr);
    Ok(tokio::time::timeout(CONNECT_TIME, endpoint.connect(address, ALPN)).await.context("it does not answer")??)
}

/// Whether an address is this host's: a bridge for containers has the same one on every host, and who dials it there meets itself, whose wrong key ends
/// the handshake for all addresses. Only what is the host's own can be bound.
fn is_own(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

impl Connections {
    fn newest(&self, key: &Key) -> Option<Road> {
        lock(&self.kept).newest(key).cloned()
    }

    /// Keeps a new connection and answers what comes over it.
    fn keep(&self, connection: Connection, dialled: bool) -> Result<(), Goodbye> {
        let key = Name(*connection.remote_id().as_bytes());
        self.try_keep(key, &connection, dialled).inspect_err(|goodbye| goodbye.say(&connection))
    }

    fn try_keep(&self, key: Key, connection: &Connection, dialled: bool) -> Result<(), Goodbye> {
        let visitor = self.door.get().map(|door| Visitor::enter(door.clone(), key, connection.clone(), dialled)).transpose()?;
        let connections_max = visitor.as_ref().map_or(PER_KEY, Visitor::connections_max);
        let replaced = lock(&self.kept).add(key, Road::new(connection.clone()), connections_max).map_err(|_| Goodbye::Full)?;
        for road in replaced {
            Goodbye::Replaced.say(&road.connection);
        }
        if let Some(visitor) = visitor {
            tokio::spawn(visitor.run());
        }
        Ok(())
    }
}
