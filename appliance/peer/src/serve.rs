//! What is done with a connection: TLS is ended, and every stream carries HTTP/1.1 to a router that the agent brings.

use std::{fmt::Debug, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rebec_book::{Key, key::Name};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::bulk;

/// What clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; others wait.
    pub connections: usize,
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for the head of a request, and between two requests.
    pub head: Duration,
}

/// Of each listener.
pub const LIMITS: Limits = Limits { connections: 256, handshake: Duration::from_secs(10), head: Duration::from_secs(10) };

/// Rest after a failed accept: no descriptors are left, and some will be again.
const REST: Duration = Duration::from_millis(100);

/// Takes TLS connections until the task is dropped; `serve` has each for as long as it counts.
pub async fn tls<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    limits: Limits,
    serve: impl Fn(TlsStream<TcpStream>) -> F + Clone + Send + 'static,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    while let Ok(place) = places.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("TLS: accept: {error}");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let (acceptor, serve) = (acceptor.clone(), serve.clone());
        tokio::spawn(async move {
            if let Err(error) = stream.set_nodelay(true) {
                log::debug!("TLS: {error}");
            }
            match timeout(limits.handshake, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => serve(stream).await,
                Ok(Err(error)) => log::debug!("TLS: handshake: {error}"),
                Err(_) => log::debug!("TLS: a handshake took too long"),
            }
            drop(place);
        });
    }
}

/// Takes requests of other agents until the task is dropped: who asks has proved to hold a key, of which `caller` makes what the router
/// knows callers by.
pub async fn agents<C: Clone + Debug + Send + Sync + 'static>(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    router: Router,
    caller: fn(Key) -> C,
) {
    tls(listener, acceptor, LIMITS, move |stream| {
        let router = router.clone();
        async move {
            let (tcp, tls) = stream.get_ref();
            if let (Some(key), Ok(())) = (rebec_tls::key_of_peer(tls), bulk::watch_over(tcp)) {
                connection(stream, router, caller(Name(key)), LIMITS.head).await;
            }
        }
    })
    .await;
}

/// Serves one connection or stream to its end. `caller` is an extension of every request.
pub async fn connection<C: Clone + Debug + Send + Sync + 'static>(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    caller: C,
    head_time: Duration,
) {
    let service = TowerToHyperService::new(router.layer(Extension(caller.clone())));
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(head_time).max_buf_size(64 << 10);
    if let Err(error) = server.serve_connection(TokioIo::new(io), service).with_upgrades().await {
        log::debug!("a connection of {caller:?}: {error}");
    }
}
