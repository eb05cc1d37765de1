//! The depot: immutable files named by the BLAKE3 of their content. A file has its name only once its content was verified;
//! what arrives from elsewhere waits beside it and goes on where it stopped.

use std::{
    fmt::Display,
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::BoxFuture, pin_mut, stream::BoxStream};
use rebec_api::{ApiError, ErrorCode, image::Part};
use rebec_book::{
    key::{Digest, Key, Name},
    record::PartRef,
};

use crate::{derived, facts};

/// Room that stays free on the depot's file system: disks of running VMs grow.
const SPARE_BYTES: u64 = 64 << 20;
/// What an import is called until it is whole.
const NEW_PREFIX: &str = ".new-";
/// How long somebody who sends a file may pause.
const STALL_TIME: Duration = Duration::from_secs(30);
/// Read at once when a file is hashed.
const CHUNK_BYTES: usize = 1 << 20;

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

/// Parts of this host.
pub struct Depot {
    folder: PathBuf,
    /// Held while something is made of a part.
    pub deriving: tokio::sync::Mutex<()>,
}

impl Depot {
    /// Opens or makes it.
    pub fn open(state: &Path) -> Result<Self> {
        let depot = Self { folder: state.join("parts"), deriving: tokio::sync::Mutex::default() };
        fs::create_dir_all(&depot.folder).with_context(|| format!("create {}", depot.folder.display()))?;
        // Imports that a killed agent left (their senders were never told that they had ended well), and what was made of parts that are gone.
        for entry in fs::read_dir(&depot.folder)?.flatten() {
            let is_new = entry.file_name().to_string_lossy().starts_with(NEW_PREFIX);
            if is_new || derived::is_orphan(&entry.path()) {
                fs::remove_file(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
            }
        }
        Ok(depot)
    }

    /// Where a part is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    /// Whether a part is here.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// All parts.
    pub fn list(&self) -> Vec<Digest> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return vec![] };
        let mut all: Vec<Digest> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        all.sort_unstable();
        all
    }

    /// Removes parts, and what was made of them.
    pub fn remove(&self, digests: impl Iterator<Item = Digest>) {
        for digest in digests {
            if let Err(error) = fs::remove_file(self.path(&digest)).and_then(|()| derived::remove(self, &digest)) {
                log::warn!("depot: remove {digest}: {error}");
            }
        }
    }

    /// A file that goes at the agent's next start if it gets no other name.
    pub fn new_file(&self) -> std::io::Result<tempfile::NamedTempFile> {
        tempfile::NamedTempFile::with_prefix_in(NEW_PREFIX, &self.folder)
    }

    /// Takes in a file as it arrives. `length` is what its sender says, if it does.
    pub async fn take<E: Display>(&self, pieces: impl Stream<Item = Result<Bytes, E>>, length: Option<u64>) -> Result<Part, ApiError> {
        self.require_room(length.unwrap_or(0))?;
        let io = |error: std::io::Error| ApiError::new(ErrorCode::Failed, format!("depot: write a part: {error}"));
        let mut file = self.new_file().map_err(io)?;
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0u64);
        pin_mut!(pieces);
        let cut_off = |bytes, why: &str| {
            ApiError::new(ErrorCode::BadRequest, format!("the import was cut off after {bytes} bytes: {why}; start it again"))
        };
        loop {
            let piece = tokio::time::timeout(STALL_TIME, pieces.next()).await;
            let Some(piece) = piece.map_err(|_| cut_off(bytes, "nothing more came"))? else { break };
            let data = piece.map_err(|error| cut_off(bytes, &error.to_string()))?;
            self.require_room(data.len() as u64)?;
            tokio::task::block_in_place(|| {
                hasher.update(&data);
                file.write_all(&data)
            })
            .map_err(io)?;
            bytes += data.len() as u64;
        }
        if length.is_some_and(|length| length != bytes) {
            return Err(ApiError::new(ErrorCode::BadRequest, format!("the import was cut off after {bytes} bytes; start it again")));
        }
        let digest: Digest = Name(*hasher.finalize().as_bytes());
        let path = self.path(&digest);
        tokio::task::block_in_place(|| {
            file.as_file().sync_all()?;
            file.persist(&path)?;
            fs::File::open(&self.folder)?.sync_all()
        })
        .map_err(io)?;
        Ok(Part { digest: digest.to_string(), bytes })
    }

    fn require_room(&self, bytes: u64) -> Result<(), ApiError> {
        let (_, free) = facts::disk_bytes(&self.folder);
        if free < bytes.saturating_add(SPARE_BYTES) {
            let message = format!(
                "the depot has {} MiB free, {} MiB are needed and {} MiB stay free for disks; remove an image or use a larger disk",
                free >> 20,
                bytes.div_ceil(1 << 20),
                SPARE_BYTES >> 20
            );
            return Err(ApiError::new(ErrorCode::TooLarge, message));
        }
        Ok(())
    }

    /// Gets a part from the first of `holders` that has it, nearest first; goes on where an earlier try stopped.
    pub async fn fetch(
        &self,
        part: &PartRef,
        holders: &[Arc<dyn Holder>],
        progress: impl Fn(&str, u64, u64) + Send,
    ) -> Result<(), ApiError> {
        if self.has(&part.digest) {
            return Ok(());
        }
        let mut reasons = vec![];
        for holder in holders {
            match self.fetch_from(part, holder.as_ref(), &progress).await {
                Ok(()) => return Ok(()),
                Err(error) => reasons.push(format!("{}: {error:#}", holder.name())),
            }
        }
        let message = format!("part {} is not here and could not be fetched; is a host that holds the image running?", part.digest.short());
        Err(ApiError { code: ErrorCode::Unreachable, message, details: reasons })
    }

    async fn fetch_from(&self, part: &PartRef, holder: &dyn Holder, progress: &(impl Fn(&str, u64, u64) + Send)) -> Result<()> {
        let partial = self.folder.join(format!(".from-elsewhere-{}", part.digest));
        let mut file = fs::File::options().create(true).truncate(false).read(true).write(true).open(&partial)?;
        let mut at = file.seek(SeekFrom::End(0))?;
        if at > part.bytes {
            file.set_len(0)?;
            at = file.seek(SeekFrom::Start(0))?;
        }
        self.require_room(part.bytes - at)?;
        if at < part.bytes {
            let mut pieces = holder.read(part, at).await?;
            while let Some(piece) = pieces.next().await {
                let data = piece?;
                at += data.len() as u64;
                if at > part.bytes {
                    bail!("it sends more than the {} bytes of the part", part.bytes);
                }
                tokio::task::block_in_place(|| file.write_all(&data))?;
                progress(holder.name(), at, part.bytes);
            }
            if at < part.bytes {
                bail!("cut off after {at} of {} bytes", part.bytes);
            }
        }
        tokio::task::block_in_place(|| {
            file.sync_all()?;
            file.seek(SeekFrom::Start(0))?;
            if hash(&mut file)? != part.digest {
                fs::remove_file(&partial)?;
                bail!("what it sent is not the part: the content has another hash");
            }
            fs::rename(&partial, self.path(&part.digest))?;
            fs::File::open(&self.folder)?.sync_all()?;
            Ok(())
        })
    }
}

fn hash(file: &mut fs::File) -> std::io::Result<Digest> {
    let (mut hasher, mut chunk) = (blake3::Hasher::new(), vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(Name(*hasher.finalize().as_bytes())),
            count => hasher.update(&chunk[..count]),
        };
    }
}
