//! What an interface is to have: an address and the roads behind it. Pure: a lease or a user's word becomes this, and the kernel is told what is
//! different from before.

use std::net::Ipv4Addr;

use crate::{lease::Lease, policy::Static};

/// A network behind an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Road {
    /// The network and its length; of length 0, the rest of the world.
    pub to: (Ipv4Addr, u8),
    /// Through whom; none where its stations are on the link itself.
    pub gateway: Option<Ipv4Addr>,
    /// Whether the gateway is on the link though no network says so: an address of length 32, or a router of another subnet.
    pub is_on_link: bool,
}

/// An address and the roads behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiring {
    /// Address and prefix length.
    pub address: (Ipv4Addr, u8),
    /// The roads, those to networks on the link first: the others may lead through them.
    pub roads: Vec<Road>,
}

impl Wiring {
    fn new(address: (Ipv4Addr, u8), roads: impl IntoIterator<Item = ((Ipv4Addr, u8), Option<Ipv4Addr>)>) -> Self {
        let mut roads: Vec<Road> = roads
            .into_iter()
            .map(|(to, gateway)| Road { to: (network(to), to.1), gateway, is_on_link: gateway.is_some_and(|at| !holds(address, at)) })
            .collect();
        roads.sort_by_key(|road| road.gateway.is_some());
        Self { address, roads }
    }

    /// What a lease gives. Routes that it names stand in place of its router (RFC 3442).
    pub fn of_lease(lease: &Lease) -> Self {
        let default = lease.gateway.map(|gateway| ((Ipv4Addr::UNSPECIFIED, 0), Some(gateway)));
        let named = lease.routes.iter().map(|(to, gateway)| (*to, Some(*gateway).filter(|gateway| !gateway.is_unspecified())));
        Self::new(
            (lease.address, lease.length),
            if lease.routes.is_empty() { default.into_iter().collect() } else { named.collect::<Vec<_>>() },
        )
    }

    /// What a user says.
    pub fn of_static(wanted: &Static) -> Self {
        let default = wanted.gateway.map(|gateway| ((Ipv4Addr::UNSPECIFIED, 0), Some(gateway)));
        Self::new((wanted.address, wanted.length), default)
    }

    /// The gateway to the rest of the world.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.roads.iter().find(|road| road.to.1 == 0)?.gateway
    }
}

/// Whether an address is in the network of another.
fn holds(network: (Ipv4Addr, u8), address: Ipv4Addr) -> bool {
    self::network(network) == self::network((address, network.1)) && network.1 < 32
}

fn network((address, length): (Ipv4Addr, u8)) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
    Ipv4Addr::from(u32::from(address) & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wired(text: &str) -> Wiring {
        let Ok(crate::Addressing::Static(wanted)) = text.parse() else { panic!("{text}") };
        Wiring::of_static(&wanted)
    }

    #[test]
    fn a_router_outside_the_subnet_is_said_to_be_on_the_link() {
        for (text, is_on_link) in [
            ("10.0.0.42/24,10.0.0.1", false),
            ("10.0.0.42/32,10.0.0.1", true),
            ("10.0.0.42/32,10.0.0.42", true),
            ("10.0.0.42/24,192.168.0.2", true),
            ("10.0.0.42/31,10.0.0.43", false),
            ("10.0.0.42/1,9.0.0.1", false),
        ] {
            let [road] = wired(text).roads[..] else { panic!("{text}: one road") };
            assert_eq!((road.to, road.is_on_link), ((Ipv4Addr::UNSPECIFIED, 0), is_on_link), "{text}");
        }
        assert!(wired("10.0.0.42/24").roads.is_empty());
    }
}
