//! What a VMM holds beside guest memory once its VM has arrived, less what it held where the VM began: a move leaves nothing behind. And what a move of a disk
//! of 1 TiB holds while it lasts: tables with a bit for each of its units, whatever is in it.

use anyhow::{Context as _, Result, ensure};

use super::{Figure, Peer, Target, disks, memory};
use crate::{
    command::Program,
    netlab::{
        NetLab, Vmm, VmmConfig, guest,
        vmm::{LONG, SHORT},
    },
};

/// Where there is room for that twice.
const MEMORY_MIB: u64 = 4096;
/// Where there is not: what a move keeps is in proportion to its pages.
const SMALL_MEMORY_MIB: u64 = 1024;
/// Units of 4 KiB of 1 TiB are 32 MiB of bits.
const LARGE_DISK: &str = "1T";
const TABLES_MIB_MAX: f64 = 256.0;
const MORE_MIB_MAX: f64 = 1.0;
const PORT: u16 = 7000;

/// Both.
pub fn measure() -> Result<Vec<Figure>> {
    Ok(vec![memory_left()?, tables()?])
}

/// A VM whose memory is all different moves once.
fn memory_left() -> Result<Figure> {
    let memory_mib = if available_mib()? > 3 * MEMORY_MIB { MEMORY_MIB } else { SMALL_MEMORY_MIB };
    let mut lab = NetLab::start("bench-arrived", &["a", "b"])?;
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let mut config = guest::config(&format!("{memory_mib}M"), "vm=1 net0=ip=10.7.0.1 stats_ms=0 fill=text:3:50%,random:5")?;
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
    Ok(Figure {
        name: format!("resident beside guest memory after a VM of {memory_mib} MiB arrived, less before it left"),
        unit: "MiB",
        measured: after - before,
        target: Target::AtMost(MORE_MIB_MAX),
        peers: vec![],
        how: format!(
            "as `memory` measures; {before:.2} MiB at the source before the move, {after:.2} MiB at the target after it; all of its memory filled, half prose, half incompressible"
        ),
    })
}

/// A small VM with a large, nearly empty disk moves once.
fn tables() -> Result<Figure> {
    let mut lab = NetLab::start("bench-large-disk", &["a", "b"])?;
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let [from, to] = ["from", "to"].map(|name| lab.evidence().join(format!("{name}.qcow2")).display().to_string());
    for disk in [&from, &to] {
        Program::new("qemu-img").args(["create", "-q", "-f", "qcow2", disk, LARGE_DISK]).run()?;
    }
    let mut config = guest::config("64M", "vm=1 blk0=load,size=16M stats_ms=0")?;
    config.disks = vec![from];
    let source = Vmm::run(a, "source", &config)?;
    source.console.wait("hb 5 ", LONG)?;
    let before = peak_mib(source.process())?;
    let target = Vmm::receive(b, "target", PORT, &VmmConfig { disks: vec![to], ..VmmConfig::default() })?;
    let waiting = peak_mib(target.process())?;
    let began = std::time::Instant::now();
    source.migrate(a, b, PORT, &[])?.check()?;
    let took = began.elapsed().as_secs_f64();
    target.console.wait("hb ", SHORT).context("the VM at the target")?;
    let (at_source, at_target) = (peak_mib(source.process())? - before, peak_mib(target.process())? - waiting);
    lab.succeeded();
    Ok(Figure {
        name: format!("memory of a move of a disk of {LARGE_DISK}iB, at its most, at either side"),
        unit: "MiB",
        measured: at_source.max(at_target),
        target: Target::AtMost(TABLES_MIB_MAX),
        peers: vec![Peer { name: "at the source".into(), value: at_source }, Peer { name: "at the target".into(), value: at_target }],
        how: format!(
            "growth of the greatest resident memory of each VMM (VmHWM, guest memory of 64 MiB included) by a move that took {took:.1} s; 16 MiB of the disk are written"
        ),
    })
}

/// Of the sealed process, which is the larger one.
fn peak_mib(process: u32) -> Result<f64> {
    let peaks = disks::family(process)?.into_iter().filter_map(disks::peak_of);
    Ok(peaks.max().context("the VMM has ended")? as f64 / 1048576.0)
}

fn available_mib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(kib.context("/proc/meminfo has no MemAvailable")? / 1024)
}
