//! Where the other stations of a VM's LANs are: told to its VMM whenever the book says so.

use std::{collections::BTreeMap, net::SocketAddrV4, sync::Arc, time::Duration};

use anyhow::Result;
use rebec_pool::{
    record::{SeenState, VmBody},
    view,
};
use rebec_vmm_api::{MacAddr, control::Command};

use super::{LocalVm, control::Control};
use crate::agent::Agent;

/// Changes of the book that come this close together are carried out as one.
const SETTLE: Duration = Duration::from_millis(5);
/// A VMM that was not told is told again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// The stations of all LANs that a VM is on, but for its own, and where they are.
pub fn neighbours(agent: &Agent, body: &VmBody) -> Vec<(MacAddr, SocketAddrV4)> {
    let found = agent.book(|book| {
        let mut stations = vec![];
        for vm in view::vms(book) {
            let Some(seen) = view::seen(book, vm.id) else { continue };
            for (nic, endpoint) in vm.body.nics.iter().zip(&seen.body.endpoints) {
                let shared = body.nics.iter().any(|own| own.lan == nic.lan);
                let own = body.nics.iter().any(|own| own.lan == nic.lan && own.mac == nic.mac);
                if shared && !own {
                    stations.push((MacAddr(nic.mac), *endpoint));
                }
            }
        }
        stations
    });
    found.unwrap_or_default()
}

/// Keeps every VMM of this host informed.
pub async fn run(agent: Arc<Agent>) {
    let mut changed = agent.changed.subscribe();
    loop {
        tokio::time::sleep(SETTLE).await;
        changed.mark_unchanged();
        let mut all_told = true;
        for vm in agent.local_vms() {
            let state = vm.seen().state;
            if !matches!(state, SeenState::Running | SeenState::Paused | SeenState::Moving) {
                continue;
            }
            if let Err(error) = tell(&agent, &vm).await {
                all_told = false;
                log::debug!("vm {}: forwarding entries: {error:#}", vm.name());
            }
        }
        if all_told {
            if changed.changed().await.is_err() {
                return;
            }
        } else {
            // Woken by the next change, or to try again.
            if let Ok(Err(_)) = tokio::time::timeout(RETRY, changed.changed()).await {
                return;
            }
        }
    }
}

/// Tells one VMM what it does not know yet.
async fn tell(agent: &Agent, vm: &Arc<LocalVm>) -> Result<()> {
    let wanted: BTreeMap<MacAddr, SocketAddrV4> = neighbours(agent, &vm.kept().body).into_iter().collect();
    let told = vm.fdb(|fdb| fdb.clone());
    let news: Vec<_> = wanted.iter().filter(|(mac, endpoint)| told.get(mac) != Some(endpoint)).map(|(mac, at)| (*mac, *at)).collect();
    if news.is_empty() {
        return Ok(());
    }
    let path = vm.control();
    let sent = news.clone();
    tokio::task::spawn_blocking(move || {
        let mut control = Control::connect(&path)?;
        sent.into_iter().try_for_each(|(mac, endpoint)| control.tell(Command::FdbAdd { mac, endpoint }))
    })
    .await??;
    vm.fdb(|fdb| fdb.extend(news));
    Ok(())
}
