//! Starts a VM here: its parts are gathered, its disk made if it has none, its VMM started.

use std::{sync::Arc, time::Duration};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    key::Id,
    record::{VmBody, VmPrivate},
    view,
};
use rebec_host::life::{Goal, Input, Life};
use rebec_pool::lease::Stance;

use super::{Kept, LocalVm, Vms, Want, failed, gather, lease, room};
use crate::jobs::Reporter;

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
    gather::gather(vms, &body.image, None, reporter).await?;
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
        room::take(vms, kept)?
    };
    vm.leased_until(until);
    let outcome = begin(vms, &vm, order.reason, reporter).await;
    if outcome.is_err() && is_grant {
        // Nothing of it ran here: its keeper tries elsewhere.
        vm.hear(Input::Want(Goal::Remove))?;
    }
    outcome
}

/// Starts a VM as another host ordered. Several orders may be on their way for one start (one of a home whose agent was killed, one of its successor):
/// that another was quicker is no failure.
pub async fn as_ordered(vms: &Arc<Vms>, id: Id, order: Order, reporter: &Reporter) -> Result<(), ApiError> {
    let epoch = order.epoch;
    let wanted = || vms.get(&id).filter(|vm| vm.want() == Want::Running && vm.kept().epoch >= epoch);
    if wanted().is_some() {
        return Ok(());
    }
    let Err(error) = start(vms, id, order, reporter).await else { return Ok(()) };
    let Some(vm) = wanted() else { return Err(error) };
    vm.until(|life| !life.is_starting()).await;
    if vm.life(Life::vmm).is_some() { Ok(()) } else { Err(error) }
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

/// Starts the VMM of a VM that is stopped here, and waits until it has said how it is.
async fn begin(vms: &Arc<Vms>, vm: &Arc<LocalVm>, reason: Option<String>, reporter: &Reporter) -> Result<(), ApiError> {
    let goal = Goal::Run { reason };
    {
        let _admission = vms.admission.lock().await;
        // Its own memory is in the way of one that runs.
        vm.require(&goal)?;
        room::require(vms, &vm.kept().body)?;
        vm.hear(Input::Want(goal))?;
    }
    reporter.progress("starting its VMM", 0, 0);
    vm.until(|life| !life.is_starting()).await;
    if vm.life(Life::vmm).is_some() { Ok(()) } else { Err(vm.why_not()) }
}
