//! What a VMM holds beside guest memory once its VM has arrived, less what it held where the VM began: a move leaves nothing behind.

use anyhow::{Context as _, Result, ensure};

use super::{Figure, Target, memory};
use crate::netlab::{
    NetLab, Vmm, VmmConfig, guest,
    vmm::{LONG, SHORT},
};

/// Of a VM of 4 GiB the same is expected: what a move keeps is in proportion to its pages, and a small machine has room for this twice.
const MEMORY_MIB: u64 = 1024;
const MORE_MIB_MAX: f64 = 1.0;
const PORT: u16 = 7000;

/// A VM whose memory is all different moves once.
pub fn measure() -> Result<Vec<Figure>> {
    let mut lab = NetLab::start("bench-arrived", &["a", "b"])?;
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let mut config = guest::config(&format!("{MEMORY_MIB}M"), "vm=1 net0=ip=10.7.0.1 stats_ms=0 fill=text:3:50%,random:5")?;
    let at = |address: std::net::Ipv4Addr| vec![format!("vni=7,mac=52:54:00:00:07:01,local={address}:4791")];
    config.nets = at(a.address());
    let mut source = Vmm::run(a, "source", &config)?;
    source.console.wait("ready", LONG)?;
    std::thread::sleep(memory::SETTLE);
    let before = memory::held(source.process())?;
    let target = Vmm::receive(b, "target", PORT, &VmmConfig { nets: at(b.address()), ..VmmConfig::default() })?;
    source.migrate(a, b, PORT, &[])?.check()?;
    target.console.wait("hb ", SHORT).context("the VM at the target")?;
    source.wait(SHORT).context("the source, after it has forwarded late frames")?;
    std::thread::sleep(memory::SETTLE);
    let after = memory::held(target.process())?;
    ensure!(after.guest_kib * 10 > before.guest_kib * 9, "{} KiB of guest memory arrived of {} KiB", after.guest_kib, before.guest_kib);
    let [before, after] = [before, after].map(memory::mib);
    lab.succeeded();
    Ok(vec![Figure {
        name: format!("resident beside guest memory after a VM of {MEMORY_MIB} MiB arrived, less before it left"),
        unit: "MiB",
        measured: after - before,
        target: Target::AtMost(MORE_MIB_MAX),
        peers: vec![],
        how: format!(
            "as `memory` measures; {before:.2} MiB at the source before the move, {after:.2} MiB at the target after it; all of its memory filled, half prose, half incompressible"
        ),
    }])
}
