//! Sockets of a VM that are opened here and handed over to its VMM: one for each NIC, and the one where it arrives.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// UDP ports of a host that LANs use.
const UDP_PORTS: std::ops::Range<u16> = 20_000..30_000;
/// Why a VM on a LAN cannot start, yet.
const NO_ADDRESS: &str = "this host has no IPv4 address, which its LANs need; give it one, or run the VM without a LAN";

/// Sockets for the NICs, and where others reach each: at the address that LANs have on this host. They are bound to their ports alone, so that they
/// serve on when that address is another one day.
pub fn bind(underlay: Option<Ipv4Addr>, count: usize) -> Result<Vec<(SocketAddrV4, UdpSocket)>> {
    if count == 0 {
        return Ok(vec![]);
    }
    let underlay = underlay.context(NO_ADDRESS)?;
    let free = UDP_PORTS.filter_map(|port| Some((SocketAddrV4::new(underlay, port), UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).ok()?)));
    let sockets: Vec<_> = free.take(count).collect();
    if sockets.len() < count {
        bail!("no UDP port between {} and {} is free; end what uses them", UDP_PORTS.start, UDP_PORTS.end);
    }
    Ok(sockets)
}

/// Where a VM arrives: each stream of its move is a connection. Only who may enter the VM's folder can make one.
pub fn listen(folder: &Path) -> Result<UnixListener> {
    let path = arrival(folder);
    // An earlier VMM's; it has ended.
    std::fs::remove_file(&path).ok();
    UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))
}

/// The path of that socket.
pub fn arrival(folder: &Path) -> PathBuf {
    folder.join("arrive.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_apart_and_serve_whatever_address_there_is() {
        let one = bind(Some(Ipv4Addr::new(192, 0, 2, 1)), 2).unwrap();
        let two = bind(Some(Ipv4Addr::new(192, 0, 2, 1)), 1).unwrap();
        let mut all: Vec<_> = one.iter().chain(&two).map(|(endpoint, _)| *endpoint).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 3);
        for (endpoint, socket) in &one {
            assert_eq!(socket.local_addr().unwrap(), (Ipv4Addr::UNSPECIFIED, endpoint.port()).into());
        }
        assert!(bind(None, 1).unwrap_err().to_string().contains("has no IPv4 address"));
        assert!(bind(None, 0).unwrap().is_empty());
    }
}
