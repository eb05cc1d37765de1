//! What agents cost and how fast they are: joining, starting a VM, carrying a move, doing nothing.
//!
//! Two agents in two machines of the namespace lab, on links without a limit. Bare VMMs do the same work in the same run.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Figure, Peer, Target};
use crate::netlab::{
    Vmm, VmmConfig,
    agents::{Agents, Host, eventually},
    guest,
    vmm::{LONG, SHORT},
};
use crate::sim;

/// What a pool may cost.
const JOIN_MS: f64 = 2000.0;
const RUN_BESIDE_VMM_MS: f64 = 150.0;
const RESIDENT_MIB: f64 = 40.0;
const IDLE_PERCENT: f64 = 0.5;
/// Of what two VMMs move without agents between them.
const CARRIED: f64 = 0.5;

const MEMORY: &str = "640M";
const FILL: &str = "stats_ms=0 heartbeat_ms=100 fill=random:5:80%,zero";
const IDLE_TIME: Duration = Duration::from_secs(10);
const PORT: u16 = 7000;

/// All of it, with one pool.
pub fn measure() -> Result<Vec<Figure>> {
    let mut agents = Agents::start("bench-pool", &["a", "b"])?;
    agents.hosts[0].must(&["pool", "init", "lab", "--domain", "alpha"])?;
    let ticket = agents.hosts[0].ticket(&["host", "invite"])?;
    let (join, ()) = timed(|| agents.hosts[1].must(&["pool", "join", &ticket]).map(drop))?;
    agents.everywhere("both answer", |host| Ok(host.must(&["pool", "status"])?["hosts_reachable"] == 2))?;
    agents.furnish()?;
    let idle = idle(&agents.hosts[0])?;
    let (bare_start, bare) = bare(&agents)?;
    let (run, _) = timed(|| agents.run("web", "a", MEMORY, &[], FILL))?;
    let carried = carried(&agents.hosts[0])?;
    agents.succeeded();

    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let figure = |name: &str, unit, measured, target, peers, how: &str| Figure {
        name: name.to_owned(),
        unit,
        measured,
        target,
        peers,
        how: how.to_owned(),
    };
    let peer = |name: &str, value| vec![Peer { name: name.to_owned(), value }];
    Ok(vec![
        figure("a ticket join", "ms", ms(join), Target::AtMost(JOIN_MS), vec![], "`rebec pool join`, from the command's start to its end"),
        figure(
            "`vm run`, the image there",
            "ms",
            ms(run),
            Target::AtMost(RUN_BESIDE_VMM_MS + ms(bare_start)),
            peer("the VMM alone", ms(bare_start)),
            "from the command's start to its end; the VMM alone from its start to its control socket. The target is 150 ms more than that",
        ),
        figure(
            "a move carried by agents",
            "Mbit/s",
            carried,
            Target::AtLeast(bare * CARRIED),
            peer("VMM to VMM", bare),
            "wire_bytes by total_ms of a VM with 512 MiB of incompressible memory, two streams, source and target on the same cores",
        ),
        figure(
            "an agent's resident memory",
            "MiB",
            idle.0,
            Target::AtMost(RESIDENT_MIB),
            vec![],
            "VmRSS of an agent in a pool of two, before its first VM",
        ),
        figure("an agent's idle processor", "%", idle.1, Target::AtMost(IDLE_PERCENT), vec![], "its threads' time in 10 s, of one core"),
        sim::exchange()?,
    ])
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let began = Instant::now();
    let done = work()?;
    Ok((began.elapsed(), done))
}

/// Resident MiB and percent of a core.
fn idle(host: &Host) -> Result<(f64, f64)> {
    let before = host.processor_time()?;
    thread::sleep(IDLE_TIME);
    let percent = (host.processor_time()? - before).as_secs_f64() / IDLE_TIME.as_secs_f64() * 100.0;
    Ok((host.resident_bytes()? as f64 / f64::from(1 << 20), percent))
}

/// Two VMMs without agents: the time of a start, and Mbit/s of a move.
fn bare(agents: &Agents) -> Result<(Duration, f64)> {
    let [a, b] = &agents.lab.machines[..] else { unreachable!("two machines were asked for") };
    let evidence = agents.lab.evidence();
    let config = VmmConfig { ledger: Some(evidence.join("bare-a.ledger")), ..guest::config(MEMORY, FILL)? };
    let (start, source) = timed(|| Vmm::run(a, "bare", &config))?;
    source.console.wait("ready", LONG)?;
    let there = VmmConfig { ledger: Some(evidence.join("bare-b.ledger")), ..VmmConfig::default() };
    let target = Vmm::receive(b, "bare", PORT, &there)?;
    let report = source.migrate(a, b, PORT, &["--streams", "2"])?.check()?.clone();
    target.console.wait("hb ", SHORT)?;
    Ok((start, report.wire_bytes as f64 * 8.0 / 1e3 / report.total_ms.max(1) as f64))
}

fn carried(host: &Host) -> Result<f64> {
    // Filled, as the other one was.
    eventually("web has filled its memory", LONG, || Ok(host.ask(&["vm", "logs", "web"])?.stdout.contains("ready")))?;
    let report = host.must(&["vm", "move", "web", "--to", "b"])?;
    ensure!(report["outcome"] == "moved", "{report}");
    let number = |field: &str| report[field].as_f64().with_context(|| format!("no {field} in {report}"));
    Ok(number("wire_bytes")? * 8.0 / 1e3 / number("total_ms")?.max(1.0))
}
