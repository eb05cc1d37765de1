//! The address that this host's LANs have: looked for whenever links, addresses or roads change, told to the VMMs that run, and then to the pool.
//!
//! ```text
//! kernel: something changed ─┐
//! pool: who the peers are ───┴── Host::look_around (rebec_host::underlay decides) ── mesh: old connections are doubted
//!                                                                                ├── VMM: frames leave from there
//!                                                                                └── records: the host is there, and its VMs' ports
//! ```

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use rebec_book::view;
use rebec_host::{
    host::ROADS_MAX,
    life::{Input, Life},
};
use rebec_links::Changes;
use rebec_vmm_api::control::Command;

use super::{LocalVm, Vms};

/// Between two looks where nobody tells anything: the kernel tells of what changes here, and the book of who comes and goes.
const PERIOD: Duration = Duration::from_secs(10);
/// And at least, however often records change.
const PAUSE: Duration = Duration::from_millis(250);

/// Keeps the host's LANs where its peers reach them, for as long as it is polled; `publish` tells the pool of the host.
pub async fn run(vms: Arc<Vms>, publish: impl Fn()) {
    let mut changes = match Changes::watch() {
        Ok(changes) => Some(changes),
        Err(error) => {
            log::warn!("changes of links and addresses are noticed late: {error}");
            None
        }
    };
    let mut known = vms.knowledge.watch();
    let mut own = BTreeSet::new();
    loop {
        known.mark_unchanged();
        let before = members(&vms);
        look(&vms, &mut own, &publish).await;
        let told = async {
            match &mut changes {
                Some(changes) => changes.next().await,
                None => std::future::pending().await,
            }
        };
        // Who the peers are may have changed too; most of what is learnt says nothing of that.
        let learnt = async {
            loop {
                tokio::time::sleep(PAUSE).await;
                if known.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                if members(&vms) != before {
                    break;
                }
            }
        };
        tokio::select! {
            () = told => {}
            () = learnt => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Another number where others may belong to the pool.
fn members(vms: &Vms) -> Option<u64> {
    vms.knowledge.read(|book| book.authority())
}

async fn look(vms: &Vms, own: &mut BTreeSet<IpAddr>, publish: &impl Fn()) {
    let has_moved = vms.host.look_around(&peers(vms));
    let before = std::mem::replace(own, vms.host.addresses().into_iter().collect());
    // Before others are told: over roads that are gone they would hear of it late.
    if has_moved || !own.is_superset(&before) {
        vms.peers.mesh.addresses_changed(|address| address.is_loopback() || own.contains(&address)).await;
    }
    if has_moved {
        match vms.host.underlay() {
            Some(address) => log::info!("LANs of this host are reached at {address}"),
            None => log::warn!("LANs of this host are not reached: it has no IPv4 address"),
        }
        vms.all().iter().for_each(|vm| vm.learn(Input::Roused));
        publish();
    }
    let Some(address) = vms.host.underlay() else { return };
    for vm in vms.all() {
        if vm.life(Life::vmm).is_none() || vm.kept().endpoints.iter().all(|endpoint| *endpoint.ip() == address) {
            vm.lans_reach(Ok(()));
            continue;
        }
        let told = tell(&vm, address).await;
        if let Err(error) = &told {
            log::warn!("vm {}: its ports stay where its host is not reached any more: {error:#}", vm.name());
        }
        vm.lans_reach(told);
        vm.say();
    }
}

/// The VMM first: who hears of the new place may speak to it at once.
async fn tell(vm: &LocalVm, address: Ipv4Addr) -> Result<()> {
    vm.talk(move |control| control.tell(Command::Underlay { address })).await?;
    vm.keep(|kept| kept.endpoints.iter_mut().for_each(|endpoint| endpoint.set_ip(address)))
}

/// The IPv4 addresses of other hosts, those that answer first; of each, what its LANs have first.
fn peers(vms: &Vms) -> Vec<Vec<Ipv4Addr>> {
    let own = vms.knowledge.key();
    let known = vms.knowledge.read(|book| {
        let others = view::hosts(book).into_iter().filter(|host| host.key != own && host.member.dead.is_none());
        let places = others.map(|host| {
            let body = host.body;
            let v4 = body.addresses.iter().filter_map(|address| if let IpAddr::V4(address) = address.ip() { Some(address) } else { None });
            (host.key, body.underlay.into_iter().chain(v4).collect::<Vec<_>>())
        });
        places.collect::<Vec<_>>()
    });
    let mut known = known.unwrap_or_default();
    known.sort_by_key(|(key, _)| !vms.peers.answers(key));
    known.into_iter().map(|(_, places)| places).filter(|places| !places.is_empty()).take(ROADS_MAX).collect()
}
