//! What the bench guest talks to when the other side is the kernel: the checked stream over ordinary sockets, and a `vxlan` device.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rebec_vmm_api::{MacAddr, Peer};

use super::{
    Machine,
    pattern::{self, STREAM_BYTES},
};

/// Where the guest's receiver listens, and where it connects to.
pub const STREAM_PORT: u16 = 5001;
/// Where the guest answers datagrams with their own content.
pub const ECHO_PORT: u16 = 7;
/// Seed of the stream, as `guest/src/net.rs` has it.
const STREAM_SEED: u64 = 0x0072_6562_6563;
/// Longest silence of a peer.
const SILENCE: Duration = Duration::from_secs(30);

/// The stream's bytes up to its repeat.
fn stream() -> Vec<u8> {
    let mut words = vec![0; STREAM_BYTES / 8];
    pattern::stream(STREAM_SEED, &mut words);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Sends `bytes` of the stream to a guest and waits until it has closed its side.
pub fn send_stream(to: Ipv4Addr, bytes: usize) -> Result<()> {
    let stream = stream();
    let mut socket = TcpStream::connect_timeout(&(to, STREAM_PORT).into(), SILENCE).with_context(|| format!("connect to guest {to}"))?;
    socket.set_write_timeout(Some(SILENCE))?;
    socket.set_read_timeout(Some(SILENCE))?;
    let mut sent = 0;
    while sent < bytes {
        let at = sent % STREAM_BYTES;
        let count = (STREAM_BYTES - at).min(bytes - sent);
        socket.write_all(&stream[at..at + count]).with_context(|| format!("send to guest {to} after {sent} bytes"))?;
        sent += count;
    }
    socket.shutdown(std::net::Shutdown::Write)?;
    let left = socket.read(&mut [0; 16]).context("wait for the guest to close")?;
    if left == 0 { Ok(()) } else { bail!("the guest sent {left} bytes it should not") }
}

/// Accepts one connection of a guest and checks its stream to the end; returns how many bytes there were.
pub fn receive_stream(listener: &TcpListener) -> Result<usize> {
    let stream = stream();
    let (mut socket, _) = listener.accept().context("accept the guest's connection")?;
    socket.set_read_timeout(Some(SILENCE))?;
    let mut buffer = vec![0; 256 << 10];
    let mut received = 0;
    loop {
        let count = socket.read(&mut buffer).with_context(|| format!("receive after {received} bytes"))?;
        if count == 0 {
            return Ok(received);
        }
        for (offset, byte) in buffer[..count].iter().enumerate() {
            let at = received + offset;
            if *byte != stream[at % STREAM_BYTES] {
                bail!("byte {at} of the stream is {byte:#04x}");
            }
        }
        received += count;
    }
}

/// Sends a datagram of `bytes` to a guest, which must come back as it is.
pub fn echo(socket: &UdpSocket, guest: Ipv4Addr, bytes: usize) -> Result<()> {
    let data: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    // A first datagram may be lost to the search for the station.
    for _ in 0..10 {
        socket.send_to(&data, SocketAddrV4::new(guest, ECHO_PORT)).with_context(|| format!("send {bytes} bytes to guest {guest}"))?;
        let mut back = vec![0; bytes + 1];
        match socket.recv(&mut back) {
            Ok(count) if back[..count] == data[..] => return Ok(()),
            Ok(count) => bail!("{count} other bytes came back"),
            Err(_) => {}
        }
    }
    bail!("guest {guest} did not answer {bytes} bytes")
}

/// Makes a kernel `vxlan` device on a machine: a physical machine joins a LAN.
pub fn kernel_vxlan(machine: &Machine, vni: u32, port: u16, mac: MacAddr, address: Ipv4Addr) -> Result<()> {
    let (vni, local, port, mac) = (vni.to_string(), machine.address().to_string(), port.to_string(), mac.to_string());
    machine.ip(&[
        "link",
        "add",
        "lan",
        "address",
        &mac,
        "mtu",
        "1400",
        "type",
        "vxlan",
        "id",
        &vni,
        "local",
        &local,
        "dstport",
        &port,
        "nolearning",
    ])?;
    machine.ip(&["addr", "add", &format!("{address}/24"), "dev", "lan"])?;
    machine.ip(&["link", "set", "lan", "up"])?;
    Ok(())
}

/// Tells a kernel `vxlan` device where a station lives, and whom to flood to when that station is unknown.
pub fn kernel_fdb(machine: &Machine, peer: &Peer) -> Result<()> {
    let (ip, port, mac) = (peer.endpoint.ip().to_string(), peer.endpoint.port().to_string(), peer.mac.to_string());
    machine.bridge(&["fdb", "replace", &mac, "dev", "lan", "dst", &ip, "port", &port, "self"])?;
    // Of the unknown station, to which floods go, there may be several entries: it takes no `replace`. One that was there is only superfluous.
    machine.bridge(&["fdb", "append", "00:00:00:00:00:00", "dev", "lan", "dst", &ip, "port", &port, "self"])?;
    Ok(())
}
