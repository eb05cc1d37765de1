//! The depot: immutable files named by the BLAKE3 of their content. A file has its name only once its content was verified and nobody can write
//! it any more; what arrives from elsewhere waits beside it and goes on where it stopped.
//!
//! ```text
//! parts/DIGEST                          a part
//!       DIGEST.digests, DIGEST.vmlinux  made of it (derived.rs)
//!       .new-XXXXXX                     an import, until it is whole
//!       .from-elsewhere-DIGEST-BYTES    a part on its way here: one flight's at a time
//! ```

pub mod derived;
mod flight;
pub mod judge;
mod pace;
mod partial;
mod shelf;
mod sparse;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::BoxFuture, pin_mut, stream::BoxStream};
use rebec_api::{ApiError, ErrorCode, image::Part};
use rebec_book::{
    key::{Digest, Key, Name},
    record::PartRef,
};

use self::{flight::Flights, shelf::Shelf};

/// How long somebody who sends a file may pause.
const STALL_TIME: Duration = Duration::from_secs(30);

/// A host that holds a part, and how it is asked.
pub trait Holder: Send + Sync {
    /// Its key.
    fn key(&self) -> Key;
    /// Its name, for messages.
    fn name(&self) -> &str;
    /// The bytes of a part, from one on.
    fn read<'a>(&'a self, part: &'a PartRef, from: u64) -> BoxFuture<'a, Result<Pieces>>;
}

/// Bytes on their way.
pub type Pieces = BoxStream<'static, Result<Bytes>>;

/// How near a holder is, which is how far it is believed to send what it says: the nearest is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// Under the same administrator.
    Own,
    /// It sends the VM that needs the part.
    Sender,
    /// Any other.
    Other,
}

/// Holders in the order in which they are asked.
pub fn nearest_first<H>(mut holders: Vec<(Nearness, H)>) -> Vec<H> {
    holders.sort_by_key(|(nearness, _)| *nearness);
    holders.into_iter().map(|(_, holder)| holder).collect()
}

/// Parts of this host.
pub struct Depot {
    shelf: Arc<Shelf>,
    flights: Flights,
    /// Held while something is made of a part.
    pub deriving: tokio::sync::Mutex<()>,
}

impl Depot {
    /// Opens or makes it.
    pub fn open(state: &Path) -> Result<Self> {
        let shelf = Arc::new(Shelf::open(state.join("parts"))?);
        Ok(Self { shelf, flights: Flights::default(), deriving: tokio::sync::Mutex::default() })
    }

    /// Where a part is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.shelf.path(digest)
    }

    /// Whether a part is here.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// All parts.
    pub fn list(&self) -> Vec<Digest> {
        self.shelf.list()
    }

    /// Removes parts, and what was made of them.
    pub fn remove(&self, digests: impl Iterator<Item = Digest>) {
        for digest in digests {
            if let Err(error) = std::fs::remove_file(self.path(&digest)).and_then(|()| derived::remove(self, &digest)) {
                log::warn!("depot: remove {digest}: {error}");
            }
        }
    }

    /// Removes the parts that are not `needed` and were not asked for within an hour, and what has been on its way for longer than a day.
    /// Returns the parts that have gone.
    pub fn sweep(&self, needed: &BTreeSet<Digest>) -> Vec<Digest> {
        self.sweep_at(needed, Instant::now())
    }

    fn sweep_at(&self, needed: &BTreeSet<Digest>, now: Instant) -> Vec<Digest> {
        self.shelf.remove_old_partials(&self.flights.wanted());
        let unneeded = self.list().into_iter().filter(|digest| !needed.contains(digest));
        let gone: Vec<_> = unneeded.filter(|digest| self.shelf.remove_unused(digest, now)).collect();
        for digest in &gone {
            log::info!("depot: nothing needs part {} any more", digest.short());
            if let Err(error) = derived::remove(self, digest) {
                log::warn!("depot: remove what was made of {digest}: {error}");
            }
        }
        gone
    }

    /// A file that goes at the agent's next start if it gets no other name.
    pub fn new_file(&self) -> std::io::Result<tempfile::NamedTempFile> {
        self.shelf.new_file()
    }

    /// Takes in a file as it arrives. `length` is what its sender says, if it does.
    pub async fn take<E: Display>(&self, pieces: impl Stream<Item = Result<Bytes, E>>, length: Option<u64>) -> Result<Part, ApiError> {
        self.shelf.require_room(length.unwrap_or(0))?;
        let io = |error: std::io::Error| ApiError::new(ErrorCode::Failed, format!("depot: write a part: {error}"));
        let file = self.new_file().map_err(io)?;
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0u64);
        pin_mut!(pieces);
        let cut_off = |bytes, why: &str| {
            ApiError::new(ErrorCode::BadRequest, format!("the import was cut off after {bytes} bytes: {why}; start it again"))
        };
        loop {
            let piece = tokio::time::timeout(STALL_TIME, pieces.next()).await;
            let Some(piece) = piece.map_err(|_| cut_off(bytes, "nothing more came"))? else { break };
            let data = piece.map_err(|error| cut_off(bytes, &error.to_string()))?;
            self.shelf.require_room(data.len() as u64)?;
            tokio::task::block_in_place(|| {
                hasher.update(&data);
                sparse::write_at(file.as_file(), bytes, &data)
            })
            .map_err(io)?;
            bytes += data.len() as u64;
        }
        if length.is_some_and(|length| length != bytes) {
            return Err(ApiError::new(ErrorCode::BadRequest, format!("the import was cut off after {bytes} bytes; start it again")));
        }
        let digest: Digest = Name(*hasher.finalize().as_bytes());
        tokio::task::block_in_place(|| {
            file.as_file().set_len(bytes)?;
            let (writer, temporary) = file.into_parts();
            self.shelf.name(writer, &digest)?;
            temporary.close()
        })
        .map_err(io)?;
        Ok(Part { digest: digest.to_string(), bytes })
    }

    /// Gets a part from the first of `holders` that has it, nearest first; goes on where an earlier try stopped. Who asks for a part that is on
    /// its way waits for it with those who asked before, and the holders that it names are asked too where theirs fail.
    pub async fn fetch(
        &self,
        part: &PartRef,
        holders: &[Arc<dyn Holder>],
        progress: impl Fn(&str, u64, u64) + Send,
    ) -> Result<(), ApiError> {
        if self.shelf.use_part(&part.digest) {
            return Ok(());
        }
        let mut told = self.flights.join(&self.shelf, part, holders)?;
        loop {
            let now = told.borrow_and_update().clone();
            if let Some(outcome) = now.outcome {
                return outcome;
            }
            if !now.from.is_empty() {
                progress(&now.from, now.done, part.bytes);
            }
            if told.changed().await.is_err() && told.borrow().outcome.is_none() {
                let message = format!("part {}: fetching it ended early; see the agent's log", part.digest.short());
                return Err(ApiError::new(ErrorCode::Failed, message));
            }
        }
    }
}
