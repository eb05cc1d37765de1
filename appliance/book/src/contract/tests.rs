//! What a contract is worth, by who signed what; what it lets come to a machine; and who is told of it.

use super::*;
use crate::{
    Book, Record, Role, Signed,
    authority::{self, Asker, Command, Question},
    book::Came,
    contracts,
    grant::Assigned,
    key::{bound_id, id_of_key},
    record::{Body, BrokerBody, DomainBody, HostBody, Kind, MemberBody, PoolBody},
    samples::{self, key, secret},
    warrant::Signer,
};

const POOL: u8 = 1;
const ALPHA: u8 = 10;
const A1: u8 = 11;
const BETA: u8 = 20;
const B1: u8 = 21;
const GAMMA: u8 = 30;
const C1: u8 = 31;
const NOW: u64 = 1_800_000_000;
const HOUR: u64 = 3600;

/// Beta lends b1 to alpha.
fn terms() -> Terms {
    Terms {
        nonce: Name([1; 16]),
        lender: key(BETA),
        borrower: key(ALPHA),
        host: key(B1),
        vcpus: 2,
        memory_bytes: 4,
        disk_bytes: 1 << 30,
        price_milli: 20,
        from: NOW,
        until: Some(NOW + 10 * HOUR),
        notice_s: HOUR,
        reclaim: Reclaim::Migrate,
        lans: vec![],
        vms: vec![],
        answer_by: NOW + 60,
    }
}

fn proposed(terms: Terms) -> Contract {
    let mut contract = Contract::draft(terms);
    contract.sign(&secret(ALPHA));
    contract
}

fn agreed(terms: Terms) -> Contract {
    let mut contract = proposed(terms);
    contract.sign(&secret(BETA));
    contract
}

fn said(mut contract: Contract, by: u8, what: What, at: u64) -> Contract {
    contract.say(Said::new(what, at, "so", 0), &secret(by));
    contract
}

fn state(contract: &Contract, now: u64) -> State {
    contract.standing(now).state
}

#[test]
fn nobody_is_bound_by_what_it_did_not_sign() {
    let (mut offer, lapses) = (proposed(terms()), NOW + 60);
    assert_eq!((state(&offer, NOW), state(&offer, lapses)), (State::Offered, State::Lapsed));
    // A third domain signs nothing, and what is signed by the wrong side is no signature.
    offer.sign(&secret(GAMMA));
    assert!(offer.is_proved() && !offer.is_signed());
    let mut forged = offer.clone();
    forged.signatures[Side::Lender as usize] = offer.signatures[Side::Borrower as usize];
    assert!(forged.is_signed() && !forged.is_proved());
    // Other terms under the same signatures.
    let mut other = agreed(terms());
    other.bytes = Contract::draft(Terms { price_milli: 1, ..terms() }).bytes;
    assert!(!other.is_proved());
    let contract = agreed(terms());
    assert_eq!((state(&contract, NOW), state(&contract, NOW + 10 * HOUR)), (State::Active, State::Ended));
    assert_eq!(state(&agreed(Terms { from: NOW + HOUR, ..terms() }), NOW), State::Signed);
}

#[test]
fn a_recall_has_its_notice_and_a_lender_that_denies_what_it_signed_has_recalled() {
    let recalled = said(agreed(terms()), BETA, What::Recalled, NOW + HOUR);
    assert_eq!((state(&recalled, NOW + HOUR), recalled.due()), (State::Recalled, Some(NOW + 2 * HOUR)));
    assert_eq!(state(&recalled, NOW + 2 * HOUR), State::Ended);
    let denied = said(agreed(terms()), BETA, What::Ended, NOW + HOUR);
    assert_eq!((state(&denied, NOW + HOUR), denied.due()), (State::Recalled, Some(NOW + 2 * HOUR)));
    // The borrower cannot call back what is not its own, and may give back at any time.
    let mut forged = agreed(terms());
    forged.say(Said::new(What::Recalled, NOW, "so", 0), &secret(ALPHA));
    assert!(!forged.is_proved());
    let back = said(recalled, ALPHA, What::Ended, NOW + HOUR + 5);
    assert_eq!((state(&back, NOW + HOUR + 9), back.ended_at(NOW + HOUR + 9)), (State::Ended, Some(NOW + HOUR + 5)));
    // Who agreed to wait has no deadline but the lease's.
    let waits = said(agreed(Terms { reclaim: Reclaim::Wait, ..terms() }), BETA, What::Recalled, NOW);
    assert_eq!(waits.due(), Some(NOW + 10 * HOUR));
    // A clock that is hours behind gives no earlier end than that of a recall as it began.
    let early = said(agreed(terms()), BETA, What::Recalled, NOW - 9 * HOUR);
    assert_eq!(early.due(), Some(NOW + HOUR));
}

#[test]
fn what_several_know_is_put_together_in_any_order_and_nobody_takes_a_word_back() {
    let one = said(agreed(terms()), BETA, What::Recalled, NOW + 9);
    let two = said(said(agreed(terms()), BETA, What::Recalled, NOW + 5), ALPHA, What::Ended, NOW + 20);
    let parts = [proposed(terms()), one.clone(), two.clone()];
    let whole = parts.iter().fold(Contract::draft(terms()), |known, part| known.with(part));
    let back = parts.iter().rev().fold(Contract::draft(terms()), |known, part| known.with(part));
    assert_eq!(whole, back);
    assert_eq!(whole.recall().unwrap().said.at, NOW + 5);
    assert!(two.tells_more_than(&one) && !parts[0].tells_more_than(&one));
    // What is of another contract changes nothing.
    let other = agreed(Terms { nonce: Name([2; 16]), ..terms() });
    assert_eq!(proposed(terms()).with(&other), proposed(terms()));
    let bytes = minicbor::to_vec(&whole).unwrap();
    assert_eq!(minicbor::decode::<Contract>(&bytes).unwrap(), whole);
}

struct World(Book, Vec<(u8, u64)>);

impl World {
    fn of_host(host: u8) -> Self {
        let mut world = Self(Book::new(key(POOL)).of_host(key(host)), vec![]);
        world.write(POOL, Kind::POOL, Name([0; 16]), Body::Pool(PoolBody { name: "pool".into() }));
        for (domain, name, host) in [(ALPHA, "alpha", A1), (BETA, "beta", B1), (GAMMA, "gamma", C1)] {
            world.write(POOL, Kind::DOMAIN, id_of_key(&key(domain)), Body::Domain(DomainBody { name: name.into(), key: key(domain) }));
            let member = MemberBody { host: key(host), domain: key(domain), name: format!("{name}1"), dead: None, role: None };
            world.write(domain, Kind::MEMBER, id_of_key(&key(host)), Body::Member(member));
            world.write(host, Kind::HOST, id_of_key(&key(host)), Body::Host(HostBody::bare(key(domain)).into()));
        }
        world
    }

    fn write(&mut self, by: u8, kind: Kind, id: Id, body: Body) -> Signed {
        let seq = self.1.iter().filter(|(writer, _)| *writer == by).count() as u64 + 1;
        self.1.push((by, seq));
        let signed = Record::sign(kind, id, seq, Some(&body), &secret(by)).unwrap();
        assert_eq!(self.0.restore(signed.clone(), Came::InTurn), Ok(true), "{body:?}");
        signed
    }

    fn by_contract(&mut self) {
        let (domain, host) = (key(BETA), key(B1));
        let body = BrokerBody { domain, host, by_contract: true, machines: 1, price_milli: 0, reclaim: vec![Reclaim::Migrate] };
        self.write(BETA, Kind::BROKER, id_of_key(&key(BETA)), Body::Broker(body));
    }

    fn agree(&mut self, contract: &Contract) -> Signed {
        self.write(B1, Kind::CONTRACT, contract.id(), Body::Contract(contract.clone().into()))
    }

    fn vm(&mut self, nonce: u8, home: u8, at: u8, memory: u64) -> Id {
        let mut body = samples::vm(Name([nonce; 16]), &format!("vm{nonce}"), Assigned { host: key(at), epoch: 1 });
        body.memory_bytes = memory;
        let id = bound_id(&key(home), &Name([nonce; 16]));
        self.write(home, Kind::VM, id, Body::Vm(body.into()));
        id
    }

    fn refusal(&self, vm: Id, now: u64) -> String {
        contracts::may_come(&self.0, &key(B1), vm, now).err().unwrap_or_default()
    }
}

#[test]
fn a_vm_of_another_domain_comes_by_an_active_contract_and_within_it() {
    let mut world = World::of_host(B1);
    let vm = world.vm(1, A1, A1, 3);
    assert_eq!(world.refusal(vm, NOW), "", "a domain that says nothing takes what comes");
    world.by_contract();
    assert!(world.refusal(vm, NOW).starts_with("domain beta lends by contract alone, and domain alpha has none for it"));
    world.agree(&proposed(terms()));
    assert!(world.refusal(vm, NOW).contains("has none"), "what the lender did not sign is no contract");
    world.agree(&agreed(terms()));
    let theirs = world.vm(9, C1, C1, 1);
    assert!(world.refusal(vm, NOW).is_empty() && world.refusal(theirs, NOW).contains("promised to domain alpha"));
    assert!(world.refusal(vm, NOW + 10 * HOUR).contains("has none"));
    // What is there already counts.
    world.vm(3, A1, B1, 2);
    assert!(world.refusal(vm, NOW).contains("MiB of memory with this VM"));
    // Its owner leaves it alone, until it has called it back and has it.
    let own = world.vm(4, B1, B1, 1);
    assert!(world.refusal(own, NOW).starts_with("is lent to alpha by contract"));
    world.agree(&said(agreed(terms()), BETA, What::Recalled, NOW + 1));
    assert!(world.refusal(vm, NOW + 2).contains("it is recalled: so"));
}

/// The same at the door: who sends or starts a VM is asked for the contract.
#[test]
fn whoever_brings_a_vm_is_asked_for_the_contract() {
    let mut world = World::of_host(B1);
    let (sent, here) = (world.vm(1, A1, A1, 1), world.vm(2, A1, B1, 1));
    let root = Asker::Signer(Signer::root(key(B1)));
    let member = MemberBody { host: key(B1), domain: key(BETA), name: "b1".into(), dead: None, role: Some(Role::Admin) };
    world.write(BETA, Kind::MEMBER, id_of_key(&key(B1)), Body::Member(member));
    let asked = [
        (Asker::Host(key(A1)), Question::Arrive(sent, 1)),
        (Asker::Host(key(A1)), Question::Start(here, 1)),
        (root, Question::Command(Command::VmStart, Some((Kind::VM, here)))),
    ];
    let judge = |world: &World| asked.map(|(asker, question)| authority::may(Some(&world.0), key(B1), NOW, asker, question).err());
    assert_eq!(judge(&world), [None, None, None]);
    world.by_contract();
    for refused in judge(&world) {
        assert!(refused.unwrap().to_string().contains("domain beta lends by contract alone"));
    }
    world.agree(&agreed(terms()));
    assert_eq!(judge(&world), [None, None, None]);
}

#[test]
fn of_two_contracts_about_a_machine_the_first_binds_it() {
    let mut world = World::of_host(B1);
    world.by_contract();
    world.agree(&agreed(terms()));
    let mut twice = Contract::draft(Terms { borrower: key(GAMMA), nonce: Name([7; 16]), from: NOW + 1, ..terms() });
    twice.sign(&secret(GAMMA));
    twice.sign(&secret(BETA));
    world.write(C1, Kind::CONTRACT, twice.id(), Body::Contract(twice.into()));
    let (alpha, gamma) = (world.vm(1, A1, A1, 1), world.vm(2, C1, C1, 1));
    assert_eq!(world.refusal(alpha, NOW + 2), "");
    assert!(world.refusal(gamma, NOW + 2).contains("promised to domain alpha"));
}

#[test]
fn a_contract_names_what_may_come() {
    let mut world = World::of_host(B1);
    world.by_contract();
    let (named, other) = (world.vm(1, A1, A1, 1), world.vm(2, A1, A1, 1));
    world.agree(&agreed(Terms { vms: vec![named], ..terms() }));
    assert_eq!(world.refusal(named, NOW), "");
    assert!(world.refusal(other, NOW).contains("it names the VMs that may come"));
}

#[test]
fn a_proposal_is_told_to_nobody_and_a_contract_to_its_two_domains() {
    let mut world = World::of_host(B1);
    let about = |signed: &Signed, world: &World| {
        let record = signed.open().unwrap();
        [ALPHA, BETA, GAMMA].map(|domain| world.0.concerns(&record, &key(domain)))
    };
    let proposal = world.agree(&proposed(terms()));
    assert_eq!(about(&proposal, &world), [false, true, false]);
    let contract = world.agree(&agreed(terms()));
    assert_eq!(about(&contract, &world), [true, true, false]);
}
