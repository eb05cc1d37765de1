//! Keeps the disk of this host in order: logs of VMMs are cut, parts that nothing needs go, room is kept for records, guests that would fill the
//! rest stand still, and what is here of VMs that their homes do not list goes or is listed again.

use std::{sync::Arc, time::Duration};

use rebec_book::{
    Body,
    key::{Id, Key},
    record::{Kind, SeenState},
    view,
};
use rebec_host::{
    Host, disks,
    growth::{Act, Growth, Guest, Room},
    life::{Goal, Input, Life},
    reserve::Reserve,
    said,
};
use rebec_vmm_api::control::Command;

use crate::{
    knowledge::Knowledge,
    store::Store,
    vm::{LocalVm, Vms, Want, look, stop},
};

/// Between two looks at the logs of VMMs, which a VMM that was taken over may fill.
const PERIOD: Duration = Duration::from_secs(2);
/// Looks between two sweeps of the depot.
const LOOKS_PER_SWEEP: u32 = 300;
/// Between two looks at the room that guests fill.
const ROOM_PERIOD: Duration = Duration::from_millis(250);
/// Between two comparisons of the VMs that are here with those that are listed.
const LIST_PERIOD: Duration = Duration::from_secs(60);
/// How long a guest has to power itself off whose VM is not listed any more.
const END_TIME: Duration = Duration::from_secs(60);

/// Until the agent ends.
pub async fn run(host: Arc<Host>, knowledge: Arc<Knowledge>, vms: Arc<Vms>) {
    let mut looks = 0;
    loop {
        let (host, knowledge, vms, is_sweep) = (host.clone(), knowledge.clone(), vms.clone(), looks % LOOKS_PER_SWEEP == 0);
        let work = move || {
            cut_logs(&vms);
            Reserve::of(host.state()).fill();
            if is_sweep {
                sweep(&host, &knowledge, &vms);
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(work).await {
            log::error!("upkeep: {error}");
        }
        looks = looks.wrapping_add(1);
        tokio::time::sleep(PERIOD).await;
    }
}

fn cut_logs(vms: &Vms) {
    for vm in vms.all() {
        if let Err(error) = said::bound(&vm.folder.join("vmm.log")) {
            log::debug!("vm {}: cut vmm.log: {error}", vm.name());
        }
    }
}

/// A host that belongs to no pool does not know what it will need.
fn sweep(host: &Host, knowledge: &Knowledge, vms: &Vms) {
    let Some(mut needed) = knowledge.read(view::needed) else { return };
    let here = vms.all();
    needed.extend(here.iter().flat_map(|vm| vm.kept().body.image.parts().map(|part| part.digest).collect::<Vec<_>>()));
    host.depot.sweep(&needed);
}

/// Has guests stand still that would fill the disk, until the agent ends.
pub async fn watch_room(host: Arc<Host>, all: Arc<Vms>) {
    let mut growth = Growth::default();
    loop {
        tokio::time::sleep(ROOM_PERIOD).await;
        let (all_bytes, free_bytes) = host.disk_bytes();
        let room = Room { all_bytes, free_bytes };
        let vms = all.all();
        if room.is_enough() && !vms.iter().any(|vm| vm.kept().stands_still) {
            growth = Growth::default();
            continue;
        }
        let guests: Vec<Guest> = vms.iter().filter(|vm| vm.want() == Want::Running).filter_map(|vm| guest(vm)).collect();
        for act in growth.look(room, &guests) {
            let (Act::Stand(id) | Act::GoOn(id)) = act;
            let Some(vm) = all.get(&id) else { continue };
            // Who is being started, stopped or moved needs what room there is.
            if !vm.life(Life::is_running) {
                continue;
            }
            let done = match act {
                Act::Stand(_) => stand_still(&vm, room).await,
                Act::GoOn(_) => go_on(&vm).await,
            };
            if let Err(error) = done {
                log::warn!("vm {}: {error:#}", vm.name());
            }
        }
    }
}

/// A VM with a disk, as far as its growth goes.
fn guest(vm: &LocalVm) -> Option<Guest> {
    let taken_bytes = disks::taken_bytes(&vm.folder, &vm.kept().body)?;
    let stands_still = vm.kept().stands_still && vm.seen().state == SeenState::Paused;
    Some(Guest { vm: vm.id(), taken_bytes, stands_still })
}

async fn stand_still(vm: &Arc<LocalVm>, room: Room) -> anyhow::Result<()> {
    // Kept first, so that an agent that starts anew knows whose doing it is.
    vm.keep(|kept| kept.stands_still = true)?;
    vm.talk(|control| control.tell(Command::Pause)).await?;
    log::warn!("vm {}: stands still: its disk grows, and {} MiB are left on this host", vm.name(), room.free_bytes >> 20);
    look::at(vm).await;
    Ok(())
}

async fn go_on(vm: &Arc<LocalVm>) -> anyhow::Result<()> {
    vm.go_on().await?;
    log::info!("vm {}: goes on: there is room again", vm.name());
    look::at(vm).await;
    Ok(())
}

/// Compares the VMs that are here with those that their homes list, at the start and from time to time, until the agent ends.
pub async fn watch_list(knowledge: Arc<Knowledge>, store: Arc<Store>, vms: Arc<Vms>) {
    loop {
        compare(&knowledge, &store, &vms).await;
        tokio::time::sleep(LIST_PERIOD).await;
    }
}

/// One such comparison.
pub async fn compare(knowledge: &Knowledge, store: &Store, vms: &Vms) {
    for vm in vms.all() {
        if knowledge.read(|book| view::vm_body(book, vm.id()).is_none()) == Some(true) {
            unlisted(knowledge, store, &vm).await;
        }
    }
}

/// A VM that is here and has no record. Its home's word counts: where that withdrew it, it ends and goes; this host lists its own again.
async fn unlisted(knowledge: &Knowledge, store: &Store, vm: &Arc<LocalVm>) {
    let (id, kept) = (vm.id(), vm.kept());
    if has_withdrawn(knowledge, &kept.home, id) {
        log::warn!("vm {}: its home has removed it: it is ended, and goes", kept.body.name);
        let ended = stop::stop(vm, END_TIME, None).await;
        if let Err(error) = ended.and_then(|()| vm.hear(Input::Want(Goal::Remove))) {
            log::warn!("{error}");
        }
    } else if kept.home == knowledge.key() {
        log::warn!("vm {}: it had no record; it is listed again: `rebec vm show {}`", kept.body.name, kept.body.name);
        let listed = store
            .set_private(&id, &kept.private)
            .map_err(|error| format!("{error:#}"))
            .and_then(|()| knowledge.publish(Kind::VM, id, Some(Body::Vm(kept.body.into()))).map_err(|error| error.to_string()));
        if let Err(error) = listed {
            log::error!("{error}");
        }
        // How it is was said when nobody could believe it.
        vm.say();
    } else {
        let home = knowledge.name_of(&kept.home);
        log::warn!("vm {}: host {home}, its home, does not list it: it is in `rebec vm ls` again when that host answers", kept.body.name);
    }
}

/// Whether its home itself says that it is gone: anybody can say so of any id.
fn has_withdrawn(knowledge: &Knowledge, home: &Key, vm: Id) -> bool {
    knowledge.read(|book| book.about(Kind::VM, vm).any(|record| record.key.writer == *home && record.body.is_none())) == Some(true)
}
