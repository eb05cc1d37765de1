//! A host without a state disk that starts again takes the place of the silent one that it was: remembered and done by whoever holds the domain's
//! root key. When, and when never, is `rebec_pool::replace`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Result;
use rebec_api::ApiError;
use rebec_book::{
    Book, Key,
    key::{Digest, Name, public},
    record::{Kind, MemberBody, id_of_key},
};
use rebec_host::failed;
use rebec_pool::replace::{self, Bound, REMEMBERED_FOR, Verdict, WAIT};

use super::{Membership, domain_secret, say_anew};
use crate::{chance::now_s, facts};

/// Hosts without a state disk that this one let in.
const FACT: &str = "machines";
/// So many are remembered: a domain's log has no more hosts.
const BOUND_MAX: usize = 4096;
/// Between two looks.
const PERIOD: Duration = Duration::from_secs(2);

/// Which machine this is, for who lets it in: nobody else is told, and nobody can tell from it what the firmware calls it.
pub fn machine() -> Option<Digest> {
    facts::machine_id().map(|id| Name(blake3::derive_key("rebec machine of a host without a state disk v1", id.as_bytes())))
}

/// A host without a state disk was let in.
pub fn bind(membership: &Membership, machine: Digest, name: &str, host: Key) -> Result<()> {
    membership.store.change_fact(FACT, |all: &mut Vec<Bound>| {
        let bound = replace::bind(all, machine, name, host);
        all.retain(|other| other.host != host);
        all.push(bound);
        let surplus = all.len().saturating_sub(BOUND_MAX);
        all.drain(..surplus);
        Ok(())
    })
}

/// Looks after them, as long as the agent lives.
pub async fn run(membership: Arc<Membership>) {
    let mut waiting = BTreeMap::new();
    loop {
        tokio::time::sleep(PERIOD).await;
        let looked = tokio::task::block_in_place(|| look(&membership, &mut waiting));
        if let Err(error) = looked {
            log::warn!("hosts that start again: {error}");
        }
    }
}

fn look(membership: &Membership, waiting: &mut BTreeMap<Key, Duration>) -> Result<(), ApiError> {
    let all: Vec<Bound> = membership.store.fact(FACT).map_err(|error| failed(&error))?.unwrap_or_default();
    if all.is_empty() || membership.knowledge.read(|_| ()).is_none() {
        return Ok(());
    }
    // Who has given the domain's key away decides nothing here.
    let Ok(secret) = domain_secret(membership) else { return Ok(()) };
    let domain = public(secret.as_signing_key());
    waiting.retain(|host, _| all.iter().any(|bound| bound.host == *host));
    for Bound { host, was, replaced, name, .. } in &all {
        if let Some(was) = was {
            let (silence, answers) = (membership.peers.silence(was), membership.peers.answers(host));
            let since = *waiting.entry(*host).or_insert_with(facts::boot_time);
            match membership.knowledge.pool(|book| replace::judge(book, &domain, was, host, silence, answers))? {
                Verdict::Wait if facts::boot_time().saturating_sub(since) < WAIT => continue,
                Verdict::Wait => log::warn!("host {name}: it says that it is the machine of one that answers: there are two"),
                Verdict::Never(why) => log::info!("host {name}: it takes nobody's place: {why}"),
                Verdict::Replace => take_place(membership, *was, *host, name)?,
            }
            settle(membership, host, |bound| bound.was = None)?;
            waiting.remove(host);
        } else if *replaced {
            forget(membership, *host, waiting)?;
        }
    }
    Ok(())
}

/// The way of every host that is declared dead, from here on: what it held is released, and it is told so if it comes.
fn take_place(membership: &Membership, was: Key, host: Key, name: &str) -> Result<(), ApiError> {
    let why = format!("its machine started again without its state, as host {} (at {})", host.short(), now_s());
    log::warn!("host {name} ({}): {why}", was.short());
    say_anew(membership, was, |member| MemberBody { dead: Some(why), ..member })?;
    settle(membership, &was, |bound| bound.replaced = true)
}

/// What a host wrote goes that was replaced, once nothing that lives stands on it.
fn forget(membership: &Membership, host: Key, waiting: &mut BTreeMap<Key, Duration>) -> Result<(), ApiError> {
    let (is_dead, is_over) = membership.knowledge.pool(|book: &Book| (book.dead(&host).is_some(), replace::is_over(book, &host)))?;
    if is_dead && !is_over {
        waiting.remove(&host);
        return Ok(());
    }
    let since = *waiting.entry(host).or_insert_with(facts::boot_time);
    if is_dead && facts::boot_time().saturating_sub(since) < REMEMBERED_FOR {
        return Ok(());
    }
    if is_dead {
        log::info!("host {}: its place was taken, and nothing stands on it: it is forgotten", host.short());
        membership.knowledge.publish_as(Kind::MEMBER, id_of_key(&host), None, domain_secret(membership)?.as_signing_key())?;
    }
    let forgotten = membership.store.change_fact(FACT, |all: &mut Vec<Bound>| {
        all.retain(|bound| bound.host != host);
        Ok(())
    });
    forgotten.map_err(|error| failed(&error))
}

fn settle(membership: &Membership, host: &Key, change: impl FnOnce(&mut Bound)) -> Result<(), ApiError> {
    let settled = membership.store.change_fact(FACT, |all: &mut Vec<Bound>| {
        if let Some(bound) = all.iter_mut().find(|bound| bound.host == *host) {
            change(bound);
        }
        Ok(())
    });
    settled.map_err(|error| failed(&error))
}
