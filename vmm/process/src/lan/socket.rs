//! The UDP socket: many datagrams a system call, both ways (UDP_SEGMENT and UDP_GRO, udp(7)).
//!
//! Sending never blocks for long. A full send buffer is waited for a moment, as a network card's full ring would be; then datagrams are
//! lost and counted, and the guest's TCP slows down.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddrV4, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt},
};
use rebec_overlay::Wire;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What is asked for as receive buffer: about 60 bursts of 64 KiB, which a queue thread that waits for its turn on a busy host needs.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// And as send buffer: 40 ms of a 100 Mbit/s link. More would only be queue.
const SEND_BUFFER_BYTES: usize = 512 << 10;
/// How long a full send buffer is waited for.
const SEND_WAIT: Duration = Duration::from_millis(10);
/// Largest receive: one datagram, or the sum of what the kernel joined.
pub const RECEIVE_BYTES_MAX: usize = 65_536;

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
    if let Err(error) = setsockopt(&socket, sockopt::UdpGroSegment, &true) {
        log::info!("UDP: this kernel does not join datagrams (UDP_GRO: {error}); the LAN works, slower");
    }
    Ok(socket)
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
    /// Strides from here on the kernel has refused to cut: the path's MTU is smaller, and it fragments single datagrams instead.
    uncut_stride: usize,
    lost: u64,
}

impl Sender {
    /// Of a socket that [`prepare`] made ready.
    pub fn new(socket: Arc<UdpSocket>) -> Self {
        Self { socket, uncut_stride: usize::MAX, lost: 0 }
    }

    /// Datagrams that the kernel did not take.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn send_run(&mut self, to: &SockaddrIn, datagrams: &[u8], stride: usize) -> Result<(), Errno> {
        let segment_bytes = stride as u16;
        let cut = [ControlMessage::UdpGsoSegments(&segment_bytes)];
        let control: &[ControlMessage<'_>] = if datagrams.len() > stride { &cut } else { &[] };
        let send = || loop {
            match sendmsg(self.socket.as_raw_fd(), &[IoSlice::new(datagrams)], control, MsgFlags::MSG_DONTWAIT, Some(to)) {
                Err(Errno::EINTR) => {}
                result => return result.map(|_bytes| ()),
            }
        };
        match send() {
            Err(Errno::EAGAIN) => {
                self.wait_writable();
                send()
            }
            result => result,
        }
    }

    fn wait_writable(&self) {
        let timeout = Timespec { tv_sec: 0, tv_nsec: SEND_WAIT.subsec_nanos().into() };
        let mut descriptors = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::OUT)];
        if let Err(error) = poll(&mut descriptors, Some(&timeout)) {
            log::debug!("wait for room in the send buffer: {error}");
        }
    }
}

impl Wire for Sender {
    fn send(&mut self, to: SocketAddrV4, datagrams: &mut [u8], stride: usize) {
        let address = SockaddrIn::from(to);
        if datagrams.len() <= stride || stride < self.uncut_stride {
            match self.send_run(&address, datagrams, stride) {
                Ok(()) => return,
                // EINVAL, EMSGSIZE: larger than the path's MTU. EIO: a device that cannot sum, on kernels before 6.2.
                Err(Errno::EINVAL | Errno::EMSGSIZE | Errno::EIO) if datagrams.len() > stride => {
                    log::info!("UDP to {to}: the path does not take runs of {stride} bytes; sending them one by one, slower");
                    self.uncut_stride = stride;
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
