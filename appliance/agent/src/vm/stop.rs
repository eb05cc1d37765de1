//! The end of a VM that runs here, for whoever waits for it. How it is brought about is its life's.

use std::{sync::Arc, time::Duration};

use rebec_api::{ApiError, ErrorCode};
use rebec_host::life::{Goal, Input, Life};

use super::{LocalVm, failed};
use crate::{agent::Agent, jobs::Reporter};

/// Ends a VM whose guest has `patience` to do so itself; none is a cut at once, also while another waits for the guest.
pub async fn stop(agent: &Arc<Agent>, vm: &Arc<LocalVm>, patience: Duration, reporter: Option<&Reporter>) -> Result<(), ApiError> {
    // A guest that is to power itself off must run.
    vm.go_on().await.map_err(|error| failed(&error))?;
    vm.hear(agent, Input::Want(Goal::Stop { patience }))?;
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
