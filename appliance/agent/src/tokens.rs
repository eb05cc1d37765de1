//! Tokens: what lets a client in over TCP. 256 random bits that are shown once; kept by their hash. They belong to this host alone
//! and go when it leaves its pool.

use anyhow::Result;
use rebec_api::{
    ApiError, ErrorCode,
    token::{CreatedToken, Token},
};
use rebec_book::key::{Digest, Name};
use serde::{Deserialize, Serialize};

use crate::{chance::random, store::Store};

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
}

fn hash(secret: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key("rebec api token v1", secret)
}

/// Makes one; only its hash stays.
pub fn create(store: &Store, name: &str, now_s: u64) -> Result<CreatedToken> {
    let secret = random::<32>();
    store.change_fact(FACT, |all: &mut Vec<Kept>| {
        if all.iter().any(|kept| kept.name == name) {
            return Err(conflict(format!("token `{name}` exists already; choose another name, or `rebec token rm {name}` first")).into());
        }
        if all.len() >= TOKENS_MAX {
            return Err(conflict(format!("there are {TOKENS_MAX} tokens, the limit; `rebec token rm` removes one")).into());
        }
        all.push(Kept { name: name.to_owned(), created: now_s, hash: Name(hash(&secret)) });
        Ok(())
    })?;
    Ok(CreatedToken { name: name.to_owned(), token: format!("{PREFIX}{}", Name(secret)) })
}

fn conflict(message: String) -> ApiError {
    ApiError::new(ErrorCode::Conflict, message)
}

/// All of them, without what they are.
pub fn list(store: &Store) -> Result<Vec<Token>> {
    let all: Vec<Kept> = store.fact(FACT)?.unwrap_or_default();
    Ok(all.into_iter().map(|kept| Token { name: kept.name, created: kept.created }).collect())
}

/// Lets its holder in no more.
pub fn remove(store: &Store, name: &str) -> Result<()> {
    store.change_fact(FACT, |all: &mut Vec<Kept>| {
        let place = all.iter().position(|kept| kept.name == name);
        all.remove(place.ok_or_else(|| ApiError::not_found("token", name, "rebec token ls"))?);
        Ok(())
    })
}

/// Whether this text is a token of this host.
pub fn is_known(store: &Store, text: &str) -> Result<bool> {
    let Some(Ok(secret)) = text.strip_prefix(PREFIX).map(str::parse::<Name<32>>) else { return Ok(false) };
    let shown = blake3::Hash::from_bytes(hash(&secret.0));
    let all: Vec<Kept> = store.fact(FACT)?.unwrap_or_default();
    // Hashes of blake3 are compared in constant time, and all of them are.
    Ok(all.iter().fold(false, |known, kept| known | (blake3::Hash::from_bytes(kept.hash.0) == shown)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let made = create(&store, "laptop", 7).unwrap();
        assert!(is_known(&store, &made.token).unwrap());
        let mut other = made.token.clone();
        let last = if other.ends_with('0') { "1" } else { "0" };
        other.replace_range(other.len() - 1.., last);
        for wrong in [other.as_str(), "", PREFIX, "laptop", &made.token[..made.token.len() - 2], &made.token[PREFIX.len()..]] {
            assert!(!is_known(&store, wrong).unwrap(), "{wrong}");
        }
        assert!(create(&store, "laptop", 8).unwrap_err().to_string().contains("exists already"));
        assert_eq!(list(&store).unwrap(), [Token { name: "laptop".into(), created: 7 }]);
        remove(&store, "laptop").unwrap();
        assert!(!is_known(&store, &made.token).unwrap());
        assert!(remove(&store, "laptop").unwrap_err().to_string().contains("does not exist"));
    }

    #[test]
    fn the_file_does_not_hold_the_token_and_their_number_has_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let made: Vec<_> = (0..TOKENS_MAX).map(|n| create(&store, &format!("t{n}"), 0).unwrap().token).collect();
        assert!(create(&store, "more", 0).unwrap_err().to_string().contains("the limit"));
        drop(store);
        let bytes = std::fs::read(folder.path().join("records.redb")).unwrap();
        let secret = &made[0].as_bytes()[PREFIX.len()..];
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
}
