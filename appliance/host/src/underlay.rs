//! Which of its addresses a host's LANs have: the one that its road to the other hosts leaves from. Pure: told what addresses there are and which of
//! them the kernel would use towards whom.
//!
//! ```text
//! given by the user ── else: most of the roads to peers ── else: the road to anywhere (the default route) ── else: a link that is no bridge ── else: any
//! ```
//! What a bridge for containers, a virtual switch or a management controller's link has is an address too, and often the first. An address whose link
//! has no carrier is none.

use std::{collections::BTreeMap, net::Ipv4Addr};

/// An address of this host, on a link that has a carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// It.
    pub address: Ipv4Addr,
    /// Whether its link is a bridge: those of containers and VMs have addresses of their own on every host.
    pub is_bridge: bool,
}

/// What there is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// The addresses, in the order of the links.
    pub own: Vec<Own>,
    /// Where what goes to each peer leaves from, as far as there is a road.
    pub to_peers: Vec<Ipv4Addr>,
    /// Where what goes to anywhere else does.
    pub to_world: Option<Ipv4Addr>,
}

impl Look {
    /// The address to have from now on, of a host that had `now`. That stays as long as it is as good as another.
    pub fn choose(&self, now: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let is_own = |address: &Ipv4Addr| self.own.iter().any(|own| own.address == *address);
        let mut votes = BTreeMap::<Ipv4Addr, usize>::new();
        self.to_peers.iter().filter(|road| is_own(road)).for_each(|road| *votes.entry(*road).or_default() += 1);
        let best = votes.values().max().copied();
        let winners: Vec<_> = votes.into_iter().filter(|(_, count)| Some(*count) == best).map(|(address, _)| address).collect();
        let preferred = |of: &[Ipv4Addr]| now.filter(|now| of.contains(now)).or_else(|| of.first().copied());
        let links: Vec<_> = self.own.iter().filter(|own| !own.is_bridge).map(|own| own.address).collect();
        let any: Vec<_> = self.own.iter().map(|own| own.address).collect();
        preferred(&winners).or_else(|| self.to_world.filter(is_own)).or_else(|| preferred(&links)).or_else(|| preferred(&any))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
    const LEFT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const RIGHT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

    fn look(to_peers: &[Ipv4Addr], to_world: Option<Ipv4Addr>) -> Look {
        let own = [(DOCKER, true), (LEFT, false), (RIGHT, false)].map(|(address, is_bridge)| Own { address, is_bridge });
        Look { own: own.into(), to_peers: to_peers.into(), to_world }
    }

    #[test]
    fn the_first_address_is_not_the_address() {
        assert_eq!(look(&[], None).choose(None), Some(LEFT), "a bridge of containers is no road");
        assert_eq!(look(&[], Some(RIGHT)).choose(None), Some(RIGHT));
        assert_eq!(look(&[RIGHT, LEFT, RIGHT], Some(LEFT)).choose(None), Some(RIGHT));
        let mut alone = look(&[], None);
        alone.own.truncate(1);
        assert_eq!(alone.choose(None), Some(DOCKER), "better than none");
        assert_eq!(Look::default().choose(Some(LEFT)), None);
    }

    #[test]
    fn what_is_as_good_as_another_stays_and_what_is_gone_does_not() {
        assert_eq!(look(&[LEFT, RIGHT], None).choose(Some(RIGHT)), Some(RIGHT));
        assert_eq!(look(&[], None).choose(Some(RIGHT)), Some(RIGHT));
        assert_eq!(look(&[LEFT], None).choose(Some(RIGHT)), Some(LEFT), "the road to the peers is another by now");
        // A cable was moved: the kernel still names the old road, whose link has no carrier.
        let mut moved = look(&[LEFT, LEFT], Some(LEFT));
        moved.own.retain(|own| own.address != LEFT);
        assert_eq!(moved.choose(Some(LEFT)), Some(RIGHT));
    }
}
