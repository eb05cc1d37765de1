//! A station on a LAN that is a TCP stack in this process: frames in, frames out, and TCP connections to one guest. No socket and no
//! clock of its own: its driver (`carry`) has both.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use rebec_vmm_api::MacAddr;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, Device, DeviceCapabilities, Medium},
    socket::tcp::{self, Socket},
    time::Instant as Tick,
    wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr},
};

/// What one connection may have on its way, each way.
const BUFFER_BYTES: usize = 128 << 10;
/// Frames that wait, each way: a window's worth. More are dropped, and TCP sends them again.
const FRAMES_MAX: usize = 256;
/// Bytes of an Ethernet header.
const HEADER_BYTES: usize = 14;
/// A guest that takes nothing and says nothing for this time has gone.
const SILENCE: Duration = Duration::from_secs(60);
/// Between two questions whether a silent guest is there.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Local ports of connections.
const PORT_FIRST: u16 = 49_152;

/// What the station is, for life.
#[derive(Debug, Clone, Copy)]
pub struct StationConfig {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the LAN's prefix.
    pub prefix: u8,
    /// Largest IP packet of the LAN.
    pub mtu: u16,
    /// For initial sequence numbers and ports.
    pub seed: u64,
}

/// One station.
pub struct Station {
    began: Instant,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Frames,
    last_port: u16,
}

impl Station {
    /// A station without connections.
    pub fn new(now: Instant, config: &StationConfig) -> Self {
        let mut wire = Frames { arrived: VecDeque::new(), leaving: VecDeque::new(), mtu: usize::from(config.mtu) };
        let mut interface_config = Config::new(HardwareAddress::Ethernet(EthernetAddress(config.mac.0)));
        interface_config.random_seed = config.seed;
        let mut interface = Interface::new(interface_config, &mut wire, Tick::ZERO);
        interface.update_ip_addrs(|addresses| {
            // One address always fits.
            addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(config.address, config.prefix))).unwrap_or_default();
        });
        Self { began: now, interface, sockets: SocketSet::new(vec![]), wire, last_port: PORT_FIRST | (config.seed as u16 >> 2) }
    }

    fn add(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(SILENCE.into()));
        socket.set_keep_alive(Some(KEEPALIVE.into()));
        self.sockets.add(socket)
    }

    /// Begins a connection. How it goes is for its socket to say; one that cannot even begin is closed.
    pub fn connect(&mut self, to: SocketAddrV4) -> SocketHandle {
        let handle = self.add();
        self.last_port = self.last_port.checked_add(1).unwrap_or(PORT_FIRST);
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        if let Err(error) = socket.connect(self.interface.context(), (*to.ip(), to.port()), self.last_port) {
            log::debug!("forward: connect to {to}: {error}");
        }
        handle
    }

    /// Waits for a connection.
    #[cfg(test)]
    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.add();
        self.sockets.get_mut::<Socket<'_>>(handle).listen(port).unwrap();
        handle
    }

    /// The socket of a connection.
    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Forgets a connection.
    pub fn remove(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }

    /// A frame from the LAN.
    pub fn take(&mut self, frame: &[u8]) {
        if self.wire.arrived.len() < FRAMES_MAX && frame.len() <= self.wire.mtu + HEADER_BYTES {
            self.wire.arrived.push_back(frame.to_vec());
        }
    }

    /// Does what is due. Returns when something is due next.
    pub fn poll(&mut self, now: Instant) -> Option<Instant> {
        let since = |tick: Tick| self.began + Duration::from_micros(tick.total_micros().max(0).unsigned_abs());
        let micros = now.saturating_duration_since(self.began).as_micros();
        let tick = Tick::from_micros(i64::try_from(micros).unwrap_or(i64::MAX));
        self.interface.poll(tick, &mut self.wire, &mut self.sockets);
        self.interface.poll_at(tick, &self.sockets).map(since)
    }

    /// The next frame for the LAN.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        self.wire.leaving.pop_front()
    }
}

/// Frames on their way, in the words of smoltcp.
struct Frames {
    arrived: VecDeque<Vec<u8>>,
    leaving: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct Arrived(Vec<u8>);
struct Leaving<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, write: F) -> R {
        let mut frame = vec![0; bytes];
        let result = write(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Frames {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: Tick) -> Option<(Arrived, Leaving<'_>)> {
        // An answer has room: the driver empties the queue between two polls, and each frame makes one at most.
        Some((Arrived(self.arrived.pop_front()?), Leaving(&mut self.leaving)))
    }

    fn transmit(&mut self, _: Tick) -> Option<Leaving<'_>> {
        (self.leaving.len() < FRAMES_MAX).then_some(Leaving(&mut self.leaving))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + HEADER_BYTES;
        capabilities
    }
}
