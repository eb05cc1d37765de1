//! Where a VM goes: a choice among hosts, or the reason of each that refuses.

use rebec_book::key::{Digest, Key};
use rebec_cpu::{Features, Model};

/// Features that a refusal names.
const LACKS_SHOWN: usize = 6;

/// What a VM needs.
#[derive(Debug, Clone, Default)]
pub struct Want {
    /// Guest memory.
    pub memory_bytes: u64,
    /// Room on the host's disk that it may come to take.
    pub disk_bytes: u64,
    /// Whether it is on LANs.
    pub lans: bool,
    /// Only this host.
    pub host: Option<Key>,
    /// Only this domain.
    pub domain: Option<Key>,
    /// Not this host: the one it leaves.
    pub leaves: Option<Key>,
    /// Parts that need not be fetched where they are.
    pub parts: Vec<Digest>,
    /// The domain that is preferred.
    pub home_domain: Option<Key>,
    /// Hosts that run a VM of the same image and trust, of whose content the one that moves need not be sent what both hold.
    pub donors: Vec<Key>,
    /// What its guest is shown of a processor; of one that runs, all that it may use.
    pub cpu: Model,
}

/// A host, as far as placing goes.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its key.
    pub key: Key,
    /// Its name.
    pub name: String,
    /// Its domain.
    pub domain: Key,
    /// Whether it answers.
    pub answers: bool,
    /// Whether it is being emptied.
    pub draining: bool,
    /// Whether its state survives a reboot.
    pub durable: bool,
    /// Why no VM can run there.
    pub no_kvm: Option<String>,
    /// Whether it has an address for ports of LANs.
    pub underlay: bool,
    /// Memory that is left.
    pub memory_free_bytes: u64,
    /// Room that is left.
    pub disk_free_bytes: u64,
    /// Parts in its depot.
    pub parts: Vec<Digest>,
    /// What it gives guests of its processor, where it says so.
    pub cpu: Option<Features>,
    /// Why the VM in question may not come there, whatever room there is: by a contract, or for want of one.
    pub closed: Option<String>,
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

/// Chooses: own domain before others, hosts that hold the parts before those that must fetch them, hosts with a donor before others, then most
/// free memory.
///
/// # Errors
/// One line for each host that was in question.
pub fn choose(want: &Want, candidates: &[Candidate]) -> Result<Choice, Vec<String>> {
    let (mut refusals, mut fit) = (vec![], vec![]);
    for candidate in candidates {
        if want.host.is_some_and(|host| host != candidate.key) || want.domain.is_some_and(|domain| domain != candidate.domain) {
            continue;
        }
        match refusal(want, candidate) {
            Some(why) => refusals.push(format!("{}: {why}", candidate.name)),
            None => fit.push(candidate),
        }
    }
    let merits = |candidate: &Candidate| {
        let holds = want.parts.iter().all(|part| candidate.parts.contains(part));
        let lends = want.donors.contains(&candidate.key);
        (want.home_domain == Some(candidate.domain), holds, lends, candidate.memory_free_bytes)
    };
    // Of equals the first.
    let Some(chosen) = fit.into_iter().rev().max_by_key(|candidate| merits(candidate)) else { return Err(refusals) };
    let (_, holds, lends, free_bytes) = merits(chosen);
    let parts = if holds { "holds the image" } else { "must fetch the image" };
    let donor = if lends { ", runs a VM like it" } else { "" };
    let reason = format!("{parts}{donor}, {} MiB of memory free", free_bytes >> 20);
    Ok(Choice { key: chosen.key, name: chosen.name.clone(), reason })
}

/// Chooses the keeper of a VM: another host of its home domain than the one it is to run on, rather one whose state survives a reboot and that
/// stays, then the one with most free memory.
pub fn choose_keeper(home_domain: Key, runner: Key, candidates: &[Candidate]) -> Option<Key> {
    let fit = candidates.iter().filter(|candidate| candidate.domain == home_domain && candidate.key != runner && candidate.answers);
    let best = fit.max_by_key(|candidate| (candidate.durable, !candidate.draining, candidate.memory_free_bytes, candidate.key));
    best.map(|candidate| candidate.key)
}

fn refusal(want: &Want, candidate: &Candidate) -> Option<String> {
    if want.leaves == Some(candidate.key) {
        return Some("the VM is there already".into());
    }
    if !candidate.answers {
        return Some("does not answer".into());
    }
    if candidate.closed.is_some() {
        return candidate.closed.clone();
    }
    if candidate.draining {
        return Some("is being drained".into());
    }
    if let Some(why) = &candidate.no_kvm {
        return Some(format!("cannot run VMs: {why}"));
    }
    if let Some(why) = other_processor(&want.cpu, candidate.cpu.as_ref()) {
        return Some(why);
    }
    if want.lans && !candidate.underlay {
        return Some("has no IPv4 address, which LANs need; give it one, or run the VM without a LAN".into());
    }
    let short = |what: &str, free: u64, wanted: u64| format!("{what}: {} MiB free, {} MiB wanted", free >> 20, wanted.div_ceil(1 << 20));
    if candidate.memory_free_bytes < want.memory_bytes {
        return Some(short("memory", candidate.memory_free_bytes, want.memory_bytes));
    }
    if candidate.disk_free_bytes < want.disk_bytes {
        return Some(short("disk", candidate.disk_free_bytes, want.disk_bytes));
    }
    None
}

/// Why a guest of a model cannot be on a processor.
fn other_processor(model: &Model, processor: Option<&Features>) -> Option<String> {
    if *model == Model::Host {
        return None;
    }
    let Some(processor) = processor else {
        return Some("does not say what its processor has, which the VM's CPU model asks: upgrade it".into());
    };
    let lacks = model.lacks(processor);
    let more = lacks.len().saturating_sub(LACKS_SHOWN);
    let shown = lacks[..lacks.len() - more].join(", ");
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!lacks.is_empty()).then(|| format!("its processor lacks {shown}{more}, which the VM may use"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rebec_book::key::Name;

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
            closed: None,
        }
    }

    fn want(mib: u64) -> Want {
        Want { memory_bytes: mib << 20, parts: vec![Name([9; 32])], home_domain: Some(Name([1; 32])), ..Want::default() }
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
        hosts[7].closed = Some("is lent to beta by contract 1a2b".into());
        hosts[0].answers = false;
        hosts[1].draining = true;
        hosts[2].no_kvm = Some("/dev/kvm is missing".into());
        hosts[3].memory_free_bytes = 100 << 20;
        hosts[4].disk_free_bytes = 1 << 20;
        hosts[5].underlay = false;
        let want = Want { leaves: Some(Name([7; 32])), disk_bytes: 5 << 20, lans: true, ..want(512) };
        let refusals = choose(&want, &hosts).unwrap_err();
        let expected = [
            "h1: does not answer",
            "h2: is being drained",
            "h3: cannot run VMs: /dev/kvm is missing",
            "h4: memory: 100 MiB free, 512 MiB wanted",
            "h5: disk: 1 MiB free, 5 MiB wanted",
            "h6: has no IPv4 address, which LANs need; give it one, or run the VM without a LAN",
            "h7: the VM is there already",
            "h8: is lent to beta by contract 1a2b",
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
}
