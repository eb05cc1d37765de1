//! What every plan of places keeps to, whatever the pool and the wants: laws, tried on pools that are made up.

mod made;

use std::collections::{BTreeMap, BTreeSet};

use made::{Chance, HOST_MIB, Made, NOW, Shape};
use proptest::prelude::*;
use rebec_book::{Book, Key, census, contracts, contracts::Standings, key::Id, record::VmBody, view};
use rebec_pool::place::{Now, Plan, Step, Want, World, plan};

fn world(book: &Book) -> World<'_> {
    World::of(book, NOW, |_| 1 << 30, |_| Now { answers: true, ..Now::default() })
}

/// Of every third VM a want to go elsewhere, some for a host of their choice, some too large, some new.
fn wants(made: &Made, world: &World<'_>, chance: &mut Chance) -> Vec<Want> {
    let moving = made.vms.iter().step_by(3).map(|(vm, _)| {
        let at = view::holder(&made.book, *vm).map(|at| at.host);
        let mut want = world.want_of(*vm).unwrap_or_default();
        want.leaves = at;
        match chance.below(8) {
            0 => want.memory_bytes = HOST_MIB << 21,
            1 => want.host = Some(made.hosts[chance.below(made.hosts.len())].0),
            2 => want.domain = Some(made.hosts[chance.below(made.hosts.len())].1),
            3 => (want.vm, want.leaves, want.memory_bytes) = (None, None, (HOST_MIB / 3) << 20),
            _ => {}
        }
        want
    });
    moving.collect()
}

/// Checks all laws of a plan.
fn check(made: &Made, wants: &[Want], plan: &Plan) -> Result<(), String> {
    let book = &made.book;
    let mut done = BTreeSet::new();
    let mut takes: BTreeMap<Key, u64> = BTreeMap::new();
    let mut under: BTreeMap<(Key, Key), (u64, u32)> = BTreeMap::new();
    let mut on: BTreeMap<Key, BTreeSet<(Option<Id>, usize)>> = BTreeMap::new();
    for vm in census::all(book) {
        vm.takes_room().for_each(|(host, bytes)| *takes.entry(host).or_default() += bytes);
        for host in vm.is_on() {
            let taken = under.entry((host, book.domain_of(&vm.home).ok_or("a home of nobody")?)).or_default();
            *taken = (taken.0 + vm.body.memory_bytes, taken.1 + u32::from(vm.body.vcpus));
        }
    }
    let standings = Standings::of(book, NOW);
    for step in &plan.steps {
        let Step { want: number, choice, stands_on } = step;
        let want = &wants[*number];
        let domain = book.domain_of(&choice.key).ok_or("a host of nobody")?;
        let home = want.home_domain.ok_or("a want of nobody")?;
        if !done.insert(*number) {
            return Err(format!("want {number} has two places"));
        }
        *takes.entry(choice.key).or_default() += want.memory_bytes;
        if want.leaves == Some(choice.key) || want.host.is_some_and(|host| host != choice.key) || want.domain.is_some_and(|of| of != domain)
        {
            return Err(format!("want {number} is where it should not be"));
        }
        if domain == home && standings.binding(&choice.key).is_some() {
            return Err(format!("want {number} is on a host that is lent"));
        }
        if domain != home {
            let (_, contract) = standings.binding(&choice.key).ok_or_else(|| format!("want {number} is abroad without a contract"))?;
            let taken = under.entry((choice.key, home)).or_default();
            *taken = (taken.0 + want.memory_bytes, taken.1 + want.vcpus);
            let terms = contract.terms();
            if terms.borrower != home || taken.0 > terms.memory_bytes || taken.1 > terms.vcpus {
                return Err(format!("want {number} is more than its contract gives"));
            }
        }
        let labels = book.host(&choice.key).map(|host| host.labels().to_vec()).unwrap_or_default();
        if want.hosts.iter().any(|label| !labels.contains(label)) {
            return Err(format!("want {number} is on a host without the label"));
        }
        stands_on.holds(book, NOW)?;
        on.entry(choice.key).or_default().insert((want.vm, *number));
    }
    for (host, bytes) in takes {
        // Who is there already may be more than it has; nobody comes to that.
        if bytes > HOST_MIB << 20 && on.contains_key(&host) {
            return Err(format!("host {host:?} is promised {bytes} bytes"));
        }
    }
    for there in on.values() {
        for (vm, number) in there {
            for (other, other_number) in there {
                let (want, beside) = (&wants[*number], &wants[*other_number]);
                let is_pair = number != other_number && want.home_domain == beside.home_domain && (vm.is_none() || vm != other);
                if is_pair && want.apart.iter().any(|partner| partner.is(*other, &beside.labels)) {
                    return Err(format!("wants {number} and {other_number} are not apart"));
                }
            }
        }
    }
    for refusal in &plan.refusals {
        let in_question = made.hosts.iter().filter(|(host, domain)| {
            wants[refusal.want].host.is_none_or(|of| of == *host) && wants[refusal.want].domain.is_none_or(|of| of == *domain)
        });
        if !done.insert(refusal.want) || (in_question.count() > 0) == refusal.why.is_empty() {
            return Err(format!("want {} is refused without a reason, or twice: {:?}", refusal.want, refusal.why));
        }
    }
    if done.len() == wants.len() { Ok(()) } else { Err("a want without an answer".into()) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// No room is promised twice, nothing goes beyond a contract, every want has its place or its reasons, and one seed makes one plan.
    #[test]
    fn a_plan_keeps_to_what_there_is(seed in any::<u64>(), domains in 1usize..5, hosts in 1usize..5, vms in 1usize..60, lent_of in 2usize..5) {
        let shape = Shape { domains, hosts: domains * hosts, vms, lent_of, vm_mib: 4096 };
        let made = Made::new(shape, seed);
        let world = world(&made.book);
        let wants = wants(&made, &world, &mut Chance(seed));
        let made_plan = plan(&world, &wants, seed);
        prop_assert_eq!(check(&made, &wants, &made_plan), Ok(()));
        prop_assert_eq!(&plan(&self::world(&made.book), &wants, seed), &made_plan);
    }

    /// What is read in one pass is what is read of each.
    #[test]
    fn the_census_says_what_the_view_says(seed in any::<u64>(), vms in 1usize..40) {
        let made = Made::new(Shape { domains: 3, hosts: 9, vms, lent_of: 3, vm_mib: 64 }, seed);
        let all: Vec<_> = census::all(&made.book).collect();
        prop_assert_eq!(all.len(), made.vms.len());
        for vm in all {
            prop_assert_eq!(Some(vm.at), view::holder(&made.book, vm.id));
            prop_assert_eq!(vm.seen.map(|seen| seen.holder), view::seen(&made.book, vm.id).map(|seen| seen.holder));
        }
    }

    /// Laid once or read for each, the rule about contracts is one.
    #[test]
    fn standings_say_what_the_book_says(seed in any::<u64>(), vms in 1usize..30) {
        let made = Made::new(Shape { domains: 3, hosts: 9, vms, lent_of: 2, vm_mib: 20 << 10 }, seed);
        let standings = Standings::of(&made.book, NOW).counted();
        for (vm, home) in &made.vms {
            let body = view::vm_body(&made.book, *vm).cloned().unwrap();
            for (host, lender) in &made.hosts {
                let comer = contracts::Comer::new(*home, Some(*vm), &[], body.memory_bytes, body.vcpus.into());
                let laid = standings.may_come(host, *lender, &comer).map_err(|bar| bar.told(&made.book));
                prop_assert_eq!(laid, contracts::may_come(&made.book, host, *vm, NOW));
            }
        }
    }
}

#[test]
fn a_step_is_void_once_what_it_stands_on_has_changed() {
    let mut made = Made::new(Shape { domains: 1, hosts: 3, vms: 3, lent_of: 99, vm_mib: 64 }, 1);
    let planned = |made: &Made| {
        let world = world(&made.book);
        let want = Want { leaves: view::holder(&made.book, made.vms[0].0).map(|at| at.host), ..world.want_of(made.vms[0].0).unwrap() };
        plan(&world, &[want], 0).steps.remove(0).stands_on
    };
    let stands_on = planned(&made);
    assert_eq!(stands_on.holds(&made.book, NOW), Ok(()));
    let host = made.hosts.iter().position(|(host, _)| *host == stands_on.host.0).unwrap();
    made.repeat_host(host);
    assert!(stands_on.holds(&made.book, NOW).unwrap_err().contains("says something else of itself"));
    let stands_on = planned(&made);
    made.assign(0, 9);
    assert!(stands_on.holds(&made.book, NOW).unwrap_err().contains("another epoch"));
}

/// Two that stay apart, one that goes near another, and a label, on three hosts.
#[test]
fn who_goes_near_and_who_stays_apart_is_heard() {
    use rebec_book::record::Partner;
    let made = Made::new(Shape { domains: 1, hosts: 3, vms: 2, lent_of: 99, vm_mib: 64 }, 1);
    let world = world(&made.book);
    let home = Some(made.domain(0));
    let new = |labels: &[&str]| Want {
        home_domain: home,
        memory_bytes: 1 << 20,
        labels: labels.iter().map(|&it| it.into()).collect(),
        ..Want::default()
    };
    let group = |label: &str| Want { apart: vec![Partner::label(label)], ..new(&[label]) };
    let of = |wants: &[Want]| {
        let plan = plan(&world, wants, 0);
        let hosts = plan.steps.iter().map(|step| step.choice.name.clone());
        (hosts.collect::<Vec<_>>(), plan.refusals.into_iter().flat_map(|refusal| refusal.why).collect::<Vec<_>>())
    };
    let (hosts, why) = of(&[group("app=db"), group("app=db"), group("app=db"), group("app=db")]);
    assert_eq!(hosts.iter().collect::<BTreeSet<_>>().len(), 3);
    assert!(why.len() == 3 && why[0].ends_with("h0: another VM of the same plan is there, from which this one stays apart"), "{why:?}");
    // Who says nothing is kept apart from who does.
    let (hosts, _) = of(&[group("app=db"), new(&["app=db"])]);
    assert_ne!(hosts[0], hosts[1]);
    // Near a VM, near a group whose first one goes anywhere, and near nobody.
    let vm = made.vms[0].0;
    let there = view::holder(&made.book, vm).and_then(|at| view::host(&made.book, &at.host)).unwrap().name;
    let near = |partner: Partner, labels: &[&str]| Want { near: vec![partner], ..new(labels) };
    assert_eq!(of(&[near(Partner::vm(vm), &[])]).0.concat(), there);
    let (hosts, _) = of(&[near(Partner::label("app=web"), &["app=web"]), near(Partner::label("app=web"), &["app=web"])]);
    assert_eq!(hosts[0], hosts[1]);
    let (hosts, why) = of(&[near(Partner::label("app=none"), &[])]);
    assert!(hosts.is_empty() && why[0].contains("a VM with label app=none is nowhere, and the VM goes where it is"), "{why:?}");
    let wants = [Want { near: vec![Partner::vm(vm)], apart: vec![Partner::vm(vm)], ..new(&[]) }];
    let (_, why) = of(&wants);
    assert!(why.iter().any(|why| **why == format!("{there}: VM d0/vm0 is there, from which this one stays apart")), "{why:?}");
}

#[test]
fn a_body_without_wishes_wants_its_size_alone() {
    let made = Made::new(Shape { domains: 1, hosts: 1, vms: 2, lent_of: 99, vm_mib: 64 }, 1);
    let body: VmBody = view::vm_body(&made.book, made.vms[1].0).cloned().unwrap();
    let want = Want::of(Some(made.vms[1].0), Some(made.domain(0)), &body, 5);
    assert_eq!((want.memory_bytes, want.disk_bytes, want.labels.len()), (64 << 20, 5, 0));
}
