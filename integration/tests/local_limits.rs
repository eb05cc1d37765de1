//! What a VM's devices may do, changed while it runs: on the local KVM, with a guest that does all it can.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
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
