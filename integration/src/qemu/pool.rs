//! Appliances as their user has them: `rebec` in a lab machine, and tickets typed at its serial console.
//!
//! The commands run inside the machines, through the lab's own channel: the image itself has no shell and no such channel.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rebec_api::{
    host::{HostInfo, HostState},
    vm::VmInfo,
};
use serde::de::DeserializeOwned;

use super::{Lab, Machine, Orders, vm::Moving};

/// Orders that gather nothing over a slow link.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);
/// A join is 2 s at most on an idle host; emulated machines on a busy one wait for their turn.
const JOIN_DEADLINE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(200);

/// Runs `rebec` in a machine and returns what it printed.
pub fn rebec(machine: &Machine, words: &[&str], deadline: Duration) -> Result<String> {
    machine.check(&[&["rebec"], words].concat(), deadline)
}

/// The same with `--json`, read.
pub fn ask<T: DeserializeOwned>(machine: &Machine, words: &[&str]) -> Result<T> {
    let text = rebec(machine, &[&["--json"], words].concat(), COMMAND_DEADLINE)?;
    serde_json::from_str(&text).with_context(|| format!("rebec {} on machine {}: {text}", words.join(" "), machine.name()))
}

/// Waits for the agent of a machine.
pub fn wait_agent(machine: &Machine, deadline: Duration) -> Result<()> {
    machine.wait_console("\nkey ", deadline)?;
    machine.wait_console("\naddresses  10.", deadline)
}

/// Founds a pool and asks for a ticket, both typed at a machine's console without waiting; returns the ticket, which so many hosts may use.
pub fn found_by_typing(machine: &Machine, pool: &str, domain: &str, uses: usize) -> Result<String> {
    machine.type_line(&format!("rebec pool init {pool} --domain {domain}"))?;
    machine.type_line(&format!("rebec host invite --uses {uses}"))?;
    machine.find_on_console("a ticket", JOIN_DEADLINE, |said| {
        // The last line may still grow.
        let (whole, _) = said.rsplit_once('\n')?;
        ticket_in(whole)
    })
}

fn ticket_in(text: &str) -> Option<String> {
    text.lines().map(str::trim).find(|line| line.starts_with("rebec1")).map(str::to_owned)
}

/// Makes a ticket, by `host invite` or `domain invite NAME`.
pub fn ticket(machine: &Machine, words: &[&str]) -> Result<String> {
    let printed = rebec(machine, words, COMMAND_DEADLINE)?;
    ticket_in(&printed).with_context(|| format!("rebec {} printed no ticket", words.join(" ")))
}

/// Types a ticket at a machine's console and waits until the screen there says that it is a member. Returns how long that took.
pub fn join_by_typing(machine: &Machine, ticket: &str, domain: &str) -> Result<Duration> {
    let start = Instant::now();
    machine.type_line(ticket)?;
    wait_member(machine, domain)?;
    Ok(start.elapsed())
}

/// Waits until a machine's screen says that it is a member.
pub fn wait_member(machine: &Machine, domain: &str) -> Result<()> {
    machine.wait_console(&format!(", domain {domain}"), JOIN_DEADLINE)
}

/// Waits until so many hosts answer, as one of them knows it.
pub fn wait_hosts(machine: &Machine, count: usize) -> Result<()> {
    let end = Instant::now() + JOIN_DEADLINE;
    loop {
        let hosts: Vec<HostInfo> = ask(machine, &["host", "ls"])?;
        if hosts.iter().filter(|host| host.state == HostState::Ready).count() == count {
            return Ok(());
        }
        if Instant::now() > end {
            let seen: Vec<_> = hosts.iter().map(|host| format!("{} {:?}", host.name, host.state)).collect();
            bail!("machine {} does not see {count} hosts that answer: {}", machine.name(), seen.join(", "));
        }
        std::thread::sleep(LOOK);
    }
}

/// A VM as a machine knows it.
pub fn vm(machine: &Machine, name: &str) -> Result<VmInfo> {
    ask(machine, &["vm", "show", name])
}

/// Sits at a VM's console, which stays through moves.
pub fn console(lab: &Lab, machine: &Machine, name: &str) -> Result<Orders> {
    let job = machine.start(&["rebec", "vm", "console", name])?;
    Orders::on(job, name, &lab.evidence().join(format!("{name}.console")))
}

/// Begins to move a VM.
pub fn begin_move(machine: &Machine, name: &str, words: &[&str]) -> Result<Moving> {
    let job = machine.start(&[&["rebec", "--json", "vm", "move", name], words].concat())?;
    Ok(Moving::new(job, name))
}
