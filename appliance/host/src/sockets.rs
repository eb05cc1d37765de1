//! Sockets of a VM that are opened here and handed over to its VMM: one for each NIC, and the one where it arrives.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// UDP ports of a host that LANs use.
const UDP_PORTS: std::ops::Range<u16> = 20_000..30_000;

/// Sockets for the NICs, at the address that LANs have on this host.
pub fn bind(underlay: Option<Ipv4Addr>, count: usize) -> Result<Vec<UdpSocket>> {
    if count == 0 {
        return Ok(vec![]);
    }
    bind_at(underlay.context("this host has no IPv4 address, which its LANs need; give it one, or run the VM without a LAN")?, count)
}

fn bind_at(underlay: Ipv4Addr, count: usize) -> Result<Vec<UdpSocket>> {
    let free = UDP_PORTS.filter_map(|port| UdpSocket::bind((underlay, port)).ok());
    let sockets: Vec<_> = free.take(count).collect();
    if sockets.len() < count {
        bail!("no UDP port between {} and {} is free at {underlay}; is the address this host's?", UDP_PORTS.start, UDP_PORTS.end);
    }
    Ok(sockets)
}

/// Where they are bound.
pub fn endpoints(sockets: &[UdpSocket]) -> Vec<SocketAddrV4> {
    let bound = sockets.iter().filter_map(|socket| socket.local_addr().ok());
    bound.filter_map(|address| if let SocketAddr::V4(endpoint) = address { Some(endpoint) } else { None }).collect()
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
    fn ports_are_apart_and_an_address_of_elsewhere_is_refused() {
        let (one, two) = (bind_at(Ipv4Addr::LOCALHOST, 2).unwrap(), bind_at(Ipv4Addr::LOCALHOST, 1).unwrap());
        let mut all = [endpoints(&one), endpoints(&two)].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 3);
        assert!(bind_at(Ipv4Addr::new(192, 0, 2, 1), 1).unwrap_err().to_string().contains("192.0.2.1"));
    }
}
