//! How two books are found to differ, and what one sends the other.

use super::*;

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
        let (mut lacking, mut bytes) = (vec![], 0);
        for (writer, log) in behind {
            let (from, skipped) = match theirs.get(writer) {
                Some(mark) if mark.head > log.head || mark.head == log.head && mark.mark == log.mark => continue,
                Some(mark) if mark.head < log.head => (mark.head + 1, 0),
                Some(_) if log.bytes > bytes_max => (0, chance as usize % log.records.max(1)),
                Some(_) | None => (0, 0),
            };
            let wanted = || log.by_seq.range(first_of(from)..);
            for (_, kind, id) in wanted().skip(skipped).chain(wanted().take(skipped)) {
                let Some(entry) = self.entries.get(&RecordKey { kind: *kind, id: *id, writer: *writer }) else { continue };
                bytes += entry.signed.len();
                if bytes > bytes_max && !lacking.is_empty() {
                    return lacking;
                }
                lacking.push(entry.signed.clone());
            }
        }
        lacking
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
