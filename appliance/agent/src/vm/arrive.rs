//! A VM arrives from another host: its parts are gathered, an empty layer made, a VMM started that waits; then each stream of
//! the move is joined to it. Whether it runs here is decided by the two VMMs and their ledgers alone.

use std::{iter::repeat, sync::Arc, time::Duration};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    authority::{Granted, Question},
    key::Id,
    record::PortAhead,
};
use rebec_host::life::{Goal, Input, Life};
use rebec_pool::lease::Stance;

use super::{Kept, LocalVm, Vms, Want, gather, lease, room, sockets, start};
use crate::jobs::Reporter;

/// How long a VM that comes back waits for its old VMM, which forwards late frames for a few seconds.
const LEFT_TIME: Duration = Duration::from_secs(30);
/// How often an offer may find the VMM of an earlier one that is just ending.
const ATTEMPTS_MAX: usize = 3;

/// Makes ready for a VM whose holder sends it, as the question said that was granted. Where its ports will be.
pub async fn prepare(vms: &Arc<Vms>, granted: Granted, reporter: &Reporter) -> Result<Vec<PortAhead>, ApiError> {
    let (Some(from), Question::Arrive(id, epoch)) = (granted.host(), *granted.question()) else {
        return Err(ApiError::new(ErrorCode::Forbidden, "no arrival was granted"));
    };
    let (home, body) = vms.knowledge.desired(id)?;
    start::require_known(vms, &body)?;
    let (name, epoch) = (body.name.clone(), epoch.saturating_add(1));
    gather::gather(vms, &body.image, Some(from), reporter).await?;
    let kept = Kept { from: Some(from), epoch, ..Kept::new(id, home, body.clone(), start::private(vms, id)?, Want::Arriving) };
    let leased_until = lease::require(vms, &kept, Stance::Arrives).await?;
    for _ in 0..ATTEMPTS_MAX {
        let is_leaving = || vms.get(&id).is_some_and(|vm| vm.life(Life::is_leaving));
        if is_leaving() {
            reporter.progress("waiting until what it left here has gone", 0, 0);
            vms.knowledge.until(LEFT_TIME, || !is_leaving()).await;
        }
        let vm = admit(vms, &kept).await?;
        vm.leased_until(leased_until);
        vm.until(|life| !life.is_starting()).await;
        if vm.talk(|control| control.pid()).await.is_ok() {
            lease::tell(&vm).await;
            let keys = vm.port_keys().into_iter().chain(repeat(None));
            return Ok(vm.kept().endpoints.into_iter().zip(keys).map(|(endpoint, key)| PortAhead { endpoint, key }).collect());
        }
        if vm.life(|life| life.vmm().is_none() && life.word().reason.is_some()) {
            return Err(vm.why_not());
        }
        // What waited for an earlier attempt is just ending.
        let is_still_here = || vms.get(&id).is_some_and(|here| Arc::ptr_eq(&here, &vm));
        vms.knowledge.until(LEFT_TIME, || !is_still_here()).await;
    }
    Err(ApiError::new(
        ErrorCode::Failed,
        format!("host {}: the VMM that waits for VM {name} does not answer; try again", vms.knowledge.own_name()),
    ))
}

/// Finds room for a VM that is sent here, and tells its life: a VMM that waits for an earlier attempt takes this one.
async fn admit(vms: &Arc<Vms>, kept: &Kept) -> Result<Arc<LocalVm>, ApiError> {
    let _admission = vms.admission.lock().await;
    if vms.get(&kept.id).is_none() {
        room::require(vms, &kept.body)?;
    }
    let vm = room::take(vms, kept.clone())?;
    let from = kept.from.ok_or_else(|| ApiError::new(ErrorCode::BadRequest, "a VM that arrives has a source"))?;
    vm.hear(Input::Want(Goal::Arrive { from, epoch: kept.epoch })).map_err(|_| {
        let message = format!("host {} still has VM {}; try again in a moment", vms.knowledge.own_name(), kept.body.name);
        ApiError::new(ErrorCode::Conflict, message)
    })?;
    Ok(vm)
}

/// One stream of a move, as long as it is held.
pub struct Open {
    vm: Arc<LocalVm>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.vm.learn(Input::StreamEnded);
    }
}

/// A connection to the VMM that waits, for one stream of the move; for the host that sends the VM, and nobody else.
pub async fn connect(vms: &Arc<Vms>, id: Id, granted: Granted) -> Result<(tokio::net::UnixStream, Open), ApiError> {
    let vm = vms.get(&id).filter(|vm| !vm.life(Life::is_leaving));
    let vm = vm.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("VM {} does not arrive here", id.short())))?;
    if vm.kept().from.is_none() || vm.kept().from != granted.host() {
        return Err(ApiError::new(ErrorCode::Forbidden, format!("VM {} does not arrive here from the asking host", vm.name())));
    }
    // Before anything comes through it: what is being sent is not given up.
    vm.learn(Input::StreamBegan);
    let open = Open { vm };
    let stream = tokio::net::UnixStream::connect(sockets::arrival(&open.vm.folder)).await;
    let unreached = |error| ApiError::new(ErrorCode::Unreachable, format!("VM {}: its waiting VMM: {error}", open.vm.name()));
    Ok((stream.map_err(unreached)?, open))
}
