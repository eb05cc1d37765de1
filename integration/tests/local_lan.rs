//! The LAN between namespaces on the local KVM: guest to guest, and guest to a Linux kernel's vxlan device.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::netlab::{
    NetLab, Vmm, guest,
    peer::{self, STREAM_PORT},
    story::ask,
    vmm::{LONG, SHORT},
};
use rebec_vmm_api::Peer;

const STREAM_BYTES: usize = 64 << 20;

#[test]
fn a_stream_between_two_guests_arrives_whole() -> Result<()> {
    let mut lab = NetLab::start("local-lan", &["a", "b"])?;
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
    lab.succeeded();
    Ok(())
}

#[test]
fn a_kernel_vxlan_device_is_a_station_like_any() -> Result<()> {
    let mut lab = NetLab::start("local-lan-kernel", &["a", "b"])?;
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let (guest_ip, kernel_ip) = (Ipv4Addr::new(10, 7, 0, 1), Ipv4Addr::new(10, 7, 0, 9));
    let (guest_mac, kernel_mac) = ("52:54:00:00:07:01".parse()?, "52:54:00:00:07:09".parse()?);
    peer::kernel_vxlan(b, 7, 4789, kernel_mac, kernel_ip)?;
    peer::kernel_fdb(b, &Peer { mac: guest_mac, endpoint: format!("{}:4790", a.address()).parse()? })?;
    let listener = b.within(move || TcpListener::bind((kernel_ip, STREAM_PORT)))??;
    let socket = b.within(move || UdpSocket::bind((kernel_ip, 0)))??;
    let from_guest = b.thread(move || peer::receive_stream(&listener));

    let load = format!("vm=1 stats_ms=0 net0=ip={guest_ip},peer={kernel_ip},load=tso+ping,bytes={STREAM_BYTES}");
    let mut config = guest::config("64M", &load)?;
    config.nets = vec![format!("vni=7,mac={guest_mac},local={}:4790,peer={kernel_mac}@{}:4789", a.address(), b.address())];
    let vm = Vmm::run(a, "vm", &config)?;
    vm.console.wait("ready", SHORT)?;

    // From guest to kernel, over the kernel's TCP.
    vm.console.wait("net 0 done", LONG)?;
    let received = from_guest.join().ok().context("the receiver panicked")???;
    ensure!(received == STREAM_BYTES, "{received} bytes");
    // Datagrams of the full MTU, which may not be fragmented, and of one byte.
    for bytes in [1400 - 28, 1, 512] {
        let socket = socket.try_clone()?;
        b.within(move || peer::echo(&socket, guest_ip, bytes))??;
    }
    // From kernel to guest.
    b.within(move || peer::send_stream(guest_ip, STREAM_BYTES))??;
    let end = vm.console.wait("net 0 end", SHORT)?;
    ensure!(end.number("bytes")? == STREAM_BYTES as u64 && end.number("bad")? == 0, "{}", end.text);
    // The kernel answers the guest's pings too.
    std::thread::sleep(Duration::from_millis(100));
    let net = ask(&vm, "net 0")?;
    ensure!(net.number("ping_received")? > 0 && net.number("csum_bad")? == 0, "{}", net.text);
    lab.succeeded();
    Ok(())
}
