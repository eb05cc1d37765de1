//! Two stacks in one process: a carrier, and a guest behind a VXLAN endpoint of its own.

use std::time::Duration;

use smoltcp::socket::tcp::State;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinHandle,
    time::timeout,
};

use super::*;

const LAN: u32 = 0x77;
const PORT: u16 = 80;
/// Longer than anything here takes, shorter than a test may hang.
const PATIENCE: Duration = Duration::from_secs(30);

fn station(last: u8) -> StationConfig {
    let address = Ipv4Addr::new(10, 5, 0, last);
    StationConfig { mac: MacAddr([2, 0, 10, 5, 0, last]), address, prefix: 24, mtu: 1400, seed: u64::from(last) }
}

async fn endpoint() -> (UdpSocket, SocketAddrV4) {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let std::net::SocketAddr::V4(local) = udp.local_addr().unwrap() else { unreachable!() };
    (udp, local)
}

/// A carrier, the orders it takes, its own endpoint, and the endpoint and station of its guest.
async fn carrier() -> (JoinHandle<()>, mpsc::Sender<Order>, SocketAddrV4, UdpSocket, Station) {
    let (udp, at) = endpoint().await;
    let (guest_udp, guest_at) = endpoint().await;
    let guest = station(9);
    let (orders, wishes) = mpsc::channel(ORDERS_MAX);
    let own = Station::new(Instant::now(), &station(7));
    let carrier = Carrier::new(own, udp, Vni::new(LAN).unwrap(), guest_at, SocketAddrV4::new(guest.address, 0), wishes);
    (tokio::spawn(carrier.run()), orders, at, guest_udp, Station::new(Instant::now(), &guest))
}

/// A guest that echoes on [`PORT`], says "bye" when the other side has ended, and ends.
async fn echo(udp: UdpSocket, to: SocketAddrV4, mut guest: Station, listeners: usize) {
    let handles: Vec<_> = (0..listeners).map(|_| guest.listen(PORT)).collect();
    let mut buffer = vec![0; 256 << 10];
    loop {
        guest.poll(Instant::now());
        for handle in &handles {
            let socket = guest.socket(*handle);
            while socket.can_recv() && socket.can_send() {
                let room = socket.send_capacity() - socket.send_queue();
                let count = socket.recv_slice(&mut buffer[..room]).unwrap();
                assert_eq!(socket.send_slice(&buffer[..count]).unwrap(), count);
            }
            if socket.state() == State::CloseWait && !socket.can_recv() && socket.send_queue() == 0 {
                socket.send_slice(b"bye").unwrap();
                socket.close();
            }
        }
        let deadline = guest.poll(Instant::now()).unwrap_or_else(|| Instant::now() + PATIENCE);
        while let Some(frame) = guest.next_frame() {
            udp.send_to(&[&Vni::new(LAN).unwrap().header()[..], &frame].concat(), to).await.unwrap();
        }
        if let Ok(received) = tokio::time::timeout_at(deadline.into(), udp.recv_from(&mut buffer)).await {
            let (_, frame) = rebec_overlay::vxlan::open(&buffer[..received.unwrap().0]).unwrap();
            guest.take(frame);
        }
    }
}

async fn ask(orders: &mpsc::Sender<Order>, port: u16, patience: Duration) -> Result<DuplexStream, NoConnection> {
    let (answer, outcome) = oneshot::channel();
    assert!(orders.send(Order { port, patience, answer }).await.is_ok());
    timeout(PATIENCE, outcome).await.unwrap().unwrap()
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_side_ends_by_itself() {
    let (task, orders, at, udp, guest) = carrier().await;
    let guest = tokio::spawn(echo(udp, at, guest, 2));
    let talk = |seed: u8| {
        let orders = orders.clone();
        async move {
            let stream = ask(&orders, PORT, PATIENCE).await.unwrap();
            let sent: Vec<u8> = (0..1_000_003u32).map(|n| (n / 251) as u8 ^ n as u8 ^ seed).collect();
            let (mut reader, mut writer) = tokio::io::split(stream);
            let (mut heard, to_send) = (vec![], sent.clone());
            let writing = async {
                writer.write_all(&to_send).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let reading = async { reader.read_to_end(&mut heard).await.unwrap() };
            tokio::join!(writing, reading);
            assert!(heard.strip_suffix(b"bye") == Some(&sent), "{} of {} bytes", heard.len(), sent.len());
        }
    };
    timeout(PATIENCE, async { tokio::join!(talk(1), talk(2)) }).await.unwrap();
    timeout(PATIENCE, task).await.unwrap().unwrap();
    guest.abort();
}

#[tokio::test]
async fn a_guest_that_refuses_and_one_that_is_silent_are_told_apart() {
    let (task, orders, at, udp, guest) = carrier().await;
    let guest = tokio::spawn(echo(udp, at, guest, 1));
    assert_eq!(ask(&orders, PORT + 1, PATIENCE).await.unwrap_err(), NoConnection::Refused);
    timeout(PATIENCE, task).await.unwrap().unwrap();
    guest.abort();
    let (_task, orders, _, _udp, _guest) = carrier().await;
    assert_eq!(ask(&orders, PORT, Duration::from_millis(200)).await.unwrap_err(), NoConnection::Silent);
}

#[tokio::test]
async fn only_the_vms_own_port_is_heard() {
    let (_task, orders, at, guest_udp, _guest) = carrier().await;
    let (stranger, _) = endpoint().await;
    // Who has 10.5.0.7?
    let mut arp = [&[0xff; 6][..], &[2, 0, 10, 5, 0, 9], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    arp.extend([2, 0, 10, 5, 0, 9, 10, 5, 0, 9, 0, 0, 0, 0, 0, 0, 10, 5, 0, 7]);
    let datagram = |vni: u32| [&Vni::new(vni).unwrap().header()[..], &arp].concat();
    let (answer, _outcome) = oneshot::channel();
    assert!(orders.send(Order { port: PORT, patience: PATIENCE, answer }).await.is_ok());
    let mut buffer = [0; 2048];
    // The carrier asks for the guest first.
    timeout(PATIENCE, guest_udp.recv_from(&mut buffer)).await.unwrap().unwrap();
    for bytes in [datagram(LAN), vec![], vec![8; 7], vec![8; 9000]] {
        stranger.send_to(&bytes, at).await.unwrap();
    }
    guest_udp.send_to(&datagram(LAN + 1), at).await.unwrap();
    guest_udp.send_to(b"\x08\0\0\0\0\0\x77\0short", at).await.unwrap();
    let answered = async {
        loop {
            let (count, _) = guest_udp.recv_from(&mut buffer).await.unwrap();
            if buffer[8 + 20..8 + 22] == [0, 2] {
                return buffer[..count].to_vec();
            }
        }
    };
    tokio::pin!(answered);
    assert!(timeout(Duration::from_millis(200), &mut answered).await.is_err());
    guest_udp.send_to(&datagram(LAN), at).await.unwrap();
    let answer = timeout(PATIENCE, answered).await.unwrap();
    assert_eq!(&answer[8 + 22..8 + 32], [2, 0, 10, 5, 0, 7, 10, 5, 0, 7]);
}
