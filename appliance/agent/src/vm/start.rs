//! Starts a VM here: its parts are gathered, its disk made if it has none, its VMM started.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Body, Key, Signed,
    key::{Id, Nonce},
    record::{ImageBody, Kind, PartRef, RecordKey, VmBody, VmPrivate},
    view::{self, HostView},
};
use rebec_devices::disk::{BackingName, Disk, ImageFormat};
use rebec_host::{
    depot::{Nearness, nearest_first},
    life::{Goal, Input, Life},
    process::further_disk,
};
use rebec_pool::lease::Stance;

use super::{
    Kept, LocalVm, Want,
    create::Order,
    disks, failed, folder, launch, lease, ledger,
    process::{Beginning, Process},
    seed, sockets, watch, write_kept,
};
use crate::{
    agent::{Agent, lock},
    derived, facts,
    holder::Over,
    jobs::Reporter,
    mesh::Peer,
};

/// Records that are sent along with a VM.
const RECORDS_BYTES_MAX: usize = 1 << 20;

/// How long a host may take to hear who has a part.
const KNOWN_TIME: Duration = Duration::from_secs(5);
/// How long the removal of what a host had of a VM before may take.
const LEFT_TIME: Duration = Duration::from_secs(30);

/// Starts a VM whose record is in the book. The order's epoch counts where it was never here: the first, the one after that of a host that was
/// declared dead, or its keeper's grant.
pub async fn start(agent: &Arc<Agent>, id: Id, order: Order, reporter: &Reporter) -> Result<(), ApiError> {
    let (home, body) = desired(agent, id)?;
    require_known(agent, &body)?;
    require_assigned(agent, id, &body.name, order.epoch)?;
    gather(agent, &body.image, None, reporter).await?;
    let here = agent.local_vm(&id).map(|vm| vm.kept());
    let is_grant = body.keeper.is_some() && order.epoch > here.as_ref().map_or(1, |here| here.epoch);
    let kept = match here {
        Some(here) if !is_grant => here,
        _ => Kept { epoch: order.epoch, ..Kept::new(id, home, body, private(agent, id)?, Want::Stopped) },
    };
    // Asked before anything goes: an order that is not the keeper's removes nothing.
    let until = lease::require(agent, &kept, Stance::Runs).await?;
    if is_grant && let Some(old) = agent.local_vm(&id) {
        lease::withdraw(agent, &old, old.kept().epoch, &format!("it is started anew at epoch {}", order.epoch));
        agent.until(LEFT_TIME, || agent.local_vm(&id).is_none()).await;
    }
    let vm = {
        let _admission = agent.admission.lock().await;
        place_here(agent, kept)?
    };
    vm.leased_until(until);
    let outcome = begin(agent, &vm, order.reason, reporter).await;
    if outcome.is_err() && is_grant {
        // Nothing of it ran here: its keeper tries elsewhere.
        vm.hear(agent, Input::Want(Goal::Remove))?;
    }
    outcome
}

/// Refuses what the home's word and the grants since do not give to this host at that epoch: another may have it.
fn require_assigned(agent: &Agent, id: Id, name: &str, epoch: u64) -> Result<(), ApiError> {
    let at = agent.pool(|book| view::holder(book, id))?;
    if at.is_some_and(|at| at.host == agent.key() && at.epoch == epoch) {
        return Ok(());
    }
    let holder = at.map_or_else(|| "nobody".to_owned(), |at| format!("host {} at epoch {}", agent.name_of(&at.host), at.epoch));
    Err(ApiError::new(ErrorCode::Conflict, format!("VM {name} is for {holder} to start, not for this host at epoch {epoch}")))
}

/// Refuses a VM that is more than this version can make of it.
pub fn require_known(agent: &Agent, body: &VmBody) -> Result<(), ApiError> {
    let Some(word) = body.not_known() else { return Ok(()) };
    let (name, host, rebec) = (&body.name, agent.own_name(), agent.rebec());
    let message =
        format!("VM {name} needs `{word}`, which host {host} (Rebec {rebec}) does not know: upgrade that host, or choose another");
    Err(ApiError::new(ErrorCode::OtherVersion, message))
}

/// The desired record of a VM.
pub fn desired(agent: &Agent, id: Id) -> Result<(rebec_book::Key, VmBody), ApiError> {
    let found = agent.pool(|book| view::vm(book, id).map(|vm| (vm.home, vm.body.clone())))?;
    found.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("VM {} has no record here yet; try again", id.short())))
}

/// What others are not told of a VM.
pub fn private(agent: &Agent, id: Id) -> Result<VmPrivate, ApiError> {
    let here = agent.local_vm(&id).map(|vm| vm.kept().private);
    let found = here.map_or_else(|| agent.store.private(&id).map_err(|error| failed(&error)), |here| Ok(Some(here)))?;
    let missing = || format!("what VM {} starts with is not known here; only its home, its keeper and hosts that had it know", id.short());
    found.ok_or_else(|| ApiError::new(ErrorCode::Conflict, missing()))
}

/// Takes in what came with an order about a VM, if it is what the VM's record says.
pub fn take_private(agent: &Agent, id: Id, private: &VmPrivate) -> Result<(), ApiError> {
    let (_, body) = desired(agent, id)?;
    if body.private != private.digest() || !private.is_sound() {
        return Err(ApiError::new(
            ErrorCode::BadRequest,
            format!("VM {}: what came with the order is not what its record says", body.name),
        ));
    }
    agent.store.set_private(&id, private).map_err(|error| failed(&error))
}

/// The records that another host needs to have a VM: its own, what is said of it, and its LANs'.
pub fn records(agent: &Agent, id: Id) -> Result<Vec<Signed>, ApiError> {
    agent.pool(|book| {
        let lans: Vec<Id> = view::vm_body(book, id).map(|body| body.nics.iter().map(|nic| nic.lan).collect()).unwrap_or_default();
        let needed = |key: &RecordKey| match key.kind {
            Kind::VM | Kind::SEEN => key.id == id,
            Kind::LAN => lans.contains(&key.id),
            _ => false,
        };
        book.select(needed, RECORDS_BYTES_MAX)
    })
}

impl Kept {
    /// A VM that was not here before.
    pub fn new(id: Id, home: rebec_book::Key, body: VmBody, private: VmPrivate, want: Want) -> Self {
        Self {
            id,
            home,
            body,
            private,
            want,
            boot: String::new(),
            endpoints: vec![],
            from: None,
            epoch: 0,
            to: None,
            granting: None,
            grants: vec![],
            stands_still: false,
        }
    }
}

/// Its folder, its place among the VMs of this host, and its task; what is there already stays. Under the admission lock.
pub fn place_here(agent: &Arc<Agent>, kept: Kept) -> Result<Arc<LocalVm>, ApiError> {
    if let Some(vm) = agent.local_vm(&kept.id) {
        return Ok(vm);
    }
    let folder = folder(&agent.options.state, &kept.id);
    let make = || -> Result<()> {
        // What a guest says and writes is nobody else's.
        let private = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        private.with_context(|| format!("create {}", folder.display()))?;
        write_kept(&folder, &kept)
    };
    make().map_err(|error| failed(&error))?;
    let vm = Arc::new(LocalVm::new(folder, kept.clone()));
    lock(&agent.vms).insert(kept.id, vm.clone());
    watch::spawn(agent, &vm, None);
    Ok(vm)
}

/// Gets the parts of an image that are not here, from whoever holds them; `sender` sends a VM that stands on it.
pub async fn gather(agent: &Arc<Agent>, image: &ImageBody, sender: Option<Key>, reporter: &Reporter) -> Result<(), ApiError> {
    for part in image.parts() {
        // A host that has just joined may not have heard yet who has it.
        if !agent.depot.has(&part.digest) {
            agent.until(KNOWN_TIME, || !holders(agent, &part, sender).is_empty()).await;
        }
        let holders: Vec<_> = holders(agent, &part, sender).into_iter().map(|peer| Over::holder(agent, peer)).collect();
        let phase = |from: &str, done, total| reporter.progress(format!("fetching image {} from {from}", image.name), done, total);
        agent.depot.fetch(&part, &holders, phase).await?;
    }
    derived::ensure(&agent.options.vmm, &agent.depot, image, || reporter.progress(format!("reading image {}", image.name), 0, 0)).await;
    Ok(())
}

/// Hosts that hold a part and answer: own domain first, then who sends the VM that needs it, whatever it says that it holds. What another
/// domain's hosts hold is not told here: homes of images and VMs that need the part are asked.
fn holders(agent: &Agent, part: &PartRef, sender: Option<Key>) -> Vec<Peer> {
    let own = agent.key();
    let found = agent.book(|book| {
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
    found.unwrap_or_default().iter().filter(|key| Some(**key) == sender || agent.answers(key)).filter_map(|key| agent.peer(key)).collect()
}

/// Disks of VMs may be so many times as large, all together, as the room that there is for them: most guests never fill theirs. Those that do
/// stand still before this host is short of room itself (`upkeep`).
const OVERCOMMIT: u64 = 4;

/// What a VM is promised on the host's disk beside its image.
pub fn disk_bytes(body: &VmBody) -> u64 {
    let further = body.further_disks().map(|disk| disk.bytes);
    further.chain(body.root_bytes()).fold(0, u64::saturating_add) / OVERCOMMIT
}

/// What the disks of a VM take already.
pub fn taken_bytes(vm: &LocalVm) -> u64 {
    let body = vm.kept().body;
    let further = body.further_disks().map(|disk| further_disk(&vm.folder, &disk.name));
    let layers = further.chain([vm.folder.join("disk.qcow2")]).filter_map(|path| fs::metadata(path).ok());
    layers.map(|layer| layer.blocks() * 512).fold(0, u64::saturating_add)
}

/// What the disks of other VMs of this host are promised beyond what they take already.
fn growing_bytes(agent: &Agent, but: &Nonce) -> u64 {
    let others = agent.local_vms().into_iter().filter(|vm| vm.kept().body.nonce != *but);
    let growing = others.map(|vm| disk_bytes(&vm.kept().body).saturating_sub(taken_bytes(&vm)));
    growing.fold(0, u64::saturating_add)
}

/// Memory that VMs of this host have been promised.
pub fn promised_bytes(agent: &Agent) -> u64 {
    let promised = agent.local_vms().into_iter().filter(|vm| vm.want() != Want::Stopped || vm.seen().pid != 0);
    promised.map(|vm| vm.kept().body.memory_bytes).fold(0, u64::saturating_add)
}

/// Refuses what this host has no room for, with the figures. Under the admission lock.
pub fn require_room(agent: &Agent, body: &VmBody) -> Result<(), ApiError> {
    let refuse = |what: String| Err(ApiError::new(ErrorCode::Refused, format!("host {}: {what}", agent.own_name())));
    if let Some(why) = facts::no_kvm() {
        return refuse(format!("cannot run VMs: {why}"));
    }
    let free = agent.memory_bytes().saturating_sub(promised_bytes(agent));
    if free < body.memory_bytes {
        return refuse(format!("memory: {} MiB free, {} MiB wanted", free >> 20, body.memory_bytes >> 20));
    }
    require_disk_room(agent, body)
}

/// Refuses disks that this host has no room for, with the figures.
pub fn require_disk_room(agent: &Agent, body: &VmBody) -> Result<(), ApiError> {
    let refuse = |what: String| Err(ApiError::new(ErrorCode::Refused, format!("host {}: {what}", agent.own_name())));
    let (_, room) = facts::disk_bytes(&agent.options.state);
    let (wanted, promised) = (disk_bytes(body), growing_bytes(agent, &body.nonce));
    if room.saturating_sub(promised) < wanted {
        let already = if promised > 0 { format!(", {} MiB of them promised to disks of other VMs", promised >> 20) } else { String::new() };
        return refuse(format!("disk: {} MiB free{already}, {} MiB wanted", room >> 20, wanted >> 20));
    }
    Ok(())
}

/// Starts the VMM of a VM that is stopped here, and waits until it has said how it is.
async fn begin(agent: &Arc<Agent>, vm: &Arc<LocalVm>, reason: Option<String>, reporter: &Reporter) -> Result<(), ApiError> {
    let goal = Goal::Run { reason };
    {
        let _admission = agent.admission.lock().await;
        // Its own memory is in the way of one that runs.
        vm.require(&goal)?;
        require_room(agent, &vm.kept().body)?;
        vm.hear(agent, Input::Want(goal))?;
    }
    reporter.progress("starting its VMM", 0, 0);
    vm.until(|life| !life.is_starting()).await;
    if vm.life(Life::vmm).is_some() { Ok(()) } else { Err(watch::why_not(vm)) }
}

/// Makes the disks that are missing, and starts the VMM from its kernel.
pub async fn boot(agent: &Arc<Agent>, vm: &Arc<LocalVm>) -> Result<Process> {
    disks::refresh(agent, vm)?;
    let kept = vm.kept();
    make_disks(agent, &vm.folder, &kept)?;
    let ports = sockets::bind(agent.underlay(), kept.body.nics.len())?;
    vm.keep(|kept| {
        kept.boot = facts::boot_id();
        kept.endpoints = sockets::endpoints(&ports);
    })?;
    ledger::begin(&vm.folder, &kept.id, kept.epoch)?;
    launch::start(agent, vm, Beginning::Boot, ports).await
}

/// The copy-on-write layer and the seed disk of a VM that has none yet.
pub fn make_disks(agent: &Agent, folder: &std::path::Path, kept: &Kept) -> Result<()> {
    let path = folder.join("disk.qcow2");
    if let Some(disk) = &kept.body.image.disk
        && !path.exists()
    {
        let base: PathBuf = agent.depot.path(&disk.part.digest);
        let format = if disk.qcow2 { ImageFormat::Qcow2 } else { ImageFormat::Raw };
        let backing = BackingName { name: base.display().to_string(), format: Some(format) };
        // Under another name until it is whole.
        let new = folder.join(".disk.qcow2");
        let file = fs::File::options().create(true).truncate(true).read(true).write(true).open(&new).context("create disk.qcow2")?;
        Disk::create_qcow2("disk.qcow2", &file, disk.virtual_bytes, Some(&backing))?;
        file.sync_all()?;
        fs::rename(&new, &path).context("create disk.qcow2")?;
    }
    disks::make(folder, &kept.body)?;
    let seed_path = folder.join("seed.img");
    if let Some((meta, user)) = kept.private.seed.clone()
        && !seed_path.exists()
    {
        seed::write(&seed_path, &seed::Texts { meta, user, network: kept.private.network.clone() })?;
    }
    Ok(())
}
