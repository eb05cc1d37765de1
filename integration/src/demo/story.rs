//! The demo of two VMMs without a pool, step by step, on two lab machines.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rebec_vmm_api::Outcome;

use super::{
    Options,
    report::DemoReport,
    work::{Seen, WORK_DEADLINE, Work},
};
use crate::{
    guest,
    progress::say,
    provision,
    qemu::{
        Lab, LabConfig, Shape, Vm, VmSpec,
        vm::{self, GUEST_BOOT_DEADLINE},
    },
};

const MACHINES: [&str; 2] = ["a", "b"];
const LINK: Shape = Shape { rate_mbit: Some(100), delay: Duration::from_millis(10), loss_ppm: 0, cut: false };
/// The silence may last 3 s; the rest is for draining, resuming and telling the LAN.
const DOWNTIME_MS_MAX: &str = "1000";
/// Moves took 88 to 177 s on two busy cores.
const MOVE_DEADLINE: Duration = Duration::from_secs(600);
/// How long the old VMM may go on forwarding.
const FORWARD_DEADLINE: Duration = Duration::from_secs(60);

/// The three VMs and those who talk to them.
struct Cast {
    lab: Lab,
    web: Vm,
    control: Vm,
    client: Vm,
}

/// Sets the stage, moves the VM so often as asked, and reports.
pub fn tell(options: &Options) -> Result<DemoReport> {
    let (mut cast, mut work) = Cast::assemble(options)?;
    let mut moves = Vec::new();
    for number in 1..=options.moves {
        moves.push(cast.one_move(&mut work, number, options.streams)?);
        if moves.last().is_some_and(|seen| seen.reported().outcome != Outcome::Moved) {
            break;
        }
    }
    let report = work.end(moves)?;
    if report.is_right() {
        cast.lab.succeeded();
    }
    Ok(report)
}

impl Cast {
    fn assemble(options: &Options) -> Result<(Self, Work)> {
        let provisions = provision::provision()?;
        let files = guest::files(&provisions.guest)?;
        let share = vm::share(&provisions.guest, &files, options.vmm.as_ref())?;
        let accel = options.accel;
        let lab = Lab::start(
            &provisions,
            &LabConfig { name: "demo", machines: &MACHINES, accel, memory_mib: 1536, share, link: LINK, devices: &[] },
        )?;
        lab.check_kvm()?;
        for machine in &lab.machines {
            machine.give_large_pages()?;
        }
        let spec = |name, number, vcpus| VmSpec { name, number, memory: "256M", vcpus };
        // The VM that moves has clocks to compare: one watcher on each of its processors.
        let (web, client, control) = (spec("web", 1, 2), spec("client", 2, 1), spec("control", 3, 1));
        say("demo", "starting VMs web (2 vCPUs) and control on machine a, client on machine b: Debian 13, 256 MiB each, on one LAN");
        let web = Vm::run(&lab, 0, &web, &[(&client, 1), (&control, 0)])?;
        let control = Vm::run(&lab, 0, &control, &[(&web.spec, 0), (&client, 1)])?;
        let client = Vm::run(&lab, 1, &client, &[(&web.spec, 0), (&control.spec, 0)])?;
        let mut to_web = web.orders(&lab, 1)?;
        let mut to_client = client.orders(&lab, 1)?;
        let mut to_control = control.orders(&lab, 1)?;
        for (vm, orders) in [(&web, &mut to_web), (&control, &mut to_control), (&client, &mut to_client)] {
            let there = orders.hello(GUEST_BOOT_DEADLINE);
            there.with_context(|| format!("boot vm {}: its VMM says: {}", vm.spec.name, vm.said()))?;
            say("demo", format_args!("VM {} is up", vm.spec.name));
        }
        let work = Work::begin(to_web, to_client, web.spec.address(), control.spec.address())?;
        Ok((Self { lab, web, control, client }, work))
    }

    /// Moves `web` to the machine where it is not, with work on its disk and memory under way.
    fn one_move(&mut self, work: &mut Work, number: u8, streams: u8) -> Result<Seen> {
        let (from, to) = (self.web.machine, 1 - self.web.machine);
        let way = format!("from machine {} to machine {}", MACHINES[from], MACHINES[to]);
        work.busy(number)?;
        let client = if to == self.client.machine { vec![&self.client.spec] } else { Vec::new() };
        let donors = if client.is_empty() { vec![&self.control.spec] } else { client };
        let peers = [(&self.client.spec, self.client.machine), (&self.control.spec, self.control.machine)];
        let arrived = Vm::receive(&self.lab, to, &self.web.spec, &peers, &donors)?;
        say("demo", format_args!("move {number}: web goes {way} while it works"));
        work.begin_move(number)?;
        let link_before = self.lab.switch.passed(from, to).bytes;
        let options = ["--streams", &streams.to_string(), "--downtime-max-ms", DOWNTIME_MS_MAX];
        let moving = self.web.begin_move(&self.lab, to, &options)?;
        let (code, reported) = moving.finish(MOVE_DEADLINE).with_context(|| format!("the target says: {}", arrived.said()))?;
        if code != i32::from(reported.outcome.exit_code()) {
            bail!("ctl migrate reported {:?} and ended with code {code}", reported.outcome);
        }
        let link_bytes = self.lab.switch.passed(from, to).bytes - link_before;
        if reported.outcome == Outcome::Moved {
            self.follow(work, arrived, to)?;
        } else {
            say(
                "demo",
                format_args!("move {number} did not succeed; the source says: {}; the target: {}", self.web.said(), arrived.said()),
            );
        }
        work.after_move(number, way, reported, link_bytes)
    }

    /// The VM lives elsewhere now: tell its LAN, and talk to it there.
    fn follow(&mut self, work: &mut Work, arrived: Vm, to: usize) -> Result<()> {
        let (mac, endpoint) = (self.web.spec.mac(), self.web.spec.endpoint(to));
        for vm in [&self.client, &self.control] {
            vm.ctl(&self.lab, &["fdb-add", &mac, &endpoint])?;
        }
        work.web = arrived.orders(&self.lab, work.web.next_number())?;
        let left = std::mem::replace(&mut self.web, arrived);
        let code = left.wait_end(FORWARD_DEADLINE)?;
        if code != 0 {
            bail!("the VMM that web left ended with code {code}: {}", left.said());
        }
        work.web.hello(WORK_DEADLINE)
    }
}
