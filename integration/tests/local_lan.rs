//! The LAN between namespaces on the local KVM: guest to guest, guest to a Linux kernel's vxlan device, and through a guest that bridges two LANs.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::netlab::{
    Machine, NetLab, Vmm,
    agents::{Agents, Seat, eventually, same},
    guest,
    peer::{self, STREAM_PORT},
    story::ask,
    vmm::{LONG, SHORT},
};
use rebec_vmm_api::Peer;

const STREAM_BYTES: usize = 64 << 20;
const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const KERNEL_IP: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 9);

#[test]
fn a_stream_between_two_guests_arrives_whole() -> Result<()> {
    let mut lab = NetLab::start("local-lan", &["a", "b"])?;
    lab.capture()?;
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let (one, two) = ("52:54:00:00:07:01", "52:54:00:00:07:02");
    let mut sink = guest::config("64M", "vm=1 stats_ms=0 net0=ip=10.7.0.1")?;
    sink.nets = vec![format!("vni=7,mac={one},local={}:4789,peer={two}@{}:4789", a.address(), b.address())];
    let sink = Vmm::run(a, "sink", &sink)?;
    sink.console.wait("ready", SHORT)?;
    // No peermac: the question goes to all.
    let mut sender = guest::config("64M", &format!("vm=2 stats_ms=0 net0=ip=10.7.0.2,peer=10.7.0.1,load=tso+ping,bytes={STREAM_BYTES}"))?;
    sender.nets = vec![format!("vni=7,mac={two},local={}:4789,peer={one}@{}:4789", b.address(), a.address())];
    let sender = Vmm::run(b, "sender", &sender)?;
    sender.console.wait("net 0 done", LONG)?;
    let end = sink.console.wait("net 0 end", SHORT)?;
    ensure!(end.number("bytes")? == STREAM_BYTES as u64 && end.number("bad")? == 0, "{}", end.text);
    let net = ask(&sender, "net 0")?;
    ensure!(net.number("ping_received")? > 0, "{}", net.text);
    // Both ends have counted it.
    let talk = |vm: &Vmm, machine: &Machine, with: &str, direction: &str| -> Result<u64> {
        let talk: serde_json::Value = serde_json::from_str(&vm.must(machine, &["talk", "--json"])?)?;
        let mut rows = talk[0]["stations"].as_array().into_iter().flatten();
        rows.find(|row| row["mac"] == with).and_then(|row| row[direction].as_u64()).with_context(|| format!("no row of {with}: {talk}"))
    };
    let (sent, received) = (talk(&sender, b, one, "tx_bytes")?, talk(&sink, a, two, "rx_bytes")?);
    ensure!(sent >= STREAM_BYTES as u64 && received >= STREAM_BYTES as u64, "{sent} sent, {received} received");
    lab.succeeded();
    Ok(())
}

/// Both directions between a guest and the kernel's TCP, then datagrams up to the full MTU, which may not be fragmented.
fn exchange(kernel: &Machine, listener: TcpListener, vm: &Vmm, mark: usize) -> Result<()> {
    let received = kernel.thread(move || peer::receive_stream(&listener));
    vm.console.wait_after(mark, "net 0 done", LONG)?;
    let received = received.join().ok().context("the receiver panicked")???;
    ensure!(received == STREAM_BYTES, "{received} bytes");
    for bytes in [1400 - 28, 1, 512] {
        kernel.within(move || peer::echo(&UdpSocket::bind((KERNEL_IP, 0))?, GUEST_IP, bytes))??;
    }
    let mark = vm.console.mark();
    kernel.within(move || peer::send_stream(GUEST_IP, STREAM_BYTES))??;
    let end = vm.console.wait_after(mark, "net 0 end", SHORT)?;
    ensure!(end.number("bytes")? == STREAM_BYTES as u64 && end.number("bad")? == 0, "{}", end.text);
    Ok(())
}

#[test]
fn a_kernel_vxlan_device_is_a_station_like_any_before_and_after_a_move() -> Result<()> {
    let mut lab = NetLab::start("local-lan-kernel", &["a", "b", "c"])?;
    lab.capture()?;
    let [a, b, kernel] = &lab.machines[..] else { unreachable!("three machines were asked for") };
    let (guest_mac, kernel_mac) = ("52:54:00:00:07:01".parse()?, "52:54:00:00:07:09".parse()?);
    let place = |machine: &Machine| -> Result<Peer> {
        Ok(Peer { mac: guest_mac, endpoint: format!("{}:4790", machine.address()).parse()?, ip: None, name: None })
    };
    let port =
        |machine: &Machine| format!("vni=7,mac={guest_mac},local={}:4790,peer={kernel_mac}@{}:4789", machine.address(), kernel.address());
    peer::kernel_vxlan(kernel, 7, 4789, kernel_mac, KERNEL_IP)?;
    peer::kernel_fdb(kernel, &place(a)?)?;
    let listener = kernel.within(|| TcpListener::bind((KERNEL_IP, STREAM_PORT)))??;

    let load = format!("vm=1 stats_ms=0 net0=ip={GUEST_IP},peer={KERNEL_IP},load=tso+ping,bytes={STREAM_BYTES}");
    let mut config = guest::config("64M", &load)?;
    config.nets = vec![port(a)];
    let mut vm = Vmm::run(a, "vm", &config)?;
    vm.console.wait("ready", SHORT)?;
    exchange(kernel, listener.try_clone()?, &vm, 0)?;

    config.nets = vec![port(b)];
    let target = Vmm::receive(b, "vm", 7001, &config)?;
    vm.migrate(a, b, 7001, &[])?.check()?;
    vm = target;
    // What a control plane does. The kernel was told `nolearning`, so the guest's own announcement does not move the entry.
    peer::kernel_fdb(kernel, &place(b)?)?;
    vm.console.send(b"g")?;
    exchange(kernel, listener, &vm, 0)?;

    let net = ask(&vm, "net 0")?;
    ensure!(net.number("ping_received")? > 0 && net.number("csum_bad")? == 0 && net.number("accepted")? == 2, "{}", net.text);
    vm.console.send(b"c")?;
    ensure!(vm.console.wait("check", SHORT)?.text.contains(" ok "));
    lab.succeeded();
    Ok(())
}

/// A VM on one LAN and one on another, of a pool with sealed LANs, hear each other through a VM that has a trunk on both: it speaks for stations that no
/// other port has. Without the word `trunk` it may not.
#[test]
fn a_guest_that_bridges_two_lans_speaks_for_those_behind_it() -> Result<()> {
    const FAR_IP: &str = "10.7.0.136";
    let mut agents = Agents::start("local-lan-bridge", &["a1", "a2"])?;
    agents.found(&["alpha", "alpha"])?;
    agents.furnish()?;
    let a1 = agents.host("a1");
    a1.must(&["lan", "create", "behind", "--range", "10.7.0.128/25"])?;
    let far = agents.run("far", "a1", "16M", &["--lan", "behind"], &format!("vm=1 net0=ip={FAR_IP}"))?;
    same("its address", &far["nics"][0]["address"], FAR_IP)?;
    let load = format!("vm=2 net0=ip=10.7.0.8,peer={FAR_IP},load=tso+ping,mbit=50");
    agents.run("near", "a2", "16M", &["--lan", "office"], &load)?;
    let (near, far) = (Seat::take(agents.host("a2"), "near")?, Seat::take(a1, "far")?);
    let heard = || -> Result<[u64; 2]> { Ok([near.net()?.number("ping_received")?, far.net()?.number("received")?]) };
    let handed_on = |bridge: &Seat| bridge.ask(b"s", "bridge ")?.number("right");

    agents.run("plain", "a1", "16M", &["--lan", "office", "--lan", "behind"], "vm=3 bridge=1")?;
    let plain = Seat::take(a1, "plain")?;
    eventually("it hands on what near asks of all", SHORT, || Ok(handed_on(&plain)? >= 3))?;
    ensure!(heard()? == [0, 0], "a guest that is no trunk speaks for others");
    drop(plain);
    a1.must(&["vm", "stop", "plain", "--timeout", "0"])?;

    agents.run("bridge", "a1", "16M", &["--lan", "office,trunk", "--lan", "behind,trunk"], "vm=4 bridge=1")?;
    eventually("near and far hear each other, megabytes of it", LONG, || {
        let [answers, bytes] = heard()?;
        Ok(answers >= 20 && bytes >= 4 << 20)
    })?;
    let net = far.net()?;
    let wrong = [net.number("bad")?, net.number("csum_bad")?];
    ensure!(wrong == [0, 0], "the stream: {}", net.text);
    drop((near, far));
    agents.succeeded();
    Ok(())
}
