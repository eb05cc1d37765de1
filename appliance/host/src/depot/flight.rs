//! The fetching of one part: holders are asked one after the other, each goes on where the one before stopped, and what has come is named
//! once its hash is right. There is one flight for a part, however many ask for it.
//!
//! A holder that alone sent what turned out wrong is not asked again. Where several had a share in it nobody knows who lied: all of it is
//! thrown away, and each of them is asked once more, for the whole.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    key::{Digest, Key},
    record::PartRef,
};
use tokio::{sync::watch, time::Instant};

use super::{
    Holder,
    pace::{FLOOR_BYTES, FLOOR_BYTES_OF_SEVERAL, Pace, WINDOW},
    partial::Partial,
    shelf::Shelf,
};
use crate::lock;

/// Parts on their way here at a time.
const FLIGHTS_MAX: usize = 64;
/// Holders that one flight knows of.
const HOLDERS_MAX: usize = 64;

/// All flights of a depot.
#[derive(Clone, Default)]
pub struct Flights(Arc<Mutex<HashMap<(Digest, u64), Entry>>>);

struct Entry {
    told: watch::Receiver<Told>,
    queue: VecDeque<Candidate>,
    known: Vec<Key>,
}

/// How far a flight is.
#[derive(Clone, Default)]
pub struct Told {
    /// The holder that sends; empty where none does yet.
    pub from: String,
    /// Bytes that are here.
    pub done: u64,
    /// What came of it.
    pub outcome: Option<Result<(), ApiError>>,
}

/// A holder that is to be asked.
#[derive(Clone)]
struct Candidate {
    holder: Arc<dyn Holder>,
    /// For the whole part: what others sent is not trusted.
    alone: bool,
}

impl Flights {
    /// What is on its way.
    pub fn wanted(&self) -> Vec<PartRef> {
        lock(&self.0).keys().map(|(digest, bytes)| PartRef { digest: *digest, bytes: *bytes }).collect()
    }

    /// Joins the flight of a part, or begins it.
    pub fn join(&self, shelf: &Arc<Shelf>, part: &PartRef, holders: &[Arc<dyn Holder>]) -> Result<watch::Receiver<Told>, ApiError> {
        let mut flights = lock(&self.0);
        if let Some(entry) = flights.get_mut(&key(part)) {
            entry.add(holders);
            return Ok(entry.told.clone());
        }
        if flights.len() >= FLIGHTS_MAX {
            let message = format!("{FLIGHTS_MAX} parts are on their way to this host already, the limit; try again later");
            return Err(ApiError::new(ErrorCode::Conflict, message));
        }
        let (tell, told) = watch::channel(Told::default());
        let mut entry = Entry { told: told.clone(), queue: VecDeque::new(), known: vec![] };
        entry.add(holders);
        flights.insert(key(part), entry);
        let flight = Flight { flights: self.clone(), shelf: shelf.clone(), part: *part, tell, has_ended: false };
        tokio::spawn(flight.run());
        Ok(told)
    }
}

fn key(part: &PartRef) -> (Digest, u64) {
    (part.digest, part.bytes)
}

impl Entry {
    fn add(&mut self, holders: &[Arc<dyn Holder>]) {
        for holder in holders {
            if self.known.len() < HOLDERS_MAX && !self.known.contains(&holder.key()) {
                self.known.push(holder.key());
                self.queue.push_back(Candidate { holder: holder.clone(), alone: false });
            }
        }
    }
}

/// Who sent what lies in the file of a part.
#[derive(Default)]
struct Shares {
    /// An earlier flight, of which nobody knows any more.
    earlier: bool,
    of: Vec<Candidate>,
}

struct Flight {
    flights: Flights,
    shelf: Arc<Shelf>,
    part: PartRef,
    tell: watch::Sender<Told>,
    has_ended: bool,
}

impl Flight {
    async fn run(mut self) {
        let outcome = self.gather().await;
        self.end();
        self.tell.send_modify(|told| told.outcome = Some(outcome));
    }

    async fn gather(&mut self) -> Result<(), ApiError> {
        let mut reasons = vec![];
        let mut shares = Shares { earlier: true, of: vec![] };
        while !self.shelf.use_part(&self.part.digest) {
            let Some(candidate) = self.next() else {
                let message = format!(
                    "part {} is not here and could not be fetched; is a host that holds the image running?",
                    self.part.digest.short()
                );
                return Err(ApiError { code: ErrorCode::Failed, message, details: reasons });
            };
            if let Err(error) = self.ask(&candidate, &mut shares).await {
                let reason = format!("{}: {error:#}", candidate.holder.name());
                log::info!("part {}: {reason}", self.part.digest.short());
                reasons.push(reason);
            }
        }
        Ok(())
    }

    /// The next holder; without one the flight has ended, and whoever asks from now on begins another.
    fn next(&mut self) -> Option<Candidate> {
        let mut flights = lock(&self.flights.0);
        let next = flights.get_mut(&key(&self.part)).and_then(|entry| entry.queue.pop_front());
        if next.is_none() {
            flights.remove(&key(&self.part));
            self.has_ended = true;
        }
        next
    }

    fn queue<T>(&self, change: impl FnOnce(&mut VecDeque<Candidate>) -> T) -> Option<T> {
        lock(&self.flights.0).get_mut(&key(&self.part)).map(|entry| change(&mut entry.queue))
    }

    fn end(&mut self) {
        if !self.has_ended {
            lock(&self.flights.0).remove(&key(&self.part));
            self.has_ended = true;
        }
    }

    /// Asks one holder for what is missing, and verifies what is there when nothing is.
    async fn ask(&self, candidate: &Candidate, shares: &mut Shares) -> Result<()> {
        if candidate.alone {
            self.throw_away(shares)?;
        }
        let mut partial = Partial::open(&self.shelf, &self.part)?;
        let before = partial.at;
        if before == 0 {
            *shares = Shares::default();
        }
        if before < self.part.bytes {
            self.shelf.require_room(self.part.bytes - before)?;
            let read = self.read(candidate.holder.as_ref(), &mut partial).await;
            // Also what comes before a failure is the next one's beginning.
            partial.flush().await?;
            if partial.at > before {
                shares.of.push(candidate.clone());
            }
            read?;
        }
        let (shelf, part, file) = (self.shelf.clone(), self.part, partial.into_file()?);
        if tokio::task::spawn_blocking(move || shelf.verify(file, &part)).await?? {
            return Ok(());
        }
        let is_its_own = !shares.earlier && shares.of.iter().all(|one| one.holder.key() == candidate.holder.key());
        let suspects = std::mem::take(&mut shares.of);
        self.throw_away(shares)?;
        if is_its_own {
            bail!("what it sent is not the part: the content has another hash");
        }
        self.queue(|queue| {
            let again = |one: &Candidate| Candidate { holder: one.holder.clone(), alone: true };
            let others = suspects.iter().filter(|one| !one.alone && one.holder.key() != candidate.holder.key());
            queue.extend(others.map(again));
            if !candidate.alone {
                queue.push_front(again(candidate));
            }
        });
        bail!("what it and others sent is not the part: the content has another hash; each is asked for all of it");
    }

    fn throw_away(&self, shares: &mut Shares) -> Result<()> {
        *shares = Shares::default();
        match std::fs::remove_file(self.shelf.partial(&self.part)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove what had come"),
            _ => Ok(()),
        }
    }

    async fn read(&self, holder: &dyn Holder, partial: &mut Partial) -> Result<()> {
        let (before, bytes) = (partial.at, self.part.bytes);
        let asked = tokio::time::timeout(WINDOW, holder.read(&self.part, before)).await;
        let mut pieces = asked.with_context(|| format!("it did not answer within {} s", WINDOW.as_secs()))??;
        let mut pace = Pace::new(Instant::now());
        while partial.at < bytes {
            if let Ok(piece) = tokio::time::timeout_at(pace.deadline(), pieces.next()).await {
                let Some(piece) = piece else { bail!("cut off after {} of {bytes} bytes", partial.at) };
                let piece = piece?;
                pace.came(Instant::now(), piece.len() as u64);
                if partial.at + piece.len() as u64 > bytes {
                    partial.cut(before).await?;
                    bail!("it sends more than the {bytes} bytes of the part");
                }
                if partial.push(piece) {
                    let began = Instant::now();
                    partial.flush().await?;
                    pace.was_busy(began.elapsed());
                }
                self.tell.send_modify(|told| {
                    holder.name().clone_into(&mut told.from);
                    told.done = partial.at;
                });
            }
            let is_last = self.queue(|queue| queue.is_empty()) != Some(false);
            let floor = if is_last { FLOOR_BYTES } else { FLOOR_BYTES_OF_SEVERAL };
            if partial.at < bytes
                && let Some(why) = pace.too_slow(Instant::now(), floor)
            {
                bail!("{why}");
            }
        }
        Ok(())
    }
}

/// Also where its task ended without a word.
impl Drop for Flight {
    fn drop(&mut self) {
        self.end();
    }
}
