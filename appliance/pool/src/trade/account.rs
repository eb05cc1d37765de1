//! What contracts come to, by contract and month: the same at both sides, because it is reckoned from what both have signed.

use rebec_book::{
    contract::{Contract, Side, State, What},
    key::{Id, Key},
};

/// Seconds of an hour.
const HOUR: u64 = 3600;

/// A contract in a month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Year and month, from 1.
    pub month: (u64, u64),
    /// The contract.
    pub contract: Id,
    /// What the domain was in it.
    pub side: Side,
    /// The other domain.
    pub other: Key,
    /// For how long the machine was bound.
    pub seconds: u64,
    /// What that costs, in thousandths.
    pub cost_milli: u64,
    /// Work that was lost, in seconds of the machine; in the month in which it ended.
    pub wasted_s: u64,
    /// Whether both have said that it has ended; none while it holds.
    pub settled: Option<bool>,
}

/// The lines of a domain's contracts, the oldest first.
pub fn lines<'a>(me: Key, contracts: impl IntoIterator<Item = (&'a Id, &'a Contract)>, now: u64) -> Vec<Line> {
    let mut lines = vec![];
    for (id, contract) in contracts {
        let (terms, standing) = (contract.terms(), contract.standing(now));
        let Some(side) = terms.side(&me).filter(|_| contract.is_signed()) else { continue };
        let ended = contract.ended_at(now);
        let said = |side| contract.word(side, What::Ended);
        let settled = (standing.state == State::Ended).then(|| said(Side::Lender).is_some() && said(Side::Borrower).is_some());
        // Who ended the work says what was lost.
        let wasted = said(Side::Lender).or(said(Side::Borrower)).map_or(0, |word| word.said.wasted_s);
        let end = ended.unwrap_or(now);
        let mut from = terms.from;
        while from < end {
            let month = month_of(from);
            let to = month_begins(next(month)).min(end);
            let seconds = to - from;
            // By the whole, so that parts add up to it.
            let cost = |until: u64| until.saturating_sub(terms.from).saturating_mul(terms.price_milli) / HOUR;
            let cost_milli = cost(to) - cost(from);
            let wasted_s = if to == end { wasted } else { 0 };
            lines.push(Line { month, contract: *id, side, other: terms.domain(side.other()), seconds, cost_milli, wasted_s, settled });
            from = to;
        }
    }
    lines.sort_by_key(|line| (line.month, line.contract));
    lines
}

/// The month of a time, in UTC (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
pub fn month_of(time: u64) -> (u64, u64) {
    let days = time / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + u64::from(month <= 2), month)
}

/// When a month begins, in seconds since 1970.
pub fn month_begins((year, month): (u64, u64)) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let day = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day;
    (days - 719_468) * 86_400
}

fn next((year, month): (u64, u64)) -> (u64, u64) {
    if month == 12 { (year + 1, 1) } else { (year, month + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_begin_where_they_begin() {
        for (time, month) in
            [(0, (1970, 1)), (951_868_799, (2000, 2)), (951_868_800, (2000, 3)), (1_796_083_199, (2026, 11)), (1_796_083_200, (2026, 12))]
        {
            assert_eq!(month_of(time), month, "{time}");
        }
        let mut month = (1970, 1);
        for _ in 0..2400 {
            let begins = month_begins(month);
            assert_eq!((month_of(begins), begins == 0 || month_of(begins - 1) != month), (month, true));
            month = next(month);
        }
    }
}
