//! Connections between hosts, by key. Every stream of QUIC carries one HTTP/1.1 exchange, served by a router that the agent brings, so
//! there is one protocol; who asks is known from the connection and cannot be claimed.
//!
//! A connection is used in both directions, whoever dialled: a host behind NAT is reached through the one it opened. What brings
//! many bytes goes over TCP instead where it can (`bulk`).

pub mod bulk;
pub mod listen;
pub mod serve;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    body::Body,
    http::{Method, Request, Response, header},
};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use iroh::{
    Endpoint, EndpointAddr, PublicKey, RelayMode, SecretKey,
    endpoint::{BindOpts, Connection, IdleTimeout, QuicTransportConfig, RecvStream, SendStream, presets},
};
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{Key, key::Name};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};

use self::bulk::Bulk;

/// What agents speak.
const ALPN: &[u8] = b"rebec/1";
/// How long a host may take to be reached.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long a host may take to answer a short question.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// A connection without a sign of life ends; live ones are kept so by pings.
const IDLE_TIME: Duration = Duration::from_secs(8);
const PING_PERIOD: Duration = Duration::from_secs(2);
/// Unread data on one stream; more would let noq close the connection (docs/notes/mesh.md).
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Unread data on one connection.
const WINDOW_BYTES: u32 = 8 << 20;
/// Streams that a peer may have open.
const STREAMS_MAX: u32 = 256;
/// Longest answer to a short question.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// One stream of a connection.
pub type Stream = tokio::io::Join<RecvStream, SendStream>;

/// Takes a stream that another agent opened.
pub type Serve = Arc<dyn Fn(Key, Stream) + Send + Sync>;

/// Connections to other agents.
pub struct Mesh {
    /// Connections for many bytes.
    pub bulk: Bulk,
    endpoint: Endpoint,
    connections: Mutex<HashMap<Key, Connection>>,
    serve: OnceLock<Serve>,
}

impl Mesh {
    /// Binds the endpoint.
    pub async fn open(secret: SecretKey, port: u16) -> Result<Self> {
        let transport = QuicTransportConfig::builder()
            .stream_receive_window(STREAM_WINDOW_BYTES.into())
            .receive_window(WINDOW_BYTES.into())
            .max_concurrent_bidi_streams(STREAMS_MAX.into())
            .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIME)?))
            .keep_alive_interval(PING_PERIOD)
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
        Ok(Self { bulk, endpoint, connections: Mutex::default(), serve: OnceLock::new() })
    }

    /// The port that others reach this host at.
    pub fn port(&self) -> u16 {
        self.endpoint.bound_sockets().iter().find(|address| address.is_ipv4()).map_or(0, SocketAddr::port)
    }

    /// Takes connections until the endpoint ends; each stream, also of connections that this side opened, is handed to `serve`.
    pub async fn accept(&self, serve: Serve) {
        self.serve.get_or_init(|| serve);
        while let Some(incoming) = self.endpoint.accept().await {
            let Ok(accepting) = incoming.accept() else { continue };
            match tokio::time::timeout(CONNECT_TIME, accepting).await {
                Ok(Ok(connection)) => self.keep(Name(*connection.remote_id().as_bytes()), connection),
                Ok(Err(error)) => log::debug!("mesh: an incoming connection failed: {error}"),
                Err(_) => log::debug!("mesh: an incoming connection took too long"),
            }
        }
    }

    /// Makes a short request; an answer that is not a success is its [`ApiError`].
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(&self, peer: &Peer, path: &str, question: &Q) -> Result<A, ApiError> {
        let body = serde_json::to_vec(question).map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()))?;
        let request = Request::builder().method(Method::POST).uri(path).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body)).map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()))?;
        let answer = async {
            let response = self.request(peer, request).await?;
            read_answer(peer, response).await
        };
        tokio::time::timeout(ANSWER_TIME, answer).await.unwrap_or_else(|_| Err(peer.silent("no answer in time")))
    }

    /// Makes any request. An upgrade of the response upgrades the stream.
    pub async fn request(&self, peer: &Peer, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let stream = self.stream(peer).await.map_err(|error| peer.silent(&format!("{error:#}")))?;
        request_over(stream, peer, request).await
    }

    /// The same for what brings many bytes: over TCP where that reaches the host.
    pub async fn request_bulk(&self, peer: &Peer, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        match self.bulk.connect(peer).await {
            Some(stream) => request_over(stream, peer, request).await,
            None => self.request(peer, request).await,
        }
    }

    async fn stream(&self, peer: &Peer) -> Result<Stream> {
        let connection = match self.live(&peer.key) {
            Some(connection) => connection,
            None => self.dial(peer).await?,
        };
        let (send, receive) = connection.open_bi().await?;
        Ok(tokio::io::join(receive, send))
    }

    fn live(&self, key: &Key) -> Option<Connection> {
        let connections = lock(&self.connections);
        connections.get(key).filter(|connection| connection.close_reason().is_none()).cloned()
    }

    fn keep(&self, key: Key, connection: Connection) {
        let mut connections = lock(&self.connections);
        connections.retain(|_, connection| connection.close_reason().is_none());
        connections.insert(key, connection.clone());
        if let Some(serve) = self.serve.get() {
            tokio::spawn(streams(key, connection, serve.clone()));
        }
    }

    async fn dial(&self, peer: &Peer) -> Result<Connection> {
        let id = PublicKey::from_bytes(&peer.key.0).context("its key is not one")?;
        let address = peer.addresses.iter().fold(EndpointAddr::new(id), |address, one| address.with_ip_addr(*one));
        if peer.addresses.is_empty() {
            anyhow::bail!("no address of it is known");
        }
        let connecting = self.endpoint.connect(address, ALPN);
        let connection = tokio::time::timeout(CONNECT_TIME, connecting).await.context("it does not answer")??;
        self.keep(peer.key, connection.clone());
        Ok(connection)
    }

    /// Ends all connections.
    pub async fn close(&self) {
        self.endpoint.close().await;
    }
}

async fn request_over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: &Peer,
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("rebec"));
    let failed = |error: hyper::Error| peer.silent(&error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(connection.with_upgrades());
    let response = sender.send_request(request).await.map_err(failed)?;
    Ok(response.map(Body::new))
}

/// Hands each stream that the other side opens to `serve`.
async fn streams(key: Key, connection: Connection, serve: Serve) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        serve(key, tokio::io::join(receive, send));
    }
}

/// A host to talk to.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its key.
    pub key: Key,
    /// Its name, for messages.
    pub name: String,
    /// Where it may be.
    pub addresses: Vec<SocketAddr>,
}

impl Peer {
    fn silent(&self, why: &str) -> ApiError {
        ApiError::new(ErrorCode::Unreachable, format!("host {} is not reached: {why}", self.name))
    }
}

/// The body of a success, or the error that the other side told.
pub async fn read_answer<A: DeserializeOwned>(peer: &Peer, response: Response<Body>) -> Result<A, ApiError> {
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let bytes = body.map_err(|error| peer.silent(&error.to_string()))?.to_bytes();
    if status.is_success() {
        let bytes = if bytes.is_empty() { &b"null"[..] } else { &bytes };
        return serde_json::from_slice(bytes).map_err(|error| peer.silent(&format!("an answer that makes no sense: {error}")));
    }
    Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| peer.silent(&format!("HTTP status {status}"))))
}

/// A lock whose holder cannot leave it in a half-changed state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
