//! What one book sends another that lacks it.

use super::{scope::Sight, *};

/// Of logs that are equally far and yet differ, those with records beyond are sent whole once in so many times.
const WHOLE_EVERY: u64 = 4;

/// What one side is sent at a time.
pub(super) struct Parcel {
    /// Without a hole up to the last of each log.
    pub(super) in_turn: Vec<Signed>,
    /// What came here by itself, beyond a hole.
    pub(super) alone: Vec<Signed>,
    bytes: usize,
    bytes_max: usize,
    /// Where a log that is sent whole begins.
    chance: u64,
}

impl Parcel {
    pub(super) fn new(bytes_max: usize, chance: u64) -> Self {
        Self { in_turn: vec![], alone: vec![], bytes: 0, bytes_max, chance }
    }

    /// Adds what a side lacks of one log, which it knows as far as this; whether there is room left.
    pub(super) fn add(
        &mut self,
        (writer, log): (&Key, &Log),
        sight: Sight<'_>,
        known: Option<(u64, u64)>,
        mut has_room: impl FnMut(&Key, usize) -> bool,
    ) -> bool {
        let (own_head, own_mark) = sight.of(writer, log);
        let beyond = log.by_seq.iter().rev().take_while(|entry| entry.record.seq > log.head);
        let has_beyond = beyond.into_iter().any(|entry| sight.shows(entry));
        let (from, skipped) = match known {
            Some((head, mark)) if head > own_head || head == own_head && mark == own_mark => return true,
            Some((head, _)) if head < own_head => (head + 1, 0),
            // What differs is most often what came by itself.
            Some((head, _)) if has_beyond && !self.chance.is_multiple_of(WHOLE_EVERY) => (head + 1, 0),
            Some(_) if log.bytes > self.bytes_max => (0, self.chance as usize % log.records().max(1)),
            Some(_) | None => (0, 0),
        };
        let wanted = log.from(from);
        let (first, last) = wanted.split_at(skipped.min(wanted.len()));
        for entry in last.iter().chain(first).filter(|entry| sight.shows(entry)) {
            self.bytes += entry.signed.bytes();
            if self.bytes > self.bytes_max && self.in_turn.len() + self.alone.len() > 0 {
                return false;
            }
            if !has_room(writer, entry.signed.bytes()) {
                return true;
            }
            let is_in_turn = entry.record.seq <= log.head && skipped == 0;
            if is_in_turn { &mut self.in_turn } else { &mut self.alone }.push(entry.signed.clone());
        }
        true
    }
}

impl Book {
    /// The records that are wanted, in the order of authority, at most `bytes_max` of them.
    pub fn select(&self, wanted: impl Fn(&RecordKey) -> bool, bytes_max: usize) -> Vec<Signed> {
        let mut bytes = 0;
        let fits = self.entries.all().filter(|entry| wanted(&entry.record.key)).enumerate().take_while(|(index, entry)| {
            bytes += entry.signed.bytes();
            *index == 0 || bytes <= bytes_max
        });
        fits.map(|(_, entry)| entry.signed.clone()).collect()
    }
}
