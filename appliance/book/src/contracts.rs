//! Contracts as a book has them, and what they let come to a machine: the rule that authority, placement and brokers go by.
//!
//! Who asks about one host reads the book ([`may_take`]); who decides about many lays [`Standings`] once and asks those. Both go by one rule.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    book::Book,
    census::{self, Whereabouts},
    contract::{Contract, Standing, State},
    key::{Id, Key, id_of_key},
    record::{Body, BrokerBody, Kind, Record, VmBody},
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
    of(book, |_| true)
}

/// Those that are wanted. What several wrote of one is about the same terms, for its id is their hash.
fn of(book: &Book, wanted: impl Fn(&Contract) -> bool) -> BTreeMap<Id, Contract> {
    let mut all: BTreeMap<Id, Contract> = BTreeMap::new();
    for (id, contract) in book.of_kind(Kind::CONTRACT).filter_map(read) {
        let terms = contract.terms();
        if wanted(contract) && book.is_domain(&terms.lender) && book.is_domain(&terms.borrower) {
            let known = all.remove(&id).map_or_else(|| contract.clone(), |known| known.with(contract));
            all.insert(id, known);
        }
    }
    all
}

fn read(record: &Record) -> Option<(Id, &Contract)> {
    match &record.body {
        Some(Body::Contract(contract)) => Some((record.key.id, contract)),
        _ => None,
    }
}

/// One contract.
pub fn one(book: &Book, id: Id) -> Option<Contract> {
    let known = book.about(Kind::CONTRACT, id).filter_map(read).map(|(_, contract)| contract.clone());
    known.reduce(|known, other| known.with(&other))
}

/// The contract that binds a machine: of several, which an honest lender does not sign, the one that begins first.
pub fn binding(book: &Book, host: &Key, now: u64) -> Option<(Id, Contract)> {
    let domain = book.domain_of(host);
    let all = of(book, |contract| contract.terms().host == *host && Some(contract.terms().lender) == domain);
    all.into_iter().filter(|(_, contract)| contract.standing(now).state.binds()).min_by_key(|(id, contract)| (contract.terms().from, *id))
}

/// VMs of a domain that a host has or is to have.
pub fn guests(book: &Book, host: &Key, home: &Key) -> BTreeSet<Id> {
    theirs(book, host, home).map(|vm| vm.id).collect()
}

fn theirs<'a>(book: &'a Book, host: &Key, home: &Key) -> impl Iterator<Item = Whereabouts<'a>> {
    let (host, home) = (*host, *home);
    census::all(book).filter(move |vm| vm.domain == home && vm.is_on().any(|on| on == host))
}

/// What has come under a contract.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct There {
    /// Memory of VMs.
    pub memory_bytes: u64,
    /// Their processors.
    pub vcpus: u32,
}

impl There {
    fn of(body: &VmBody) -> Self {
        Self { memory_bytes: body.granted_bytes(), vcpus: body.vcpus.into() }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes), vcpus: self.vcpus.saturating_add(other.vcpus) }
    }
}

/// A VM that would come to a machine, as far as contracts go.
#[derive(Debug, Clone, Copy)]
pub struct Comer<'a> {
    /// Its home's domain.
    pub home: Key,
    /// The VM; none of one that has no record yet.
    pub vm: Option<Id>,
    /// LANs that it is on.
    pub lans: &'a [Id],
    /// What it takes.
    pub takes: There,
    /// What is to come beside it, of the same domain.
    pub beside: There,
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
    let there = || {
        theirs(book, host, &borrower)
            .filter(|other| Some(other.id) != vm)
            .fold(There::default(), |sum, other| sum.and(There::of(other.body)))
    };
    let lans: Vec<Id> = body.nics.iter().map(|nic| nic.lan).collect();
    let comer = Comer { home: borrower, vm, lans: &lans, takes: There::of(body), beside: There::default() };
    let by_contract = broker(book, &lender).is_some_and(|broker| broker.by_contract);
    let binding = binding.map(|(id, contract)| (id, contract.standing(now), contract));
    let binding = binding.as_ref().map(|(id, standing, contract)| (*id, contract, standing));
    judge(lender, by_contract, binding, &comer, there).map_err(|bar| bar.told(book))
}

/// Why contracts do not let a VM come to a machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bar {
    /// The machine's domain lends by contract alone, and there is none.
    None {
        /// Whose the machine is.
        lender: Key,
        /// Whose VM it is.
        borrower: Key,
    },
    /// It is of the machine's own domain, and the machine is lent.
    Lent {
        /// By this contract.
        contract: Id,
        /// To this domain.
        to: Key,
    },
    /// The machine is promised to a third domain.
    Promised {
        /// By this contract.
        contract: Id,
        /// To this domain.
        to: Key,
    },
    /// The contract does not let this one come.
    Under {
        /// Which.
        contract: Id,
        /// Why not.
        why: String,
    },
}

impl Bar {
    /// In words.
    pub fn told(&self, book: &Book) -> String {
        let called = |domain: &Key| book.domain_name(domain);
        match self {
            Self::None { lender, borrower } => {
                let (lender, borrower) = (called(lender), called(borrower));
                format!(
                    "domain {lender} lends by contract alone, and domain {borrower} has none for it; `rebec contract propose {lender}` asks for one"
                )
            }
            Self::Lent { contract, to } => {
                format!("is lent to {} by contract {}; `rebec contract recall` calls it back", called(to), contract.short())
            }
            Self::Promised { contract, to } => format!("contract {}: the machine is promised to domain {}", contract.short(), called(to)),
            Self::Under { contract, why } => format!("contract {}: {why}", contract.short()),
        }
    }
}

/// The rule. `binding` binds the machine; what `there` says is there already under it, without the one that comes.
fn judge(
    lender: Key,
    by_contract: bool,
    binding: Option<(Id, &Contract, &Standing)>,
    comer: &Comer<'_>,
    there: impl FnOnce() -> There,
) -> Result<(), Bar> {
    let borrower = comer.home;
    if lender == borrower {
        return match binding {
            Some((id, contract, _)) => Err(Bar::Lent { contract: id, to: contract.terms().borrower }),
            None => Ok(()),
        };
    }
    if !by_contract {
        return Ok(());
    }
    let Some((id, contract, standing)) = binding else { return Err(Bar::None { lender, borrower }) };
    let terms = contract.terms();
    if terms.borrower != borrower {
        return Err(Bar::Promised { contract: id, to: terms.borrower });
    }
    let refuse = |why: String| Err(Bar::Under { contract: id, why });
    if standing.state != State::Active {
        return refuse(format!("it is {}: {}", standing.state.word(), standing.why));
    }
    if !terms.vms.is_empty() && comer.vm.is_none_or(|vm| !terms.vms.contains(&vm)) {
        return refuse("it names the VMs that may come, and this one is not among them".into());
    }
    if !terms.lans.is_empty() && comer.lans.iter().any(|lan| !terms.lans.contains(lan)) {
        return refuse("it names the LANs that may come, and this VM is on another".into());
    }
    let There { memory_bytes, vcpus } = there().and(comer.beside).and(comer.takes);
    if memory_bytes > terms.memory_bytes {
        return refuse(format!("{} MiB of memory with this VM, of {} MiB that it gives", memory_bytes >> 20, terms.memory_bytes >> 20));
    }
    if vcpus > terms.vcpus {
        return refuse(format!("{vcpus} vCPUs with this VM, of {} that it gives", terms.vcpus));
    }
    Ok(())
}

/// What binds each machine at a time and what has come under it: laid once, asked for many.
#[derive(Debug, Clone)]
pub struct Standings<'a> {
    book: &'a Book,
    /// By machine.
    bound: BTreeMap<Key, (Id, Contract, Standing)>,
    /// Domains that lend by contract alone.
    by_contract: BTreeSet<Key>,
    /// By machine that is bound and the home's domain: who is there, and what it takes.
    there: BTreeMap<(Key, Key), BTreeMap<Id, There>>,
}

impl<'a> Standings<'a> {
    /// Of what the book says.
    pub fn of(book: &'a Book, now: u64) -> Self {
        let mut bound: BTreeMap<Key, (Id, Contract, Standing)> = BTreeMap::new();
        for (id, contract) in all(book) {
            let (host, from, standing) = (contract.terms().host, contract.terms().from, contract.standing(now));
            let is_owner = || book.domain_of(&host) == Some(contract.terms().lender);
            let is_first = |(other, known, _): &(Id, Contract, Standing)| (from, id) < (known.terms().from, *other);
            if standing.state.binds() && is_owner() && bound.get(&host).is_none_or(is_first) {
                bound.insert(host, (id, contract, standing));
            }
        }
        let brokers = book.of_kind(Kind::BROKER).filter_map(|record| match &record.body {
            Some(Body::Broker(body)) if body.by_contract && body.domain == record.key.writer => Some(body.domain),
            _ => None,
        });
        Self { book, bound, by_contract: brokers.collect(), there: BTreeMap::new() }
    }

    /// Takes down where a VM is, or is to be.
    pub fn count(&mut self, host: Key, home: Key, vm: Id, takes: There) {
        if self.bound.contains_key(&host) {
            self.there.entry((host, home)).or_default().insert(vm, takes);
        }
    }

    /// The same of all that the book knows of.
    #[must_use]
    pub fn counted(mut self) -> Self {
        for vm in census::all(self.book) {
            self.count_vm(&vm);
        }
        self
    }

    /// The same of one.
    pub fn count_vm(&mut self, vm: &Whereabouts<'_>) {
        if self.bound.is_empty() {
            return;
        }
        for host in vm.is_on() {
            self.count(host, vm.domain, vm.id, There::of(vm.body));
        }
    }

    /// The contract that binds a machine.
    pub fn binding(&self, host: &Key) -> Option<(Id, &Contract)> {
        self.bound.get(host).map(|(id, contract, _)| (*id, contract))
    }

    /// Machines that are bound.
    pub fn bound(&self) -> impl Iterator<Item = (&Key, Id, &Contract)> {
        self.bound.iter().map(|(host, (id, contract, _))| (host, *id, contract))
    }

    /// Whether a domain lends by contract alone.
    pub fn by_contract(&self, domain: &Key) -> bool {
        self.by_contract.contains(domain)
    }

    /// Whether a VM may come to a host of a domain.
    ///
    /// # Errors
    /// Why not.
    pub fn may_come(&self, host: &Key, lender: Key, comer: &Comer<'_>) -> Result<(), Bar> {
        let there = || {
            let known = self.there.get(&(*host, comer.home)).into_iter().flatten();
            known.filter(|(id, _)| Some(**id) != comer.vm).fold(There::default(), |sum, (_, takes)| sum.and(*takes))
        };
        let binding = self.bound.get(host).map(|(id, contract, standing)| (*id, contract, standing));
        judge(lender, self.by_contract(&lender), binding, comer, there)
    }
}

impl<'a> Comer<'a> {
    /// One of a domain, as its record says.
    pub fn new(home: Key, vm: Option<Id>, lans: &'a [Id], memory_bytes: u64, vcpus: u32) -> Self {
        Self { home, vm, lans, takes: There { memory_bytes, vcpus }, beside: There::default() }
    }

    /// The same, with what is to come beside it.
    #[must_use]
    pub fn beside(self, beside: There) -> Self {
        Self { beside, ..self }
    }
}
