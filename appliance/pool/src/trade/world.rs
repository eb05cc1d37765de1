//! What a domain's broker knows when it decides.

use super::{
    demand::{Demand, Holdings},
    policy::{Policy, Reclaim},
};

/// All that a decision about trade stands on.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// In seconds since 1970.
    pub now: u64,
    /// The domain's own.
    pub policy: &'a Policy,
    /// What machines it has.
    pub holdings: Holdings,
    /// What its work wants.
    pub demand: Demand,
    /// Own machines on which nothing runs.
    pub idle: u32,
    /// Borrowed machines on which nothing runs.
    pub borrowed_idle: u32,
    /// Its machines that others have and that were not called back.
    pub lent: &'a [Loan<'a>],
}

/// A machine that another domain has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loan<'a> {
    /// Its number at the lender's.
    pub machine: u32,
    /// Who has it.
    pub borrower: &'a str,
    /// When its lease ends, in seconds since 1970.
    pub until: Option<u64>,
    /// How it comes back.
    pub reclaim: Reclaim,
    /// What it does.
    pub work: Work,
}

/// What a lent machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    Idle,
    /// Part of a job.
    Busy {
        /// The job's number at the borrower's.
        job: u64,
        /// What would be lost if it were ended: seconds of work on all of its machines.
        done_s: u64,
        /// When it will have ended by what is known, in seconds from now.
        left_s: u64,
    },
}
