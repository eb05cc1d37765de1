//! Two like VMs with nothing to do move one after the other over a shaped link, the second with the first as its donor.
//!
//! The content follows the measurement behind the table in the issue: of 1 GiB, 640 MiB that both VMs have (half prose, half incompressible),
//! 176 MiB of own prose, 52 MiB of own incompressible pages, the rest zero.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rebec_vmm_api::MoveReport;

use super::{Figure, Peer, Target};
use crate::netlab::{
    NetLab, Vmm, VmmConfig, guest,
    lab::expect,
    vmm::{LONG, SHORT},
};

const LINK_MBIT: u32 = 1000;
const MEMORY: &str = "1024M";
const FILL: &str = "fill=shared:7:640M,text:3:176M,random:5:52M,zero";
const FILLED_PAGES: u64 = (640 + 176 + 52) << 8;
/// What is aimed at.
const FIRST_MB: f64 = 600.0;
const SECOND_MB: f64 = 200.0;
const GAP_MS: f64 = 100.0;
/// What QEMU's stream takes for a page with content: it, and its address with flags.
const QEMU_PAGE_BYTES: u64 = 4096 + 8;
/// For a page of zeros: address, flags and one byte.
const QEMU_ZERO_BYTES: u64 = 9;
const PORT: u16 = 7000;

/// How a VM came over.
struct Arrived {
    vmm: Vmm,
    report: MoveReport,
    /// From its last heartbeat here to its first there.
    gap: Duration,
    /// Longest stall before the move, of the guest's own loop: what this host does to a VM anyway.
    stall: Duration,
}

/// Both moves.
pub fn measure() -> Result<Vec<Figure>> {
    let mut lab = NetLab::start("bench-moves", &["a", "b"])?;
    lab.shape(Some(LINK_MBIT))?;
    let first = arrive(&lab, 1, None)?;
    let second = arrive(&lab, 2, Some(&first.vmm))?;
    let qemu_mb = (FILLED_PAGES * QEMU_PAGE_BYTES + ((1024 << 8) - FILLED_PAGES) * QEMU_ZERO_BYTES) as f64 / 1e6;
    let plain = || vec![Peer { name: "QEMU plain, computed".into(), value: qemu_mb }];
    let figure = |name: &str, unit, measured, target, peers, how: String| Figure { name: name.into(), unit, measured, target, peers, how };
    let mut figures = Vec::new();
    for (which, arrived, limit) in [("1 GiB idle", &first, FIRST_MB), ("the second, with a donor", &second, SECOND_MB)] {
        let units = arrived.report.pages;
        figures.push(figure(
            &format!("{which}: on the wire"),
            "MB",
            arrived.report.wire_bytes as f64 / 1e6,
            Target::AtMost(limit),
            plain(),
            format!(
                "wire_bytes of the move at {LINK_MBIT} Mbit/s, {:.1} s, {} rounds, {} streams; pages: zero {}, digest {}, compressed {}, raw {}. \
                 Computed for QEMU: {FILLED_PAGES} filled pages of {QEMU_PAGE_BYTES} bytes",
                arrived.report.total_ms as f64 / 1e3,
                arrived.report.rounds,
                arrived.report.streams,
                units.zero,
                units.digest,
                units.compressed,
                units.raw
            ),
        ));
        figures.push(figure(
            &format!("{which}: gap"),
            "ms",
            arrived.gap.as_secs_f64() * 1e3,
            Target::AtMost(GAP_MS),
            vec![Peer { name: "longest stall unmoved".into(), value: arrived.stall.as_secs_f64() * 1e3 }],
            format!(
                "from the last 10 ms heartbeat that left the source's serial port to the first at the target; the VMMs measured {} ms",
                arrived.report.downtime_ms
            ),
        ));
    }
    lab.succeeded();
    Ok(figures)
}

/// Boots a VM on the first machine and moves it to the second; all of its memory is checked there.
fn arrive(lab: &NetLab, number: u16, donor: Option<&Vmm>) -> Result<Arrived> {
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let mut config = guest::config(MEMORY, &format!("vm={number} net0=ip=10.7.0.{number} stats_ms=0 {FILL}"))?;
    let at = |address: std::net::Ipv4Addr| vec![format!("vni=7,mac=52:54:00:00:07:0{number},local={address}:{}", 4790 + number)];
    config.nets = at(a.address());
    config.ledger = Some(lab.evidence().join(format!("{number}-a.ledger")));
    let mut source = Vmm::run(a, &format!("vm{number}"), &config)?;
    source.console.wait("ready", LONG)?;
    source.console.send(b"z")?;
    source.console.wait("hb 200 ", SHORT)?;
    let mark = source.console.mark();
    source.console.send(b"s")?;
    let stall = Duration::from_micros(source.console.wait_after(mark, "stat ", SHORT)?.number("stall_us_max")?);

    let there = VmmConfig {
        nets: at(b.address()),
        ledger: Some(lab.evidence().join(format!("{number}-b.ledger"))),
        donors: donor.map(|vmm| vmm.control().to_owned()).into_iter().collect(),
        ..VmmConfig::default()
    };
    let target = Vmm::receive(b, &format!("vm{number}"), PORT + number, &there)?;
    let report = source.migrate(a, b, PORT + number, &[])?.check()?.clone();
    target.console.wait("hb ", SHORT).context("the VM at the target")?;
    let last = source.console.beats().last().copied().context("the source never beat")?;
    let first = target.console.beats().first().copied().context("the target never beat")?;
    // The line that was being written when the VM paused is in two halves, on both sides.
    let step = first.number.wrapping_sub(last.number);
    expect((1..=3).contains(&step), || format!("beat {} at the source, then {} at the target", last.number, first.number))?;
    source.wait(SHORT).context("the source, after it has forwarded late frames")?;
    target.console.send(b"c")?;
    let check = target.console.wait("check ", LONG)?;
    expect(check.text.contains(" ok "), || format!("memory: {}", check.text))?;
    Ok(Arrived { vmm: target, report, gap: first.at.saturating_duration_since(last.at), stall })
}
