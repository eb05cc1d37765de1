//! The handover's table with real processes and real ledgers: a meddler between `ctl migrate` and `receive` stops a move at each message, the
//! fault of the column happens, and an operator who knows only exit codes, `ctl status` and the ledger files brings the VM to the target.
//!
//! A cell is right if the exit codes on the way, the last epoch and the number of cold starts are those of docs/formats/handover.md, and if no
//! heartbeat was ever given twice: that would be two VMs.

use std::{
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rebec_lab::netlab::{
    Meddler, NetLab, Order, Point, Vmm, VmmConfig, guest,
    vmm::{SHORT, wait_with_output},
};
use rebec_vmm_api::control::{Status, VmState};

/// How long a message is held back, and how long a half-cut link stays so.
const WHILE: Duration = Duration::from_millis(200);
/// An operator who needs more tries than this is going round in circles.
const TRIES_MAX: usize = 4;
const LOAD: &str = "vm=1 heartbeat_ms=5 stats_ms=0 fill=text:3:20%,random:5:10%,zero dirty=0:words:500";

/// One VM, and every process that ever had it.
struct Story<'a> {
    lab: &'a NetLab,
    name: String,
    config: VmmConfig,
    /// Side 0 is where the VM begins.
    sides: [Option<Vmm>; 2],
    ports: u16,
    processes: usize,
    /// Consoles of processes that are gone or replaced, in order of their beginnings.
    past: Vec<Vmm>,
    codes: Vec<i32>,
    receiving_at: u16,
    /// What the receiver had said before the last move to it, in bytes.
    heard: usize,
}

impl<'a> Story<'a> {
    fn begin(lab: &'a NetLab, name: &str, ports: u16) -> Result<Self> {
        let config = guest::config("32M", LOAD)?;
        let mut story = Self {
            lab,
            name: name.to_lowercase(),
            config,
            sides: [None, None],
            ports,
            processes: 0,
            past: vec![],
            codes: vec![],
            receiving_at: 0,
            heard: 0,
        };
        story.run(0)?;
        story.sides[0].as_ref().context("it runs")?.console.wait("hb 3 ", SHORT)?;
        story.receive(1)?;
        Ok(story)
    }

    fn config_of(&mut self, side: usize) -> (String, VmmConfig) {
        self.processes += 1;
        let ledger = self.lab.evidence().join(format!("{}-{side}.ledger", self.name));
        let name = format!("{}-{}-{side}", self.name, self.processes);
        (name, VmmConfig { ledger: Some(ledger), ..self.config.clone() })
    }

    /// `run --ledger` of a side.
    fn run(&mut self, side: usize) -> Result<()> {
        let (name, config) = self.config_of(side);
        let vmm = Vmm::run(&self.lab.machines[0], &name, &config)?;
        self.past.extend(self.sides[side].replace(vmm));
        Ok(())
    }

    /// `receive --ledger` of a side.
    fn receive(&mut self, side: usize) -> Result<()> {
        let (name, config) = self.config_of(side);
        self.ports += 1;
        (self.receiving_at, self.heard) = (self.ports, 0);
        let vmm = Vmm::receive(&self.lab.machines[0], &name, self.ports, &config)?;
        self.past.extend(self.sides[side].replace(vmm));
        Ok(())
    }

    fn vmm(&self, side: usize) -> Result<&Vmm> {
        self.sides[side].as_ref().with_context(|| format!("side {side} has no process"))
    }

    fn status(&self, side: usize) -> Result<Status> {
        self.vmm(side)?.status(&self.lab.machines[0])
    }

    fn is_alive(&mut self, side: usize) -> bool {
        self.sides[side].as_mut().is_some_and(Vmm::is_alive)
    }

    fn expect_state(&self, side: usize, state: VmState, epoch: u64) -> Result<()> {
        let status = self.status(side)?;
        ensure!((status.state, status.epoch) == (state, epoch), "side {side} is {:?} at epoch {}", status.state, status.epoch);
        Ok(())
    }

    /// `kill -9`, to the last of the process: its console has ended.
    fn kill(&mut self, side: usize) -> Result<()> {
        let vmm = self.sides[side].as_mut().context("nobody to kill")?;
        vmm.kill()?;
        let ended = vmm.console.wait("no line begins like this", SHORT).map(drop).err().context("a line that is nowhere")?;
        ensure!(ended.to_string().contains("console ended"), "{ended}");
        Ok(())
    }

    /// Begins a move through a meddler that holds the message of `point`.
    fn through_meddler(&mut self, point: Point) -> Result<(Meddler, Child)> {
        self.ports += 1;
        let meddler = Meddler::start(&self.lab.machines[0], self.ports, self.receiving_at, point)?;
        let moving = self.begin_migrate(0, &meddler.address())?;
        meddler.reached(SHORT)?;
        Ok((meddler, moving))
    }

    fn begin_migrate(&self, side: usize, to: &str) -> Result<Child> {
        self.vmm(side)?.begin_ctl(&self.lab.machines[0], &["migrate", "--to", to, "--streams", "2", "--downtime-max-ms", "2000"])
    }

    fn end_migrate(&mut self, moving: Child) -> Result<i32> {
        let output = wait_with_output(moving, SHORT)?;
        let code = output.status.code().context("ctl was killed")?;
        self.codes.push(code);
        Ok(code)
    }

    /// `ctl migrate` straight to the target.
    fn migrate(&mut self, side: usize) -> Result<i32> {
        let to = format!("{}:{}", self.lab.machines[0].address(), self.receiving_at);
        self.heard = self.vmm(1)?.said().len();
        let moving = self.begin_migrate(side, &to)?;
        self.end_migrate(moving)
    }

    /// Waits until a receiving process has drawn its conclusion from the last move: it has ended, it runs the VM, or it says that it waits
    /// for the source. Returns whether it is still there.
    fn concluded(&mut self, side: usize) -> Result<bool> {
        let until = Instant::now() + SHORT;
        loop {
            if !self.is_alive(side) {
                return Ok(false);
            }
            let is_waiting = self.vmm(side)?.said()[self.heard..].contains("it has to connect again");
            // A process that ends while it is asked has concluded too.
            if is_waiting || self.status(side).is_ok_and(|status| status.state == VmState::Running) {
                return Ok(true);
            }
            ensure!(Instant::now() < until, "side {side} concludes nothing: {}", self.vmm(side)?.said());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What a person would do until the VM runs at the target: start again what is not there, and migrate.
    fn heal(&mut self) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let target_stands = self.concluded(1)?;
            if self.codes.last() == Some(&0) {
                if !target_stands {
                    // It died running: its ledger lets it start from its disk.
                    self.run(1)?;
                }
                return Ok(());
            }
            if !self.is_alive(0) {
                self.run(0)?;
            }
            if !target_stands {
                self.receive(1)?;
            }
            self.migrate(0)?;
        }
        bail!("it does not heal")
    }

    /// Exactly one VM runs, at the target, whole; returns how often one was started from its kernel.
    fn check(&mut self, epoch: u64) -> Result<usize> {
        let console = &self.vmm(1)?.console;
        console.wait("hb ", SHORT)?;
        let mark = console.mark();
        console.send(b"c")?;
        let check = console.wait_after(mark, "check ", SHORT)?;
        ensure!(check.text.contains(" ok "), "{}", check.text);
        self.expect_state(1, VmState::Running, epoch)?;
        if self.is_alive(0) {
            let source = self.status(0).map(|status| status.state);
            ensure!(source.as_ref().is_ok_and(|state| *state == VmState::Moved) || !self.is_alive(0), "the source: {source:?}");
        }
        self.never_two()
    }

    /// No two VMs ever ran: between two cold starts every heartbeat was given once, in order, and no older VM beats after a cold start.
    fn never_two(&self) -> Result<usize> {
        let mut consoles: Vec<_> = self.past.iter().chain(self.sides.iter().flatten()).map(|vmm| &vmm.console).collect();
        consoles.sort_by_key(|console| console.wait("", Duration::ZERO).ok().map(|line| line.at));
        let mut starts = vec![];
        let mut beats = vec![];
        for (number, console) in consoles.iter().enumerate() {
            starts.extend(console.all("rebec-bench 1").iter().map(|line| line.at));
            let mut of_console = console.beats();
            // The pause of a move or a kill may have left half a line, which is seen when the console ends, seconds later. Its number is whole; when
            // it came, and its time stamp, are not known.
            if let [.., before, torn] = of_console.as_mut_slice() {
                (torn.at, torn.tsc) = (before.at, u64::MAX);
            }
            beats.extend(of_console.into_iter().map(|beat| (beat, number)));
        }
        starts.sort();
        // A machine counts its time from its own start, so a beat belongs to the last start whose numbers it can continue.
        beats.sort_by_key(|(beat, _)| beat.at);
        let mut generation = 0;
        let mut last = None;
        for (beat, number) in beats {
            while starts.get(generation).is_some_and(|start| *start <= beat.at) {
                generation += 1;
                last = None;
            }
            if let Some((before, there)) = last.replace((beat, number)) {
                let in_order = beat.number > before.number && (beat.tsc > before.tsc || before.tsc == u64::MAX);
                ensure!(in_order, "process {number} gave heartbeat {} after process {there} had given {}", beat.number, before.number);
            }
        }
        Ok(starts.len() - 1)
    }

    fn end(mut self) -> Result<()> {
        for side in [0, 1] {
            if self.is_alive(side) {
                self.kill(side)?;
            }
        }
        Ok(())
    }
}

/// What happens while the message is held, and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Cut,
    HalfCut,
    SourceKilled,
    TargetKilled,
    Late,
    Twice,
    Garbage,
}

/// What a cell must come to: exit codes of each `ctl migrate`, the last epoch, starts from the kernel after the first.
struct Expected {
    codes: &'static [&'static [i32]],
    epoch: u64,
    cold: usize,
}

/// docs/formats/handover.md, as an operator sees it.
fn expected(point: Point, fault: Fault) -> Expected {
    use Fault::*;
    use Point::*;
    let is = |codes, epoch, cold| Expected { codes, epoch, cold };
    match (fault, point) {
        (Late, _) | (Twice, Prepared | Granted | Running) => is(&[&[0]], 2, 0),
        // Whether the second one comes before or after the target has become prepared.
        (Twice, Final) => is(&[&[0], &[1, 0]], 2, 0),
        (Cut | HalfCut | Garbage | TargetKilled, Offer | Accept | Have | Final) | (Twice, Offer | Accept | Have) => is(&[&[1, 0]], 2, 0),
        // The first target is prepared and waits; the second move tells it to let go, the third goes to a new one.
        (Cut | HalfCut, Prepared) => is(&[&[1, 1, 0]], 2, 0),
        // The link is whole behind the garbage, so the source's word reaches the target.
        (Garbage, Prepared) => is(&[&[1, 0], &[1, 1, 0]], 2, 0),
        (Cut | HalfCut | Garbage, Granted | Running) => is(&[&[3, 0]], 2, 0),
        (SourceKilled, Offer | Accept | Have) => is(&[&[1, 0]], 2, 1),
        // Whether the frames on their way make the target complete.
        (SourceKilled, Final) => is(&[&[1, 0], &[1, 1, 0]], 2, 1),
        (SourceKilled, Prepared) => is(&[&[1, 1, 0]], 2, 1),
        (SourceKilled, Granted | Running) => is(&[&[1, 0]], 2, 0),
        (TargetKilled, Prepared | Granted) => is(&[&[3, 1, 0]], 4, 0),
        (TargetKilled, Running) => is(&[&[0]], 2, 1),
    }
}

fn cell(lab: &NetLab, point: Point, fault: Fault, ports: u16) -> Result<String> {
    let mut story = Story::begin(lab, &format!("{point:?}"), ports)?;
    let (meddler, moving) = story.through_meddler(point)?;
    match fault {
        Fault::Cut => meddler.order(Order::Cut),
        Fault::HalfCut => {
            meddler.order(Order::Swallow);
            thread::sleep(WHILE);
            meddler.cut();
        }
        Fault::SourceKilled | Fault::TargetKilled => {
            story.kill(usize::from(fault == Fault::TargetKilled))?;
            meddler.order(Order::Pass);
        }
        Fault::Late => {
            thread::sleep(WHILE);
            meddler.order(Order::Pass);
        }
        Fault::Twice => meddler.order(Order::Twice),
        Fault::Garbage => meddler.order(Order::Garbage),
    }
    story.end_migrate(moving)?;
    drop(meddler);
    story.heal()?;
    let Expected { codes, epoch, cold } = expected(point, fault);
    let seen = story.codes.clone();
    ensure!(codes.contains(&seen.as_slice()), "exit codes {seen:?}, expected {codes:?}");
    let starts = story.check(epoch)?;
    ensure!(starts == cold, "{starts} cold starts, expected {cold}");
    story.end()?;
    Ok(format!("codes {seen:?} epoch {epoch} cold starts {starts}"))
}

fn column(fault: Fault) -> Result<()> {
    let name = format!("local-handover-{fault:?}").to_lowercase();
    let mut lab = NetLab::start(&name, &["a"])?;
    for (number, point) in (0..).zip(Point::ALL) {
        let began = Instant::now();
        let row = cell(&lab, point, fault, 7000 + number * 100).with_context(|| format!("| {point:?} | {fault:?} |"))?;
        println!("| {point:?} | {fault:?} | {row} | {} ms |", began.elapsed().as_millis());
    }
    lab.succeeded();
    Ok(())
}

#[test]
fn the_link_is_cut_at_each_message() -> Result<()> {
    column(Fault::Cut)
}

#[test]
fn one_direction_is_cut_at_each_message() -> Result<()> {
    column(Fault::HalfCut)
}

#[test]
fn the_source_is_killed_at_each_message() -> Result<()> {
    column(Fault::SourceKilled)
}

#[test]
fn the_target_is_killed_at_each_message() -> Result<()> {
    column(Fault::TargetKilled)
}

#[test]
fn each_message_is_late() -> Result<()> {
    column(Fault::Late)
}

#[test]
fn each_message_comes_twice() -> Result<()> {
    column(Fault::Twice)
}

#[test]
fn each_message_is_garbage() -> Result<()> {
    column(Fault::Garbage)
}

/// Runs `body` at each message in turn, each with a lab and a VM of its own.
fn stories(name: &str, points: &[Point], body: impl Fn(Story<'_>, Point) -> Result<()>) -> Result<()> {
    let mut lab = NetLab::start(name, &["a"])?;
    for (number, &point) in (0..).zip(points) {
        let story = Story::begin(&lab, &format!("{point:?}"), 7000 + number * 100)?;
        body(story, point).with_context(|| format!("| {point:?} | {name} |"))?;
        println!("| {point:?} | {name} | ok |");
    }
    lab.succeeded();
    Ok(())
}

#[test]
fn cancel_is_in_time_until_the_grant_and_never_after() -> Result<()> {
    stories("local-handover-cancel", &Point::ALL, |mut story, point| {
        let (meddler, moving) = story.through_meddler(point)?;
        story.vmm(0)?.must(&story.lab.machines[0], &["cancel"])?;
        let in_time = !matches!(point, Point::Granted | Point::Running);
        if in_time {
            // The answer does not wait for the message that is held.
            ensure!(story.end_migrate(moving)? == 1);
            story.expect_state(0, VmState::Running, 1)?;
            meddler.order(Order::Pass);
            ensure!(!story.concluded(1)?, "the target did not let go");
        } else {
            meddler.order(Order::Pass);
            ensure!(story.end_migrate(moving)? == 0);
        }
        story.heal()?;
        story.check(2)?;
        story.end()
    })
}

#[test]
fn power_off_reset_and_stop_end_the_move_first() -> Result<()> {
    stories("local-handover-ends", &[Point::Accept], |mut story, point| {
        let (meddler, moving) = story.through_meddler(point)?;
        let again = story.begin_migrate(0, &meddler.address())?;
        let again = wait_with_output(again, SHORT)?;
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        ensure!(again.status.code() == Some(1), "a second move while one is under way: {:?} {said}", again.status);
        story.expect_state(0, VmState::Moving, 1)?;
        let source = story.vmm(0)?;
        let mark = source.console.mark();
        source.console.send(b"r")?;
        ensure!(story.end_migrate(moving)? == 1, "a reset calls the move off");
        story.vmm(0)?.console.wait_after(mark, "rebec-bench 1", SHORT)?;
        story.vmm(0)?.console.wait_after(mark, "hb 3 ", SHORT)?;
        story.expect_state(0, VmState::Running, 1)?;
        drop(meddler);

        ensure!(!story.concluded(1)?);
        story.receive(1)?;
        let machine = &story.lab.machines[0];
        story.vmm(0)?.must(machine, &["pause"])?;
        ensure!(story.migrate(0)? == 1, "a paused VM does not move");
        story.vmm(0)?.must(machine, &["resume"])?;
        let (meddler, moving) = story.through_meddler(point)?;
        story.vmm(0)?.console.send(b"q")?;
        ensure!(story.end_migrate(moving)? == 1, "power-off calls the move off");
        let ended = story.sides[0].as_mut().context("the source")?.wait(SHORT)?;
        ensure!(ended.success(), "the source ended with {ended}");
        drop(meddler);

        story.run(0)?;
        story.vmm(0)?.console.wait("hb 3 ", SHORT)?;
        ensure!(!story.concluded(1)?);
        story.receive(1)?;
        let (_meddler, moving) = story.through_meddler(point)?;
        story.vmm(0)?.must(&story.lab.machines[0], &["stop"])?;
        ensure!(story.end_migrate(moving)? == 1, "stop calls the move off");
        let ended = story.sides[0].as_mut().context("the source")?.wait(SHORT)?;
        ensure!(ended.success(), "the source ended with {ended}");
        ensure!(story.never_two()? == 2);
        Ok(())
    })
}

#[test]
fn a_waiting_source_starts_nothing_whatever_its_guest_asked_for() -> Result<()> {
    // The guest asks for a reset when the move can no longer be called off, and the link is cut: the target may run the VM.
    stories("local-handover-waits", &[Point::Running], |mut story, point| {
        let (meddler, moving) = story.through_meddler(point)?;
        story.kill(1)?;
        meddler.order(Order::Cut);
        ensure!(story.end_migrate(moving)? == 3);
        story.expect_state(0, VmState::Waiting, 1)?;
        // Nobody listens: that is no news about who runs the VM.
        ensure!(story.migrate(0)? == 3, "a waiting VM is reported as failed");
        story.run(1)?;
        story.vmm(1)?.console.wait("hb 3 ", SHORT)?;
        ensure!(story.migrate(0)? == 3, "a waiting VM is reported as failed");
        story.vmm(0)?.must(&story.lab.machines[0], &["stop"])?;
        let ended = story.sides[0].as_mut().context("the source")?.wait(SHORT)?;
        ensure!(ended.success(), "the source ended with {ended}");
        story.run(0)?;
        story.expect_state(0, VmState::Waiting, 2)?;
        ensure!(story.migrate(0)? == 3);
        story.expect_state(1, VmState::Running, 2)?;
        ensure!(story.never_two()? == 1);
        story.end()
    })
}

#[test]
fn a_vm_moves_on_and_comes_back_with_the_same_ledgers() -> Result<()> {
    stories("local-handover-back", &[Point::Running], |mut story, _| {
        ensure!(story.migrate(0)? == 0);
        story.check(2)?;
        // Killed after RUNNING: the source has nothing to say any more, and its ledger says so.
        story.kill(0)?;
        story.run(0)?;
        story.expect_state(0, VmState::Waiting, 2)?;
        ensure!(story.migrate(0)? == 0);
        ensure!(story.sides[0].as_mut().context("the source")?.wait(SHORT)?.success());
        for (from, to, epoch) in [(1, 0, 3), (0, 1, 4)] {
            story.receive(to)?;
            ensure!(story.migrate(from)? == 0, "{}", story.vmm(from)?.said());
            story.vmm(to)?.console.wait("hb ", SHORT)?;
            story.expect_state(to, VmState::Running, epoch)?;
            let ended = story.sides[from].as_mut().context("it moved away")?.wait(SHORT)?;
            ensure!(ended.success(), "{ended}");
        }
        ensure!(story.check(4)? == 0);
        story.end()
    })
}

#[test]
fn a_terminated_source_calls_the_move_off() -> Result<()> {
    stories("local-handover-sigterm", &[Point::Have], |mut story, point| {
        let (_meddler, moving) = story.through_meddler(point)?;
        let id = story.vmm(0)?.process();
        ensure!(Command::new("kill").args(["-TERM", &id.to_string()]).status()?.success());
        ensure!(story.end_migrate(moving)? == 1);
        let ended = story.sides[0].as_mut().context("the source")?.wait(SHORT)?;
        ensure!(ended.success(), "{ended}");
        story.run(0)?;
        story.vmm(0)?.console.wait("hb 3 ", SHORT)?;
        story.heal()?;
        ensure!(story.check(2)? == 1);
        story.end()
    })
}
