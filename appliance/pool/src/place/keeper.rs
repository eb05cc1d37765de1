//! Who has a VM started elsewhere when its host is lost.

use rebec_book::Key;

use super::Candidate;

/// Chooses the keeper of a VM: another host of its home domain than the one it is to run on, rather one whose state survives a reboot and that
/// stays, then the one with most free memory.
pub fn choose_keeper(home_domain: Key, runner: Key, candidates: &[Candidate]) -> Option<Key> {
    let fit = candidates.iter().filter(|candidate| candidate.domain == home_domain && candidate.key != runner && candidate.answers);
    let best = fit.max_by_key(|candidate| (candidate.durable, !candidate.draining, candidate.memory_free_bytes, candidate.key));
    best.map(|candidate| candidate.key)
}
