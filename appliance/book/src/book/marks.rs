//! How two books are found to differ, and what one sends the other.

use super::*;

/// What one side is sent at a time.
pub(super) struct Parcel {
    pub(super) records: Vec<Signed>,
    bytes: usize,
    bytes_max: usize,
    /// Where a log that is sent whole begins.
    chance: u64,
}

impl Parcel {
    pub(super) fn new(bytes_max: usize, chance: u64) -> Self {
        Self { records: vec![], bytes: 0, bytes_max, chance }
    }

    /// Adds what a side lacks of one log, which it knows as far as this; whether there is room left.
    pub(super) fn add(
        &mut self,
        book: &Book,
        (writer, log): (&Key, &Log),
        known: Option<(u64, u64)>,
        mut has_room: impl FnMut(&Key, usize) -> bool,
    ) -> bool {
        let (from, skipped) = match known {
            Some((head, mark)) if head > log.head || head == log.head && mark == log.mark => return true,
            Some((head, _)) if head < log.head => (head + 1, 0),
            Some(_) if log.bytes > self.bytes_max => (0, self.chance as usize % log.records().max(1)),
            Some(_) | None => (0, 0),
        };
        let wanted = || log.by_seq.range(first_of(from)..);
        for (_, kind, id) in wanted().skip(skipped).chain(wanted().take(skipped)) {
            let Some(signed) = book.signed(&RecordKey { kind: *kind, id: *id, writer: *writer }) else { continue };
            self.bytes += signed.len();
            if self.bytes > self.bytes_max && !self.records.is_empty() {
                return false;
            }
            if !has_room(writer, signed.len()) {
                return true;
            }
            self.records.push(signed.clone());
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
            if !parcel.add(self, (writer, log), known, |_, _| true) {
                break;
            }
        }
        parcel.records
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
            bytes += entry.signed.len();
            *index == 0 || bytes <= bytes_max
        });
        fits.map(|(_, entry)| entry.signed.clone()).collect()
    }
}
