//! Logs in groups: those of a domain's hosts, and those of the pool's and the domains' keys. Two books first compare one digest for
//! each group, then the marks of a group that differs: of a thousand hosts that is some hundred bytes as long as nothing differs.
//!
//! ```text
//! digest of a group = XOR over its writers of BLAKE3(writer, head, mark)[..16]      kept with every change of a log
//! shown to others   = BLAKE3(salt, digest)[..8]                                     the salt is the asker's: nobody can look for twins
//! ```
//! Writers and groups go by their first 8 bytes: to find a key that begins like a given one takes 2^64 tries.

use minicbor::{Decode, Encode};

use super::{parcel::Parcel, scope::Sight, *};

/// The first bytes of a key.
pub type Tag = Name<8>;

/// The first bytes of this one.
pub fn tag_of(key: &Key) -> Tag {
    let mut tag = [0; 8];
    tag.copy_from_slice(&key.0[..8]);
    Name(tag)
}

/// What the logs of one group come to.
#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    digest: u128,
    /// Of what is everybody's.
    public: u128,
    writers: BTreeSet<Key>,
    pub(super) records: usize,
    pub(super) bytes: usize,
}

/// One group, as it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct GroupMark {
    /// The domain's key; of the keys' logs the pool's.
    #[n(0)]
    pub group: Tag,
    /// What is in its logs.
    #[n(1)]
    pub digest: Name<8>,
}

/// A mark, as it travels in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct ShortMark {
    /// Whose log.
    #[n(0)]
    pub writer: Tag,
    /// Its greatest number.
    #[n(1)]
    pub head: u64,
    /// What is in it.
    #[n(2)]
    pub mark: u64,
}

impl Book {
    /// Every group, salted, as it is compared with another host.
    pub fn groups(&self, salt: u64, lens: &Lens) -> Vec<GroupMark> {
        let shown = |digest: u128| {
            let mut bytes = [0; 24];
            bytes[..8].copy_from_slice(&salt.to_be_bytes());
            bytes[8..].copy_from_slice(&digest.to_be_bytes());
            let mut short = [0; 8];
            short.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..8]);
            Name(short)
        };
        let digest = |key: &Key, group: &Group| match lens.sight(self, key) {
            Sight::All => group.digest,
            Sight::Public => group.public,
            sight @ Sight::Shared(shared) => {
                let difference = || {
                    let logs = shared.writers().filter_map(|writer| self.logs.get_key_value(writer)).filter(|(_, log)| log.group == *key);
                    logs.fold(0, |difference, (writer, log)| {
                        difference ^ part_of(writer, log, (log.public_head, log.public_mark)) ^ part_of(writer, log, sight.of(writer, log))
                    })
                };
                group.public ^ self.known_difference(key, shared, difference)
            }
        };
        self.groups.iter().map(|(key, group)| GroupMark { group: tag_of(key), digest: shown(digest(key, group)) }).collect()
    }

    /// The marks of one group.
    pub fn marks_in(&self, group: Tag, lens: &Lens) -> Vec<ShortMark> {
        let marks = self.logs_in(group).map(|(writer, log)| {
            let (head, mark) = lens.sight(self, &log.group).of(writer, log);
            ShortMark { writer: tag_of(writer), head, mark }
        });
        // Of a log of which the other is shown nothing it knows as much as this side.
        marks.filter(|mark| (mark.head, mark.mark) != (0, 0)).collect()
    }

    /// What a side with those marks of a group lacks: all of it up to the last of each log, and what is beyond a hole; at most about
    /// `bytes_max`. Who lacks more asks again. Of a log that is to be sent whole, chance says where that begins, so that a long one is through
    /// in some rounds; of one for which there is no room the rest is left out.
    pub fn above_in(
        &self,
        group: Tag,
        theirs: &[ShortMark],
        lens: &Lens,
        bytes_max: usize,
        chance: u64,
        mut has_room: impl FnMut(&Key, usize) -> bool,
    ) -> (Vec<Signed>, Vec<Signed>) {
        let theirs: BTreeMap<Tag, (u64, u64)> = theirs.iter().map(|mark| (mark.writer, (mark.head, mark.mark))).collect();
        let mut parcel = Parcel::new(bytes_max, chance);
        // Begun with another writer each time: one that has much to say does not keep the others waiting.
        let logs: Vec<_> = self.logs_in(group).collect();
        let first = (chance >> 32) as usize % logs.len().max(1);
        // But for the pool's key, by whose word others are judged.
        let (judging, others): (Vec<_>, Vec<_>) = logs[first..].iter().chain(&logs[..first]).partition(|(writer, _)| **writer == self.pool);
        for (writer, log) in judging.into_iter().chain(others) {
            let known = theirs.get(&tag_of(writer)).copied();
            if !parcel.add((writer, log), lens.sight(self, &log.group), known, &mut has_room) {
                break;
            }
        }
        (parcel.in_turn, parcel.alone)
    }

    /// Whether a side with those marks has something that this one lacks.
    pub fn is_behind_in(&self, theirs: &[ShortMark], lens: &Lens) -> bool {
        theirs.iter().any(|theirs| match self.writer(theirs.writer).and_then(|writer| self.logs.get_key_value(&writer)) {
            Some((writer, log)) => {
                let (head, mark) = lens.sight(self, &log.group).of(writer, log);
                !log.is_over && (head < theirs.head || head == theirs.head && mark != theirs.mark)
            }
            None => true,
        })
    }

    /// The writer whose key begins like this, if it has a log.
    pub fn writer(&self, tag: Tag) -> Option<Key> {
        starting_with(&self.logs, &tag.0).next().copied()
    }

    /// The group of a writer.
    pub fn group_of_log(&self, writer: &Key) -> Option<Tag> {
        self.logs.get(writer).map(|log| tag_of(&log.group))
    }

    /// Whether a writer's record of this number is known, or need not be.
    pub fn has(&self, writer: &Key, seq: u64) -> bool {
        let Some(log) = self.logs.get(writer) else { return false };
        log.is_over || seq <= log.head.max(log.floor) || log.from(seq).first().is_some_and(|entry| entry.record.seq == seq)
    }

    /// A writer's record of this number; none where it was followed by another about the same thing.
    pub fn numbered(&self, writer: &Key, seq: u64) -> Option<&Signed> {
        let log = self.logs.get(writer)?;
        log.from(seq).first().filter(|entry| entry.record.seq == seq).map(|entry| &entry.signed)
    }

    /// What a writer wrote, in the order of its numbers.
    pub fn log_of(&self, writer: &Key) -> Vec<Signed> {
        self.logs.get(writer).into_iter().flat_map(|log| log.from(0)).map(|entry| entry.signed.clone()).collect()
    }

    /// Grows when it may have changed who belongs to whom.
    pub fn authority(&self) -> u64 {
        self.authority
    }

    fn logs_in(&self, group: Tag) -> impl Iterator<Item = (&Key, &Log)> {
        let writers = starting_with(&self.groups, &group.0).next().and_then(|key| self.groups.get(key)).map(|group| &group.writers);
        let logs = writers.into_iter().flatten().filter_map(|writer| self.logs.get_key_value(writer));
        logs.filter(|(_, log)| !log.is_over)
    }

    /// Changes a log, and what its group comes to.
    pub(super) fn change(&mut self, writer: &Key, change: impl FnOnce(&mut Log)) {
        if !self.logs.contains_key(writer) {
            let group = self.group_of(writer);
            self.logs.insert(*writer, Log::new(group));
            self.groups.entry(group).or_default().join(writer, &Log::new(group));
        }
        let Some(log) = self.logs.get_mut(writer) else { return };
        let name = log.group;
        let group = self.groups.entry(name).or_default();
        group.leave(writer, log);
        change(log);
        let known = log.by_seq.iter().rev().skip_while(|entry| entry.record.seq > log.head);
        log.public_head = known.map(|entry| &entry.record).find(|record| is_public(record)).map_or(0, |record| record.seq);
        group.join(writer, log);
        self.forget_differences(&name);
    }

    /// Drops a log; what was in it is still to be removed.
    pub(super) fn drop_log(&mut self, writer: &Key) -> Vec<Arc<Entry>> {
        let Some(log) = self.logs.remove(writer) else { return vec![] };
        self.leave_group(writer, &log);
        log.by_seq
    }

    /// Moves logs to where they belong, after a record that may have changed that.
    pub(super) fn group_anew(&mut self, key: &RecordKey, before: Option<&Entry>) {
        let writers: Vec<Key> = match (key.kind, before.map(|entry| &entry.record.body), self.get(key.kind, key.id, key.writer)) {
            // Most words of a host on itself change nothing of this.
            (Kind::HOST, Some(Some(Body::Host(before))), Some(Body::Host(now))) if before.domain == now.domain => return,
            (Kind::HOST, _, _) => vec![key.writer],
            (Kind::MEMBER, _, _) => starting_with(&self.logs, &key.id.0).copied().collect(),
            (Kind::DOMAIN | Kind::HELPER, _, _) => self.logs.keys().copied().collect(),
            _ => return,
        };
        self.group_these_anew(writers);
    }

    /// The same for all.
    pub(super) fn group_all_anew(&mut self) {
        self.group_these_anew(self.logs.keys().copied().collect());
    }

    fn group_these_anew(&mut self, writers: Vec<Key>) {
        self.authority += 1;
        for writer in writers {
            let (domain, group) = (self.membership(&writer).map(|(domain, _)| domain), self.group_of(&writer));
            let Some(mut log) = self.logs.remove(&writer) else { continue };
            log.domain = domain;
            if log.group != group {
                self.leave_group(&writer, &log);
                log.group = group;
                self.forget_differences(&group);
                self.groups.entry(group).or_default().join(&writer, &log);
            }
            self.logs.insert(writer, log);
        }
        self.rescope_all();
    }

    fn leave_group(&mut self, writer: &Key, log: &Log) {
        self.forget_differences(&log.group);
        if let Some(group) = self.groups.get_mut(&log.group) {
            group.leave(writer, log);
            group.writers.remove(writer);
            if group.writers.is_empty() {
                self.groups.remove(&log.group);
            }
        }
    }

    /// The domain of a host; of any other writer the pool.
    pub(super) fn group_of(&self, writer: &Key) -> Key {
        if *writer == self.pool || self.is_domain(writer) {
            return self.pool;
        }
        self.membership(writer)
            .map(|(domain, _)| domain)
            .or_else(|| self.claims(writer).next().map(|(domain, _)| domain))
            .unwrap_or(self.pool)
    }
}

impl Group {
    fn join(&mut self, writer: &Key, log: &Log) {
        self.digest ^= part_of(writer, log, (log.head, log.mark));
        self.public ^= part_of(writer, log, (log.public_head, log.public_mark));
        self.records += log.records();
        self.bytes += log.bytes;
        self.writers.insert(*writer);
    }

    /// All but the writer itself, which most often comes back.
    fn leave(&mut self, writer: &Key, log: &Log) {
        self.digest ^= part_of(writer, log, (log.head, log.mark));
        self.public ^= part_of(writer, log, (log.public_head, log.public_mark));
        self.records -= log.records();
        self.bytes -= log.bytes;
    }
}

fn part_of(writer: &Key, log: &Log, (head, mark): (u64, u64)) -> u128 {
    if log.is_over || (head, mark) == (0, 0) {
        return 0;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&writer.0).update(&head.to_be_bytes()).update(&mark.to_be_bytes());
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_be_bytes(short)
}

fn starting_with<'a, V>(map: &'a BTreeMap<Key, V>, start: &[u8]) -> impl Iterator<Item = &'a Key> {
    let (mut low, mut high) = ([0; 32], [0xff; 32]);
    low[..start.len()].copy_from_slice(start);
    high[..start.len()].copy_from_slice(start);
    map.range(Name(low)..=Name(high)).map(|(key, _)| key)
}
