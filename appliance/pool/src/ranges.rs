//! Parts of a LAN's range go back to the LAN's home when nobody needs them. Pure: what a host gives back and when, what it may use meanwhile, and
//! what a home takes back from hosts that are no more.
//!
//! ```text
//! host that has a part                              home of the LAN
//! empty for so long: look() -> Mark, durable
//! uses the part no more (is_marked)
//! Return{tags}              ------------->          take_back(): the LAN's record without it is durable
//!   again and again         <-------------          the record; also by gossip
//! the record without the part is durable: settled() -> the mark goes
//!                                                   a host that is dead or no member for so long: Lost::look() -> take_back()
//! ```
//! A question or its answer may be lost, come late or twice. The mark is there before the first question and until the record without the part is
//! there, so the host uses nothing that may be another's by then; a tag names one part once, so a late question takes nothing that was handed out
//! since. Of a dead host only what no VM of its has is taken: what it may have given out since counts nowhere, because a LAN lets nobody on at an
//! address that its record does not give to the VM's home.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use rebec_book::{
    key::{Id, Key},
    record::{LanBody, RangeLease},
};
use serde::{Deserialize, Serialize};

/// So long a part is empty before it goes back: a VM that is made anew finds it still there.
pub const EMPTY_FOR: Duration = Duration::from_secs(60);
/// Between two questions about the same parts.
pub const ASKED_EVERY: Duration = Duration::from_secs(10);
/// So long a host is dead, or no member, before its parts are taken.
pub const LOST_FOR: Duration = Duration::from_secs(600);
/// Parts that a host may have on their way back: more wait.
pub const MARKS_MAX: usize = 1024;

/// A part that a host has begun to give back, and uses no more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The LAN.
    pub lan: Id,
    /// Its home.
    pub home: Key,
    /// Which part.
    pub tag: u64,
    /// Its first address.
    pub first: Ipv4Addr,
    /// How many.
    pub count: u32,
    /// Number of the record in which this host had it: what an earlier one says of it is nothing.
    pub seq: u64,
}

impl Mark {
    /// Of a part in the LAN's record of that number; none of one that has no tag.
    pub fn of(lan: Id, home: Key, lease: &RangeLease, seq: u64) -> Option<Self> {
        Some(Self { lan, home, tag: lease.tag?, first: lease.first, count: lease.count, seq })
    }

    /// Whether a part of this host's is the marked one. An older home forgets tags when it writes: then its addresses tell.
    fn is_of(&self, lan: Id, lease: &RangeLease) -> bool {
        let marked = || RangeLease { host: lease.host, first: self.first, count: self.count, tag: None };
        self.lan == lan && lease.tag.map_or_else(|| lease.overlaps(&marked()), |tag| tag == self.tag)
    }
}

/// Whether a part of this host's is on its way back: no address of it may be given out.
pub fn is_marked(marks: &[Mark], lan: Id, lease: &RangeLease) -> bool {
    marks.iter().any(|mark| mark.is_of(lan, lease))
}

/// A LAN as far as this host may give out its addresses.
pub fn usable(lan: Id, mut body: LanBody, own: Key, marks: &[Mark]) -> LanBody {
    body.leases.retain(|lease| lease.host != own || !is_marked(marks, lan, lease));
    body
}

/// Whether a part has gone back: its home's record of this number, or its word that the LAN is gone, says so. That must be durable here before the
/// mark goes.
pub fn is_settled(mark: &Mark, own: &Key, seq: u64, body: Option<&LanBody>) -> bool {
    let has = |body: &LanBody| body.leases.iter().any(|lease| lease.host == *own && mark.is_of(mark.lan, lease));
    seq > mark.seq && !body.is_some_and(has)
}

/// A part as it is now.
#[derive(Debug, Clone)]
pub struct Part {
    /// The LAN.
    pub lan: Id,
    /// The LAN's home.
    pub home: Key,
    /// The part.
    pub lease: RangeLease,
    /// Number of the LAN's record that says so.
    pub seq: u64,
    /// Whether a VM has an address of it.
    pub is_used: bool,
}

/// What a host with parts remembers, as long as its agent lives.
#[derive(Debug, Clone, Default)]
pub struct Giver {
    empty: BTreeMap<(Id, u64), Duration>,
    asked: BTreeMap<(Id, u64), Duration>,
}

impl Giver {
    /// Looks at this host's parts whose homes answer; returns those that go back. Nothing is asked before they are marked durably, and while this is
    /// looked at nothing is given out.
    pub fn look(&mut self, now: Duration, parts: &[Part], marks: &[Mark]) -> Vec<Mark> {
        let empty = parts.iter().filter(|part| !part.is_used && !is_marked(marks, part.lan, &part.lease));
        let empty: Vec<Mark> = empty.filter_map(|part| Mark::of(part.lan, part.home, &part.lease, part.seq)).collect();
        let before = std::mem::take(&mut self.empty);
        let since = |mark: &Mark| before.get(&(mark.lan, mark.tag)).copied().unwrap_or(now);
        self.empty = empty.iter().map(|mark| ((mark.lan, mark.tag), since(mark))).collect();
        let room = MARKS_MAX.saturating_sub(marks.len());
        empty.into_iter().filter(|mark| now.saturating_sub(since(mark)) >= EMPTY_FOR).take(room).collect()
    }

    /// Whom to ask now to take what back: homes that answer, by LAN.
    pub fn due(&mut self, now: Duration, marks: &[Mark], answers: impl Fn(&Key) -> bool) -> BTreeMap<(Key, Id), Vec<u64>> {
        self.asked.retain(|(lan, tag), _| marks.iter().any(|mark| (mark.lan, mark.tag) == (*lan, *tag)));
        let mut due = BTreeMap::<_, Vec<u64>>::new();
        for mark in marks.iter().filter(|mark| answers(&mark.home)) {
            let asked = self.asked.get(&(mark.lan, mark.tag));
            if asked.is_none_or(|asked| now.saturating_sub(*asked) >= ASKED_EVERY) {
                self.asked.insert((mark.lan, mark.tag), now);
                due.entry((mark.home, mark.lan)).or_default().push(mark.tag);
            }
        }
        due
    }
}

/// What a LAN's home remembers of hosts with parts that are dead or no members.
#[derive(Debug, Clone, Default)]
pub struct Lost {
    since: BTreeMap<(Id, Key), Duration>,
}

impl Lost {
    /// Looks at the parts of lost hosts in LANs that are at home here; returns what is taken back, by LAN and host.
    pub fn look(&mut self, now: Duration, parts: &[Part]) -> BTreeMap<(Id, Key), Vec<u64>> {
        let before = std::mem::take(&mut self.since);
        let mut taken = BTreeMap::<_, Vec<u64>>::new();
        for Part { lan, lease, is_used, .. } in parts {
            let whose = (*lan, lease.host);
            let since = *self.since.entry(whose).or_insert_with(|| before.get(&whose).copied().unwrap_or(now));
            if let Some(tag) = lease.tag
                && !is_used
                && now.saturating_sub(since) >= LOST_FOR
            {
                taken.entry(whose).or_default().push(tag);
            }
        }
        taken
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use rebec_book::key::Name;

    use super::*;

    const LAN: Id = Name([7; 16]);
    const HOME: Key = Name([1; 32]);
    const HOST: Key = Name([2; 32]);

    fn part(tag: Option<u64>, is_used: bool) -> Part {
        let lease = RangeLease { host: HOST, first: Ipv4Addr::new(10, 7, 0, 8), count: 4, tag };
        Part { lan: LAN, home: HOME, lease, seq: 5, is_used }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_part_goes_back_once_it_was_empty_for_long_enough_without_a_break() {
        let mut giver = Giver::default();
        let mut look = |now, parts: &[Part], marks: &[Mark]| giver.look(at(now), parts, marks).len();
        assert_eq!([0, 59].map(|now| look(now, &[part(Some(1), false)], &[])), [0, 0]);
        // Somebody needed it, and then it was not seen because its home was silent.
        assert_eq!(look(60, &[part(Some(1), true)], &[]), 0);
        assert_eq!(look(100, &[part(Some(1), false)], &[]), 0);
        assert_eq!(look(150, &[], &[]), 0);
        assert_eq!([160, 219, 220].map(|now| look(now, &[part(Some(1), false)], &[])), [0, 0, 1]);
        let mark = Mark::of(LAN, HOME, &part(Some(1), false).lease, 5).unwrap();
        assert_eq!(look(221, &[part(Some(1), false)], std::slice::from_ref(&mark)), 0, "it is on its way already");
        // One of an older home stays.
        assert_eq!([300, 900].map(|now| look(now, &[part(None, false)], &[])), [0, 0]);
        let full: Vec<Mark> = (0..MARKS_MAX as u64).map(|tag| Mark { tag, lan: Name([8; 16]), ..mark.clone() }).collect();
        assert_eq!([1000, 1060].map(|now| look(now, &[part(Some(1), false)], &full)), [0, 0], "more wait");
    }

    #[test]
    fn a_home_is_asked_again_until_its_record_says_that_it_is_done() {
        let mark = Mark::of(LAN, HOME, &part(Some(1), false).lease, 5).unwrap();
        let (marks, mut giver) = ([mark.clone()], Giver::default());
        let mut due = |now, answers: bool| giver.due(at(now), &marks, |_| answers).into_values().flatten().collect::<Vec<_>>();
        assert!(due(0, false).is_empty());
        assert_eq!([due(1, true), due(10, true), due(11, true)], [vec![1], vec![], vec![1]]);

        let lan = |leases| LanBody {
            nonce: Name([0; 16]),
            name: "lab".into(),
            vni: 7,
            network: Ipv4Addr::new(10, 7, 0, 0),
            prefix: 24,
            mtu: 1400,
            leases,
            created: 0,
            domains: vec![],
            sealed: None,
            port_bits: None,
        };
        let of = |tag| lan(vec![part(tag, false).lease]);
        let settled = |seq, body: Option<LanBody>| is_settled(&mark, &HOST, seq, body.as_ref());
        assert!(settled(6, None) && settled(6, Some(lan(vec![]))) && settled(6, Some(of(Some(2)))));
        assert!(!settled(6, Some(of(Some(1)))) && !settled(6, Some(of(None))));
        // What was said before this host had it.
        assert!(!settled(5, None) && !settled(4, Some(lan(vec![]))));
        // The same addresses once more are another part, which may be used.
        let left = |tag| usable(LAN, of(tag), HOST, &marks).leases.len();
        assert_eq!([left(Some(1)), left(None), left(Some(2))], [0, 0, 1]);
        assert_eq!(usable(LAN, of(Some(1)), HOME, &marks).leases.len(), 1, "another host's");
    }

    #[test]
    fn parts_of_a_host_that_is_lost_for_long_are_taken_but_not_those_of_its_vms() {
        let mut lost = Lost::default();
        let mut look = |now, parts: &[Part]| lost.look(at(now), parts).into_values().flatten().collect::<Vec<_>>();
        let parts = [part(Some(1), false), part(Some(2), true), part(None, false)];
        assert!(look(0, &parts).is_empty() && look(599, &parts).is_empty());
        // It is a member again.
        assert!(look(600, &[]).is_empty() && look(601, &parts).is_empty());
        assert_eq!(look(1201, &parts), [1]);
    }
}
