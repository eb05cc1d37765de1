//! Where the other stations of a VM's LANs are: told to its VMM whenever the book says so.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use rebec_book::{
    Body, lan,
    record::{Kind, SeenState, VmBody},
    view,
};
pub use rebec_host::process::{Place, Stations};
use rebec_vmm_api::{MacAddr, control::Command};

use super::{LocalVm, Vms};
use crate::knowledge::Knowledge;

/// Changes of the book that come this close together are carried out as one.
const SETTLE: Duration = Duration::from_millis(5);
/// A VMM that was not told is told again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// The stations of all LANs that a VM is on, but for its own, and where they are.
pub fn neighbours(knowledge: &Knowledge, body: &VmBody) -> Stations {
    let found = knowledge.read(|book| {
        let mut stations = Stations::new();
        for lan in body.nics.iter().map(|nic| nic.lan) {
            let home = book.thing(Kind::LAN, lan).map(|thing| thing.home);
            let Some(Body::Lan(range)) = home.and_then(|home| book.get(Kind::LAN, lan, home)) else { continue };
            for record in book.on_lan(lan) {
                let (Some(Body::Vm(vm)), Some(seen)) = (&record.body, view::seen(book, record.key.id)) else { continue };
                for (nic, endpoint) in vm.nics.iter().zip(&seen.body.endpoints) {
                    let own = body.nics.iter().any(|own| own.lan == nic.lan && own.mac == nic.mac);
                    if nic.lan == lan && !own && lan::admits(range, &record.key.writer, nic) {
                        stations.insert(MacAddr(nic.mac), Place { endpoint: *endpoint, address: nic.address });
                    }
                }
            }
        }
        stations
    });
    found.unwrap_or_default()
}

/// Keeps every VMM of this host informed.
pub async fn run(vms: Arc<Vms>) {
    let mut changed = vms.knowledge.watch();
    loop {
        tokio::time::sleep(SETTLE).await;
        changed.mark_unchanged();
        let mut all_told = true;
        for vm in vms.all() {
            let state = vm.seen().state;
            if !matches!(state, SeenState::Running | SeenState::Paused | SeenState::Moving | SeenState::Unleased) {
                continue;
            }
            if let Err(error) = tell(&vm).await {
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
async fn tell(vm: &Arc<LocalVm>) -> Result<()> {
    let wanted = neighbours(&vm.knowledge, &vm.kept().body);
    let told = vm.fdb(|fdb| fdb.clone());
    let news = wanted.iter().filter(|(mac, place)| told.get(mac) != Some(place));
    let news = news.map(|(mac, place)| Command::FdbAdd { mac: *mac, endpoint: place.endpoint, ip: Some(place.address) });
    let gone = told.keys().filter(|mac| !wanted.contains_key(mac)).map(|mac| Command::FdbRemove { mac: *mac });
    let commands: Vec<_> = news.chain(gone).collect();
    if commands.is_empty() {
        return Ok(());
    }
    vm.talk(move |control| commands.into_iter().try_for_each(|command| control.tell(command))).await?;
    vm.fdb(|fdb| *fdb = wanted);
    Ok(())
}
