//! Bulk from guest to guest over the LAN beside one TCP stream through the kernel's own VXLAN devices, between the same two namespaces.
//!
//! Both are measured in turn and compared pair by pair, since the host's other work changes under them. The guests poll, so they are paused
//! while the kernel has its turn. A guest writes, checks and acknowledges every byte itself; the kernel's peer only counts them.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rebec_vmm_api::Peer as Station;

use super::{Figure, Peer, Target};
use crate::{
    netlab::{
        NetLab, Vmm, guest,
        lab::expect,
        peer::{kernel_fdb, kernel_vxlan},
        story::ask,
        vmm::SHORT,
    },
    progress::say,
};

/// At least half of the kernel's figure.
const TARGET: f64 = 0.5;
const PAIRS: usize = 5;
/// How long the kernel sends in each pair.
const TURN: Duration = Duration::from_millis(1500);
/// What the guest sends in each pair.
const GUEST_BYTES: u64 = 1 << 30;
const KERNEL_PORT: u16 = 4900;
const STREAM_PORT: u16 = 5201;
const CHUNK_BYTES: usize = 128 << 10;

/// The ratio, with both rates.
pub fn measure() -> Result<Vec<Figure>> {
    let mut lab = NetLab::start("bench-lan", &["a", "b"])?;
    kernel_lan(&lab)?;
    let (sender, receiver) = guests(&lab)?;
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let mut pairs = Vec::new();
    for number in 0..PAIRS {
        sender.must(a, &["pause"])?;
        receiver.must(b, &["pause"])?;
        let kernel = kernel_stream(&lab, kernel_address(2))?;
        receiver.must(b, &["resume"])?;
        sender.must(a, &["resume"])?;
        let guests = guest_stream(&sender)?;
        say("bench", format_args!("bulk, pair {}: kernel {kernel:.2}, guests {guests:.2} Gbit/s", number + 1));
        pairs.push((kernel, guests));
    }
    for vmm in [&sender, &receiver] {
        let net = ask(vmm, "net 0")?;
        say("bench", &net.text);
        let wrong = [net.number("bad")?, net.number("csum_bad")?];
        expect(wrong == [0, 0], || format!("the stream: {}", net.text))?;
    }
    lab.succeeded();
    let ratio = median(pairs.iter().map(|(kernel, guests)| guests / kernel).collect());
    let guests = median(pairs.iter().map(|pair| pair.1).collect());
    let kernel = median(pairs.iter().map(|pair| pair.0).collect());
    Ok(vec![
        Figure {
            name: "bulk over the LAN, of the kernel's VXLAN".into(),
            unit: "x",
            measured: ratio,
            target: Target::AtLeast(TARGET),
            peers: Vec::new(),
            how: format!("median of {PAIRS} pairs taken in turn, one TCP stream each, MTU 1400"),
        },
        Figure {
            name: "bulk over the LAN".into(),
            unit: "Gbit/s",
            measured: guests,
            target: Target::None,
            peers: vec![Peer { name: "kernel's VXLAN, TCP".into(), value: kernel }],
            how: format!("{} MiB from bench guest to bench guest, each byte checked by the receiver; medians", GUEST_BYTES >> 20),
        },
    ])
}

/// Gives both machines a kernel `vxlan` device that knows the other.
pub(super) fn kernel_lan(lab: &NetLab) -> Result<()> {
    for (number, machine) in (1_u8..).zip(&lab.machines) {
        let mac = |number: u8| format!("52:54:00:00:08:0{number}").parse();
        kernel_vxlan(machine, 8, KERNEL_PORT, mac(number).context("invariant: a MAC")?, kernel_address(number))?;
        let other = 3 - number;
        let endpoint = SocketAddrV4::new(lab.machines[usize::from(other) - 1].address(), KERNEL_PORT);
        kernel_fdb(machine, &Station { mac: mac(other).context("invariant: a MAC")?, endpoint, ip: None, name: None })?;
    }
    Ok(())
}

pub(super) fn kernel_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 8, 0, number)
}

/// Boots the sender and the receiver and waits for their first stream.
fn guests(lab: &NetLab) -> Result<(Vmm, Vmm)> {
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let port = |number: u8| format!("{}:{}", lab.machines[usize::from(number) - 1].address(), 4790 + u16::from(number));
    let net =
        |own: u8, peer: u8| vec![format!("vni=7,mac=52:54:00:00:07:0{own},local={},peer=52:54:00:00:07:0{peer}@{}", port(own), port(peer))];
    let mut config = guest::config("64M", "vm=2 stats_ms=0 net0=ip=10.7.0.2")?;
    config.nets = net(2, 1);
    let receiver = Vmm::run(b, "receiver", &config)?;
    receiver.console.wait("ready", SHORT)?;
    config.cmdline = format!("vm=1 stats_ms=0 net0=ip=10.7.0.1,peer=10.7.0.2,load=tso,bytes={GUEST_BYTES}");
    config.nets = net(1, 2);
    let sender = Vmm::run(a, "sender", &config)?;
    sender.console.wait("net 0 done", SHORT)?;
    Ok((sender, receiver))
}

/// One stream of the guests, in Gbit/s.
pub(super) fn guest_stream(sender: &Vmm) -> Result<f64> {
    let (mark, start) = (sender.console.mark(), Instant::now());
    sender.console.send(b"g")?;
    let done = sender.console.wait_after(mark, "net 0 done", SHORT)?;
    // By the host's clock, as the kernel's: the guest sees the command up to 10 ms later.
    Ok(done.number("bytes")? as f64 * 8.0 / done.at.saturating_duration_since(start).as_secs_f64() / 1e9)
}

/// One stream of the kernel's between two machines, to an address of the second, in Gbit/s.
pub(super) fn kernel_stream(lab: &NetLab, to: Ipv4Addr) -> Result<f64> {
    let [a, b, ..] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let to = SocketAddr::from((to, STREAM_PORT));
    let listener = b.within(move || TcpListener::bind(to))?.with_context(|| format!("listen at {to}"))?;
    let receiving = b.thread(move || -> std::io::Result<f64> {
        let (mut socket, _) = listener.accept()?;
        let (mut buffer, mut bytes) = (vec![0; CHUNK_BYTES], 0);
        socket.set_read_timeout(Some(SHORT))?;
        let start = Instant::now();
        loop {
            match socket.read(&mut buffer)? {
                0 => return Ok(bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9),
                count => bytes += count,
            }
        }
    });
    let sending = a.thread(move || -> std::io::Result<()> {
        let mut socket = TcpStream::connect_timeout(&to, SHORT)?;
        socket.set_write_timeout(Some(SHORT))?;
        let (data, start) = (vec![0x5a; CHUNK_BYTES], Instant::now());
        while start.elapsed() < TURN {
            socket.write_all(&data)?;
        }
        Ok(())
    });
    let ended = |what: &'static str| move |_| anyhow::anyhow!("the kernel's {what} panicked");
    sending.join().map_err(ended("sender"))??.context("send through the kernel")?;
    receiving.join().map_err(ended("receiver"))??.context("receive through the kernel")
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
