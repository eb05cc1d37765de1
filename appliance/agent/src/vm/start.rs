//! Starts a VM here: its parts are gathered, its disk made if it has none, its VMM started.

use std::{collections::BTreeSet, fs, os::unix::fs::DirBuilderExt, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Body, Key,
    key::{Id, Nonce},
    record::{ImageBody, Kind, PartRef, VmBody, VmPrivate},
    view::{self, HostView},
};
use rebec_host::{
    depot::{Nearness, nearest_first},
    disks, kept,
    life::{Goal, Input, Life},
};
use rebec_pool::lease::Stance;

use super::{
    Kept, LocalVm, Vms, Want, failed, launch, lease, ledger,
    process::{Beginning, Process},
    sockets, watch,
};
use crate::{derived, facts, holder::Over, jobs::Reporter, mesh::Peer};

/// How long a host may take to hear who has a part.
const KNOWN_TIME: Duration = Duration::from_secs(5);
/// How long the removal of what a host had of a VM before may take.
const LEFT_TIME: Duration = Duration::from_secs(30);

/// How a VM is to begin where it was never before.
pub struct Order {
    /// Its ownership counter.
    pub epoch: u64,
    /// Why, where that is not plain.
    pub reason: Option<String>,
}

impl Order {
    /// Its first start.
    pub const FIRST: Self = Self { epoch: 1, reason: None };
}

/// Starts a VM whose record is in the book. The order's epoch counts where it was never here: the first, the one after that of a host that was
/// declared dead, or its keeper's grant.
pub async fn start(vms: &Arc<Vms>, id: Id, order: Order, reporter: &Reporter) -> Result<(), ApiError> {
    let (home, body) = vms.knowledge.desired(id)?;
    require_known(vms, &body)?;
    require_assigned(vms, id, &body.name, order.epoch)?;
    gather(vms, &body.image, None, reporter).await?;
    let here = vms.get(&id).map(|vm| vm.kept());
    let is_grant = body.keeper.is_some() && order.epoch > here.as_ref().map_or(1, |here| here.epoch);
    let kept = match here {
        Some(here) if !is_grant => here,
        _ => Kept { epoch: order.epoch, ..Kept::new(id, home, body, private(vms, id)?, Want::Stopped) },
    };
    // Asked before anything goes: an order that is not the keeper's removes nothing.
    let until = lease::require(vms, &kept, Stance::Runs).await?;
    if is_grant && let Some(old) = vms.get(&id) {
        lease::withdraw(&old, old.kept().epoch, &format!("it is started anew at epoch {}", order.epoch));
        vms.knowledge.until(LEFT_TIME, || vms.get(&id).is_none()).await;
    }
    let vm = {
        let _admission = vms.admission.lock().await;
        place_here(vms, kept)?
    };
    vm.leased_until(until);
    let outcome = begin(vms, &vm, order.reason, reporter).await;
    if outcome.is_err() && is_grant {
        // Nothing of it ran here: its keeper tries elsewhere.
        vm.hear(Input::Want(Goal::Remove))?;
    }
    outcome
}

/// Refuses what the home's word and the grants since do not give to this host at that epoch: another may have it.
fn require_assigned(vms: &Vms, id: Id, name: &str, epoch: u64) -> Result<(), ApiError> {
    let at = vms.knowledge.pool(|book| view::holder(book, id))?;
    if at.is_some_and(|at| at.host == vms.knowledge.key() && at.epoch == epoch) {
        return Ok(());
    }
    let holder = at.map_or_else(|| "nobody".to_owned(), |at| format!("host {} at epoch {}", vms.knowledge.name_of(&at.host), at.epoch));
    Err(ApiError::new(ErrorCode::Conflict, format!("VM {name} is for {holder} to start, not for this host at epoch {epoch}")))
}

/// Refuses a VM that is more than this version can make of it.
pub fn require_known(vms: &Vms, body: &VmBody) -> Result<(), ApiError> {
    let Some(word) = body.not_known() else { return Ok(()) };
    let (name, host, rebec) = (&body.name, vms.knowledge.own_name(), vms.knowledge.rebec());
    let message =
        format!("VM {name} needs `{word}`, which host {host} (Rebec {rebec}) does not know: upgrade that host, or choose another");
    Err(ApiError::new(ErrorCode::OtherVersion, message))
}

/// What others are not told of a VM.
pub fn private(vms: &Vms, id: Id) -> Result<VmPrivate, ApiError> {
    let here = vms.get(&id).map(|vm| vm.kept().private);
    let found = here.map_or_else(|| vms.store.private(&id).map_err(|error| failed(&error)), |here| Ok(Some(here)))?;
    let missing = || format!("what VM {} starts with is not known here; only its home, its keeper and hosts that had it know", id.short());
    found.ok_or_else(|| ApiError::new(ErrorCode::Conflict, missing()))
}

/// Takes in what came with an order about a VM, if it is what the VM's record says.
pub fn take_private(vms: &Vms, id: Id, private: &VmPrivate) -> Result<(), ApiError> {
    let (_, body) = vms.knowledge.desired(id)?;
    if body.private != private.digest() || !private.is_sound() {
        return Err(ApiError::new(
            ErrorCode::BadRequest,
            format!("VM {}: what came with the order is not what its record says", body.name),
        ));
    }
    vms.store.set_private(&id, private).map_err(|error| failed(&error))
}

/// Its folder, its place among the VMs of this host, and its task; what is there already stays. Under the admission lock.
pub fn place_here(vms: &Arc<Vms>, kept: Kept) -> Result<Arc<LocalVm>, ApiError> {
    if let Some(vm) = vms.get(&kept.id) {
        return Ok(vm);
    }
    let folder = kept::folder(vms.host.state(), &kept.id);
    let make = || -> Result<()> {
        // What a guest says and writes is nobody else's.
        let private = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        private.with_context(|| format!("create {}", folder.display()))?;
        kept::write(&folder, &kept)
    };
    make().map_err(|error| failed(&error))?;
    let vm = Arc::new(LocalVm::new(vms.knowledge.clone(), folder, kept));
    vms.insert(vm.clone());
    watch::spawn(vms, &vm, None);
    Ok(vm)
}

/// Gets the parts of an image that are not here, from whoever holds them; `sender` sends a VM that stands on it.
pub async fn gather(vms: &Arc<Vms>, image: &ImageBody, sender: Option<Key>, reporter: &Reporter) -> Result<(), ApiError> {
    for part in image.parts() {
        // A host that has just joined may not have heard yet who has it.
        if !vms.host.depot.has(&part.digest) {
            vms.knowledge.until(KNOWN_TIME, || !holders(vms, &part, sender).is_empty()).await;
        }
        let holders: Vec<_> = holders(vms, &part, sender).into_iter().map(|peer| Over::holder(&vms.peers, peer)).collect();
        let phase = |from: &str, done, total| reporter.progress(format!("fetching image {} from {from}", image.name), done, total);
        vms.host.depot.fetch(&part, &holders, phase).await?;
    }
    derived::ensure(vms.host.vmm(), &vms.host.depot, image, || reporter.progress(format!("reading image {}", image.name), 0, 0)).await;
    Ok(())
}

/// Hosts that hold a part and answer: own domain first, then who sends the VM that needs it, whatever it says that it holds. What another
/// domain's hosts hold is not told here: homes of images and VMs that need the part are asked.
fn holders(vms: &Vms, part: &PartRef, sender: Option<Key>) -> Vec<Peer> {
    let own = vms.knowledge.key();
    let found = vms.knowledge.read(|book| {
        let domain = book.own_domain();
        let needs = |record: &&rebec_book::Record| match &record.body {
            Some(Body::Image(image)) => image.parts().any(|one| one.digest == part.digest),
            Some(Body::Vm(vm)) => vm.image.parts().any(|one| one.digest == part.digest),
            _ => false,
        };
        let things = book.of_kind(Kind::IMAGE).chain(book.of_kind(Kind::VM));
        let homes: BTreeSet<Key> = things.filter(needs).map(|record| record.key.writer).collect();
        let holds = |host: &HostView<'_>| {
            let told = view::parts(book, &host.key).any(|digest| *digest == part.digest);
            told || Some(host.key) == sender || Some(host.domain) != domain && homes.contains(&host.key)
        };
        let hosts = view::hosts(book).into_iter().filter(|host| host.key != own && holds(host));
        let near = hosts.map(|host| match host.key {
            key if Some(host.domain) == domain => (Nearness::Own, key),
            key if Some(key) == sender => (Nearness::Sender, key),
            key => (Nearness::Other, key),
        });
        nearest_first(near.collect())
    });
    found
        .unwrap_or_default()
        .iter()
        .filter(|key| Some(**key) == sender || vms.peers.answers(key))
        .filter_map(|key| vms.knowledge.peer(key))
        .collect()
}

/// What the disks of other VMs of this host are promised beyond what they take already.
fn growing_bytes(vms: &Vms, but: &Nonce) -> u64 {
    let others = vms.all().into_iter().filter(|vm| vm.kept().body.nonce != *but);
    let growing = others.map(|vm| {
        let taken = disks::taken_bytes(&vm.folder).unwrap_or(0);
        disks::promised_bytes(&vm.kept().body.image).saturating_sub(taken)
    });
    growing.fold(0, u64::saturating_add)
}

/// Memory that VMs of this host have been promised.
pub fn promised_bytes(vms: &Vms) -> u64 {
    let promised = vms.all().into_iter().filter(|vm| vm.want() != Want::Stopped || vm.seen().pid != 0);
    promised.map(|vm| vm.kept().body.memory_bytes).fold(0, u64::saturating_add)
}

/// Refuses what this host has no room for, with the figures. Under the admission lock.
pub fn require_room(vms: &Vms, body: &VmBody) -> Result<(), ApiError> {
    let refuse = |what: String| Err(ApiError::new(ErrorCode::Refused, format!("host {}: {what}", vms.knowledge.own_name())));
    if let Some(why) = facts::no_kvm() {
        return refuse(format!("cannot run VMs: {why}"));
    }
    let free = vms.host.memory_bytes().saturating_sub(promised_bytes(vms));
    if free < body.memory_bytes {
        return refuse(format!("memory: {} MiB free, {} MiB wanted", free >> 20, body.memory_bytes >> 20));
    }
    let (_, room) = vms.host.disk_bytes();
    let (wanted, promised) = (disks::promised_bytes(&body.image), growing_bytes(vms, &body.nonce));
    if room.saturating_sub(promised) < wanted {
        let already = if promised > 0 { format!(", {} MiB of them promised to disks of other VMs", promised >> 20) } else { String::new() };
        return refuse(format!("disk: {} MiB free{already}, {} MiB wanted", room >> 20, wanted >> 20));
    }
    Ok(())
}

/// Starts the VMM of a VM that is stopped here, and waits until it has said how it is.
async fn begin(vms: &Arc<Vms>, vm: &Arc<LocalVm>, reason: Option<String>, reporter: &Reporter) -> Result<(), ApiError> {
    let goal = Goal::Run { reason };
    {
        let _admission = vms.admission.lock().await;
        // Its own memory is in the way of one that runs.
        vm.require(&goal)?;
        require_room(vms, &vm.kept().body)?;
        vm.hear(Input::Want(goal))?;
    }
    reporter.progress("starting its VMM", 0, 0);
    vm.until(|life| !life.is_starting()).await;
    if vm.life(Life::vmm).is_some() { Ok(()) } else { Err(watch::why_not(vm)) }
}

/// Makes the disks that are missing, and starts the VMM from its kernel.
pub async fn boot(vms: &Arc<Vms>, vm: &Arc<LocalVm>) -> Result<Process> {
    let kept = vm.kept();
    disks::make(&vms.host.depot, &vm.folder, &kept)?;
    let ports = sockets::bind(vms.host.underlay(), kept.body.nics.len())?;
    vm.keep(|kept| {
        kept.boot = facts::boot_id();
        kept.endpoints = sockets::endpoints(&ports);
    })?;
    ledger::begin(&vm.folder, &kept.id, kept.epoch)?;
    launch::start(vms, vm, Beginning::Boot, ports).await
}
