//! Refusals that come in numbers: of each asker some are rows of their own, the rest is one row that counts them. Pure; time is an argument.
//!
//! Otherwise who is refused could write the log full, and with it push out what was decided before.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::row::{Entry, Who};

/// Refusals are counted over so long.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Refusals of one asker that are rows of their own.
pub const EACH_MAX: u32 = 4;
/// Refusals of all askers that are, and askers that are counted by themselves. With the counts that makes at most twice as many rows a
/// window, which fill a log of 64 MiB in more than a day.
pub const ALL_MAX: usize = 32;

/// What was refused in this window.
#[derive(Debug, Default)]
pub struct Flood {
    began: Option<Instant>,
    rows: usize,
    askers: HashMap<Who, Asked>,
    others: Option<Entry>,
}

#[derive(Debug, Default)]
struct Asked {
    rows: u32,
    surplus: Option<Entry>,
}

impl Flood {
    /// What becomes a row now: a refusal, or nothing where it is counted.
    pub fn judge(&mut self, refusal: Entry, now: Instant) -> Option<Entry> {
        self.began.get_or_insert(now);
        let is_known = self.askers.contains_key(&refusal.who);
        if !is_known && self.askers.len() >= ALL_MAX {
            count(&mut self.others, Entry { who: Who::default(), ..refusal });
            return None;
        }
        let asked = self.askers.entry(refusal.who.clone()).or_default();
        if asked.rows >= EACH_MAX || self.rows >= ALL_MAX {
            count(&mut asked.surplus, refusal);
            return None;
        }
        asked.rows += 1;
        self.rows += 1;
        Some(refusal)
    }

    /// The rows that count, once the window is over.
    pub fn over(&mut self, now: Instant) -> Vec<Entry> {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) < WINDOW) {
            return vec![];
        }
        let over = std::mem::take(self);
        over.askers.into_values().filter_map(|asked| asked.surplus).chain(over.others).collect()
    }
}

/// The last refusal stands for those before it.
fn count(surplus: &mut Option<Entry>, refusal: Entry) {
    let before = surplus.as_ref().and_then(|entry| entry.times).unwrap_or(0);
    *surplus = Some(Entry { times: Some(before + 1), ..refusal });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rebec_book::{
        authority::{Asker, Question},
        key::Name,
    };

    fn refusal(number: u32) -> Entry {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        Entry::new(Who::new(Asker::Host(Name(key)), None), &Question::Exchange, Some("no".into()))
    }

    #[test]
    fn a_flood_of_one_asker_is_counted() {
        let (mut flood, start) = (Flood::default(), Instant::now());
        let rows = (0..1000).filter_map(|_| flood.judge(refusal(1), start)).count();
        assert_eq!(rows, EACH_MAX as usize);
        assert_eq!(flood.judge(refusal(2), start), Some(refusal(2)), "others are heard meanwhile");
        assert_eq!(flood.over(start + WINDOW / 2), []);
        assert_eq!(flood.over(start + WINDOW), [Entry { times: Some(1000 - u64::from(EACH_MAX)), ..refusal(1) }]);
        assert_eq!(flood.over(start + WINDOW * 2), []);
        assert_eq!(flood.judge(refusal(1), start + WINDOW * 2), Some(refusal(1)));
    }

    #[test]
    fn a_flood_of_many_askers_is_bounded_and_none_is_lost_from_the_count() {
        let (mut flood, start) = (Flood::default(), Instant::now());
        let all = 100_000;
        let rows = (0..all).filter_map(|number| flood.judge(refusal(number), start)).count();
        assert!(rows <= ALL_MAX && flood.askers.len() <= ALL_MAX);
        let counted = flood.over(start + WINDOW);
        assert!(counted.len() <= ALL_MAX + 1);
        let times: u64 = counted.iter().filter_map(|entry| entry.times).sum();
        assert_eq!(rows as u64 + times, u64::from(all));
        assert_eq!(counted.last().unwrap().who, Who::default());
    }
}
