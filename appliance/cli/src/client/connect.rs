//! A byte stream to the agent: its Unix socket, or TCP and TLS 1.3.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{ClientError, Remote, Target};

/// Longest wait for a connection and its handshake: twenty slow round trips, less than a person waits for nothing.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Silence after which the other side is asked whether it is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
/// Between two such questions.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(5);
/// Questions without an answer that end the connection.
const KEEPALIVE_COUNT: u32 = 4;

/// A byte stream to an agent.
#[derive(Debug)]
pub enum Stream {
    /// On the same host.
    Socket(UnixStream),
    /// Elsewhere.
    Remote(Box<TlsStream<TcpStream>>),
}

/// Connects to the agent.
pub async fn connect(target: &Target) -> Result<Stream, ClientError> {
    match target {
        Target::Socket(path) => match UnixStream::connect(path).await {
            Ok(stream) => Ok(Stream::Socket(stream)),
            Err(error) => Err(ClientError::NoAgent { place: target.to_string(), hint: socket_hint(&error), why: error.to_string() }),
        },
        Target::Remote(remote) => match timeout(CONNECT_TIME, tls(remote)).await {
            Ok(Ok(stream)) => Ok(Stream::Remote(Box::new(stream))),
            Ok(Err(error)) => Err(explain(target, &error)),
            Err(_) => Err(explain(target, &io::Error::from(io::ErrorKind::TimedOut))),
        },
    }
}

async fn tls(remote: &Remote) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(&remote.authority).await?;
    // Keystrokes of a console wait for nobody.
    tcp.set_nodelay(true)?;
    watch_over(&tcp)?;
    let config = rebec_tls::client_of(remote.key.0).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(rebec_tls::server_name(), tcp).await
}

/// A console or a job may be silent for hours; a host that lost its power is noticed all the same.
fn watch_over(tcp: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(tcp, KEEPALIVE_PERIOD)?;
    Ok(sockopt::set_tcp_keepcnt(tcp, KEEPALIVE_COUNT)?)
}

fn socket_hint(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run the command as root (sudo rebec ...)".to_owned(),
        _ => "is the agent running? `systemctl status rebec` shows it; --socket names another socket".to_owned(),
    }
}

fn explain(target: &Target, error: &io::Error) -> ClientError {
    let place = target.to_string();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(wrong)) => ClientError::OtherKey { place, why: rebec_tls::why(wrong) },
        Some(other) => {
            let hint = "is it the port of a Rebec agent? the host's status screen shows the address".to_owned();
            ClientError::NoAgent { place, why: other.to_string(), hint }
        }
        None => {
            let hint = "is the agent running, and the address right? the host's status screen shows it".to_owned();
            ClientError::NoAgent { place, why: error.to_string(), hint }
        }
    }
}

macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Socket($inner) => {
                let $inner = Pin::new($inner);
                $call
            }
            Stream::Remote($inner) => {
                let $inner = Pin::new(&mut **$inner);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => inner.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, inner => inner.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => inner.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => inner.poll_shutdown(cx))
    }
}
