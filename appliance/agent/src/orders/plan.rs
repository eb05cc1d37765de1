//! Where a VM is to be, and at which epoch: decided by `rebec_pool`, on what is known here.

use rebec_api::{ApiError, ErrorCode, vm::MoveVm};
use rebec_book::{
    Body, Book, Key, contracts,
    key::Id,
    record::{Assigned, Kind, VmBody},
    view,
};
use rebec_cpu::Model;
use rebec_host::{disks, lock};
use rebec_pool::{
    assign,
    candidates::{self, Now},
    place::{Candidate, Choice, Want, choose},
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

/// Chooses a host for a VM, one that leaves this host or one that is to start.
pub fn place(
    orders: &Orders,
    body: &VmBody,
    host: Option<&str>,
    domain: Option<&str>,
    moving: Option<&Moving<'_>>,
) -> Result<Choice, ApiError> {
    let host = host.map(|name| names::host(&orders.knowledge, name)).transpose()?;
    let domain = domain.map(|name| names::domain(&orders.knowledge, name)).transpose()?;
    let own = orders.knowledge.key();
    let (candidates, home_domain, donors) = orders.knowledge.pool(|book| {
        let mut hosts = candidates(&orders.peers, book);
        let kept = moving.map(|moving| moving.kept);
        close(book, &mut hosts, &kept.map_or(own, |kept| kept.home), kept.map(|kept| kept.id), body, now_s());
        let donors = kept.map(|kept| candidates::donors(book, &kept.home, kept.id, &kept.body.image)).unwrap_or_default();
        (hosts, book.domain_of(&own), donors)
    })?;
    let want = Want {
        memory_bytes: body.granted_bytes(),
        disk_bytes: disks::promised_bytes(body),
        lans: !body.nics.is_empty(),
        host,
        domain,
        leaves: moving.map(|_| own),
        parts: body.image.parts().map(|part| part.digest).collect(),
        home_domain,
        donors,
        cpu: match moving {
            Some(moving) => moving.cpu.clone(),
            None => body.cpu.as_ref().and_then(|cpu| cpu.model.parse().ok()).unwrap_or_default(),
        },
    };
    choose(&want, &candidates).map_err(|details| {
        let message = format!("VM {} fits on no host that is in question", body.name);
        ApiError { code: ErrorCode::Refused, message, details }
    })
}

/// The host that a VM is to move to, and how it is reached.
pub async fn elsewhere(orders: &Orders, kept: &Kept, wish: &MoveVm) -> Result<(Choice, Peer), ApiError> {
    // Into another domain only where somebody says so.
    let stays = if wish.host.is_none() { stays_in(&orders.knowledge, &kept.home) } else { None };
    let domain = wish.domain.as_deref().or(stays.as_deref());
    // The order may have come before, to an agent that ended while it was at it.
    let moving = Moving::of(orders, kept).await;
    let chosen = orders.peers.once_heard(|| place(orders, &kept.body, wish.host.as_deref(), domain, Some(&moving))).await?;
    let peer = orders.knowledge.peer(&chosen.key).ok_or_else(|| ApiError::not_found("host", &chosen.name, "rebec host ls"))?;
    Ok((chosen, peer))
}

/// The domain that a VM stays in where nobody says otherwise, by name.
pub fn stays_in(knowledge: &Knowledge, home: &Key) -> Option<String> {
    knowledge.read(|book| candidates::stays_in(book, home).map(|own| book.domain_name(&own))).flatten()
}

/// Every host of the pool, as far as placing goes.
pub fn candidates(peers: &Peers, book: &Book) -> Vec<Candidate> {
    candidates::candidates(book, |host| Now { answers: peers.answers(host), vitals: peers.vitals(host) })
}

/// Closes hosts that a VM may not come to: they are lent to others, or their domains lend by contracts and none lets it come.
pub fn close(book: &Book, hosts: &mut [Candidate], home: &Key, vm: Option<Id>, body: &VmBody, now: u64) {
    for host in hosts {
        host.closed = contracts::may_take(book, &host.key, home, vm, body, now).err();
    }
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
