//! The demo of the pool, step by step: machines booted from the image, tickets, an image, a LAN, VMs and moves, all by `rebec`.

use std::{
    thread::ScopedJoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use rebec_api::vm::VmInfo;
use rebec_vmm_api::Outcome;

use super::{
    Options,
    report::DemoReport,
    work::{Seen, Work},
};
use crate::{
    appliance::{Appliance, mega},
    guest,
    progress::say,
    provision,
    qemu::{
        Lab, LabConfig, Machine, Orders, Shape, System,
        image::Share,
        pool::{self, rebec},
        vm::GUEST_BOOT_DEADLINE,
    },
};

pub(super) const MACHINES: [&str; 3] = ["a1", "a2", "b1"];
/// Domain of each.
const DOMAINS: [&str; 3] = ["alpha", "alpha", "beta"];
/// Between the domains.
pub(super) const LINK: Shape = Shape { rate_mbit: Some(100), delay: Duration::from_millis(10), loss_ppm: 0, cut: false };
/// Of each VM: what a Debian kernel needs, and the pattern. Every page of it travels with each move.
const MEMORY: &str = "112M";
/// Kernel and modules, state in RAM and two VMs.
const MEMORY_MIB: u32 = 1792;
/// Five times what three machines on two busy cores were seen to need.
const AGENT_DEADLINE: Duration = Duration::from_secs(150);
/// Files of some tens of megabytes through an emulated machine, or over the link.
pub(super) const FILES_DEADLINE: Duration = Duration::from_secs(300);
/// Of the short story's guest, whose silence nobody judges: machines that are busy enough never predict a short pause.
const PAUSE_MS_MAX: &str = "10000";
/// What a guest's clock may be off after a move: its pause, and what it is behind the look at it, on emulated machines that are busy.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(60);
/// Longest pause that a move may ask for: the silence may last 3 s.
const DOWNTIME_MS_MAX: &str = "1000";
pub(super) const MOVE_DEADLINE: Duration = Duration::from_secs(600);
/// Where `web` goes, and how that is asked for. Of alpha's hosts the pool chooses the one that runs `control`, whose like it is.
const MOVES: [(usize, &[&str]); 3] = [(1, &["--to", "a2"]), (2, &["--domain", "beta"]), (1, &["--domain", "alpha"])];
/// And where it goes when no other VM runs.
const MOVES_ALONE: [(usize, &[&str]); 3] = [MOVES[0], MOVES[1], (0, &["--to", "a1"])];

/// Builds, boots, joins, runs, moves. The report, and the pool as its user sees it.
pub fn tell(options: &Options) -> Result<(DemoReport, String)> {
    let mut lab = boot(options)?;
    found(&lab)?;
    let first = &lab.machines[0];
    let (web, client, control) = start_vms(&lab, first)?;
    let orders = |vm: &VmInfo| -> Result<Orders> {
        let mut orders = pool::console(&lab, first, &vm.name)?;
        let there = orders.hello(GUEST_BOOT_DEADLINE);
        let logs = || rebec(first, &["vm", "logs", &vm.name, "--tail", "2K"], FILES_DEADLINE).unwrap_or_default();
        there.with_context(|| format!("boot vm {}; its console ends: {}", vm.name, logs()))?;
        say("demo", format_args!("VM {} is up on host {}", vm.name, vm.host));
        // Asked by a stock resolver before anything else ran.
        let (said, named) = (logs(), format!("named {}.office.rebec at {}", vm.name, address(vm)?));
        if !said.contains(&named) {
            bail!("vm {}: its port did not say `{named}`; its console ends: {said}", vm.name);
        }
        Ok(orders)
    };
    orders(&control)?;
    let mut work = Work::begin(orders(&web)?, orders(&client)?, address(&web)?, address(&control)?)?;
    let (mut moves, mut from) = (Vec::new(), 0);
    for (number, (to, words)) in (1..).zip(MOVES) {
        let seen = one_move(&lab, &mut work, number, (from, to), words, options.streams)?;
        let moved = seen.reported().outcome == Outcome::Moved;
        moves.push(seen);
        if !moved {
            break;
        }
        from = to;
    }
    let views = views(first)?;
    let report = work.end(moves)?;
    if report.is_right() {
        lab.succeeded();
    }
    Ok((report, views))
}

/// The same road with a small guest that only beats. Returns the pool as its user sees it.
pub fn tell_shortly(options: &Options) -> Result<String> {
    let mut short = Short::boot(options)?;
    short.join()?;
    short.travel()?;
    let views = short.views()?;
    short.succeeded();
    Ok(views)
}

/// Machines that booted the image, then a pool of them, and in it `web`, which beats.
pub struct Short {
    pub(super) lab: Lab,
    /// Number of the last heartbeat that was seen.
    pub(super) beats: u64,
    /// What the guest's clock counts in a millisecond.
    tsc_khz: u64,
}

impl Short {
    /// Three machines that belong to no pool.
    pub fn boot(options: &Options) -> Result<Self> {
        Ok(Self { lab: boot(options)?, beats: 0, tsc_khz: 0 })
    }

    /// They become a pool, and `web` is started on the first host.
    pub fn join(&mut self) -> Result<()> {
        found(&self.lab)?;
        let first = &self.lab.machines[0];
        let cmdline = "vm=1 heartbeat_ms=100 stats_ms=0 fill=text:3:30%,zero dirty=0:words:100";
        rebec(first, &["image", "import", "beats", "--kernel", "/share/guest/bench", "--cmdline", cmdline], FILES_DEADLINE)?;
        rebec(first, &["lan", "create", "office"], FILES_DEADLINE)?;
        rebec(
            first,
            &["vm", "run", "web", "--image", "beats", "--memory", "64M", "--lan", "office", "--host", MACHINES[0]],
            FILES_DEADLINE,
        )?;
        self.beats = beat_after(first, "web", 0)?;
        let said = rebec(first, &["vm", "logs", "web"], FILES_DEADLINE)?;
        let khz = said.lines().find_map(|line| line.strip_prefix("rebec-bench 1 tsc_khz=")?.split(' ').next()?.parse().ok());
        self.tsc_khz = khz.with_context(|| format!("web does not say how fast its clock is: {said}"))?;
        Ok(())
    }

    /// `web` goes through both domains and comes back.
    pub fn travel(&mut self) -> Result<()> {
        MOVES_ALONE.iter().try_for_each(|(to, words)| self.go(*to, words))
    }

    /// One move of `web`, which beats on.
    pub(super) fn go(&mut self, to: usize, words: &[&str]) -> Result<()> {
        let first = &self.lab.machines[0];
        let words = &[words, &["--downtime-max-ms", PAUSE_MS_MAX]].concat();
        let (began, started) = (Instant::now(), last_beat(first, "web", self.beats)?);
        let (code, reported) = pool::begin_move(first, "web", words)?.finish(MOVE_DEADLINE)?;
        if code != 0 || reported.outcome != Outcome::Moved {
            bail!("vm move web {}: ended with code {code}: {:?} {:?}", words.join(" "), reported.outcome, reported.reason);
        }
        let there = pool::vm(first, "web")?;
        must_be_on(&there, to)?;
        // The last of the log that is read first may be what it said where it was.
        let arrived = last_beat(first, "web", started.number)?.number;
        let now = last_beat(first, "web", arrived)?;
        // One of the machines is three days ahead of the others.
        let (passed, by_guest) = (began.elapsed(), Duration::from_millis(now.clock.wrapping_sub(started.clock) / self.tsc_khz));
        let (host, pause, before) = (there.host, reported.downtime_ms, self.beats);
        let now = now.number;
        say(
            "demo",
            format_args!(
                "vm web is on host {host}; paused for {pause} ms, beat {now} follows {before}; {by_guest:.1?} of {passed:.1?} by its clock"
            ),
        );
        if by_guest.abs_diff(passed) > CLOCK_OFF_MAX {
            bail!("a move of {passed:?} took {by_guest:?} by the clock of web");
        }
        self.beats = now;
        Ok(())
    }

    /// The pool as its user sees it.
    pub fn views(&self) -> Result<String> {
        views(&self.lab.machines[0])
    }

    /// All is well: nothing is kept.
    pub fn succeeded(&mut self) {
        self.lab.succeeded();
    }
}

/// A heartbeat.
struct Beat {
    number: u64,
    /// The guest's time stamp counter, which goes on with its clock.
    clock: u64,
}

/// Waits for a heartbeat with a higher number: the guest that counts is the same one.
pub(super) fn beat_after(machine: &Machine, vm: &str, last: u64) -> Result<u64> {
    Ok(last_beat(machine, vm, last)?.number)
}

fn last_beat(machine: &Machine, vm: &str, last: u64) -> Result<Beat> {
    let deadline = Instant::now() + GUEST_BOOT_DEADLINE;
    loop {
        let text = rebec(machine, &["vm", "logs", vm, "--tail", "1K"], FILES_DEADLINE)?;
        let beat = |line: &str| {
            let (number, clock) = line.strip_prefix("hb ")?.split_once(' ')?;
            Some(Beat { number: number.parse().ok()?, clock: u64::from_str_radix(clock.trim(), 16).ok()? })
        };
        if let Some(beat) = text.lines().rev().filter_map(beat).find(|beat| beat.number > last) {
            return Ok(beat);
        }
        if Instant::now() > deadline {
            bail!("vm {vm}: no heartbeat after number {last}; its console ends: {text}");
        }
    }
}

fn boot(options: &Options) -> Result<Lab> {
    let provisions = provision::provision()?;
    let appliance = match &options.image {
        Some(folder) => Appliance::at(folder),
        None => Appliance::build()?,
    };
    say("demo", format_args!("{}: {:.1} MB", appliance.iso().display(), mega(appliance.iso_bytes()?)));
    let files = guest::files(&provisions.guest)?;
    let share = Share::default()
        .with("guest/bench", &crate::netlab::guest::build()?)
        .with("guest/vmlinuz", &provisions.guest.bzimage)
        .with("guest/initramfs", &files.initramfs)
        .with("guest/base.qcow2", &guest::packed_base(&files)?);
    let config = LabConfig {
        name: "pool",
        machines: &MACHINES,
        accel: options.accel,
        memory_mib: MEMORY_MIB,
        share,
        link: Shape::default(),
        devices: &[],
    };
    let start = Instant::now();
    let lab = Lab::start_with(&provisions, &config, System::Appliance(&appliance))?;
    for alpha in [0, 1] {
        lab.switch.shape(alpha, 2, LINK);
    }
    lab.check_kvm()?;
    for machine in &lab.machines {
        pool::wait_agent(machine, AGENT_DEADLINE)?;
        machine.give_large_pages()?;
    }
    say("demo", format_args!("three machines booted the image; {:.1} s until the agents answer", start.elapsed().as_secs_f64()));
    Ok(lab)
}

/// One pool of two domains, by tickets that are typed at the consoles of those who join.
fn found(lab: &Lab) -> Result<()> {
    let [a1, a2, b1] = &lab.machines[..] else { bail!("invariant: there are three machines") };
    let for_host = pool::found_by_typing(a1, "demo", DOMAINS[0], 1)?;
    let for_domain = pool::ticket(a1, &["domain", "invite", "beta"])?;
    for (machine, ticket, domain) in [(a2, for_host, DOMAINS[1]), (b1, for_domain, DOMAINS[2])] {
        let took = pool::join_by_typing(machine, &ticket, domain)?;
        let name = machine.name();
        say("demo", format_args!("host {name} joined domain {domain} {:.1} s after its ticket was typed", took.as_secs_f64()));
    }
    pool::wait_hosts(a1, lab.machines.len())
}

fn start_vms(lab: &Lab, first: &Machine) -> Result<(VmInfo, VmInfo, VmInfo)> {
    let cmdline = format!("{} rebec.ip=dhcp", guest::cmdline());
    let files = ["--kernel", "/share/guest/vmlinuz", "--initramfs", "/share/guest/initramfs", "--disk", "/share/guest/base.qcow2"];
    let start = Instant::now();
    rebec(first, &[&["image", "import", "debian", "--cmdline", &cmdline], &files[..]].concat(), FILES_DEADLINE)?;
    say("demo", format_args!("image debian is imported in {:.1} s", start.elapsed().as_secs_f64()));
    rebec(first, &["lan", "create", "office"], FILES_DEADLINE)?;
    let (start, before) = (Instant::now(), lab.switch.passed(0, 2).bytes);
    let run = |name: &str, place: [&str; 2]| -> Result<VmInfo> {
        let named = format!("rebec.name={name}");
        let words = ["vm", "run", name, "--image", "debian", "--memory", MEMORY, "--lan", "office", "--cmdline", &named];
        rebec(first, &[&words[..], &place].concat(), FILES_DEADLINE)?;
        let vm = pool::vm(first, name)?;
        say("demo", format_args!("VM {name} runs on host {} after {:.1} s", vm.host, start.elapsed().as_secs_f64()));
        Ok(vm)
    };
    // With `control` on the host that `web` visits first, the image is there before that move.
    let vms = std::thread::scope(|scope| {
        let web = scope.spawn(|| run("web", ["--host", MACHINES[0]]));
        let client = scope.spawn(|| run("client", ["--domain", DOMAINS[2]]));
        let control = run("control", ["--host", MACHINES[1]])?;
        let joined = |vm: ScopedJoinHandle<'_, Result<VmInfo>>| vm.join().map_err(|_| anyhow!("a thread that starts a VM panicked"))?;
        Ok((joined(web)?, joined(client)?, control))
    });
    say("demo", format_args!("{:.1} MB went to beta", mega(lab.switch.passed(0, 2).bytes - before)));
    vms
}

fn address(vm: &VmInfo) -> Result<std::net::Ipv4Addr> {
    vm.nics.first().map(|nic| nic.address).with_context(|| format!("vm {} has no NIC", vm.name))
}

/// Moves `web` with work on its disk and memory under way.
fn one_move(lab: &Lab, work: &mut Work, number: u8, (from, to): (usize, usize), words: &[&str], streams: u8) -> Result<Seen> {
    let place = |machine: usize| format!("{} in {}", MACHINES[machine], DOMAINS[machine]);
    let way = format!("from host {} to host {}", place(from), place(to));
    work.busy(number)?;
    say("demo", format_args!("move {number}: web goes {way} while it works"));
    work.begin_move(number)?;
    let first = &lab.machines[0];
    let before = lab.switch.passed(from, to).bytes;
    let streams = streams.to_string();
    let options = ["--streams", &streams, "--downtime-max-ms", DOWNTIME_MS_MAX];
    let (code, reported) = pool::begin_move(first, "web", &[words, &options].concat())?.finish(MOVE_DEADLINE)?;
    if (code == 0) != (reported.outcome == Outcome::Moved) {
        bail!("vm move reported {:?} and ended with code {code}", reported.outcome);
    }
    let link_bytes = lab.switch.passed(from, to).bytes - before;
    let there = pool::vm(first, "web")?;
    if reported.outcome == Outcome::Moved {
        must_be_on(&there, to)?;
    }
    work.after_move(number, way, reported, link_bytes)
}

/// A host of another domain has that in its name.
fn must_be_on(vm: &VmInfo, machine: usize) -> Result<()> {
    if vm.host.rsplit('/').next() != Some(MACHINES[machine]) {
        bail!("vm {} moved and is said to be on host {}, not on {}", vm.name, vm.host, MACHINES[machine]);
    }
    Ok(())
}

/// What the user sees.
fn views(machine: &Machine) -> Result<String> {
    let mut text = String::new();
    for words in [&["host", "ls"][..], &["vm", "ls"], &["lan", "show", "office"]] {
        text += &format!("\n$ rebec {}\n{}", words.join(" "), rebec(machine, words, FILES_DEADLINE)?);
    }
    Ok(text)
}
