//! What a side says of a contract after it was signed: that it is called back, that it has ended, and what it came to.

use ed25519_dalek::SigningKey;
use minicbor::{Decode, Decoder, Encode, Encoder};

use super::{Side, Terms, numbered};
use crate::key::{Id, has_signed, sign};

const PURPOSE: &[u8] = b"rebec contract word v1\0";
/// Longest reason.
pub const WHY_BYTES_MAX: usize = 512;

/// A kind of word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// The lender wants the machine back.
    Recalled,
    /// It is over, and this is what it came to.
    Ended,
}

numbered!(What, [What::Recalled, What::Ended], "a word about a contract that this version does not know");

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Said {
    /// Which.
    #[n(0)]
    pub what: What,
    /// When, by the clock of who says it, in seconds since 1970.
    #[n(1)]
    pub at: u64,
    /// Why, with the line of the policy that made it.
    #[n(2)]
    pub why: String,
    /// Work that was lost, in seconds of the machine.
    #[n(3)]
    pub wasted_s: u64,
}

impl Said {
    /// Cut to what fits.
    pub fn new(what: What, at: u64, why: impl Into<String>, wasted_s: u64) -> Self {
        let mut why = why.into();
        why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
        Self { what, at, why, wasted_s }
    }
}

/// The same, by a side that signed it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Word {
    /// Whose.
    #[n(0)]
    pub by: Side,
    /// What.
    #[n(1)]
    pub said: Said,
    #[cbor(n(2), with = "minicbor::bytes")]
    signature: [u8; 64],
}

impl Word {
    pub(super) fn sign(contract: &Id, by: Side, said: Said, secret: &SigningKey) -> Self {
        let signature = sign(secret, &signed_bytes(contract, by, &said));
        Self { by, said, signature }
    }

    pub(super) fn signature(&self) -> [u8; 64] {
        self.signature
    }

    /// Whether its side signed it, and may say such a thing.
    pub(super) fn is_signed(&self, contract: &Id, terms: &Terms) -> bool {
        let may = self.by == Side::Lender || self.said.what != What::Recalled;
        let signed = || has_signed(&terms.domain(self.by), &signed_bytes(contract, self.by, &self.said), &self.signature);
        may && self.said.why.len() <= WHY_BYTES_MAX && signed()
    }
}

fn signed_bytes(contract: &Id, by: Side, said: &Said) -> Vec<u8> {
    let said = minicbor::to_vec((by, said)).unwrap_or_default();
    [PURPOSE, &contract.0, &said].concat()
}
