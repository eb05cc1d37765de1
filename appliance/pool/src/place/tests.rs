//! One decision at a time: what speaks for a host, and what each says that refuses.

use super::*;
use rebec_book::{Book, key::Name};
use rebec_cpu::Features;

fn candidate(number: u8, domain: u8, free_mib: u64) -> Candidate {
    Candidate {
        key: Name([number; 32]),
        name: format!("h{number}"),
        domain: Name([domain; 32]),
        answers: true,
        draining: false,
        durable: true,
        no_kvm: None,
        underlay: true,
        memory_free_bytes: free_mib << 20,
        disk_free_bytes: 1 << 30,
        parts: vec![],
        cpu: None,
        labels: vec![],
        seq: 1,
    }
}

fn want(mib: u64) -> Want {
    Want { memory_bytes: mib << 20, parts: vec![Name([9; 32])], home_domain: Some(Name([1; 32])), ..Want::default() }
}

fn choose(want: &Want, candidates: &[Candidate]) -> Result<Choice, Vec<String>> {
    let book = Book::new(Name([0; 32]));
    let mut world = World::empty(&book, 0);
    candidates.iter().for_each(|host| world.add(host.clone()));
    super::choose(&world, want)
}

fn chosen(want: &Want, candidates: &[Candidate]) -> String {
    choose(want, candidates).unwrap().name
}

#[test]
fn own_domain_then_parts_then_memory() {
    let mut hosts = vec![candidate(1, 1, 600), candidate(2, 1, 700), candidate(3, 2, 9000)];
    assert_eq!(chosen(&want(512), &hosts), "h2");
    hosts[0].parts = vec![Name([9; 32])];
    assert_eq!(chosen(&want(512), &hosts), "h1");
    assert_eq!(chosen(&want(1024), &hosts), "h3");
}

#[test]
fn a_vm_moves_to_where_its_like_runs() {
    let mut hosts = vec![candidate(1, 1, 600), candidate(2, 1, 700), candidate(3, 2, 9000)];
    let moving = Want { donors: vec![hosts[0].key, hosts[2].key], ..want(512) };
    assert_eq!(choose(&moving, &hosts).unwrap().reason, "must fetch the image, runs a VM like it, 600 MiB of memory free");
    // What it runs from counts for more.
    hosts[1].parts = vec![Name([9; 32])];
    assert_eq!(chosen(&moving, &hosts), "h2");
}

#[test]
fn each_host_says_why_not() {
    let mut hosts: Vec<_> = (1..=8).map(|number| candidate(number, 1, 1000)).collect();
    hosts[7].labels = vec!["rack=r2".into()];
    hosts.iter_mut().take(7).for_each(|host| host.labels = vec!["rack=r1".into()]);
    hosts[0].answers = false;
    hosts[1].draining = true;
    hosts[2].no_kvm = Some("/dev/kvm is missing".into());
    hosts[3].memory_free_bytes = 100 << 20;
    hosts[4].disk_free_bytes = 1 << 20;
    hosts[5].underlay = false;
    let want =
        Want { leaves: Some(Name([7; 32])), disk_bytes: 5 << 20, lans: vec![Name([3; 16])], hosts: vec!["rack=r1".into()], ..want(512) };
    let refusals = choose(&want, &hosts).unwrap_err();
    let expected = [
        "h1: does not answer",
        "h2: is being drained",
        "h3: cannot run VMs: /dev/kvm is missing",
        "h4: memory: 100 MiB free, 512 MiB wanted",
        "h5: disk: 1 MiB free, 5 MiB wanted",
        "h6: has no IPv4 address, which LANs need; give it one, or run the VM without a LAN",
        "h7: the VM is there already",
        "h8: has no label rack=r1, but rack=r2",
    ];
    assert_eq!(refusals, expected);
}

#[test]
fn a_keeper_is_another_host_of_the_home_domain() {
    let mut hosts = vec![candidate(1, 1, 100), candidate(2, 1, 900), candidate(3, 1, 500), candidate(4, 2, 9000)];
    let keeper = |runner: u8, hosts: &[Candidate]| choose_keeper(Name([1; 32]), Name([runner; 32]), hosts).map(|key| key.0[0]);
    assert_eq!((keeper(1, &hosts), keeper(2, &hosts), keeper(4, &hosts)), (Some(2), Some(3), Some(2)));
    hosts[1].durable = false;
    assert_eq!(keeper(1, &hosts), Some(3));
    hosts[2].answers = false;
    assert_eq!(keeper(1, &hosts), Some(2));
    assert_eq!(keeper(2, &hosts[1..]), None);
}

#[test]
fn a_processor_that_lacks_something_is_refused_by_its_name() {
    let set = |words: &str| format!("AuthenticAMD:48.48:{words}:").parse::<Features>().ok();
    let mut hosts = vec![candidate(1, 1, 1000), candidate(2, 1, 900), candidate(3, 1, 800)];
    (hosts[0].cpu, hosts[1].cpu) = (set("1"), set("81.0.2"));
    let wanted = |model: &str| Want { cpu: model.parse().unwrap(), ..want(512) };
    assert_eq!(chosen(&wanted("host"), &hosts), "h1");
    assert_eq!(chosen(&wanted("only:AuthenticAMD:48.48:81:"), &hosts), "h2");
    let refusals = choose(&wanted("only:AuthenticAMD:48.48:81.0.6:"), &hosts).unwrap_err();
    let expected = [
        "h1: its processor lacks CPU feature est, CPU feature tsc_adjust, CPU feature sgx, which the VM may use",
        "h2: its processor lacks CPU feature sgx, which the VM may use",
        "h3: does not say what its processor has, which the VM's CPU model asks: upgrade it",
    ];
    assert_eq!(refusals, expected);
    let refusals = choose(&wanted("x86-64-v2"), &hosts).unwrap_err();
    assert!(refusals[0].contains("CPU feature ssse3") && refusals[0].contains("more, which the VM may use"), "{}", refusals[0]);
}

#[test]
fn only_what_was_asked_for_is_in_question() {
    let mut hosts = vec![candidate(1, 1, 1000), candidate(2, 2, 1000)];
    // A VM without a LAN asks for no IPv4 address.
    hosts[1].underlay = false;
    assert_eq!(chosen(&Want { host: Some(Name([2; 32])), ..want(512) }, &hosts), "h2");
    assert_eq!(chosen(&Want { domain: Some(Name([2; 32])), ..want(512) }, &hosts), "h2");
    assert_eq!(choose(&Want { host: Some(Name([3; 32])), ..want(512) }, &hosts), Err(vec![]));
}
