//! A VM under a lease, on the local KVM: it runs while the lease lasts and not a beat longer, whatever state it is in.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::netlab::{Machine, NetLab, Vmm, VmmConfig, guest, vmm::SHORT};
use rebec_vmm_api::control::VmState;

const LEASE: Duration = Duration::from_secs(2);
/// How late its end may be noticed: half of the keeper's margin.
const LATE: Duration = Duration::from_millis(1500);
const QUIET: Duration = Duration::from_millis(500);

fn leased() -> Result<VmmConfig> {
    Ok(VmmConfig { lease: true, ..guest::config("64M", "fill=text:1 dirty=0:lines:1000 stats_ms=0")? })
}

/// Gives it leases until a line begins so; returns when the last one has ended and that has been noticed.
fn runs_until(vmm: &Vmm, machine: &Machine, beginning: &str) -> Result<()> {
    let (mark, until) = (vmm.console.mark(), Instant::now() + SHORT);
    loop {
        vmm.must(machine, &["lease", &LEASE.as_millis().to_string()])?;
        let told = Instant::now();
        if vmm.console.wait_after(mark, beginning, LEASE).is_ok() {
            thread::sleep((LEASE + LATE).saturating_sub(told.elapsed()));
            return Ok(());
        }
        ensure!(Instant::now() < until, "no line `{beginning}` under leases");
    }
}

#[test]
fn a_vm_stands_still_without_a_lease_and_goes_on_with_the_next() -> Result<()> {
    let mut lab = NetLab::start("local-lease", &["a"])?;
    let [machine] = &lab.machines[..] else { unreachable!("one machine was asked for") };
    let mut vmm = Vmm::run(machine, "vm", &leased()?)?;
    thread::sleep(QUIET);
    assert_eq!((vmm.console.mark(), vmm.status(machine)?.lease_ms), (0, Some(0)), "it ran before it had a lease");

    for _ in 0..2 {
        runs_until(&vmm, machine, "hb ")?;
        let mark = vmm.console.mark();
        assert!(vmm.console.wait_after(mark, "hb ", QUIET).is_err(), "it beats after the end of its lease");
        let status = vmm.status(machine)?;
        assert_eq!((status.state, status.lease_ms), (VmState::Running, Some(0)));
    }
    // A lease does not undo a pause, and a pause does not need one.
    vmm.must(machine, &["pause"])?;
    vmm.must(machine, &["lease", "600000"])?;
    let mark = vmm.console.mark();
    assert!(vmm.console.wait_after(mark, "hb ", QUIET).is_err(), "a paused VM beats");
    vmm.must(machine, &["resume"])?;
    vmm.console.wait_after(mark, "hb ", SHORT)?;
    // It was never begun anew, nor did it lose a beat.
    let beats = vmm.console.beats();
    assert!(beats.windows(2).all(|pair| pair[1].number == pair[0].number + 1 && pair[1].tsc > pair[0].tsc));
    // A guest that begins anew has the lease it had.
    let mark = vmm.console.mark();
    vmm.console.send(b"r")?;
    vmm.console.wait_after(mark, "bye reset", SHORT)?;
    vmm.console.wait_after(mark, "rebec-bench 1", SHORT)?;
    vmm.must(machine, &["stop"])?;
    assert!(vmm.wait(SHORT)?.success());
    lab.succeeded();
    Ok(())
}

#[test]
fn a_move_whose_lease_has_ended_goes_through_and_the_target_runs_only_under_its_own() -> Result<()> {
    let mut lab = NetLab::start("local-lease-move", &["a", "b"])?;
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let config = leased()?;
    let source = Vmm::run(a, "source", &config)?;
    let target = Vmm::receive(b, "target", 7000, &config)?;
    runs_until(&source, a, "hb 10 ")?;
    let last = source.console.beats().last().context("it never beat")?.number;
    source.migrate(a, b, 7000, &[])?.check()?;
    assert!(target.console.wait("hb ", QUIET).is_err(), "it runs at its target without a lease");
    assert_eq!(target.status(b)?.state, VmState::Running);
    target.must(b, &["lease", "600000"])?;
    target.console.wait("hb ", SHORT)?;
    let first = target.console.beats().first().context("no beat")?.number;
    // One may have been half said when it stood still.
    assert!((last + 1..=last + 2).contains(&first), "beat {last} at the source, then {first}");
    target.console.send(b"c")?;
    assert!(target.console.wait("check 1", SHORT)?.text.starts_with("check 1 ok"));
    lab.succeeded();
    Ok(())
}
