//! Carries bytes between clients of the API and TCP connections into one guest: owns the UDP socket that is the station's VXLAN
//! endpoint, and the clock. One task for all connections into a VM.
//!
//! ```text
//! client ~~ duplex ~~ Carried ~~ smoltcp socket ~~ Station ~~ frames in VXLAN ~~ UDP ~~ the VM's port
//! ```

use std::{
    future::poll_fn,
    io,
    net::{SocketAddr, SocketAddrV4},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rebec_overlay::{
    Seals,
    seal::PortSecret,
    vxlan::{self, HEADER_BYTES, Vni},
};
use rebec_vmm_api::PortKey;
use smoltcp::{
    iface::SocketHandle,
    socket::tcp::{Socket, State},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::UdpSocket,
    sync::{mpsc, oneshot},
    time::Sleep,
};

use super::station::Station;

/// What is on its way between a client and its connection, each way.
const DUPLEX_BYTES: usize = 64 << 10;
/// How long a guest may stay silent after its client has ended.
const LINGER: Duration = Duration::from_secs(120);
/// Rounds before others have their turn.
const ROUNDS_MAX: usize = 64;
/// Largest datagram of a LAN.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoConnection {
    /// The guest said no.
    Refused,
    /// The guest said nothing.
    Silent,
}

/// A wish for a connection.
pub struct Order {
    /// The guest's port.
    pub port: u16,
    /// How long the guest may take to accept.
    pub patience: Duration,
    /// Where the outcome goes.
    pub answer: oneshot::Sender<Result<DuplexStream, NoConnection>>,
}

/// All connections into one guest.
pub struct Carrier {
    /// The station.
    pub station: Station,
    /// Its VXLAN endpoint.
    pub udp: UdpSocket,
    /// The LAN's label.
    pub vni: Vni,
    /// The VM's VXLAN endpoint.
    pub endpoint: SocketAddrV4,
    /// The guest's address; the port is not looked at.
    pub guest: SocketAddrV4,
    /// Wishes.
    pub orders: mpsc::Receiver<Order>,
    seals: Option<Seals>,
    carried: Vec<Carried>,
    begun: bool,
}

impl Carrier {
    /// One without connections.
    pub fn new(
        station: Station,
        udp: UdpSocket,
        vni: Vni,
        endpoint: SocketAddrV4,
        guest: SocketAddrV4,
        orders: mpsc::Receiver<Order>,
    ) -> Self {
        Self { station, udp, vni, endpoint, guest, orders, seals: None, carried: vec![], begun: false }
    }

    /// Seals what it says to the VM's port, and takes only what that port sealed for it. Its own public key.
    pub fn seal(&mut self, secret: PortSecret, theirs: PortKey) -> anyhow::Result<PortKey> {
        let pair = secret.pair(&theirs, self.vni).with_context(|| format!("forward: {theirs} is no key of a port"))?;
        let mut seals = Seals::default();
        seals.add(self.endpoint, theirs, pair)?;
        self.seals = Some(seals);
        Ok(secret.public())
    }

    /// Carries until there are no connections, after there was one.
    pub async fn run(mut self) {
        // A new socket counts as full until it has said otherwise, and the first frame would be lost.
        if let Err(error) = self.udp.writable().await {
            log::debug!("forward: {error}");
        }
        let mut timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        poll_fn(move |cx| self.poll(cx, timer.as_mut(), &mut buffer)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>, buffer: &mut [u8]) -> Poll<()> {
        for _ in 0..ROUNDS_MAX {
            let now = Instant::now();
            let mut progress = self.take_orders(cx, now);
            progress |= self.take_datagram(cx, buffer);
            for carried in &mut self.carried {
                progress |= carried.pump(cx, now, self.station.socket(carried.handle));
            }
            let mut deadline = self.station.poll(now);
            self.send_frames();
            self.carried.retain(|carried| {
                let ended = carried.has_ended(self.station.socket(carried.handle));
                if ended {
                    self.station.remove(carried.handle);
                }
                !ended
            });
            if self.begun && self.carried.is_empty() && self.orders.is_empty() {
                // A wish that comes just now is dropped, and made again to another carrier.
                self.orders.close();
                return Poll::Ready(());
            }
            deadline = deadline.into_iter().chain(self.carried.iter().filter_map(|carried| carried.deadline)).min();
            if let Some(deadline) = deadline {
                timer.as_mut().reset(deadline.into());
                progress |= timer.as_mut().poll(cx).is_ready();
            }
            if !progress {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn take_orders(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Poll::Ready(Some(order)) = self.orders.poll_recv(cx) else { return false };
        let handle = self.station.connect(SocketAddrV4::new(*self.guest.ip(), order.port));
        let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
        let opening = Some(Opening { far, answer: order.answer });
        self.carried.push(Carried { handle, near, opening, client_ended: false, guest_ended: false, deadline: Some(now + order.patience) });
        self.begun = true;
        true
    }

    /// Only the VM's own port is listened to.
    fn take_datagram(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> bool {
        let mut read = ReadBuf::new(buffer);
        match self.udp.poll_recv_from(cx, &mut read) {
            Poll::Ready(Ok(from)) => {
                let datagram = read.filled_mut();
                let payload = match &mut self.seals {
                    Some(seals) => seals.open(datagram).ok().map(|(range, _)| &datagram[range]),
                    None => (from == SocketAddr::V4(self.endpoint)).then_some(&*datagram),
                };
                if let Some((vni, frame)) = payload.and_then(|payload| vxlan::open(payload).ok())
                    && vni == self.vni
                {
                    self.station.take(frame);
                }
                true
            }
            Poll::Ready(Err(error)) => {
                log::debug!("forward: receive: {error}");
                true
            }
            Poll::Pending => false,
        }
    }

    /// A datagram that finds no room is lost, as on any network.
    fn send_frames(&mut self) {
        while let Some(frame) = self.station.next_frame() {
            let mut datagram = [&self.vni.header()[..HEADER_BYTES], &frame].concat();
            if let Some(seals) = &mut self.seals {
                let Ok(sealed) = seals.sealed(Instant::now(), self.endpoint, &datagram) else { continue };
                datagram = sealed;
            }
            if let Err(error) = self.udp.try_send_to(&datagram, self.endpoint.into()) {
                log::trace!("forward: send: {error}");
            }
        }
    }
}

/// One connection.
struct Carried {
    handle: SocketHandle,
    near: DuplexStream,
    opening: Option<Opening>,
    client_ended: bool,
    guest_ended: bool,
    deadline: Option<Instant>,
}

/// What the client gets once the guest has accepted.
struct Opening {
    far: DuplexStream,
    answer: oneshot::Sender<Result<DuplexStream, NoConnection>>,
}

impl Carried {
    /// Moves what can be moved. Whether anything was.
    fn pump(&mut self, cx: &mut Context<'_>, now: Instant, socket: &mut Socket<'_>) -> bool {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            socket.abort();
            self.deadline = None;
            self.refuse(NoConnection::Silent);
            return true;
        }
        if self.opening.is_some() && !self.open(socket) {
            return false;
        }
        let mut progress = false;
        while let Poll::Ready(moved) = self.feed_guest(cx, now, socket) {
            progress |= moved;
            if !moved {
                break;
            }
        }
        while let Poll::Ready(moved) = self.feed_client(cx, socket) {
            progress |= moved;
            if !moved {
                break;
            }
            if self.client_ended {
                self.deadline = Some(now + LINGER);
            }
        }
        progress
    }

    /// Whether the connection stands.
    fn open(&mut self, socket: &Socket<'_>) -> bool {
        match socket.state() {
            State::SynSent | State::SynReceived | State::Listen => return false,
            State::Closed => self.refuse(NoConnection::Refused),
            _ => {
                self.deadline = None;
                if let Some(opening) = self.opening.take() {
                    // A client that has left meanwhile is noticed by its stream.
                    opening.answer.send(Ok(opening.far)).map(|_| ()).unwrap_or_default();
                }
            }
        }
        true
    }

    fn refuse(&mut self, why: NoConnection) {
        if let Some(opening) = self.opening.take() {
            opening.answer.send(Err(why)).map(|_| ()).unwrap_or_default();
        }
    }

    fn feed_guest(&mut self, cx: &mut Context<'_>, now: Instant, socket: &mut Socket<'_>) -> Poll<bool> {
        if self.client_ended || !socket.can_send() {
            return Poll::Ready(false);
        }
        let near = Pin::new(&mut self.near);
        let read = socket.send(|room| {
            let mut read = ReadBuf::new(room);
            match near.poll_read(cx, &mut read) {
                Poll::Ready(result) => (read.filled().len(), Poll::Ready(result.map(|()| read.filled().len()))),
                Poll::Pending => (0, Poll::Pending),
            }
        });
        let read: Poll<io::Result<usize>> = read.unwrap_or(Poll::Ready(Ok(0)));
        if !matches!(ready!(read), Ok(1..)) {
            self.client_ended = true;
            self.deadline = Some(now + LINGER);
            socket.close();
        }
        Poll::Ready(true)
    }

    fn feed_client(&mut self, cx: &mut Context<'_>, socket: &mut Socket<'_>) -> Poll<bool> {
        if socket.can_recv() {
            let near = Pin::new(&mut self.near);
            let written = socket.recv(|bytes| match near.poll_write(cx, bytes) {
                Poll::Ready(Ok(count)) => (count, Poll::Ready(Ok(count))),
                Poll::Ready(Err(error)) => (0, Poll::Ready(Err(error))),
                Poll::Pending => (0, Poll::Pending),
            });
            let written: Poll<io::Result<usize>> = written.unwrap_or(Poll::Pending);
            if ready!(written).is_err() {
                socket.abort();
            }
            return Poll::Ready(true);
        }
        if self.guest_ended || socket.may_recv() {
            return Poll::Ready(false);
        }
        self.guest_ended = true;
        // The client hears that the guest has ended; it may go on speaking.
        ready!(Pin::new(&mut self.near).poll_shutdown(cx)).unwrap_or_default();
        Poll::Ready(true)
    }

    fn has_ended(&self, socket: &Socket<'_>) -> bool {
        self.opening.is_none() && !socket.can_recv() && matches!(socket.state(), State::Closed | State::TimeWait)
    }
}
