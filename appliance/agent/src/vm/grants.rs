//! Grants of the right to run a VM, as this host's word in the book: what it gives is written before it is needed elsewhere, and stays until
//! whoever has the VM carries it in its own word.

use std::{cell::RefCell, collections::BTreeSet};

use rebec_api::ApiError;
use rebec_book::{
    Body, Grant, Key,
    grant::{self, GRANTS_MAX},
    key::Id,
    record::{Assigned, Kind, SeenBody, SeenState, VmBody},
    view,
};
use rebec_host::{life, lock};

use super::{Kept, Vms};
use crate::knowledge::Knowledge;

/// From so many grants in a row on the home takes notice.
const NOTICE: usize = 4;

/// The grants that lead from the home's word to this host, and on, of those that are known here.
pub fn known(knowledge: &Knowledge, vm: Id, kept: &[Grant]) -> Vec<Grant> {
    let all = knowledge.read(|book| {
        let body = view::vm_body(book, vm)?;
        let others = view::claims(book, vm).flat_map(|(_, seen)| &seen.grants);
        let mut all: Vec<&Grant> = others.chain(kept).filter(|grant| grant.epoch > body.assigned.epoch).collect();
        all.sort_by_key(|grant| (grant.epoch, grant.by, grant.to));
        all.dedup();
        let (_, way) = grant::way(body.assigned, body.keeper, &all);
        Some(way.into_iter().cloned().collect::<Vec<_>>())
    });
    // Without the home's record there is nothing that they could lead from.
    let mut all = all.flatten().unwrap_or_else(|| kept.to_vec());
    all.drain(..all.len().saturating_sub(GRANTS_MAX));
    all
}

/// Grants that a VM's life asks for, those of them that are not kept yet.
pub fn signed(knowledge: &Knowledge, kept: &Kept, grants: &[life::Grant]) -> Vec<Grant> {
    let own = knowledge.key();
    let wanted = grants.iter().map(|grant| (grant.to.unwrap_or(own), grant.epoch));
    let is_new = |wanted: &(Key, u64)| !kept.grants.iter().any(|grant| (grant.by, grant.to, grant.epoch) == (own, wanted.0, wanted.1));
    wanted.filter(is_new).map(|(to, epoch)| knowledge.sign_grant(&kept.id, to, epoch)).collect()
}

/// As its keeper, this host grants a VM to another at a later epoch, and says so.
pub fn as_keeper(knowledge: &Knowledge, vm: Id, at: Assigned) -> Result<(), ApiError> {
    let grant = knowledge.sign_grant(&vm, at.host, at.epoch);
    let before = knowledge.read(|book| match book.get(Kind::SEEN, vm, knowledge.key()) {
        Some(Body::Seen(seen)) => Some(seen.grants.clone()),
        _ => None,
    });
    let mut grants = before.flatten().unwrap_or_default();
    grants.push(grant);
    grants.drain(..grants.len().saturating_sub(GRANTS_MAX));
    left(knowledge, vm, at.epoch, grants)
}

/// What this host has to say of a VM that is not here any more: to whom it granted it.
pub fn left(knowledge: &Knowledge, vm: Id, epoch: u64, grants: Vec<Grant>) -> Result<(), ApiError> {
    let state = SeenState::Left;
    let seen =
        SeenBody { epoch, state, reason: None, endpoints: vec![], memory_bytes: 0, pid: 0, grants, to: None, keys: None, ahead: None };
    knowledge.publish(Kind::SEEN, vm, Some(Body::Seen(seen.into())))
}

/// What is to be done now and then: words about VMs that have left go once others carry what they prove; homes take notice of long ways.
pub fn tidy(vms: &Vms) {
    let knowledge = &vms.knowledge;
    let own = knowledge.key();
    let found = knowledge.read(|book| {
        let mine = book.of_kind(Kind::SEEN).filter(|record| record.key.writer == own);
        let left = mine.filter(|record| matches!(&record.body, Some(Body::Seen(seen)) if seen.state == SeenState::Left));
        let carried = left.map(|record| record.key.id).filter(|vm| {
            let with = view::way(book, *vm, |_| true);
            let alone = view::way(book, *vm, |host| *host != own);
            // Another domain's home tells this host how the VM goes on for as long as this host has a word in it. It had it until the home
            // has assigned it anew.
            let is_foreign = book.thing(Kind::VM, *vm).is_some_and(|thing| thing.domain != book.own_domain());
            let first = || view::vm_body(book, *vm).is_some_and(|body| body.assigned.host == own);
            let had = is_foreign && (first() || with.iter().flat_map(|(_, way)| way).any(|grant| grant.to == own));
            with.map(|(at, _)| at) == alone.map(|(at, _)| at) && !had
        });
        let homes = book.of_kind(Kind::VM).filter(|record| record.key.writer == own).filter_map(|record| {
            let Some(Body::Vm(body)) = &record.body else { return None };
            let (at, way) = view::way(book, record.key.id, |_| true)?;
            let is_long = way.len() >= NOTICE;
            let spoke = || view::seen(book, record.key.id).is_some_and(|seen| seen.holder == at.host && seen.body.epoch >= at.epoch);
            (is_long && spoke()).then(|| (record.key.id, VmBody { assigned: at, ..(**body).clone() }))
        });
        (carried.collect::<Vec<_>>(), homes.collect::<Vec<_>>())
    });
    let Some((carried, homes)) = found else { return };
    let publish = |kind, id, body| {
        if let Err(error) = knowledge.publish(kind, id, body) {
            log::error!("{error}");
        }
    };
    forget_private(vms);
    carried.into_iter().filter(|vm| vms.get(vm).is_none()).for_each(|vm| publish(Kind::SEEN, vm, None));
    homes.into_iter().for_each(|(vm, body)| publish(Kind::VM, vm, Some(Body::Vm(body.into()))));
}

/// Forgets what VMs start with that have no record, at this look and at the last: whoever records a VM keeps that first.
fn forget_private(vms: &Vms) {
    let before = std::mem::take(&mut *lock(&vms.unlisted));
    let now = RefCell::new(BTreeSet::new());
    let is_listed = |vm: &Id| vms.knowledge.read(|book| view::vm_body(book, *vm).is_some()) == Some(true);
    let kept = vms.store.retain_private(|vm| {
        if is_listed(vm) {
            return true;
        }
        now.borrow_mut().insert(*vm);
        !before.contains(vm)
    });
    if let Err(error) = kept {
        log::error!("{error:#}");
    }
    *lock(&vms.unlisted) = now.into_inner();
}
