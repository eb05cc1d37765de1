//! A new agent finds the VMs of the one before: VMMs that run are asked how they are and watched again; those that ended with
//! the machine are started from their disks.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rebec_book::record::SeenState;
use rebec_host::folders;
use rebec_vmm_api::control::OtherVersion;

use super::{Kept, LocalVm, Want, process::Process, stop, watch};
use crate::{
    agent::{Agent, lock},
    facts,
};

/// How long a VM that is to be started waits for a word from another host.
const WORD_TIME: Duration = Duration::from_secs(5);

/// Adopts every VM of the state folder.
pub async fn all(agent: &Arc<Agent>) -> Result<()> {
    let folder = agent.options.state.join("vms");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    folders::sweep(&folder).with_context(|| format!("sweep {}", folder.display()))?;
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        match read(&path) {
            Ok(kept) => one(agent, &path, kept).await,
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
    match vm.talk(|control| control.pid()).await.and_then(|pid| Process::adopt(pid, folder)) {
        Ok(process) => {
            log::info!("vm {}: adopted", kept.body.name);
            watch::look(agent, &vm).await;
            watch::spawn(agent, &vm, process);
            if kept.want == Want::Stopped {
                stop::go_on(agent, &vm);
            }
        }
        Err(error) if error.is::<OtherVersion>() => {
            log::error!("vm {}: {error}", kept.body.name);
            let reason = error.to_string();
            vm.say(agent, |seen| {
                seen.state = SeenState::Other;
                seen.epoch = kept.epoch;
                seen.reason = Some(reason);
            });
        }
        Err(_) => {
            let (agent, vm) = (agent.clone(), vm.clone());
            tokio::spawn(async move {
                hear_first(&agent).await;
                absent(&agent, &vm, &kept).await;
            });
        }
    }
}

/// Waits for a word from others before something is started: this host may have been declared dead meanwhile. One that reaches nobody
/// goes on by itself.
async fn hear_first(agent: &Arc<Agent>) {
    let heard = || {
        let peers = agent.peers();
        peers.is_empty() || peers.iter().any(|peer| agent.answers(&peer.key))
    };
    agent.until(WORD_TIME, heard).await;
}

/// No VMM answers for it.
async fn absent(agent: &Arc<Agent>, vm: &Arc<LocalVm>, kept: &Kept) {
    if kept.want == Want::Running && agent.book(|book| book.dead(&agent.key()).is_some()) == Some(true) {
        vm.say_stopped(agent, SeenState::Stopped, Some("this host was declared dead".to_owned()));
        return;
    }
    let since = if kept.boot == facts::boot_id() { "while no agent watched" } else { "when the machine stopped" };
    if let Some(process) = watch::after(agent, vm, None, &format!("its VMM ended {since}"), 0).await {
        watch::look(agent, vm).await;
        watch::spawn(agent, vm, process);
    }
}
