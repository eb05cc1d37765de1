//! What was decided is carried out: each step again and again until what it is for is so.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rebec_api::{
    ApiError,
    vm::{MoveVm, StopVm},
};
use rebec_book::{
    Body, Key,
    contract::{Contract, Said, Side, State, What},
    contracts,
    key::{Id, id_of_key},
    names,
    record::Kind,
    view,
};
use rebec_host::{failed, lock};
use rebec_pool::trade::{
    broker::{Act, Desk, advert, look},
    plan::{Because, Plan},
};

use super::{Broker, Move, WASTED, deal::ASK_REST};
use crate::{chance::now_s, vm::stop};

/// Between two orders of the same thing: a move that failed is tried again.
const ORDER_REST: Duration = Duration::from_secs(5);
/// A contract is kept so long after its end, so that last month's accounts can be compared.
const KEPT_S: u64 = 62 * 86_400;
/// Records that are cleared away at one look.
const CLEARED_MAX: usize = 16;

/// What a broker would do now, for people.
pub struct Outlook {
    /// What is to be done, and what not.
    pub plan: Plan<Act>,
    /// Each step in words.
    pub said: Vec<String>,
    /// Machines that others may ask for.
    pub offered: u32,
    /// Why so many.
    pub offered_why: String,
}

impl Broker {
    /// One look: what is to be done is decided and begun.
    pub(super) async fn look(self: &Arc<Self>) -> Result<(), ApiError> {
        let Ok(me) = self.here() else { return Ok(()) };
        let policy = self.policy()?;
        let (steps, machines) = {
            let _alone = self.deciding.lock().await;
            let (desk, adverts) = self.desk(me, &policy)?;
            let plan = look(&desk, &adverts);
            for step in &plan.steps {
                self.write_word(&desk, step).await?;
            }
            (plan.steps, advert(&desk).0)
        };
        self.advertise(me, &policy, machines)?;
        self.clear(me)?;
        self.ask_again(me);
        for step in steps {
            self.begin(step);
        }
        Ok(())
    }

    /// What would be done now.
    pub fn plan(&self) -> Result<Outlook, ApiError> {
        let (me, policy) = (self.here()?, self.policy()?);
        let (desk, adverts) = self.desk(me, &policy)?;
        let (offered, offered_why) = advert(&desk);
        let plan = look(&desk, &adverts);
        let said = plan.steps.iter().map(|step| self.say(&desk, &step.what)).collect();
        Ok(Outlook { plan, said, offered, offered_why })
    }

    fn say(&self, desk: &Desk<'_>, act: &Act) -> String {
        let vm_name = |vm: &Id| self.knowledge.read(|book| view::vm(book, *vm).map(|vm| vm.name)).flatten().unwrap_or_else(|| vm.short());
        match act {
            Act::Recall { contract } => format!("call back contract {}", contract.short()),
            Act::End { contract, .. } => format!("end contract {}", contract.short()),
            Act::Bring { contract, vm, to } => {
                format!("move VM {} to host {} (contract {})", vm_name(vm), self.knowledge.name_of(to), contract.short())
            }
            Act::Stop { contract, vm, .. } => format!("end VM {} (contract {})", vm_name(vm), contract.short()),
            Act::Borrow { lender, wish } => format!("ask domain {} for {} machines", desk.called(lender), wish.machines),
        }
    }

    /// What both sides go by is signed and written before anything is done.
    async fn write_word(&self, desk: &Desk<'_>, step: &Because<Act>) -> Result<(), ApiError> {
        let (id, what, wasted_s) = match &step.what {
            Act::Recall { contract } => (*contract, What::Recalled, 0),
            Act::End { contract, wasted_s } => (*contract, What::Ended, *wasted_s),
            Act::Bring { .. } | Act::Stop { .. } | Act::Borrow { .. } => return Ok(()),
        };
        let Some(held) = desk.held.iter().find(|held| held.id == id) else { return Ok(()) };
        let mut contract = held.contract.clone();
        contract.say(Said::new(what, desk.now, step.reason.clone(), wasted_s), &self.secret()?);
        self.write(&contract)?;
        log::info!("broker: contract {}: {what:?}: {}", id.short(), step.reason);
        self.note(if what == What::Recalled { "ContractRecall" } else { "ContractEnd" }, id, None).await;
        if what == What::Ended {
            let forget = |wasted: &mut BTreeMap<Id, u64>| {
                wasted.remove(&id);
                Ok(())
            };
            self.store.change_fact(WASTED, forget).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    fn begin(self: &Arc<Self>, step: Because<Act>) {
        let key = match &step.what {
            Act::Bring { contract, vm, .. } | Act::Stop { contract, vm, .. } => (*contract, *vm),
            Act::Borrow { lender, .. } => return self.borrow(*lender, step),
            Act::Recall { .. } | Act::End { .. } => return,
        };
        if !is_due(&mut lock(&self.seen).ordered, key, ORDER_REST) {
            return;
        }
        log::info!("broker: {:?}: {}", step.what, step.reason);
        let broker = self.clone();
        tokio::spawn(async move {
            if let Err(error) = broker.order(&step.what).await {
                log::warn!("broker: {:?}: {error}", step.what);
            }
        });
    }

    fn borrow(self: &Arc<Self>, lender: Key, step: Because<Act>) {
        // A proposal whose answer is still to come is not made twice.
        let open = self.mine(Some(lender)).into_iter().any(|contract| contract.standing(now_s()).state == State::Offered);
        if open || !is_due(&mut lock(&self.seen).asked, lender, ASK_REST) {
            return;
        }
        let Act::Borrow { wish, .. } = step.what else { return };
        let broker = self.clone();
        tokio::spawn(async move {
            match broker.propose(lender, &wish).await {
                Ok((agreed, _)) => {
                    // Who gave all that was asked for may be asked for more at once.
                    if agreed.len() >= wish.machines as usize {
                        lock(&broker.seen).asked.remove(&lender);
                    }
                    log::info!("broker: {} contracts: {}", agreed.len(), step.reason);
                }
                Err(error) => log::info!("broker: {error}: {}", error.details.join("; ")),
            }
        });
    }

    async fn order(&self, act: &Act) -> Result<(), ApiError> {
        match act {
            Act::Bring { vm, to, .. } => {
                let wish = MoveVm { host: Some(names::by_id(&id_of_key(to))), ..MoveVm::default() };
                let Some(host) = self.holder(*vm)? else { return Ok(()) };
                let bytes = self.knowledge.pool(|book| view::vm_body(book, *vm).map_or(0, |body| body.memory_bytes))?;
                let began = Instant::now();
                self.command(host, *vm, "move", &wish).await?;
                lock(&self.seen).moving.insert(*vm, Move { began, from: host, to: *to, bytes });
                Ok(())
            }
            Act::Stop { contract, vm, wasted_s } => {
                let Some(host) = self.holder(*vm)? else { return Ok(()) };
                let lost = |wasted: &mut BTreeMap<Id, u64>| {
                    let known = wasted.entry(*contract).or_default();
                    *known = known.saturating_add(*wasted_s);
                    Ok(())
                };
                if host == self.knowledge.key() {
                    if let Some(vm) = self.vms.get(vm) {
                        stop::stop(&vm, Duration::ZERO, None).await?;
                    }
                } else {
                    self.command(host, *vm, "stop", &StopVm { timeout_s: 0 }).await?;
                }
                self.note("ContractStop", *vm, None).await;
                self.store.change_fact(WASTED, lost).map_err(|error| failed(&error))
            }
            Act::Recall { .. } | Act::End { .. } | Act::Borrow { .. } => Ok(()),
        }
    }

    fn holder(&self, vm: Id) -> Result<Option<Key>, ApiError> {
        self.knowledge.pool(|book| view::seen(book, vm).map(|seen| seen.holder))
    }

    /// Contracts that this host has written of; with one lender, or with all.
    fn mine(&self, lender: Option<Key>) -> Vec<Contract> {
        let own = self.knowledge.key();
        let mine = self.knowledge.read(|book| {
            let all = contracts::all(book).into_iter();
            let mine = all.filter(|(id, _)| matches!(book.get(Kind::CONTRACT, *id, own), Some(Body::Contract(_))));
            mine.map(|(_, contract)| contract).collect::<Vec<_>>()
        });
        let of = |contract: &Contract| lender.is_none_or(|lender| contract.terms().lender == lender);
        mine.unwrap_or_default().into_iter().filter(of).collect()
    }

    /// Shows lenders again what they have not answered.
    fn ask_again(self: &Arc<Self>, me: Key) {
        let open =
            |contract: &Contract| contract.standing(now_s()).state == State::Offered && contract.terms().side(&me) == Some(Side::Borrower);
        for contract in self.mine(None).into_iter().filter(open) {
            let id = contract.id();
            if is_due(&mut lock(&self.seen).ordered, (id, id), ORDER_REST) {
                let broker = self.clone();
                tokio::spawn(async move {
                    match broker.put(&contract).await {
                        Ok(super::Answered::Refused { why } | super::Answered::Counter { why, .. }) => {
                            log::info!("broker: proposal {}: {why}", id.short());
                            broker.withdraw(id).unwrap_or_else(|error| log::warn!("broker: {error}"));
                        }
                        Ok(_) => {}
                        Err(error) => log::debug!("broker: proposal {}: {error}", id.short()),
                    }
                });
            }
        }
    }

    /// Proposals that lapsed and contracts that ended long ago go from this host's log.
    fn clear(&self, me: Key) -> Result<(), ApiError> {
        let now = now_s();
        let is_stale = |contract: &Contract| match contract.standing(now).state {
            State::Lapsed => true,
            State::Ended => contract.ended_at(now).is_some_and(|at| at.saturating_add(KEPT_S) < now),
            _ => contract.terms().side(&me).is_none(),
        };
        for contract in self.mine(None).into_iter().filter(is_stale).take(CLEARED_MAX) {
            self.knowledge.publish(Kind::CONTRACT, contract.id(), None)?;
        }
        let seen = &mut *lock(&self.seen);
        seen.ordered.retain(|_, at| at.elapsed() < 10 * ORDER_REST);
        Ok(())
    }
}

/// Whether something was not done lately; then it is now.
fn is_due<K: Ord>(done: &mut BTreeMap<K, Instant>, key: K, rest: Duration) -> bool {
    let now = Instant::now();
    match done.get_mut(&key) {
        Some(at) if now.duration_since(*at) < rest => false,
        Some(at) => {
            *at = now;
            true
        }
        None => {
            done.insert(key, now);
            true
        }
    }
}
