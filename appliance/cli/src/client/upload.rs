//! A file on its way to the agent: read in pieces, hashed as it goes, counted for whoever watches.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::time::interval;

use super::ClientError;

/// One read, and so one piece on its way.
const PIECE_BYTES: usize = 256 << 10;
/// How often the watcher hears.
const WATCH_PERIOD: Duration = Duration::from_millis(100);
/// Longest time in which nothing moves; the agent syncs and verifies what it took before it answers.
const STALL_TIME: Duration = Duration::from_secs(300);

/// A file as the body of a request.
#[derive(Debug)]
pub struct Upload {
    path: PathBuf,
    file: File,
    left: u64,
    hasher: blake3::Hasher,
    sent: Arc<Sent>,
}

/// What has left so far.
#[derive(Debug, Default)]
pub struct Sent {
    bytes: AtomicU64,
    digest: OnceLock<String>,
}

impl Upload {
    /// Opens a file. It is sent with the length that it has now.
    pub fn open(path: &Path) -> Result<Self, ClientError> {
        let refuse = |why: String| ClientError::File(format!("{}: {why}", path.display()));
        let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
        let metadata = file.metadata().map_err(|error| refuse(error.to_string()))?;
        if !metadata.is_file() {
            return Err(refuse("it is not a file".to_owned()));
        }
        if metadata.len() == 0 {
            return Err(refuse("it is empty".to_owned()));
        }
        Ok(Self { path: path.to_owned(), file, left: metadata.len(), hasher: blake3::Hasher::new(), sent: Arc::default() })
    }

    /// Bytes that are still to be sent.
    pub fn len(&self) -> u64 {
        self.left
    }

    /// Whether all of it was sent.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The count of what has left, which outlives the body.
    pub fn sent(&self) -> Arc<Sent> {
        Arc::clone(&self.sent)
    }
}

impl Sent {
    /// BLAKE3 of what was sent; none before the end.
    pub fn digest(&self) -> Option<&str> {
        self.digest.get().map(String::as_str)
    }

    /// Does the work and tells `watch` how far it is; none when nothing has moved for too long.
    pub(super) async fn watch<T>(&self, work: impl Future<Output = T>, mut watch: impl FnMut(u64)) -> Option<T> {
        let mut work = pin!(work);
        let mut ticks = interval(WATCH_PERIOD);
        let (mut seen, mut moved) = (0, Instant::now());
        loop {
            tokio::select! {
                done = &mut work => {
                    watch(self.bytes.load(Ordering::Relaxed));
                    return Some(done);
                }
                _ = ticks.tick() => {
                    let bytes = self.bytes.load(Ordering::Relaxed);
                    watch(bytes);
                    if bytes != seen {
                        (seen, moved) = (bytes, Instant::now());
                    } else if moved.elapsed() > STALL_TIME {
                        return None;
                    }
                }
            }
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    /// Reads without waiting for the disk elsewhere: this thread has nothing better to do.
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(this.left).unwrap_or(PIECE_BYTES))];
        let read = match this.file.read(&mut piece) {
            Ok(0) => return Poll::Ready(Some(Err(io::Error::other(format!("{} shrank while it was read", this.path.display()))))),
            Ok(read) => read,
            Err(error) => return Poll::Ready(Some(Err(io::Error::other(format!("{}: {error}", this.path.display()))))),
        };
        piece.truncate(read);
        let count = u64::try_from(read).unwrap_or(this.left);
        this.left -= count;
        this.hasher.update(&piece);
        this.sent.bytes.fetch_add(count, Ordering::Relaxed);
        if this.left == 0 {
            this.sent.digest.get_or_init(|| this.hasher.finalize().to_hex().to_string());
        }
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
