//! The keeper's side of leases (docs/formats/lease.md): answers the holders of VMs that this host keeps, and has a VM started elsewhere whose holder
//! has not asked for long enough. What is decided, and when, is `rebec_pool::lease`; what must survive is in the store before anybody hears of it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Book, Key, Signed,
    authority::Granted,
    key::Id,
    record::{Assigned, Kind},
    view,
};
use rebec_pool::lease::{self, Ask, Charge, Promises, Refusal, Stance, Terms};
use serde::{Deserialize, Serialize};

use super::{create, failed, grants, start};
use crate::{
    agent::{Agent, lock},
    facts,
};

/// What holders and keepers of a pool agree on.
pub const TERMS: Terms = Terms::STANDARD;
/// Between two looks for VMs whose holders are silent.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// After a start elsewhere that failed: no host had room, or the one that was chosen refused.
const RETRY: Duration = Duration::from_secs(5);

/// What a keeper remembers while its agent lives.
pub struct Keeper {
    promises: Mutex<Promises>,
    /// VMs that are being started elsewhere.
    starting: Mutex<BTreeSet<Id>>,
}

/// `POST /internal/promises`: may the VM run here?
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    /// The VM.
    pub vm: Id,
    /// What the asker has of it.
    pub ask: Ask,
    /// What proves it: the news may not have come here yet.
    pub records: Vec<Signed>,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// So long from when it was asked.
    Promised {
        /// In milliseconds.
        lease_ms: u64,
    },
    /// It was started elsewhere: what the asker has of it must go.
    Superseded {
        /// The host that it was started on.
        host: Key,
        /// At this epoch.
        epoch: u64,
    },
}

/// `POST /internal/restarts`: a VM that is stopped, or counts as such, on a host that is lost is to run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wish {
    /// The VM.
    pub vm: Id,
}

impl Keeper {
    /// A keeper whose agent starts now.
    pub fn new() -> Self {
        Self { promises: Mutex::new(Promises::new(facts::boot_time(), TERMS)), starting: Mutex::default() }
    }
}

/// Answers a host that has a copy of a VM, if what it asks has been granted: a promise only to who holds the VM by proof, and to the host
/// that the holder sends it to. Others can hear that their copy is superseded.
pub fn answer(agent: &Agent, granted: Granted, ask: Ask) -> Result<Verdict, ApiError> {
    let (Some(asker), Some(vm)) = (granted.host(), granted.about()) else {
        return Err(ApiError::new(ErrorCode::Forbidden, "no promise was granted"));
    };
    judge(agent, asker, vm, ask)
}

/// The same for a copy of the keeper's own.
pub fn answer_own(agent: &Agent, vm: Id, ask: Ask) -> Result<Verdict, ApiError> {
    judge(agent, agent.key(), vm, ask)
}

fn judge(agent: &Agent, asker: Key, vm: Id, ask: Ask) -> Result<Verdict, ApiError> {
    let name = require_charge(agent, vm)?;
    let has = agent.pool(|book| has_copy(book, vm, asker, ask))?;
    // Judged and noted as one, so that no grant comes in between.
    let judged = agent.store.change_charge(&vm, |charge| {
        let charge = lease::promise(charge, asker, ask)?;
        if !has {
            return Err(Refusal::Unheard);
        }
        lock(&agent.keeper.promises).note(vm, facts::boot_time(), TERMS);
        Ok(charge)
    });
    match judged.map_err(|error| failed(&error))? {
        Ok(_) => Ok(Verdict::Promised { lease_ms: TERMS.lease.as_millis().try_into().unwrap_or(u64::MAX) }),
        Err(Refusal::Superseded { epoch, host }) => Ok(Verdict::Superseded { host, epoch }),
        Err(Refusal::Unheard) => {
            let message =
                format!("VM {name}: its keeper made no promise that leads to epoch {} at the asking host; it stays as it is", ask.epoch);
            Err(ApiError::new(if has { ErrorCode::Refused } else { ErrorCode::Forbidden }, message))
        }
    }
}

/// Whether a host has a copy of a VM that a promise can be for: it holds the VM by proof, or the holder sends it there.
fn has_copy(book: &Book, vm: Id, asker: Key, ask: Ask) -> bool {
    let Some(at) = view::holder(book, vm) else { return false };
    let holds = at.host == asker && at.epoch == ask.epoch && ask.stance != Stance::Arrives;
    let is_sent = || view::seen(book, vm).is_some_and(|seen| seen.holder == at.host && seen.body.to == Some(asker));
    holds || ask.epoch == at.epoch.saturating_add(1) && is_sent()
}

/// A user wants a VM to run whose host was lost: it is started as soon as that is safe.
pub fn wish(agent: &Agent, vm: Id) -> Result<(), ApiError> {
    let name = require_charge(agent, vm)?;
    let none = || ApiError::new(ErrorCode::Conflict, format!("VM {name} has not been started yet; `rebec vm start {name}`"));
    let changed = agent.store.change_charge(&vm, |charge| Ok(Charge { runs: true, ..charge.cloned().ok_or_else(none)? }));
    changed.map_err(|error| failed(&error))?.map(|_| ())
}

/// The name of a VM that this host keeps.
fn require_charge(agent: &Agent, vm: Id) -> Result<String, ApiError> {
    let (_, body) = start::desired(agent, vm)?;
    if agent.pool(|book| view::keeper(book, vm))? != Some(agent.key()) {
        let message = format!("host {} is not the keeper of VM {}", agent.own_name(), body.name);
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    Ok(body.name)
}

/// Looks after the VMs that this host keeps, as long as the agent lives.
pub async fn run(agent: Arc<Agent>) {
    let mut period = tokio::time::interval(LOOK_PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        if let Err(error) = look(&agent) {
            log::error!("keeper: {error:#}");
        }
    }
}

fn look(agent: &Arc<Agent>) -> anyhow::Result<()> {
    let charges = agent.store.charges()?;
    if charges.is_empty() {
        // Most hosts keep nothing, and the book may be long.
        return Ok(());
    }
    let own = agent.key();
    let known = agent.book(|book| {
        let kept = view::vms(book).into_iter().filter(|vm| view::keeper(book, vm.id) == Some(own)).map(|vm| vm.id).collect::<BTreeSet<_>>();
        let gone = book.of_kind(Kind::VM).filter(|record| record.body.is_none()).map(|record| record.key.id).collect::<BTreeSet<_>>();
        (kept, gone)
    });
    let Some((kept, gone)) = known else { return Ok(()) };
    for (vm, charge) in charges {
        if gone.contains(&vm) && !kept.contains(&vm) {
            agent.store.forget_charge(&vm)?;
            lock(&agent.keeper.promises).forget(vm);
        } else if kept.contains(&vm) && may_restart(agent, &charge, vm) && lock(&agent.keeper.starting).insert(vm) {
            let agent = agent.clone();
            tokio::spawn(async move {
                if let Err(error) = restart(&agent, vm).await {
                    log::warn!("keeper: {error}");
                    tokio::time::sleep(RETRY).await;
                }
                lock(&agent.keeper.starting).remove(&vm);
            });
        }
    }
    Ok(())
}

fn may_restart(agent: &Agent, charge: &Charge, vm: Id) -> bool {
    lease::may_restart(charge, &lock(&agent.keeper.promises), vm, facts::boot_time(), TERMS)
}

/// Grants a VM to a host that has room, and tells that host.
async fn restart(agent: &Arc<Agent>, vm: Id) -> Result<(), ApiError> {
    let (home, body) = start::desired(agent, vm)?;
    let chosen = create::place(agent, &body, None, create::stays_in(agent, &home).as_deref(), None)?;
    let granted = agent.store.change_charge(&vm, |charge| match charge {
        Some(charge) if may_restart(agent, charge, vm) => {
            // If the order is lost, the next one waits as if it had been obeyed.
            lock(&agent.keeper.promises).note(vm, facts::boot_time(), TERMS);
            Ok(lease::grant(charge, chosen.key))
        }
        _ => Err(()),
    });
    // Its holder has asked meanwhile.
    let Ok(granted) = granted.map_err(|error| failed(&error))? else { return Ok(()) };
    let lost = granted.lost.map_or_else(String::new, |lost| agent.name_of(&lost));
    let reason = format!("host {lost} was lost; started again from its disk image on host {}", chosen.name);
    log::warn!("vm {}: {reason}, at epoch {}", body.name, granted.floor);
    let reporter = agent.jobs.begin_own(format!("start VM {} on host {}, because host {lost} was lost", body.name, chosen.name));
    grants::as_keeper(agent, vm, Assigned { host: chosen.key, epoch: granted.floor })?;
    let order = create::Order { epoch: granted.floor, reason: Some(reason) };
    let outcome = create::start_at(agent, vm, order, &chosen, &reporter).await;
    reporter.end(outcome.clone().map(|()| serde_json::Value::Null));
    outcome
}
