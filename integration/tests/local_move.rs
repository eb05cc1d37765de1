//! Live moves between two namespaces on the local KVM: with everything at work, with donors, and with everything that can go wrong before
//! the right to run is granted.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rebec_lab::netlab::{
    NetLab, Vmm, VmmConfig, guest,
    story::{Plan, Story},
    vmm::{LONG, SHORT},
};
use rebec_vmm_api::{Outcome, control::VmState};

/// A story with nothing but a little memory.
fn plain(name: &str) -> Plan<'_> {
    Plan { name, memory: "128M", load: "fill=text:3:30%,random:5:30%,zero", disk_bytes: 0, stream_mbit: 0, link_mbit: None }
}

/// Five times the half minute after which keepalive tells a target that nobody is there any more.
const CUT_NOTICED: Duration = Duration::from_secs(150);

/// A story whose move takes several seconds, because the link is slow.
fn slow(name: &str) -> Plan<'_> {
    Plan { link_mbit: Some(50), load: "fill=random:5:60%,zero dirty=0:words:500", disk_bytes: 16 << 20, ..plain(name) }
}

/// A story whose traffic is kept if it ends badly.
fn start(plan: &Plan<'_>) -> Result<Story> {
    let mut story = Story::start(plan)?;
    story.lab.capture()?;
    Ok(story)
}

#[test]
fn an_idle_vm_moves_there_and_back() -> Result<()> {
    let mut story = start(&plain("local-move-idle"))?;
    for _ in 0..2 {
        let seen = story.move_web(&[], &[])?;
        let pages = seen.report.pages;
        ensure!(seen.report.memory_bytes == 128 << 20 && pages.compressed + pages.raw > 15_000, "{seen:?}");
        ensure!(seen.report.wire_bytes < 96 << 20, "{seen:?}");
    }
    ensure!(story.lab.captured() > 100 << 10, "{} bytes of two moves were captured", story.lab.captured());
    story.end()
}

#[test]
fn a_busy_vm_moves_with_memory_disk_and_connection() -> Result<()> {
    let plan = Plan {
        memory: "256M",
        load: "fill=shared:7:25%,text:3:25%,random:5:25%,zero dirty=0:lines:5000:16M,1:words:2000,2:pages:200:8M,3:silent:500",
        disk_bytes: 64 << 20,
        stream_mbit: 50,
        ..plain("local-move-busy")
    };
    let mut story = start(&plan)?;
    for streams in ["1", "4", "2"] {
        let seen = story.move_web(&["--streams", streams, "--downtime-max-ms", "500"], &[])?;
        ensure!(seen.report.streams.to_string() == streams && seen.report.disk_bytes == 64 << 20, "{seen:?}");
        ensure!(seen.blocks_written > 100 && seen.stream_bytes > 0, "{seen:?}");
        ensure!(seen.ping_gap < Duration::from_secs(3), "{seen:?}");
    }
    story.end()
}

#[test]
fn a_donor_at_the_target_spares_the_wire() -> Result<()> {
    let like = |name| Plan { load: "fill=shared:7:80%,zero", ..plain(name) };
    let mut alone = start(&like("local-move-no-donor"))?;
    let plain_bytes = alone.move_web(&[], &[])?.report.wire_bytes;
    alone.end()?;

    let mut story = start(&like("local-move-donor"))?;
    let donor = Vmm::run(&story.lab.machines[1], "donor", &guest::config("128M", "vm=9 fill=shared:7:80%,zero stats_ms=0")?)?;
    donor.console.wait("ready", SHORT)?;
    let seen = story.move_web(&[], &[donor.control().to_owned()])?;
    ensure!(seen.report.pages.digest > 20_000, "{seen:?}");
    ensure!(seen.report.wire_bytes * 5 < plain_bytes, "{plain_bytes} bytes without a donor, {} with", seen.report.wire_bytes);
    // The donor lent copies: it runs on and is unharmed.
    donor.console.send(b"c")?;
    ensure!(donor.console.wait("check 1", SHORT)?.text.starts_with("check 1 ok"));
    story.end()
}

/// Begins a move over a slow link and waits until it is well under way.
fn begin(story: &mut Story) -> Result<(Child, Vmm)> {
    let (target, port) = story.receiver(&[])?;
    let [a, b] = &story.lab.machines[..] else { unreachable!("a story has two machines") };
    let moving = story.web.begin_migrate(a, b, port, &[])?;
    let until = Instant::now() + SHORT;
    while story.web.status(a)?.state != VmState::Moving {
        ensure!(Instant::now() < until, "the move does not begin");
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(500));
    Ok((moving, target))
}

/// The move has failed, the source runs on as if nothing had been, and a later move succeeds.
fn runs_on(mut story: Story, moving: Child) -> Result<()> {
    let moved = story.web.end_migrate(moving)?;
    ensure!(moved.code == Some(1) && moved.report.outcome == Outcome::Failed, "{moved:?}");
    ensure!(moved.report.reason.as_ref().is_some_and(|reason| !reason.is_empty()), "{moved:?}");
    ensure!(story.web.status(&story.lab.machines[0])?.state == VmState::Running);
    // On a busy machine a VM that nobody moves stalls too: that much is not the move's.
    let stall = |vm: &Vmm| vm.console.beats().windows(2).map(|pair| pair[1].at.duration_since(pair[0].at)).max().unwrap_or_default();
    let (longest, unmoved) = (stall(&story.web), stall(&story.client));
    ensure!(longest < Duration::from_secs(1) + unmoved * 2, "the VM was interrupted for {longest:?}, an unmoved one for {unmoved:?}");
    story.check_web()?;
    story.lab.shape(None)?;
    story.move_web(&[], &[])?;
    story.end()
}

#[test]
fn a_move_is_cancelled_and_the_source_runs_on() -> Result<()> {
    let mut story = start(&slow("local-move-cancel"))?;
    let (moving, mut target) = begin(&mut story)?;
    story.web.must(&story.lab.machines[0], &["cancel"])?;
    ensure!(target.wait(SHORT)?.code() == Some(1), "{}", target.said());
    runs_on(story, moving)
}

#[test]
fn a_target_that_dies_before_the_grant_interrupts_nothing() -> Result<()> {
    let mut story = start(&slow("local-move-killed"))?;
    let (moving, mut target) = begin(&mut story)?;
    target.kill()?;
    runs_on(story, moving)
}

#[test]
fn a_link_that_is_cut_before_the_grant_interrupts_nothing() -> Result<()> {
    let mut story = start(&slow("local-move-cut"))?;
    let (moving, mut target) = begin(&mut story)?;
    story.lab.cut(&story.lab.machines[1])?;
    // Each side finds out by itself, and what is left of the target lets go of the NIC's port.
    ensure!(target.wait(CUT_NOTICED)?.code() == Some(1), "{}", target.said());
    runs_on(story, moving)
}

/// A file system of a MiB, gone when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir(&at)?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&at).status()?;
        ensure!(mounted.success(), "mount a tmpfs: {mounted}");
        Ok(Self(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // The VMM that was killed with its story may still be on its way out.
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

#[test]
fn a_target_whose_disk_is_full_interrupts_nothing() -> Result<()> {
    const DISK_BYTES: u64 = 16 << 20;
    let mut story = start(&Plan { disk_bytes: DISK_BYTES, ..slow("local-move-full") })?;
    let small = Small::mount(story.lab.evidence().join("small"))?;
    let disk = small.0.join("disk");
    File::create(&disk)?.set_len(DISK_BYTES)?;
    symlink(&disk, story.lab.evidence().join("web-1.disk"))?;
    let (mut target, port) = story.receiver(&[])?;
    let [a, b] = &story.lab.machines[..] else { unreachable!("a story has two machines") };
    let moving = story.web.begin_migrate(a, b, port, &[])?;
    ensure!(target.wait(LONG)?.code() == Some(1), "{}", target.said());
    let said = target.said();
    ensure!(said.contains("web-1.disk") && said.contains("No space left"), "{said}");
    runs_on(story, moving)
}

#[test]
fn a_guest_resets_where_it_has_moved_to() -> Result<()> {
    let mut lab = NetLab::start("local-move-reset", &["a"])?;
    let machine = &lab.machines[0];
    let config = guest::config("64M", "fill=text:3:20%,zero stats_ms=0")?;
    let source = Vmm::run(machine, "source", &config)?;
    source.console.wait("hb 3 ", SHORT)?;
    let with_kernel = Vmm::receive(machine, "with-kernel", 7001, &config)?;
    source.migrate(machine, machine, 7001, &[])?.check()?;
    with_kernel.console.wait("hb ", SHORT)?;
    let mark = with_kernel.console.mark();
    with_kernel.console.send(b"r")?;
    with_kernel.console.wait_after(mark, "rebec-bench 1", SHORT)?;
    with_kernel.console.wait_after(mark, "hb 3 ", SHORT)?;
    ensure!(with_kernel.status(machine)?.epoch == 2);

    let mut without = Vmm::receive(machine, "without", 7002, &VmmConfig { kernel: PathBuf::new(), ..config })?;
    with_kernel.migrate(machine, machine, 7002, &[])?.check()?;
    without.console.wait("hb ", SHORT)?;
    without.console.send(b"r")?;
    ensure!(without.wait(SHORT)?.code() == Some(1), "{}", without.said());
    let said = without.said();
    ensure!(said.lines().count() == 1 && said.contains("--kernel"), "{said}");
    lab.succeeded();
    Ok(())
}

#[test]
fn a_target_of_another_shape_is_refused_before_the_first_page() -> Result<()> {
    let mut story = start(&Plan { disk_bytes: 16 << 20, ..plain("local-move-shape") })?;
    let [a, b] = &story.lab.machines[..] else { unreachable!("a story has two machines") };
    let mut target = Vmm::receive(b, "shapeless", 7999, &guest::config("128M", "")?)?;
    let moved = story.web.migrate(a, b, 7999, &[])?;
    ensure!(moved.code == Some(1) && moved.report.pages.raw + moved.report.pages.compressed == 0, "{moved:?}");
    ensure!(target.wait(SHORT)?.code() == Some(1) && target.said().lines().count() == 1, "{}", target.said());
    story.check_web()?;
    story.move_web(&[], &[])?;
    story.end()
}
