//! Where requests over TCP are taken: at every address that this host has, IPv6 and IPv4. Those of an appliance come later than its agent.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be taken.
const BACKLOG: u32 = 1024;

/// Listens at a port of all addresses; must be called within a tokio runtime.
pub fn everywhere(port: u16) -> io::Result<TcpListener> {
    let (socket, any) = match TcpSocket::new_v6() {
        Ok(socket) => {
            // One socket for both, whatever the machine's default is.
            sockopt::set_ipv6_v6only(&socket, false)?;
            (socket, IpAddr::from(Ipv6Addr::UNSPECIFIED))
        }
        // A kernel without IPv6.
        Err(_) => (TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()),
    };
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(any, port))?;
    socket.listen(BACKLOG)
}
