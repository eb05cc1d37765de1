//! Contracts as a book has them, and what they let come to a machine: the rule that authority, placement and brokers go by.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    book::Book,
    contract::{Contract, State},
    key::{Id, Key, id_of_key},
    record::{Body, BrokerBody, Kind, SeenState, VmBody},
    view,
};

/// What a domain says of its broker.
pub fn broker<'a>(book: &'a Book, domain: &Key) -> Option<&'a BrokerBody> {
    match book.get(Kind::BROKER, id_of_key(domain), *domain) {
        Some(Body::Broker(body)) if body.domain == *domain => Some(body),
        _ => None,
    }
}

/// All contracts between domains of the pool, each with what all who wrote of it know.
pub fn all(book: &Book) -> BTreeMap<Id, Contract> {
    let mut all: BTreeMap<Id, Contract> = BTreeMap::new();
    for record in book.of_kind(Kind::CONTRACT) {
        let Some(Body::Contract(contract)) = &record.body else { continue };
        let terms = contract.terms();
        if book.is_domain(&terms.lender) && book.is_domain(&terms.borrower) {
            let known = all.remove(&record.key.id).map_or_else(|| (**contract).clone(), |known| known.with(contract));
            all.insert(record.key.id, known);
        }
    }
    all
}

/// One contract.
pub fn one(book: &Book, id: Id) -> Option<Contract> {
    let known = book.about(Kind::CONTRACT, id).filter_map(|record| match &record.body {
        Some(Body::Contract(contract)) => Some((**contract).clone()),
        _ => None,
    });
    known.reduce(|known, other| known.with(&other))
}

/// The contract that binds a machine: of several, which an honest lender does not sign, the one that begins first.
pub fn binding(book: &Book, host: &Key, now: u64) -> Option<(Id, Contract)> {
    let domain = book.domain_of(host);
    let all = all(book).into_iter().filter(|(_, contract)| contract.terms().host == *host && Some(contract.terms().lender) == domain);
    all.filter(|(_, contract)| contract.standing(now).state.binds()).min_by_key(|(id, contract)| (contract.terms().from, *id))
}

/// VMs of a domain that a host has or is to have.
pub fn guests(book: &Book, host: &Key, home: &Key) -> BTreeSet<Id> {
    let there = |vm: &view::Named<'_, VmBody>| {
        let seen = view::seen(book, vm.id);
        let runs = seen.is_none_or(|seen| !matches!(seen.body.state, SeenState::Stopped | SeenState::Failed | SeenState::Left));
        let held = view::holder(book, vm.id).is_some_and(|at| at.host == *host) && runs;
        held || seen.is_some_and(|seen| seen.body.to == Some(*host))
    };
    let theirs = view::vms(book).into_iter().filter(|vm| book.domain_of(&vm.home) == Some(*home) && there(vm));
    theirs.map(|vm| vm.id).collect()
}

/// Whether a VM may come to a host, or be started there: always in its own domain and in domains that lend without contracts.
///
/// # Errors
/// Why not.
pub fn may_come(book: &Book, host: &Key, vm: Id, now: u64) -> Result<(), String> {
    let Some(named) = view::vm(book, vm) else { return Ok(()) };
    may_take(book, host, &named.home, Some(vm), named.body, now)
}

/// The same of a VM that has no record yet, or whose home is told.
///
/// # Errors
/// Why not.
pub fn may_take(book: &Book, host: &Key, home: &Key, vm: Option<Id>, body: &VmBody, now: u64) -> Result<(), String> {
    let (Some(lender), Some(borrower)) = (book.domain_of(host), book.domain_of(home)) else { return Ok(()) };
    let binding = binding(book, host, now);
    let called = |domain: &Key| book.domain_name(domain);
    if lender == borrower {
        return match binding {
            Some((id, contract)) => Err(format!(
                "is lent to {} by contract {}; `rebec contract recall` calls it back",
                called(&contract.terms().borrower),
                id.short()
            )),
            None => Ok(()),
        };
    }
    if broker(book, &lender).is_none_or(|broker| !broker.by_contract) {
        return Ok(());
    }
    let Some((id, contract)) = binding else {
        let (lender, borrower) = (called(&lender), called(&borrower));
        return Err(format!(
            "domain {lender} lends by contract alone, and domain {borrower} has none for it; `rebec contract propose {lender}` asks for one"
        ));
    };
    let terms = contract.terms();
    let refuse = |why: String| Err(format!("contract {}: {why}", id.short()));
    if terms.borrower != borrower {
        return refuse(format!("the machine is promised to domain {}", called(&terms.borrower)));
    }
    let standing = contract.standing(now);
    if standing.state != State::Active {
        return refuse(format!("it is {}: {}", standing.state.word(), standing.why));
    }
    if !terms.vms.is_empty() && vm.is_none_or(|vm| !terms.vms.contains(&vm)) {
        return refuse("it names the VMs that may come, and this one is not among them".into());
    }
    if !terms.lans.is_empty() && body.nics.iter().any(|nic| !terms.lans.contains(&nic.lan)) {
        return refuse("it names the LANs that may come, and this VM is on another".into());
    }
    let mut there = guests(book, host, &borrower);
    if let Some(vm) = vm {
        there.remove(&vm);
    }
    let bodies = there.iter().filter_map(|other| view::vm_body(book, *other)).chain([body]);
    let (memory, vcpus) =
        bodies.fold((0u64, 0u32), |(memory, vcpus), vm| (memory.saturating_add(vm.granted_bytes()), vcpus.saturating_add(vm.vcpus.into())));
    if memory > terms.memory_bytes {
        return refuse(format!("{} MiB of memory with this VM, of {} MiB that it gives", memory >> 20, terms.memory_bytes >> 20));
    }
    if vcpus > terms.vcpus {
        return refuse(format!("{vcpus} vCPUs with this VM, of {} that it gives", terms.vcpus));
    }
    Ok(())
}
