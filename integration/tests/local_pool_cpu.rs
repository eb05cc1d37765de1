//! Hosts of unlike processors in one domain: where a VM may go is known before anything of it moves.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rebec_lab::netlab::{
    NetLab,
    agents::{Agents, Answer, Host, SOON, eventually},
    processor::Processor,
    vmm,
};
use serde_json::Value;

fn said(answer: &Answer) -> String {
    format!("{}{}", answer.stdout, answer.stderr)
}

/// What the VMM of a VM says of itself.
fn status(host: &Host, id: &str) -> Result<Value> {
    let socket = host.state().join("vms").join(id).join("control.sock");
    let said = Command::new(vmm::program()?).arg("ctl").arg(socket).args(["status", "--json"]).output()?;
    serde_json::from_slice(&said.stdout).with_context(|| String::from_utf8_lossy(&said.stderr).into_owned())
}

#[test]
fn a_vm_of_the_pools_model_goes_everywhere_and_one_of_its_hosts_own_does_not() -> Result<()> {
    let here = Processor::here()?;
    let lesser = here.lesser()?;
    let lab = NetLab::start("local-pool-cpu", &["a1", "a2"])?;
    let mut agents = Agents::start_on(lab, 2, |host| host.cpu_max = (host.name() == "a2").then(|| lesser.clone()))?;
    agents.found(&["alpha", "alpha"])?;
    agents.furnish()?;
    let [a1, a2] = &agents.hosts[..] else { unreachable!("two hosts were asked for") };
    eventually("a1 knows what a2 has", SOON, || Ok(a1.must(&["host", "show", "a2"])?["cpu"]["set"].is_string()))?;
    let (own, theirs) = (a1.must(&["host", "show", "a1"])?, a1.must(&["host", "show", "a2"])?);
    ensure!(
        own["cpu"]["set"] == here.set.as_str() && format!("only:{}", theirs["cpu"]["set"].as_str().unwrap_or_default()) == lesser,
        "{theirs}"
    );

    let vm = agents.run("web", "a1", "64M", &["--cpu", "pool", "--memory-max", "64G"], "fill=text:1 mem=take")?;
    ensure!(vm["cpu"] == "pool" && vm["limits"]["memory_max_bytes"] == 64_u64 << 30, "{vm}");
    let id = vm["id"].as_str().unwrap_or_default().to_owned();
    let has = |host: &Host, mib: u64| -> Result<()> {
        eventually("its guest has what it was asked to", SOON, || Ok(status(host, &id)?["memory"]["taken_bytes"] == mib << 20))
    };
    // More than any of these hosts has: none of it was promised, and it is not promised now.
    let refused = a1.ask(&["vm", "set", "web", "--memory", "63G"])?;
    ensure!(!refused.is_done() && said(&refused).contains("host a1: memory: "), "{}", said(&refused));
    ensure!(a1.must(&["vm", "show", "web"])?["limits"]["memory_bytes"].is_null(), "what was refused stays in the record");
    a1.must(&["vm", "set", "web", "--memory", "256M"])?;
    has(a1, 256)?;
    let refused = a1.ask(&["vm", "set", "web", "--memory", "32M"])?;
    ensure!(!refused.is_done() && said(&refused).contains("created with 64"), "{}", said(&refused));
    let limited = a1.must(&["vm", "set", "web", "--net", "50M", "--disk-iops", "500"])?;
    ensure!(limited["limits"]["net_bits"] == 50_000_000 && limited["limits"]["disk_requests"] == 500, "{limited}");
    for (to, host) in [("a2", a2), ("a1", a1)] {
        a1.must(&["vm", "move", "web", "--to", to])?;
        eventually("it is there", SOON, || Ok(a1.must(&["vm", "show", "web"])?["host"] == to))?;
        let limits = status(host, vm["id"].as_str().unwrap_or_default())?["limits"].clone();
        ensure!(limits["net_bits"] == 50_000_000 && limits["disk_requests"] == 500, "at {to}: {limits}");
        has(host, 256)?;
    }
    // Changed while it is away from its home's word, and lifted.
    a2.must(&["vm", "set", "web", "--net", "none", "--disk-iops", "none"])?;
    ensure!(status(a1, vm["id"].as_str().unwrap_or_default())?["limits"].is_null(), "limits that were lifted are there");
    a2.must(&["vm", "set", "web", "--memory", "64M"])?;
    has(a1, 64)?;
    agents.run("own", "a1", "64M", &[], "fill=text:2")?;
    let refused = a1.ask(&["vm", "set", "own", "--memory", "128M"])?;
    ensure!(!refused.is_done() && said(&refused).contains("created without --memory-max"), "{}", said(&refused));
    let refused = a1.ask(&["vm", "move", "own", "--to", "a2"])?;
    ensure!(!refused.is_done() && said(&refused).contains("a2: its processor lacks CPU feature "), "{}", said(&refused));
    // Drained, it stays for the same reason, and the other one goes.
    let refused = a1.ask(&["host", "drain", "a1"])?;
    ensure!(!refused.is_done() && said(&refused).contains("own: ") && said(&refused).contains("lacks CPU feature"), "{}", said(&refused));
    eventually("web has left", SOON, || Ok(a2.must(&["vm", "show", "web"])?["host"] == "a2"))?;
    a1.must(&["host", "drain", "a1", "--undo"])?;

    for (cpu, why) in [("pentium", "`pentium` is no CPU model"), ("pool:a1,a9", "a9"), ("only:x", "`x` is no set of CPU features")] {
        let refused = a1.ask(&["vm", "run", "bad", "--image", "bench", "--cpu", cpu])?;
        ensure!(!refused.is_done() && said(&refused).contains(why), "{cpu}: {}", said(&refused));
    }
    if !here.level.starts_with("x86") {
        let refused = a1.ask(&["vm", "run", "bad", "--image", "bench", "--cpu", "x86-64-v2"])?;
        let said = said(&refused);
        ensure!(!refused.is_done() && said.contains("a1: its processor lacks CPU feature sse3") && said.contains("a2: "), "{said}");
    }
    agents.succeeded();
    Ok(())
}
