//! Open invitations: kept by the hash of their secret, used up one by one, revocable. The check of a joiner is here.

use anyhow::Result;
use rebec_api::{ApiError, ErrorCode, host::HostRole, pool::Invitation};
use rebec_book::{Ticket, key::Digest};
use serde::{Deserialize, Serialize};

use crate::store::Store;

const FACT: &str = "invitations";
/// Invitations that may be open at once.
const OPEN_MAX: usize = 256;
/// How long an invitation that has ended is remembered, so that its ticket is refused with the right word.
const REMEMBERED_S: u64 = 30 * 86_400;

/// An invitation as its issuer keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    hash: Digest,
    /// The domain that the joiner founds; none for a host of the issuer's own.
    pub founds: Option<String>,
    expires: u64,
    uses_left: u32,
    revoked: bool,
    /// What root at a host that joins may do in the domain.
    #[serde(default)]
    pub role: HostRole,
}

impl Kept {
    /// A new one for this secret.
    pub fn new(secret: &[u8; 16], founds: Option<String>, expires: u64, uses: u32) -> Self {
        Self { hash: Ticket::hash(secret), founds, expires, uses_left: uses, revoked: false, role: HostRole::default() }
    }

    /// The same for hosts whose root is to have another role than most.
    pub fn with_role(self, role: HostRole) -> Self {
        Self { role, ..self }
    }

    /// Its name.
    pub fn id(&self) -> String {
        self.hash.short()
    }

    fn is_open(&self, now_s: u64) -> bool {
        !self.revoked && self.uses_left > 0 && now_s < self.expires
    }

    fn shown(&self) -> Invitation {
        Invitation { id: self.id(), founds: self.founds.clone(), expires: self.expires, uses_left: self.uses_left }
    }
}

/// Adds one.
pub fn add(store: &Store, kept: Kept, now_s: u64) -> Result<()> {
    let mut all = all(store)?;
    all.retain(|kept| now_s < kept.expires.saturating_add(REMEMBERED_S));
    if all.iter().filter(|kept| kept.is_open(now_s)).count() >= OPEN_MAX {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("{OPEN_MAX} invitations are open; revoke one with `rebec invitation revoke`"),
        )
        .into());
    }
    all.push(kept);
    store.set_fact(FACT, &all)
}

/// Those that can be used.
pub fn open(store: &Store, now_s: u64) -> Result<Vec<Invitation>> {
    Ok(all(store)?.iter().filter(|kept| kept.is_open(now_s)).map(Kept::shown).collect())
}

/// Ends one before its time.
pub fn revoke(store: &Store, id: &str) -> Result<()> {
    let mut all = all(store)?;
    let found = all.iter_mut().find(|kept| kept.id() == id);
    found.ok_or_else(|| ApiError::not_found("invitation", id, "rebec invitation ls"))?.revoked = true;
    store.set_fact(FACT, &all)
}

/// Takes one use; says why it cannot.
pub fn redeem(store: &Store, secret: &[u8; 16], now_s: u64) -> Result<Kept> {
    let mut all = all(store)?;
    let hash = Ticket::hash(secret);
    let refuse = |why: &str| ApiError::new(ErrorCode::Forbidden, format!("the ticket {why}; ask for a new one with `rebec host invite`"));
    let kept = all.iter_mut().find(|kept| kept.hash == hash).ok_or_else(|| refuse("is not known to its issuer"))?;
    if kept.revoked {
        return Err(refuse("was revoked").into());
    }
    if now_s >= kept.expires {
        return Err(refuse("has expired").into());
    }
    if kept.uses_left == 0 {
        return Err(refuse("was used already").into());
    }
    kept.uses_left -= 1;
    let kept = kept.clone();
    store.set_fact(FACT, &all)?;
    Ok(kept)
}

fn all(store: &Store) -> Result<Vec<Kept>> {
    Ok(store.fact(FACT)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(store: &Store, secret: u8, now_s: u64) -> String {
        redeem(store, &[secret; 16], now_s).unwrap_err().to_string()
    }

    #[test]
    fn a_ticket_ends_by_use_by_time_and_by_word() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        add(&store, Kept::new(&[1; 16], None, 100, 2), 0).unwrap();
        add(&store, Kept::new(&[2; 16], Some("beta".into()), 100, 1), 0).unwrap();
        assert_eq!(open(&store, 50).unwrap().len(), 2);
        redeem(&store, &[1; 16], 50).unwrap();
        redeem(&store, &[1; 16], 50).unwrap();
        assert!(refused(&store, 1, 50).contains("used already"));
        assert!(refused(&store, 2, 100).contains("expired"));
        assert_eq!(redeem(&store, &[2; 16], 99).unwrap().founds.as_deref(), Some("beta"));
        assert!(refused(&store, 3, 50).contains("not known"));
        let kept = Kept::new(&[4; 16], None, 100, 1);
        let id = kept.id();
        add(&store, kept, 0).unwrap();
        revoke(&store, &id).unwrap();
        assert!(refused(&store, 4, 50).contains("revoked"));
        assert!(revoke(&store, "none").is_err());
    }

    #[test]
    fn the_file_does_not_hold_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let secret = *b"sixteen secret b";
        add(&store, Kept::new(&secret, None, 100, 1), 0).unwrap();
        drop(store);
        let bytes = std::fs::read(folder.path().join("records.redb")).unwrap();
        assert!(!bytes.windows(16).any(|window| window == secret));
    }

    #[test]
    fn a_second_agent_is_told_that_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let _first = Store::open(folder.path()).unwrap();
        let error = Store::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("another agent"), "{error}");
    }
}
