//! A new agent finds the VMs of the one before: VMMs that run are asked how they are and watched again; those that ended with
//! the machine are started from their disks.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context, Result};
use rebec_pool::record::SeenState;
use rebec_vmm_api::control::MigrateOptions;

use super::{Kept, LocalVm, Want, control::Control, depart, process::Process, start, watch};
use crate::{
    agent::{Agent, lock},
    facts,
};

/// Adopts every VM of the state folder.
pub async fn all(agent: &Arc<Agent>) -> Result<()> {
    let folder = agent.options.state.join("vms");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        match read(&path) {
            Ok(kept) => one(agent, &path, kept).await,
            // A folder without its file was being made or removed: nothing in it was ever acknowledged.
            Err(error) => log::warn!("{}: left alone: {error:#}", path.display()),
        }
    }
    Ok(())
}

fn read(folder: &Path) -> Result<Kept> {
    let path = folder.join("vm.json");
    serde_json::from_slice(&fs::read(&path).with_context(|| format!("read {}", path.display()))?).context("understand vm.json")
}

async fn one(agent: &Arc<Agent>, folder: &Path, kept: Kept) {
    let vm = Arc::new(LocalVm::new(folder.to_owned(), kept.clone()));
    lock(&agent.vms).insert(kept.id, vm.clone());
    let socket = vm.control();
    let pid = tokio::task::spawn_blocking(move || Control::connect(&socket).and_then(|control| control.pid())).await;
    let process = match pid {
        Ok(Ok(pid)) => Process::adopt(pid, folder),
        Ok(Err(error)) => Err(error),
        Err(error) => Err(error.into()),
    };
    match process {
        Ok(process) => {
            log::info!("vm {}: adopted", kept.body.name);
            watch::look(agent, &vm).await;
            watch::spawn(agent, &vm, process);
            if vm.seen().state == SeenState::Waiting
                && let Some(to) = kept.to.and_then(|to| agent.peer(&to))
            {
                let options =
                    MigrateOptions { streams: 1, downtime_ms_max: MigrateOptions::default_downtime_ms(), bandwidth_mbit_max: None };
                tokio::spawn(depart::insist(agent.clone(), vm, to, options));
            }
        }
        Err(_) => absent(agent, &vm, &kept).await,
    }
}

/// No VMM answers for it.
async fn absent(agent: &Arc<Agent>, vm: &Arc<LocalVm>, kept: &Kept) {
    let name = &kept.body.name;
    match kept.want {
        Want::Stopped => vm.say_stopped(agent, SeenState::Stopped, None),
        Want::Gone | Want::Arriving => watch::remove(agent, vm),
        Want::Running => {
            let since = if kept.boot == facts::boot_id() { "while no agent watched" } else { "when the machine stopped" };
            log::warn!("vm {name}: its VMM ended {since}: it starts again from its disk");
            match start::boot(agent, vm).await {
                Ok(process) => {
                    // The reason of a state goes with it: it is said of the one that the VM comes to.
                    watch::look(agent, vm).await;
                    vm.say(agent, |seen| seen.reason = Some(format!("its VMM ended {since}; it was started again from its disk")));
                    watch::spawn(agent, vm, process);
                }
                Err(error) => vm.say_stopped(agent, SeenState::Failed, Some(format!("its VMM ended {since}; start it again: {error:#}"))),
            }
        }
    }
}
