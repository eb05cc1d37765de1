//! How two books are found to differ, and what one sends the other.

use super::*;

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
        known: Option<(u64, u64)>,
        mut has_room: impl FnMut(&Key, usize) -> bool,
    ) -> bool {
        let has_beyond = log.by_seq.last().is_some_and(|last| last.record.seq > log.head);
        let (from, skipped) = match known {
            Some((head, mark)) if head > log.head || head == log.head && mark == log.mark => return true,
            Some((head, _)) if head < log.head => (head + 1, 0),
            // What differs is most often what came by itself.
            Some((head, _)) if has_beyond && !self.chance.is_multiple_of(WHOLE_EVERY) => (head + 1, 0),
            Some(_) if log.bytes > self.bytes_max => (0, self.chance as usize % log.records().max(1)),
            Some(_) | None => (0, 0),
        };
        let wanted = log.from(from);
        let (first, last) = wanted.split_at(skipped.min(wanted.len()));
        for entry in last.iter().chain(first) {
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
    /// How far this side knows each log.
    pub fn marks(&self) -> Vec<Mark> {
        let known = self.logs.iter().filter(|(_, log)| !log.is_over);
        known.map(|(writer, log)| Mark { writer: *writer, head: log.head, mark: log.mark }).collect()
    }

    /// Of all marks: equal books have equal digests.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for mark in self.marks() {
            hasher.update(&mark.writer.0).update(&mark.head.to_be_bytes()).update(&mark.mark.to_be_bytes());
        }
        Name(*hasher.finalize().as_bytes())
    }

    /// What a side with those marks lacks: each log in the order of its numbers, those first that others are judged by. At most about
    /// `bytes_max`; who lacks more asks again. Of a log that is to be sent whole, chance says where that begins, so that a long one is
    /// through in some rounds.
    pub fn above(&self, theirs: &[Mark], bytes_max: usize, chance: u64) -> Vec<Signed> {
        let theirs: BTreeMap<&Key, &Mark> = theirs.iter().map(|mark| (&mark.writer, mark)).collect();
        let mut behind: Vec<_> = self.logs.iter().filter(|(_, log)| !log.is_over).collect();
        behind.sort_by_key(|(writer, _)| self.rank(writer));
        let mut parcel = Parcel::new(bytes_max, chance);
        for (writer, log) in behind {
            let known = theirs.get(writer).map(|mark| (mark.head, mark.mark));
            if !parcel.add((writer, log), known, |_, _| true) {
                break;
            }
        }
        [parcel.in_turn, parcel.alone].concat()
    }

    /// Whether a side with those marks has something that this one lacks.
    pub fn is_behind(&self, theirs: &[Mark]) -> bool {
        theirs.iter().any(|mark| match self.logs.get(&mark.writer) {
            Some(log) => !log.is_over && (log.head < mark.head || log.head == mark.head && log.mark != mark.mark),
            None => true,
        })
    }

    fn rank(&self, writer: &Key) -> u8 {
        let helps = || self.about(Kind::HELPER, id_of_key(writer)).any(|record| record.body.is_some());
        match () {
            () if *writer == self.pool => 0,
            () if self.is_domain(writer) => 1,
            () if helps() => 2,
            () => 3,
        }
    }

    /// The records that are wanted, in the order of authority, at most `bytes_max` of them.
    pub fn select(&self, wanted: impl Fn(&RecordKey) -> bool, bytes_max: usize) -> Vec<Signed> {
        let mut bytes = 0;
        let fits = self.entries.values().filter(|entry| wanted(&entry.record.key)).enumerate().take_while(|(index, entry)| {
            bytes += entry.signed.bytes();
            *index == 0 || bytes <= bytes_max
        });
        fits.map(|(_, entry)| entry.signed.clone()).collect()
    }
}
