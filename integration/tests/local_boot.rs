//! One VM on the local KVM: it boots, beats, is checked, paused, reset and ended.

use std::{collections::BTreeMap, fs, os::unix::fs::FileExt as _, process::Command, time::Duration};

use anyhow::Result;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rebec_lab::{
    netlab::{
        NetLab, Vmm, VmmConfig, guest,
        pattern::{self, BLOCK_MAGIC},
        vmm::SHORT,
    },
    standin::{self, Installed},
};
use rebec_vmm_api::control::VmState;

#[test]
fn a_guest_boots_beats_checks_itself_and_powers_off() -> Result<()> {
    let mut lab = NetLab::start("local-boot", &["a"])?;
    let config = guest::config("128M", "fill=text:1:30%,random:2:30%,zero dirty=0:words:2000,1:pages:500 rng=1 stats_ms=0")?;
    let mut vmm = Vmm::run(&lab.machines[0], "vm", &config)?;
    let ready = vmm.console.wait("ready", SHORT)?;
    assert!(ready.number("pages")? > 25_000, "{}", ready.text);
    vmm.console.wait("rng", SHORT)?;
    vmm.console.wait("hb 20 ", SHORT)?;
    vmm.console.send(b"c")?;
    let check = vmm.console.wait("check 1", SHORT)?;
    assert!(check.text.starts_with("check 1 ok"), "{}", check.text);
    assert!(check.number("writes")? > 100, "{}", check.text);
    vmm.console.send(b"q")?;
    assert!(vmm.wait(SHORT)?.success());
    assert_eq!(vmm.said(), "");
    lab.succeeded();
    Ok(())
}

#[test]
fn memory_above_four_gigabytes_is_as_good_as_any() -> Result<()> {
    let mut lab = NetLab::start("local-high", &["a"])?;
    let mut vmm = Vmm::run(&lab.machines[0], "vm", &guest::config("4G", "fill=random:1:64M check_ms=1")?)?;
    let check = vmm.console.wait("check 1", SHORT)?;
    assert!(check.text.starts_with("check 1 ok"), "{}", check.text);
    vmm.console.send(b"q")?;
    assert!(vmm.wait(SHORT)?.success());
    lab.succeeded();
    Ok(())
}

#[test]
fn a_pause_stops_the_beats_and_a_resume_goes_on_where_they_stopped() -> Result<()> {
    let mut lab = NetLab::start("local-pause", &["a"])?;
    let [machine] = &lab.machines[..] else { unreachable!("one machine was asked for") };
    let mut vmm = Vmm::run(machine, "vm", &guest::config("64M", "fill=text:1 dirty=0:lines:1000")?)?;
    vmm.console.wait("hb 10 ", SHORT)?;
    for _ in 0..3 {
        vmm.must(machine, &["pause"])?;
        assert_eq!(vmm.status(machine)?.state, VmState::Paused);
        let mark = vmm.console.mark();
        let before = vmm.console.beats().len();
        assert!(vmm.console.wait_after(mark, "hb ", Duration::from_millis(200)).is_err(), "a paused VM beats");
        vmm.must(machine, &["resume"])?;
        vmm.console.wait_after(mark, "hb ", SHORT)?;
        let beats = vmm.console.beats();
        assert_eq!(beats[before].number, beats[before - 1].number + 1);
        assert!(beats[before].tsc > beats[before - 1].tsc);
    }
    assert_eq!(vmm.status(machine)?.state, VmState::Running);
    vmm.console.send(b"c")?;
    assert!(vmm.console.wait("check 1", SHORT)?.text.starts_with("check 1 ok"));
    vmm.must(machine, &["stop"])?;
    assert!(vmm.wait(SHORT)?.success());
    lab.succeeded();
    Ok(())
}

#[test]
fn a_guest_that_resets_boots_again() -> Result<()> {
    let mut lab = NetLab::start("local-reset", &["a"])?;
    let mut vmm = Vmm::run(&lab.machines[0], "vm", &guest::config("64M", "fill=text:1")?)?;
    for _ in 0..3 {
        vmm.console.wait_after(vmm.console.mark(), "hb ", SHORT)?;
        let mark = vmm.console.mark();
        vmm.console.send(b"r")?;
        vmm.console.wait_after(mark, "bye reset", SHORT)?;
        vmm.console.wait_after(mark, "rebec-bench 1", SHORT)?;
        vmm.console.wait_after(mark, "ready", SHORT)?;
    }
    vmm.console.send(b"q")?;
    assert!(vmm.wait(SHORT)?.success());
    lab.succeeded();
    Ok(())
}

/// The disk's own boot loader says what starts, and is asked again at each reset: a kernel that was installed meanwhile is what starts next.
#[test]
fn a_guest_starts_from_its_disk_and_from_what_was_installed_there_meanwhile() -> Result<()> {
    let mut lab = NetLab::start("local-disk-boot", &["a"])?;
    let machine = &lab.machines[0];
    let (bench, path) = (guest::build()?, |name: &str| machine.evidence().join(name));
    let kernel = |version, cmdline| Installed { version, kernel: &bench, initramfs: None, cmdline };
    let (old, new) = (kernel("6.12.6", "fill=text:1 stats_ms=0"), kernel("6.12.9", "fill=text:1 stats_ms=0 rng=1"));
    standin::debian(&path("disk.raw"), None, 16 << 20, &[old], "")?;
    standin::debian(&path("next.raw"), None, 16 << 20, &[new, old], "")?;
    let disks = vec![path("disk.raw").display().to_string()];
    let config = VmmConfig { cmdline: "heartbeat_ms=5".into(), memory: "64M".into(), disks, ..VmmConfig::default() };
    let mut vmm = Vmm::run(machine, "vm", &config)?;
    vmm.console.wait_after(vmm.console.mark(), "hb ", SHORT)?;
    assert!(vmm.console.last("rng ").is_none(), "the first kernel was not told to show random bytes");
    // As a guest that installs a kernel writes its disk.
    fs::OpenOptions::new().write(true).open(path("disk.raw"))?.write_all_at(&fs::read(path("next.raw"))?, 0)?;
    let mark = vmm.console.mark();
    vmm.console.send(b"r")?;
    vmm.console.wait_after(mark, "rng [", SHORT)?;
    vmm.console.wait_after(mark, "hb ", SHORT)?;
    // One that does not boot any more ends with what is wrong.
    fs::OpenOptions::new().write(true).open(path("disk.raw"))?.write_all_at(&vec![0; 1 << 20], 0)?;
    let last = fs::metadata(path("disk.raw"))?.len() - (1 << 20);
    fs::OpenOptions::new().write(true).open(path("disk.raw"))?.write_all_at(&vec![0; 1 << 20], last)?;
    vmm.console.send(b"r")?;
    assert_eq!(vmm.wait(SHORT)?.code(), Some(1));
    let said = vmm.said();
    assert!(said.contains("it has neither partitions nor a file system that is known; give --kernel"), "{said}");

    // Entries of the Boot Loader Specification on a /boot of its own, one of them saved.
    standin::fedora(&path("fedora.raw"), None, 8 << 20, &[new, old], "saved_entry=0123-6.12.6\n")?;
    let disks = vec![path("fedora.raw").display().to_string()];
    let mut vmm = Vmm::run(machine, "fedora", &VmmConfig { disks, ..config })?;
    vmm.console.wait("hb 5 ", SHORT)?;
    assert!(vmm.console.last("rng ").is_none(), "the entry that is saved starts, not the newest");
    vmm.console.send(b"q")?;
    assert!(vmm.wait(SHORT)?.success());
    lab.succeeded();
    Ok(())
}

#[test]
fn a_triple_fault_is_reported_in_one_line() -> Result<()> {
    let mut lab = NetLab::start("local-triple", &["a"])?;
    let mut vmm = Vmm::run(&lab.machines[0], "vm", &guest::config("64M", "")?)?;
    vmm.console.wait("hb ", SHORT)?;
    vmm.console.send(b"t")?;
    assert_eq!(vmm.wait(SHORT)?.code(), Some(1));
    let said = vmm.said();
    assert!(said.lines().count() == 1 && said.contains("triple fault") && said.contains("reboot=t"), "{said}");
    lab.succeeded();
    Ok(())
}

/// What a guest asks of its machine is done once, however often it asks; and a triple fault is a reset where the guest was told to reset by one. Meanwhile the
/// disk of a VM is no other program's.
#[test]
fn a_guest_asks_for_its_reset_without_an_end_and_is_reset_once() -> Result<()> {
    let mut lab = NetLab::start("local-storm", &["a"])?;
    let machine = &lab.machines[0];
    let disk = machine.evidence().join("disk.raw");
    fs::File::create(&disk)?.set_len(4 << 20)?;
    let mut config = guest::config("64M", "reboot=t")?;
    config.disks.push(disk.display().to_string());
    let mut vmm = Vmm::run(machine, "vm", &config)?;
    vmm.console.wait("hb 5 ", SHORT)?;
    let resize = || Command::new("qemu-img").args(["resize", "-q", "-f", "raw"]).arg(&disk).arg("8M").output();
    let refused = resize()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("lock"), "qemu-img resized the disk of a running VM: {said}");
    for (command, starts) in [(b"x", 2), (b"t", 3)] {
        let mark = vmm.console.mark();
        vmm.console.send(command)?;
        vmm.console.wait_after(mark, "ready", SHORT)?;
        // Its user is heard, and nothing that an earlier machine asked for is done to this one.
        assert_eq!(vmm.status(machine)?.state, VmState::Running);
        vmm.console.wait_after(mark, "hb 50 ", SHORT)?;
        assert_eq!(vmm.console.all("ready").len(), starts, "starts after {command:?}");
    }
    vmm.console.send(b"q")?;
    assert!(vmm.wait(SHORT)?.success());
    assert!(resize()?.status.success());
    lab.succeeded();
    Ok(())
}

#[test]
fn a_guest_that_makes_nonsense_of_every_register_harms_only_itself() -> Result<()> {
    let mut lab = NetLab::start("local-nonsense", &["a"])?;
    let machine = &lab.machines[0];
    let disk = machine.evidence().join("disk.raw");
    for seed in 1..=8 {
        fs::File::create(&disk)?.set_len(4 << 20)?;
        let mut config = guest::config("64M", &format!("nonsense={seed} run_ms=1000 stats_ms=200"))?;
        config.disks.push(disk.display().to_string());
        config.nets.push(format!("vni=7,mac=52:54:00:00:00:01,local={}:4789", machine.address()));
        let mut vmm = Vmm::run(machine, &format!("vm{seed}"), &config)?;
        let status = vmm.wait(SHORT)?;
        let said = vmm.said();
        assert!(!said.contains("panicked"), "seed {seed}: {said}");
        // Whatever it does a thousand times a second is said some times a minute.
        assert!(said.lines().count() < 200, "seed {seed}: {} lines", said.lines().count());
        // A device that is told to write over the guest does so: the guest may fault, the VMM must not.
        assert!(status.success() || said.contains("triple fault"), "seed {seed}: {status}: {said}");
    }
    lab.succeeded();
    Ok(())
}

#[test]
fn every_thread_has_the_list_of_system_calls_of_its_role() -> Result<()> {
    let mut lab = NetLab::start("local-lists", &["a"])?;
    let machine = &lab.machines[0];
    let disk = machine.evidence().join("disk.raw");
    fs::File::create(&disk)?.set_len(16 << 20)?;
    let mut config = guest::config("64M", "vm=5 blk0=load rng=1 net0=ip=10.7.0.1,peer=10.7.0.2,load=ping")?;
    config.disks.push(disk.display().to_string());
    config.nets.push(format!("vni=7,mac=52:54:00:00:00:01,local={}:4789", machine.address()));
    let mut vmm = Vmm::run(machine, "vm", &config)?;
    vmm.console.wait("hb 50 ", SHORT)?;
    let lists = lists_of_threads(vmm.process())?;
    // The process has two; what a guest reaches has one more, and whoever makes threads must not.
    for (thread, expected) in
        [("rebec-vmm", 2), ("control", 2), ("threads", 2), ("vcpu0", 3), ("virtio-blk", 3), ("virtio-net", 3), ("virtio-rng", 3)]
    {
        assert_eq!(lists.get(thread), Some(&expected), "{thread} of {lists:?}");
    }
    vmm.console.send(b"q")?;
    assert!(vmm.wait(SHORT)?.success());
    assert_eq!(vmm.said(), "");
    lab.succeeded();
    Ok(())
}

/// How many lists each thread of the sealed process has, which is the last of the processes below one.
fn lists_of_threads(mut process: u32) -> Result<BTreeMap<String, u32>> {
    while let Some(child) = fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?.split_whitespace().next() {
        process = child.parse()?;
    }
    let mut lists = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        assert_eq!(field("Seccomp:"), "2", "{status}");
        lists.insert(field("Name:").to_owned(), field("Seccomp_filters:").parse()?);
    }
    Ok(lists)
}

#[test]
fn acknowledged_writes_are_on_the_disk_after_the_end() -> Result<()> {
    let mut lab = NetLab::start("local-disk", &["a"])?;
    let machine = &lab.machines[0];
    let disk = machine.evidence().join("disk.raw");
    fs::File::create(&disk)?.set_len(16 << 20)?;
    let mut config = guest::config("64M", "vm=3 blk0=load,depth=32")?;
    config.disks.push(disk.display().to_string());
    let mut vmm = Vmm::run(machine, "first", &config)?;
    vmm.console.wait("hb 50 ", SHORT)?;
    vmm.console.send(b"c")?;
    let check = vmm.console.wait("blk 0 check 1", SHORT)?;
    assert!(check.text.starts_with("blk 0 check 1 ok") && check.number("written")? > 256, "{}", check.text);
    vmm.console.send(b"q")?;
    assert!(vmm.wait(SHORT)?.success());

    // What the guest wrote reads the same on the host ...
    let file = fs::File::open(&disk)?;
    let (mut bytes, mut want, mut found) = ([0; 4096], [0; pattern::PAGE_WORDS], 0);
    for number in 0..4096 {
        file.read_exact_at(&mut bytes, number * 4096)?;
        let word = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap());
        if word(0) == BLOCK_MAGIC {
            pattern::block(word(3), number, word(2), &mut want);
            assert!((0..pattern::PAGE_WORDS).all(|at| word(at) == want[at]), "block {number}");
            found += 1;
        }
    }
    assert!(found > 200, "{found} blocks");

    // ... and in the next VM with this disk.
    config.cmdline = "vm=3 blk0=scan".into();
    let mut vmm = Vmm::run(machine, "second", &config)?;
    let scan = vmm.console.wait("blk 0 scan", SHORT)?;
    assert!(scan.number("ok")? == 1 && scan.number("used")? == found, "{} of {found}", scan.text);
    vmm.must(machine, &["stop"])?;
    assert!(vmm.wait(SHORT)?.success());
    lab.succeeded();
    Ok(())
}

#[test]
fn the_power_button_is_answered_ignored_or_not_heard() -> Result<()> {
    let mut lab = NetLab::start("local-button", &["a"])?;
    let [machine] = &lab.machines[..] else { unreachable!("one machine was asked for") };
    let started = |name: &str, button: &str| {
        let vmm = Vmm::run(machine, name, &guest::config("16M", &format!("fill=zero {button}"))?)?;
        vmm.console.wait("hb 1 ", SHORT)?;
        anyhow::Ok(vmm)
    };
    let terminate = |vmm: &Vmm| kill(Pid::from_raw(vmm.process().cast_signed()), Signal::SIGTERM);

    let mut obeys = started("obeys", "button=off")?;
    obeys.must(machine, &["power-button"])?;
    obeys.console.wait("bye power-button", SHORT)?;
    assert!(obeys.wait(SHORT)?.success());
    let mut obeys = started("obeys-a-signal", "button=off")?;
    terminate(&obeys)?;
    obeys.console.wait("bye power-button", SHORT)?;
    assert!(obeys.wait(SHORT)?.success());

    let mut deaf = started("deaf", "")?;
    let refused = deaf.ctl(machine, &["power-button"])?;
    assert!(refused.code == Some(1) && refused.stderr.contains("does not listen to its power button"), "{}", refused.stderr);
    terminate(&deaf)?;
    assert!(deaf.wait(SHORT)?.success());

    let mut ignores = started("ignores", "button=ignore")?;
    ignores.must(machine, &["power-button"])?;
    terminate(&ignores)?;
    let mark = ignores.console.mark();
    ignores.console.wait_after(mark, "hb ", SHORT)?;
    assert!(ignores.is_alive());
    terminate(&ignores)?;
    assert!(ignores.wait(SHORT)?.success());
    lab.succeeded();
    Ok(())
}
