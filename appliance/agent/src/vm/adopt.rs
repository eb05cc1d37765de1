//! A new agent finds the VMs of the one before: VMMs that run are asked how they are and watched again; those that ended with
//! the machine are started from their disks.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context, Result};
use rebec_host::{
    folders,
    life::{Input, WORD_TIME},
};
use rebec_vmm_api::control::OtherVersion;

use super::{Kept, LocalVm, process::Process, watch};
use crate::{
    agent::{Agent, lock},
    facts,
};

/// Adopts every VM of the state folder.
pub async fn all(agent: &Arc<Agent>) -> Result<()> {
    let folder = agent.options.state.join("vms");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    folders::sweep(&folder).with_context(|| format!("sweep {}", folder.display()))?;
    let mut found = vec![];
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        match read(&path) {
            Ok(kept) => found.push((path, kept)),
            Err(error) => log::warn!("{}: left alone: {error:#}", path.display()),
        }
    }
    // Side by side: a VMM that hangs is waited for some seconds, and leases of the others wait meanwhile for this agent to begin.
    futures_util::future::join_all(found.into_iter().map(|(path, kept)| async move { one(agent, &path, kept).await })).await;
    Ok(())
}

/// What is kept of the VM whose folder it is.
pub fn read(folder: &Path) -> Result<Kept> {
    let path = folder.join("vm.json");
    serde_json::from_slice(&fs::read(&path).with_context(|| format!("read {}", path.display()))?).context("understand vm.json")
}

async fn one(agent: &Arc<Agent>, folder: &Path, kept: Kept) {
    let since = if kept.boot == facts::boot_id() { "while no agent watched" } else { "when the machine stopped" };
    let vm = Arc::new(LocalVm::found(folder.to_owned(), kept.clone(), format!("its VMM ended {since}")));
    lock(&agent.vms).insert(kept.id, vm.clone());
    match vm.talk(|control| control.pid()).await.and_then(|pid| Process::adopt(pid, folder)) {
        Ok(process) => {
            log::info!("vm {}: adopted", kept.body.name);
            vm.learn(agent, Input::Adopted);
            watch::look(agent, &vm).await;
            watch::spawn(agent, &vm, Some(process));
        }
        Err(error) if error.is::<OtherVersion>() => {
            log::error!("vm {}: {error}", kept.body.name);
            // It has no task: nothing is begun beside a VMM that runs and that this agent does not understand.
            vm.say_strange(agent, error.to_string());
        }
        Err(_) => {
            watch::spawn(agent, &vm, None);
            tokio::spawn(hear_first(agent.clone(), vm));
        }
    }
}

/// Waits for a word from others before something is started: this host may have been declared dead meanwhile.
async fn hear_first(agent: Arc<Agent>, vm: Arc<LocalVm>) {
    let is_outcast = || agent.book(|book| book.dead(&agent.key()).is_some()) == Some(true);
    let heard = || {
        let peers = agent.peers();
        is_outcast() || peers.is_empty() || peers.iter().any(|peer| agent.answers(&peer.key))
    };
    agent.until(WORD_TIME, heard).await;
    vm.learn(&agent, if is_outcast() { Input::Outcast } else { Input::Heard });
}
