//! Measures a LAN without guests: large TCP frames from one `LanPort` to another, each on its own thread in its own network namespace.
//!
//! Arguments: seconds, then for each side a network namespace (`-` for this one) and an address of it, then `seal` if frames are to be sealed, `seal-sums` if their checksums are to be made all the same, or `near` for
//! ports of one host with a road between them that is no network. A receiver acknowledges every few
//! frames and a sender keeps 1 MiB under way, as a TCP connection would; nothing is lost on the way, and lost frames would end the run.

#[expect(dead_code, reason = "the program uses all of it")]
#[path = "../src/lan/mod.rs"]
mod lan;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Barrier, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rebec_devices::net::{FramePort, ReceivedFrame};
use rebec_offload::{Accepts, Checksum, Offload, SegmentKind, Segmentation};
use rebec_overlay::{FarPort, checksum::Sum};
use rebec_vmm_api::{MacAddr, NetConfig, Peer, PortKey};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt},
};

/// How frames travel, if not as they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Sealed,
    /// With their checksums.
    SealedWithSums,
    /// By the road of one host.
    Near,
}

const SEGMENT_BYTES: usize = 1348;
const PAYLOAD_BYTES: usize = 48 * SEGMENT_BYTES;
const WINDOW_BYTES: usize = 1 << 20;
const ACKNOWLEDGE_EVERY: usize = 2 * PAYLOAD_BYTES;
const HEADER_BYTES: usize = 14 + 20 + 32;
const MACS: [MacAddr; 2] = [MacAddr([0x52, 0x54, 0, 0, 9, 1]), MacAddr([0x52, 0x54, 0, 0, 9, 2])];
const PORT: u16 = 4709;

fn main() -> Result<()> {
    env_logger::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (ends_of, how) = match &arguments[..] {
        [ends @ .., word] if word == "seal" => (ends, Some(How::Sealed)),
        [ends @ .., word] if word == "seal-sums" => (ends, Some(How::SealedWithSums)),
        [ends @ .., word] if word == "near" => (ends, Some(How::Near)),
        ends => (ends, None),
    };
    let [seconds, from_space, from, to_space, to] = ends_of else {
        bail!("arguments: SECONDS NAMESPACE ADDRESS NAMESPACE ADDRESS [seal|seal-sums|near]")
    };
    let time = Duration::from_secs_f64(seconds.parse().context("seconds")?);
    let ends = [SocketAddrV4::new(from.parse().context("address")?, PORT), SocketAddrV4::new(to.parse().context("address")?, PORT + 1)];
    let ready = Arc::new(Barrier::new(2));
    let (road, other_road) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for end in [&road, &other_road] {
        sockopt::set_socket_send_buffer_size(end, 1 << 20)?;
    }
    let ((tell_sender, of_receiver), (tell_receiver, of_sender)) = (mpsc::channel(), mpsc::channel());
    let receiver = {
        let (space, ready) = (to_space.clone(), ready.clone());
        thread::spawn(move || -> Result<f64> {
            let port = attach(&space, ends, 1, how, other_road, &tell_sender, &of_sender)?;
            ready.wait();
            receive(port, time)
        })
    };
    let sender = attach(from_space, ends, 0, how, road, &tell_receiver, &of_receiver)?;
    ready.wait();
    let sent = send(sender, time)?;
    let received = receiver.join().map_err(|_panic| anyhow::anyhow!("the receiver panicked"))??;
    println!("{{\"sent_gbit_s\":{sent:.2},\"received_gbit_s\":{received:.2}}}");
    Ok(())
}

fn attach(
    space: &str,
    ends: [SocketAddrV4; 2],
    own: usize,
    how: Option<How>,
    road: OwnedFd,
    tell: &mpsc::Sender<PortKey>,
    other: &mpsc::Receiver<PortKey>,
) -> Result<lan::LanPort> {
    if space != "-" {
        let file = std::fs::File::open(format!("/run/netns/{space}")).with_context(|| format!("network namespace {space}"))?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
    }
    let peers = vec![Peer { mac: MACS[1 - own], endpoint: ends[1 - own], ip: None, name: None }];
    let config = NetConfig {
        vni: 7,
        mac: MACS[own],
        local: ends[own],
        socket: None,
        lease: None,
        peers,
        sealed: how.is_some(),
        mtu: None,
        trunk: false,
        domain: None,
        name: None,
        prefix6: None,
    };
    let lan = lan::Lan::bind(&config, None)?;
    if let Some(key) = lan.key() {
        tell.send(key)?;
        lan.peer_key_add(
            ends[1 - own],
            other.recv()?,
            FarPort { station: Some(MACS[1 - own]), trunk: false, takes_partial: how != Some(How::SealedWithSums) },
        )?;
    }
    if how == Some(How::Near) {
        lan.road_add(ends[1 - own], road)?;
    }
    let mut port = lan.port()?;
    port.set_accepts(Accepts { checksum: true, tcp4: true, tcp6: true, ecn: true });
    Ok(port)
}

fn send(mut port: lan::LanPort, time: Duration) -> Result<f64> {
    let mut frame = tcp_frame(0, 1, PAYLOAD_BYTES);
    let start = Instant::now();
    let (mut sent, mut acknowledged) = (0_usize, 0_usize);
    while start.elapsed() < time {
        while sent - acknowledged + PAYLOAD_BYTES <= WINDOW_BYTES {
            // As Linux does: identification and sequence go on where the last frame's segments ended.
            frame[18..20].copy_from_slice(&((sent / SEGMENT_BYTES) as u16).to_be_bytes());
            frame[38..42].copy_from_slice(&(sent as u32).to_be_bytes());
            let segmentation = Segmentation {
                kind: SegmentKind::Tcp4,
                ecn: false,
                header_bytes: HEADER_BYTES as u16,
                segment_bytes: SEGMENT_BYTES as u16,
            };
            let offload = Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, segmentation: Some(segmentation) };
            port.send(&offload, &frame)?;
            sent += PAYLOAD_BYTES;
        }
        port.flush()?;
        wait(&port, time.saturating_sub(start.elapsed()) + Duration::from_millis(1))?;
        while let Some(received) = port.receive()? {
            let sequence = u32::from_be_bytes(head(&received)[42..46].try_into()?);
            acknowledged += sequence.wrapping_sub(acknowledged as u32) as usize;
        }
    }
    Ok(gbit_s(acknowledged, start.elapsed()))
}

fn receive(mut port: lan::LanPort, time: Duration) -> Result<f64> {
    let mut frame = tcp_frame(1, 0, 1);
    let start = Instant::now();
    let (mut got, mut acknowledged, mut frames) = (0_usize, 0_usize, 0_usize);
    while start.elapsed() < time {
        wait(&port, time.saturating_sub(start.elapsed()) + Duration::from_millis(1))?;
        while let Some(received) = port.receive()? {
            let sequence = u32::from_be_bytes(head(&received)[38..42].try_into()?);
            if sequence != got as u32 {
                bail!("a frame was lost: sequence {sequence}, expected {}", got as u32);
            }
            got += received.frame.len() - HEADER_BYTES;
            frames += 1;
            if got - acknowledged >= ACKNOWLEDGE_EVERY {
                frame[42..46].copy_from_slice(&(got as u32).to_be_bytes());
                let offload = Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, segmentation: None };
                port.send(&offload, &frame)?;
                port.flush()?;
                acknowledged = got;
            }
        }
    }
    eprintln!("{} bytes a received frame", got / frames.max(1));
    Ok(gbit_s(got, start.elapsed()))
}

/// The headers of a frame always lie together.
fn head<'a>(received: &ReceivedFrame<'a>) -> &'a [u8] {
    received.frame.iter().find(|piece| !piece.is_empty()).unwrap_or_default()
}

fn wait(port: &lan::LanPort, longest: Duration) -> Result<()> {
    let timeout = Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: longest.subsec_nanos().into() };
    poll(&mut [PollFd::from_borrowed_fd(port.descriptor().as_fd(), PollFlags::IN)], Some(&timeout))?;
    Ok(())
}

fn gbit_s(bytes: usize, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_secs_f64() / 1e9
}

/// A TCP frame with a timestamp option and a partial checksum, as Linux sends it.
fn tcp_frame(from: usize, to: usize, payload_bytes: usize) -> Vec<u8> {
    let addresses = [from, to].map(|end| Ipv4Addr::new(10, 0, 0, 1 + end as u8).octets());
    let mut frame = [&MACS[to].0[..], &MACS[from].0, &[8, 0, 0x45, 0]].concat();
    frame.extend(((52 + payload_bytes) as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(addresses.concat());
    let sum = Sum::default().bytes(&frame[14..]).finish();
    frame[24..26].copy_from_slice(&sum);
    let ports = [0x80 + from as u8, 1, 0x80 + to as u8, 1];
    frame.extend([&ports[..], &[0; 8], &[0x80, 0x10, 1, 2, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0]].concat());
    let sum = Sum::default().bytes(&addresses.concat()).word(6).word((32 + payload_bytes) as u16).partial();
    frame[50..52].copy_from_slice(&sum);
    frame.extend((0..payload_bytes).map(|at| at as u8));
    frame
}
