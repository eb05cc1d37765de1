//! A VM whose disk is a new layer on a large base moves to a machine that has the base too: with the base's digests kept at both sides, and without.

use std::{fs, io::Read, path::Path, process::Command};

use anyhow::{Context as _, Result};
use rebec_vmm_api::MoveReport;

use super::{Figure, Peer, Target};
use crate::{
    command::Program,
    netlab::{
        NetLab, Vmm, VmmConfig, guest,
        lab::expect,
        vmm::{LONG, program},
    },
};

const LINK_MBIT: u32 = 1000;
const BASE_BYTES: u64 = 1 << 30;
const PORT: u16 = 7000;

/// Both moves.
pub fn measure() -> Result<Vec<Figure>> {
    let mut lab = NetLab::start("bench-base", &["a", "b"])?;
    lab.shape(Some(LINK_MBIT))?;
    let base = lab.evidence().join("base.raw");
    let mut noise = fs::File::open("/dev/urandom").context("open /dev/urandom")?.take(BASE_BYTES);
    std::io::copy(&mut noise, &mut fs::File::create(&base)?).context("fill the base")?;
    let digests = base.with_extension("digests");
    let taken = Command::new(program()?).arg("digests").arg(&base).stdout(fs::File::create(&digests)?).status()?;
    expect(taken.success(), || format!("rebec-vmm digests ended with {taken}"))?;

    let whole = arrive(&lab, 1, &base, None)?;
    let kept = arrive(&lab, 2, &base, Some(&digests))?;
    let row = |name: &str, unit, value: fn(&MoveReport) -> f64| Figure {
        name: format!("a VM on a base of 1 GiB: {name}"),
        unit,
        measured: value(&kept),
        target: Target::None,
        peers: vec![Peer { name: "without digests".into(), value: value(&whole) }],
        how: format!("64 MiB of memory, a layer that the guest never wrote, a base of random bytes at both sides, {LINK_MBIT} Mbit/s"),
    };
    let figures =
        vec![row("on the wire", "MB", |report| report.wire_bytes as f64 / 1e6), row("move", "ms", |report| report.total_ms as f64)];
    lab.succeeded();
    Ok(figures)
}

fn arrive(lab: &NetLab, number: u16, base: &Path, digests: Option<&Path>) -> Result<MoveReport> {
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let option = digests.map(|path| format!(",base-digests={}", path.display())).unwrap_or_default();
    let layer = |side: &str| -> Result<Vec<String>> {
        let path = lab.evidence().join(format!("{number}-{side}.qcow2"));
        let create = Program::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        create.arg(base).arg(&path).quiet()?;
        Ok(vec![format!("{}{option}", path.display())])
    };
    let config = VmmConfig { disks: layer("a")?, ..guest::config("64M", &format!("vm={number}"))? };
    let source = Vmm::run(a, &format!("vm{number}"), &config)?;
    source.console.wait("ready", LONG)?;
    let target = Vmm::receive(b, &format!("vm{number}"), PORT + number, &VmmConfig { disks: layer("b")?, ..VmmConfig::default() })?;
    let report = source.migrate(a, b, PORT + number, &[])?.check()?.clone();
    target.console.wait("hb ", LONG).context("the VM at the target")?;
    Ok(report)
}
