//! The UDP socket: many datagrams a system call, both ways (UDP_SEGMENT and UDP_GRO, udp(7)).
//!
//! Sending never blocks for long. A full send buffer is waited for a moment, as a network card's full ring would be; then datagrams are
//! lost and counted, and the guest's TCP slows down.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc::{in_addr, in_pktinfo},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt},
};
use rebec_overlay::Wire;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover},
};

/// What is asked for as receive buffer: about 60 bursts of 64 KiB, which a queue thread that waits for its turn on a busy host needs.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// And as send buffer: 40 ms of a 100 Mbit/s link. More would only be queue.
const SEND_BUFFER_BYTES: usize = 512 << 10;
/// How long a full send buffer is waited for; where that was in vain, nothing is waited for as long again. A flood to many endpoints, each of
/// which would wait, must not keep a NIC's thread from receiving.
const SEND_WAIT: Duration = Duration::from_millis(10);
/// How long an endpoint's path counts as one that takes no runs: paths change, and a message that says so may be anybody's.
const UNCUT_TIME: Duration = Duration::from_secs(60);
/// Endpoints of which that is remembered.
const UNCUT_MAX: usize = 128;
/// Largest receive: one datagram, the sum of what the kernel joined, or a record of a port of this host.
pub const RECEIVE_BYTES_MAX: usize = 66 << 10;

/// Asks for what makes the socket of a port fast. Older kernels that refuse GRO still work, one datagram a call.
pub fn prepare(socket: UdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    // Beyond the system's limit only with CAP_NET_ADMIN; without it, up to the limit.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES).is_err() {
        setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER_BYTES)?;
    }
    // Without DF. A router whose next link takes less than a datagram cuts it; with DF it would drop it, and what it says of that is often lost too.
    // Where the kernel knows by its routes that the path takes less, it cuts here.
    set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DONT)?;
    if let Err(error) = setsockopt(&socket, sockopt::UdpGroSegment, &true) {
        log::info!("UDP: this kernel does not join datagrams (UDP_GRO: {error}); the LAN works, slower");
    }
    Ok(socket)
}

/// Where a port's datagrams leave from. A socket that is bound to no address serves whichever its host has, and says with each run which that is
/// (IP_PKTINFO, ip(7)): the kernel's own choice may differ from peer to peer, and others are told one endpoint.
#[derive(Debug)]
pub struct Source {
    port: u16,
    /// In the kernel's order.
    address: AtomicU32,
    is_bound: bool,
}

impl Source {
    /// Of a socket, whose datagrams are to leave from that endpoint; none where it is bound to another.
    pub fn of(socket: &UdpSocket, local: SocketAddrV4) -> Option<Self> {
        let SocketAddr::V4(bound) = socket.local_addr().ok()? else { return None };
        let is_bound = !bound.ip().is_unspecified();
        let fits = bound.port() == local.port() && (!is_bound || bound == local) || local.port() == 0;
        let address = if is_bound { *bound.ip() } else { *local.ip() };
        fits.then(|| Self { port: bound.port(), address: AtomicU32::new(u32::from(address).to_be()), is_bound })
    }

    /// The endpoint.
    pub fn endpoint(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(u32::from_be(self.address.load(Ordering::Relaxed))), self.port)
    }

    /// From the next run on, datagrams leave from another address. Whether they can.
    pub fn leave_from(&self, address: Ipv4Addr) -> bool {
        if self.is_bound {
            return *self.endpoint().ip() == address;
        }
        self.address.store(u32::from(address).to_be(), Ordering::Relaxed);
        true
    }

    /// What the kernel is told; nothing where it knows.
    fn told(&self) -> Option<in_pktinfo> {
        let s_addr = self.address.load(Ordering::Relaxed);
        (!self.is_bound && s_addr != 0).then_some(in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: in_addr { s_addr },
            ipi_addr: in_addr { s_addr: 0 },
        })
    }
}

/// What one receive call brought.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Who sent it.
    pub source: SocketAddrV4,
    /// All of it.
    pub bytes: usize,
    /// Each datagram of it, the last perhaps shorter.
    pub stride: usize,
}

/// The receiving side.
#[derive(Debug)]
pub struct Receiver {
    socket: Arc<UdpSocket>,
    control: Vec<u8>,
}

impl Receiver {
    /// Of a socket that [`prepare`] made ready.
    pub fn new(socket: Arc<UdpSocket>) -> Self {
        Self { socket, control: nix::cmsg_space!(i32) }
    }

    /// Takes what is there; `None` if nothing is.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        loop {
            let mut slices = [IoSliceMut::new(buffer)];
            let message = match recvmsg::<SockaddrIn>(self.socket.as_raw_fd(), &mut slices, Some(&mut self.control), MsgFlags::MSG_DONTWAIT)
            {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(None),
                // An ICMP error of an earlier datagram: not about what is received.
                Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => continue,
                Err(error) => return Err(error.into()),
            };
            let Some(source) = message.address else { continue };
            let mut stride = message.bytes;
            for control in message.cmsgs()? {
                if let ControlMessageOwned::UdpGroSegments(bytes) = control {
                    stride = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0).unwrap_or(stride);
                }
            }
            return Ok(Some(Received { source: source.into(), bytes: message.bytes, stride }));
        }
    }
}

/// The sending side.
#[derive(Debug)]
pub struct Sender {
    socket: Arc<UdpSocket>,
    source: Arc<Source>,
    /// Where the last run left from: another address has other paths.
    left_from: SocketAddrV4,
    uncut: Uncut,
    /// Until then a full buffer is not waited for.
    stuck_until: Option<Instant>,
    lost: u64,
}

/// Where the kernel has refused to cut runs of some stride or more: the path's MTU is smaller, and it fragments single datagrams instead.
#[derive(Debug, Default)]
struct Uncut(BTreeMap<SocketAddrV4, (usize, Instant)>);

impl Uncut {
    /// Whether a run of this stride to this endpoint is worth a try.
    fn takes(&self, to: SocketAddrV4, stride: usize, now: impl FnOnce() -> Instant) -> bool {
        // Nearly always there is none, and the clock is not asked.
        self.0.get(&to).is_none_or(|(refused, since)| stride < *refused || now().saturating_duration_since(*since) >= UNCUT_TIME)
    }

    fn refused(&mut self, to: SocketAddrV4, stride: usize, now: Instant) {
        if self.0.len() >= UNCUT_MAX && !self.0.contains_key(&to) {
            self.0.retain(|_, (_, since)| now.saturating_duration_since(*since) < UNCUT_TIME);
            // More paths than that at a time: the others are tried each time, which costs a system call.
            if self.0.len() >= UNCUT_MAX {
                return;
            }
        }
        self.0.insert(to, (stride, now));
    }
}

impl Sender {
    /// Of a socket that [`prepare`] made ready.
    pub fn new(socket: Arc<UdpSocket>, source: Arc<Source>) -> Self {
        let left_from = source.endpoint();
        Self { socket, source, left_from, uncut: Uncut::default(), stuck_until: None, lost: 0 }
    }

    /// Datagrams that the kernel did not take.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn send_run(&mut self, to: &SockaddrIn, datagrams: &[u8], stride: usize) -> Result<(), Errno> {
        let segment_bytes = stride as u16;
        let source = self.source.told();
        let from = source.as_ref().map(ControlMessage::Ipv4PacketInfo);
        let cut = (datagrams.len() > stride).then_some(ControlMessage::UdpGsoSegments(&segment_bytes));
        let (both, one);
        let control: &[ControlMessage<'_>] = match (from, cut) {
            (Some(from), Some(cut)) => {
                both = [from, cut];
                &both
            }
            (None, None) => &[],
            (from, cut) => {
                one = from.or(cut);
                one.as_slice()
            }
        };
        let socket = self.socket.clone();
        let send = || loop {
            match sendmsg(socket.as_raw_fd(), &[IoSlice::new(datagrams)], control, MsgFlags::MSG_DONTWAIT, Some(to)) {
                Err(Errno::EINTR) => {}
                result => return result.map(|_bytes| ()),
            }
        };
        match send() {
            Err(Errno::EAGAIN) if self.wait_writable() => send(),
            result => result,
        }
    }

    /// Whether there is room now.
    fn wait_writable(&mut self) -> bool {
        let now = Instant::now();
        if self.stuck_until.is_some_and(|until| now < until) {
            return false;
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: SEND_WAIT.subsec_nanos().into() };
        let mut descriptors = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::OUT)];
        let has_room = match poll(&mut descriptors, Some(&timeout)) {
            Ok(ready) => ready > 0,
            Err(error) => {
                log::debug!("wait for room in the send buffer: {error}");
                false
            }
        };
        self.stuck_until = (!has_room).then(|| Instant::now() + SEND_WAIT);
        has_room
    }
}

impl Wire for Sender {
    fn send(&mut self, to: SocketAddrV4, datagrams: &mut [u8], stride: usize) {
        let address = SockaddrIn::from(to);
        let from = self.source.endpoint();
        if from != self.left_from {
            (self.left_from, self.uncut) = (from, Uncut::default());
        }
        if datagrams.len() <= stride || self.uncut.takes(to, stride, Instant::now) {
            match self.send_run(&address, datagrams, stride) {
                Ok(()) => return,
                // EINVAL, EMSGSIZE: larger than the path's MTU. EIO: a device that cannot sum, on kernels before 6.2.
                Err(Errno::EINVAL | Errno::EMSGSIZE | Errno::EIO) if datagrams.len() > stride => {
                    log::info!("UDP to {to}: the path does not take runs of {stride} bytes; sending them one by one, slower");
                    self.uncut.refused(to, stride, Instant::now());
                }
                Err(error) => {
                    log::debug!("UDP to {to}: {error}");
                    self.lost += datagrams.len().div_ceil(stride) as u64;
                    return;
                }
            }
        }
        for datagram in datagrams.chunks(stride) {
            if let Err(error) = self.send_run(&address, datagram, datagram.len()) {
                log::debug!("UDP to {to}: {error}");
                self.lost += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn endpoint(number: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), number)
    }

    #[test]
    fn one_path_that_takes_no_runs_slows_down_no_other_and_not_for_ever() {
        let (mut uncut, start) = (Uncut::default(), Instant::now());
        uncut.refused(endpoint(1), 1400, start);
        assert!(!uncut.takes(endpoint(1), 1400, || start) && uncut.takes(endpoint(1), 1399, || start));
        assert!(uncut.takes(endpoint(2), 1400, || start));
        assert!(uncut.takes(endpoint(1), 1400, || start + UNCUT_TIME));
        (0..1000).for_each(|number| uncut.refused(endpoint(number), 1400, start));
        assert_eq!(uncut.0.len(), UNCUT_MAX);
        uncut.refused(endpoint(2000), 1400, start + UNCUT_TIME);
        assert_eq!(uncut.0.len(), 1);
    }

    /// A socket whose buffer stays full: each endpoint of a flood would wait in turn.
    #[test]
    fn a_full_buffer_is_waited_for_once() {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let source = Source::of(&socket, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut sender = Sender::new(socket, Arc::new(source));
        sender.stuck_until = Some(Instant::now() + Duration::from_secs(60));
        let began = Instant::now();
        assert!((0..1000).all(|_| !sender.wait_writable()));
        assert!(began.elapsed() < Duration::from_secs(1));
        sender.stuck_until = None;
        assert!(sender.wait_writable(), "an idle socket has room");
    }

    /// Two addresses of this machine: frames leave from the one that others were told, runs too, and from the next one as soon as it is told.
    #[test]
    fn a_socket_that_is_bound_to_no_address_speaks_from_the_one_it_is_told() {
        let hears = UdpSocket::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(to) = hears.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        let socket = Arc::new(UdpSocket::bind("0.0.0.0:0").unwrap());
        let local = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), socket.local_addr().unwrap().port());
        let source = Arc::new(Source::of(&socket, local).unwrap());
        let mut sender = Sender::new(socket, source.clone());
        let mut heard = |datagrams: &mut [u8], stride: usize| {
            sender.send(to, datagrams, stride);
            hears.recv_from(&mut [0; 64]).unwrap().1
        };
        assert_eq!(heard(&mut [1], 1), SocketAddr::V4(local));
        assert!(source.leave_from(Ipv4Addr::new(127, 0, 0, 3)));
        let moved = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 3), local.port()));
        assert_eq!((source.endpoint().into(), heard(&mut [1, 2, 3], 1), heard(&mut [4], 1)), (moved, moved, moved));

        let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(own) = bound.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        assert!(Source::of(&bound, SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), own.port())).is_none());
        let source = Source::of(&bound, own).unwrap();
        assert!(source.leave_from(Ipv4Addr::LOCALHOST) && !source.leave_from(Ipv4Addr::new(127, 0, 0, 3)));
        assert_eq!(source.endpoint(), own);
    }
}
