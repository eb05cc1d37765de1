//! Founding, inviting, joining, leaving. Both sides of a join are known by their keys from the mesh; the ticket's secret only
//! says that the joiner was invited.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use rebec_api::{
    ApiError, ErrorCode,
    pool::{InitPool, Invite, Invited},
    screen::Join,
};
use rebec_book::{
    Body, Key, Signed, Ticket,
    key::public,
    record::{DomainBody, Kind, MemberBody, PoolBody, id_of_key},
    view,
};
use serde::{Deserialize, Serialize};

use crate::{
    agent::{Agent, now_s, random},
    exchange, facts,
    http::{names, tls},
    identity::Role,
    invitations,
    mesh::Peer,
    run,
    vm::failed,
};

/// Longest life of a ticket.
const VALID_S_MAX: u64 = 365 * 86_400;
/// Most uses of a ticket.
const USES_MAX: u32 = 10_000;
/// Records that a joiner gets at once: who belongs to the pool. The rest comes with the first exchange.
const RECORDS_BYTES_MAX: usize = 8 << 20;
/// Between two tries to reach the issuer of a ticket.
const JOIN_RETRY: Duration = Duration::from_millis(500);
/// How long an unattended join tries before its reason is shown as a refusal. It goes on trying.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);

/// `POST /internal/join`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinQuestion {
    secret: [u8; 16],
    /// The name the joiner would like.
    name: String,
    /// The root key of the domain it would found.
    domain_key: Key,
    /// Its membership in that domain, signed with that key.
    member: Signed,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The domain it founds, or none where it joins the issuer's.
    founds: Option<String>,
    /// What it needs to believe others and be believed.
    records: Vec<Signed>,
}

/// Founds a pool and its first domain, with this host.
pub fn init(agent: &Arc<Agent>, new: &InitPool) -> Result<(), ApiError> {
    names::check("pool", &new.name)?;
    names::check("domain", &new.domain)?;
    require_alone(agent)?;
    let found = || -> Result<()> {
        agent.identity.forget()?;
        let pool = agent.identity.make(Role::Pool)?;
        let domain = agent.identity.make(Role::Domain)?;
        let (pool, domain) = (pool.as_signing_key(), domain.as_signing_key());
        let key = public(pool);
        let named = PoolBody { name: new.name.clone() };
        let body = DomainBody { name: new.domain.clone(), key: public(domain) };
        let member = MemberBody { host: agent.key(), name: agent.own_name(), dead: None };
        let records = vec![
            agent.sign(Kind::Pool, id_of_key(&key), Some(Body::Pool(named)), pool)?,
            agent.sign(Kind::Domain, id_of_key(&body.key), Some(Body::Domain(body)), pool)?,
            agent.sign(Kind::Member, id_of_key(&agent.key()), Some(Body::Member(member)), domain)?,
        ];
        agent.enter(key, records)
    };
    found().map_err(|error| failed(&error))?;
    run::publish_host(agent);
    joined(agent);
    Ok(())
}

fn require_alone(agent: &Agent) -> Result<(), ApiError> {
    match agent.book(|book| view::pool_name(book).unwrap_or("?").to_owned()) {
        Some(name) => {
            Err(ApiError::new(ErrorCode::Conflict, format!("this host belongs to pool {name} already; `rebec pool leave` first")))
        }
        None => Ok(()),
    }
}

/// Says on the screen that this host is a member.
pub fn joined(agent: &Agent) {
    let state = agent.book(|book| {
        let domain = book.membership(&agent.key()).map(|(domain, _)| domain);
        let domain = view::domains(book).into_iter().find(|one| Some(one.body.key) == domain).map(|one| one.name);
        Some(Join::Joined { pool: view::pool_name(book)?.to_owned(), domain: domain? })
    });
    agent.join.send_replace(state.flatten().unwrap_or(Join::Alone));
}

/// Issues a ticket for a host of the own domain, or for a host that founds a new one.
pub fn invite(agent: &Agent, invite: &Invite, founds: Option<String>) -> Result<Invited, ApiError> {
    let role = if founds.is_some() { Role::Pool } else { Role::Domain };
    if let Some(name) = &founds {
        names::check("domain", name)?;
        if agent.pool(|book| view::domains(book).iter().any(|domain| domain.name == *name))? {
            return Err(ApiError::new(ErrorCode::Conflict, format!("domain `{name}` exists already; choose another name")));
        }
    }
    let pool = agent.pool(rebec_book::Book::pool)?;
    if agent.identity.get(role).map_err(|error| failed(&error))?.is_none() {
        let (what, which) = if founds.is_some() { ("pool's", "the pool") } else { ("domain's", "the domain") };
        return Err(ApiError::new(
            ErrorCode::Forbidden,
            format!("this host does not hold the {what} root key; ask on the host that founded {which}"),
        ));
    }
    if invite.uses == 0 || invite.uses > USES_MAX || invite.valid_s == 0 || invite.valid_s > VALID_S_MAX {
        return Err(ApiError::new(
            ErrorCode::BadRequest,
            format!("an invitation has 1 to {USES_MAX} uses and is valid for 1 s to 365 days"),
        ));
    }
    let addresses = agent.mesh_addresses();
    if addresses.is_empty() {
        return Err(ApiError::new(ErrorCode::Conflict, "this host has no address that others could reach; connect it to a network first"));
    }
    let (secret, expires) = (random::<16>(), now_s() + invite.valid_s);
    let kept = invitations::Kept::new(&secret, founds, expires, invite.uses);
    let id = kept.id();
    invitations::add(&agent.store, kept, now_s()).map_err(|error| failed(&error))?;
    let ticket = Ticket { pool, issuer: agent.key(), addresses, secret, expires };
    Ok(Invited { ticket: ticket.to_string(), id, expires, uses: invite.uses })
}

/// The issuer's side of a join.
pub fn admit(agent: &Arc<Agent>, joiner: Key, question: &JoinQuestion) -> Result<JoinAnswer, ApiError> {
    names::check("host", &question.name)?;
    agent.pool(|_| ())?;
    let known = agent.pool(|book| book.membership(&joiner).map(|(_, member)| member.dead.clone()))?;
    if let Some(Some(_)) = known {
        return Err(ApiError::new(ErrorCode::Forbidden, "this host was declared dead; join as a new host, with an empty state folder"));
    }
    // A joiner that did not hear the answer asks again.
    let founds = match known {
        Some(_) => None,
        None => admit_new(agent, joiner, question)?,
    };
    let records = agent.pool(|book| book.select(|key| key.kind <= Kind::Host, RECORDS_BYTES_MAX))?;
    Ok(JoinAnswer { founds, records })
}

fn admit_new(agent: &Arc<Agent>, joiner: Key, question: &JoinQuestion) -> Result<Option<String>, ApiError> {
    let kept = invitations::redeem(&agent.store, &question.secret, now_s()).map_err(|error| failed(&error))?;
    let role = if kept.founds.is_some() { Role::Pool } else { Role::Domain };
    let secret = agent.identity.get(role).map_err(|error| failed(&error))?;
    let secret =
        secret.ok_or_else(|| ApiError::new(ErrorCode::Forbidden, "the issuer no longer holds the root key; ask for a new ticket"))?;
    let secret = secret.as_signing_key();
    let records = match &kept.founds {
        Some(name) => {
            let body = DomainBody { name: name.clone(), key: question.domain_key };
            vec![agent.sign(Kind::Domain, id_of_key(&body.key), Some(Body::Domain(body)), secret)?, question.member.clone()]
        }
        None => {
            let body = MemberBody { host: joiner, name: question.name.clone(), dead: None };
            vec![agent.sign(Kind::Member, id_of_key(&joiner), Some(Body::Member(body)), secret)?]
        }
    };
    agent.heard(joiner);
    agent.announce(records)?;
    log::info!("host {} ({}) was admitted", question.name, joiner.short());
    Ok(kept.founds)
}

/// The joiner's side: once, with the reason of a refusal.
pub async fn join(agent: &Arc<Agent>, text: &str) -> Result<(), ApiError> {
    let ticket: Ticket =
        text.parse().map_err(|error: rebec_book::ticket::BadTicket| ApiError::new(ErrorCode::BadRequest, error.to_string()))?;
    require_alone(agent)?;
    let issuer = Peer { key: ticket.issuer, name: ticket.issuer.short(), addresses: ticket.addresses.clone() };
    agent.join.send_replace(Join::Joining { what: format!("asking host {}", issuer.name) });
    let outcome = attempt(agent, &ticket, &issuer).await;
    if let Err(error) = &outcome {
        agent.join.send_replace(Join::Refused { reason: error.to_string() });
    }
    outcome
}

async fn attempt(agent: &Arc<Agent>, ticket: &Ticket, issuer: &Peer) -> Result<(), ApiError> {
    agent.identity.forget().map_err(|error| failed(&error))?;
    let domain = agent.identity.make(Role::Domain).map_err(|error| failed(&error))?;
    let domain = domain.as_signing_key();
    let member = MemberBody { host: agent.key(), name: agent.own_name(), dead: None };
    let member = agent.sign(Kind::Member, id_of_key(&agent.key()), Some(Body::Member(member)), domain)?;
    let question = JoinQuestion { secret: ticket.secret, name: agent.own_name(), domain_key: public(domain), member };
    let answer: JoinAnswer = agent.mesh.ask(issuer, "/internal/join", &question).await.map_err(|error| hint_clock(error, ticket))?;
    if answer.founds.is_none() {
        agent.identity.forget().map_err(|error| failed(&error))?;
    }
    agent.enter(ticket.pool, answer.records).map_err(|error| failed(&error))?;
    agent.heard(issuer.key);
    run::publish_host(agent);
    joined(agent);
    if let Some(peer) = agent.peer(&issuer.key) {
        exchange::exchange(agent, peer).await;
    }
    Ok(())
}

/// Two clocks that are days apart make a fresh ticket look expired.
fn hint_clock(error: ApiError, ticket: &Ticket) -> ApiError {
    if error.code == ErrorCode::Forbidden && error.message.contains("expired") && now_s() < ticket.expires {
        let message = format!("{} (by this host's clock it is still valid: is one of the two clocks wrong?)", error.message);
        return ApiError { message, ..error };
    }
    error
}

/// An unattended join, by a ticket from the command line of a kernel or a seed volume: tries until it is let in or refused.
pub async fn join_unattended(agent: Arc<Agent>, text: String) {
    let began = tokio::time::Instant::now();
    loop {
        if agent.book(|_| ()).is_some() {
            return;
        }
        match join(&agent, &text).await {
            Ok(()) => return,
            Err(error) if error.code == ErrorCode::Unreachable => {
                let waits = Join::Joining { what: format!("{}; trying again", error.message) };
                let shown = if began.elapsed() > JOIN_PATIENCE { Join::Refused { reason: error.message } } else { waits };
                agent.join.send_replace(shown);
            }
            Err(error) => {
                log::error!("join: {error}");
                return;
            }
        }
        tokio::time::sleep(JOIN_RETRY).await;
    }
}

/// Leaves the pool: the founder of its domain forgets it too, where it can be told.
pub async fn leave(agent: &Arc<Agent>) -> Result<(), ApiError> {
    agent.pool(|_| ())?;
    if let Some(vm) = agent.local_vms().first() {
        return Err(ApiError::new(ErrorCode::Conflict, format!("VM {} is on this host; move it away or remove it first", vm.name())));
    }
    let kept = agent.pool(|book| view::vms(book).into_iter().find(|vm| vm.body.keeper == Some(agent.key())).map(|vm| vm.name))?;
    if let Some(name) = kept {
        return Err(ApiError::new(ErrorCode::Conflict, format!("this host is the keeper of VM {name}; remove that VM first")));
    }
    for peer in agent.peers() {
        if agent.answers(&peer.key) {
            // Those without the domain's key answer that they cannot; the others do.
            if agent.mesh.ask::<_, ()>(&peer, "/internal/leave", &serde_json::json!({})).await.is_ok() {
                break;
            }
        }
    }
    agent.forget_pool().map_err(|error| failed(&error))
}

/// A host of the own domain leaves.
pub fn dismiss(agent: &Arc<Agent>, host: Key) -> Result<(), ApiError> {
    let secret = domain_secret(agent)?;
    let signed = agent.sign(Kind::Member, id_of_key(&host), None, secret.as_signing_key())?;
    agent.announce(vec![signed])
}

/// An operator says that a host does not run and will not.
pub fn declare_dead(agent: &Arc<Agent>, host: Key, reason: &str) -> Result<(), ApiError> {
    if host == agent.key() {
        return Err(ApiError::new(ErrorCode::BadRequest, "this host is the one that answers; it is not dead"));
    }
    if agent.answers(&host) {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("host {} answers; only a host that is silent can be declared dead", agent.name_of(&host)),
        ));
    }
    let secret = domain_secret(agent)?;
    let known = agent.pool(|book| book.membership(&host).map(|(domain, member)| (domain, member.clone())))?;
    let (domain, member) = known.ok_or_else(|| ApiError::new(ErrorCode::NotFound, "no such host"))?;
    if domain != public(secret.as_signing_key()) {
        return Err(ApiError::new(ErrorCode::Forbidden, "the host belongs to another domain; its administrator declares it dead"));
    }
    let dead = MemberBody { dead: Some(format!("{reason} (at {})", now_s())), ..member };
    let signed = agent.sign(Kind::Member, id_of_key(&host), Some(Body::Member(dead)), secret.as_signing_key())?;
    agent.announce(vec![signed])
}

fn domain_secret(agent: &Agent) -> Result<iroh::SecretKey, ApiError> {
    let secret = agent.identity.get(Role::Domain).map_err(|error| failed(&error))?;
    secret.ok_or_else(|| {
        ApiError::new(ErrorCode::Forbidden, "this host does not hold the domain's root key; ask on the host that founded the domain")
    })
}

/// The facts of this host, as the pool is told.
pub fn host_body(agent: &Agent) -> rebec_book::record::HostBody {
    let (disk_bytes, free) = facts::disk_bytes(&agent.options.state);
    // In steps, so that every block written does not make news.
    let step = 64 << 20;
    rebec_book::record::HostBody {
        addresses: agent.mesh_addresses(),
        underlay: agent.underlay(),
        api: tls::address(agent),
        no_kvm: facts::no_kvm(),
        cpus: facts::cpus(),
        memory_bytes: agent.memory_bytes(),
        disk_bytes: disk_bytes / step * step,
        disk_used_bytes: (disk_bytes - free) / step * step,
        draining: agent.store.fact("draining").ok().flatten().unwrap_or(false),
        durable: agent.options.durable,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        parts: agent.depot.list(),
    }
}
