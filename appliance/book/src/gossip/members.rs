//! The other hosts: who is there, and whose turn it is.
//!
//! A host is known to be there when it speaks to this one, or when its beat moves. Of beats, a host is believed about its own domain
//! only: a stranger can neither keep another domain's dead host alive nor silence a living one. In its own domain it can, for as long as
//! nobody asks that host itself: what a host says of itself goes before all, and says how far its number can be from then on.
//!
//! Turns: each host that answers is asked once in each cycle, in another order each time. Foreign domains take turns in the same way, and
//! in each its hosts. Silent hosts are asked by back-off.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    chance::Chance,
    limits::*,
    message::{Beat, Beats, Vitals},
};
use crate::{
    book::{Book, Tag, tag_of},
    key::{Key, Name},
};

/// One other host.
#[derive(Debug, Clone)]
struct Member {
    domain: Key,
    since: Duration,
    /// When it spoke to this host.
    heard: Option<Duration>,
    /// When its beat moved.
    moved: Option<Duration>,
    beat: u64,
    /// The number that the host itself told, and when: from there on it grows by one a second.
    told: Option<(u64, Duration)>,
    vitals: Option<Known>,
    /// Questions that failed in a row.
    tries: u32,
    /// When a silent one is asked again; in a small pool any.
    due: Duration,
    /// The last cycle in which it was asked.
    cycle: u64,
    is_asked: bool,
}

/// How a host is.
#[derive(Debug, Clone, Copy)]
struct Known {
    vitals: Vitals,
    /// The host's beat from which it is so.
    since: u64,
    /// When this host learnt it.
    learnt: Duration,
}

/// A domain's turn.
#[derive(Debug, Clone, Copy, Default)]
struct Turn {
    /// The last cycle in which it had one.
    cycle: u64,
    /// The host of it that was asked: the connection is still there.
    contact: Option<Key>,
}

/// Turns of a set of hosts or domains.
#[derive(Debug, Clone, Copy, Default)]
struct Cycles(u64);

/// All of them.
#[derive(Debug)]
pub struct Members {
    own: Key,
    domain: Option<Key>,
    /// Other hosts of that domain.
    fellows: usize,
    /// Where this host's own beat began.
    beat: u64,
    feels: Option<Known>,
    members: BTreeMap<Key, Member>,
    /// Domains with hosts other than this one.
    domains: BTreeMap<Key, Turn>,
    own_cycle: Cycles,
    domain_cycle: Cycles,
    authority: Option<u64>,
}

impl Members {
    /// None yet.
    pub fn new(own: Key, beat: u64) -> Self {
        let (members, domains, own_cycle, domain_cycle) = Default::default();
        Self { own, domain: None, fellows: 0, beat, feels: None, members, domains, own_cycle, domain_cycle, authority: None }
    }

    /// Reads who belongs to the pool, if that may have changed.
    pub fn refresh(&mut self, now: Duration, book: &Book) {
        if self.authority.replace(book.authority()) == Some(book.authority()) {
            return;
        }
        self.domain = book.domain_of(&self.own);
        let hosts = book.speakers().filter_map(|host| Some((host, book.membership(&host)?)));
        let living = hosts.filter(|(host, (_, member))| *host != self.own && member.dead.is_none());
        let mut before = std::mem::take(&mut self.members);
        for (host, (domain, _)) in living {
            let new = || Member {
                domain,
                since: now,
                heard: None,
                moved: None,
                beat: 0,
                told: None,
                vitals: None,
                tries: 0,
                due: Duration::ZERO,
                cycle: 0,
                is_asked: false,
            };
            let member = before.remove(&host).unwrap_or_else(new);
            self.members.insert(host, Member { domain, ..member });
        }
        self.fellows = self.members.values().filter(|member| Some(member.domain) == self.domain).count();
        let before = std::mem::take(&mut self.domains);
        self.domains =
            self.members.values().map(|member| (member.domain, before.get(&member.domain).copied().unwrap_or_default())).collect();
    }

    /// Whether everybody talks to everybody.
    pub fn is_small(&self) -> bool {
        self.members.len() <= DIRECT_MAX
    }

    /// A host has spoken to this one.
    pub fn heard(&mut self, now: Duration, host: &Key) {
        if let Some(member) = self.members.get_mut(host) {
            (member.heard, member.tries) = (Some(now), 0);
        }
    }

    /// A question to a host was answered, or was not.
    pub fn asked(&mut self, now: Duration, host: &Key, answered: bool) {
        let doublings_max = if self.is_small() { DOUBLINGS_MAX_DIRECT } else { DOUBLINGS_MAX };
        let Some(member) = self.members.get_mut(host) else { return };
        member.is_asked = false;
        member.tries = if answered { 0 } else { member.tries.saturating_add(1) };
        member.due = now + DIRECT_PERIOD * 2u32.pow(member.tries.min(doublings_max));
        if answered {
            member.heard = Some(now);
        }
    }

    /// For how long nobody has heard of a host; none where it is there.
    pub fn silence(&self, now: Duration, host: &Key) -> Option<Duration> {
        let Some(member) = self.members.get(host) else { return Some(Duration::ZERO) };
        let last = self.last(member);
        let silence = now.saturating_sub(last.unwrap_or(member.since));
        (last.is_none() || silence > self.silent_after(member)).then_some(silence)
    }

    /// The hosts that are there.
    pub fn answering(&self, now: Duration) -> BTreeSet<Key> {
        self.members.keys().filter(|key| self.silence(now, key).is_none()).copied().collect()
    }

    /// How a host is, by its own word.
    pub fn vitals(&self, host: &Key) -> Option<Vitals> {
        if *host == self.own {
            return self.feels.map(|known| known.vitals);
        }
        self.members.get(host)?.vitals.map(|known| known.vitals)
    }

    /// How this host is.
    pub fn feel(&mut self, now: Duration, vitals: Vitals) {
        let vitals = Vitals { for_s: 0, ..vitals };
        if self.feels.is_none_or(|known| known.vitals != vitals) {
            self.feels = Some(Known { vitals, since: self.beat.saturating_add(now.as_secs()), learnt: now });
        }
    }

    fn last(&self, member: &Member) -> Option<Duration> {
        if member.tries >= TRIES_TO_DOUBT { member.heard } else { member.heard.max(member.moved) }
    }

    /// For how long nobody may hear of a host that is there.
    fn silent_after(&self, member: &Member) -> Duration {
        let is_own = Some(member.domain) == self.domain;
        match () {
            () if self.is_small() => SILENT_AFTER,
            () if is_own => SILENT_AFTER * self.fellows.div_ceil(BEATS_MAX).max(1) as u32,
            // Two turns of all domains.
            () => SILENT_AFTER + PERIOD * 2 * self.domains.len().div_ceil(FOREIGN_AT_ONCE) as u32,
        }
    }

    /// Whether it would be asked in its turn.
    fn answers(&self, now: Duration, member: &Member) -> bool {
        let last = self.last(member).unwrap_or(member.since);
        member.tries == 0 && now.saturating_sub(last) <= self.silent_after(member)
    }

    /// Whom to ask in this round; each counts as asked until [`Members::asked`].
    pub fn next(&mut self, now: Duration, round: u64, chance: &mut Chance) -> Vec<Key> {
        let mut next = if self.is_small() { self.next_of_few(now) } else { self.next_of_many(now, chance) };
        if self.is_small() || round.is_multiple_of(SILENT_EVERY) {
            next.extend(self.next_silent(now));
        }
        for key in &next {
            if let Some(member) = self.members.get_mut(key) {
                member.is_asked = true;
            }
        }
        next
    }

    fn next_of_few(&self, now: Duration) -> Vec<Key> {
        let due = |member: &Member| !member.is_asked && member.tries == 0 && member.due <= now;
        self.members.iter().filter(|(_, member)| due(member)).map(|(key, _)| *key).collect()
    }

    fn next_of_many(&mut self, now: Duration, chance: &mut Chance) -> Vec<Key> {
        let mut next = vec![];
        if let Some(own) = self.domain {
            next.extend((0..OWN_AT_ONCE).filter_map(|_| self.turn_in(own, now, chance)));
            next.dedup();
        }
        for _ in 0..FOREIGN_AT_ONCE {
            let foreign = self.domains.iter().filter(|(domain, _)| Some(**domain) != self.domain);
            let foreign: Vec<(Key, u64)> = foreign.map(|(key, turn)| (*key, turn.cycle)).collect();
            let Some(domain) = self.domain_cycle.turn(&foreign, chance) else { break };
            let kept = self.domains.get(&domain).and_then(|turn| turn.contact).filter(|_| !chance.once_in(CONTACT_TURNS));
            let kept = kept.filter(|key| self.members.get(key).is_some_and(|member| !member.is_asked && self.answers(now, member)));
            let hosts = self.members.iter().filter(|(_, member)| member.domain == domain && !member.is_asked && self.answers(now, member));
            let contact = kept.or_else(|| chance.some(hosts.map(|(key, _)| *key).collect(), 1).pop());
            next.extend(contact);
            self.domains.insert(domain, Turn { cycle: self.domain_cycle.0, contact });
        }
        next
    }

    fn turn_in(&mut self, domain: Key, now: Duration, chance: &mut Chance) -> Option<Key> {
        let hosts = self.members.iter().filter(|(_, member)| member.domain == domain && !member.is_asked && self.answers(now, member));
        let hosts: Vec<(Key, u64)> = hosts.map(|(key, member)| (*key, member.cycle)).collect();
        let host = self.own_cycle.turn(&hosts, chance)?;
        if let Some(member) = self.members.get_mut(&host) {
            member.cycle = self.own_cycle.0;
        }
        Some(host)
    }

    /// Those that are silent and due, the least hopeless first.
    fn next_silent(&self, now: Duration) -> Vec<Key> {
        let under_way = self.members.values().filter(|member| member.is_asked && !self.answers(now, member)).count();
        let at_once = if self.is_small() { SILENT_AT_ONCE } else { 1 };
        let due = |member: &Member| !member.is_asked && member.due <= now;
        let is_silent = |member: &Member| if self.is_small() { member.tries > 0 } else { !self.answers(now, member) };
        let silent = self.members.iter().filter(|(_, member)| is_silent(member) && due(member));
        let mut silent: Vec<_> = silent.map(|(key, member)| (member.tries, member.due, *key)).collect();
        silent.sort_unstable();
        silent.into_iter().take(at_once.min(SILENT_AT_ONCE.saturating_sub(under_way))).map(|(.., key)| key).collect()
    }

    /// Hosts that news is told: in a small pool all that answer, else some of the own domain.
    pub fn told(&self, now: Duration, chance: &mut Chance) -> Vec<Key> {
        if self.is_small() {
            return self.members.iter().filter(|(key, _)| self.silence(now, key).is_none()).map(|(key, _)| *key).collect();
        }
        let Some(own) = self.domain else { return vec![] };
        self.told_in(now, &own, FANOUT, chance)
    }

    /// Hosts of other domains that everybody's news is told.
    pub fn told_elsewhere(&self, now: Duration, chance: &mut Chance) -> Vec<Key> {
        self.told_of(now, |member| Some(member.domain) != self.domain, FANOUT, chance)
    }

    /// Hosts of a domain that news is told.
    pub fn told_in(&self, now: Duration, domain: &Key, count: usize, chance: &mut Chance) -> Vec<Key> {
        self.told_of(now, |member| member.domain == *domain, count, chance)
    }

    /// Those first to which there are connections.
    fn told_of(&self, now: Duration, wanted: impl Fn(&Member) -> bool, count: usize, chance: &mut Chance) -> Vec<Key> {
        let warm = |member: &Member| member.heard.is_some_and(|heard| now.saturating_sub(heard) <= WARM_FOR);
        let answering = self.members.iter().filter(|(_, member)| wanted(member) && self.answers(now, member));
        let (warm, cold): (Vec<_>, Vec<_>) = answering.partition(|(_, member)| warm(member));
        let from = if warm.len() < count { [warm, cold].concat() } else { warm };
        chance.some(from.into_iter().map(|(key, _)| *key).collect(), count)
    }

    /// The beats of this host's domain. How a host is goes along for a while after it has changed, and else now and then.
    pub fn beats(&self, now: Duration, to: &Key, chance: &mut Chance) -> Beats {
        let is_fellow = self.members.get(to).is_some_and(|member| Some(member.domain) == self.domain);
        let every = if is_fellow { VITALS_EVERY } else { VITALS_EVERY_FOREIGN };
        let own = self.beat.saturating_add(now.as_secs());
        let fellows = self.members.iter().filter(|(_, member)| member.beat > 0 && Some(member.domain) == self.domain);
        let aged = fellows.filter_map(|(key, member)| {
            let age = now.saturating_sub(member.moved?);
            let beside = member.beat.wrapping_sub(own) as i64;
            let told = member.vitals.filter(|known| now.saturating_sub(known.learnt) <= NEWS_FOR || chance.once_in(every));
            let vitals = told.and_then(|known| known.at(member.beat));
            (age <= SILENT_AFTER).then(|| Beat { host: tag_of(key), beside, age: (age.as_millis() / 100) as u8, vitals })
        });
        let aged = aged.collect();
        Beats { own, others: chance.some(aged, BEATS_MAX), vitals: self.feels.and_then(|known| known.at(own)) }
    }

    /// What a host says of itself and its domain.
    pub fn take_beats(&mut self, now: Duration, by: &Key, beats: &Beats) {
        let Some(teller) = self.members.get_mut(by) else { return };
        (teller.beat, teller.moved, teller.told) = (beats.own, Some(now), Some((beats.own, now)));
        // Its own word counts, whatever was said of it.
        teller.vitals = beats.vitals.map(|vitals| Known::new(now, beats.own, vitals)).map(|new| match teller.vitals {
            Some(known) if known.is_as(&new) => known,
            _ => new,
        });
        let domain = teller.domain;
        for beat in &beats.others {
            let Some((key, member)) = self.of_tag(beat.host).filter(|(_, member)| member.domain == domain) else { continue };
            let number = beats.own.wrapping_add_signed(beat.beside);
            if key == *by || !member.may_be_at(now, number) {
                continue;
            }
            if number > member.beat || member.is_contradicted(number) {
                let moved = now.saturating_sub(Duration::from_millis(100 * u64::from(beat.age)));
                (member.beat, member.moved) = (number, member.moved.max(Some(moved)));
            }
            if let Some(new) = beat.vitals.map(|vitals| Known::new(now, number, vitals))
                && member.vitals.is_none_or(|known| known.since < new.since)
            {
                member.vitals = Some(new);
            }
        }
    }

    fn of_tag(&mut self, tag: Tag) -> Option<(Key, &mut Member)> {
        let (mut low, mut high) = ([0; 32], [0xff; 32]);
        low[..8].copy_from_slice(&tag.0);
        high[..8].copy_from_slice(&tag.0);
        self.members.range_mut(Name(low)..=Name(high)).next().map(|(key, member)| (*key, member))
    }
}

impl Member {
    /// Whether the host's number may be this by now.
    fn may_be_at(&self, now: Duration, number: u64) -> bool {
        let since = |then: Duration| now.saturating_sub(then).as_secs();
        match (self.told, self.moved) {
            (Some((beat, then)), _) => number <= beat.saturating_add(since(then) + BEAT_AHEAD_S),
            (None, Some(then)) => number <= self.beat.saturating_add(since(then) + BEAT_DOUBTED_S),
            (None, None) => true,
        }
    }

    /// Whether one of those who told this number and the one that is known lies. Until the host itself has said which, both say that it is there.
    fn is_contradicted(&self, number: u64) -> bool {
        self.told.is_none() && number.saturating_add(BEAT_DOUBTED_S) < self.beat
    }
}

impl Known {
    fn new(now: Duration, beat: u64, vitals: Vitals) -> Self {
        Self { vitals: Vitals { for_s: 0, ..vitals }, since: beat.saturating_sub(vitals.for_s.into()), learnt: now }
    }

    /// As it is told with a beat.
    fn at(&self, beat: u64) -> Option<Vitals> {
        let for_s = u32::try_from(beat.checked_sub(self.since)?).unwrap_or(u32::MAX);
        Some(Vitals { for_s, ..self.vitals })
    }

    fn is_as(&self, other: &Self) -> bool {
        (self.vitals, self.since) == (other.vitals, other.since)
    }
}

impl Cycles {
    /// One that had no turn in this cycle, by chance; when all had one, a cycle begins.
    fn turn(&mut self, all: &[(Key, u64)], chance: &mut Chance) -> Option<Key> {
        let mut left: Vec<Key> = all.iter().filter(|(_, cycle)| *cycle < self.0).map(|(key, _)| *key).collect();
        if left.is_empty() {
            self.0 += 1;
            left = all.iter().map(|(key, _)| *key).collect();
        }
        chance.some(left, 1).pop()
    }
}
