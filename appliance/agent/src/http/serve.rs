//! Where requests come in: a Unix socket, and streams of TLS and of the mesh.

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use rebec_book::authority::Role;

use super::Caller;

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

/// Takes requests on a Unix socket until the task is dropped.
pub async fn unix(path: &Path, router: Router) -> Result<()> {
    let listener = listen(path).await?;
    let places = Arc::new(Semaphore::new(LIMITS.connections));
    loop {
        let place = places.clone().acquire_owned().await?;
        let (stream, _) = listener.accept().await.context("accept on the API socket")?;
        let router = router.clone();
        tokio::spawn(async move {
            connection(stream, router, Caller::User(Role::Admin), LIMITS.head).await;
            drop(place);
        });
    }
}

/// A socket that a killed agent left is replaced; one that answers is not.
async fn listen(path: &Path) -> Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        bail!("{}: another agent listens here; stop that one, or give this one its own --socket", path.display());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let unnamed = path.with_extension("new");
    for stale in [path, &unnamed] {
        match std::fs::remove_file(stale) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("remove {}", stale.display())),
        }
    }
    let listener = UnixListener::bind(&unnamed).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
    // It has its name only now that it listens.
    std::fs::rename(&unnamed, path)?;
    Ok(listener)
}

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

/// Serves one connection or stream to its end.
pub async fn connection(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, router: Router, caller: Caller, head_time: Duration) {
    let service = TowerToHyperService::new(router.layer(Extension(caller)));
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(head_time).max_buf_size(64 << 10);
    if let Err(error) = server.serve_connection(TokioIo::new(io), service).with_upgrades().await {
        log::debug!("a connection of {caller:?}: {error}");
    }
}
