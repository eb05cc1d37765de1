//! News: records that this host wrote or learnt lately, which it offers to others; and what it asked for and waits for.
//!
//! Each writer has so much room here and no more: one that floods delays itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{chance::Chance, limits::*, message::Offer};
use crate::{
    book::{Book, Lens, Tag, tag_of},
    key::Key,
    record::Signed,
};

#[derive(Debug, Clone, Copy)]
struct Item {
    learnt: Duration,
    pushes: u8,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    bytes: u64,
    filled: Duration,
}

/// All of it.
#[derive(Debug)]
pub struct News {
    own: Key,
    items: BTreeMap<Offer, Item>,
    wanted: BTreeMap<Offer, Duration>,
    /// What may be passed on of each writer, where that is not all.
    of_writers: BTreeMap<Tag, Bucket>,
    /// What may be given to each host, where that is not all.
    to_hosts: BTreeMap<Key, Bucket>,
    /// When news is offered next, if there is any.
    offer_at: Option<Duration>,
    /// By which the limits are greater than in a large pool.
    times: u64,
}

impl News {
    /// None yet.
    pub fn new(own: Key) -> Self {
        let (items, wanted, of_writers, to_hosts) = Default::default();
        Self { own, items, wanted, of_writers, to_hosts, offer_at: None, times: 1 }
    }

    /// A record has come.
    pub fn came(&mut self, offer: &Offer) {
        self.wanted.remove(offer);
    }

    /// A record is news here.
    pub fn learn(&mut self, now: Duration, offer: Offer, pushes: u8) {
        self.came(&offer);
        let of_writer = self.items.range(Offer { seq: 0, ..offer }..=Offer { seq: u64::MAX, ..offer }).count();
        if self.items.len() >= NEWS_MAX || of_writer >= NEWS_PER_WRITER {
            return;
        }
        self.items.entry(offer).or_insert(Item { learnt: now, pushes });
        if pushes > 0 {
            self.offer_at.get_or_insert(now + GATHER);
        }
    }

    /// Forgets what is old.
    pub fn expire(&mut self, now: Duration, is_small: bool) {
        self.times = if is_small { DIRECT_TIMES } else { 1 };
        let (of_writer, to_host) = self.limits();
        self.items.retain(|_, item| now.saturating_sub(item.learnt) <= NEWS_FOR);
        self.wanted.retain(|_, until| *until > now);
        self.of_writers.retain(|_, bucket| bucket.has(now, of_writer) < of_writer.burst);
        self.to_hosts.retain(|_, bucket| bucket.has(now, to_host) < to_host.burst);
    }

    /// When there is something to offer.
    pub fn offer_at(&self) -> Option<Duration> {
        self.offer_at
    }

    /// What is to be offered now. Of a writer that wrote so much that its room here is half used up nothing is: rounds tell it.
    pub fn push(&mut self, now: Duration, chance: &mut Chance) -> Vec<Offer> {
        let (limit, _) = self.limits();
        let is_busy = |writer: &Tag| self.of_writers.get(writer).is_some_and(|bucket| bucket.has(now, limit) < limit.burst / 2);
        for (offer, item) in self.items.iter_mut().filter(|(_, item)| item.pushes > 0) {
            item.pushes = if is_busy(&offer.writer) { 0 } else { item.pushes };
        }
        let waiting: Vec<Offer> = self.items.iter().filter(|(_, item)| item.pushes > 0).map(|(offer, _)| *offer).collect();
        let offers = fair(waiting, chance);
        for offer in &offers {
            if let Some(item) = self.items.get_mut(offer) {
                item.pushes -= 1;
            }
        }
        self.offer_at = self.items.values().any(|item| item.pushes > 0).then(|| now + GATHER);
        offers
    }

    /// What is mentioned in a round.
    pub fn mention(&self, book: &Book, lens: &Lens, chance: &mut Chance) -> Vec<Offer> {
        let shown = self.items.keys().filter(|offer| book.writer(offer.writer).is_some_and(|writer| book.shows(lens, &writer, offer.seq)));
        fair(shown.copied().collect(), chance)
    }

    /// Writers of whom there is news.
    pub fn writers(&self) -> BTreeSet<Tag> {
        self.items.keys().map(|offer| offer.writer).collect()
    }

    /// What of somebody's offers is lacking here and not on its way.
    pub fn want(&mut self, now: Duration, book: &Book, offers: &[Offer]) -> Vec<Offer> {
        let mut wants = vec![];
        for offer in offers.iter().take(OFFERS_MAX) {
            let is_known = book.writer(offer.writer).is_some_and(|writer| book.has(&writer, offer.seq));
            let is_coming = self.wanted.get(offer).is_some_and(|until| *until > now);
            if !is_known && !is_coming && self.wanted.len() < WANTED_MAX {
                self.wanted.insert(*offer, now + WANTED_FOR);
                wants.push(*offer);
            }
        }
        wants
    }

    /// The records that somebody wants, as far as there is room for their writers.
    pub fn serve(&mut self, now: Duration, book: &Book, (to, lens): (&Key, &Lens), wants: &[Offer]) -> Vec<Signed> {
        let mut bytes = 0;
        let found = wants.iter().take(OFFERS_MAX).filter_map(|want| {
            let writer = book.writer(want.writer).filter(|writer| book.shows(lens, writer, want.seq))?;
            Some((writer, book.numbered(&writer, want.seq)?))
        });
        let fits = found.filter(|(_, signed)| {
            let fits = bytes + signed.bytes() <= RECORDS_BYTES;
            bytes += if fits { signed.bytes() } else { 0 };
            fits
        });
        let found: Vec<(Key, &Signed)> = fits.collect();
        let fits = found.into_iter().filter(|(writer, signed)| self.has_room(now, to, writer, signed.bytes()));
        fits.map(|(_, signed)| signed.clone()).collect()
    }

    /// Takes room for a writer's bytes that are given to a host, if there is any. Of its own a host tells all.
    pub fn has_room(&mut self, now: Duration, to: &Key, writer: &Key, bytes: usize) -> bool {
        if *writer == self.own {
            return true;
        }
        let (limit, limit_to) = self.limits();
        let of_writer = self.of_writers.entry(tag_of(writer)).or_insert(limit.full(now));
        let to_host = self.to_hosts.entry(*to).or_insert(limit_to.full(now));
        let fits = of_writer.has(now, limit).min(to_host.has(now, limit_to)) >= bytes as u64;
        if fits {
            of_writer.take(now, limit, bytes);
            to_host.take(now, limit_to, bytes);
        }
        fits
    }

    fn limits(&self) -> (Limit, Limit) {
        let times = |burst: u64, bytes_s: u64| Limit { burst: burst * self.times, bytes_s: bytes_s * self.times };
        (times(WRITER_BURST_BYTES, WRITER_BYTES_S), times(HOST_BURST_BYTES, HOST_BYTES_S))
    }
}

/// How much at a time, and how much in a second from there on.
#[derive(Debug, Clone, Copy)]
struct Limit {
    burst: u64,
    bytes_s: u64,
}

impl Limit {
    fn full(self, now: Duration) -> Bucket {
        Bucket { bytes: self.burst, filled: now }
    }
}

impl Bucket {
    fn has(&self, now: Duration, limit: Limit) -> u64 {
        let since = now.saturating_sub(self.filled).as_millis() as u64;
        limit.burst.min(self.bytes + since * limit.bytes_s / 1000)
    }

    fn take(&mut self, now: Duration, limit: Limit, bytes: usize) {
        *self = Self { bytes: self.has(now, limit).saturating_sub(bytes as u64), filled: now };
    }
}

/// As many as a message has room for, by chance, not too many of one writer.
fn fair(offers: Vec<Offer>, chance: &mut Chance) -> Vec<Offer> {
    let count = offers.len();
    let mut of_writer: BTreeMap<Tag, usize> = BTreeMap::new();
    let fits = chance.some(offers, count).into_iter().filter(|offer| {
        let used = of_writer.entry(offer.writer).or_default();
        *used += 1;
        *used <= OFFERS_PER_WRITER
    });
    let mut fits: Vec<Offer> = fits.take(OFFERS_MAX).collect();
    // In the order of their numbers: a log grows without holes.
    fits.sort_unstable();
    fits
}

/// The offer of a record.
pub fn offer_of(writer: &Key, seq: u64) -> Offer {
    Offer { writer: tag_of(writer), seq }
}
