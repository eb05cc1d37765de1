//! Interfaces, addresses and routes by rtnetlink.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::stream::TryStreamExt as _;
use nix::libc;
use rtnetlink::{
    Error, Handle, LinkUnspec, LinkVlan, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteMessage, RouteScope},
    },
};

use crate::wiring::{Road, Wiring};

/// A connection to the kernel.
pub struct Kernel {
    handle: Handle,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address; zeros if it has another kind.
    pub mac: [u8; 6],
    /// Whether something is at the other end.
    pub carrier: bool,
}

impl Kernel {
    /// Connects; must be called within a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Every interface there is.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, Error> {
        let messages: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await?;
        Ok(messages.iter().map(interface).collect())
    }

    /// One of them; none if it is gone.
    pub async fn interface(&self, index: u32) -> Option<Interface> {
        let mut messages = self.handle.link().get().match_index(index).execute();
        messages.try_next().await.ok().flatten().as_ref().map(interface)
    }

    /// Switches an interface on.
    pub async fn up(&self, index: u32) -> Result<(), Error> {
        self.handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
    }

    /// Has the kernel take addresses and routes from router advertisements (RFC 4862), whatever its defaults are.
    pub fn hear_routers(&self, name: &str) {
        for option in ["accept_ra", "autoconf"] {
            // Without IPv6 there is no such file, and nothing to hear.
            fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{option}"), "1").ok();
        }
    }

    /// Has the kernel pass over roads of this interface while it has no carrier: another may have them too.
    pub fn heed_carrier(&self, name: &str) {
        fs::write(format!("/proc/sys/net/ipv4/conf/{name}/ignore_routes_with_linkdown"), "1").ok();
    }

    /// Has TCP send smaller segments once large ones are lost again and again (RFC 4821): what drops them may be silent, and IPv6's are never cut.
    pub fn find_narrow_paths(&self) {
        // The kernel's default is not to; one without the switch does not.
        fs::write("/proc/sys/net/ipv4/tcp_mtu_probing", "1").ok();
    }

    /// Its IPv6 addresses that others can reach: not those of the link alone, nor those not yet known to be its own.
    pub async fn ipv6(&self, index: u32) -> Result<Vec<(Ipv6Addr, u8)>, Error> {
        let messages: Vec<AddressMessage> = self.handle.address().get().set_link_index_filter(index).execute().try_collect().await?;
        Ok(messages.iter().filter_map(reachable).collect())
    }

    /// Gives an interface an address and the roads behind it, and takes away what it had before of that and is not to have any more.
    pub async fn set(&self, index: u32, before: Option<&Wiring>, now: &Wiring, metric: u32) -> Result<(), Error> {
        let (address, length) = now.address;
        self.handle.address().add(index, IpAddr::V4(address), length).replace().execute().await?;
        for road in &now.roads {
            self.handle.route().add(route(index, address, road, metric)).replace().execute().await?;
        }
        let Some(before) = before else { return Ok(()) };
        if before.address != now.address {
            // Its roads go with it.
            self.remove(index, before).await;
            return Ok(());
        }
        for gone in before.roads.iter().filter(|road| !now.roads.iter().any(|other| other.to == road.to)) {
            // One that is gone already is as good.
            self.handle.route().del(route(index, address, gone, metric)).execute().await.ok();
        }
        Ok(())
    }

    /// Takes an address away, and the roads that were behind it; what is gone already is as good.
    pub async fn remove(&self, index: u32, wiring: &Wiring) {
        let mut messages = self.handle.address().get().set_link_index_filter(index).execute();
        while let Ok(Some(message)) = messages.try_next().await {
            let is_it = message.attributes.contains(&AddressAttribute::Local(IpAddr::V4(wiring.address.0)));
            if is_it && message.header.prefix_len == wiring.address.1 {
                self.handle.address().del(message).execute().await.ok();
            }
        }
    }

    /// Makes the interface of a VLAN on a link; one that is there already is as good.
    pub async fn add_vlan(&self, link: u32, name: &str, id: u16) -> Result<(), Error> {
        match self.handle.link().add(LinkVlan::new(name, link, id).up().build()).execute().await {
            Err(Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
            made => made,
        }
    }
}

/// A road whose going is bound to its address: the kernel takes it away with that.
fn route(index: u32, address: Ipv4Addr, road: &Road, metric: u32) -> RouteMessage {
    let (to, length) = road.to;
    let mut route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).priority(metric).pref_source(address);
    if length > 0 {
        route = route.destination_prefix(to, length);
    }
    match road.gateway {
        Some(gateway) if road.is_on_link => route.gateway(gateway).onlink().build(),
        Some(gateway) => route.gateway(gateway).build(),
        None => route.scope(RouteScope::Link).build(),
    }
}

fn reachable(message: &AddressMessage) -> Option<(Ipv6Addr, u8)> {
    let unsure = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    if message.header.scope != AddressScope::Universe || message.header.flags.intersects(unsure) {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(IpAddr::V6(address)) => Some((*address, message.header.prefix_len)),
        _ => None,
    })
}

fn interface(message: &LinkMessage) -> Interface {
    let mut found = Interface { index: message.header.index, name: String::new(), mac: [0; 6], carrier: false };
    found.carrier = message.header.flags.contains(LinkFlags::LowerUp);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(bytes) => found.mac = bytes.as_slice().try_into().unwrap_or_default(),
            _ => {}
        }
    }
    found
}
