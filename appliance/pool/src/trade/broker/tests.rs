//! Decisions of a broker at its desk, each with its reason; and what it answers to those who do not mean well.

use ed25519_dalek::SigningKey;
use rebec_book::{
    contract::{Contract, Said, Terms, What},
    key::{Key, Name, Nonce, public},
};

use super::*;
use crate::trade::file;

const NOW: u64 = 1_800_000_000;
const ALPHA: u8 = 1;
const BETA: u8 = 2;
const GAMMA: u8 = 3;

fn secret(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn key(number: u8) -> Key {
    public(&secret(number))
}

fn machine(number: u8) -> Machine {
    let (key, name) = (Name([number; 32]), format!("b{number}"));
    Machine { key, name, vcpus: 4, memory_bytes: 8 << 30, disk_bytes: 1 << 40, out: None, own_vms: 0, other_vms: 0 }
}

fn desk<'a>(me: u8, policy: &'a Policy, machines: Vec<Machine>) -> Desk<'a> {
    let names = [(ALPHA, "alpha"), (BETA, "beta"), (GAMMA, "gamma")].map(|(domain, name)| (key(domain), name.to_owned())).into();
    Desk { now: NOW, me: key(me), policy, told: None, machines, held: vec![], names, rates: BTreeMap::new() }
}

fn wish(borrower: u8, machines: u32) -> Wish {
    let survives = vec![Reclaim::Migrate];
    Wish { borrower: key(borrower), machines, least: 1, survives, memory_bytes: 1 << 30, vcpus: 1, lans: vec![], vms: vec![] }
}

fn nonces() -> impl FnMut() -> Nonce {
    let mut number = 0;
    move || {
        number += 1;
        Name([number; 16])
    }
}

/// Beta's terms about its machine 7.
fn terms() -> Terms {
    Terms {
        nonce: Name([1; 16]),
        lender: key(BETA),
        borrower: key(ALPHA),
        host: Name([7; 32]),
        vcpus: 4,
        memory_bytes: 8 << 30,
        disk_bytes: 1 << 40,
        price_milli: 20,
        from: NOW,
        until: None,
        notice_s: 600,
        reclaim: Reclaim::Migrate,
        lans: vec![],
        vms: vec![],
        answer_by: NOW + ANSWER_S,
    }
}

fn signed(terms: Terms, by: &[u8]) -> Contract {
    let mut contract = Contract::draft(terms);
    by.iter().for_each(|domain| contract.sign(&secret(*domain)));
    contract
}

fn place(number: u8, domain: u8, name: &str) -> Place {
    Place { host: Name([number; 32]), name: name.into(), domain: key(domain), reason: "holds the image".into() }
}

fn held(contract: Contract, guests: usize) -> Held {
    let guest = |number: usize| {
        let places = if number == 0 { Ok(vec![place(9, ALPHA, "a1")]) } else { Err("a1: memory".to_owned()) };
        Guest { id: Name([number as u8; 16]), name: format!("vm{number}"), memory_bytes: 1 << 30, places }
    };
    Held { id: contract.id(), contract, guests: (0..guests).map(guest).collect(), recalled_s: 0, wasted_s: 0 }
}

fn refusal(verdict: Verdict) -> String {
    match verdict {
        Verdict::Refuse(why) | Verdict::Counter(_, why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_offered_is_what_the_policy_gives_and_a_draft_binds_nobody() {
    let policy = file::read("[lending]\nto = [\"alpha\"]\nprice = 20\nlongest = \"12h\"\n").unwrap();
    let desk = desk(BETA, &policy, (1..=4).map(machine).collect());
    let (drafts, why) = offers(&desk, &wish(ALPHA, 9), nonces()).unwrap();
    // Half of what is idle, which is the default.
    assert_eq!((drafts.len(), drafts[0].until, drafts[0].price_milli), (2, Some(NOW + 12 * 3600), 20));
    assert!(why.ends_with("4 idle, 0 lent (default: lending.share = 50%)"), "{why}");
    assert!(drafts.iter().all(|terms| !Contract::draft(terms.clone()).is_signed()));
    let refused = |wish: &Wish| offers(&desk, wish, nonces()).unwrap_err();
    assert_eq!(refused(&wish(GAMMA, 1)), "is not lent to (line 2: lending.to = alpha)");
    assert!(refused(&Wish { survives: vec![Reclaim::Kill], ..wish(ALPHA, 1) }).contains("default: lending.reclaim"));
    assert!(refused(&Wish { memory_bytes: 1 << 40, ..wish(ALPHA, 1) }).contains("b1 has 8192 MiB and 4 processors"));
    for count in [0, MACHINES_MAX + 1] {
        assert!(refused(&wish(ALPHA, count)).contains("a wish has 1 to 64 machines"));
    }
}

#[test]
fn a_proposal_is_signed_within_the_policy_and_countered_beyond_it() {
    let policy = file::read("[lending]\nshare = \"100%\"\nprice = 20\nnotice = \"10m\"\nlongest = \"12h\"\n").unwrap();
    let desk = desk(BETA, &policy, vec![machine(7)]);
    let fits = Terms { until: Some(NOW + 3600), ..terms() };
    assert!(matches!(consider(&desk, &signed(fits.clone(), &[ALPHA])), Verdict::Sign(_)));
    let countered = |terms: Terms| match consider(&desk, &signed(terms, &[ALPHA])) {
        Verdict::Counter(terms, why) => (*terms, why),
        other => panic!("{other:?}"),
    };
    let (cheap, why) = countered(Terms { price_milli: 3, ..fits.clone() });
    assert_eq!((cheap.price_milli, why.contains("(line 3: lending.price = 20)")), (20, true), "{why}");
    let (long, why) = countered(terms());
    assert_eq!((long.until, why.contains("(line 5: lending.longest = 12h)")), (Some(NOW + 12 * 3600), true), "{why}");
    let (slow, why) = countered(Terms { notice_s: 9999, ..fits.clone() });
    assert_eq!((slow.notice_s, why.contains("(line 4: lending.notice = 10m)")), (600, true), "{why}");
    let asks = file::read("[lending]\nshare = \"100%\"\naccept = \"operator\"\n").unwrap();
    let desk = self::desk(BETA, &asks, vec![machine(7)]);
    assert_eq!(
        consider(&desk, &signed(fits, &[ALPHA])),
        Verdict::Wait("an operator accepts it (line 3: lending.accept = operator)".into())
    );
}

/// Each thing that a domain may try ends in a refusal with its reason.
#[test]
fn who_does_not_mean_well_is_refused() {
    let policy = file::read("[lending]\nshare = \"100%\"\n").unwrap();
    let mut desk = desk(BETA, &policy, vec![machine(7)]);
    let no = |desk: &Desk<'_>, contract: &Contract| refusal(consider(desk, contract));
    // Not signed by who would pay; signed by another; of another lender's machine; of a machine that there is not.
    assert_eq!(no(&desk, &signed(terms(), &[])), "its borrower has not signed it");
    assert_eq!(no(&desk, &signed(terms(), &[GAMMA])), "its borrower has not signed it");
    assert_eq!(no(&desk, &signed(Terms { lender: key(GAMMA), ..terms() }, &[ALPHA])), "this domain is not its lender");
    assert_eq!(no(&desk, &signed(Terms { host: Name([8; 32]), ..terms() }, &[ALPHA])), "the machine is none of this domain's");
    assert!(no(&desk, &signed(Terms { memory_bytes: 1 << 50, ..terms() }, &[ALPHA])).contains("b7 has 8192 MiB"));
    // Clocks that are hours apart.
    let hours = |from: u64, answer_by: u64| signed(Terms { from, answer_by, ..terms() }, &[ALPHA]);
    assert!(no(&desk, &hours(NOW - 7200, NOW - 7140)).contains("is one of the two clocks wrong?"));
    assert!(no(&desk, &hours(NOW + 7200, NOW + 7260)).contains("it would begin in 7200 s by this host's clock"));
    assert!(no(&desk, &hours(NOW, NOW + 7200)).contains("it lapses only in 7200 s"));
    // Promised already: the same again is the same, another is refused.
    desk.held.push(held(signed(terms(), &[ALPHA, BETA]), 0));
    assert_eq!(consider(&desk, &signed(terms(), &[ALPHA])), Verdict::Known);
    let other = signed(Terms { nonce: Name([2; 16]), borrower: key(GAMMA), ..terms() }, &[GAMMA]);
    assert!(no(&desk, &other).starts_with("b7 is promised to alpha by contract"));
}

#[test]
fn a_lender_that_offers_what_it_has_not_is_not_believed() {
    let policy = file::read("[borrowing]\nfrom = [\"beta\"]\nprice = 30\nsurvives = [\"migrate\"]\n").unwrap();
    let desk = desk(ALPHA, &policy, vec![]);
    let of_beta = |host: &Key| (host.0[0] < 100).then(|| (key(BETA), 4, 8 << 30));
    let chosen = |drafts: &[Terms]| {
        let plan = desk.choose(key(BETA), &wish(ALPHA, 8), drafts, of_beta);
        (plan.steps.len(), plan.refusals.into_iter().map(|no| no.reason).collect::<Vec<_>>().join("; "))
    };
    assert_eq!(chosen(&[terms()]), (1, String::new()));
    for (lie, says) in [
        (Terms { host: Name([200; 32]), ..terms() }, "offers a machine that the pool does not know"),
        (Terms { lender: key(GAMMA), ..terms() }, "offers a machine that is not its own"),
        (Terms { memory_bytes: 64 << 30, ..terms() }, "offers 65536 MiB and 4 processors of a machine that has 8192 MiB and 4"),
        (Terms { memory_bytes: 1, ..terms() }, "offers less than was asked for"),
        (Terms { price_milli: 31, ..terms() }, "wants 31 for an hour (line 3: borrowing.price = 30)"),
        (Terms { reclaim: Reclaim::Kill, ..terms() }, "takes machines back by kill (line 4: borrowing.survives = migrate)"),
        (Terms { vms: vec![Name([1; 16])], ..terms() }, "names other VMs or LANs than were asked about"),
        (Terms { until: Some(NOW), ..terms() }, "is one of the two clocks wrong?"),
    ] {
        let (steps, told) = chosen(&[lie]);
        assert!(steps == 0 && told.contains(says), "{told} is not {says}");
    }
    assert!(chosen(&[terms(), Terms { nonce: Name([5; 16]), ..terms() }]).1.contains("is offered twice"));
    assert!(desk.choose(key(GAMMA), &wish(ALPHA, 1), &[terms()], of_beta).refusals[0].reason.contains("line 2: borrowing.from = beta"));
}

fn said(mut contract: Contract, by: u8, what: What, at: u64) -> Contract {
    contract.say(Said::new(what, at, "so", 0), &secret(by));
    contract
}

fn acts(desk: &Desk<'_>) -> Vec<Act> {
    look(desk, &[]).steps.into_iter().map(|step| step.what).collect()
}

#[test]
fn a_machine_that_is_called_back_comes_back_by_its_clause() {
    let policy = Policy::default();
    let recalled = said(signed(terms(), &[ALPHA, BETA]), BETA, What::Recalled, NOW);
    let id = recalled.id();
    // The borrower moves what has a place, and says of the rest why it stays.
    let mut borrower = desk(ALPHA, &policy, vec![]);
    borrower.held = vec![held(recalled.clone(), 2)];
    let plan = look(&borrower, &[]);
    assert_eq!(
        plan.steps.iter().map(|step| step.what.clone()).collect::<Vec<_>>(),
        [Act::Bring { contract: id, vm: Name([0; 16]), to: Name([9; 32]) }]
    );
    assert_eq!(plan.refusals[0].reason, "so; there is no place for VM vm1: a1: memory");
    borrower.held = vec![held(recalled.clone(), 0)];
    assert_eq!(acts(&borrower), [Act::End { contract: id, wasted_s: 0 }]);
    // The lender waits for the notice, by its own clock and by one that nobody sets.
    let mut lender = desk(BETA, &policy, vec![machine(7)]);
    lender.held = vec![held(recalled.clone(), 1)];
    assert_eq!(acts(&lender), []);
    lender.now = NOW + 600;
    let plan = look(&lender, &[]);
    assert!(plan.steps.is_empty() && plan.refusals[0].reason == "600 s of its notice are left by this host's own clock", "{plan:?}");
    lender.held[0].recalled_s = 600;
    assert_eq!(acts(&lender), [Act::Stop { contract: id, vm: Name([0; 16]), wasted_s: 600 }]);
    lender.held[0].guests.clear();
    lender.held[0].wasted_s = 600;
    assert_eq!(acts(&lender), [Act::End { contract: id, wasted_s: 600 }]);
    // Who agreed to wait has the VM there until it ends.
    let waits = said(signed(Terms { reclaim: Reclaim::Wait, ..terms() }, &[ALPHA, BETA]), BETA, What::Recalled, NOW);
    borrower.held = vec![held(waits, 1)];
    assert_eq!(acts(&borrower), []);
}

#[test]
fn a_lease_that_runs_out_in_silence_ends() {
    let policy = Policy::default();
    let contract = signed(Terms { until: Some(NOW + 1000), ..terms() }, &[ALPHA, BETA]);
    let mut borrower = desk(ALPHA, &policy, vec![]);
    borrower.held = vec![held(contract.clone(), 1)];
    assert_eq!(acts(&borrower), []);
    borrower.now = NOW + 400;
    assert!(matches!(acts(&borrower)[..], [Act::Bring { .. }]));
    let mut lender = desk(BETA, &policy, vec![machine(7)]);
    lender.now = NOW + 1000;
    lender.held = vec![held(contract, 1)];
    assert!(matches!(acts(&lender)[..], [Act::Stop { wasted_s: 1000, .. }]));
}

#[test]
fn own_work_calls_machines_back_and_demand_asks_for_more() {
    let policy = Policy::default();
    let contract = signed(terms(), &[ALPHA, BETA]);
    let mut lender = desk(BETA, &policy, vec![machine(6), machine(7)]);
    lender.held = vec![held(contract.clone(), 1)];
    lender.told = Some(Demand { queued: 2, running: 0, widest: 0 });
    let plan = look(&lender, &[]);
    assert_eq!(plan.steps[0].what, Act::Recall { contract: contract.id() });
    assert!(plan.steps[0].reason.starts_with("n = 2 queued + 0 running - ((2 - 1) + 0) = 1; "), "{}", plan.steps[0].reason);

    let mut borrower = desk(ALPHA, &policy, vec![machine(1)]);
    let advert = Advert { lender: key(BETA), machines: 3, reclaim: vec![Reclaim::Migrate] };
    assert!(look(&borrower, std::slice::from_ref(&advert)).steps.is_empty());
    borrower.told = Some(Demand { queued: 3, running: 0, widest: 0 });
    let plan = look(&borrower, std::slice::from_ref(&advert));
    assert!(matches!(&plan.steps[0].what, Act::Borrow { lender, wish } if *lender == key(BETA) && wish.machines == 2), "{plan:?}");
    // What was told and is over gives back what is idle; what nobody told gives nothing back.
    borrower.held = vec![held(contract.clone(), 0)];
    borrower.told = Some(Demand::default());
    assert_eq!(acts(&borrower), [Act::End { contract: contract.id(), wasted_s: 0 }]);
    borrower.told = None;
    assert_eq!(acts(&borrower), []);
}

/// A VM goes home where the notice is long enough for that, else to the third domain that is near enough, else to whichever is nearest.
#[test]
fn the_notice_decides_between_home_and_a_third_domain() {
    let policy = Policy::default();
    let mut borrower = desk(ALPHA, &policy, vec![]);
    let of = |notice_s: u64| said(signed(Terms { notice_s, ..terms() }, &[ALPHA, BETA]), BETA, What::Recalled, NOW);
    let chosen = |desk: &Desk<'_>| {
        let plan = look(desk, &[]);
        match &plan.steps[..] {
            [step] => match step.what {
                Act::Bring { to, .. } => (to.0[0], step.reason.clone()),
                ref other => panic!("{other:?}"),
            },
            _ => panic!("{plan:?}"),
        }
    };
    let mut run = |notice_s: u64, rates: [(u8, u64); 2], places: Vec<Place>| {
        borrower.rates = rates.map(|(to, rate)| ((key(BETA), key(to)), rate)).into();
        let guest = Guest { id: Name([7; 16]), name: "web".into(), memory_bytes: 1 << 30, places: Ok(places) };
        borrower.held = vec![Held { guests: vec![guest], ..held(of(notice_s), 0) }];
        chosen(&borrower)
    };
    let both = || vec![place(9, ALPHA, "a1"), place(8, GAMMA, "gamma/g1")];
    // 1 GiB: 110 s home, 12 s to gamma.
    let (slow, fast) = (10_000_000, 110_000_000);
    let (to, why) = run(600, [(ALPHA, slow), (GAMMA, fast)], both());
    assert_eq!((to, why.as_str()), (9, "so; VM web: it goes home: host a1, holds the image; about 110 s of 600 s that are left"));
    let (to, why) = run(60, [(ALPHA, slow), (GAMMA, fast)], both());
    assert_eq!(to, 8);
    assert_eq!(
        why,
        "so; VM web: home is too far: about 110 s; it goes to a third domain gamma: host gamma/g1, holds the image; about 12 s of 60 s that are left"
    );
    let (to, why) = run(5, [(ALPHA, slow), (GAMMA, fast)], both());
    assert!(to == 8 && why.contains("and nowhere is nearer"), "{why}");
    let (to, why) = run(600, [(ALPHA, slow), (GAMMA, fast)], vec![place(8, GAMMA, "gamma/g1")]);
    assert!(to == 8 && why.contains("no host at home takes it"), "{why}");
    // Nobody has seen a move: 100 Mbit/s both ways.
    borrower.rates.clear();
    let (to, why) = chosen(&borrower);
    assert!(to == 8 && why.contains("about 88 s"), "{why}");
}
