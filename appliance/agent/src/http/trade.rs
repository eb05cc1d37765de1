//! Trade between domains: the policy, contracts, demand, the broker's plan, accounts; and what brokers ask each other.

use std::sync::Arc;

use axum::extract::{Extension, Path, State};
use rebec_api::{
    ApiError, ErrorCode,
    trade::{
        AccountLine, ContractInfo, ContractWord, Demand, NewContract, PlanInfo, PolicyInfo, Proposed, Reason, RecallContract, SetPolicy,
        VmWhy,
    },
};
use rebec_book::{
    Book,
    authority::{Granted, Question},
    contract::{Contract, Side, What},
    contracts,
    key::Id,
    view,
};
use rebec_pool::trade::{
    account,
    broker::{Act, Wish},
};

use super::{
    Caller,
    answer::{Answer, Failure, Json},
    rights,
};
use crate::{
    agent::Agent,
    broker::{Answered, Offers, Outlook, Proposal, Wished},
    chance::now_s,
    names,
};

/// `GET /v1/policy`
pub async fn policy(State(agent): State<Arc<Agent>>) -> Answer<PolicyInfo> {
    let (domain, broker, by_contract) = agent.knowledge.pool(|book| {
        let own = book.own_domain();
        let broker = own.and_then(|own| contracts::broker(book, &own));
        let name = own.map_or_else(String::new, |own| book.domain_name(&own));
        (name, broker.map(|broker| broker.host), broker.is_some_and(|broker| broker.by_contract))
    })?;
    let text = if broker == Some(agent.knowledge.key()) { Some(agent.broker.policy_text()?.unwrap_or_default()) } else { None };
    Ok(axum::Json(PolicyInfo { domain, broker: broker.map(|host| agent.knowledge.name_of(&host)), by_contract, text }))
}

/// `POST /v1/policy`
pub async fn set_policy(state: State<Arc<Agent>>, Json(new): Json<SetPolicy>) -> Answer<PolicyInfo> {
    state.broker.set_policy(&new.text).await?;
    policy(state).await
}

/// `GET /v1/contracts`
pub async fn contracts(State(agent): State<Arc<Agent>>) -> Answer<Vec<ContractInfo>> {
    let waiting = agent.broker.waiting();
    Ok(axum::Json(agent.knowledge.pool(|book| {
        let mut all = contracts::all(book);
        all.extend(waiting.into_iter().map(|contract| (contract.id(), contract)));
        let mut all: Vec<_> = all.values().map(|contract| shown(book, contract)).collect();
        all.sort_by(|a, b| (a.from, &a.id).cmp(&(b.from, &b.id)));
        all
    })?))
}

/// `GET /v1/contracts/{id}`
pub async fn contract(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Answer<ContractInfo> {
    Ok(axum::Json(info(&agent, find(&agent, &id)?)?))
}

/// `POST /v1/contracts`
pub async fn propose(State(agent): State<Arc<Agent>>, Json(new): Json<NewContract>) -> Answer<Proposed> {
    let lender = names::domain(&agent.knowledge, &new.lender)?;
    let lans = new.lans.iter().map(|name| names::lan(&agent.knowledge, name)).collect::<Result<Vec<_>, _>>()?;
    let vm = |name: &String| names::find(&agent.knowledge, rebec_book::record::Kind::VM, name);
    let vms = new.vms.iter().map(vm).collect::<Result<Vec<_>, _>>()?;
    let own = agent.knowledge.pool(Book::own_domain)?;
    let borrower = own.ok_or_else(|| ApiError::new(ErrorCode::Conflict, "this host belongs to no domain yet; try again"))?;
    let survives = agent.broker.survives()?;
    let (memory_bytes, vcpus) = (new.memory_bytes.max(1), new.vcpus.max(1));
    let wish = Wish { borrower, machines: new.machines, least: new.machines, survives, memory_bytes, vcpus, lans, vms };
    let (agreed, refusals) = agent.broker.propose(lender, &wish).await?;
    let contracts = agreed.into_iter().map(|id| info(&agent, id)).collect::<Result<_, _>>()?;
    Ok(axum::Json(Proposed { contracts, refusals }))
}

/// `POST /v1/contracts/{id}/accept`
pub async fn accept(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Answer<ContractInfo> {
    let id = find(&agent, &id)?;
    agent.broker.accept(id).await?;
    Ok(axum::Json(info(&agent, id)?))
}

/// `POST /v1/contracts/{id}/recall`
pub async fn recall(State(agent): State<Arc<Agent>>, Path(id): Path<String>, Json(why): Json<RecallContract>) -> Answer<ContractInfo> {
    let id = find(&agent, &id)?;
    agent.broker.recall(id, &why.reason).await?;
    Ok(axum::Json(info(&agent, id)?))
}

/// `POST /v1/demand`
pub async fn set_demand(State(agent): State<Arc<Agent>>, Json(demand): Json<Demand>) -> Result<(), Failure> {
    Ok(agent.broker.set_demand(demand)?)
}

/// `GET /v1/plan`
pub async fn plan(State(agent): State<Arc<Agent>>) -> Answer<PlanInfo> {
    let Outlook { plan, said, offered, offered_why } = agent.broker.plan()?;
    let steps = plan.steps.into_iter().zip(said).map(|(step, what)| Reason { what, reason: step.reason }).collect();
    let refusals = plan.refusals.into_iter().map(|no| Reason { what: no.what, reason: no.reason }).collect();
    Ok(axum::Json(PlanInfo { broker: agent.knowledge.own_name(), offered, offered_why, steps, refusals }))
}

/// `GET /v1/account`
pub async fn account(State(agent): State<Arc<Agent>>) -> Answer<Vec<AccountLine>> {
    Ok(axum::Json(agent.knowledge.pool(|book| {
        let Some(me) = book.own_domain() else { return vec![] };
        let all = contracts::all(book);
        let line = |line: account::Line| AccountLine {
            month: format!("{:04}-{:02}", line.month.0, line.month.1),
            contract: line.contract.to_string(),
            kind: if line.side == Side::Lender { "lent" } else { "borrowed" }.to_owned(),
            other: book.domain_name(&line.other),
            seconds: line.seconds,
            cost_milli: line.cost_milli,
            wasted_s: line.wasted_s,
            settled: line.settled,
        };
        account::lines(me, &all, now_s()).into_iter().map(line).collect()
    })?))
}

/// `GET /v1/vms/{name}/why`
pub async fn why(State(agent): State<Arc<Agent>>, Extension(granted): Extension<Granted>) -> Answer<VmWhy> {
    let gone = || ApiError::new(ErrorCode::NotFound, "the VM is gone; `rebec vm ls` lists those there are");
    let id = granted.about().ok_or_else(gone)?;
    // Only a broker has a plan; without one there is nothing to add.
    let planned = agent.broker.plan().ok();
    let told = agent.knowledge.pool(|book| {
        let vm = view::vm(book, id)?;
        let (at, now) = (view::holder(book, id)?, now_s());
        let domain = |host| book.domain_of(host).map_or_else(|| "?".to_owned(), |domain| book.domain_name(&domain));
        let host = |key| view::host(book, key).map_or_else(|| key.short(), |host| host.name);
        let mut why = vec![format!("it is at home at host {} of domain {}", host(&vm.home), domain(&vm.home))];
        let (here, home) = (book.domain_of(&at.host), book.domain_of(&vm.home));
        let reason =
            view::seen(book, id).and_then(|seen| seen.body.reason.clone()).map_or_else(String::new, |reason| format!(": {reason}"));
        why.push(format!("host {} has it, at epoch {}{reason}", host(&at.host), at.epoch));
        if here != home {
            let by_contract = here.and_then(|here| contracts::broker(book, &here)).is_some_and(|broker| broker.by_contract);
            why.push(match contracts::binding(book, &at.host, now).filter(|(_, contract)| Some(contract.terms().borrower) == home) {
                Some((id, contract)) => {
                    let standing = contract.standing(now);
                    format!("it is there by contract {}, which is {}: {}", id.short(), standing.state.word(), standing.why)
                }
                None if by_contract => {
                    format!("domain {} lends by contract alone, and none lets it be there: it stays until it moves", domain(&at.host))
                }
                None => format!("domain {} takes VMs of others without a contract", domain(&at.host)),
            });
        }
        let named = vm.name.clone();
        for (step, said) in planned.iter().flat_map(|outlook| outlook.plan.steps.iter().zip(&outlook.said)) {
            if matches!(step.what, Act::Bring { vm, .. } | Act::Stop { vm, .. } if vm == id) {
                why.push(format!("{said}: {}", step.reason));
            }
        }
        let refused = planned.iter().flat_map(|outlook| &outlook.plan.refusals).filter(|no| no.what == named);
        why.extend(refused.map(|no| no.reason.clone()));
        Some(VmWhy { vm: vm.name, why })
    })?;
    Ok(axum::Json(told.ok_or_else(gone)?))
}

/// `POST /internal/offers`
pub async fn offers(State(agent): State<Arc<Agent>>, Extension(caller): Extension<Caller>, Json(wished): Json<Wished>) -> Answer<Offers> {
    let granted = rights::ask(&agent, caller, Question::Lend).await?;
    let domain = granted.host().and_then(|host| agent.knowledge.read(|book| book.domain_of(&host)).flatten());
    if domain != Some(wished.wish.borrower) {
        return Err(ApiError::new(ErrorCode::Forbidden, "a domain asks for itself").into());
    }
    Ok(axum::Json(agent.broker.offers(&wished.wish)?))
}

/// `POST /internal/contracts`: who asks is no matter, for the contract proves itself; a side of it brings it, so that nobody else fills the log.
pub async fn sign(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(proposal): Json<Proposal>,
) -> Answer<Answered> {
    let Proposal { contract } = proposal;
    let granted = rights::ask(&agent, caller, Question::Contract(contract.id())).await?;
    let domain = granted.host().and_then(|host| agent.knowledge.read(|book| book.domain_of(&host)).flatten());
    if domain.is_none_or(|domain| contract.terms().side(&domain).is_none()) {
        return Err(ApiError::new(ErrorCode::Forbidden, "the asking host's domain is no side of that contract").into());
    }
    Ok(axum::Json(agent.broker.receive(&contract).await?))
}

/// The contract that some first digits of an id mean.
fn find(agent: &Agent, digits: &str) -> Result<Id, ApiError> {
    let mut ids: Vec<Id> = agent.knowledge.pool(|book| contracts::all(book).into_keys().collect())?;
    ids.extend(agent.broker.waiting().iter().map(Contract::id));
    ids.retain(|id| !digits.is_empty() && id.to_string().starts_with(digits));
    ids.sort_unstable();
    ids.dedup();
    match &ids[..] {
        [one] => Ok(*one),
        [] => Err(ApiError::not_found("contract", digits, "rebec contract ls")),
        several => {
            let details = several.iter().map(ToString::to_string).collect();
            Err(ApiError { code: ErrorCode::Conflict, message: format!("contract `{digits}` means several; say which"), details })
        }
    }
}

fn info(agent: &Agent, id: Id) -> Result<ContractInfo, ApiError> {
    let waits = agent.broker.waiting().into_iter().find(|contract| contract.id() == id);
    let found = agent.knowledge.pool(|book| contracts::one(book, id).or(waits).map(|contract| shown(book, &contract)))?;
    found.ok_or_else(|| ApiError::not_found("contract", &id.to_string(), "rebec contract ls"))
}

fn shown(book: &Book, contract: &Contract) -> ContractInfo {
    let (terms, now) = (contract.terms(), now_s());
    let standing = contract.standing(now);
    let vm_name = |vm: &Id| view::vm(book, *vm).map_or_else(|| vm.short(), |vm| vm.name);
    let lan_name = |lan: &Id| view::lans(book).into_iter().find(|known| known.id == *lan).map_or_else(|| lan.short(), |lan| lan.name);
    // What is there after its end is another contract's, or nobody's.
    let guests = if standing.state.binds() { contracts::guests(book, &terms.host, &terms.borrower) } else { Default::default() };
    let word = |word: &rebec_book::contract::Word| ContractWord {
        by: word.by.to_string(),
        what: if word.said.what == What::Recalled { "recalled" } else { "ended" }.to_owned(),
        at: word.said.at,
        why: word.said.why.clone(),
        wasted_s: word.said.wasted_s,
    };
    ContractInfo {
        id: contract.id().to_string(),
        lender: book.domain_name(&terms.lender),
        borrower: book.domain_name(&terms.borrower),
        host: view::host(book, &terms.host).map_or_else(|| terms.host.short(), |host| host.name),
        state: standing.state.word().to_owned(),
        owner: standing.owner.map(|side| side.to_string()),
        deadline: standing.deadline,
        why: standing.why,
        vcpus: terms.vcpus,
        memory_bytes: terms.memory_bytes,
        price_milli: terms.price_milli,
        from: terms.from,
        until: terms.until,
        notice_s: terms.notice_s,
        reclaim: terms.reclaim.to_string(),
        lans: terms.lans.iter().map(lan_name).collect(),
        vms: terms.vms.iter().map(vm_name).collect(),
        guests: guests.iter().map(vm_name).collect(),
        words: contract.words().iter().map(word).collect(),
    }
}
