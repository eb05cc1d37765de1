//! The server side of the control socket. Callers say what they want in lines of JSON (`rebec_vmm_api::control`); the thread
//! that owns the VM hears it as a [`ControlRequest`]; its answers go back line by line. Nothing is decided here.
//!
//! ```text
//! client --line, descriptors--> connection thread --ControlRequest--> owner of the VM
//! client <--lines-------------- connection thread <-----Reply-------- owner of the VM
//! ```
//!
//! The loop of the process's services accepts, a thread serves each connection, at most [`CONNECTIONS_MAX`] of them. A connection has one request under
//! way at a time, so the owner's queue holds at most that many; nobody waits for a slow client but its own thread, and
//! a newcomer takes the place of the connection that has been idle longest. `docs/formats/control.md` is the contract.

mod connection;
mod connections;
mod reply;
pub mod wire;

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
    sync::{Arc, mpsc::SyncSender},
    time::Duration,
};

use event_manager::{EventOps, Events, MutEventSubscriber};
use rebec_devices::Threads;
use rebec_vmm_api::control::Command;

use self::connections::Connections;
pub use self::reply::Reply;
use crate::{
    heard,
    listen::{ListenError, SocketFile, listen},
};

/// Connections served at once: an agent, a person, a move, and room for donors' clients.
pub const CONNECTIONS_MAX: usize = 8;
/// How long the end of the process waits for clients to take their last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Rest after the system refused a connection (it is out of descriptors or memory), so that the loop does not spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What a caller wants from the thread that owns the VM.
pub struct ControlRequest {
    /// What to do. A [`Command::Migrate`] has been checked to come with one descriptor for each of its connections.
    pub command: Command,
    /// Of a move, connected stream sockets: the control connection, then the streams. Of a road or a capture the one connected socket. Else none.
    pub descriptors: Vec<OwnedFd>,
    /// How to answer. Dropping it answers with an error.
    pub reply: Reply,
}

/// The control socket, created but not yet listened to.
pub struct Bound {
    listener: UnixListener,
    file: SocketFile,
}

/// The running server; its threads live as long as the process.
pub struct Server {
    connections: Arc<Connections>,
    _file: SocketFile,
}

/// Hears newcomers and gives each a thread.
pub struct Newcomers<E> {
    listener: UnixListener,
    connections: Arc<Connections>,
    threads: Arc<dyn Threads>,
    owner: SyncSender<E>,
}

impl Server {
    /// Creates the socket. Belongs before sealing: it is the last thing here that names a path.
    pub fn bind(path: &Path) -> Result<Bound, ListenError> {
        let (listener, file) = listen(path)?;
        Ok(Bound { listener, file })
    }

    /// Waits, not for long, until every answer that was given has reached its client. Belongs at the end of the process.
    pub fn finish(&self) {
        if !self.connections.wait_until_idle(LAST_ANSWERS) {
            log::debug!("control: a client did not take its last answer in time");
        }
    }
}

impl Bound {
    /// What is to be heard from now on. `owner` is the bounded queue of the thread that owns the VM.
    pub fn serve<E>(self, threads: Arc<dyn Threads>, owner: SyncSender<E>) -> io::Result<(Server, Newcomers<E>)> {
        let Self { listener, file } = self;
        // Whoever knocked may have left before the loop looks.
        listener.set_nonblocking(true)?;
        let connections = Arc::new(Connections::default());
        let newcomers = Newcomers { listener, connections: connections.clone(), threads, owner };
        Ok((Server { connections, _file: file }, newcomers))
    }
}

impl<E: From<ControlRequest> + Send + 'static> Newcomers<E> {
    fn accept(&self) -> io::Result<()> {
        let (stream, _) = self.listener.accept()?;
        let Some(seat) = self.connections.admit(stream)? else { return Ok(()) };
        let owner = self.owner.clone();
        self.threads.spawn("control-client", Box::new(move || connection::serve(&seat, &owner))).map(drop)
    }
}

impl<E: From<ControlRequest> + Send + 'static> MutEventSubscriber for Newcomers<E> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        heard::add(ops, "control", &self.listener);
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        match self.accept() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                log::warn!("control: accept a connection: {error}");
                std::thread::sleep(ACCEPT_REST);
            }
            Ok(()) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
