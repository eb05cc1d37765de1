//! What befalls the demo's pool in tests: a clock that is days off, an agent killed under its VMs, the link between the domains cut for a minute during a
//! move, a host that loses its power, and machines that join in its place without anybody at their consoles.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rebec_api::{
    host::{HostInfo, HostState},
    vm::{VmInfo, VmState},
};

use super::pool::{FILES_DEADLINE, MACHINES, MOVE_DEADLINE, Short, beat_after};
use crate::{
    command::Program,
    netlab::agents::eventually,
    progress::say,
    qemu::{
        Machine,
        lab::address,
        pool::{self, ask, rebec},
    },
};

/// Where people ask, and where `web` comes back to.
const ASKED: usize = 0;
/// The host that loses its power.
const DIES: usize = 1;
/// The domain's only host that is cut off.
const FAR: usize = 2;
const CUT: Duration = Duration::from_secs(60);
/// What a busy machine's question for the time may be off by, on top of that machine's own.
const CLOCK_OFF_NS_MAX: u128 = 1_000_000_000;
/// Slow enough that the cut comes in the middle.
const SLOW_MBIT: &str = "1";
/// Between two presses of a power button.
const PRESS: Duration = Duration::from_secs(3);
/// What the link of one machine carries.
const VLAN: u16 = 7;
/// For records and a small VM.
const STATE_BYTES: u64 = 256 << 20;
/// From the power button's press to the end of a machine whose guest obeys: less than PID 1 waits for one that does not.
const SWITCHED_OFF: Duration = Duration::from_secs(50);
/// Until something shows, on emulated machines that are busy: five times what was seen.
const SHOWS: Duration = Duration::from_secs(120);

impl Short {
    /// The far machine's clock is three days ahead: tickets, records and moves are to work all the same.
    pub fn clock_is_wrong(&self) -> Result<()> {
        self.lab.machines[FAR].shell("date -s @$(($(date +%s) + 259200))").map(drop)
    }

    /// The agent under `web` and nine more VMs is killed; PID 1 starts another, which adopts them.
    pub fn agent_restarts(&mut self) -> Result<()> {
        let first = &self.lab.machines[ASKED];
        let others: Vec<String> = (1..10).map(|number| format!("vm{number}")).collect();
        for name in &others {
            let words =
                ["vm", "run", name, "--image", "beats", "--memory", "16M", "--host", MACHINES[ASKED], "--cmdline", "heartbeat_ms=1000"];
            rebec(first, &words, FILES_DEADLINE)?;
        }
        let before = running(first)?;
        ensure!(before.len() == others.len() + 1, "{before:?}");
        self.are_limited(others.len() + 1)?;
        let first = &self.lab.machines[ASKED];
        // All of that name but PID 1.
        first.shell("kill -9 $(pidof rebec | tr ' ' '\\n' | grep -vx 1)")?;
        eventually("the new agent has adopted ten VMs, each by its process", SHOWS, || Ok(running(first)? == before))?;
        self.beats = beat_after(first, "web", self.beats)?;
        for name in &others {
            beat_after(first, name, 0)?;
        }
        say("demo", "an agent was killed under ten VMs; the next one adopted them");
        let away: Vec<String> = others.iter().map(|name| format!("{{ rebec vm stop {name} && rebec vm rm {name}; }} &")).collect();
        first.shell(&format!("{} wait", away.join(" ")))?;
        eventually("they are gone", SHOWS, || Ok(ask::<Vec<VmInfo>>(first, &["vm", "ls"])?.len() == 1))
    }

    /// Each VMM is in a control group of its own, which limits it; one is given a hundredth of a processor while it runs, and the kernel keeps it to that.
    fn are_limited(&self, count: usize) -> Result<()> {
        // Guest memory, a sixteenth of it, 128 MiB.
        const LIMITS: [&str; 2] = ["152043520", "205520896"];
        let look = "cd /sys/fs/cgroup/rebec && for g in */; do echo $(cat $g/memory.max) $(wc -l < $g/cgroup.procs); done";
        let groups = self.lab.machines[ASKED].shell(look)?;
        let limited = groups.lines().filter_map(|line| line.split_once(' ')).filter(|(max, held)| LIMITS.contains(max) && *held != "0");
        ensure!(limited.count() == count, "the control groups of {count} VMs: {groups}");
        let first = &self.lab.machines[ASKED];
        rebec(first, &["vm", "set", "vm1", "--cpu-quota", "1%"], FILES_DEADLINE)?;
        let group = format!("/sys/fs/cgroup/rebec/{}", pool::vm(first, "vm1")?.id);
        let quota = first.shell(&format!("cat {group}/cpu.max"))?;
        ensure!(quota.trim() == "1000 100000", "vm1 may have a hundredth of a processor, and the kernel knows: {quota}");
        eventually("the kernel has held vm1 back", SHOWS, || {
            let counted = first.shell(&format!("cat {group}/cpu.stat"))?;
            Ok(counted.lines().any(|line| line.strip_prefix("nr_throttled ").is_some_and(|times| times != "0")))
        })?;
        rebec(first, &["vm", "set", "vm1", "--cpu-quota", "none"], FILES_DEADLINE).map(drop)
    }

    /// The far domain is cut off for a minute while `web` is on its way there.
    pub fn link_is_cut(&mut self) -> Result<()> {
        let first = &self.lab.machines[ASKED];
        let moving = first.start(&["rebec", "vm", "move", "web", "--domain", "beta", "--bandwidth-max-mbit", SLOW_MBIT])?;
        eventually("the move is under way", SHOWS, || Ok(pool::vm(first, "web")?.state == VmState::Moving))?;
        let began = Instant::now();
        self.cut(true);
        eventually("beta is known to be silent", SHOWS, || Ok(state_of(first, MACHINES[FAR])? == HostState::Silent))?;
        let ended = moving.finish(MOVE_DEADLINE)?;
        ensure!(ended.code != 0, "the move was over before the link was cut: {}", ended.errors);
        let during = beat_after(first, "web", self.beats)?;
        thread::sleep(CUT.saturating_sub(began.elapsed()));
        self.beats = beat_after(first, "web", during)?;
        self.cut(false);
        pool::wait_hosts(first, MACHINES.len())?;
        eventually("web runs where it was", SHOWS, || {
            let web = pool::vm(first, "web")?;
            Ok(web.state == VmState::Running && web.host == MACHINES[ASKED])
        })?;
        say("demo", format_args!("the link was cut for {} s during a move: web ran on, beat {}", CUT.as_secs(), self.beats));
        self.go(FAR, &["--domain", "beta"])
    }

    fn cut(&self, cut: bool) {
        for near in [ASKED, DIES] {
            self.lab.switch.cut(near, FAR, cut);
        }
    }

    /// A host loses its power; what ran there is lost, until somebody says that the host is dead.
    pub fn host_dies(&mut self) -> Result<()> {
        let first = &self.lab.machines[ASKED];
        rebec(first, &["vm", "run", "db", "--image", "beats", "--memory", "16M", "--host", MACHINES[DIES]], FILES_DEADLINE)?;
        beat_after(first, "db", 0)?;
        self.lab.machines[DIES].kill();
        let first = &self.lab.machines[ASKED];
        eventually("the host is silent and its VM lost", SHOWS, || {
            Ok(state_of(first, MACHINES[DIES])? == HostState::Silent && pool::vm(first, "db")?.state == VmState::Lost)
        })?;
        if let Ok(said) = rebec(first, &["vm", "start", "db"], FILES_DEADLINE) {
            bail!("db was started while its host may run it: {said}");
        }
        rebec(first, &["host", "declare-dead", MACHINES[DIES], "--reason", "it lost its power"], FILES_DEADLINE)?;
        rebec(first, &["vm", "start", "db"], FILES_DEADLINE)?;
        eventually("db runs elsewhere", SHOWS, || {
            let db = pool::vm(first, "db")?;
            Ok(db.state == VmState::Running && db.host != MACHINES[DIES])
        })?;
        beat_after(first, "db", 0)?;
        self.beats = beat_after(first, "web", self.beats)?;
        say("demo", "a host lost its power; its VM runs on another one");
        Ok(())
    }

    /// New machines take the place of the one that died, one after the other. Nobody types: the first, whose battery is empty and whose link carries a
    /// VLAN, finds its ticket and a time server on its kernel's command line, the second a ticket on a USB stick, and later a disk for its state.
    pub fn machines_join_by_themselves(&mut self) -> Result<()> {
        let first = &self.lab.machines[ASKED];
        let _server = first.start(&["/lab/start", "tell-time"])?;
        let ticket = pool::ticket(first, &["host", "invite"])?;
        let words = format!(" rebec.join={ticket} rebec.ntp={} rebec.vlan={VLAN}", address(ASKED));
        // What has no tag it does not hear: the first host speaks to it on that VLAN alone.
        let (near, far) = (address(ASKED), address(DIES));
        first.shell(&format!(
            "ip link add link eth0 name tagged type vlan id {VLAN} && ip addr add {near}/32 dev tagged && ip link set tagged up && \
             ip route add {far}/32 dev tagged src {near}"
        ))?;
        self.joins("c1", &words, &["-rtc", "base=2020-02-02"])?;
        let links = self.lab.machines[DIES].shell("ip -o -4 addr")?;
        let on_vlan = links.lines().any(|line| line.contains(&format!("eth0.{VLAN} ")) && line.contains(&format!("{far}/24")));
        let probes = self.lab.machines[DIES].shell("cat /proc/sys/net/ipv4/tcp_mtu_probing")?;
        ensure!(probes.trim() == "1", "TCP looks for what a path carries: {probes}");
        ensure!(on_vlan && !links.contains(" eth0 "), "the address is the VLAN's alone: {links}");
        eventually("its clock is set", SHOWS, || Ok(self.lab.machines[DIES].clock_offset()?.0.unsigned_abs() < CLOCK_OFF_NS_MAX))?;
        self.lab.machines[ASKED].shell("ip link del tagged")?;
        // Twice: with its state in RAM, and with its state on a disk it is another host.
        let ticket = pool::ticket(&self.lab.machines[ASKED], &["host", "invite", "--uses", "2"])?;
        let (seed, state) = (self.lab.evidence().join("seed.img"), self.lab.evidence().join("state.img"));
        write_seed(&seed, &ticket)?;
        write_state(&state)?;
        let drive = |name: &str, file: &Path, more: &str| format!("file={},if=none,id={name},format=raw{more}", file.display());
        let (seed, state) = (drive("seed", &seed, ",readonly=on"), drive("state", &state, ""));
        let devices = ["-device", "qemu-xhci", "-drive", &seed, "-device", "usb-storage,drive=seed", "-drive", &state];
        self.joins("d1", " rebec.state=any", &devices)?;
        say("demo", "two machines joined by what they found when they booted; one came from 2020, by a VLAN");
        self.state_disk_comes()
    }

    /// A disk for the state of a machine that has begun in RAM is plugged in: it takes RAM's place, and the host there joins anew.
    fn state_disk_comes(&self) -> Result<()> {
        let machine = &self.lab.machines[DIES];
        machine.wait_console("\nstate      in RAM", SHOWS)?;
        machine.monitor("device_add usb-storage,drive=state")?;
        machine.wait_console("\nstate      on /dev/sd", SHOWS)?;
        eventually("the host is a member again, and keeps what it knows", SHOWS, || {
            let hosts: Vec<HostInfo> = ask(machine, &["host", "ls"])?;
            Ok(hosts.iter().any(|host| host.this && host.durable && host.state == HostState::Ready))
        })?;
        let mounted = machine.shell("grep ' /var/lib/rebec ' /proc/mounts | tail -n 1")?;
        ensure!(mounted.contains(" ext4 "), "its state is on the disk: {mounted}");
        say("demo", "a disk for state came late and took RAM's place");
        Ok(())
    }

    /// The power button of the last of them is pressed: the guest that runs there powers itself off, then the machine does.
    pub fn machine_is_switched_off(&mut self) -> Result<()> {
        let first = &self.lab.machines[ASKED];
        let hosts: Vec<HostInfo> = ask(&self.lab.machines[DIES], &["host", "ls"])?;
        let host = hosts.into_iter().find(|host| host.this).context("the machine is no host")?.name;
        let words = ["vm", "run", "last", "--image", "beats", "--memory", "16M", "--host", &host, "--cmdline", "button=off"];
        rebec(first, &words, FILES_DEADLINE)?;
        beat_after(first, "last", 0)?;
        let machine = &mut self.lab.machines[DIES];
        // Its driver comes after the others, and what is pressed before that is lost.
        eventually("the power button is heard", SHOWS, || {
            machine.press_power_button()?;
            Ok(machine.wait_console("Switching off.", PRESS).is_ok())
        })?;
        // A guest that does not end is waited for longer.
        machine.wait_off(SWITCHED_OFF)?;
        say("demo", "a machine was switched off by its power button");
        Ok(())
    }

    fn joins(&mut self, name: &str, words: &str, devices: &[&str]) -> Result<()> {
        pool::wait_member(self.lab.replace(DIES, name, words, devices)?, "alpha")?;
        let first = &self.lab.machines[ASKED];
        eventually(&format!("host {name} is ready"), SHOWS, || Ok(state_of(first, name)? == HostState::Ready))
    }
}

/// A stick as people make them: one FAT file system with a label and a file.
fn write_seed(image: &Path, ticket: &str) -> Result<()> {
    const KIB: &str = "1024";
    let file = image.with_extension("ticket");
    fs::write(&file, format!("{ticket}\n")).with_context(|| format!("write {}", file.display()))?;
    Program::new("/usr/sbin/mkfs.vfat").args(["-n", "REBEC-SEED", "-C"]).arg(image).arg(KIB).quiet()?;
    Program::new("mcopy").arg("-i").arg(image).arg(&file).arg("::ticket").quiet()
}

/// A disk for state as people make them.
fn write_state(image: &Path) -> Result<()> {
    fs::File::create(image)?.set_len(STATE_BYTES)?;
    Program::new("/usr/sbin/mkfs.ext4").args(["-q", "-F", "-L", "REBEC-STATE"]).arg(image).quiet()
}

fn state_of(machine: &Machine, host: &str) -> Result<HostState> {
    Ok(ask::<HostInfo>(machine, &["host", "show", host])?.state)
}

/// The VMs and their processes, all of them running.
fn running(machine: &Machine) -> Result<Vec<(String, u32)>> {
    let vms: Vec<VmInfo> = ask(machine, &["vm", "ls"])?;
    ensure!(vms.iter().all(|vm| vm.state == VmState::Running), "{vms:?}");
    Ok(vms.into_iter().map(|vm| (vm.name, vm.pid)).collect())
}
