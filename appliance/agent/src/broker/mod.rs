//! The domain's broker, at the host that the domain's own record names: it signs for the domain, so that host has the domain's key. What it does is
//! decided by `rebec_pool::trade::broker`; here its desk is laid, and its decisions become records, questions to other brokers, and orders.
//!
//! ```text
//! run ── look (every 2 s, and when something changes) ──► desk (the book, the policy) ──► trade::broker::look ──► act
//! http/trade ── propose, accept, recall ──►  deal ~~ POST /internal/offers, /internal/contracts ~~► receive, of the other broker
//! ```
//! Under `deciding` a decision is made and its record written; nothing is asked of others meanwhile.

mod act;
mod deal;
mod desk;
mod errand;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use rebec_api::{ApiError, ErrorCode, trade};
use rebec_book::{
    Body, Book, Key,
    contract::Contract,
    contracts,
    key::{Id, id_of_key},
    record::{BrokerBody, Kind, SeenState},
    view,
};
use rebec_host::failed;
use rebec_pool::trade::{
    demand::Demand,
    file,
    policy::{Policy, Reclaim},
};
use serde::{Deserialize, Serialize};

pub use self::{
    act::Outlook,
    deal::{Answered, Offers, Proposal, Wished},
};
use crate::{
    audit::{Audit, Entry, Who},
    chance::now_s,
    identity::{Identity, Role},
    knowledge::Knowledge,
    peers::Peers,
    store::Store,
    vm::Vms,
};

/// Between two looks where nothing changes.
const PERIOD: Duration = Duration::from_secs(2);
/// Between two looks at most so often, whatever changes.
const REST: Duration = Duration::from_millis(250);
/// Proposals that wait for an operator: of one domain, and of all.
const WAITING_EACH_MAX: usize = 8;
const WAITING_MAX: usize = 64;
/// A move that has not ended by then is not measured.
const MOVE_TIME: Duration = Duration::from_secs(3600);
const POLICY: &str = "policy";
const DEMAND: &str = "demand";
/// Work that was lost under contracts that are not settled.
const WASTED: &str = "trade-wasted";

/// The broker of this host's domain, where it is here.
pub struct Broker {
    identity: Arc<Identity>,
    knowledge: Arc<Knowledge>,
    peers: Arc<Peers>,
    vms: Arc<Vms>,
    store: Arc<Store>,
    audit: Arc<Audit>,
    deciding: tokio::sync::Mutex<()>,
    seen: Mutex<Seen>,
}

/// What is not kept: it is found out again, or asked for again.
#[derive(Default)]
struct Seen {
    /// Since when this broker knows of a recall.
    recalled: BTreeMap<Id, Instant>,
    /// Proposals that an operator may accept.
    waiting: BTreeMap<Id, Contract>,
    /// What was ordered lately, by contract and VM, so that it is not ordered again with every look.
    ordered: BTreeMap<(Id, Id), Instant>,
    /// When a domain was asked last.
    asked: BTreeMap<Key, Instant>,
    /// Moves that were ordered and are not seen to have ended.
    moving: BTreeMap<Id, Move>,
    /// Bytes a second of the last move from one domain into another.
    rates: BTreeMap<(Key, Key), u64>,
}

/// A move that was ordered.
struct Move {
    began: Instant,
    from: Key,
    to: Key,
    bytes: u64,
}

impl Seen {
    /// How fast moves were, by those that have ended since this was asked last. One that takes longer than an hour says nothing.
    fn rates(&mut self, book: &Book) -> BTreeMap<(Key, Key), u64> {
        let (moving, rates) = (&mut self.moving, &mut self.rates);
        moving.retain(|vm, moved| {
            let is_there = view::seen(book, *vm).is_some_and(|seen| seen.holder == moved.to && seen.body.state == SeenState::Running);
            if let (true, Some(from), Some(to)) = (is_there, book.domain_of(&moved.from), book.domain_of(&moved.to)) {
                let ms = u64::try_from(moved.began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
                rates.insert((from, to), (moved.bytes.saturating_mul(1000) / ms).max(1));
            }
            !is_there && moved.began.elapsed() < MOVE_TIME
        });
        rates.clone()
    }
}

/// What was told of the domain's demand, and for how long it holds: a source that is silent is not one that wants nothing.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Told {
    queued: u32,
    running: u32,
    widest: u32,
    at: u64,
    /// What a version before has written holds no longer.
    #[serde(default)]
    valid_s: u32,
}

impl Told {
    /// Whether it holds still, by a clock that may have been set meanwhile.
    fn holds(&self, now: u64) -> bool {
        now.abs_diff(self.at) < u64::from(self.valid_s)
    }
}

impl Broker {
    /// Nothing has been decided.
    pub fn new(
        identity: Arc<Identity>,
        knowledge: Arc<Knowledge>,
        peers: Arc<Peers>,
        vms: Arc<Vms>,
        store: Arc<Store>,
        audit: Arc<Audit>,
    ) -> Arc<Self> {
        let (deciding, seen) = Default::default();
        Arc::new(Self { identity, knowledge, peers, vms, store, audit, deciding, seen })
    }

    /// As long as the agent runs.
    pub async fn run(self: Arc<Self>) {
        let mut changed = self.knowledge.watch();
        loop {
            if let Err(error) = self.look().await {
                log::warn!("broker: {error}");
            }
            tokio::time::sleep(REST).await;
            tokio::time::timeout(PERIOD, changed.changed()).await.map(|_| ()).unwrap_or_default();
        }
    }

    /// The own domain, where its broker is this host.
    fn here(&self) -> Result<Key, ApiError> {
        let own = self.knowledge.key();
        let found = self.knowledge.pool(|book| {
            let domain = book.own_domain()?;
            let broker = contracts::broker(book, &domain).map(|broker| broker.host);
            Some((domain, book.domain_name(&domain), broker))
        })?;
        match found {
            Some((domain, _, Some(broker))) if broker == own => Ok(domain),
            Some((_, name, Some(broker))) => {
                let host = self.knowledge.name_of(&broker);
                Err(ApiError::new(ErrorCode::Conflict, format!("the broker of domain {name} is host {host}; ask there")))
            }
            Some((_, name, None)) => {
                let how = "`rebec policy set FILE`, on a host that has the domain's key, gives it one";
                Err(ApiError::new(ErrorCode::Conflict, format!("domain {name} has no policy, and so no broker: {how}")))
            }
            None => Err(ApiError::new(ErrorCode::Conflict, "this host belongs to no domain yet; try again")),
        }
    }

    fn secret(&self) -> Result<SigningKey, ApiError> {
        let secret = self.identity.get(Role::Domain).map_err(|error| failed(&error))?;
        let none = || {
            ApiError::new(ErrorCode::Forbidden, "this host does not hold the domain's root key; ask on the host that founded the domain")
        };
        secret.map(|secret| secret.as_signing_key().clone()).ok_or_else(none)
    }

    /// The reclamation that the domain's work survives.
    pub fn survives(&self) -> Result<Vec<Reclaim>, ApiError> {
        self.here()?;
        Ok(self.policy()?.borrowing.survives.value.0)
    }

    /// The policy's file, as it was set.
    pub fn policy_text(&self) -> Result<Option<String>, ApiError> {
        self.store.fact(POLICY).map_err(|error| failed(&error))
    }

    fn policy(&self) -> Result<Policy, ApiError> {
        let text = self.policy_text()?.unwrap_or_default();
        // It was read when it was set: a version that has become stricter is told of.
        file::read(&text).map_err(|mistakes| bad_policy(&mistakes))
    }

    /// Sets the domain's policy, and makes this host its broker.
    pub async fn set_policy(&self, text: &str) -> Result<(), ApiError> {
        let policy = file::read(text).map_err(|mistakes| bad_policy(&mistakes))?;
        let domain = self.knowledge.pool(|book| book.own_domain())?;
        let domain = domain.ok_or_else(|| ApiError::new(ErrorCode::Conflict, "this host belongs to no domain yet; try again"))?;
        self.secret()?;
        let _alone = self.deciding.lock().await;
        self.store.set_fact(POLICY, &text.to_owned()).map_err(|error| failed(&error))?;
        self.advertise(domain, &policy, 0)
    }

    /// Tells the pool where the broker is and what may be asked for, where that has changed.
    fn advertise(&self, domain: Key, policy: &Policy, machines: u32) -> Result<(), ApiError> {
        let reclaim: Vec<Reclaim> = policy.lending.reclaim.value.0.clone();
        let price_milli = policy.lending.price.value.0.into();
        let body = BrokerBody { domain, host: self.knowledge.key(), by_contract: true, machines, price_milli, reclaim };
        if self.knowledge.pool(|book| contracts::broker(book, &domain).cloned())?.as_ref() == Some(&body) {
            return Ok(());
        }
        self.knowledge.publish_as(Kind::BROKER, id_of_key(&domain), Some(Body::Broker(body)), &self.secret()?)
    }

    /// Takes down what the domain's work wants.
    pub fn set_demand(&self, demand: trade::Demand) -> Result<(), ApiError> {
        self.here()?;
        let trade::Demand { queued, running, widest, valid_s } = demand;
        let (valid_s, most) = (valid_s.unwrap_or(trade::Demand::VALID_S), trade::Demand::VALID_S_MAX);
        if !(1..=most).contains(&valid_s) {
            return Err(ApiError::new(ErrorCode::BadRequest, format!("demand holds for 1 to {most} s, not for {valid_s}")));
        }
        let told = Told { queued, running, widest, at: now_s(), valid_s };
        self.store.set_fact(DEMAND, &told).map_err(|error| failed(&error))?;
        self.knowledge.touch();
        Ok(())
    }

    fn demand(&self) -> Result<Option<Demand>, ApiError> {
        let told: Option<Told> = self.store.fact(DEMAND).map_err(|error| failed(&error))?;
        Ok(told.filter(|told| told.holds(now_s())).map(|told| Demand { queued: told.queued, running: told.running, widest: told.widest }))
    }

    /// Writes what this host knows of a contract, with what the other side is known to have said.
    fn write(&self, contract: &Contract) -> Result<(), ApiError> {
        let id = contract.id();
        let known = self.knowledge.pool(|book| contracts::one(book, id))?;
        let whole = known.map_or_else(|| contract.clone(), |known| known.with(contract));
        self.knowledge.publish(Kind::CONTRACT, id, Some(Body::Contract(whole.into())))
    }

    /// A decision of the broker's own is a row of the audit log.
    async fn note(&self, asked: &str, contract: Id, refused: Option<String>) {
        let who = Who { user: Some("broker".into()), ..Who::default() };
        let entry = Entry { who, asked: asked.into(), about: Some(contract), refused, times: None };
        self.audit.note(entry).await;
    }
}

fn bad_policy(mistakes: &[file::Mistake]) -> ApiError {
    let details = mistakes.iter().map(ToString::to_string).collect();
    let message = "the policy has mistakes, and was not set; docs/formats/policy.md says how one is written".to_owned();
    ApiError { code: ErrorCode::BadRequest, message, details }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_of_demand_holds_for_its_time_and_no_longer() {
        let told = Told { queued: 1, at: 1000, valid_s: 30, ..Told::default() };
        assert_eq!([970, 971, 1000, 1029, 1030].map(|now| told.holds(now)), [false, true, true, true, false]);
        let before: Told = serde_json::from_str(r#"{"queued": 1, "running": 0, "widest": 0, "at": 1000}"#).unwrap();
        assert!(!before.holds(1000));
    }
}
