//! What has come already: the nonces of warrants, for as long as these are good.

use std::collections::BTreeMap;

use super::{BadWarrant, LIFE_S, Proven, SKEW_S};
use crate::key::{Key, Nonce};

/// Warrants of one signer that are remembered: more than twenty a second.
const PER_SIGNER: usize = 16_384;
/// Of all: some megabytes.
const IN_ALL: usize = 131_072;
/// Between two looks at what need not be remembered any more.
const SWEEP_S: u64 = 30;

/// The nonces that came.
#[derive(Debug, Default)]
pub struct Replays {
    kept: BTreeMap<Key, BTreeMap<Nonce, u64>>,
    count: usize,
    swept: u64,
}

impl Replays {
    /// Lets a warrant through that has not come before. `up_s` says for how long this has been looked at: what is older might have come
    /// before.
    ///
    /// # Errors
    /// Where it has, or nobody would know.
    pub fn once(&mut self, proven: &Proven, now_s: u64, up_s: u64) -> Result<(), BadWarrant> {
        if proven.is_of_asked() {
            return Ok(());
        }
        let warrant = proven.warrant();
        let made = warrant.until.saturating_sub(LIFE_S);
        // A second is the step of both clocks.
        if now_s.saturating_sub(made) > up_s + 1 {
            return Err(BadWarrant::Before);
        }
        if self.kept.get(&warrant.signer).is_some_and(|kept| kept.contains_key(&warrant.nonce)) {
            return Err(BadWarrant::Again);
        }
        if now_s.abs_diff(self.swept) >= SWEEP_S {
            self.sweep(now_s);
        }
        let of_signer = self.kept.get(&warrant.signer).map_or(0, BTreeMap::len);
        if of_signer >= PER_SIGNER || self.count >= IN_ALL {
            return Err(BadWarrant::TooMany(warrant.signer));
        }
        self.kept.entry(warrant.signer).or_default().insert(warrant.nonce, warrant.until);
        self.count += 1;
        Ok(())
    }

    fn sweep(&mut self, now_s: u64) {
        self.swept = now_s;
        for kept in self.kept.values_mut() {
            kept.retain(|_, until| now_s <= until.saturating_add(SKEW_S));
        }
        self.kept.retain(|_, kept| !kept.is_empty());
        self.count = self.kept.values().map(BTreeMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::{
        key::{Name, public},
        warrant::Warrant,
    };

    fn proven(signer: u8, nonce: u128, until: u64) -> Proven {
        let secret = SigningKey::from_bytes(&[signer; 32]);
        let (method, path) = ("GET".to_owned(), "/v1/vms".to_owned());
        let nonce = Name(nonce.to_be_bytes());
        let warrant = Warrant { signer: public(&secret), at: Name([9; 32]), method, path, body: None, until, nonce, token: None };
        Proven(warrant)
    }

    #[test]
    fn a_warrant_is_good_once_also_at_the_last_moment() {
        let mut replays = Replays::default();
        let first = proven(1, 1, 1_000);
        assert_eq!(replays.once(&first, 950, 900), Ok(()));
        // As long as it is good it is remembered.
        for now in [950, 1_000, 1_299, 1_300] {
            assert_eq!(replays.once(&first, now, 1_000), Err(BadWarrant::Again), "{now}");
        }
        assert_eq!(replays.once(&proven(1, 2, 1_000), 950, 900), Ok(()));
        assert_eq!(replays.once(&proven(2, 1, 1_000), 950, 900), Ok(()));
        // And afterwards it is not.
        assert_eq!(replays.once(&proven(1, 3, 1_400), 1_345, 1_000), Ok(()));
        assert_eq!(replays.count, 1);
    }

    #[test]
    fn what_was_given_before_the_start_is_not_known_to_be_new() {
        let mut replays = Replays::default();
        assert_eq!(replays.once(&proven(1, 1, 1_060), 1_005, 3), Err(BadWarrant::Before));
        assert_eq!(replays.once(&proven(1, 1, 1_060), 1_001, 1), Ok(()));
    }

    #[test]
    fn one_signer_does_not_fill_the_memory() {
        let mut replays = Replays::default();
        for nonce in 0..PER_SIGNER as u128 {
            assert_eq!(replays.once(&proven(1, nonce, 1_000), 950, 900), Ok(()));
        }
        assert_eq!(replays.once(&proven(1, u128::MAX, 1_000), 950, 900), Err(BadWarrant::TooMany(proven(1, 0, 0).warrant().signer)));
        assert_eq!(replays.once(&proven(2, 1, 1_000), 950, 900), Ok(()));
        assert_eq!(replays.once(&proven(1, u128::MAX, 1_400), 1_345, 1_300), Ok(()));
    }
}
