//! The end of a VM that runs here: its guest is asked to power itself off, and its power is cut when that has taken too long.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rebec_api::{ApiError, ErrorCode, vm::StopVm};
use rebec_vmm_api::control::{self, Command, ControlError};

use super::{LocalVm, Want, failed, lease, process};
use crate::{agent::Agent, jobs::Reporter};

/// How long a guest has where nobody said.
const PATIENCE: Duration = Duration::from_secs(StopVm::DEFAULT_TIMEOUT_S as u64);
/// How long a VMM may take to end.
const END_TIME: Duration = Duration::from_secs(10);
/// How long one may take that was killed.
const KILL_TIME: Duration = Duration::from_secs(5);

/// Ends a VM whose guest has `patience` to do so itself; none is a cut at once, also while another waits for the guest.
pub async fn stop(agent: &Arc<Agent>, vm: &Arc<LocalVm>, patience: Duration, reporter: Option<&Reporter>) -> Result<(), ApiError> {
    let name = vm.name();
    let busy = || ApiError::new(ErrorCode::Conflict, format!("VM {name} is being started or moved; wait until that is done"));
    let change = vm.change.try_lock();
    match (vm.want(), vm.seen().pid) {
        (Want::Running, _) if change.is_ok() => {
            vm.power_cut.store(false, Ordering::Relaxed);
            vm.keep(|kept| kept.want = Want::Stopped).map_err(|error| failed(&error))?;
        }
        (Want::Stopped, 0) if change.is_ok() => return Ok(()),
        // Another waits for the guest, or an earlier agent did.
        (Want::Stopped, 1..) => {}
        _ => return Err(busy()),
    }
    // A guest that is to power itself off must run.
    vm.go_on().await.map_err(|error| failed(&error))?;
    let refused = if patience.is_zero() { None } else { ask_guest(agent, vm, patience, reporter).await.err() };
    let was_killed = vm.seen().pid != 0 && cut_power(agent, vm).await?;
    let why = refused.map_or_else(|| ", as was asked for".to_owned(), |why| format!(": {why}"));
    let was_cut = vm.power_cut.load(Ordering::Relaxed);
    vm.say(agent, |seen| {
        seen.reason = Some(if was_killed {
            format!("its VMM did not answer and was killed{why}")
        } else if was_cut {
            format!("its power was cut{why}")
        } else {
            "its guest powered itself off, as was asked for".to_owned()
        });
    });
    // Its keeper should know at once that it is not to be started elsewhere.
    tokio::spawn(lease::renew(agent.clone(), vm.clone()));
    Ok(())
}

/// Ends the VMM. Whether it had to be killed.
async fn cut_power(agent: &Agent, vm: &Arc<LocalVm>) -> Result<bool, ApiError> {
    vm.power_cut.store(true, Ordering::Relaxed);
    let name = vm.name();
    if let Err(error) = vm.talk(|control| control.tell(Command::Stop)).await {
        log::warn!("vm {name}: stop: {error:#}");
    }
    if agent.until(END_TIME, || vm.seen().pid == 0).await {
        return Ok(false);
    }
    log::warn!("vm {name}: its VMM did not end within {} s and is killed", END_TIME.as_secs());
    let was_there = process::kill(vm.seen().pid, &vm.folder).map_err(|error| failed(&error))?;
    agent.limits.kill(&vm.id());
    let late = || ApiError::new(ErrorCode::Failed, format!("VM {name}: its VMM did not end when it was killed; does its disk answer?"));
    if agent.until(KILL_TIME, || vm.seen().pid == 0).await { Ok(was_there) } else { Err(late()) }
}

/// Sees the end through that an earlier agent had begun.
pub fn go_on(agent: &Arc<Agent>, vm: &Arc<LocalVm>) {
    let (agent, vm) = (agent.clone(), vm.clone());
    tokio::spawn(async move {
        if let Err(error) = stop(&agent, &vm, PATIENCE, None).await {
            log::error!("{error}");
        }
    });
}

/// Presses the power button and waits for what comes of it. The error is why nothing did.
async fn ask_guest(agent: &Agent, vm: &Arc<LocalVm>, patience: Duration, reporter: Option<&Reporter>) -> Result<(), String> {
    vm.talk(|control| control.tell(Command::PowerButton)).await.map_err(|error| match error.downcast_ref::<ControlError>() {
        Some(ControlError { code: control::ErrorCode::WrongState, .. }) => "its guest does not listen to its power button".to_owned(),
        _ => format!("{error:#}"),
    })?;
    let seconds = patience.as_secs();
    let asked = format!("its guest was asked to power itself off, and has {seconds} s for that");
    if let Some(reporter) = reporter {
        reporter.progress(&asked, 0, 0);
    }
    vm.say(agent, |seen| seen.reason = Some(asked));
    let ended = agent.until(patience, || vm.seen().pid == 0).await;
    if ended { Ok(()) } else { Err(format!("its guest did not power itself off within {seconds} s")) }
}
