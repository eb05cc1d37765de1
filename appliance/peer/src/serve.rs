//! What is done with a connection: TLS is ended, and every stream carries HTTP/1.1 to a router.

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Extensions, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    accept::{self, Place},
    body,
};

/// What clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; others wait.
    pub connections: usize,
    /// Of them from one address; others are ended.
    pub per_address: usize,
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for the head of a request, and between two requests.
    pub head: Duration,
}

/// Of each listener.
pub const LIMITS: Limits = Limits { connections: 256, per_address: 32, handshake: Duration::from_secs(10), head: Duration::from_secs(10) };

/// Longest head of a request, and what is read ahead of a body.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Takes TLS connections until the task is dropped; `serve` has each for as long as it counts.
pub async fn tls<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    limits: Limits,
    serve: impl Fn(TlsStream<TcpStream>, Place) -> F + Clone + Send + 'static,
) {
    accept::each("TLS", (limits.connections, limits.per_address), listener, move |stream, place| {
        let (acceptor, serve) = (acceptor.clone(), serve.clone());
        tokio::spawn(async move {
            if let Err(error) = stream.set_nodelay(true) {
                log::debug!("TLS: {error}");
            }
            match timeout(limits.handshake, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => serve(stream, place).await,
                Ok(Err(error)) => log::debug!("TLS: handshake: {error}"),
                Err(_) => log::debug!("TLS: a handshake took too long"),
            }
        });
    })
    .await;
}

/// Serves one connection or stream to its end. `caller` is an extension of every request.
pub async fn connection<C: Clone + Send + Sync + 'static>(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    caller: C,
    head_time: Duration,
) {
    let mark = move |extensions: &mut Extensions| {
        extensions.insert(caller.clone());
    };
    exchanges(io, router, mark, Rules { head_time, stranger: false }).await;
}

/// What a connection's requests may take.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Time for the head of a request, and between two requests.
    pub head_time: Duration,
    /// Whether there is one request only, whose body is short.
    pub stranger: bool,
}

/// Serves one connection or stream to its end. `mark` makes known to the router who asks.
pub async fn exchanges(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    mark: impl Fn(&mut Extensions) + Clone + Send + 'static,
    rules: Rules,
) {
    let router = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |request| answer(router.clone(), mark.clone(), rules, request));
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(rules.head_time).max_buf_size(HEAD_BYTES_MAX).keep_alive(!rules.stranger);
    if let Err(error) = server.serve_connection(TokioIo::new(io), service).with_upgrades().await {
        log::debug!("a connection: {error}");
    }
}

async fn answer(
    router: TowerToHyperService<Router>,
    mark: impl Fn(&mut Extensions),
    rules: Rules,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let mut request = match rules.stranger {
        true => match body::short(request).await {
            Ok(request) => request,
            Err(refusal) => return Ok(refusal),
        },
        false => request.map(Body::new),
    };
    mark(request.extensions_mut());
    router.call(request).await
}
