//! Tokens: what lets a client in over TCP, in a role and until a time. 256 random bits that are shown once; kept by their hash. They
//! belong to this host alone and go when it leaves its pool. What their holders ask of other hosts this host signs for, with the token's
//! name and role, and never for more than it may itself.

use anyhow::Result;
use rebec_api::{
    ApiError, ErrorCode,
    token::{CreatedToken, NewToken, Role, Token},
};
use rebec_book::{
    authority,
    key::{Digest, Name},
};
use serde::{Deserialize, Serialize};

use crate::{chance::random, roles::meant, store::Store};

const FACT: &str = "tokens";
/// Tokens at a time: each request over TCP is compared with all of them.
const TOKENS_MAX: usize = 64;
/// What every token begins with, so that one that was copied by mistake is known for what it is.
pub const PREFIX: &str = "rebec-token-";

/// A token as this host keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    name: String,
    created: u64,
    hash: Digest,
    /// One of before there were roles lets its holder do everything, as it did.
    #[serde(default)]
    role: Role,
    #[serde(default)]
    expires: Option<u64>,
}

/// Who shows a text that should be a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Nobody whom this host knows.
    Unknown,
    /// Who held this token until it ended.
    Expired(String),
    /// Who holds this token, and what that lets them do.
    Of(String, authority::Role),
}

fn hash(secret: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key("rebec api token v1", secret)
}

/// Makes one; only its hash stays.
pub fn create(store: &Store, new: &NewToken, now_s: u64) -> Result<CreatedToken> {
    let (secret, name) = (random::<32>(), &new.name);
    let expires = new.valid_s.map(|valid_s| now_s.saturating_add(valid_s));
    store.change_fact(FACT, |all: &mut Vec<Kept>| {
        if all.iter().any(|kept| kept.name == *name) {
            return Err(conflict(format!("token `{name}` exists already; choose another name, or `rebec token rm {name}` first")).into());
        }
        if all.len() >= TOKENS_MAX {
            return Err(conflict(format!("there are {TOKENS_MAX} tokens, the limit; `rebec token rm` removes one")).into());
        }
        all.push(Kept { name: name.clone(), created: now_s, hash: Name(hash(&secret)), role: new.role, expires });
        Ok(())
    })?;
    Ok(CreatedToken { name: name.clone(), token: format!("{PREFIX}{}", Name(secret)) })
}

fn conflict(message: String) -> ApiError {
    ApiError::new(ErrorCode::Conflict, message)
}

/// All of them, without what they are.
pub fn list(store: &Store) -> Result<Vec<Token>> {
    let all: Vec<Kept> = store.fact(FACT)?.unwrap_or_default();
    let shown = |kept: Kept| Token { name: kept.name, created: kept.created, role: kept.role, expires: kept.expires };
    Ok(all.into_iter().map(shown).collect())
}

/// Lets its holder in no more.
pub fn remove(store: &Store, name: &str) -> Result<()> {
    store.change_fact(FACT, |all: &mut Vec<Kept>| {
        let place = all.iter().position(|kept| kept.name == name);
        all.remove(place.ok_or_else(|| ApiError::not_found("token", name, "rebec token ls"))?);
        Ok(())
    })
}

/// Who shows this text.
pub fn holder(store: &Store, text: &str, now_s: u64) -> Result<Holder> {
    let Some(Ok(secret)) = text.strip_prefix(PREFIX).map(str::parse::<Name<32>>) else { return Ok(Holder::Unknown) };
    let shown = blake3::Hash::from_bytes(hash(&secret.0));
    let all: Vec<Kept> = store.fact(FACT)?.unwrap_or_default();
    // Hashes of blake3 are compared in constant time, and all of them are.
    let is_shown = |kept: &Kept| blake3::Hash::from_bytes(kept.hash.0) == shown;
    let found = all.into_iter().fold(None, |found, kept| if is_shown(&kept) { Some(kept) } else { found });
    Ok(match found {
        None => Holder::Unknown,
        Some(kept) if kept.expires.is_some_and(|expires| expires <= now_s) => Holder::Expired(kept.name),
        Some(kept) => Holder::Of(kept.name, meant(kept.role)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str) -> NewToken {
        NewToken { name: name.into(), role: Role::Viewer, valid_s: None }
    }

    #[test]
    fn a_token_is_known_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let made = create(&store, &new("laptop"), 7).unwrap();
        let of_laptop = Holder::Of("laptop".into(), authority::Role::Viewer);
        assert_eq!(holder(&store, &made.token, 7).unwrap(), of_laptop);
        let mut other = made.token.clone();
        let last = if other.ends_with('0') { "1" } else { "0" };
        other.replace_range(other.len() - 1.., last);
        for wrong in [other.as_str(), "", PREFIX, "laptop", &made.token[..made.token.len() - 2], &made.token[PREFIX.len()..]] {
            assert_eq!(holder(&store, wrong, 7).unwrap(), Holder::Unknown, "{wrong}");
        }
        assert!(create(&store, &new("laptop"), 8).unwrap_err().to_string().contains("exists already"));
        assert_eq!(list(&store).unwrap(), [Token { name: "laptop".into(), created: 7, role: Role::Viewer, expires: None }]);
        assert_eq!(holder(&store, &made.token, u64::MAX).unwrap(), of_laptop);
        remove(&store, "laptop").unwrap();
        assert_eq!(holder(&store, &made.token, 7).unwrap(), Holder::Unknown);
        assert!(remove(&store, "laptop").unwrap_err().to_string().contains("does not exist"));
    }

    #[test]
    fn a_token_ends_at_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let made = create(&store, &NewToken { valid_s: Some(10), ..new("guest") }, 100).unwrap();
        assert_eq!(list(&store).unwrap()[0].expires, Some(110));
        assert_eq!(holder(&store, &made.token, 109).unwrap(), Holder::Of("guest".into(), authority::Role::Viewer));
        assert_eq!(holder(&store, &made.token, 110).unwrap(), Holder::Expired("guest".into()));
        create(&store, &NewToken { valid_s: Some(u64::MAX), ..new("long") }, 100).unwrap();
    }

    #[test]
    fn a_token_of_before_there_were_roles_may_do_what_it_could() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let secret = [5; 32];
        let kept = serde_json::json!([{ "name": "old", "created": 7, "hash": Name(hash(&secret)) }]);
        store.set_fact(FACT, &kept).unwrap();
        let text = format!("{PREFIX}{}", Name(secret));
        assert_eq!(holder(&store, &text, 8).unwrap(), Holder::Of("old".into(), authority::Role::Admin));
        let wish: NewToken = serde_json::from_str(r#"{"name":"old"}"#).unwrap();
        assert_eq!(wish, NewToken { name: "old".into(), role: Role::Admin, valid_s: None });
    }

    #[test]
    fn the_file_does_not_hold_the_token_and_their_number_has_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let made: Vec<_> = (0..TOKENS_MAX).map(|n| create(&store, &new(&format!("t{n}")), 0).unwrap().token).collect();
        assert!(create(&store, &new("more"), 0).unwrap_err().to_string().contains("the limit"));
        drop(store);
        let bytes = std::fs::read(folder.path().join("records.redb")).unwrap();
        let secret = &made[0].as_bytes()[PREFIX.len()..];
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
}
