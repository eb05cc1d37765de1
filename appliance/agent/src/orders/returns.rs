//! Addresses of LANs that nobody needs go back to the LANs' homes, and homes take those of hosts that are no more. What and when is
//! `rebec_pool::ranges`; here it is written down and asked.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Body, Book, Key, Signed,
    authority::Granted,
    key::Id,
    lan,
    record::{Kind, LanBody, RecordKey},
};
use rebec_host::{failed, lock};
use rebec_pool::ranges::{Giver, Lost, Mark, Part, is_settled};
use serde::{Deserialize, Serialize};

use super::{Orders, addresses::lan_body};
use crate::facts;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(5);

/// `POST /internal/returns`: takes parts of a LAN's range back that the asking host has.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReturnQuestion {
    /// The LAN.
    pub lan: Id,
    /// Which.
    pub tags: Vec<u64>,
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub struct Looks {
    giver: Giver,
    lost: Lost,
}

/// Looks from time to time, as long as the agent lives.
pub async fn run(orders: Arc<Orders>) {
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        if orders.knowledge.read(|_| ()).is_some()
            && let Err(error) = look(&orders).await
        {
            log::warn!("addresses of LANs: {error}");
        }
    }
}

async fn look(orders: &Arc<Orders>) -> Result<(), ApiError> {
    settle(orders).map_err(|error| failed(&error))?;
    begin(orders).await?;
    let marks = orders.store.marks().map_err(|error| failed(&error))?;
    let is_dead = orders.knowledge.is_dead(&orders.knowledge.key());
    let answers = |home: &Key| !is_dead && orders.peers.answers(home);
    let due = lock(&orders.returns).giver.due(facts::boot_time(), &marks, answers);
    for ((home, lan), tags) in due {
        if let Err(error) = ask(orders, home, lan, tags).await {
            log::debug!("addresses of LAN {}: {error}", lan.short());
        }
    }
    reclaim(orders)?;
    settle(orders).map_err(|error| failed(&error))
}

/// Marks what is to go back. Nothing is given out meanwhile.
async fn begin(orders: &Orders) -> Result<(), ApiError> {
    let _alone = orders.naming.lock().await;
    let own = orders.knowledge.key();
    let here: Vec<(Id, Ipv4Addr)> =
        orders.vms.all().into_iter().filter(|vm| vm.kept().home == own).flat_map(|vm| addresses_of(&vm)).collect();
    let marks = orders.store.marks().map_err(|error| failed(&error))?;
    let parts = orders.knowledge.pool(|book| parts(book, |_, host| host == own))?;
    let parts: Vec<Part> = parts
        .into_iter()
        .filter(|part| orders.peers.answers(&part.home))
        .map(|part| Part {
            is_used: part.is_used || here.iter().any(|(lan, address)| *lan == part.lan && part.lease.has(*address)),
            ..part
        })
        .collect();
    let given = lock(&orders.returns).giver.look(facts::boot_time(), &parts, &marks);
    for mark in &given {
        log::info!("LAN {}: {} addresses from {} on go back: no VM has one of them", mark.lan.short(), mark.count, mark.first);
    }
    if given.is_empty() { Ok(()) } else { orders.store.mark(&given).map_err(|error| failed(&error)) }
}

/// Of a VM that is here, whether it is listed or not.
fn addresses_of(vm: &crate::vm::LocalVm) -> Vec<(Id, Ipv4Addr)> {
    vm.kept().body.nics.iter().map(|nic| (nic.lan, nic.address)).collect()
}

/// The parts of ranges that wanted hosts have of LANs of a home.
pub fn parts(book: &Book, wanted: impl Fn(Key, Key) -> bool) -> Vec<Part> {
    let mut parts = vec![];
    for record in book.of_kind(Kind::LAN) {
        let (Some(Body::Lan(body)), home, lan) = (&record.body, record.key.writer, record.key.id) else { continue };
        if !book.is_member(&home) {
            continue;
        }
        for lease in body.leases.iter().filter(|lease| wanted(home, lease.host)) {
            let is_used = used(book, lan, lease.host).any(|address| lease.has(address));
            parts.push(Part { lan, home, lease: lease.clone(), seq: record.seq, is_used });
        }
    }
    parts
}

/// Addresses of a LAN that VMs of a home have.
pub fn used(book: &Book, lan: Id, home: Key) -> impl Iterator<Item = Ipv4Addr> {
    let own = book.on_lan(lan).filter(move |record| record.key.writer == home);
    let bodies = own.filter_map(|record| if let Some(Body::Vm(vm)) = &record.body { Some(vm) } else { None });
    bodies.flat_map(move |vm| vm.nics.iter().filter(move |nic| nic.lan == lan).map(|nic| nic.address))
}

async fn ask(orders: &Arc<Orders>, home: Key, lan: Id, tags: Vec<u64>) -> Result<(), ApiError> {
    if home == orders.knowledge.key() {
        return take_back(orders, lan, home, &tags);
    }
    let peer = orders.knowledge.peer(&home);
    let peer = peer.ok_or_else(|| ApiError::new(ErrorCode::Unreachable, "its home is not known here"))?;
    let records: Vec<Signed> = orders.peers.mesh.ask(&peer, "/internal/returns", &ReturnQuestion { lan, tags }).await?;
    orders.peers.learn(records);
    Ok(())
}

/// As a LAN's home, takes parts of the host back that asked. Asked once more, there is nothing left to do.
pub fn granted(orders: &Orders, granted: Granted, tags: &[u64]) -> Result<(), ApiError> {
    match (granted.about(), granted.host()) {
        (Some(lan), Some(host)) => take_back(orders, lan, host, tags),
        _ => Err(ApiError::new(ErrorCode::Forbidden, "nothing was granted to be taken back")),
    }
}

fn take_back(orders: &Orders, id: Id, host: Key, tags: &[u64]) -> Result<(), ApiError> {
    let _alone = lock(&orders.grants);
    let own = orders.knowledge.key();
    let body = orders.knowledge.pool(|book| lan_body(book.get(Kind::LAN, id, own)))?;
    // A LAN that is gone has no parts.
    let Some(mut body) = body else { return Ok(()) };
    if !lan::take_back(&mut body, &host, tags) {
        return Ok(());
    }
    log::info!("LAN {}: addresses of host {} are free again", body.name, orders.knowledge.name_of(&host));
    orders.knowledge.publish(Kind::LAN, id, Some(Body::Lan(body.into())))
}

/// As the home of LANs, takes the parts of hosts that are dead, or in no domain any more, once that is so for long.
fn reclaim(orders: &Orders) -> Result<(), ApiError> {
    let own = orders.knowledge.key();
    let is_lost = |book: &Book, host: &Key| book.dead(host).is_some() || book.claims(host).next().is_none();
    let parts = orders.knowledge.pool(|book| parts(book, |home, host| home == own && is_lost(book, &host)))?;
    let taken = lock(&orders.returns).lost.look(facts::boot_time(), &parts);
    taken.into_iter().try_for_each(|((lan, host), tags)| take_back(orders, lan, host, &tags))
}

/// Forgets the marks of parts that have gone back, with what says so on the disk first.
fn settle(orders: &Orders) -> anyhow::Result<()> {
    let own = orders.knowledge.key();
    for mark in orders.store.marks()? {
        let key = RecordKey { kind: Kind::LAN, id: mark.lan, writer: mark.home };
        let settled = orders.knowledge.read(|book| {
            let signed = book.signed(&key)?;
            let body = if let Some(Body::Lan(body)) = book.get(Kind::LAN, mark.lan, mark.home) { Some(&**body) } else { None };
            is_settled(&mark, &own, signed.read().ok()?.seq, body).then(|| signed.clone())
        });
        if let Some(signed) = settled.flatten() {
            orders.store.unmark(&mark, &signed)?;
        }
    }
    Ok(())
}

/// Marks all that a host has which leaves the pool, so that it uses nothing of it when it comes back: homes take it when they miss the host.
pub fn all_of(book: &Book, own: Key) -> Vec<Mark> {
    let parts = parts(book, |_, host| host == own);
    parts.into_iter().filter_map(|part| Mark::of(part.lan, part.home, &part.lease, part.seq)).collect()
}

/// The LAN's record as far as this host may give out its addresses.
pub fn usable(orders: &Orders, id: Id, body: LanBody) -> Result<LanBody, ApiError> {
    let marks = orders.store.marks().map_err(|error| failed(&error))?;
    Ok(rebec_pool::ranges::usable(id, body, orders.knowledge.key(), &marks))
}
