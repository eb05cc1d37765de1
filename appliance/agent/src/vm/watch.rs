//! Watches a VMM: says how its VM is, and what happens at its end.

use std::{sync::Arc, time::Duration};

use rebec_book::record::{Kind, SeenState};
use rebec_host::folders;
use rebec_migrate::ledger::Right;
use rebec_vmm_api::control::VmState;

use super::{
    LocalVm, Want, arrive,
    control::Control,
    depart, grants, lease, ledger,
    process::{self, Process},
    start,
};
use crate::agent::{Agent, lock};

/// Between two looks at a VM.
const PERIOD: Duration = Duration::from_secs(2);
/// A VMM that was killed is started again after this time, doubled for each time in a row.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// Times in a row; one that ran for [`STEADY`] begins anew.
const RESTARTS_MAX: u32 = 4;
const STEADY: Duration = Duration::from_secs(60);

/// Watches until the VM is stopped or gone.
pub fn spawn(agent: &Arc<Agent>, vm: &Arc<LocalVm>, process: Process) {
    tokio::spawn(watch(agent.clone(), vm.clone(), process));
}

async fn watch(agent: Arc<Agent>, vm: Arc<LocalVm>, mut process: Process) {
    let mut restarts = 0;
    loop {
        let began = tokio::time::Instant::now();
        let code = until_end(&agent, &vm, &mut process).await;
        if began.elapsed() > STEADY {
            restarts = 0;
        }
        match ended(&agent, &vm, code, restarts).await {
            Some(next) => process = next,
            None => return,
        }
        restarts += 1;
    }
}

/// Says how the VM is until its VMM ends.
async fn until_end(agent: &Arc<Agent>, vm: &Arc<LocalVm>, process: &mut Process) -> Option<i32> {
    let mut has_come = false;
    loop {
        look(agent, vm).await;
        if vm.seen().state == SeenState::Waiting {
            tokio::spawn(depart::insist(agent.clone(), vm.clone()));
        }
        if vm.seen().state == SeenState::Unleased {
            tokio::spawn(lease::renew(agent.clone(), vm.clone()));
        }
        tokio::select! {
            code = process.ended() => return code,
            () = until_look(vm, &mut has_come) => {}
        }
    }
}

/// Waits for the next look: for a VM that arrives, until its VMM says that it has.
async fn until_look(vm: &LocalVm, has_come: &mut bool) {
    if vm.want() == Want::Arriving && !*has_come {
        match vm.talk(Control::arrival).await {
            Ok(()) => {
                *has_come = true;
                return;
            }
            Err(error) => log::debug!("vm {}: {error:#}", vm.name()),
        }
    }
    tokio::time::sleep(PERIOD).await;
}

/// Asks the VMM and says what it answers.
pub async fn look(agent: &Agent, vm: &Arc<LocalVm>) {
    let (status, pid) = match vm.talk(|control| Ok((control.status()?, control.pid()?))).await {
        Ok(answer) => answer,
        Err(error) => {
            log::debug!("vm {}: {error:#}", vm.name());
            return;
        }
    };
    let state = match status.state {
        VmState::Running if status.lease_ms == Some(0) => SeenState::Unleased,
        VmState::Running => SeenState::Running,
        VmState::Paused => SeenState::Paused,
        VmState::Moving => SeenState::Moving,
        VmState::Waiting => SeenState::Waiting,
        // A newer VMM's word, which a newer agent began it with.
        VmState::Other => SeenState::Other,
        // It has not run here: whoever sends it says how it is.
        VmState::Incoming => return,
        VmState::Moved => {
            depart::left(agent, vm);
            return;
        }
    };
    let kept = vm.kept();
    if state == SeenState::Waiting {
        // It is granted: whoever sees it there can know by whose word.
        told(vm, grants::gave(agent, vm));
    } else if kept.want == Want::Arriving || kept.epoch != status.epoch {
        let want = if kept.want == Want::Arriving { Want::Running } else { kept.want };
        if kept.want != Want::Arriving {
            told(vm, grants::went_on(agent, vm, kept.epoch, status.epoch));
        }
        set_want(vm, want, status.epoch);
    }
    let silent_keeper = kept.body.keeper.filter(|_| state == SeenState::Unleased).map(|keeper| agent.name_of(&keeper));
    if let Some(keeper) = &silent_keeper
        && vm.seen().state != state
    {
        log::warn!("vm {}: stands still: its lease has run out, and keeper {keeper} has not renewed it", vm.name());
    }
    vm.say(agent, |seen| {
        if let Some(keeper) = silent_keeper {
            seen.reason = Some(format!("its lease has run out: it goes on as soon as keeper {keeper} answers"));
        } else if state != SeenState::Waiting {
            // Why it had to start again stays said while it runs.
            seen.reason = seen.reason.take().filter(|_| seen.state == state || seen.state == SeenState::Starting);
        }
        seen.state = state;
        seen.epoch = status.epoch;
        seen.pid = pid;
        seen.endpoints = kept.endpoints;
    });
}

fn set_want(vm: &LocalVm, want: Want, epoch: u64) {
    told(
        vm,
        vm.keep(|kept| {
            kept.want = want;
            kept.epoch = kept.epoch.max(epoch);
        }),
    );
}

fn told(vm: &LocalVm, outcome: anyhow::Result<()>) {
    if let Err(error) = outcome {
        log::error!("vm {}: {error:#}", vm.name());
    }
}

/// What the end of a VMM means. Returns the VMM that was started instead.
async fn ended(agent: &Arc<Agent>, vm: &Arc<LocalVm>, code: Option<i32>, restarts: u32) -> Option<Process> {
    agent.limits.remove(&vm.id());
    let how = code.map_or_else(|| "while no agent was its parent".to_owned(), |code| format!("with exit code {code}"));
    let how = format!("its VMM ended {how}: {}", process::last_words(&vm.folder));
    after(agent, vm, code, &how, restarts).await
}

/// What is to be done about a VM without a VMM: as is wanted, and as its ledger allows.
pub async fn after(agent: &Arc<Agent>, vm: &Arc<LocalVm>, code: Option<i32>, how: &str, restarts: u32) -> Option<Process> {
    let right = match ledger::last(&vm.folder) {
        Ok(right) => right,
        Err(error) => {
            // Nothing is started or removed on a guess.
            vm.say_stopped(agent, SeenState::Failed, Some(format!("{how}; {error:#}")));
            return None;
        }
    };
    match (vm.want(), right) {
        (Want::Gone, _) | (Want::Arriving, None | Some(Right::Released)) => {
            log::info!("vm {}: nothing of it stays here: {how}", vm.name());
            remove(agent, vm);
            None
        }
        // It has not run here: a VMM must say so to the source, which waits for that.
        (Want::Arriving, Some(Right::Prepared)) => match arrive::wait_for(agent, vm).await {
            Ok(process) => Some(process),
            Err(error) => {
                log::error!("vm {}: {how}; it could not be released to its source: {error:#}", vm.name());
                None
            }
        },
        (Want::Stopped, _) => {
            vm.say_stopped(agent, SeenState::Stopped, None);
            None
        }
        (Want::Running, Some(Right::Holding | Right::Running) | None) if code == Some(0) => {
            set_want(vm, Want::Stopped, 0);
            vm.say_stopped(agent, SeenState::Stopped, Some("the guest powered itself off".into()));
            None
        }
        (Want::Running | Want::Arriving, _) => restart(agent, vm, how, restarts).await,
    }
}

async fn restart(agent: &Arc<Agent>, vm: &Arc<LocalVm>, how: &str, restarts: u32) -> Option<Process> {
    log::warn!("vm {}: {how}", vm.name());
    if restarts >= RESTARTS_MAX {
        set_want(vm, Want::Stopped, 0);
        vm.say_stopped(agent, SeenState::Failed, Some(format!("{how}; not started again after {restarts} times")));
        return None;
    }
    vm.say_stopped(agent, SeenState::Starting, Some(format!("{how}; it starts again from its disk")));
    if restarts > 0 {
        tokio::time::sleep(RESTART_AFTER * 2u32.pow(restarts)).await;
    }
    // A move that was under way has ended with the VMM, and gives the lock back soon.
    let _change = vm.change.lock().await;
    if vm.want() == Want::Gone {
        return None;
    }
    if vm.want() == Want::Stopped {
        vm.say_stopped(agent, SeenState::Stopped, None);
        return None;
    }
    match start::boot(agent, vm).await {
        Ok(process) => {
            look(agent, vm).await;
            vm.say(agent, |seen| seen.reason = Some(format!("{how}; it was started again from its disk")));
            Some(process)
        }
        Err(error) => {
            set_want(vm, Want::Stopped, 0);
            vm.say_stopped(agent, SeenState::Failed, Some(format!("{how}; it could not be started again: {error:#}")));
            None
        }
    }
}

/// Nothing of the VM stays here.
pub fn remove(agent: &Agent, vm: &LocalVm) {
    let id = vm.id();
    lock(&agent.vms).remove(&id);
    agent.limits.remove(&id);
    // One that did not hear that it was to end is not to run on without its folder.
    if let Err(error) = process::kill(vm.seen().pid, &vm.folder) {
        log::error!("vm {}: {error:#}", vm.name());
    }
    if let Err(error) = folders::remove(&vm.folder) {
        log::error!("vm {}: remove {}: {error}", vm.name(), vm.folder.display());
    }
    let kept = vm.kept();
    let known = agent.book(|book| book.get(Kind::SEEN, id, agent.key()).is_some());
    if known == Some(true) {
        // What it granted proves where the VM is, until that is said there.
        let gave = kept.grants.iter().any(|grant| grant.by == agent.key());
        let last = if gave {
            grants::left(agent, id, kept.epoch, grants::known(agent, id, &kept.grants))
        } else {
            agent.publish(Kind::SEEN, id, None)
        };
        if let Err(error) = last {
            log::error!("vm {}: {error}", vm.name());
        }
    }
    agent.touch();
}
