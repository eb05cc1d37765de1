//! Roads of a frame, each beside its peer in the same run: guests over the LAN sealed and unsealed, guests of one host; the kernel's VXLAN, its bridge,
//! a user-space WireGuard and plain UDP datagrams; small frames; the way there and back.
//!
//! All take turns between the same two namespaces, round after round, since the host's other work changes under them. Guests poll, so those whose turn
//! it is not are paused. QEMU with tap and VXLAN is not among the peers: this KVM runs no stock kernel, and QEMU not at all.

use std::{
    io::IoSlice,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg, setsockopt, sockopt};

use super::{
    Figure, Peer, Target,
    lan::{guest_stream, kernel_address, kernel_lan, kernel_stream, median},
    wireguard,
};
use crate::{
    netlab::{Machine, NetLab, Vmm, guest, lab::expect, peer::ECHO_PORT, story::ask, vmm::SHORT},
    progress::say,
};

const ROUNDS: usize = 5;
/// What a guest sends in each round.
const GUEST_BYTES: u64 = 1 << 30;
/// How long datagrams are sent.
const TURN: Duration = Duration::from_secs(1);
/// Questions and answers of a measurement of latency, and between two of them.
const ECHOES: usize = 1000;
const ECHO_EVERY: Duration = Duration::from_micros(500);
const UDP_PORT: u16 = 5300;
/// A datagram of the raw limit, as many as one call carries.
const DATAGRAM_BYTES: usize = 1450;
const DATAGRAMS: usize = 44;
/// Ethernet, IPv4 and UDP around it make a frame of 60 bytes, as the guest's small ones are.
const SMALL_BYTES: usize = 18;

/// Two guests and where they run.
struct Pair {
    sender: Vmm,
    receiver: Vmm,
    machines: [usize; 2],
}

/// What the rounds gave.
#[derive(Default)]
struct Rounds {
    raw: Vec<f64>,
    vxlan: Vec<f64>,
    bridge: Vec<f64>,
    wireguard: Vec<f64>,
    plain: Vec<f64>,
    sealed: Vec<f64>,
    udp_within: Vec<f64>,
    near: Vec<f64>,
}

/// The table.
pub fn measure() -> Result<Vec<Figure>> {
    let mut lab = NetLab::start("bench-net", &["a", "b"])?;
    kernel_lan(&lab)?;
    let tunnel = wireguard::start(&lab).map_err(|error| say("bench", format_args!("no user-space WireGuard: {error:#}"))).ok();
    let plain = Pair::start(&lab, 1, [0, 1], false)?;
    let sealed = Pair::start(&lab, 2, [0, 1], true)?;
    let udp_within = Pair::start(&lab, 3, [0, 0], true)?;
    let near = Pair::start(&lab, 4, [0, 0], true)?;
    near.connect(&lab, 4)?;
    let mut rounds = Rounds::default();
    for round in 1..=ROUNDS {
        rounds.raw.push(raw_stream(&lab)?);
        rounds.vxlan.push(kernel_stream(&lab, kernel_address(2))?);
        rounds.bridge.push(kernel_stream(&lab, lab.machines[1].address())?);
        if let Some(tunnel) = &tunnel {
            rounds.wireguard.push(kernel_stream(&lab, tunnel.address(2))?);
        }
        rounds.plain.push(plain.turn(&lab, guest_stream)?);
        rounds.sealed.push(sealed.turn(&lab, guest_stream)?);
        rounds.udp_within.push(udp_within.turn(&lab, guest_stream)?);
        rounds.near.push(near.turn(&lab, guest_stream)?);
        let last = |values: &[f64]| values.last().copied().unwrap_or_default();
        let Rounds { raw, vxlan, bridge, wireguard, plain, sealed, udp_within, near } = &rounds;
        say(
            "bench",
            format_args!(
                "round {round}, Gbit/s: UDP {:.1}; kernel VXLAN {:.1}, bridge {:.1}, WireGuard {:.2}; guests {:.1}, sealed {:.1}; of one host {:.1}, over UDP {:.1}",
                last(raw),
                last(vxlan),
                last(bridge),
                last(wireguard),
                last(plain),
                last(sealed),
                last(near),
                last(udp_within),
            ),
        );
    }
    let latency = latency(&lab, &plain)?;
    [plain, sealed, udp_within, near].into_iter().try_for_each(|pair| pair.end(&lab))?;
    let small = small(&lab)?;
    lab.succeeded();
    Ok(bulk_figures(&rounds).into_iter().chain([small]).chain(latency).collect())
}

impl Pair {
    /// Boots both, waits for their first stream, and leaves them paused.
    fn start(lab: &NetLab, number: u8, machines: [usize; 2], sealed: bool) -> Result<Self> {
        let mut config = guest::config("64M", &format!("vm={number} stats_ms=0 net0=ip=10.7.0.2"))?;
        config.nets = vec![net(lab, number, machines, 1, sealed)];
        let [at, to] = machines.map(|machine| &lab.machines[machine]);
        let receiver = Vmm::run(to, &format!("receiver-{number}"), &config)?;
        receiver.console.wait("ready", SHORT)?;
        let stream = format!("net0=ip=10.7.0.1,peer=10.7.0.2,load=tso,bytes={GUEST_BYTES}");
        config.cmdline = format!("vm=9{number} stats_ms=0 {stream}");
        config.nets = vec![net(lab, number, machines, 0, sealed)];
        let sender = Vmm::run(at, &format!("sender-{number}"), &config)?;
        let pair = Self { sender, receiver, machines };
        if sealed {
            pair.tell_keys(lab, number)?;
        }
        pair.sender.console.wait("net 0 done", SHORT)?;
        pair.pause(lab)?;
        Ok(pair)
    }

    fn tell_keys(&self, lab: &NetLab, number: u8) -> Result<()> {
        let vmms = [&self.sender, &self.receiver];
        let machines = self.machines.map(|machine| &lab.machines[machine]);
        for own in [0, 1] {
            let far = vmms[1 - own].status(machines[1 - own])?;
            let key = far.nets.first().and_then(|net| net.key).context("a port that seals has a key")?.to_string();
            let (endpoint, station) = (endpoint(lab, number, self.machines, 1 - own), mac(number, 1 - own));
            vmms[own].must(machines[own], &["peer-key", &mac(number, own), &endpoint, &key, "--station", &station, "--takes-partial"])?;
        }
        Ok(())
    }

    /// Gives the ports of one host their road.
    fn connect(&self, lab: &NetLab, number: u8) -> Result<()> {
        let (other, place) = (self.receiver.control().display().to_string(), |own| endpoint(lab, number, self.machines, own));
        let machine = &lab.machines[self.machines[0]];
        self.sender.must(machine, &["near", &mac(number, 0), &place(0), &other, &mac(number, 1), &place(1)]).map(drop)
    }

    fn pause(&self, lab: &NetLab) -> Result<()> {
        self.sender.must(&lab.machines[self.machines[0]], &["pause"])?;
        self.receiver.must(&lab.machines[self.machines[1]], &["pause"]).map(drop)
    }

    fn resume(&self, lab: &NetLab) -> Result<()> {
        self.receiver.must(&lab.machines[self.machines[1]], &["resume"])?;
        self.sender.must(&lab.machines[self.machines[0]], &["resume"]).map(drop)
    }

    fn turn(&self, lab: &NetLab, measure: impl FnOnce(&Vmm) -> Result<f64>) -> Result<f64> {
        self.resume(lab)?;
        let measured = measure(&self.sender)?;
        self.pause(lab)?;
        Ok(measured)
    }

    fn end(self, lab: &NetLab) -> Result<()> {
        self.resume(lab)?;
        for vmm in [&self.sender, &self.receiver] {
            let net = ask(vmm, "net 0")?;
            let wrong = [net.number("bad")?, net.number("csum_bad")?];
            expect(wrong == [0, 0], || format!("the stream: {}", net.text))?;
        }
        Ok(())
    }
}

fn mac(number: u8, own: usize) -> String {
    format!("52:54:00:00:{number:02x}:0{}", own + 1)
}

fn endpoint(lab: &NetLab, number: u8, machines: [usize; 2], own: usize) -> String {
    format!("{}:{}", lab.machines[machines[own]].address(), 4790 + 10 * u16::from(number) + own as u16)
}

fn net(lab: &NetLab, number: u8, machines: [usize; 2], own: usize, sealed: bool) -> String {
    let (local, far) = (endpoint(lab, number, machines, own), endpoint(lab, number, machines, 1 - own));
    let seal = if sealed { ",seal=on" } else { "" };
    format!("vni={number},mac={},local={local},peer={}@{far}{seal}", mac(number, own), mac(number, 1 - own))
}

/// Datagrams that one thread sends in runs and another receives, in Gbit/s: what no road over UDP can pass.
fn raw_stream(lab: &NetLab) -> Result<f64> {
    let (to, socket) = receiving(&lab.machines[1], UDP_PORT)?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    let received = counting(&lab.machines[1], socket);
    lab.machines[0]
        .thread(move || -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let (data, start, to) = (vec![0x5a; DATAGRAM_BYTES * DATAGRAMS], Instant::now(), SockaddrIn::from(to));
            while start.elapsed() < TURN {
                let cut = DATAGRAM_BYTES as u16;
                sendmsg(socket.as_raw_fd(), &[IoSlice::new(&data)], &[ControlMessage::UdpGsoSegments(&cut)], MsgFlags::empty(), Some(&to))?;
            }
            Ok(())
        })
        .join()
        .map_err(|_panic| anyhow::anyhow!("the sender of datagrams panicked"))???;
    let (bytes, _, time) = received.join().map_err(|_panic| anyhow::anyhow!("the receiver of datagrams panicked"))???;
    Ok(bytes as f64 * 8.0 / time.as_secs_f64() / 1e9)
}

/// A socket of a machine, and where it is reached.
fn receiving(machine: &Machine, port: u16) -> Result<(SocketAddrV4, UdpSocket)> {
    let at = SocketAddrV4::new(machine.address(), port);
    Ok((
        at,
        machine
            .within(move || UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?
            .with_context(|| format!("listen at {at}"))?,
    ))
}

type Counting = std::thread::JoinHandle<Result<Result<(usize, usize, Duration)>>>;

/// Counts bytes and receive calls from the first until nothing comes any more.
fn counting(machine: &Machine, socket: UdpSocket) -> Counting {
    machine.thread(move || {
        socket.set_read_timeout(Some(SHORT))?;
        let (mut buffer, mut bytes, mut calls) = (vec![0; 65_536], 0, 0);
        let (first, _) = socket.recv_from(&mut buffer)?;
        let (start, mut last) = (Instant::now(), Instant::now());
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        bytes += first;
        while let Ok(count) = socket.recv(&mut buffer) {
            (bytes, calls, last) = (bytes + count, calls + 1, Instant::now());
        }
        Ok((bytes, calls, last - start))
    })
}

/// Frames of 60 bytes a second, as many as the other side has received, beside datagrams of the kernel's over its VXLAN.
fn small(lab: &NetLab) -> Result<Figure> {
    let machines = [0, 1];
    let mut config = guest::config("64M", "vm=5 stats_ms=0 net0=ip=10.7.0.2")?;
    config.nets = vec![net(lab, 5, machines, 1, false)];
    let receiver = Vmm::run(&lab.machines[1], "receiver-5", &config)?;
    receiver.console.wait("ready", SHORT)?;
    config.cmdline = "vm=95 stats_ms=0 net0=ip=10.7.0.1,peer=10.7.0.2,load=small".to_owned();
    config.nets = vec![net(lab, 5, machines, 0, false)];
    let sender = Vmm::run(&lab.machines[0], "sender-5", &config)?;
    sender.console.wait("ready", SHORT)?;
    let (mut guests, mut kernel) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let count = || Ok::<_, anyhow::Error>((ask(&receiver, "net 0")?.number("udp_received")?, Instant::now()));
        let (before, began) = count()?;
        std::thread::sleep(TURN);
        let (after, ended) = count()?;
        guests.push((after - before) as f64 / (ended - began).as_secs_f64());
        for (vmm, machine) in [(&sender, 0), (&receiver, 1)] {
            vmm.must(&lab.machines[machine], &["pause"])?;
        }
        kernel.push(kernel_small(lab)?);
        for (vmm, machine) in [(&receiver, 1), (&sender, 0)] {
            vmm.must(&lab.machines[machine], &["resume"])?;
        }
    }
    Ok(Figure {
        name: "frames of 60 bytes received, one queue".into(),
        unit: "1/s",
        measured: median(guests),
        target: Target::None,
        peers: vec![Peer { name: "kernel's VXLAN, one socket".into(), value: median(kernel) }],
        how: "as many as go, counted where they arrive; the target of 4 x QEMU's tap needs a QEMU with KVM, which is not to be had here"
            .into(),
    })
}

fn kernel_small(lab: &NetLab) -> Result<f64> {
    let (_, socket) = receiving(&lab.machines[1], UDP_PORT + 1)?;
    let received = counting(&lab.machines[1], socket);
    let to = SocketAddr::from((kernel_address(2), UDP_PORT + 1));
    lab.machines[0]
        .thread(move || -> Result<()> {
            let (socket, start) = (UdpSocket::bind("0.0.0.0:0")?, Instant::now());
            socket.connect(to)?;
            while start.elapsed() < TURN {
                // One that is refused is lost, as a full ring's would be.
                socket.send(&[7; SMALL_BYTES]).ok();
            }
            Ok(())
        })
        .join()
        .map_err(|_panic| anyhow::anyhow!("the sender of small datagrams panicked"))???;
    let (_, calls, time) = received.join().map_err(|_panic| anyhow::anyhow!("the receiver of small datagrams panicked"))???;
    Ok(calls as f64 / time.as_secs_f64())
}

/// What a guest's port adds to the way of a datagram over the veth, in microseconds: half of what the way there and back takes longer, from the kernel's VXLAN
/// device to a guest and to a thread at its side.
fn latency(lab: &NetLab, pair: &Pair) -> Result<Vec<Figure>> {
    let machine = &lab.machines[1];
    let socket = machine.within(move || UdpSocket::bind((machine_address(), ECHO_PORT + 1000)))?.context("answer datagrams")?;
    let at = SocketAddr::from((machine.address(), ECHO_PORT + 1000));
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let answering = machine.thread(move || {
        let mut buffer = [0; 64];
        while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..bytes], from).ok();
        }
    });
    let veth = echoes(lab, at)?;
    answering.join().map_err(|_panic| anyhow::anyhow!("the thread that answers panicked"))??;
    // The kernel's own device becomes a station of the guests' LAN, beside the one it has.
    let guest = endpoint(lab, 1, [0, 1], 1);
    let (ip, port) = guest.split_once(':').context("invariant: an endpoint")?;
    let (local, own) = (lab.machines[0].address().to_string(), "52:54:00:00:01:09");
    let link = [
        "link",
        "add",
        "lan1",
        "address",
        own,
        "mtu",
        "1400",
        "type",
        "vxlan",
        "id",
        "1",
        "local",
        &local,
        "dstport",
        "4999",
        "nolearning",
    ];
    lab.machines[0].ip(&link)?;
    lab.machines[0].ip(&["addr", "add", "10.7.0.9/24", "dev", "lan1"])?;
    lab.machines[0].ip(&["link", "set", "lan1", "up"])?;
    lab.machines[0].bridge(&["fdb", "replace", &mac(1, 1), "dev", "lan1", "dst", ip, "port", port, "self"])?;
    lab.machines[0].ip(&["neigh", "replace", "10.7.0.2", "lladdr", &mac(1, 1), "dev", "lan1"])?;
    pair.receiver.must(machine, &["fdb-add", own, &format!("{local}:4999"), "10.7.0.9"])?;
    pair.receiver.must(machine, &["resume"])?;
    let guests = echoes(lab, SocketAddr::from((Ipv4Addr::new(10, 7, 0, 2), ECHO_PORT)))?;
    pair.receiver.must(machine, &["pause"])?;
    let added = |at: f64| (percentile(&guests, at) - percentile(&veth, at)).max(0.0) / 2.0;
    let figure = |name: &str, at: f64, most: f64| Figure {
        name: format!("latency added one way, {name}"),
        unit: "us",
        measured: added(at),
        target: Target::AtMost(most),
        peers: vec![Peer { name: "the veth alone, one way".into(), value: percentile(&veth, at) / 2.0 }],
        how: format!("{ECHOES} datagrams of 64 bytes there and back, one each {} us, a guest that polls", ECHO_EVERY.as_micros()),
    };
    Ok(vec![figure("median", 0.5, 15.0), figure("99 %", 0.99, 60.0)])
}

fn machine_address() -> Ipv4Addr {
    Ipv4Addr::UNSPECIFIED
}

/// Times there and back, in microseconds.
fn echoes(lab: &NetLab, to: SocketAddr) -> Result<Vec<f64>> {
    let asked = lab.machines[0].thread(move || -> Result<Vec<f64>> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let (mut times, mut lost, mut buffer) = (vec![], 0, [0; 64]);
        while times.len() < ECHOES && lost < ECHOES {
            let start = Instant::now();
            socket.send(&[7; 64])?;
            match socket.recv(&mut buffer) {
                Ok(_) => times.push(start.elapsed().as_secs_f64() * 1e6),
                Err(_) => lost += 1,
            }
            std::thread::sleep(ECHO_EVERY);
        }
        expect(times.len() == ECHOES, || format!("{lost} datagrams to {to} were not answered"))?;
        Ok(times)
    });
    asked.join().map_err(|_panic| anyhow::anyhow!("the thread that asks panicked"))??
}

fn percentile(times: &[f64], at: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * at) as usize]
}

fn bulk_figures(rounds: &Rounds) -> Vec<Figure> {
    let ratio = |ours: &[f64], theirs: &[f64]| median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect());
    let peer = |name: &str, values: &[f64]| (!values.is_empty()).then(|| Peer { name: name.into(), value: median(values.to_vec()) });
    let how = format!("median of {ROUNDS} rounds, everything in turn in each; {} MiB from guest to guest, MTU 1400", GUEST_BYTES >> 20);
    let row = |name: &str, ours: &[f64], theirs: &[f64], target: Target| Figure {
        name: name.into(),
        unit: "x",
        measured: ratio(ours, theirs),
        target,
        peers: Vec::new(),
        how: how.clone(),
    };
    let mut figures = vec![
        row("bulk, sealed, of the kernel's VXLAN unsealed", &rounds.sealed, &rounds.vxlan, Target::AtLeast(0.8)),
        row("bulk, unsealed, of the kernel's VXLAN", &rounds.plain, &rounds.vxlan, Target::AtLeast(1.1)),
        row("two guests of one host, of two namespaces over a bridge", &rounds.near, &rounds.bridge, Target::AtLeast(1.5)),
        row("two guests of one host, of the same over UDP, sealed", &rounds.near, &rounds.udp_within, Target::None),
    ];
    if !rounds.wireguard.is_empty() {
        figures.push(row("bulk, sealed, of a user-space WireGuard", &rounds.sealed, &rounds.wireguard, Target::AtLeast(5.0)));
    }
    let peers = [
        peer("kernel's VXLAN", &rounds.vxlan),
        peer("bridge", &rounds.bridge),
        peer("boringtun", &rounds.wireguard),
        peer("plain UDP datagrams", &rounds.raw),
    ];
    for (name, ours) in [("unsealed", &rounds.plain), ("sealed", &rounds.sealed), ("of one host", &rounds.near)] {
        figures.push(Figure {
            name: format!("bulk from guest to guest, {name}"),
            unit: "Gbit/s",
            measured: median(ours.clone()),
            target: Target::None,
            peers: peers.iter().flatten().cloned().collect(),
            how: how.clone(),
        });
    }
    figures
}
