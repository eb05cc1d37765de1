//! VMs that are restarted when their host is lost: by nobody's word but their keeper's, never two at a time, and not when it is the keeper that is lost.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use rebec_lab::netlab::agents::{Agents, Beats, Host, SOON, Seat, eventually, same};
use serde_json::Value;

const LEASE: Duration = Duration::from_secs(15);
const MARGIN: Duration = Duration::from_secs(3);
/// A lease, its margin and a start, on a machine that is five times as slow as a quiet one.
const STARTED_ELSEWHERE: Duration = Duration::from_secs(90);
/// Of the margin, what must be left between the last beat here and the first there.
const APART: Duration = Duration::from_secs(1);
/// No guest under a lease that is renewed is silent for so long.
const SILENT: Duration = Duration::from_secs(3);
/// Between two looks at a console.
const LISTEN_PERIOD: Duration = Duration::from_millis(100);
const RESTART: [&str; 2] = ["--on-host-loss", "restart"];
const LOAD: &str = "vm=1 fill=random:5:30%,zero dirty=0:words:500";

/// Three hosts of one domain, the VM `web` on the second, and the numbers of its keeper and of the host that is neither.
fn pool(story: &str) -> Result<(Agents, usize, usize)> {
    let agents = Agents::start(story, &["a1", "a2", "a3"])?;
    agents.found(&["alpha", "alpha", "alpha"])?;
    agents.furnish()?;
    let web = agents.run("web", "a2", "64M", &RESTART, LOAD)?;
    same("web's fate", &web["on_host_loss"], "restart")?;
    let keeper = if web["keeper"] == "a1" { 0 } else { 2 };
    same("web's keeper", &web["keeper"], agents.hosts[keeper].name())?;
    Seat::take(agents.host("a2"), "web")?;
    same("web's lease", &agents.host("a2").vm("web")?["lease"], "held")?;
    Ok((agents, keeper, 2 - keeper))
}

/// What a host's agent has heard of its copy of a VM.
fn console(host: &Host, vm: &Value) -> Result<PathBuf> {
    Ok(host.state().join("vms").join(vm["id"].as_str().context("no id")?).join("console.log"))
}

/// How long `web` says nothing at most, while it is listened to. For one that has moved: its log here does not begin with its first words.
fn longest_silence(host: &Host, listened: Duration) -> Result<Duration> {
    let console = console(host, &host.vm("web")?)?;
    let (begun, mut heard, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
    let mut said = fs::metadata(&console)?.len();
    while begun.elapsed() < listened {
        thread::sleep(LISTEN_PERIOD);
        longest = longest.max(heard.elapsed());
        let now = fs::metadata(&console)?.len();
        if now != said {
            (said, heard) = (now, Instant::now());
        }
    }
    Ok(longest)
}

fn copies(host: &Host) -> Result<usize> {
    Ok(fs::read_dir(host.state().join("vms"))?.count())
}

/// Waits until `web` runs on another host than `a2`, as `host` knows it; what that host says of it then.
fn started_elsewhere(host: &Host) -> Result<Value> {
    let runs = || {
        let web = host.vm("web")?;
        Ok(web["state"] == "running" && web["host"] != "a2")
    };
    eventually("web runs elsewhere", STARTED_ELSEWHERE, runs)?;
    let web = host.vm("web")?;
    let reason = web["reason"].as_str().context("web says why it began anew")?;
    ensure!(reason.contains("host a2 was lost; started again from its disk image"), "{reason}");
    ensure!(web["epoch"].as_u64() > Some(1) && web["lease"] == "held", "{web}");
    Ok(web)
}

/// What was on `a2` goes, and `web` runs on where it is.
fn old_copy_goes(agents: &Agents, web: &Value, left: usize) -> Result<()> {
    eventually("the old copy is gone", SOON, || Ok(copies(agents.host("a2"))? == left))?;
    ensure!(agents.host("a2").said().contains("vm web: removed: "), "a2 says nothing of what it removed");
    agents.everywhere("web is where it was started", |host| {
        let now = host.vm("web")?;
        Ok(now["host"] == web["host"] && now["epoch"] == web["epoch"] && now["state"] == "running")
    })?;
    let there = agents.hosts.iter().map(copies).sum::<Result<usize>>()?;
    ensure!(there == left + 1, "{there} copies");
    Seat::take(agents.host(web["host"].as_str().context("no host")?), "web")?.check_memory()
}

#[test]
fn a_host_dies_and_its_vm_runs_elsewhere_without_anybodys_word() -> Result<()> {
    let (mut agents, keeper, _) = pool("local-pool-keeper-dies")?;
    // One that was stopped stays so.
    agents.run("idle", "a2", "16M", &RESTART, "vm=2")?;
    agents.host("a1").must(&["vm", "stop", "idle"])?;
    agents.run("held", "a2", "16M", &[], "vm=3")?;
    eventually("idle's keeper has heard of it", SOON, || Ok(agents.host("a1").vm("idle")?["state"] == "stopped"))?;

    agents.hosts[1].lose_power()?;
    let web = started_elsewhere(&agents.hosts[keeper])?;
    thread::sleep(MARGIN + SILENT);
    for vm in ["idle", "held"] {
        same(vm, &agents.hosts[keeper].vm(vm)?["state"], "lost")?;
    }
    agents.restart(1)?;
    old_copy_goes(&agents, &web, 2)?;

    agents.hosts[1].lose_power()?;
    let a1 = agents.host("a1");
    eventually("a2 is silent", SOON, || Ok(a1.must(&["host", "show", "a2"])?["state"] == "silent"))?;
    a1.must(&["host", "declare-dead", "a2", "--reason", "it burnt"])?;
    let idle = a1.must(&["vm", "start", "idle"])?;
    ensure!(idle["state"] == "running" && idle["host"] != "a2" && idle["epoch"].as_u64() > Some(1), "{idle}");
    agents.succeeded();
    Ok(())
}

#[test]
fn a_host_that_is_cut_off_stops_its_vm_before_it_runs_elsewhere() -> Result<()> {
    let (mut agents, keeper, _) = pool("local-pool-keeper-cut")?;
    let a2 = agents.host("a2");
    let here = a2.vm("web")?;
    let old = console(a2, &here)?;
    agents.lab.cut(&agents.lab.machines[1])?;
    let others = [0, 2].map(|host| console(&agents.hosts[host], &here));
    let [first, third] = others;
    let (first, third) = (first?, third?);
    eventually("it beats elsewhere", STARTED_ELSEWHERE, || Ok(first.exists() || third.exists()))?;
    let (begun, ended) = (SystemTime::now(), fs::metadata(&old)?.modified()?);
    let apart = begun.duration_since(ended).context("it beats here and there")?;
    ensure!(apart > APART, "it beat here {apart:?} before it did there");
    let said = fs::metadata(&old)?.len();
    let web = started_elsewhere(&agents.hosts[keeper])?;
    thread::sleep(SILENT);
    ensure!(fs::metadata(&old)?.len() == said, "it beats again where its lease has run out");
    let here = a2.vm("web")?;
    ensure!(here["state"] == "paused" && here["lease"] == "ran-out", "{here}");
    let reason = here["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("its lease has run out") && reason.contains(agents.hosts[keeper].name()), "{reason}");

    agents.lab.shape(None)?;
    old_copy_goes(&agents, &web, 0)?;
    agents.succeeded();
    Ok(())
}

#[test]
fn a_keeper_that_is_lost_restarts_nothing_and_its_vm_waits_for_it() -> Result<()> {
    let (mut agents, keeper, other) = pool("local-pool-keeper-lost")?;
    agents.hosts[keeper].lose_power()?;
    let ran_out = || Ok(agents.host("a2").vm("web")?["lease"] == "ran-out");
    eventually("web stands still", STARTED_ELSEWHERE, ran_out)?;
    let last = Beats::of(agents.host("a2"), "web")?.last();
    thread::sleep(LEASE + MARGIN + SILENT);
    let web = agents.hosts[other].vm("web")?;
    ensure!(web["host"] == "a2" && web["epoch"] == 1 && web["state"] == "paused", "{web}");
    same("beats", &Value::from(Beats::of(agents.host("a2"), "web")?.last()), last)?;

    agents.restart(keeper)?;
    agents.everywhere("web goes on", |host| {
        let web = host.vm("web")?;
        Ok(web["state"] == "running" && web["lease"] == "held" && web["host"] == "a2" && web["epoch"] == 1)
    })?;
    Seat::take(agents.host("a2"), "web")?.check_memory()?;
    let beats = Beats::of(agents.host("a2"), "web")?;
    ensure!(beats.last() > last && beats.lost() == Some(0), "it was started anew, or lost {:?} beats", beats.lost());
    agents.succeeded();
    Ok(())
}

#[test]
fn moves_and_agents_that_die_do_not_disturb_a_lease() -> Result<()> {
    let (mut agents, keeper, other) = pool("local-pool-keeper-moves")?;
    let since = Beats::of(agents.host("a2"), "web")?.last();
    agents.hosts[1].kill()?;
    agents.restart(1)?;
    // The keeper's too: it promises anew at once, and grants nothing for a while.
    agents.hosts[keeper].kill()?;
    agents.restart(keeper)?;
    thread::sleep(LEASE + MARGIN + SILENT);
    let gap = Beats::of(agents.host("a2"), "web")?.longest_gap(since);
    ensure!(gap < SILENT, "web was silent for {gap:?} because agents died");

    // Away, onto its keeper, and back.
    for (epoch, to) in (2..).zip([other, keeper, 1]) {
        let name = agents.hosts[to].name().to_owned();
        let report = agents.host("a1").must(&["vm", "move", "web", "--to", &name])?;
        same("the move's outcome", &report["outcome"], "moved")?;
        agents.everywhere("web has moved", |host| Ok(host.vm("web")?["host"] == name.as_str() && host.vm("web")?["epoch"] == epoch))?;
    }
    let gap = longest_silence(agents.host("a2"), LEASE + MARGIN + SILENT)?;
    let web = agents.host("a1").vm("web")?;
    ensure!(web["host"] == "a2" && web["epoch"] == 4 && web["state"] == "running" && web["lease"] == "held", "{web}");
    ensure!(gap < SILENT, "web was silent for {gap:?} after its moves");
    agents.host("a1").must(&["host", "drain", "a2"])?;
    ensure!(agents.host("a1").vm("web")?["host"] != "a2", "a2 was drained and has web");
    agents.host("a1").must(&["vm", "stop", "web"])?;
    agents.host("a1").must(&["vm", "rm", "web"])?;
    agents.succeeded();
    Ok(())
}

#[test]
fn a_domain_of_one_host_has_no_keeper() -> Result<()> {
    let mut agents = Agents::start("local-pool-keeper-none", &["a1", "b1"])?;
    agents.found(&["alpha", "beta"])?;
    agents.furnish()?;
    let words = ["vm", "run", "web", "--image", "bench", "--host", "a1", "--memory", "16M", "--on-host-loss", "restart"];
    let (code, said) = agents.host("a1").refused(&words)?;
    ensure!(code == 1 && said.contains("keeper") && said.contains("host invite") && said.trim().lines().count() == 1, "{said}");
    ensure!(!agents.host("a1").knows("vm", "web")?, "it left a VM behind");
    agents.succeeded();
    Ok(())
}
