//! The plan: for each VM in turn the host that suits it best, among those that take it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rebec_book::{
    Book, Key,
    contracts::{self, Bar, Comer},
    key::Id,
    record::{Kind, Partner, id_of_key},
    view,
};
use rebec_cpu::Model;

use super::{Candidate, Want, World, no::No, world::There};

/// So many hosts of a domain with one reason are named; of more, how many.
const NAMED: usize = 3;

/// What is to be done, and which wants come to nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they are to be taken.
    pub steps: Vec<Step>,
    /// Each with what every host in question said.
    pub refusals: Vec<Refusal>,
}

/// A VM gets a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which of the wants.
    pub want: usize,
    /// Where it goes, and why.
    pub choice: Choice,
    /// What has to be so when it is carried out.
    pub stands_on: Basis,
}

/// The host that was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The host.
    pub key: Key,
    /// Its name.
    pub name: String,
    /// In words.
    pub reason: String,
}

/// A want that comes to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which of the wants.
    pub want: usize,
    /// What the hosts in question said; of many with one reason how many.
    pub why: Vec<Arc<str>>,
}

/// What one host says about one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The host.
    pub key: Key,
    /// Its name.
    pub name: String,
    /// Its domain.
    pub domain: Key,
    /// What speaks for it; or why not.
    pub says: Result<String, String>,
    /// Whether it is the one that is taken.
    pub is_chosen: bool,
}

/// What a step stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Basis {
    /// The VM and its ownership counter, if it had a record.
    pub vm: Option<(Id, u64)>,
    /// The host, and the number of what it says of itself.
    pub host: (Key, u64),
    /// The contract that binds the host.
    pub contract: Option<Id>,
}

impl Basis {
    /// Whether a step that stands on this may still be taken.
    ///
    /// # Errors
    /// What has changed.
    pub fn holds(&self, book: &Book, now: u64) -> Result<(), String> {
        if let Some((vm, epoch)) = self.vm
            && view::holder(book, vm).map(|at| at.epoch) != Some(epoch)
        {
            return Err("the VM has gone on to another epoch since this was planned".into());
        }
        let (host, seq) = self.host;
        if book.seq(Kind::HOST, id_of_key(&host), host) != Some(seq) {
            return Err("the host says something else of itself since this was planned".into());
        }
        if contracts::binding(book, &host, now).map(|(id, _)| id) != self.contract {
            return Err("another contract binds the host since this was planned".into());
        }
        Ok(())
    }
}

/// Finds places for all, in their order. Own domain before others; of others those where members of its LANs are; hosts that hold the parts before
/// those that must fetch them; hosts with a donor before others; then most free memory. Of equals the seed chooses: with 0, the first.
pub fn plan(world: &World<'_>, wants: &[Want], seed: u64) -> Plan {
    let mut draft = Draft::new(world, seed);
    let mut plan = Plan::default();
    for (number, want) in wants.iter().enumerate() {
        match draft.best(want) {
            Some(place) => {
                let host = &world.hosts[place];
                let choice = Choice { key: host.key, name: host.name.clone(), reason: draft.merits(want, place).to_string() };
                draft.take(want, place);
                plan.steps.push(Step { want: number, choice, stands_on: draft.basis(want, place) });
            }
            None => plan.refusals.push(Refusal { want: number, why: draft.refusals(want) }),
        }
    }
    plan
}

/// The same of one.
///
/// # Errors
/// What the hosts in question said.
pub fn choose(world: &World<'_>, want: &Want) -> Result<Choice, Vec<String>> {
    let mut draft = Draft::new(world, 0);
    let Some(place) = draft.best(want) else { return Err(draft.refusals(want).iter().map(ToString::to_string).collect()) };
    let host = &world.hosts[place];
    Ok(Choice { key: host.key, name: host.name.clone(), reason: draft.merits(want, place).to_string() })
}

/// What every host in question says about one VM, the one that is taken first, then those that would take it by what speaks for them.
pub fn explain(world: &World<'_>, want: &Want) -> Vec<Verdict> {
    let draft = Draft::new(world, 0);
    let chosen = draft.best(want);
    let in_question = (0..world.hosts.len()).filter(|place| is_in_question(want, &world.hosts[*place]));
    let mut verdicts: Vec<(Option<Merits>, usize, Verdict)> = in_question
        .map(|place| {
            let (host, fits) = (&world.hosts[place], draft.fits(want, place));
            let merits = fits.is_ok().then(|| draft.merits(want, place));
            let says = fits.map(|()| draft.merits(want, place).to_string()).map_err(|no| no.told(world, want, place));
            let is_chosen = chosen == Some(place);
            (merits, place, Verdict { key: host.key, name: host.name.clone(), domain: host.domain, says, is_chosen })
        })
        .collect();
    verdicts.sort_by_key(|(merits, place, verdict)| (!verdict.is_chosen, Reverse(*merits), *place));
    verdicts.into_iter().map(|(_, _, verdict)| verdict).collect()
}

fn is_in_question(want: &Want, host: &Candidate) -> bool {
    want.host.is_none_or(|wanted| wanted == host.key) && want.domain.is_none_or(|domain| domain == host.domain)
}

/// What speaks for a host, the weightiest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Merits {
    is_home: bool,
    /// Members of its LANs are in that domain.
    has_members: bool,
    holds: bool,
    lends: bool,
    free_bytes: u64,
    chance: u64,
}

impl std::fmt::Display for Merits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = if self.holds { "holds the image" } else { "must fetch the image" };
        let donor = if self.lends { ", runs a VM like it" } else { "" };
        let members = if self.has_members && !self.is_home { ", others of its LAN are in its domain" } else { "" };
        write!(f, "{parts}{donor}{members}, {} MiB of memory free", self.free_bytes >> 20)
    }
}

/// Which VM, if it has a record, and where.
type Placed = (Option<Id>, usize);
/// Whose VM, which, and from whom it stays apart.
type Shy = (Option<Key>, Option<Id>, Vec<Partner>);

/// A plan that is being made: what its steps have taken so far.
struct Draft<'w, 'a> {
    world: &'w World<'a>,
    seed: u64,
    /// Memory and disk, by host.
    taken: Vec<(u64, u64)>,
    /// Under contracts, by host and domain.
    under: BTreeMap<(usize, Key), contracts::There>,
    /// VMs that this plan has given a host.
    placed: BTreeMap<Id, usize>,
    /// The same by domain and label.
    labelled: BTreeMap<(Option<Key>, String), Vec<Placed>>,
    /// And those that stay apart from others, by host.
    shy: Vec<Vec<Shy>>,
    /// What hosts say that are closed to a domain, each line with their own domain.
    closed: BTreeMap<Key, Vec<(Key, Arc<str>)>>,
}

impl<'w, 'a> Draft<'w, 'a> {
    fn new(world: &'w World<'a>, seed: u64) -> Self {
        let hosts = world.hosts.len();
        let (taken, shy) = (vec![(0, 0); hosts], vec![vec![]; hosts]);
        let (under, placed, labelled, closed) = Default::default();
        Self { world, seed, taken, under, placed, labelled, shy, closed }
    }

    /// The host that suits a VM best.
    fn best(&self, want: &Want) -> Option<usize> {
        let world = self.world;
        if let Some(host) = want.host {
            return self.best_of(want, world.by_key.get(&host).copied().into_iter());
        }
        let home = want.home_domain.and_then(|home| world.domains.get(&home)).into_iter().flatten().copied();
        // The home's domain comes before all else.
        self.best_of(want, home).or_else(|| {
            let lent = want.home_domain.and_then(|home| world.lent_to.get(&home)).into_iter().flatten();
            self.best_of(want, lent.chain(&world.open).copied())
        })
    }

    fn best_of(&self, want: &Want, places: impl Iterator<Item = usize>) -> Option<usize> {
        let mut best: Option<(Merits, usize)> = None;
        for place in places.filter(|place| is_in_question(want, &self.world.hosts[*place])) {
            // A fit host is only of use where it is better.
            let merits = self.merits(want, place);
            if best.is_none_or(|(known, _)| known < merits) && self.fits(want, place).is_ok() {
                best = Some((merits, place));
            }
        }
        best.map(|(_, place)| place)
    }

    fn free(&self, place: usize) -> (u64, u64) {
        let (host, taken) = (&self.world.hosts[place], self.taken[place]);
        (host.memory_free_bytes.saturating_sub(taken.0), host.disk_free_bytes.saturating_sub(taken.1))
    }

    fn merits(&self, want: &Want, place: usize) -> Merits {
        let host = &self.world.hosts[place];
        Merits {
            is_home: want.home_domain == Some(host.domain),
            has_members: want.lans.iter().any(|lan| self.world.has_members(lan, &host.domain)),
            holds: want.parts.iter().all(|part| host.parts.binary_search(part).is_ok()),
            lends: want.donors.contains(&host.key),
            free_bytes: self.free(place).0,
            chance: chance(self.seed, &host.key),
        }
    }

    /// Whether a host takes a VM.
    fn fits(&self, want: &Want, place: usize) -> Result<(), No> {
        let host = &self.world.hosts[place];
        let no = |no: No| Err(no);
        match () {
            () if want.leaves == Some(host.key) => return no(No::There),
            () if !host.answers => return no(No::Silent),
            () => self.may_come(want, place)?,
        }
        if host.draining {
            return no(No::Draining);
        }
        if let Some(why) = &host.no_kvm {
            return no(No::Incapable(why.clone()));
        }
        if let Some(wanted) = want.hosts.iter().find(|label| !host.labels.contains(label)) {
            return no(No::Label(wanted.clone()));
        }
        suits_processor(want, host)?;
        if !want.lans.is_empty() && !host.underlay {
            return no(No::Underlay);
        }
        self.suits_others(want, place)?;
        let (memory, disk) = self.free(place);
        if memory < want.memory_bytes {
            return no(No::Memory(memory, want.memory_bytes));
        }
        if disk < want.disk_bytes {
            return no(No::Disk(disk, want.disk_bytes));
        }
        Ok(())
    }

    /// Whether contracts let a VM come.
    fn may_come(&self, want: &Want, place: usize) -> Result<(), No> {
        let (world, host) = (self.world, &self.world.hosts[place]);
        let Some(home) = want.home_domain else { return Ok(()) };
        if home == host.domain && !world.bound[place] {
            return Ok(());
        }
        let by_contract = world.by_contract[place];
        let is_strange = |domain: Key| domain != home && want.leaves.and_then(|host| world.book.domain_of(&host)) != Some(domain);
        if want.by_contract && !by_contract && !world.bound[place] && is_strange(host.domain) {
            return Err(No::Abroad);
        }
        let is_others = || home != host.domain && world.book.own_domain().is_some_and(|own| own != home && own != host.domain);
        if by_contract && is_others() {
            // Two other domains' contracts are not told here: who names a host knows better, and that host's agent decides.
            return if want.host == Some(host.key) { Ok(()) } else { Err(No::NotTold { lender: host.domain, home }) };
        }
        if by_contract && !world.bound[place] {
            return Err(No::Contract(Bar::None { lender: host.domain, borrower: home }));
        }
        let taken = self.under.get(&(place, home)).copied().unwrap_or_default();
        let comer = Comer::new(home, want.vm, &want.lans, want.memory_bytes, want.vcpus).beside(taken);
        world.contracts.may_come(&host.key, host.domain, &comer).map_err(No::Contract)
    }

    /// Whether those are there that it goes near to, and none that it, or who, stays apart.
    fn suits_others(&self, want: &Want, place: usize) -> Result<(), No> {
        for (number, partner) in want.near.iter().enumerate() {
            let where_it_is = self.places_of(want, partner);
            if where_it_is.contains(&place) {
                continue;
            }
            // The first of those that go near each other goes anywhere.
            if where_it_is.is_empty() && partner.is(None, &want.labels) {
                continue;
            }
            return Err(No::Near(number, where_it_is.first().copied()));
        }
        let others = |partner: &Partner| {
            let there = self.known(want, partner).find(|there| there.on.contains(&place)).map(|there| Some(there.vm.id));
            there.or_else(|| self.planned(want, partner).find(|(_, on)| *on == place).map(|(vm, _)| vm))
        };
        if let Some(there) = want.apart.iter().find_map(others) {
            return Err(No::Apart(there));
        }
        let shies = |apart: &[Partner]| apart.iter().any(|partner| partner.is(want.vm, &want.labels));
        let there = self.world.shy[place].iter().map(|vm| &self.world.vms[*vm]);
        let shy = |there: &&There<'_>| {
            let is_shy = there.vm.body.placing.as_ref().is_some_and(|placing| shies(&placing.apart));
            is_shy && Some(there.vm.domain) == want.home_domain && !self.is_elsewhere(there.vm.id, want)
        };
        if let Some(there) = there.into_iter().find(shy) {
            return Err(No::Shunned(Some(there.vm.id)));
        }
        if self.shy[place].iter().any(|(domain, vm, apart)| *domain == want.home_domain && (vm.is_none() || *vm != want.vm) && shies(apart))
        {
            return Err(No::Shunned(None));
        }
        Ok(())
    }

    /// Whether a VM is the one that wants a place, or is not where the book has it once this plan is carried out.
    fn is_elsewhere(&self, vm: Id, want: &Want) -> bool {
        want.vm == Some(vm) || self.placed.contains_key(&vm)
    }

    /// VMs that a wish means, as the book knows them.
    fn known<'s>(&'s self, want: &'s Want, partner: &'s Partner) -> impl Iterator<Item = &'s There<'a>> {
        let meant = self.world.meant(want.home_domain, partner.vm, partner.label.as_deref());
        meant.filter(move |there| !self.is_elsewhere(there.vm.id, want))
    }

    /// The same of those that this plan has given a host.
    fn planned<'s>(&'s self, want: &'s Want, partner: &'s Partner) -> impl Iterator<Item = Placed> + 's {
        let one = partner.vm.and_then(|vm| self.placed.get(&vm).map(|place| (Some(vm), *place)));
        let label = partner.label.as_ref().and_then(|label| self.labelled.get(&(want.home_domain, label.clone())));
        one.into_iter().chain(label.into_iter().flatten().copied()).filter(move |(vm, _)| vm.is_none() || *vm != want.vm)
    }

    fn places_of(&self, want: &Want, partner: &Partner) -> BTreeSet<usize> {
        let known = self.known(want, partner).flat_map(|there| there.on.iter().copied());
        known.chain(self.planned(want, partner).map(|(_, on)| on)).collect()
    }

    /// What a VM takes of a host is gone for the others.
    fn take(&mut self, want: &Want, place: usize) {
        let taken = &mut self.taken[place];
        *taken = (taken.0.saturating_add(want.memory_bytes), taken.1.saturating_add(want.disk_bytes));
        if let Some(home) = want.home_domain.filter(|home| *home != self.world.hosts[place].domain) {
            let under = self.under.entry((place, home)).or_default();
            *under = under.and(contracts::There { memory_bytes: want.memory_bytes, vcpus: want.vcpus });
        }
        self.placed.extend(want.vm.map(|vm| (vm, place)));
        for label in &want.labels {
            self.labelled.entry((want.home_domain, label.clone())).or_default().push((want.vm, place));
        }
        if !want.apart.is_empty() {
            self.shy[place].push((want.home_domain, want.vm, want.apart.clone()));
        }
    }

    fn basis(&self, want: &Want, place: usize) -> Basis {
        let host = &self.world.hosts[place];
        let vm = want.vm.and_then(|vm| self.world.epoch(vm).map(|epoch| (vm, epoch)));
        Basis { vm, host: (host.key, host.seq), contract: self.world.contracts.binding(&host.key).map(|(id, _)| id) }
    }

    /// What hosts in question say; of many of one domain with one reason how many.
    fn refusals(&mut self, want: &Want) -> Vec<Arc<str>> {
        let world = self.world;
        let Some(home) = want.home_domain.filter(|_| want.host.is_none()) else {
            let one = want.host.and_then(|host| world.by_key.get(&host)).copied();
            let all = if want.host.is_some() { 0..0 } else { 0..world.hosts.len() };
            return self.told(want, one.into_iter().chain(all)).into_iter().map(|(_, line)| line).collect();
        };
        let own = world.domains.get(&home).into_iter().chain(world.lent_to.get(&home)).flatten();
        let open = world.open.iter().filter(|place| world.hosts[**place].domain != home);
        let near: Vec<usize> = own.chain(open).copied().filter(|place| is_in_question(want, &world.hosts[*place])).collect();
        let mut lines: Vec<Arc<str>> = self.told(want, near.into_iter()).into_iter().map(|(_, line)| line).collect();
        // What is closed to a domain is so to all its VMs.
        if !self.closed.contains_key(&home) {
            let is_closed = |place: &usize| {
                let host = &world.hosts[*place];
                let is_lent = || world.contracts.binding(&host.key).is_some_and(|(_, contract)| contract.terms().borrower == home);
                host.domain != home && world.contracts.by_contract(&host.domain) && !is_lent()
            };
            let any = Want { home_domain: Some(home), ..Want::default() };
            let closed = self.told(&any, (0..world.hosts.len()).filter(is_closed));
            self.closed.insert(home, closed);
        }
        let closed = self.closed.get(&home).into_iter().flatten();
        lines.extend(closed.filter(|(domain, _)| want.domain.is_none_or(|of| of == *domain)).map(|(_, line)| line.clone()));
        lines
    }

    /// What these hosts say, each line with their domain.
    fn told(&self, want: &Want, places: impl Iterator<Item = usize>) -> Vec<(Key, Arc<str>)> {
        let mut told: Vec<(No, Vec<usize>)> = vec![];
        let mut known: BTreeMap<(Key, No), usize> = BTreeMap::new();
        let mut last: Option<(Key, No)> = None;
        for place in places {
            let host = &self.world.hosts[place];
            let Err(no) = self.fits(want, place) else { continue };
            // Hosts are in the order of their names, and so of their domains: the next one mostly says what the last one did.
            let kind = no.kind();
            if let Some((last, (_, places))) = last.as_ref().zip(told.last_mut())
                && *last == (host.domain, kind.clone())
            {
                places.push(place);
                continue;
            }
            let key = (host.domain, kind);
            last = Some(key.clone());
            let at = *known.entry(key).or_insert_with(|| {
                told.push((no, vec![]));
                told.len() - 1
            });
            if at + 1 < told.len() {
                last = None;
            }
            told[at].1.push(place);
        }
        let line = |(no, places): (No, Vec<usize>)| {
            let first = &self.world.hosts[places[0]];
            let why = no.told(self.world, want, places[0]);
            let lines = match places.len() {
                0..=NAMED => places.iter().map(|place| format!("{}: {why}", self.world.hosts[*place].name)).collect::<Vec<_>>(),
                more => {
                    let domain = self.world.book.domain_name(&first.domain);
                    vec![format!("{} and {} more of domain {domain}: {why}", first.name, more - 1)]
                }
            };
            lines.into_iter().map(|line| (first.domain, line.into()))
        };
        told.into_iter().flat_map(line).collect()
    }
}

/// Whether a guest of its model can be on a processor.
fn suits_processor(want: &Want, host: &Candidate) -> Result<(), No> {
    if want.cpu == Model::Host {
        return Ok(());
    }
    let Some(processor) = &host.cpu else { return Err(No::ProcessorUntold) };
    let lacks = want.cpu.lacks(processor);
    if lacks.is_empty() { Ok(()) } else { Err(No::Processor(lacks)) }
}

/// One number for a seed and a host (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators").
fn chance(seed: u64, host: &Key) -> u64 {
    if seed == 0 {
        return 0;
    }
    let first = host.0.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let mut mixed = (seed ^ first).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
