//! The hostile member's own port: hosts that ask it for a part get the head of an answer, and its body when the story says so.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rebec_tls::Holder;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::speech::PART_PATH;
use crate::netlab::lab::Entrance;

/// Between two looks whether somebody has come, or whether it is to end.
const LOOK: Duration = Duration::from_millis(20);
/// A host that has connected says what it wants within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// No head of a request is longer.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// A listener, gone with its owner.
pub struct Trap {
    ends: Arc<AtomicBool>,
    taken: Receiver<Caught>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// A host that has asked for a part and waits for its body.
pub struct Caught {
    stream: StreamOwned<ServerConnection, TcpStream>,
}

impl Trap {
    /// Listens at an address under a key.
    pub(super) fn set(entrance: &Entrance, secret: &[u8; 32], address: SocketAddr) -> Result<Self> {
        let listener = entrance.within(move || TcpListener::bind(address))?.with_context(|| format!("listen at {address}"))?;
        listener.set_nonblocking(true)?;
        let config = Arc::new(Holder::new(secret)?.server_for_holders()?);
        let (ends, (caught, taken)) = (Arc::new(AtomicBool::new(false)), channel());
        let until = ends.clone();
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A host that goes away, or wants something else, is nothing to tell of.
                    Ok((tcp, _)) => drop(catch(tcp, &config, &caught)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(LOOK),
                    Err(error) => return Err(error).context("accept"),
                }
            }
            Ok(())
        });
        Ok(Self { ends, taken, thread: Some(thread) })
    }

    /// Waits for a host that asks for a part.
    pub fn catches(&self, patience: Duration) -> Result<Caught> {
        self.taken.recv_timeout(patience).context("no host asked for a part")
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What went wrong in it was missed by who waited for a host.
            thread.join().ok();
        }
    }
}

fn catch(tcp: TcpStream, config: &Arc<ServerConfig>, caught: &Sender<Caught>) -> Result<()> {
    tcp.set_nonblocking(false)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(ServerConnection::new(config.clone())?, tcp);
    let mut head = vec![];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        let mut piece = [0; 4096];
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            count => head.extend_from_slice(&piece[..count]),
        }
    }
    if head.starts_with(format!("GET {PART_PATH}").as_bytes()) {
        caught.send(Caught { stream }).ok();
    } else {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
    }
    Ok(())
}

impl Caught {
    /// Sends the head of an answer that will have so many bytes.
    pub fn promise(&mut self, bytes: u64) -> Result<()> {
        let head = format!("HTTP/1.1 206 Partial Content\r\nContent-Length: {bytes}\r\n\r\n");
        self.stream.write_all(head.as_bytes())?;
        Ok(self.stream.flush()?)
    }

    /// Sends some of the body.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        Ok(self.stream.flush()?)
    }
}
