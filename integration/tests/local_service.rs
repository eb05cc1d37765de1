//! The package on a Debian system: dpkg installs it, systemd starts the agent, and VMs outlive the agent's restart, the package's removal and its
//! return.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rebec_image_build::deb;
use rebec_lab::{
    artifacts::{self, Artifact},
    netlab::{
        NetLab,
        agents::{eventually, same},
        debian::{Debian, FILES},
        guest,
    },
};
use serde_json::Value;

/// A service is stopped and started anew in seconds.
const SOON: Duration = Duration::from_secs(30);

/// A command of `rebec` in the system, by the name under which the package has it.
fn rebec(debian: &Debian, words: &[&str]) -> Result<Value> {
    let said = debian.run(&[&["rebec", "--json"], words].concat())?;
    if said.trim().is_empty() { Ok(Value::Null) } else { serde_json::from_str(&said).with_context(|| said) }
}

fn main_process(debian: &Debian) -> Result<String> {
    Ok(debian.run(&["systemctl", "show", "--property", "MainPID", "--value", "rebec"])?.trim().to_owned())
}

/// Waits until the agent answers that the VM runs.
fn runs(debian: &Debian, when: &str) -> Result<()> {
    eventually(&format!("the VM runs {when}"), SOON, || Ok(rebec(debian, &["vm", "show", "web"]).is_ok_and(|vm| vm["state"] == "running")))
}

#[test]
fn a_package_is_installed_restarted_removed_and_installed_again_under_a_vm() -> Result<()> {
    let mut lab = NetLab::start("local-service", &["a"])?;
    let files = lab.evidence().join("files");
    fs::create_dir(&files)?;
    let package = deb::build(&artifacts::build(Artifact::Rebec)?, &artifacts::build(Artifact::Vmm)?, &files)?;
    let package = format!("{FILES}/{}", package.file_name().context("a package has a name")?.to_string_lossy());
    fs::copy(guest::build()?, files.join("guest"))?;
    let debian = Debian::boot(&lab.machines[0], &files)?;

    debian.run(&["dpkg", "--install", &package])?;
    debian.run(&["systemctl", "is-enabled", "rebec"])?;
    eventually("the agent answers", SOON, || Ok(rebec(&debian, &["pool", "status"]).is_ok()))?;
    rebec(&debian, &["pool", "init", "lab", "--domain", "alpha"])?;
    rebec(&debian, &["image", "import", "bench", "--kernel", &format!("{FILES}/guest"), "--cmdline", "stats_ms=0"])?;
    rebec(&debian, &["vm", "run", "web", "--image", "bench", "--memory", "64M"])?;
    runs(&debian, "at first")?;
    let (vmm, agent) = (debian.processes("rebec-vmm")?, main_process(&debian)?);
    ensure!(!vmm.is_empty(), "no VMM runs");

    debian.run(&["systemctl", "restart", "rebec"])?;
    runs(&debian, "under an agent that was started again")?;
    ensure!(main_process(&debian)? != agent, "the agent is still the same process");
    same("the VMM's processes", &debian.processes("rebec-vmm")?.into(), vmm.clone())?;

    debian.run(&["dpkg", "--remove", "rebec"])?;
    ensure!(debian.run(&["systemctl", "is-active", "rebec"]).is_err(), "the agent runs without its package");
    same("the VMM's processes without the package", &debian.processes("rebec-vmm")?.into(), vmm.clone())?;

    debian.run(&["dpkg", "--install", &package])?;
    runs(&debian, "under the package that was installed again")?;
    same("the VMM's processes at last", &debian.processes("rebec-vmm")?.into(), vmm)?;
    rebec(&debian, &["vm", "stop", "web"])?;
    eventually("the VMM has ended", SOON, || Ok(debian.processes("rebec-vmm")?.is_empty()))?;
    lab.succeeded();
    Ok(())
}
