//! What a VM's devices may do and how much memory it has, changed while it runs: on the local KVM, with a guest that does all it can.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::netlab::{
    Machine, NetLab, Vmm, VmmConfig, guest,
    story::ask,
    vmm::{LONG, SHORT},
};

/// How long a rate is watched.
const WATCHED: Duration = Duration::from_secs(3);
/// Of the disk's requests a second.
const IOPS: u64 = 200;
const STREAM_BYTES: u64 = 4 << 20;
const MBIT: u64 = 20;

/// Requests that the guest's disk answers a second: three of four kinds are counted.
fn iops(vmm: &Vmm) -> Result<u64> {
    let requests = || -> Result<(Instant, u64)> {
        let said = ask(vmm, "blk 0")?;
        Ok((Instant::now(), said.number("written")? + said.number("verified")?))
    };
    let (began, before) = requests()?;
    thread::sleep(WATCHED);
    let (ended, after) = requests()?;
    Ok((u128::from(after - before) * 1000 / (ended - began).as_millis()) as u64)
}

#[test]
fn a_disk_does_what_it_may_and_its_limit_goes_with_the_vm() -> Result<()> {
    let mut lab = NetLab::start("local-limits", &["a", "b"])?;
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let disk = |machine: &Machine| -> Result<Vec<String>> {
        let path = machine.evidence().join(format!("{}.raw", machine.name()));
        std::fs::File::create(&path)?.set_len(32 << 20)?;
        Ok(vec![path.display().to_string()])
    };
    let config = VmmConfig { disks: disk(a)?, ..guest::config("64M", "fill=text:1 blk0=load stats_ms=0")? };
    let vm = Vmm::run(a, "vm", &config)?;
    vm.console.wait("hb ", SHORT)?;
    let free = iops(&vm)?;
    ensure!(free > 3 * IOPS, "this disk does {free} requests a second: too few to limit");
    vm.must(a, &["set", "--disk-iops", &IOPS.to_string()])?;
    let limited = iops(&vm)?;
    ensure!((IOPS / 3..=IOPS * 13 / 10).contains(&limited), "{limited} requests a second with {IOPS} allowed, {free} without a limit");
    ensure!(vm.status(a)?.limits.is_some_and(|limits| limits.disk_requests == Some(IOPS)));

    let mut there = Vmm::receive(b, "there", 7000, &VmmConfig { disks: disk(b)?, ..config })?;
    vm.migrate(a, b, 7000, &[])?.check()?;
    there.console.wait("hb ", SHORT)?;
    let limited = iops(&there)?;
    ensure!(limited <= IOPS * 13 / 10, "{limited} requests a second after its move");
    there.must(b, &["set", "--disk-iops", "none"])?;
    let again = iops(&there)?;
    ensure!(again > 3 * IOPS && there.status(b)?.limits.is_none(), "{again} requests a second after its limit was lifted");

    let refused = there.ctl(b, &["set", "--cpu-quota", "50%"])?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("started without --cgroup"), "{}", refused.stderr);
    there.console.send(b"c")?;
    ensure!(there.console.wait("blk 0 check 1", LONG)?.text.contains(" ok "));
    there.console.send(b"q")?;
    ensure!(there.wait(SHORT)?.success());
    lab.succeeded();
    Ok(())
}

#[test]
fn a_nic_is_as_fast_as_it_may_be_either_way() -> Result<()> {
    let mut lab = NetLab::start("local-limits-net", &["a", "b"])?;
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let (one, two) = ("52:54:00:00:07:01", "52:54:00:00:07:02");
    let mut sink = guest::config("64M", "vm=1 stats_ms=0 net0=ip=10.7.0.1")?;
    sink.nets = vec![format!("vni=7,mac={one},local={}:4789,peer={two}@{}:4789", a.address(), b.address())];
    let sink = Vmm::run(a, "sink", &sink)?;
    sink.console.wait("ready", SHORT)?;
    let load = format!("vm=2 stats_ms=0 net0=ip=10.7.0.2,peer=10.7.0.1,load=tso,bytes={STREAM_BYTES}");
    let mut sender = guest::config("64M", &load)?;
    sender.nets = vec![format!("vni=7,mac={two},local={}:4789,peer={one}@{}:4789", b.address(), a.address())];
    let sender = Vmm::run(b, "sender", &sender)?;
    sender.console.wait("net 0 done", LONG)?;
    let rate = format!("{MBIT}M");
    // What is sent is held back first, then what is received.
    for (limited, machine, free, other) in [(&sender, b, &sink, a), (&sink, a, &sender, b)] {
        limited.must(machine, &["set", "--net", &rate])?;
        free.must(other, &["set", "--net", "none"])?;
        let (mark, began) = (sender.console.mark(), Instant::now());
        sender.console.send(b"g")?;
        sender.console.wait_after(mark, "net 0 done", LONG)?;
        let mbit = STREAM_BYTES * 8 / began.elapsed().as_micros().max(1) as u64;
        ensure!((MBIT / 5..=MBIT * 13 / 10).contains(&mbit), "{mbit} Mbit/s with {MBIT} allowed");
    }
    lab.succeeded();
    Ok(())
}

/// Of memory that a guest took in, what the host holds may be so much less, and of what it gave back so much more: a twentieth.
fn follows(held: u64, taken: u64) -> bool {
    (taken - taken / 20..=taken + taken / 20).contains(&held)
}

#[test]
fn memory_is_taken_in_and_given_back_and_goes_with_the_vm() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let mut lab = NetLab::start("local-limits-memory", &["a", "b"])?;
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    let config = VmmConfig { memory_max: Some("576M".into()), ..guest::config("64M", "fill=text:1 mem=lie stats_ms=0")? };
    let vm = Vmm::run(a, "vm", &config)?;
    ensure!(vm.console.wait("mem lies", SHORT)?.text == "mem lies=12 refused=12");
    vm.console.wait("hb ", SHORT)?;
    let memory = |vm: &Vmm, machine: &Machine| -> Result<_> { vm.status(machine)?.memory.context("its memory changes") };
    let is = memory(&vm, a)?;
    ensure!((is.max_bytes, is.asked_bytes, is.taken_bytes, is.refused) == (576 * MIB, 64 * MIB, 64 * MIB, 12), "{is:?}");

    let ask = |vm: &Vmm, machine: &Machine, mib: u64| -> Result<_> {
        let mark = vm.console.mark();
        vm.must(machine, &["set", "--memory", &format!("{mib}M")])?;
        let done = vm.console.wait_after(mark, &format!("mem done asked={} ", (mib - 64) * MIB), SHORT)?;
        ensure!(done.number("taken")? == (mib - 64) * MIB && done.number("bad")? == 0, "{}", done.text);
        let is = memory(vm, machine)?;
        ensure!(is.taken_bytes == mib * MIB && is.asked_bytes == mib * MIB && follows(is.held_bytes, is.taken_bytes), "{is:?}");
        Ok(())
    };
    ask(&vm, a, 576)?;
    let refused = vm.ctl(a, &["set", "--memory", "1G"])?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("1024 MiB: the VM was started with --memory-max of 576 MiB"),
        "{}",
        refused.stderr
    );
    ask(&vm, a, 192)?;

    let mut there = Vmm::receive(b, "there", 7000, &config)?;
    let moved = vm.migrate(a, b, 7000, &[])?;
    let pages = moved.check()?.pages;
    let sent = pages.zero + pages.digest + pages.compressed + pages.raw;
    ensure!(sent < 2 * 192 * MIB / 4096, "{sent} pages were sent of a VM that has 192 MiB: {pages:?}");
    there.console.wait("hb ", SHORT)?;
    let check = |pages: u64| -> Result<()> {
        let mark = there.console.mark();
        there.console.send(b"m")?;
        let said = there.console.wait_after(mark, "mem check", SHORT)?;
        ensure!(said.text == format!("mem check ok pages={pages} bad=0"), "{}", said.text);
        Ok(())
    };
    check(128 * MIB / 4096)?;
    let is = memory(&there, b)?;
    ensure!(is.taken_bytes == 192 * MIB && follows(is.held_bytes, 192 * MIB), "{is:?}");
    ask(&there, b, 320)?;
    check(256 * MIB / 4096)?;
    ask(&there, b, 128)?;

    // A machine that starts again is asked for the same.
    let mark = there.console.mark();
    there.console.send(b"r")?;
    there.console.wait_after(mark, &format!("mem done asked={}", 64 * MIB), SHORT)?;
    // What was not taken in is nobody's to reach.
    there.console.send(b"u")?;
    let ended = there.wait(SHORT)?;
    ensure!(ended.code() == Some(1) && there.said().contains("memory that it has not taken in"), "{ended}: {}", there.said());
    lab.succeeded();
    Ok(())
}
