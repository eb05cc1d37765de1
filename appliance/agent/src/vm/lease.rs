//! The holder's side of leases (docs/formats/lease.md): asks the keepers of this host's VMs again and again, tells their VMMs how long they may run,
//! and removes what was started elsewhere meanwhile. A VMM whose lease has ended stands still by itself, with or without this agent.

use std::{sync::Arc, time::Duration};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::record::SeenState;
use rebec_host::life::Input;
use rebec_pool::lease::{Ask, Stance};
use rebec_vmm_api::control::Command;

use super::{Kept, LocalVm, Vms, look};
use crate::{
    facts,
    keeper::{Question, TERMS, Verdict},
};

/// Asks for every VM of this host that has a keeper, as long as the agent lives.
pub async fn run(vms: Arc<Vms>) {
    let mut period = tokio::time::interval(TERMS.period());
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        for vm in vms.all() {
            tokio::spawn(renew(vms.clone(), vm));
        }
    }
}

/// Asks for one VM, as it is now.
pub async fn renew(vms: Arc<Vms>, vm: Arc<LocalVm>) {
    let kept = vm.kept();
    if kept.body.keeper.is_none() {
        return;
    }
    let source_answers = kept.from.is_some_and(|from| vms.peers.answers(&from));
    let Some(stance) = vm.life(|life| life.stance(!kept.boot.is_empty(), source_answers)) else { return };
    match ask(&vms, &kept, stance).await {
        Ok(Heard::Promised(until)) => {
            vm.leased_until(until);
            tell(&vm).await;
            if vm.seen().state == SeenState::Unleased {
                look::at(&vm).await;
            }
        }
        Ok(Heard::Superseded(why)) => withdraw(&vm, kept.epoch, &why),
        Err(error) => log::debug!("vm {}: {error}", vm.name()),
    }
}

/// A promise for a VM that is about to run or to move: until when it may run.
pub async fn require(vms: &Arc<Vms>, kept: &Kept, stance: Stance) -> Result<Duration, ApiError> {
    if kept.body.keeper.is_none() {
        return Ok(Duration::ZERO);
    }
    match ask(vms, kept, stance).await? {
        Heard::Promised(until) => Ok(until),
        Heard::Superseded(why) => Err(ApiError::new(ErrorCode::Conflict, format!("VM {}: {why}", kept.body.name))),
    }
}

/// What a keeper says.
enum Heard {
    /// The VM may run until then.
    Promised(Duration),
    /// Why it may never run here again.
    Superseded(String),
}

async fn ask(vms: &Arc<Vms>, kept: &Kept, stance: Stance) -> Result<Heard, ApiError> {
    let name = &kept.body.name;
    let unreached = |who: &str, why: &str| ApiError::new(ErrorCode::Unreachable, format!("VM {name}: keeper {who} is not reached: {why}"));
    let keeper = kept.body.keeper.ok_or_else(|| unreached("?", "the VM has none"))?;
    let ask = Ask { epoch: kept.epoch.max(1), stance };
    // Counted from before the question: however late the answer, the keeper counts from later.
    let asked = facts::boot_time();
    let verdict = if keeper == vms.knowledge.key() {
        vms.keeper.answer_own(kept.id, ask)?
    } else {
        let peer = vms.knowledge.peer(&keeper).ok_or_else(|| unreached(&keeper.short(), "it is not known here"))?;
        let question = Question { vm: kept.id, ask, records: vms.knowledge.records_of(kept.id)? };
        let answer = vms.peers.mesh.ask(&peer, "/internal/promises", &question);
        tokio::time::timeout(TERMS.period(), answer).await.unwrap_or_else(|_| Err(unreached(&peer.name, "no answer in time")))?
    };
    match verdict {
        Verdict::Promised { lease_ms } => Ok(Heard::Promised(asked.saturating_add(Duration::from_millis(lease_ms)))),
        Verdict::Superseded { host, epoch } => {
            let host = vms.knowledge.name_of(&host);
            Ok(Heard::Superseded(format!(
                "host {host} has it at epoch {epoch} since this host was lost, and what this host has of it goes"
            )))
        }
    }
}

/// Tells the VMM, where there is one, how long it may run.
pub async fn tell(vm: &LocalVm) {
    if vm.kept().body.keeper.is_none() {
        return;
    }
    let until_ms = vm.lease_ends().as_millis().try_into().unwrap_or(u64::MAX);
    if let Err(error) = vm.talk(move |control| control.tell(Command::Lease { until_ms })).await {
        log::debug!("vm {}: tell its VMM of the lease: {error:#}", vm.name());
    }
}

/// What this host has of a VM at this epoch goes: it was started elsewhere.
pub fn withdraw(vm: &LocalVm, epoch: u64, why: &str) {
    if vm.life(|life| life.durable().epoch == epoch && !life.is_leaving()) {
        log::warn!("vm {}: removed: {why}", vm.name());
    }
    vm.learn(Input::Superseded(epoch));
}
