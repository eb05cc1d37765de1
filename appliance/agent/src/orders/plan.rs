//! Where a VM is to be, and at which epoch: decided by `rebec_pool`, on what is known here.

use rebec_api::{ApiError, ErrorCode, vm::MoveVm};
use rebec_book::{
    Body, Book, Key,
    key::Id,
    record::{Assigned, Kind, VmBody},
    view,
};
use rebec_cpu::Model;
use rebec_host::{disks, lock};
use rebec_pool::{
    assign,
    place::{self, Choice, Now, Plan, Verdict, Want, World, choose, explain},
};

use super::{Orders, cpu};
use crate::{chance::now_s, knowledge::Knowledge, mesh::Peer, names, peers::Peers, vm::Kept};

/// A VM that leaves this host.
pub struct Moving<'a> {
    kept: &'a Kept,
    /// What it may use of a processor.
    cpu: Model,
}

impl<'a> Moving<'a> {
    /// As its VMM says what it may use.
    pub async fn of(orders: &Orders, kept: &'a Kept) -> Self {
        Self { kept, cpu: cpu::used(orders, kept.id).await }
    }
}

/// Whom a place is for, beside what its record says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// Only this host.
    pub host: Option<&'a str>,
    /// Only this domain.
    pub domain: Option<&'a str>,
}

/// Chooses a host for a VM, one that leaves this host or one that is to start.
pub fn place(orders: &Orders, body: &VmBody, asked: Asked<'_>, moving: Option<&Moving<'_>>) -> Result<Choice, ApiError> {
    let (host, domain) = named(orders, asked)?;
    orders
        .knowledge
        .pool(|book| {
            let world = world(&orders.peers, book);
            choose(&world, &Want { host, domain, ..want(orders, &world, body, moving) })
        })?
        .map_err(|details| no_place(&body.name, details))
}

/// What each host in question says to a VM that would start.
pub fn explained(orders: &Orders, body: &VmBody, lans: &[Id], asked: Asked<'_>) -> Result<Vec<Verdict>, ApiError> {
    let (host, domain) = named(orders, asked)?;
    orders.knowledge.pool(|book| {
        let world = world(&orders.peers, book);
        explain(&world, &Want { host, domain, lans: lans.to_vec(), ..want(orders, &world, body, None) })
    })
}

/// One plan for all VMs that leave this host: what one takes is gone for the next. Into another domain they go by a contract alone.
pub fn leaving(orders: &Orders, moving: &[Moving<'_>]) -> Result<Plan, ApiError> {
    // Hosts that are emptied at the same time do not all choose the same one of equals.
    let seed = orders.knowledge.key().0.first_chunk::<8>().map_or(1, |bytes| u64::from_be_bytes(*bytes));
    orders.knowledge.pool(|book| {
        let world = world(&orders.peers, book);
        let want = |moving: &Moving<'_>| Want { by_contract: true, ..want(orders, &world, &moving.kept.body, Some(moving)) };
        place::plan(&world, &moving.iter().map(want).collect::<Vec<_>>(), seed)
    })
}

/// Why a VM has no place.
pub fn no_place(vm: &str, details: Vec<String>) -> ApiError {
    ApiError { code: ErrorCode::Refused, message: format!("VM {vm} fits on no host that is in question"), details }
}

fn named(orders: &Orders, asked: Asked<'_>) -> Result<(Option<Key>, Option<Key>), ApiError> {
    let host = asked.host.map(|name| names::host(&orders.knowledge, name)).transpose()?;
    Ok((host, asked.domain.map(|name| names::domain(&orders.knowledge, name)).transpose()?))
}

fn want(orders: &Orders, world: &World<'_>, body: &VmBody, moving: Option<&Moving<'_>>) -> Want {
    let own = orders.knowledge.key();
    match moving {
        None => world.want(None, world.domain_of(&own), body),
        Some(Moving { kept, cpu }) => Want {
            leaves: Some(own),
            donors: world.donors(&kept.home, kept.id, &kept.body.image),
            cpu: cpu.clone(),
            ..world.want(Some(kept.id), world.domain_of(&kept.home), body)
        },
    }
}

/// The host that a VM is to move to, and how it is reached.
pub async fn elsewhere(orders: &Orders, kept: &Kept, wish: &MoveVm) -> Result<(Choice, Peer), ApiError> {
    // Into another domain only where somebody says so.
    let stays = if wish.host.is_none() { stays_in(&orders.knowledge, &kept.home) } else { None };
    let domain = wish.domain.as_deref().or(stays.as_deref());
    // The order may have come before, to an agent that ended while it was at it.
    let moving = Moving::of(orders, kept).await;
    let chosen = orders.peers.once_heard(|| place(orders, &kept.body, Asked { host: wish.host.as_deref(), domain }, Some(&moving))).await?;
    let peer = orders.knowledge.peer(&chosen.key).ok_or_else(|| ApiError::not_found("host", &chosen.name, "rebec host ls"))?;
    Ok((chosen, peer))
}

/// The domain that a VM stays in where nobody says otherwise, by name.
pub fn stays_in(knowledge: &Knowledge, home: &Key) -> Option<String> {
    knowledge.read(|book| place::stays_in(book, home).map(|own| book.domain_name(&own))).flatten()
}

/// All that placing stands on, as it is known here.
pub fn world<'a>(peers: &Peers, book: &'a Book) -> World<'a> {
    World::of(book, now_s(), disks::promised_bytes, |host| Now { answers: peers.answers(host), vitals: peers.vitals(host) })
}

/// As a VM's home, assigns it anew: to a host and an epoch that nobody else's claim comes near. Only if it is still where the asker found it: of
/// several who ask at the same time one assigns it.
pub fn assign(orders: &Orders, id: Id, found: Assigned, host: Key) -> Result<u64, ApiError> {
    let _alone = lock(&orders.grants);
    let (_, mut body) = orders.knowledge.desired(id)?;
    if orders.knowledge.pool(|book| view::holder(book, id))?.is_some_and(|at| at.epoch != found.epoch) {
        let message = format!("VM {} is being started already; `rebec vm show {}`", body.name, body.name);
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    let epoch = orders.knowledge.pool(|book| assign::next_epoch(book, id))?;
    body.assigned = Assigned { host, epoch };
    orders.knowledge.publish(Kind::VM, id, Some(Body::Vm(body.into())))?;
    Ok(epoch)
}
