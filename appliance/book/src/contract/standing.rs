//! What a contract is worth at a time, by what both sides signed and nothing else.
//!
//! ```text
//! offered ──lender signs──► signed ──from──► active ──recall──► recalled ──deadline, the machine is empty──► ended
//!    └─ answer_by: lapsed                      └─ until; the borrower gives back ─────────────────────────────►┘
//! ```
//! A lender that says that it has ended before that is due has called it back, and no more: the notice that it signed holds. Each state has
//! who must act, until when, and a sentence.

use super::{Contract, Reclaim, Side, Word, words::What};

/// Two clocks may differ by so much before a contract that begins now is one of the future.
pub const CLOCK_SLACK_S: u64 = 300;

/// Where a contract is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// One side has signed it.
    Offered,
    /// Nobody signed it in time.
    Lapsed,
    /// Both have; it begins later.
    Signed,
    /// It holds.
    Active,
    /// It holds for what is there, which has to go.
    Recalled,
    /// It is over.
    Ended,
}

impl State {
    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Lapsed => "lapsed",
            Self::Signed => "signed",
            Self::Active => "active",
            Self::Recalled => "recalled",
            Self::Ended => "ended",
        }
    }

    /// Whether the machine is bound by it.
    pub fn binds(self) -> bool {
        matches!(self, Self::Signed | Self::Active | Self::Recalled)
    }
}

/// A state, who must act, until when, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Where it is in its life.
    pub state: State,
    /// Who must act next; nobody once it is settled.
    pub owner: Option<Side>,
    /// Until when.
    pub deadline: Option<u64>,
    /// In words.
    pub why: String,
}

impl Contract {
    /// What it is worth now.
    pub fn standing(&self, now: u64) -> Standing {
        let terms = self.terms();
        let of = |state, owner, deadline, why: String| Standing { state, owner, deadline, why };
        if !self.is_signed() {
            let missing = if self.is_signed_by(Side::Borrower) { Side::Lender } else { Side::Borrower };
            if now >= terms.answer_by {
                return of(State::Lapsed, None, None, format!("the {missing} did not sign it in time"));
            }
            return of(State::Offered, Some(missing), Some(terms.answer_by), format!("the {missing} has not signed it"));
        }
        let due = self.due();
        if let Some(word) = self.word(Side::Borrower, What::Ended) {
            return of(State::Ended, self.unsettled(), None, format!("the borrower gave the machine back: {}", word.said.why));
        }
        if let Some(due) = due.filter(|due| now >= *due) {
            let why = match self.word(Side::Lender, What::Ended).filter(|word| word.said.at >= due) {
                Some(word) => word.said.why.clone(),
                None if terms.until == Some(due) => "its lease has ended".into(),
                None => "the notice of its recall has ended".into(),
            };
            return of(State::Ended, self.unsettled(), None, why);
        }
        if let Some(recall) = self.recall() {
            return of(State::Recalled, Some(Side::Borrower), due, recall.said.why.clone());
        }
        if now.saturating_add(CLOCK_SLACK_S) < terms.from {
            return of(State::Signed, None, Some(terms.from), "it begins later".into());
        }
        of(State::Active, None, terms.until, "both signed it".into())
    }

    /// When it ends by what was signed and said so far, if nobody says more: the notice of a recall, or the lease.
    pub fn due(&self) -> Option<u64> {
        let terms = self.terms();
        let notice = self.recall().filter(|_| terms.reclaim != Reclaim::Wait);
        let notice = notice.map(|word| word.said.at.max(terms.from).saturating_add(terms.notice_s));
        [notice, terms.until].into_iter().flatten().min()
    }

    /// The lender's word that it wants the machine back; that it has ended before it is due is no more than that.
    pub fn recall(&self) -> Option<&Word> {
        let early = || self.word(Side::Lender, What::Ended).filter(|word| self.terms().until.is_none_or(|until| word.said.at < until));
        self.word(Side::Lender, What::Recalled).or_else(early)
    }

    /// What a side said.
    pub fn word(&self, by: Side, what: What) -> Option<&Word> {
        self.words().iter().find(|word| (word.by, word.said.what) == (by, what))
    }

    /// Who has not said what it came to.
    fn unsettled(&self) -> Option<Side> {
        [Side::Borrower, Side::Lender].into_iter().find(|side| self.word(*side, What::Ended).is_none())
    }

    /// When it ended, as both reckon it: when the borrower gave it back, at the latest when it was due. None while it holds.
    pub fn ended_at(&self, now: u64) -> Option<u64> {
        (self.standing(now).state == State::Ended).then(|| {
            let back = self.word(Side::Borrower, What::Ended).map(|word| word.said.at);
            let at = [back, self.due()].into_iter().flatten().min().unwrap_or(now);
            at.max(self.terms().from)
        })
    }
}
