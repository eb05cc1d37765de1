//! Bulk between agents, parts and streams of moves: TCP with TLS 1.3 under the same keys as the mesh, at the TCP port of the same
//! number. The kernel cuts and joins segments and the network card sums them, so a byte costs a fraction of what it costs over
//! QUIC. A host that TCP does not reach, behind NAT above all, gets the same request over the mesh.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures_util::future::select_ok;
use iroh::SecretKey;
use rebec_book::{Key, key::Name};
use rebec_tls::Holder;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream, server};

use crate::{
    Door, Peer,
    accept::Place,
    listen, lock,
    peer::CONNECT_TIME,
    serve::{self, LIMITS},
};

/// How long a host may take to take a connection: it has just been heard over the mesh.
const TCP_TIME: Duration = Duration::from_secs(2);
/// How long a host that TCP did not reach is not tried again.
const REST: Duration = Duration::from_secs(30);

/// A connection ends when the other side has been silent for this long. The kernel counts a window that stays closed as silence, so it is
/// longer than the mesh's: a host whose disk stalls for some seconds is not cut off.
const SILENCE: Duration = Duration::from_secs(20);
/// Between two questions to a side that has nothing to say; so many without an answer are silence.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(2);
const KEEPALIVE_COUNT: u32 = 9;

/// The own end of bulk connections.
pub struct Bulk {
    holder: Holder,
    unreached: Mutex<HashMap<Key, Instant>>,
}

impl Bulk {
    /// Of the holder of a key.
    pub fn new(secret: &SecretKey) -> Result<Self> {
        Ok(Self { holder: Holder::new(&secret.to_bytes())?, unreached: Mutex::default() })
    }

    /// What ends TLS for those who connect.
    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        Ok(TlsAcceptor::from(Arc::new(self.holder.server_for_holders()?)))
    }

    /// A connection to a host; none where TCP does not reach it.
    pub(crate) async fn connect(&self, peer: &Peer) -> Option<TlsStream<TcpStream>> {
        if lock(&self.unreached).get(&peer.key).is_some_and(|since| since.elapsed() < REST) {
            return None;
        }
        match self.attempt(peer).await {
            Ok(stream) => {
                lock(&self.unreached).remove(&peer.key);
                Some(stream)
            }
            Err(error) => {
                log::info!("host {}: bulk goes over the mesh, because TCP does not reach it: {error:#}", peer.name);
                lock(&self.unreached).insert(peer.key, Instant::now());
                None
            }
        }
    }

    /// The first of its addresses where somebody proves to be it: at one of them may be another host, or this one.
    async fn attempt(&self, peer: &Peer) -> Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(Arc::new(self.holder.client_of(peer.key.0)?));
        let attempts: Vec<_> = peer.dialled().iter().map(|address| Box::pin(attempt_at(*address, connector.clone()))).collect();
        anyhow::ensure!(!attempts.is_empty(), "no address of it is known");
        Ok(select_ok(attempts).await?.0)
    }

    /// Tries every host again.
    #[cfg(test)]
    pub(crate) fn forget(&self) {
        lock(&self.unreached).clear();
    }

    /// Whether TCP did not reach a host lately.
    #[cfg(test)]
    pub(crate) fn is_unreached(&self, key: &Key) -> bool {
        lock(&self.unreached).contains_key(key)
    }
}

async fn attempt_at(address: SocketAddr, connector: TlsConnector) -> Result<TlsStream<TcpStream>> {
    let tcp = timeout(TCP_TIME, TcpStream::connect(address)).await.with_context(|| format!("{address} does not answer"))??;
    tcp.set_nodelay(true)?;
    watch_over(&tcp)?;
    let handshake = timeout(CONNECT_TIME, connector.connect(rebec_tls::server_name(), tcp)).await;
    handshake.with_context(|| format!("the handshake with {address} takes too long"))?.with_context(|| format!("{address}"))
}

/// Listens on all addresses.
pub fn listen(port: u16) -> Result<TcpListener> {
    listen::everywhere(port).with_context(|| format!("mesh: listen on TCP port {port}; is another agent running?"))
}

/// Takes connections of other hosts until the task is dropped: who connects has proved to hold a key.
pub async fn serve(listener: TcpListener, acceptor: TlsAcceptor, door: Door) {
    serve::tls(listener, acceptor, LIMITS, move |stream, place| answer(door.clone(), stream, place)).await;
}

async fn answer(door: Door, stream: server::TlsStream<TcpStream>, mut place: Place) {
    let (tcp, tls) = stream.get_ref();
    let (Some(key), Ok(())) = (rebec_tls::key_of_peer(tls).map(Name), watch_over(tcp)) else { return };
    if !door.is_member(&key) {
        match door.stranger() {
            Some(_place) => door.answer_stranger(key, stream).await,
            None => log::debug!("bulk: too many hosts that are no members are connected"),
        }
        return;
    }
    match door.by_tcp(key) {
        Some(_share) => {
            place.known();
            door.answer(key, stream).await;
        }
        None => log::info!("bulk: host {} has too many connections", key.short()),
    }
}

/// A host that lost its power or its cable is noticed, whether or not bytes are on their way; a router whose next link takes less than a segment cuts it,
/// instead of dropping it with a word that may not arrive.
fn watch_over(tcp: &TcpStream) -> io::Result<()> {
    sockopt::set_ip_mtu_discover(tcp, Ipv4PathMtuDiscovery::DONT)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, KEEPALIVE_PERIOD)?;
    sockopt::set_tcp_keepintvl(tcp, KEEPALIVE_PERIOD)?;
    sockopt::set_tcp_keepcnt(tcp, KEEPALIVE_COUNT)?;
    Ok(sockopt::set_tcp_user_timeout(tcp, SILENCE.as_millis() as u32)?)
}
