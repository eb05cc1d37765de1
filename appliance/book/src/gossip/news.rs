//! News: records that this host wrote or learnt lately, which it offers to others; and what it asked for and waits for.
//!
//! Each writer has so much room here and no more: one that floods delays itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{chance::Chance, limits::*, message::Offer};
use crate::{
    book::{Book, Tag, tag_of},
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
    buckets: BTreeMap<Key, Bucket>,
    /// When news is offered next, if there is any.
    offer_at: Option<Duration>,
}

impl News {
    /// None yet.
    pub fn new(own: Key) -> Self {
        let (items, wanted, buckets) = Default::default();
        Self { own, items, wanted, buckets, offer_at: None }
    }

    /// A record is news here.
    pub fn learn(&mut self, now: Duration, offer: Offer, pushes: u8) {
        self.wanted.remove(&offer);
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
    pub fn expire(&mut self, now: Duration) {
        self.items.retain(|_, item| now.saturating_sub(item.learnt) <= NEWS_FOR);
        self.wanted.retain(|_, until| *until > now);
        self.buckets.retain(|_, bucket| bucket.now(now) < WRITER_BURST_BYTES);
    }

    /// When there is something to offer.
    pub fn offer_at(&self) -> Option<Duration> {
        self.offer_at
    }

    /// What is to be offered now.
    pub fn push(&mut self, now: Duration, chance: &mut Chance) -> Vec<Offer> {
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
    pub fn mention(&self, chance: &mut Chance) -> Vec<Offer> {
        fair(self.items.keys().copied().collect(), chance)
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
    pub fn serve(&mut self, now: Duration, book: &Book, wants: &[Offer]) -> Vec<Signed> {
        let mut bytes = 0;
        let found = wants.iter().take(OFFERS_MAX).filter_map(|want| {
            let writer = book.writer(want.writer)?;
            Some((writer, book.numbered(&writer, want.seq)?))
        });
        let fits = found.filter(|(writer, signed)| {
            let fits = bytes + signed.bytes() <= RECORDS_BYTES && has_room(&mut self.buckets, self.own, now, writer, signed.bytes());
            bytes += if fits { signed.bytes() } else { 0 };
            fits
        });
        fits.map(|(_, signed)| signed.clone()).collect()
    }

    /// Takes room for bytes of a writer, if there is any. Of its own a host tells all.
    pub fn has_room(&mut self, now: Duration, writer: &Key, bytes: usize) -> bool {
        has_room(&mut self.buckets, self.own, now, writer, bytes)
    }
}

impl Bucket {
    fn now(&self, now: Duration) -> u64 {
        let since = now.saturating_sub(self.filled).as_millis() as u64;
        WRITER_BURST_BYTES.min(self.bytes + since * WRITER_BYTES_S / 1000)
    }
}

fn has_room(buckets: &mut BTreeMap<Key, Bucket>, own: Key, now: Duration, writer: &Key, bytes: usize) -> bool {
    if *writer == own {
        return true;
    }
    let full = Bucket { bytes: WRITER_BURST_BYTES, filled: now };
    let bucket = buckets.entry(*writer).or_insert(full);
    let has = bucket.now(now);
    let fits = has >= bytes as u64;
    *bucket = Bucket { bytes: if fits { has - bytes as u64 } else { has }, filled: now };
    fits
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
