//! A new agent finds the VMs of the one before: VMMs that run are asked how they are and watched again; those that ended with
//! the machine are started from their disks.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rebec_host::{
    folders, kept,
    life::{Input, WORD_TIME},
};
use rebec_vmm_api::control::OtherVersion;

use super::{Kept, LocalVm, Vms, control::Control, look, process::Process, watch};
use crate::facts;

/// A VMM answers in milliseconds. One that has not in this time hangs, or its machine is slow: it is adopted by its process, and leases and the
/// other VMs do not wait for it.
const HELLO_TIME: Duration = Duration::from_secs(1);

/// Adopts every VM of the state folder.
pub async fn all(vms: &Arc<Vms>) -> Result<()> {
    let folder = vms.host.state().join("vms");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    folders::sweep(&folder).with_context(|| format!("sweep {}", folder.display()))?;
    let mut found = vec![];
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        match kept::read(&path) {
            Ok(kept) => found.push((path, kept)),
            Err(error) => log::warn!("{}: left alone: {error:#}", path.display()),
        }
    }
    // Side by side, and no longer than a VMM that hangs may hold them up.
    futures_util::future::join_all(found.into_iter().map(|(path, kept)| async move { one(vms, &path, kept).await })).await;
    Ok(())
}

async fn one(vms: &Arc<Vms>, folder: &Path, kept: Kept) {
    let since = if kept.boot == facts::boot_id() { "while no agent watched" } else { "when the machine stopped" };
    let vm = Arc::new(LocalVm::found(vms.knowledge.clone(), folder.to_owned(), kept.clone(), format!("its VMM ended {since}")));
    vms.insert(vm.clone());
    let said = tokio::time::timeout(HELLO_TIME, vm.talk(|control| control.pid())).await;
    let hangs = said.is_err();
    let pid = match said {
        Ok(pid) => pid,
        Err(_) => process(&vm).await,
    };
    match pid.and_then(|pid| Ok((pid, Process::adopt(pid, folder)?))) {
        Ok((pid, process)) => {
            vm.learn(Input::Adopted(pid));
            if hangs {
                log::warn!("vm {}: adopted, but its VMM does not answer", kept.body.name);
            } else {
                log::info!("vm {}: adopted", kept.body.name);
                tokio::time::timeout(HELLO_TIME, look::at(&vm)).await.unwrap_or_default();
            }
            watch::spawn(vms, &vm, Some(process));
        }
        Err(error) if error.is::<OtherVersion>() => {
            log::error!("vm {}: {error}", kept.body.name);
            // It has no task: nothing is begun beside a VMM that runs and that this agent does not understand.
            vm.say_strange(error.to_string());
        }
        Err(_) => {
            watch::spawn(vms, &vm, None);
            tokio::spawn(hear_first(vms.clone(), vm));
        }
    }
}

/// Whose the socket is of a VMM that does not answer.
async fn process(vm: &LocalVm) -> Result<u32> {
    let path = vm.control();
    let asked = tokio::task::spawn_blocking(move || Control::process(&path));
    tokio::time::timeout(HELLO_TIME, asked).await.context("its control socket takes no more connections")??
}

/// Waits for a word from others before something is started: this host may have been declared dead meanwhile.
async fn hear_first(vms: Arc<Vms>, vm: Arc<LocalVm>) {
    let is_outcast = || vms.knowledge.is_dead(&vms.knowledge.key());
    let heard = || {
        let peers = vms.knowledge.peers();
        is_outcast() || peers.is_empty() || peers.iter().any(|peer| vms.peers.answers(&peer.key))
    };
    vms.knowledge.until(WORD_TIME, heard).await;
    vm.learn(if is_outcast() { Input::Outcast } else { Input::Heard });
}
