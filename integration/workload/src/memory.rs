//! Holds a pattern in memory, gives pages a new one at a rate, and checks all of it on demand.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    pattern::{BLOCK_BYTES, Label},
    words::{MemoryReport, Verified},
};

/// Pages rewritten between two looks at the time.
const REWRITES_PER_TURN: u64 = 8;

/// The pages and the version each should have.
struct Held {
    pages: Vec<[u8; BLOCK_BYTES]>,
    versions: Vec<u64>,
}

/// A pattern being held.
pub struct Holder {
    held: Arc<Mutex<Held>>,
    owner: u64,
    stop: Arc<AtomicBool>,
    rewrites: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Holder {
    /// Fills so many MiB and starts rewriting.
    pub fn start(mib: u64, rewrites_per_second: u32, owner: u64) -> std::io::Result<Self> {
        let count = usize::try_from(mib << 20).unwrap_or(usize::MAX) / BLOCK_BYTES;
        let mut pages = Vec::new();
        pages.try_reserve_exact(count).map_err(|_| std::io::Error::other(format!("{mib} MiB do not fit into memory")))?;
        for place in 0..count as u64 {
            let mut page = [0; BLOCK_BYTES];
            Label { owner, place, version: 0 }.fill(&mut page);
            pages.push(page);
        }
        let held = Arc::new(Mutex::new(Held { pages, versions: vec![0; count] }));
        let mut holder = Self { held, owner, stop: Arc::default(), rewrites: Arc::default(), thread: None };
        holder.rewrite(rewrites_per_second);
        Ok(holder)
    }

    /// Whether this is how much it holds.
    pub fn holds(&self, mib: u64) -> bool {
        self.report().pages == (mib << 20) / BLOCK_BYTES as u64
    }

    /// Starts rewriting again after a verification, or at another rate.
    pub fn rewrite(&mut self, per_second: u32) {
        self.rest();
        self.stop.store(false, Ordering::Relaxed);
        self.thread = (per_second > 0 && self.report().pages > 0).then(|| {
            let (held, stop, rewrites) = (Arc::clone(&self.held), Arc::clone(&self.stop), Arc::clone(&self.rewrites));
            let owner = self.owner;
            thread::spawn(move || rewrite(&held, owner, per_second, &stop, &rewrites))
        });
    }

    fn rest(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }

    /// Stops rewriting and checks every page.
    pub fn verify(&mut self) -> Verified {
        self.rest();
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut verified = Verified { checked: 0, wrong: 0, first: None };
        for (place, (page, version)) in (0..).zip(held.pages.iter().zip(&held.versions)) {
            verified.checked += 1;
            let expected = Label { owner: self.owner, place, version: *version };
            if !expected.matches(page) {
                verified.wrong += 1;
                verified.first.get_or_insert_with(|| format!("page {place} should be {expected:?} and says {:?}", Label::read(page)));
            }
        }
        verified
    }

    /// What it holds.
    pub fn report(&self) -> MemoryReport {
        let pages = self.held.lock().unwrap_or_else(PoisonError::into_inner).pages.len() as u64;
        MemoryReport { pages, rewrites: self.rewrites.load(Ordering::Relaxed) }
    }
}

fn rewrite(held: &Mutex<Held>, owner: u64, per_second: u32, stop: &AtomicBool, rewrites: &AtomicU64) {
    let start = Instant::now();
    let turn = Duration::from_secs(1) * REWRITES_PER_TURN as u32 / per_second.max(1);
    let mut turns = 0;
    let mut place = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..REWRITES_PER_TURN {
            // A stride that visits every page and keeps neighbours apart.
            place = (place + 7919) % held.pages.len();
            held.versions[place] += 1;
            let label = Label { owner, place: place as u64, version: held.versions[place] };
            label.fill(&mut held.pages[place]);
        }
        drop(held);
        rewrites.fetch_add(REWRITES_PER_TURN, Ordering::Relaxed);
        turns += 1;
        // The schedule is absolute up to a second: a pause is caught up with, a long one is not.
        let due = turn * turns;
        match due.checked_sub(start.elapsed()) {
            Some(early) => thread::sleep(early),
            None => {
                turns = turns
                    .max(u32::try_from(start.elapsed().as_nanos() / turn.as_nanos().max(1)).unwrap_or(u32::MAX).saturating_sub(per_second))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewritten_pages_verify_and_a_flipped_bit_is_found() {
        let mut holder = Holder::start(1, 100_000, 9).unwrap();
        while holder.report().rewrites < 1000 {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(holder.verify(), Verified { checked: 256, wrong: 0, first: None });
        let before = holder.report().rewrites;
        holder.rewrite(100_000);
        while holder.report().rewrites == before {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(holder.verify().wrong, 0);
        holder.held.lock().unwrap().pages[17][100] ^= 4;
        let found = holder.verify();
        assert_eq!((found.checked, found.wrong), (256, 1));
        assert!(found.first.unwrap().starts_with("page 17 "));
    }
}
