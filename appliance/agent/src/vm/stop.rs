//! The end of a VM that runs here, for whoever waits for it. How it is brought about is its life's.

use std::{sync::Arc, time::Duration};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::key::Id;
use rebec_host::life::{Goal, Input, Life};

use super::{LocalVm, Vms, failed};
use crate::jobs::Reporter;

/// How long the removal of a folder may take.
const REMOVE_TIME: Duration = Duration::from_secs(30);

/// Ends a VM whose guest has `patience` to do so itself; none is a cut at once, also while another waits for the guest.
pub async fn stop(vm: &Arc<LocalVm>, patience: Duration, reporter: Option<&Reporter>) -> Result<(), ApiError> {
    let goal = Goal::Stop { patience };
    // What is refused changes nothing.
    vm.require(&goal)?;
    // A guest that is to power itself off must run.
    vm.go_on().await.map_err(|error| failed(&error))?;
    vm.hear(Input::Want(goal))?;
    let asked = vm.life(|life| life.is_stopping().then(|| life.word().reason.clone()).flatten());
    if let (Some(reporter), Some(asked)) = (reporter, asked) {
        reporter.progress(asked, 0, 0);
    }
    vm.until(|life| !life.is_stopping() || life.is_stuck()).await;
    if vm.life(Life::is_stuck) {
        let message = format!("VM {}: its VMM did not end when it was killed; does its disk answer?", vm.name());
        return Err(ApiError::new(ErrorCode::Failed, message));
    }
    Ok(())
}

/// Removes a stopped VM from this host.
pub async fn remove(vms: &Vms, id: Id) -> Result<(), ApiError> {
    let Some(vm) = vms.get(&id) else { return Ok(()) };
    vm.hear(Input::Want(Goal::Remove)).map_err(|_| {
        let name = vm.name();
        ApiError::new(ErrorCode::Conflict, format!("VM {name} runs; `rebec vm stop {name}` first"))
    })?;
    if vms.knowledge.until(REMOVE_TIME, || vms.get(&id).is_none()).await {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Failed, format!("VM {}: what is here of it does not go; does its disk answer?", vm.name())))
}
