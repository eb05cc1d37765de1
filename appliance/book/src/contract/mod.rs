//! Contracts: what two domains agreed about one machine of the one (docs/formats/contracts.md, ADR 38).
//!
//! ```text
//! terms = CBOR        id = hash of them: whoever changes a byte of them has another contract
//!   borrower's domain key signs them   a proposal, which binds nobody but its writer and lapses
//!   lender's domain key signs them     from here on it holds: nobody needs to be told for that
//! word  = "recalled", "ended": signed by the side that says it, over the id
//! ```
//! All of it proves itself: a record of a contract is worth the same whoever wrote it, and what several know of one contract is put together in
//! any order ([`Contract::with`]). What it is worth at a time is [`standing`], what it lets come to a machine is [`crate::contracts`].

pub mod standing;
#[cfg(test)]
mod tests;
mod words;

use ed25519_dalek::SigningKey;
use minicbor::{
    Decode, Decoder, Encode, Encoder,
    bytes::{ByteArray, ByteVec},
};

pub use self::{
    standing::{Standing, State},
    words::{Said, WHY_BYTES_MAX, What, Word},
};
use crate::key::{Id, Key, Name, Nonce, has_signed, public, sign};

/// What is signed begins with this.
const PURPOSE: &[u8] = b"rebec contract v1\0";
/// LANs and VMs that a contract names.
pub const NAMED_MAX: usize = 64;
/// Words about one contract: three of each side are more than it needs.
pub const WORDS_MAX: usize = 6;
/// Longest notice: a lender that waits longer has not got its machine back.
pub const NOTICE_S_MAX: u64 = 30 * 86_400;

/// A side of a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Whose the machine is.
    Lender,
    /// Who runs VMs on it.
    Borrower,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Lender => Self::Borrower,
            Self::Borrower => Self::Lender,
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lender => "lender",
            Self::Borrower => "borrower",
        })
    }
}

/// How a lent machine comes back while work is on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reclaim {
    /// The VM moves home or to a third place, and goes on.
    Migrate,
    /// The VM is ended, and what it did is lost.
    Kill,
    /// The machine comes back when the work on it has ended.
    Wait,
}

impl Reclaim {
    /// All of them, each at its number.
    pub const ALL: [Self; 3] = [Self::Migrate, Self::Kill, Self::Wait];

    /// As in policies.
    pub fn word(self) -> &'static str {
        match self {
            Self::Migrate => "migrate",
            Self::Kill => "kill",
            Self::Wait => "wait",
        }
    }
}

impl std::fmt::Display for Reclaim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

macro_rules! numbered {
    ($type:ty, $all:expr, $what:literal) => {
        impl<C> Encode<C> for $type {
            fn encode<W: minicbor::encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), minicbor::encode::Error<W::Error>> {
                let number = $all.iter().position(|one| one == self).unwrap_or_default();
                e.u64(number as u64)?.ok()
            }
        }

        impl<C> Decode<'_, C> for $type {
            fn decode(decoder: &mut Decoder<'_>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let number = usize::try_from(decoder.u64()?).unwrap_or(usize::MAX);
                $all.get(number).copied().ok_or_else(|| minicbor::decode::Error::message($what))
            }
        }
    };
}
pub(crate) use numbered;

numbered!(Side, [Side::Lender, Side::Borrower], "a side that no contract has");
numbered!(Reclaim, Reclaim::ALL, "a way of reclamation that this version does not know");

/// What is agreed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Terms {
    /// So that no two contracts are one.
    #[n(0)]
    pub nonce: Nonce,
    /// The domain whose the machine is, by its key.
    #[n(1)]
    pub lender: Key,
    /// The domain whose VMs run on it.
    #[n(2)]
    pub borrower: Key,
    /// The machine.
    #[n(3)]
    pub host: Key,
    /// Virtual processors that its VMs may have together.
    #[n(4)]
    pub vcpus: u32,
    /// Memory that they may have together.
    #[n(5)]
    pub memory_bytes: u64,
    /// Room on its disk that they may come to take together.
    #[n(6)]
    pub disk_bytes: u64,
    /// Thousandths of what the two reckon in, for an hour.
    #[n(7)]
    pub price_milli: u64,
    /// From when, in seconds since 1970.
    #[n(8)]
    pub from: u64,
    /// Until when; none until the lender calls it back.
    #[n(9)]
    pub until: Option<u64>,
    /// Between a recall and the end.
    #[n(10)]
    pub notice_s: u64,
    /// How it comes back.
    #[n(11)]
    pub reclaim: Reclaim,
    /// LANs that its VMs may be on; none named are all.
    #[n(12)]
    pub lans: Vec<Id>,
    /// VMs that may come; none named are all that are at home in the borrower's domain.
    #[n(13)]
    pub vms: Vec<Id>,
    /// A proposal that the other side has not signed by then is none any more.
    #[n(14)]
    pub answer_by: u64,
}

impl Terms {
    /// The domain of a side.
    pub fn domain(&self, side: Side) -> Key {
        match side {
            Side::Lender => self.lender,
            Side::Borrower => self.borrower,
        }
    }

    /// The side that a domain is.
    pub fn side(&self, domain: &Key) -> Option<Side> {
        [Side::Lender, Side::Borrower].into_iter().find(|side| self.domain(*side) == *domain)
    }

    fn is_sound(&self) -> bool {
        let times = self.until.is_none_or(|until| self.from < until) && self.notice_s <= NOTICE_S_MAX;
        self.lender != self.borrower && times && self.memory_bytes > 0 && self.vcpus > 0 && self.lans.len().max(self.vms.len()) <= NAMED_MAX
    }
}

/// A contract as far as somebody knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Contract {
    terms: Terms,
    /// As they were signed: a later version's say more.
    bytes: Vec<u8>,
    signatures: [Option<[u8; 64]>; 2],
    words: Vec<Word>,
}

#[derive(Encode, Decode)]
struct Written {
    #[n(0)]
    terms: ByteVec,
    #[n(1)]
    lender: Option<ByteArray<64>>,
    #[n(2)]
    borrower: Option<ByteArray<64>>,
    #[n(3)]
    words: Vec<Word>,
}

impl Contract {
    /// Of terms that nobody has signed.
    pub fn draft(terms: Terms) -> Self {
        let bytes = minicbor::to_vec(&terms).unwrap_or_default();
        Self { terms, bytes, signatures: [None; 2], words: vec![] }
    }

    /// What was agreed.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Its name: nothing else has these terms.
    pub fn id(&self) -> Id {
        let digest = blake3::derive_key("rebec contract id v1", &self.bytes);
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Name(id)
    }

    /// Signs for the side whose domain's key this is; of any other nothing comes.
    pub fn sign(&mut self, secret: &SigningKey) {
        if let Some(side) = self.terms.side(&public(secret)) {
            self.signatures[side as usize] = Some(sign(secret, &self.signed_bytes()));
        }
    }

    /// Whether a side has signed it.
    pub fn is_signed_by(&self, side: Side) -> bool {
        self.signatures[side as usize].is_some()
    }

    /// Whether both have.
    pub fn is_signed(&self) -> bool {
        self.is_signed_by(Side::Lender) && self.is_signed_by(Side::Borrower)
    }

    /// What was said of it since.
    pub fn words(&self) -> &[Word] {
        &self.words
    }

    /// Says something of it, for the side whose domain's key this is.
    pub fn say(&mut self, said: Said, secret: &SigningKey) {
        if let Some(side) = self.terms.side(&public(secret)) {
            let word = Word::sign(&self.id(), side, said, secret);
            self.hear(word);
        }
    }

    /// The first of each side's words of a kind stays: nobody can take back or put forward what it has said.
    fn hear(&mut self, word: Word) {
        let order = |word: &Word| (word.said.at, word.signature());
        match self.words.iter_mut().find(|known| (known.by, known.said.what) == (word.by, word.said.what)) {
            Some(known) if order(&word) < order(known) => *known = word,
            Some(_) => {}
            None => self.words.push(word),
        }
        self.words.sort_by_key(|word| (word.by, word.said.what));
    }

    /// This and what another knows of the same contract.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        if other.bytes == self.bytes {
            for (mine, theirs) in self.signatures.iter_mut().zip(other.signatures) {
                *mine = mine.or(theirs);
            }
            other.words.iter().for_each(|word| self.hear(word.clone()));
        }
        self
    }

    /// Whether it says what this does not, so that it is worth to be written.
    pub fn tells_more_than(&self, known: &Self) -> bool {
        known.clone().with(self) != *known
    }

    fn signed_bytes(&self) -> Vec<u8> {
        [PURPOSE, &self.bytes].concat()
    }

    /// Whether it is what it says: of this id, with right signatures, within limits.
    pub(crate) fn is_sound(&self, id: &Id) -> bool {
        let is_signed = |side: Side| {
            let signature = self.signatures[side as usize].as_ref();
            signature.is_none_or(|signature| has_signed(&self.terms.domain(side), &self.signed_bytes(), signature))
        };
        let words = self.words.len() <= WORDS_MAX && self.words.iter().all(|word| word.is_signed(id, &self.terms));
        self.id() == *id && self.terms.is_sound() && words && is_signed(Side::Lender) && is_signed(Side::Borrower)
    }

    /// The same of one that came by itself.
    pub fn is_proved(&self) -> bool {
        self.is_sound(&self.id())
    }
}

impl<C> Encode<C> for Contract {
    fn encode<W: minicbor::encode::Write>(&self, e: &mut Encoder<W>, context: &mut C) -> Result<(), minicbor::encode::Error<W::Error>> {
        let [lender, borrower] = self.signatures.map(|signature| signature.map(ByteArray::from));
        Written { terms: self.bytes.clone().into(), lender, borrower, words: self.words.clone() }.encode(e, context)
    }
}

impl<C> Decode<'_, C> for Contract {
    fn decode(decoder: &mut Decoder<'_>, context: &mut C) -> Result<Self, minicbor::decode::Error> {
        let Written { terms: bytes, lender, borrower, words } = Written::decode(decoder, context)?;
        let bytes: Vec<u8> = bytes.into();
        let terms = minicbor::decode(&bytes)?;
        let signatures = [lender, borrower].map(|signature| signature.map(Into::into));
        Ok(Self { terms, bytes, signatures, words })
    }
}
