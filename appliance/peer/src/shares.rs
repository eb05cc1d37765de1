//! Places, so many for each: of an address, of a key. Who has a place gives it back by dropping it.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex},
};

use crate::lock;

/// The places of everybody.
#[derive(Debug, Clone)]
pub struct Shares<K: Eq + Hash> {
    each: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

/// One place.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    of: K,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Copy> Shares<K> {
    /// `each` places for each.
    pub fn new(each: usize) -> Self {
        Self { each, taken: Arc::default() }
    }

    /// Takes one of the places of `of`; none where they are all taken.
    pub fn take(&self, of: K) -> Option<Share<K>> {
        let mut taken = lock(&self.taken);
        let count = taken.entry(of).or_default();
        if *count == self.each {
            return None;
        }
        *count += 1;
        Some(Share { of, taken: self.taken.clone() })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(count) = taken.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

/// Whoever sends from an address, as far as an address says: IPv4 as such also where it came in by a socket of IPv6, and of IPv6 the
/// 64 bits that name a network, for a machine has the others to choose from.
pub fn sender(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_places_and_gets_them_back() {
        let shares = Shares::new(2);
        let (one, two) = (shares.take('a'), shares.take('a'));
        assert!(one.is_some() && two.is_some() && shares.take('a').is_none() && shares.take('b').is_some());
        drop(one);
        assert!(shares.take('a').is_some());
        drop(two);
        assert!(lock(&shares.taken).is_empty());
    }

    #[test]
    fn a_sender_is_an_address_of_ipv4_or_a_network_of_ipv6() {
        let same = |a: &str, b: &str| sender(a.parse().unwrap()) == sender(b.parse().unwrap());
        assert!(same("10.0.0.1", "::ffff:10.0.0.1") && same("2001:db8::1", "2001:db8::2:1"));
        assert!(!same("10.0.0.1", "10.0.0.2") && !same("2001:db8::1", "2001:db8:0:1::1"));
    }
}
