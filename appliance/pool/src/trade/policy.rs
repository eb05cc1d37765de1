//! A domain's policy of lending and borrowing: values that cannot be wrong, each with the line of the file that it stands in (docs/formats/policy.md).

use std::fmt;

pub use rebec_book::contract::Reclaim;

use super::calendar::Calendar;

/// One rule: its name, its value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule<T> {
    /// As in the file, with its table: `lending.share`.
    pub name: &'static str,
    /// What it says.
    pub value: T,
    /// The line of the file, from 1; none if it was left out, and the default holds.
    pub line: Option<usize>,
}

impl<T> Rule<T> {
    /// A rule that no file states.
    pub fn unsaid(name: &'static str, value: T) -> Self {
        Self { name, value, line: None }
    }
}

impl<T: fmt::Display> fmt::Display for Rule<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {} = {}", self.name, self.value),
            None => write!(f, "default: {} = {}", self.name, self.value),
        }
    }
}

/// What a domain lends and borrows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// To others.
    pub lending: Lending,
    /// From others.
    pub borrowing: Borrowing,
}

/// What a domain lends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lending {
    /// Of the machines that its own work leaves idle, lent ones among them.
    pub share: Rule<Share>,
    /// Idle machines that are never lent.
    pub keep: Rule<u32>,
    /// To whom.
    pub to: Rule<Domains>,
    /// When, in UTC.
    pub when: Rule<Calendar>,
    /// How long at most.
    pub longest: Rule<Longest>,
    /// How it may take machines back, what it prefers first.
    pub reclaim: Rule<Modes>,
    /// What a machine costs for an hour.
    pub price: Rule<Price>,
    /// Between a recall and the end, at most.
    pub notice: Rule<Span>,
    /// Who accepts what it allows.
    pub accept: Rule<Accept>,
}

/// What a domain borrows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Borrowing {
    /// From whom.
    pub from: Rule<Domains>,
    /// Machines that must be lacking before it borrows.
    pub threshold: Rule<u32>,
    /// Fewer are not worth a contract.
    pub least: Rule<u32>,
    /// It never has more.
    pub most: Rule<u32>,
    /// The reclamation that its work survives, or that it accepts.
    pub survives: Rule<Modes>,
    /// It pays no more for a machine and an hour.
    pub price: Rule<Price>,
}

impl Default for Lending {
    fn default() -> Self {
        Self {
            share: Rule::unsaid("lending.share", Share(50)),
            keep: Rule::unsaid("lending.keep", 0),
            to: Rule::unsaid("lending.to", Domains::Anyone),
            when: Rule::unsaid("lending.when", Calendar::always()),
            longest: Rule::unsaid("lending.longest", Longest(None)),
            reclaim: Rule::unsaid("lending.reclaim", Modes(vec![Reclaim::Migrate, Reclaim::Wait])),
            price: Rule::unsaid("lending.price", Price(0)),
            notice: Rule::unsaid("lending.notice", Span(600)),
            accept: Rule::unsaid("lending.accept", Accept::Policy),
        }
    }
}

impl Default for Borrowing {
    fn default() -> Self {
        Self {
            from: Rule::unsaid("borrowing.from", Domains::Anyone),
            threshold: Rule::unsaid("borrowing.threshold", 1),
            least: Rule::unsaid("borrowing.least", 1),
            most: Rule::unsaid("borrowing.most", u32::MAX),
            survives: Rule::unsaid("borrowing.survives", Modes(vec![Reclaim::Migrate, Reclaim::Wait])),
            price: Rule::unsaid("borrowing.price", Price(u32::MAX)),
        }
    }
}

/// Per cent, 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(pub u8);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// Which domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Domains {
    /// All of the pool.
    Anyone,
    /// Those of these names; none, if there are none.
    Named(Vec<String>),
}

impl Domains {
    /// Whether a domain is among them.
    pub fn include(&self, domain: &str) -> bool {
        match self {
            Self::Anyone => true,
            Self::Named(names) => names.iter().any(|name| name == domain),
        }
    }
}

impl fmt::Display for Domains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::Named(names) if names.is_empty() => f.write_str("nobody"),
            Self::Named(names) => f.write_str(&names.join(", ")),
        }
    }
}

/// The longest lease; none is as long as the lender does not need the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Longest(pub Option<u64>);

impl fmt::Display for Longest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("until it is needed"),
            Some(seconds) if seconds % 3600 == 0 => write!(f, "{}h", seconds / 3600),
            Some(seconds) => write!(f, "{seconds}s"),
        }
    }
}

/// Ways of reclamation, the preferred first, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modes(pub Vec<Reclaim>);

impl Modes {
    /// The lender's first that the borrower has too.
    pub fn agree(&self, borrower: &Self) -> Option<Reclaim> {
        self.0.iter().copied().find(|mode| borrower.0.contains(mode))
    }
}

impl fmt::Display for Modes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.0.iter().map(|mode| mode.word()).collect();
        f.write_str(&words.join(", "))
    }
}

/// Thousandths of what domains reckon in, for a machine and an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price(pub u32);

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == u32::MAX { f.write_str("any") } else { write!(f, "{}", self.0) }
    }
}

/// A length of time, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds if seconds % 3600 == 0 => write!(f, "{}h", seconds / 3600),
            seconds if seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            seconds => write!(f, "{seconds}s"),
        }
    }
}

/// Who accepts a proposal that the policy allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// The broker, at once.
    Policy,
    /// An operator, by a command.
    Operator,
}

impl fmt::Display for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "policy",
            Self::Operator => "operator",
        })
    }
}
