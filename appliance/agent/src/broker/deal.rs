//! Two brokers agree: a wish, drafts that bind nobody, a proposal that the borrower has signed, and the lender's signature, which makes it a contract.

use std::time::Duration;

use minicbor::{Decode, Encode};
use rebec_api::{ApiError, ErrorCode, trade::Reason};
use rebec_book::{
    Body, Key,
    contract::{Contract, Said, Side, State, Terms, What},
    contracts,
    key::{Id, Name},
    record::Kind,
    view,
};
use rebec_host::lock;
use rebec_pool::trade::broker::{Verdict, Wish, consider, offers};
use serde::{Deserialize, Serialize};

use super::{Broker, WAITING_EACH_MAX, WAITING_MAX};
use crate::chance::{now_s, random};

/// A lender that counters more often does not want to agree.
const ROUNDS: usize = 3;
/// Between two wishes to one domain that the broker makes by itself.
pub(super) const ASK_REST: Duration = Duration::from_secs(10);

/// `POST /internal/offers`: what would you lend.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wished {
    /// What is wanted.
    #[serde(with = "rebec_book::record::as_text")]
    pub wish: Wish,
}

/// Its answer: terms that bind nobody.
#[derive(Debug, Serialize, Deserialize)]
pub struct Offers {
    /// A machine each.
    #[serde(with = "rebec_book::record::as_text")]
    pub drafts: Drafts,
}

/// Terms that nobody has signed.
#[derive(Debug, Encode, Decode)]
pub struct Drafts {
    /// Each about one machine.
    #[n(0)]
    pub terms: Vec<Terms>,
}

/// `POST /internal/contracts`: sign this.
#[derive(Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// Signed by its borrower.
    #[serde(with = "rebec_book::record::as_text")]
    pub contract: Contract,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answered {
    /// It is a contract.
    Signed {
        /// With both signatures.
        #[serde(with = "rebec_book::record::as_text")]
        contract: Contract,
    },
    /// An operator is to accept it.
    Waits {
        /// By which rule.
        why: String,
    },
    /// These terms would be signed.
    Counter {
        /// Other terms.
        #[serde(with = "rebec_book::record::as_text")]
        terms: Terms,
        /// By which rule.
        why: String,
    },
    /// It is not signed.
    Refused {
        /// By which rule.
        why: String,
    },
}

impl Broker {
    /// What this domain would lend.
    pub fn offers(&self, wish: &Wish) -> Result<Offers, ApiError> {
        let (me, policy) = (self.here()?, self.policy()?);
        let (desk, _) = self.desk(me, &policy)?;
        let (terms, _) = offers(&desk, wish, || Name(random())).map_err(|why| ApiError::new(ErrorCode::Refused, why))?;
        Ok(Offers { drafts: Drafts { terms } })
    }

    /// As a lender, answers a proposal: what is signed is on the disk before anybody hears of it.
    pub async fn receive(&self, contract: &Contract) -> Result<Answered, ApiError> {
        let (me, policy, id) = (self.here()?, self.policy()?, contract.id());
        let _alone = self.deciding.lock().await;
        let (desk, _) = self.desk(me, &policy)?;
        let answer = match consider(&desk, contract) {
            Verdict::Known => Answered::Signed { contract: self.known(id)? },
            Verdict::Sign(why) => {
                let contract = self.sign(contract.clone())?;
                log::info!("broker: contract {} is signed: {why}", id.short());
                self.note("ContractSign", id, None).await;
                Answered::Signed { contract }
            }
            Verdict::Wait(why) => match self.wait(contract) {
                Ok(()) => Answered::Waits { why },
                Err(why) => Answered::Refused { why },
            },
            Verdict::Counter(terms, why) => Answered::Counter { terms: *terms, why },
            Verdict::Refuse(why) => Answered::Refused { why },
        };
        if let Answered::Refused { why } | Answered::Counter { why, .. } = &answer {
            log::info!("broker: proposal {} is not signed: {why}", id.short());
            self.note("ContractSign", id, Some(why.clone())).await;
        }
        Ok(answer)
    }

    fn sign(&self, mut contract: Contract) -> Result<Contract, ApiError> {
        contract.sign(&self.secret()?);
        self.write(&contract)?;
        lock(&self.seen).waiting.remove(&contract.id());
        Ok(contract)
    }

    fn known(&self, id: Id) -> Result<Contract, ApiError> {
        let gone = || ApiError::new(ErrorCode::NotFound, format!("contract {} is not known here; `rebec contract ls`", id.short()));
        self.knowledge.pool(|book| contracts::one(book, id))?.ok_or_else(gone)
    }

    /// Keeps a proposal for an operator.
    fn wait(&self, contract: &Contract) -> Result<(), String> {
        let now = now_s();
        let waiting = &mut lock(&self.seen).waiting;
        waiting.retain(|_, contract| contract.standing(now).state == State::Offered);
        let borrower = contract.terms().borrower;
        let theirs = waiting.values().filter(|other| other.terms().borrower == borrower).count();
        if waiting.contains_key(&contract.id()) {
            return Ok(());
        }
        if theirs >= WAITING_EACH_MAX || waiting.len() >= WAITING_MAX {
            return Err(format!("{theirs} proposals of its domain wait for an operator already; no more are kept"));
        }
        waiting.insert(contract.id(), contract.clone());
        Ok(())
    }

    /// Proposals that an operator may accept.
    pub fn waiting(&self) -> Vec<Contract> {
        let now = now_s();
        let waiting = &lock(&self.seen).waiting;
        waiting.values().filter(|contract| contract.standing(now).state == State::Offered).cloned().collect()
    }

    /// An operator accepts a proposal that waits.
    pub async fn accept(&self, id: Id) -> Result<(), ApiError> {
        let (me, mut policy) = (self.here()?, self.policy()?);
        let waits = lock(&self.seen).waiting.get(&id).cloned();
        let none = || {
            ApiError::new(ErrorCode::NotFound, format!("no proposal {} waits here; `rebec contract ls` shows those that do", id.short()))
        };
        let contract = waits.ok_or_else(none)?;
        // All other rules hold.
        policy.lending.accept.value = rebec_pool::trade::policy::Accept::Policy;
        let _alone = self.deciding.lock().await;
        let (desk, _) = self.desk(me, &policy)?;
        match consider(&desk, &contract) {
            Verdict::Sign(_) | Verdict::Known => self.sign(contract).map(drop),
            Verdict::Wait(why) | Verdict::Refuse(why) | Verdict::Counter(_, why) => Err(ApiError::new(ErrorCode::Refused, why)),
        }
    }

    /// The lender calls a machine back; the borrower gives it back.
    pub async fn recall(&self, id: Id, why: &str) -> Result<(), ApiError> {
        let (me, now) = (self.here()?, now_s());
        let _alone = self.deciding.lock().await;
        let mut contract = self.known(id)?;
        let conflict = |what: &str| Err(ApiError::new(ErrorCode::Conflict, format!("contract {}: {what}", id.short())));
        if !contract.standing(now).state.binds() {
            return conflict(&format!("it is {}", contract.standing(now).state.word()));
        }
        let why = if why.is_empty() { "an operator said so" } else { why };
        match contract.terms().side(&me) {
            Some(Side::Lender) if contract.recall().is_some() => return conflict("it was called back already"),
            Some(Side::Lender) => contract.say(Said::new(What::Recalled, now, why, 0), &self.secret()?),
            Some(Side::Borrower) => {
                let terms = contract.terms();
                let there = self.knowledge.pool(|book| {
                    let there = contracts::guests(book, &terms.host, &terms.borrower);
                    there.into_iter().filter_map(|vm| view::vm(book, vm)).map(|vm| vm.name).collect::<Vec<_>>()
                })?;
                if !there.is_empty() {
                    return conflict(&format!("VM {} is on the machine; move it away first", there.join(", ")));
                }
                contract.say(Said::new(What::Ended, now, why, 0), &self.secret()?);
            }
            None => return conflict("this domain is no side of it"),
        }
        self.write(&contract)
    }

    /// As a borrower, asks a domain for machines and signs what fits the policy.
    pub async fn propose(&self, lender: Key, wish: &Wish) -> Result<(Vec<Id>, Vec<Reason>), ApiError> {
        let (me, policy) = (self.here()?, self.policy()?);
        let peer = self.broker_of(lender)?;
        let offers: Offers = self.peers.mesh.ask(&peer, "/internal/offers", &Wished { wish: wish.clone() }).await?;
        let chosen = {
            let (desk, _) = self.desk(me, &policy)?;
            let plan = self.knowledge.pool(|book| {
                let has = |host: &Key| view::host(book, host).map(|host| (host.domain, host.body.cpus, host.body.memory_bytes));
                desk.choose(lender, wish, &offers.drafts.terms, has)
            })?;
            (plan.steps, plan.refusals)
        };
        let (steps, refused) = chosen;
        let (mut agreed, mut refusals) =
            (vec![], refused.into_iter().map(|it| Reason { what: it.what, reason: it.reason }).collect::<Vec<_>>());
        for step in steps {
            let host = self.knowledge.name_of(&step.what.host);
            match self.bargain(lender, wish, step.what).await {
                Ok(id) => agreed.push(id),
                Err(error) => refusals.push(Reason { what: format!("host {host}"), reason: error.message }),
            }
        }
        if agreed.is_empty() {
            let name = self.knowledge.pool(|book| book.domain_name(&lender))?;
            let details = refusals.iter().map(|it| format!("{}: {}", it.what, it.reason)).collect();
            return Err(ApiError { code: ErrorCode::Refused, message: format!("nothing was agreed with domain {name}"), details });
        }
        Ok((agreed, refusals))
    }

    fn broker_of(&self, domain: Key) -> Result<crate::mesh::Peer, ApiError> {
        let (name, broker) =
            self.knowledge.pool(|book| (book.domain_name(&domain), contracts::broker(book, &domain).map(|broker| broker.host)))?;
        let none = || ApiError::new(ErrorCode::Refused, format!("domain {name} has no broker: its administrators have set no policy"));
        let unknown = || ApiError::new(ErrorCode::Unreachable, format!("the broker of domain {name} is not known here yet; try again"));
        self.knowledge.peer(&broker.ok_or_else(none)?).ok_or_else(unknown)
    }

    /// Signs terms, and has the lender sign them; what it would sign instead is looked at, and signed if it fits.
    async fn bargain(&self, lender: Key, wish: &Wish, terms: Terms) -> Result<Id, ApiError> {
        let mut terms = terms;
        for _ in 0..ROUNDS {
            let mut contract = Contract::draft(terms);
            contract.sign(&self.secret()?);
            let id = contract.id();
            self.write(&contract)?;
            match self.put(&contract).await? {
                Answered::Signed { .. } | Answered::Waits { .. } => return Ok(id),
                Answered::Refused { why } => {
                    self.withdraw(id)?;
                    return Err(ApiError::new(ErrorCode::Refused, why));
                }
                Answered::Counter { terms: other, why } => {
                    self.withdraw(id)?;
                    let (me, policy) = (self.here()?, self.policy()?);
                    let (desk, _) = self.desk(me, &policy)?;
                    let plan = self.knowledge.pool(|book| {
                        let has = |host: &Key| view::host(book, host).map(|host| (host.domain, host.body.cpus, host.body.memory_bytes));
                        desk.choose(lender, &Wish { least: 1, ..wish.clone() }, std::slice::from_ref(&other), has)
                    })?;
                    if plan.steps.is_empty() {
                        let no = plan.refusals.into_iter().map(|it| it.reason).collect::<Vec<_>>().join("; ");
                        return Err(ApiError::new(ErrorCode::Refused, format!("{why}; what it would sign: {no}")));
                    }
                    terms = other;
                }
            }
        }
        Err(ApiError::new(ErrorCode::Refused, "the lender wants other terms again and again"))
    }

    /// Shows the lender a proposal; it may be the same again. What it signed is believed by its signature.
    pub(super) async fn put(&self, contract: &Contract) -> Result<Answered, ApiError> {
        let peer = self.broker_of(contract.terms().lender)?;
        let answer = self.peers.mesh.ask(&peer, "/internal/contracts", &Proposal { contract: contract.clone() }).await?;
        if let Answered::Signed { contract: signed } = &answer {
            if signed.id() != contract.id() || !signed.is_proved() || !signed.is_signed() {
                return Err(ApiError::new(ErrorCode::Refused, format!("host {} says that it signed, and did not", peer.name)));
            }
            self.write(signed)?;
        }
        Ok(answer)
    }

    /// A proposal that came to nothing.
    pub(super) fn withdraw(&self, id: Id) -> Result<(), ApiError> {
        let is_open = self.knowledge.pool(|book| contracts::one(book, id).is_some_and(|contract| !contract.is_signed()))?;
        let is_mine = self.knowledge.pool(|book| matches!(book.get(Kind::CONTRACT, id, self.knowledge.key()), Some(Body::Contract(_))))?;
        if is_open && is_mine { self.knowledge.publish(Kind::CONTRACT, id, None) } else { Ok(()) }
    }
}
