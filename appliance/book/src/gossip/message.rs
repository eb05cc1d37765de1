//! What hosts ask each other, and answer. On its way a message is CBOR, with a number for each
//! kind of message and each field, as in records: a later version adds at the end.
//!
//! ```text
//! Round{groups, beats, offers}   ->  Round{marks of groups that differ, beats, offers, wants}    every period, with few
//!    then  Records{wanted, what the marks lack}, Marks{own}, Wants{of what was offered}          where something differs
//! Offers                         ->  Wants                                                       news, at once
//! Records                        ->  Taken
//! Marks                          ->  Records
//! Wants                          ->  Records
//! anything by a dead host        ->  Dead
//! ```

use minicbor::{Decode, Encode};

use super::limits::{BEATS_MAX, GROUPS_MAX, MARKS_AT_ONCE, MARKS_MAX, OFFERS_MAX};
use crate::{
    book::{GroupMark, ShortMark, Tag},
    record::Signed,
};

/// Longest message: records, and what else may be with them.
pub const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Question {
    /// Are our books equal, and who is there?
    #[n(0)]
    Round {
        /// With which the digests are salted.
        #[n(0)]
        salt: u64,
        /// Of each group what is in it.
        #[n(1)]
        groups: Vec<GroupMark>,
        /// Of the asker's domain.
        #[n(2)]
        beats: Beats,
        /// What it learnt lately.
        #[n(3)]
        offers: Vec<Offer>,
    },
    /// What do I lack of a group?
    #[n(1)]
    Marks(#[n(0)] Marks),
    /// Do you know this yet?
    #[n(2)]
    Offers(#[n(0)] Vec<Offer>),
    /// Give me this.
    #[n(3)]
    Wants(#[n(0)] Vec<Offer>),
    /// Take this.
    #[n(4)]
    Records(#[n(0)] Parcel),
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// The record that declares the asker dead.
    #[n(0)]
    Dead(#[n(0)] Signed),
    /// To a round.
    #[n(1)]
    Round {
        /// Of groups that differ, some.
        #[n(0)]
        marks: Vec<Marks>,
        /// Of the answerer's domain.
        #[n(1)]
        beats: Beats,
        /// What it learnt lately.
        #[n(2)]
        offers: Vec<Offer>,
        /// Which of the asker's offers it lacks.
        #[n(3)]
        wants: Vec<Offer>,
    },
    /// To an offer: what of it is wanted.
    #[n(2)]
    Wants(#[n(0)] Vec<Offer>),
    /// To marks and wants.
    #[n(3)]
    Records(#[n(0)] Parcel),
    /// To records.
    #[n(4)]
    Taken,
}

/// How far one side knows the logs of a group.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Marks {
    /// Which.
    #[n(0)]
    pub group: Tag,
    /// All its logs.
    #[n(1)]
    pub marks: Vec<ShortMark>,
}

/// Some records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Parcel {
    /// All that the receiver lacks of their logs up to the last of each, in the order of their numbers.
    #[n(0)]
    pub in_turn: Vec<Signed>,
    /// Others.
    #[n(1)]
    pub alone: Vec<Signed>,
}

/// Who was there lately, of the teller's domain: numbers that hosts raise each second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Beats {
    /// The teller's own number: seconds, by a clock of its own.
    #[n(0)]
    pub own: u64,
    /// Other hosts' numbers.
    #[n(1)]
    pub others: Vec<Beat>,
    /// How the teller is.
    #[n(2)]
    pub vitals: Option<Vitals>,
}

/// One other host's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Beat {
    /// Which host.
    #[n(0)]
    pub host: Tag,
    /// Its number, beside the teller's: most clocks are about the same.
    #[n(1)]
    pub beside: i64,
    /// How long ago it said so, in tenths of a second: what is on its way for long does not make it look alive for longer.
    #[n(2)]
    pub age: u8,
    /// How it is, now and then, and where that is news.
    #[n(3)]
    pub vitals: Option<Vitals>,
}

/// How a host is, by its own word: old after seconds, and in no record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct Vitals {
    /// For how long it has been so, in seconds before the beat that this comes with: of two the later counts.
    #[n(0)]
    pub for_s: u32,
    /// Room taken of its disk, in MiB.
    #[n(1)]
    pub disk_used_mib: u32,
    /// Memory that VMs have there, in MiB.
    #[n(2)]
    pub memory_used_mib: u32,
    /// VMs there.
    #[n(3)]
    pub vms: u32,
}

/// A record by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Offer {
    /// Who wrote it.
    #[n(0)]
    pub writer: Tag,
    /// Its number.
    #[n(1)]
    pub seq: u64,
}

impl Parcel {
    /// Records by themselves.
    pub fn alone(records: Vec<Signed>) -> Self {
        Self { in_turn: vec![], alone: records }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.in_turn.is_empty() && self.alone.is_empty()
    }
}

impl Question {
    /// Whether an answer is one to this question.
    pub fn is_answered_by(&self, answer: &Answer) -> bool {
        matches!(
            (self, answer),
            (_, Answer::Dead(_))
                | (Self::Round { .. }, Answer::Round { .. })
                | (Self::Marks(_) | Self::Wants(_), Answer::Records(_))
                | (Self::Offers(_), Answer::Wants(_))
                | (Self::Records(_), Answer::Taken)
        )
    }
}

/// A message that is none, or says more than one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bytes that are no message, or one beyond its limits")]
pub struct NoMessage;

impl Question {
    /// As it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// Reads it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NoMessage> {
        let question = read(bytes)?;
        let within = match &question {
            Self::Round { groups, beats, offers, .. } => groups.len() <= GROUPS_MAX && fits(&beats.others, offers),
            Self::Marks(marks) => marks.fits(),
            Self::Offers(offers) | Self::Wants(offers) => fits(&[], offers),
            Self::Records(_) => true,
        };
        within.then_some(question).ok_or(NoMessage)
    }
}

impl Answer {
    /// As it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// Reads it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NoMessage> {
        let answer = read(bytes)?;
        let within = match &answer {
            Self::Round { marks, beats, offers, wants } => {
                let are_few = marks.len() <= MARKS_AT_ONCE && marks.iter().all(Marks::fits);
                are_few && fits(&beats.others, offers) && fits(&[], wants)
            }
            Self::Wants(wants) => fits(&[], wants),
            Self::Dead(_) | Self::Records(_) | Self::Taken => true,
        };
        within.then_some(answer).ok_or(NoMessage)
    }
}

impl Marks {
    fn fits(&self) -> bool {
        self.marks.len() <= MARKS_MAX
    }
}

fn fits(beats: &[Beat], offers: &[Offer]) -> bool {
    beats.len() <= BEATS_MAX && offers.len() <= OFFERS_MAX
}

fn read<'a, T: Decode<'a, ()>>(bytes: &'a [u8]) -> Result<T, NoMessage> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(NoMessage);
    }
    minicbor::decode(bytes).map_err(|_| NoMessage)
}
