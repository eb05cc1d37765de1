//! Founding, inviting, joining, leaving. Both sides of a join are known by their keys from the mesh; the ticket's secret only
//! says that the joiner was invited.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use ed25519_dalek::SigningKey;
use futures_util::{StreamExt as _, stream};
use rebec_api::{
    ApiError, ErrorCode,
    pool::{InitPool, Invite, Invited},
    screen::Join,
};
use rebec_book::{
    Body, Book, Key, Record, Signed, Ticket,
    authority::{self, Granted},
    book::Came,
    key::public,
    record::{AuditHead, DomainBody, HostBody, Kind, MemberBody, PARTS_MAX, PartsBody, PoolBody, Speaks, UserBody, id_of_key},
    view,
};
use rebec_vmm_api::{Versions, control::PROTOCOL};
use serde::{Deserialize, Serialize};

use crate::{
    agent::{Agent, now_s, random},
    exchange, facts,
    http::{names, tls},
    identity::Role,
    invitations,
    mesh::Peer,
    roles, run,
    vm::failed,
};

/// Longest life of a ticket.
const VALID_S_MAX: u64 = 365 * 86_400;
/// Most uses of a ticket.
const USES_MAX: u32 = 10_000;
/// Records that a joiner gets at once: who belongs to the pool. The rest comes with the first exchange.
const RECORDS_BYTES_MAX: usize = 8 << 20;
/// Hosts that are told at a time that this one leaves.
const ASKED_MAX: usize = 16;
/// Whether the domain's root key was copied to somewhere else.
const EXPORTED: &str = "root-key-exported";
/// Between two tries to reach the issuer of a ticket.
const JOIN_RETRY: Duration = Duration::from_millis(500);
/// How long an unattended join tries before its reason is shown as a refusal. It goes on trying.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);

/// `POST /internal/join`.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinQuestion {
    secret: [u8; 16],
    /// The name the joiner would like.
    name: String,
    /// The root key of the domain it would found. Kept until the question is answered: who asks again asks with the same.
    domain_key: Key,
    /// Its membership in that domain, signed with that key.
    member: Signed,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The domain that it belongs to now; its own key's where it founds one.
    domain: Key,
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
        let (key, domain_key) = (public(pool), public(domain));
        let named = Body::Pool(PoolBody { name: new.name.clone() });
        let body = Body::Domain(DomainBody { name: new.domain.clone(), key: domain_key });
        let records = vec![
            Record::sign(Kind::POOL, id_of_key(&key), 1, Some(&named), pool)?,
            Record::sign(Kind::DOMAIN, id_of_key(&domain_key), 2, Some(&body), pool)?,
            first_member(agent, domain)?,
        ];
        agent.knowledge.enter(key, domain_key, records, agent.identity.host().as_signing_key())
    };
    found().map_err(|error| failed(&error))?;
    run::publish_host(agent);
    joined(agent);
    Ok(())
}

/// The first record of a domain's key: that its founder belongs to it, and that root there is its admin.
fn first_member(agent: &Agent, domain: &SigningKey) -> Result<Signed> {
    let member =
        MemberBody { host: agent.key(), domain: public(domain), name: agent.own_name(), dead: None, role: Some(authority::Role::Admin) };
    Ok(Record::sign(Kind::MEMBER, id_of_key(&agent.key()), 1, Some(&Body::Member(member)), domain)?)
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
        if agent.pool(|book| !book.of_name(Kind::DOMAIN, name).is_empty())? {
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
    let kept = invitations::Kept::new(&secret, founds, expires, invite.uses).with_role(invite.role);
    let id = kept.id();
    invitations::add(&agent.store, kept, now_s()).map_err(|error| failed(&error))?;
    let ticket = Ticket { pool, issuer: agent.key(), addresses, secret, expires };
    Ok(Invited { ticket: ticket.to_string(), id, expires, uses: invite.uses })
}

/// The issuer's side of a join.
pub fn admit(agent: &Arc<Agent>, granted: Granted, question: &JoinQuestion) -> Result<JoinAnswer, ApiError> {
    let joiner = granted.host().ok_or_else(|| ApiError::new(ErrorCode::Forbidden, "hosts join, users do not"))?;
    names::check("host", &question.name)?;
    let issuer = agent.pool(Book::own_domain)?;
    let known = agent.pool(|book| {
        let mut claims = book.claims(&joiner);
        claims
            .find(|(domain, _)| Some(*domain) == issuer || *domain == question.domain_key)
            .map(|(domain, member)| (domain, member.dead.clone()))
    })?;
    let domain = match known {
        Some((_, Some(_))) => {
            return Err(ApiError::new(ErrorCode::Forbidden, "this host was declared dead; join as a new host, with an empty state folder"));
        }
        // A joiner that did not hear the answer asks again.
        Some((domain, None)) => domain,
        None => admit_new(agent, joiner, question)?,
    };
    let records = agent.pool(|book| book.select(|key| key.kind <= Kind::HOST, RECORDS_BYTES_MAX))?;
    Ok(JoinAnswer { domain, records })
}

fn admit_new(agent: &Arc<Agent>, joiner: Key, question: &JoinQuestion) -> Result<Key, ApiError> {
    let kept = invitations::redeem(&agent.store, &question.secret, now_s()).map_err(|error| failed(&error))?;
    let role = if kept.founds.is_some() { Role::Pool } else { Role::Domain };
    let secret = agent.identity.get(role).map_err(|error| failed(&error))?;
    let secret =
        secret.ok_or_else(|| ApiError::new(ErrorCode::Forbidden, "the issuer no longer holds the root key; ask for a new ticket"))?;
    let secret = secret.as_signing_key();
    let domain = match kept.founds {
        Some(name) => {
            let domain = question.domain_key;
            agent.publish_as(Kind::DOMAIN, id_of_key(&domain), Some(Body::Domain(DomainBody { name, key: domain })), secret)?;
            agent.knowledge.take_in(vec![question.member.clone()], Came::InTurn);
            exchange::wrote(agent, vec![question.member.clone()]);
            domain
        }
        None => {
            let domain = public(secret);
            let role = roles::meant_for_host(kept.role);
            let body = MemberBody { host: joiner, domain, name: question.name.clone(), dead: None, role };
            agent.publish_as(Kind::MEMBER, id_of_key(&joiner), Some(Body::Member(body)), secret)?;
            domain
        }
    };
    log::info!("host {} ({}) was admitted", question.name, joiner.short());
    Ok(domain)
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
    // One of an attempt whose answer was lost counts, if the ticket founds a domain.
    let domain = match agent.identity.get(Role::Domain).map_err(|error| failed(&error))? {
        Some(domain) => domain,
        None => agent.identity.make(Role::Domain).map_err(|error| failed(&error))?,
    };
    let domain = domain.as_signing_key();
    let member = first_member(agent, domain).map_err(|error| failed(&error))?;
    let question = JoinQuestion { secret: ticket.secret, name: agent.own_name(), domain_key: public(domain), member };
    let answer: JoinAnswer = agent.mesh.ask(issuer, "/internal/join", &question).await.map_err(|error| hint_clock(error, ticket))?;
    if answer.domain != public(domain) {
        agent.identity.forget().map_err(|error| failed(&error))?;
    }
    let entered = agent.knowledge.enter(ticket.pool, answer.domain, answer.records, agent.identity.host().as_signing_key());
    entered.map_err(|error| failed(&error))?;
    exchange::heard(agent, issuer.key);
    run::publish_host(agent);
    joined(agent);
    exchange::catch_up(agent, issuer.key).await;
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

/// Leaves the pool: who holds its domain's key forgets it too, where it can be told.
pub async fn leave(agent: &Arc<Agent>) -> Result<(), ApiError> {
    agent.pool(|_| ())?;
    let conflict = |message: String| Err(ApiError::new(ErrorCode::Conflict, message));
    if let Some(vm) = agent.local_vms().first() {
        return conflict(format!("VM {} is on this host; move it away or remove it first", vm.name()));
    }
    let own = agent.key();
    let kept = agent.pool(|book| view::vms(book).into_iter().find(|vm| vm.body.keeper == Some(own)).map(|vm| vm.name))?;
    if let Some(name) = kept {
        return conflict(format!("this host is the keeper of VM {name}; remove that VM first"));
    }
    let home = agent.pool(|book| view::vms(book).into_iter().find(|vm| vm.home == own).map(|vm| vm.name))?;
    if let Some(name) = home {
        return conflict(format!("VM {name} is at home on this host; remove it first"));
    }
    if let Some(what) = lost_with(agent)? {
        return conflict(format!("this host holds the only root key of {what}; copy it first with `rebec domain key export FILE`"));
    }
    // Those of other domains refuse, those without the domain's key answer that they cannot; the others do. All are asked at once: one that is
    // silent holds nobody up.
    let domain = agent.pool(Book::own_domain)?;
    let is_asked = |peer: &Peer| agent.answers(&peer.key) && agent.book(|book| book.domain_of(&peer.key)) == Some(domain);
    let asked = agent.peers().into_iter().filter(is_asked).map(|peer| async move {
        let answer = agent.mesh.ask::<_, ()>(&peer, "/internal/leave", &serde_json::json!({})).await;
        answer.is_ok()
    });
    let mut answers = stream::iter(asked).buffer_unordered(ASKED_MAX);
    while answers.next().await == Some(false) {}
    drop(answers);
    agent.forget_pool().map_err(|error| failed(&error))
}

/// What nobody could let a host into any more, if this host's keys went: they were never exported, and others belong to it.
fn lost_with(agent: &Agent) -> Result<Option<String>, ApiError> {
    if agent.store.fact::<bool>(EXPORTED).map_err(|error| failed(&error))?.unwrap_or(false) {
        return Ok(None);
    }
    let holds = |role| agent.identity.get(role).map(|key| key.is_some()).map_err(|error| failed(&error));
    let (domain, pool) = (holds(Role::Domain)?, holds(Role::Pool)?);
    agent.pool(|book| {
        let own = book.own_domain();
        let others = |of_domain: bool| {
            let hosts = view::hosts(book);
            hosts.iter().any(|host| host.key != agent.key() && host.member.dead.is_none() && (!of_domain || Some(host.domain) == own))
        };
        let name = || own.map_or_else(String::new, |own| book.domain_name(&own));
        match () {
            () if domain && others(true) => Some(format!("domain {}", name())),
            () if pool && others(false) => Some(format!("pool {}", view::pool_name(book).unwrap_or_default())),
            () => None,
        }
    })
}

/// A host of the own domain leaves.
pub fn dismiss(agent: &Arc<Agent>, granted: Granted) -> Result<(), ApiError> {
    let host = granted.host().ok_or_else(|| ApiError::new(ErrorCode::Forbidden, "hosts leave, users do not"))?;
    let secret = domain_secret(agent)?;
    agent.publish_as(Kind::MEMBER, id_of_key(&host), None, secret.as_signing_key())
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
    say_anew(agent, host, |member| MemberBody { dead: Some(format!("{reason} (at {})", now_s())), ..member })
}

/// Gives root at a host another role in the domain, or none.
pub fn set_role(agent: &Agent, host: Key, role: Option<authority::Role>) -> Result<(), ApiError> {
    if host == agent.key() && role != Some(authority::Role::Admin) {
        let message = "root at this host has the domain's root key, and can be no less than admin";
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    say_anew(agent, host, |member| MemberBody { role, ..member })
}

/// Changes what the domain says of a host of its own.
fn say_anew(agent: &Agent, host: Key, change: impl FnOnce(MemberBody) -> MemberBody) -> Result<(), ApiError> {
    let secret = domain_secret(agent)?;
    let known = agent.pool(|book| book.membership(&host).map(|(domain, member)| (domain, member.clone())))?;
    let (domain, member) = known.ok_or_else(|| ApiError::new(ErrorCode::NotFound, "no such host"))?;
    if domain != public(secret.as_signing_key()) {
        return Err(ApiError::new(ErrorCode::Forbidden, "the host belongs to another domain; that is for its administrator to say"));
    }
    agent.publish_as(Kind::MEMBER, id_of_key(&host), Some(Body::Member(change(member))), secret.as_signing_key())
}

/// Gives a key a role in the own domain.
pub fn set_user(agent: &Agent, key: Key, name: &str, role: authority::Role, until: Option<u64>) -> Result<UserBody, ApiError> {
    let secret = domain_secret(agent)?;
    let domain = public(secret.as_signing_key());
    let user = UserBody { key, domain, name: name.to_owned(), role, until };
    agent.publish_as(Kind::USER, id_of_key(&key), Some(Body::User(user.clone())), secret.as_signing_key())?;
    Ok(user)
}

/// Takes it back.
pub fn remove_user(agent: &Agent, key: Key) -> Result<(), ApiError> {
    agent.publish_as(Kind::USER, id_of_key(&key), None, domain_secret(agent)?.as_signing_key())
}

fn domain_secret(agent: &Agent) -> Result<iroh::SecretKey, ApiError> {
    let secret = agent.identity.get(Role::Domain).map_err(|error| failed(&error))?;
    secret.ok_or_else(|| {
        ApiError::new(ErrorCode::Forbidden, "this host does not hold the domain's root key; ask on the host that founded the domain")
    })
}

/// The facts of this host, as the pool is told; none where it belongs to none.
pub fn host_body(agent: &Agent) -> Option<HostBody> {
    let (disk_bytes, _) = facts::disk_bytes(&agent.options.state);
    // In steps: what a file system says of itself changes a little as it is used.
    let step = 64 << 20;
    Some(HostBody {
        domain: agent.store.domain().ok().flatten()?,
        addresses: agent.mesh_addresses(),
        underlay: agent.underlay(),
        api: tls::address(agent),
        no_kvm: facts::no_kvm(),
        cpus: facts::cpus(),
        memory_bytes: agent.memory_bytes(),
        disk_bytes: disk_bytes / step * step,
        draining: agent.store.fact("draining").ok().flatten().unwrap_or(false),
        durable: agent.options.durable,
        version: agent.rebec().to_owned(),
        audit: agent.audit.told().map(|head| AuditHead { seq: head.seq, hash: head.hash }),
        speaks: Some(Speaks { peer: pair(agent.mesh.speaks()), moves: pair(agent.moves()), control: pair(PROTOCOL) }),
    })
}

fn pair(versions: Versions) -> (u16, u16) {
    (versions.lowest, versions.highest)
}

/// The parts of this host, as the pool is told: as many records as they need.
pub fn parts_bodies(agent: &Agent) -> Vec<PartsBody> {
    agent.depot.list().chunks(PARTS_MAX).map(|digests| PartsBody { digests: digests.to_vec() }).collect()
}

/// Makes room for the domain's root key outside this host: who has its bytes can be the domain.
pub fn export_key(agent: &Agent) -> Result<[u8; 32], ApiError> {
    let secret = domain_secret(agent)?;
    agent.store.set_fact(EXPORTED, &true).map_err(|error| failed(&error))?;
    Ok(secret.to_bytes())
}

/// Takes a copy of the domain's root key: from here on this host can let others in, and its root is the domain's admin.
pub fn import_key(agent: &Agent, bytes: &[u8; 32]) -> Result<(), ApiError> {
    let secret = iroh::SecretKey::from_bytes(bytes);
    let own = agent.pool(Book::own_domain)?;
    if own != Some(public(secret.as_signing_key())) {
        return Err(ApiError::new(ErrorCode::Conflict, "the key is another domain's than this host's"));
    }
    agent.identity.keep(Role::Domain, &secret).map_err(|error| failed(&error))?;
    // Who has the key is the domain.
    set_role(agent, agent.key(), Some(authority::Role::Admin))
}
