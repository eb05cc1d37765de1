//! Handshakes that others begin and do not go on with: what holds up whom.

use std::{collections::BTreeMap, time::Instant};

use iroh::{Endpoint, EndpointAddr, PublicKey, RelayMode, endpoint::presets};
use tokio::net::UdpSocket;

use super::*;

/// First datagrams of handshakes with a host, as somebody on their way would record them.
async fn recorded(host: &Host, count: usize) -> Vec<Vec<u8>> {
    let recorder = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let endpoint = Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled).bind().await.unwrap();
    let id = PublicKey::from_bytes(&host.key().0).unwrap();
    let address = EndpointAddr::new(id).with_ip_addr(recorder.local_addr().unwrap());
    for _ in 0..count {
        let (endpoint, address) = (endpoint.clone(), address.clone());
        tokio::spawn(async move { endpoint.connect(address, b"rebec/1").await.map(|_| ()).unwrap_or_default() });
    }
    let mut first = BTreeMap::new();
    let mut datagram = [0; 2048];
    while first.len() < count {
        let length = tokio::time::timeout(PATIENCE, recorder.recv(&mut datagram)).await.unwrap().unwrap();
        // A long header of type Initial, then a version and the destination's connection ID (RFC 9000 §17.2).
        if datagram[0] & 0xf0 == 0xc0 {
            let id = datagram[6..6 + usize::from(datagram[5])].to_vec();
            first.entry(id).or_insert_with(|| datagram[..length].to_vec());
        }
    }
    endpoint.close().await;
    first.into_values().collect()
}

/// Sends them again, each from a socket of its own that answers nothing.
async fn replay(host: &Host, datagrams: &[Vec<u8>]) -> Vec<UdpSocket> {
    let mut sockets = vec![];
    for datagram in datagrams {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.send_to(datagram, host.peer().addresses[0]).await.unwrap();
        sockets.push(socket);
    }
    // They have been taken once all of them have been answered, by more of the handshake or by a token to come back with.
    for socket in &sockets {
        tokio::time::timeout(PATIENCE, socket.readable()).await.unwrap().unwrap();
    }
    sockets
}

async fn join_takes(host: &Host) -> Duration {
    let (joiner, start) = (Host::open("joiner").await, Instant::now());
    assert_eq!(joiner.post(host, Body::empty()).await.unwrap().0, 200);
    start.elapsed()
}

#[tokio::test]
async fn handshakes_that_stall_hold_up_nobody() {
    let host = Host::open("b").await;
    let alone = join_takes(&host).await;
    // Few: the next is taken as it comes. Many: the next has its address asked for.
    for count in [10, 48] {
        let datagrams = recorded(&host, count).await;
        let sockets = replay(&host, &datagrams).await;
        let beside = join_takes(&host).await;
        println!("a join takes {alone:?} alone and {beside:?} beside {count} handshakes that stall");
        assert!(beside < Duration::from_millis(1500), "{beside:?} beside {count}");
        drop(sockets);
    }
}

#[tokio::test]
async fn above_a_bound_an_address_is_asked_for() {
    let host = Host::open("b").await;
    let datagrams = recorded(&host, 48).await;
    let sockets = replay(&host, &datagrams).await;
    let mut answers = BTreeMap::new();
    for socket in &sockets {
        let mut datagram = [0; 2048];
        socket.recv(&mut datagram).await.unwrap();
        *answers.entry(datagram[0] & 0xf0).or_insert(0) += 1;
    }
    // Initial, and Retry.
    assert_eq!(answers, BTreeMap::from([(0xc0, 32), (0xf0, 16)]));
}
