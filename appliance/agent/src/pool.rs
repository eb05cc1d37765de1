//! Founding, inviting, joining, leaving. Both sides of a join are known by their keys from the mesh; the ticket's secret only
//! says that the joiner was invited.

pub mod replace;

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
    key::{Digest, public},
    record::{DomainBody, Kind, MemberBody, PoolBody, UserBody, id_of_key},
    view,
};
use rebec_host::failed;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    bulletin::Bulletin,
    chance::{now_s, random},
    identity::{Identity, Role},
    invitations,
    knowledge::Knowledge,
    mesh::Peer,
    names,
    orders::returns,
    peers::Peers,
    roles,
    store::Store,
    vm::Vms,
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

/// How this host stands with its pool, and what it needs to change that.
pub struct Membership {
    identity: Arc<Identity>,
    knowledge: Arc<Knowledge>,
    peers: Arc<Peers>,
    store: Arc<Store>,
    vms: Arc<Vms>,
    bulletin: Arc<Bulletin>,
    /// How far this host is with its pool.
    join: watch::Sender<Join>,
}

impl Membership {
    /// Of a host that has not said yet whether it belongs to a pool.
    pub fn new(
        identity: Arc<Identity>,
        knowledge: Arc<Knowledge>,
        peers: Arc<Peers>,
        store: Arc<Store>,
        vms: Arc<Vms>,
        bulletin: Arc<Bulletin>,
    ) -> Self {
        Self { identity, knowledge, peers, store, vms, bulletin, join: watch::Sender::new(Join::Alone) }
    }

    /// How far this host is with its pool.
    pub fn watch(&self) -> watch::Receiver<Join> {
        self.join.subscribe()
    }

    fn forget_pool(&self) -> Result<()> {
        self.knowledge.forget()?;
        self.peers.forget();
        self.identity.forget()?;
        self.join.send_replace(Join::Alone);
        Ok(())
    }
}

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
    /// Of a host whose state does not survive a reboot: which machine it says it is. That gives no right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    machine: Option<Digest>,
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
pub fn init(membership: &Membership, new: &InitPool) -> Result<(), ApiError> {
    names::check("pool", &new.name)?;
    names::check("domain", &new.domain)?;
    require_alone(membership)?;
    let found = || -> Result<()> {
        membership.identity.forget()?;
        let pool = membership.identity.make(Role::Pool)?;
        let domain = membership.identity.make(Role::Domain)?;
        let (pool, domain) = (pool.as_signing_key(), domain.as_signing_key());
        let (key, domain_key) = (public(pool), public(domain));
        let named = Body::Pool(PoolBody { name: new.name.clone() });
        let body = Body::Domain(DomainBody { name: new.domain.clone(), key: domain_key });
        let records = vec![
            Record::sign(Kind::POOL, id_of_key(&key), 1, Some(&named), pool)?,
            Record::sign(Kind::DOMAIN, id_of_key(&domain_key), 2, Some(&body), pool)?,
            first_member(membership, domain)?,
        ];
        membership.knowledge.enter(key, domain_key, records)
    };
    found().map_err(|error| failed(&error))?;
    membership.bulletin.publish();
    joined(membership);
    Ok(())
}

/// The first record of a domain's key: that its founder belongs to it, and that root there is its admin.
fn first_member(membership: &Membership, domain: &SigningKey) -> Result<Signed> {
    let member = MemberBody {
        host: membership.knowledge.key(),
        domain: public(domain),
        name: membership.knowledge.own_name(),
        dead: None,
        role: Some(authority::Role::Admin),
    };
    Ok(Record::sign(Kind::MEMBER, id_of_key(&membership.knowledge.key()), 1, Some(&Body::Member(member)), domain)?)
}

fn require_alone(membership: &Membership) -> Result<(), ApiError> {
    match membership.knowledge.read(|book| view::pool_name(book).unwrap_or("?").to_owned()) {
        Some(name) => {
            Err(ApiError::new(ErrorCode::Conflict, format!("this host belongs to pool {name} already; `rebec pool leave` first")))
        }
        None => Ok(()),
    }
}

/// Says on the screen that this host is a member.
pub fn joined(membership: &Membership) {
    let state = membership.knowledge.read(|book| {
        let domain = book.membership(&membership.knowledge.key()).map(|(domain, _)| domain);
        let domain = view::domains(book).into_iter().find(|one| Some(one.body.key) == domain).map(|one| one.name);
        Some(Join::Joined { pool: view::pool_name(book)?.to_owned(), domain: domain? })
    });
    membership.join.send_replace(state.flatten().unwrap_or(Join::Alone));
}

/// Issues a ticket for a host of the own domain, or for a host that founds a new one.
pub fn invite(membership: &Membership, invite: &Invite, founds: Option<String>) -> Result<Invited, ApiError> {
    let role = if founds.is_some() { Role::Pool } else { Role::Domain };
    if let Some(name) = &founds {
        names::check("domain", name)?;
        if membership.knowledge.pool(|book| !book.of_name(Kind::DOMAIN, name).is_empty())? {
            return Err(ApiError::new(ErrorCode::Conflict, format!("domain `{name}` exists already; choose another name")));
        }
    }
    let pool = membership.knowledge.pool(rebec_book::Book::pool)?;
    if membership.identity.get(role).map_err(|error| failed(&error))?.is_none() {
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
    let addresses = membership.bulletin.mesh_addresses();
    if addresses.is_empty() {
        return Err(ApiError::new(ErrorCode::Conflict, "this host has no address that others could reach; connect it to a network first"));
    }
    let (secret, expires) = (random::<16>(), now_s() + invite.valid_s);
    let kept = invitations::Kept::new(&secret, founds, expires, invite.uses).with_role(invite.role);
    let id = kept.id();
    invitations::add(&membership.store, kept, now_s()).map_err(|error| failed(&error))?;
    let ticket = Ticket { pool, issuer: membership.knowledge.key(), addresses, secret, expires };
    Ok(Invited { ticket: ticket.to_string(), id, expires, uses: invite.uses })
}

/// The issuer's side of a join.
pub fn admit(membership: &Membership, granted: Granted, question: &JoinQuestion) -> Result<JoinAnswer, ApiError> {
    let joiner = granted.host().ok_or_else(|| ApiError::new(ErrorCode::Forbidden, "hosts join, users do not"))?;
    names::check("host", &question.name)?;
    let issuer = membership.knowledge.pool(Book::own_domain)?;
    let known = membership.knowledge.pool(|book| {
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
        None => admit_new(membership, joiner, question)?,
    };
    let records = membership.knowledge.pool(|book| book.select(|key| key.kind <= Kind::HOST, RECORDS_BYTES_MAX))?;
    Ok(JoinAnswer { domain, records })
}

fn admit_new(membership: &Membership, joiner: Key, question: &JoinQuestion) -> Result<Key, ApiError> {
    let kept = invitations::redeem(&membership.store, &question.secret, now_s()).map_err(|error| failed(&error))?;
    let role = if kept.founds.is_some() { Role::Pool } else { Role::Domain };
    let secret = membership.identity.get(role).map_err(|error| failed(&error))?;
    let secret =
        secret.ok_or_else(|| ApiError::new(ErrorCode::Forbidden, "the issuer no longer holds the root key; ask for a new ticket"))?;
    let secret = secret.as_signing_key();
    let domain = match kept.founds {
        Some(name) => {
            let domain = question.domain_key;
            membership.knowledge.publish_as(
                Kind::DOMAIN,
                id_of_key(&domain),
                Some(Body::Domain(DomainBody { name, key: domain })),
                secret,
            )?;
            membership.knowledge.take_in(vec![question.member.clone()], Came::InTurn);
            membership.knowledge.tell(vec![question.member.clone()]);
            domain
        }
        None => {
            let domain = public(secret);
            let role = roles::meant_for_host(kept.role);
            let body = MemberBody { host: joiner, domain, name: question.name.clone(), dead: None, role };
            membership.knowledge.publish_as(Kind::MEMBER, id_of_key(&joiner), Some(Body::Member(body)), secret)?;
            if let Some(machine) = question.machine {
                replace::bind(membership, machine, &question.name, joiner).map_err(|error| failed(&error))?;
            }
            domain
        }
    };
    log::info!("host {} ({}) was admitted", question.name, joiner.short());
    Ok(domain)
}

/// The joiner's side: once, with the reason of a refusal.
pub async fn join(membership: &Membership, text: &str) -> Result<(), ApiError> {
    let ticket: Ticket =
        text.parse().map_err(|error: rebec_book::ticket::BadTicket| ApiError::new(ErrorCode::BadRequest, error.to_string()))?;
    require_alone(membership)?;
    let issuer = Peer { key: ticket.issuer, name: ticket.issuer.short(), addresses: ticket.addresses.clone() };
    membership.join.send_replace(Join::Joining { what: format!("asking host {}", issuer.name) });
    let outcome = attempt(membership, &ticket, &issuer).await;
    if let Err(error) = &outcome {
        membership.join.send_replace(Join::Refused { reason: error.to_string() });
    }
    outcome
}

async fn attempt(membership: &Membership, ticket: &Ticket, issuer: &Peer) -> Result<(), ApiError> {
    // One of an attempt whose answer was lost counts, if the ticket founds a domain.
    let domain = match membership.identity.get(Role::Domain).map_err(|error| failed(&error))? {
        Some(domain) => domain,
        None => membership.identity.make(Role::Domain).map_err(|error| failed(&error))?,
    };
    let domain = domain.as_signing_key();
    let member = first_member(membership, domain).map_err(|error| failed(&error))?;
    let (name, domain_key) = (membership.knowledge.own_name(), public(domain));
    let machine = if membership.bulletin.is_durable() { None } else { replace::machine() };
    let question = JoinQuestion { secret: ticket.secret, name, domain_key, member, machine };
    let answer: JoinAnswer =
        membership.peers.mesh.ask(issuer, "/internal/join", &question).await.map_err(|error| hint_clock(error, ticket))?;
    if answer.domain != public(domain) {
        membership.identity.forget().map_err(|error| failed(&error))?;
    }
    let entered = membership.knowledge.enter(ticket.pool, answer.domain, answer.records);
    entered.map_err(|error| failed(&error))?;
    membership.peers.heard(issuer.key);
    membership.bulletin.publish();
    joined(membership);
    membership.peers.catch_up(issuer.key).await;
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
pub async fn join_unattended(membership: Arc<Membership>, text: String) {
    let began = tokio::time::Instant::now();
    loop {
        if membership.knowledge.read(|_| ()).is_some() {
            return;
        }
        match join(&membership, &text).await {
            Ok(()) => return,
            Err(error) if error.code == ErrorCode::Unreachable => {
                let waits = Join::Joining { what: format!("{}; trying again", error.message) };
                let shown = if began.elapsed() > JOIN_PATIENCE { Join::Refused { reason: error.message } } else { waits };
                membership.join.send_replace(shown);
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
pub async fn leave(membership: &Membership) -> Result<(), ApiError> {
    membership.knowledge.pool(|_| ())?;
    let conflict = |message: String| Err(ApiError::new(ErrorCode::Conflict, message));
    if let Some(vm) = membership.vms.all().first() {
        return conflict(format!("VM {} is on this host; move it away or remove it first", vm.name()));
    }
    let own = membership.knowledge.key();
    let kept = membership.knowledge.pool(|book| view::vms(book).into_iter().find(|vm| vm.body.keeper == Some(own)).map(|vm| vm.name))?;
    if let Some(name) = kept {
        return conflict(format!("this host is the keeper of VM {name}; remove that VM first"));
    }
    let home = membership.knowledge.pool(|book| view::vms(book).into_iter().find(|vm| vm.home == own).map(|vm| vm.name))?;
    if let Some(name) = home {
        return conflict(format!("VM {name} is at home on this host; remove it first"));
    }
    if let Some(what) = lost_with(membership)? {
        return conflict(format!("this host holds the only root key of {what}; copy it first with `rebec domain key export FILE`"));
    }
    let marks = membership.knowledge.pool(|book| returns::all_of(book, own))?;
    membership.store.mark(&marks).map_err(|error| failed(&error))?;
    // Those of other domains refuse, those without the domain's key answer that they cannot; the others do. All are asked at once: one that is
    // silent holds nobody up.
    let domain = membership.knowledge.pool(Book::own_domain)?;
    let is_fellow = |peer: &Peer| membership.knowledge.read(|book| book.domain_of(&peer.key)) == Some(domain);
    let asked = membership.knowledge.peers().into_iter().filter(|peer| membership.peers.answers(&peer.key) && is_fellow(peer));
    let asked = asked.map(|peer| async move {
        let answer = membership.peers.mesh.ask::<_, ()>(&peer, "/internal/leave", &serde_json::json!({})).await;
        answer.is_ok()
    });
    let mut answers = stream::iter(asked).buffer_unordered(ASKED_MAX);
    while answers.next().await == Some(false) {}
    drop(answers);
    membership.forget_pool().map_err(|error| failed(&error))
}

/// What nobody could let a host into any more, if this host's keys went: they were never exported, and others belong to it.
fn lost_with(membership: &Membership) -> Result<Option<String>, ApiError> {
    if membership.store.fact::<bool>(EXPORTED).map_err(|error| failed(&error))?.unwrap_or(false) {
        return Ok(None);
    }
    let holds = |role| membership.identity.get(role).map(|key| key.is_some()).map_err(|error| failed(&error));
    let (domain, pool) = (holds(Role::Domain)?, holds(Role::Pool)?);
    membership.knowledge.pool(|book| {
        let own = book.own_domain();
        let others = |of_domain: bool| {
            let hosts = view::hosts(book);
            hosts.iter().any(|host| {
                host.key != membership.knowledge.key() && host.member.dead.is_none() && (!of_domain || Some(host.domain) == own)
            })
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
pub fn dismiss(membership: &Membership, granted: Granted) -> Result<(), ApiError> {
    let host = granted.host().ok_or_else(|| ApiError::new(ErrorCode::Forbidden, "hosts leave, users do not"))?;
    let secret = domain_secret(membership)?;
    membership.knowledge.publish_as(Kind::MEMBER, id_of_key(&host), None, secret.as_signing_key())
}

/// An operator says that a host does not run and will not.
pub fn declare_dead(membership: &Membership, host: Key, reason: &str) -> Result<(), ApiError> {
    if host == membership.knowledge.key() {
        return Err(ApiError::new(ErrorCode::BadRequest, "this host is the one that answers; it is not dead"));
    }
    if membership.peers.answers(&host) {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("host {} answers; only a host that is silent can be declared dead", membership.knowledge.name_of(&host)),
        ));
    }
    say_anew(membership, host, |member| MemberBody { dead: Some(format!("{reason} (at {})", now_s())), ..member })
}

/// Gives root at a host another role in the domain, or none.
pub fn set_role(membership: &Membership, host: Key, role: Option<authority::Role>) -> Result<(), ApiError> {
    if host == membership.knowledge.key() && role != Some(authority::Role::Admin) {
        let message = "root at this host has the domain's root key, and can be no less than admin";
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    say_anew(membership, host, |member| MemberBody { role, ..member })
}

/// Changes what the domain says of a host of its own.
fn say_anew(membership: &Membership, host: Key, change: impl FnOnce(MemberBody) -> MemberBody) -> Result<(), ApiError> {
    let secret = domain_secret(membership)?;
    let known = membership.knowledge.pool(|book| book.membership(&host).map(|(domain, member)| (domain, member.clone())))?;
    let (domain, member) = known.ok_or_else(|| ApiError::new(ErrorCode::NotFound, "no such host"))?;
    if domain != public(secret.as_signing_key()) {
        return Err(ApiError::new(ErrorCode::Forbidden, "the host belongs to another domain; that is for its administrator to say"));
    }
    membership.knowledge.publish_as(Kind::MEMBER, id_of_key(&host), Some(Body::Member(change(member))), secret.as_signing_key())
}

/// Gives a key a role in the own domain.
pub fn set_user(membership: &Membership, key: Key, name: &str, role: authority::Role, until: Option<u64>) -> Result<UserBody, ApiError> {
    let secret = domain_secret(membership)?;
    let domain = public(secret.as_signing_key());
    let user = UserBody { key, domain, name: name.to_owned(), role, until };
    membership.knowledge.publish_as(Kind::USER, id_of_key(&key), Some(Body::User(user.clone())), secret.as_signing_key())?;
    Ok(user)
}

/// Takes it back.
pub fn remove_user(membership: &Membership, key: Key) -> Result<(), ApiError> {
    membership.knowledge.publish_as(Kind::USER, id_of_key(&key), None, domain_secret(membership)?.as_signing_key())
}

fn domain_secret(membership: &Membership) -> Result<iroh::SecretKey, ApiError> {
    let secret = membership.identity.get(Role::Domain).map_err(|error| failed(&error))?;
    secret.ok_or_else(|| {
        ApiError::new(ErrorCode::Forbidden, "this host does not hold the domain's root key; ask on the host that founded the domain")
    })
}

/// Makes room for the domain's root key outside this host: who has its bytes can be the domain.
pub fn export_key(membership: &Membership) -> Result<[u8; 32], ApiError> {
    let secret = domain_secret(membership)?;
    membership.store.set_fact(EXPORTED, &true).map_err(|error| failed(&error))?;
    Ok(secret.to_bytes())
}

/// Takes a copy of the domain's root key: from here on this host can let others in, and its root is the domain's admin.
pub fn import_key(membership: &Membership, bytes: &[u8; 32]) -> Result<(), ApiError> {
    let secret = iroh::SecretKey::from_bytes(bytes);
    let own = membership.knowledge.pool(Book::own_domain)?;
    if own != Some(public(secret.as_signing_key())) {
        return Err(ApiError::new(ErrorCode::Conflict, "the key is another domain's than this host's"));
    }
    membership.identity.keep(Role::Domain, &secret).map_err(|error| failed(&error))?;
    // Who has the key is the domain.
    set_role(membership, membership.knowledge.key(), Some(authority::Role::Admin))
}
