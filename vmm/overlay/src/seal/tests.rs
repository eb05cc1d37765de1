//! Two ports and what passes between them: told apart, taken once, in any order, whatever is forged.

use std::net::Ipv4Addr;

use super::*;
use crate::vxlan::Vni;

const VNI: u32 = 7;

fn endpoint(number: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, number), 4789)
}

fn secret(number: u8) -> PortSecret {
    PortSecret::new([number; 32])
}

/// The port of `own`, which knows the ports of `others` at the endpoints of their numbers.
fn port(own: u8, others: &[u8]) -> Seals {
    let mut seals = Seals::default();
    for other in others {
        meet(&mut seals, own, *other);
    }
    seals
}

fn meet(seals: &mut Seals, own: u8, other: u8) {
    let key = secret(other).public();
    let pair = secret(own).pair(&key, Vni::new(VNI).unwrap()).unwrap();
    seals.add(endpoint(other), key, pair).unwrap();
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; layout::sealed_bytes(payload.len())];
    layout::frame(&mut datagram, payload.len()).copy_from_slice(payload);
    datagram
}

fn sealed(by: &mut Seals, now: Instant, to: u8, payload: &[u8]) -> Vec<u8> {
    by.sealed(now, endpoint(to), payload).unwrap()
}

fn opened(by: &mut Seals, datagram: &[u8]) -> Result<(Vec<u8>, SocketAddrV4), Reason> {
    let mut datagram = datagram.to_vec();
    by.open(&mut datagram).map(|(range, from)| (datagram[range].to_vec(), from))
}

#[test]
fn what_one_seals_the_other_opens_once_and_nobody_else_does() {
    let now = Instant::now();
    let (mut a, mut b, mut c) = (port(1, &[2, 3]), port(2, &[1, 3]), port(3, &[1, 2]));
    let datagram = sealed(&mut a, now, 2, b"for b alone");
    assert!(!datagram.windows(5).any(|bytes| bytes == b"alone"));
    assert_eq!(opened(&mut c, &datagram), Err(Reason::SealUnknown));
    assert_eq!(opened(&mut b, &datagram), Ok((b"for b alone".to_vec(), endpoint(1))));
    assert_eq!(opened(&mut b, &datagram), Err(Reason::SealReplay));
    assert_eq!(opened(&mut a, &datagram), Err(Reason::SealUnknown), "its own voice opens at nobody's but the peer's");
    assert_eq!(a.seal(now, endpoint(9), &mut framed(b"x"), 64), Err(Reason::SealNoKey));
}

#[test]
fn a_run_is_sealed_datagram_by_datagram() {
    let (mut a, mut b) = (port(1, &[2]), port(2, &[1]));
    let mut run = [framed(&[1; 100]), framed(&[2; 100]), framed(&[3; 40])].concat();
    let stride = layout::sealed_bytes(100);
    a.seal(Instant::now(), endpoint(2), &mut run, stride).unwrap();
    let payloads: Vec<_> = run.chunks(stride).map(|datagram| opened(&mut b, datagram).unwrap().0).collect();
    assert_eq!(payloads, [vec![1; 100], vec![2; 100], vec![3; 40]]);
}

#[test]
fn each_changed_byte_is_noticed_and_a_forgery_costs_the_true_one_nothing() {
    let (mut a, mut b) = (port(1, &[2]), port(2, &[1]));
    let datagram = sealed(&mut a, Instant::now(), 2, &[9; 60]);
    for at in 0..datagram.len() {
        let mut forged = datagram.clone();
        forged[at] ^= 0x40;
        assert!(opened(&mut b, &forged).is_err(), "byte {at}");
    }
    for bytes in 0..datagram.len() {
        assert!(opened(&mut b, &datagram[..bytes]).is_err(), "{bytes} bytes");
    }
    assert!(opened(&mut b, &datagram).is_ok());
}

#[test]
fn order_does_not_count_within_the_window() {
    let now = Instant::now();
    let (mut a, mut b) = (port(1, &[2]), port(2, &[1]));
    let mut run: Vec<_> = (0..window::WINDOW + 1).map(|number| sealed(&mut a, now, 2, &number.to_be_bytes())).collect();
    let first = run.remove(0);
    for datagram in run.iter().rev() {
        assert!(opened(&mut b, datagram).is_ok());
    }
    assert_eq!(opened(&mut b, &first), Err(Reason::SealReplay), "too old to tell");
}

#[test]
fn keys_change_by_amount_and_by_time_without_a_loss() {
    let start = Instant::now();
    let (mut a, mut b) = (port(1, &[2]), port(2, &[1]));
    let first = sealed(&mut a, start, 2, b"first");
    a.peers.get_mut(&secret(2).public()).unwrap().outgoing.number = GENERATION - 2;
    let around: Vec<_> = (0..4).map(|_| sealed(&mut a, start, 2, b"around")).collect();
    let later = sealed(&mut a, start + GENERATION_TIME, 2, b"later");
    // The generations come mixed.
    for datagram in [&first, &around[2], &around[0], &around[3], &around[1], &later] {
        let number = u64::from_be_bytes(datagram[8..16].try_into().unwrap());
        // The jump itself is no part of the window's reach.
        let right = if number + window::WINDOW > b.peers[&secret(1).public()].incoming.top() { Ok(()) } else { Err(Reason::SealReplay) };
        assert_eq!(opened(&mut b, datagram).map(|_| ()), right, "{number}");
    }
    assert_eq!(a.peers[&secret(2).public()].outgoing.number, 2 * GENERATION);
    let (old, new) = (a.peers[&secret(2).public()].outgoing.root.key_bytes(1), a.peers[&secret(2).public()].outgoing.root.key_bytes(2));
    assert_ne!(old, new);
}

#[test]
fn no_number_is_used_twice_whatever_is_removed_and_added() {
    let now = Instant::now();
    let (mut a, mut b) = (port(1, &[2, 3]), port(2, &[1]));
    let mut numbers = Vec::new();
    for round in 0..5_u8 {
        for to in [2, 3, 2] {
            let datagram = sealed(&mut a, now, to, &[round]);
            if to == 2 {
                numbers.push(datagram[8..16].to_vec());
                assert!(opened(&mut b, &datagram).is_ok(), "round {round}");
                assert_eq!(opened(&mut b, &datagram), Err(Reason::SealReplay));
            }
        }
        a.remove(endpoint(2));
        meet(&mut a, 1, 2);
        // The receiver forgets as well, and takes nothing of before again.
        let old = sealed(&mut a, now, 2, &[round]);
        assert!(opened(&mut b, &old).is_ok());
        b.remove(endpoint(1));
        assert_eq!(opened(&mut b, &old), Err(Reason::SealUnknown));
        meet(&mut b, 2, 1);
        assert_eq!(opened(&mut b, &old), Err(Reason::SealReplay));
    }
    let count = numbers.len();
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), count);
}

#[test]
fn a_port_that_is_at_two_endpoints_uses_no_number_twice_and_takes_nothing_twice() {
    let now = Instant::now();
    let (mut a, mut b) = (port(1, &[2]), port(2, &[1]));
    let first = sealed(&mut a, now, 2, b"to the old place");
    assert!(opened(&mut b, &first).is_ok());
    // The address of each host changes: the same key is behind another endpoint, and behind the old one for a while.
    let place = |seals: &mut Seals, own: u8, other: u8, at: u8| {
        let key = secret(other).public();
        seals.add(endpoint(at), key, secret(own).pair(&key, Vni::new(VNI).unwrap()).unwrap()).unwrap();
    };
    place(&mut a, 1, 2, 12);
    place(&mut b, 2, 1, 11);
    let sent: Vec<_> = [2, 12, 2, 12].into_iter().map(|to| sealed(&mut a, now, to, b"either way")).collect();
    let mut numbers: Vec<_> = sent.iter().map(|datagram| datagram[8..16].to_vec()).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), sent.len());
    assert_eq!(sent.iter().filter(|datagram| opened(&mut b, datagram) == Ok((b"either way".to_vec(), endpoint(11)))).count(), 4);
    b.remove(endpoint(1));
    assert!(sent.iter().chain([&first]).all(|datagram| opened(&mut b, datagram) == Err(Reason::SealReplay)));
    a.remove(endpoint(2));
    let last = sealed(&mut a, now, 12, b"last");
    assert!(!numbers.contains(&last[8..16].to_vec()) && opened(&mut b, &last).is_ok());
    assert_eq!((a.key_at(endpoint(2)), a.key_at(endpoint(12))), (None, Some(secret(2).public())));
}

#[test]
fn a_peer_that_started_anew_takes_the_place_of_who_was_there() {
    let now = Instant::now();
    let (mut a, mut b) = (port(1, &[2]), port(2, &[1]));
    let old = sealed(&mut b, now, 1, b"old");
    // The port at endpoint 2 is another process now.
    let key = secret(22).public();
    a.add(endpoint(2), key, secret(1).pair(&key, Vni::new(VNI).unwrap()).unwrap()).unwrap();
    assert_eq!(opened(&mut a, &old), Err(Reason::SealUnknown));
    let mut anew = port(22, &[1]);
    let new = sealed(&mut anew, now, 1, b"new");
    assert_eq!(opened(&mut a, &new), Ok((b"new".to_vec(), endpoint(2))));
}

#[test]
fn two_that_share_a_number_by_chance_are_both_heard() {
    let now = Instant::now();
    let (mut a, mut b, mut c) = (port(1, &[2, 3]), port(2, &[1]), port(3, &[1]));
    // By hand: what the other two seal for 1 comes under one number.
    let spi = |seals: &Seals, at: u8| seals.peers[&secret(at).public()].incoming.root.spi();
    let (of_b, of_c) = (spi(&a, 2), spi(&a, 3));
    a.by_spi.remove(&of_c);
    a.by_spi.get_mut(&of_b).unwrap().insert(0, secret(3).public());
    let from_b = sealed(&mut b, now, 1, b"b");
    assert_eq!(opened(&mut a, &from_b), Ok((b"b".to_vec(), endpoint(2))));
    assert_eq!(opened(&mut a, &sealed(&mut c, now, 1, b"c")), Err(Reason::SealUnknown), "it came under its own number");
}

#[test]
fn the_table_of_peers_has_a_limit() {
    let mut seals = port(1, &[2]);
    let key = secret(3).public();
    let pair = secret(1).pair(&key, Vni::new(VNI).unwrap()).unwrap();
    for number in 1..PEERS_MAX {
        let place = SocketAddrV4::new(Ipv4Addr::from(number as u32 + (11 << 24)), 4789);
        seals.add(place, key, pair.clone()).unwrap();
    }
    assert_eq!(seals.add(endpoint(200), key, pair), Err(Full));
}
