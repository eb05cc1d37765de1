//! What hosts ask each other, and answer. On its way a message is its postcard.
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

use serde::{Deserialize, Serialize};

use super::limits::{BEATS_MAX, GROUPS_MAX, MARKS_MAX, OFFERS_MAX};
use crate::{
    book::{GroupMark, ShortMark, Tag},
    record::Signed,
};

/// Longest message: records, and what else may be with them.
pub const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Are our books equal, and who is there?
    Round {
        /// With which the digests are salted.
        salt: u64,
        /// Of each group what is in it.
        groups: Vec<GroupMark>,
        /// Of the asker's domain.
        beats: Beats,
        /// What it learnt lately.
        offers: Vec<Offer>,
    },
    /// What do I lack of a group?
    Marks(Marks),
    /// Do you know this yet?
    Offers(Vec<Offer>),
    /// Give me this.
    Wants(Vec<Offer>),
    /// Take this.
    Records(Parcel),
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The record that declares the asker dead.
    Dead(Signed),
    /// To a round.
    Round {
        /// Of groups that differ, some.
        marks: Vec<Marks>,
        /// Of the answerer's domain.
        beats: Beats,
        /// What it learnt lately.
        offers: Vec<Offer>,
        /// Which of the asker's offers it lacks.
        wants: Vec<Offer>,
    },
    /// To an offer: what of it is wanted.
    Wants(Vec<Offer>),
    /// To marks and wants.
    Records(Parcel),
    /// To records.
    Taken,
}

/// How far one side knows the logs of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Which.
    pub group: Tag,
    /// All its logs.
    pub marks: Vec<ShortMark>,
}

/// Some records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parcel {
    /// All that the receiver lacks of their logs up to the last of each, in the order of their numbers.
    pub in_turn: Vec<Signed>,
    /// Others.
    pub alone: Vec<Signed>,
}

/// Who was there lately, of the teller's domain: numbers that hosts raise each second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beats {
    /// The teller's own number: seconds, by a clock of its own.
    pub own: u64,
    /// Other hosts' numbers.
    pub others: Vec<Beat>,
}

/// One other host's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Which host.
    pub host: Tag,
    /// Its number, beside the teller's: most clocks are about the same.
    pub beside: i64,
    /// How long ago it said so, in tenths of a second: what is on its way for long does not make it look alive for longer.
    pub age: u8,
}

/// A record by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Offer {
    /// Who wrote it.
    pub writer: Tag,
    /// Its number.
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

/// A message that is none, or says more than one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bytes that are no message, or one beyond its limits")]
pub struct NoMessage;

impl Question {
    /// As it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
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
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Reads it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NoMessage> {
        let answer = read(bytes)?;
        let within = match &answer {
            Self::Round { marks, beats, offers, wants } => marks.iter().all(Marks::fits) && fits(&beats.others, offers) && fits(&[], wants),
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

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, NoMessage> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(NoMessage);
    }
    postcard::from_bytes(bytes).map_err(|_| NoMessage)
}
