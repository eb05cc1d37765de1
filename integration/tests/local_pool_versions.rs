//! A pool that is upgraded host by host: `a2` becomes a later version that writes kinds of records, fields and saved state, and asks
//! questions, of which the others know nothing; and goes back to the version before, with its VMs running all the while.

use std::fs;

use anyhow::{Result, ensure};
use rebec_lab::netlab::agents::{Agents, Host, SOON, Seat, eventually, same};

/// In the records that the later version alone knows.
const SAYING: &[u8] = b"kept by those who know it not";

/// Moves a VM between two hosts and looks whether it came whole.
fn moved(asked: &Host, vm: &str, to: &Host) -> Result<()> {
    let report = asked.must(&["vm", "move", vm, "--to", to.name()])?;
    same(&format!("{vm}'s move to {}", to.name()), &report["outcome"], "moved")?;
    eventually("its host says that it runs there", SOON, || {
        let seen = to.vm(vm)?;
        Ok(seen["state"] == "running" && seen["host"] == to.name())
    })?;
    Seat::take(to, vm)?.check_memory()
}

/// What the hosts that a host knows are called, with how they are and their versions.
fn hosts(at: &Host) -> Result<Vec<String>> {
    let list = at.must(&["host", "ls"])?;
    let text = |host: &serde_json::Value, field: &str| host[field].as_str().unwrap_or_default().to_owned();
    Ok(list.as_array().into_iter().flatten().map(|host| ["name", "state", "version"].map(|field| text(host, field)).join(" ")).collect())
}

/// The process of a VM that runs at a host.
fn process(at: &Host, vm: &str) -> Result<Option<u64>> {
    let seen = at.vm(vm)?;
    Ok(seen["pid"].as_u64().filter(|pid| *pid > 0 && seen["state"] == "running" && seen["host"] == at.name()))
}

#[test]
fn hosts_of_two_versions_are_one_pool_and_move_vms_both_ways() -> Result<()> {
    let mut agents = Agents::start("local-pool-versions", &["a1", "a2", "a3"])?;
    agents.found(&["alpha", "alpha", "alpha"])?;
    agents.furnish()?;
    let fill = "fill=random:5:60%,zero dirty=0:words:500";
    agents.run("web", "a1", "32M", &[], &format!("vm=1 {fill}"))?;
    agents.run("old", "a2", "32M", &[], &format!("vm=2 {fill}"))?;
    ensure!(agents.host("a1").must(&["pool", "status"])?["versions"].is_null(), "hosts of one version do not differ");
    let before = process(agents.host("a2"), "old")?;
    ensure!(before.is_some(), "old does not run");

    // What a3 hears of a2 from here on, it will have from a1.
    agents.hosts[2].kill()?;
    agents.hosts[1].kill()?;
    agents.hosts[1].later = true;
    agents.restart(1)?;
    let (a1, a2) = (agents.host("a1"), agents.host("a2"));
    eventually("the newer agent adopts the VMM of the older", SOON, || Ok(process(a2, "old")? == before))?;
    eventually("both answer, each known by its version", SOON, || {
        let known = ["a1 ready 0.1.0", "a2 ready 0.2.0"];
        Ok([a1, a2]
            .iter()
            .map(|host| hosts(host))
            .collect::<Result<Vec<_>>>()?
            .iter()
            .all(|list| known.iter().all(|one| list.contains(&(*one).to_owned()))))
    })?;
    let shown = a1.must(&["host", "show", "a2"])?;
    same("a2's protocols", &shown["protocols"], serde_json::json!({ "peer": "1-2", "moves": "4-5", "control": "1" }))?;
    for host in [a1, a2] {
        same("what is to be upgraded", &host.must(&["pool", "status"])?["versions"], "0.2.0 on a2; to be upgraded: 0.1.0 on a1 a3")?;
    }

    // Each side's VMMs send and take in, and each side's home writes the VM's record.
    moved(a1, "web", a2)?;
    moved(a2, "web", a1)?;
    moved(a2, "old", a1)?;
    let run = ["vm", "run", "new", "--image", "bench", "--host", "a1", "--memory", "32M", "--cmdline", &format!("vm=3 {fill}")];
    a2.must(&run)?;
    moved(a1, "new", a2)?;
    moved(a2, "new", a1)?;

    // What a1 does not know it refuses as such: nothing is wrong with it, nor with what it was asked about.
    let older = "host a1 (Rebec 0.1.0) is older than the host that asks and does not know `/internal/later`: upgrade it";
    eventually("a2 is told that a1 is older", SOON, || Ok(a2.said().contains(&format!("OtherVersion: {older}"))))?;
    let (code, said) = a2.refused(&["vm", "run", "needs-more", "--image", "bench", "--host", "a1", "--memory", "16M"])?;
    ensure!(code == 1 && said.contains("needs `later`, which host a1 (Rebec 0.1.0) does not know: upgrade that host"), "{code} {said}");
    ensure!(hosts(a2)?.contains(&"a1 ready 0.1.0".to_owned()), "a1 counts as silent");

    // Back to the version before, under a VMM of the later one.
    moved(a1, "web", a2)?;
    let before = process(a2, "web")?;
    agents.hosts[1].kill()?;
    agents.restart(2)?;
    let a3 = agents.host("a3");
    eventually("what a2 said last came from a1 to a3", SOON, || Ok(hosts(a3)?.contains(&"a2 silent 0.2.0".to_owned())))?;
    let records = a3.state().join("records.redb");
    eventually("and with it the record that neither of them knows", SOON, || {
        // Records of others wait for the next write that does not.
        a3.must(&["token", "create", "flush", "--role", "viewer"])?;
        a3.must(&["token", "rm", "flush"])?;
        Ok(fs::read(&records)?.windows(SAYING.len()).any(|bytes| bytes == SAYING))
    })?;
    agents.hosts[1].later = false;
    agents.restart(1)?;
    let (a1, a2) = (agents.host("a1"), agents.host("a2"));
    eventually("the older agent adopts the VMM of the newer", SOON, || Ok(process(a2, "web")? == before))?;
    moved(a2, "web", a1)?;
    eventually("all hosts are of one version again", SOON, || Ok(a1.must(&["pool", "status"])?["versions"].is_null()))?;
    agents.succeeded();
    Ok(())
}
