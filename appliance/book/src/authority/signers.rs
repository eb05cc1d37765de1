//! Who may give a command: by the role that a domain gave to the signer, a user by a record of its own, root at a host by the host's
//! membership.

use super::{Command, Reach, Refused, Standing, standing};
use crate::{
    book::Book,
    key::{Id, Key, id_of_key},
    record::{Body, Kind, UserBody},
    role::Role,
    warrant::Signer,
};

/// What a domain lets a key do.
enum Given<'a> {
    /// Root at a host of it.
    Host { name: &'a str, role: Option<Role> },
    /// A user of it.
    User(&'a UserBody),
    /// It does not know the key.
    Nothing,
}

fn given<'a>(book: &'a Book, domain: &Key, key: &Key) -> Given<'a> {
    match book.membership(key) {
        // What was declared dead does nothing elsewhere; at its own socket it may look.
        Some((of, member)) if of == *domain => {
            let lives = member.dead.is_none() || book.own() == Some(*key);
            Given::Host { name: &member.name, role: member.role.filter(|_| lives) }
        }
        _ => book.user(domain, key).map_or(Given::Nothing, Given::User),
    }
}

/// What a signer may do in a domain now.
fn role_in(book: &Book, domain: &Key, signer: &Signer, now_s: u64) -> Option<Role> {
    let role = match given(book, domain, &signer.key()) {
        Given::Host { role, .. } => role?,
        Given::User(user) => Some(user.role).filter(|_| user.until.is_none_or(|until| now_s < until))?,
        Given::Nothing => return None,
    };
    Some(signer.at_most().map_or(role, |most| role.min(most)))
}

/// What a signer may do at the host `own`, at most; without a pool its root may everything.
pub fn role_of(book: Option<&Book>, own: Key, now_s: u64, signer: &Signer) -> Option<Role> {
    match book {
        Some(book) => role_in(book, &book.domain_of(&own)?, signer, now_s),
        None if signer.key() == own => Some(signer.at_most().unwrap_or(Role::Admin)),
        None => None,
    }
}

/// The domains in which a key is somebody: a host belongs to one, a user may be known to several.
pub fn domains_of(book: &Book, key: &Key) -> Vec<Key> {
    let known_to = book.about(Kind::USER, id_of_key(key)).filter_map(|record| match &record.body {
        Some(Body::User(body)) => book.user(&body.domain, key).map(|user| user.domain),
        _ => None,
    });
    book.membership(key).map(|(domain, _)| domain).into_iter().chain(known_to).collect()
}

/// How a signer is called: `anna`, `root@a2`. One of another domain with that domain's name before it.
pub fn called(book: Option<&Book>, signer: &Signer) -> String {
    let unknown = || format!("key {}", signer.key());
    let Some(book) = book else { return if signer.key() == signer.at() { "root".to_owned() } else { unknown() } };
    let own = book.own_domain();
    let domains = domains_of(book, &signer.key());
    let Some(domain) = domains.iter().find(|domain| Some(**domain) == own).or(domains.first()) else { return unknown() };
    let name = match given(book, domain, &signer.key()) {
        Given::Host { name, .. } => format!("root@{name}"),
        Given::User(user) => user.name.clone(),
        Given::Nothing => return unknown(),
    };
    if Some(*domain) == own { name } else { format!("{}/{name}", book.domain_name(domain)) }
}

pub(super) fn may(
    book: Option<&Book>,
    own: Key,
    now_s: u64,
    signer: &Signer,
    command: Command,
    about: Option<(Kind, Id)>,
) -> Result<(), Refused> {
    let is_here = signer.at() == own;
    if is_here && signer.key() == own && signer.at_most().is_none() && command.is_own() {
        return Ok(());
    }
    let needed = command.role();
    let Some(book) = book else {
        let role = role_of(None, own, now_s, signer);
        return if role >= Some(needed) { Ok(()) } else { Err(Refused::because(format!("to {command} needs the role {needed}"))) };
    };
    if !is_here {
        match standing(book, own, signer.at())? {
            Standing::Own(_) | Standing::Foreign(_) => {}
            Standing::Stranger | Standing::Claimed => {
                return Err(Refused::because("the command comes through a host that is no member of this host's pool"));
            }
        }
        if command.reach() == Reach::Here {
            return Err(Refused::because(format!("to {command} is asked of a host itself, not through another")));
        }
    }
    let own_domain = book.domain_of(&own);
    let elsewhere = match (command.reach(), about) {
        (Reach::Home, Some((Kind::VM, vm))) => book.thing(Kind::VM, vm).and_then(|thing| thing.domain).into_iter().collect(),
        (Reach::Job, _) => domains_of(book, &signer.key()),
        _ => vec![],
    };
    let best = own_domain.iter().chain(&elsewhere).filter_map(|domain| role_in(book, domain, signer, now_s)).max();
    if best >= Some(needed) {
        return Ok(());
    }
    Err(Refused::because(lacks(book, own_domain, now_s, signer, &command.to_string(), needed)))
}

/// Why a signer may not do what needs a role at the host `own`, and what gives it the role.
pub fn needs_role(book: Option<&Book>, own: Key, now_s: u64, signer: &Signer, what: &str, needed: Role) -> String {
    match book {
        Some(book) => lacks(book, book.domain_of(&own), now_s, signer, what, needed),
        None => format!("to {what} needs the role {needed}"),
    }
}

fn lacks(book: &Book, domain: Option<Key>, now_s: u64, signer: &Signer, what: &str, needed: Role) -> String {
    let needs = format!("to {what} needs the role {needed}");
    let Some(domain) = domain else { return needs };
    let (key, name) = (signer.key(), book.domain_name(&domain));
    let gives = |command: String| format!("`{command}`, where domain {name}'s key is, gives it");
    match (given(book, &domain, &key), signer.at_most()) {
        (Given::Host { role, .. }, Some(token)) if role >= Some(needed) => {
            format!("{needs}; this token has {token}: `rebec token create NAME --role {needed}` makes one that may")
        }
        (Given::Host { name: host, role }, _) => {
            let has = role.map_or_else(|| "none".to_owned(), |role| role.to_string());
            format!("{needs}; root@{host} has {has}: {}", gives(format!("rebec host set-role {host} {needed}")))
        }
        (Given::User(user), _) => {
            let add = format!("rebec user add {} --key {key} --role {needed}", user.name);
            match user.until {
                Some(until) if until <= now_s => format!("{needs}; the role of {} has ended: {}", user.name, gives(add)),
                _ => format!("{needs}; {} has {}: {}", user.name, user.role, gives(add)),
            }
        }
        (Given::Nothing, _) => {
            let add = format!("rebec user add NAME --key {key} --role {needed}");
            format!("{needs}; domain {name} gave none to {}: {}", called(Some(book), signer), gives(add))
        }
    }
}
