//! A file on its way to the agent: read in pieces, unpacked if it is a packed image, hashed as it goes, counted for whoever watches.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, FileTypeExt as _},
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

use super::{ClientError, qcow2};

/// One read, and so one piece on its way.
const PIECE_BYTES: usize = 256 << 10;
/// How often the watcher hears.
const WATCH_PERIOD: Duration = Duration::from_millis(100);
/// Longest time in which nothing moves; the agent syncs and verifies what it took before it answers.
const STALL_TIME: Duration = Duration::from_secs(300);

/// More memory than any preset of xz asks for.
const XZ_MEMORY_BYTES_MAX: u64 = 160 << 20;
/// Window of a zstd stream that is unpacked: that of `zstd --long=27`, and 128 MiB of memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A file as the body of a request.
pub struct Upload {
    path: PathBuf,
    source: Box<dyn Read + Send>,
    /// Bytes of the file.
    length: u64,
    /// Of what is sent, what is still to be sent; none, where it comes unpacked and nobody knows.
    left: Option<u64>,
    is_ended: bool,
    hasher: blake3::Hasher,
    sent: Arc<Sent>,
}

/// What has left so far.
#[derive(Debug, Default)]
pub struct Sent {
    /// Of the file.
    read: AtomicU64,
    /// Of what it holds: as many, unless it is packed.
    bytes: AtomicU64,
    digest: OnceLock<String>,
}

impl Upload {
    /// Opens a file. It is sent with the length that it has now.
    pub fn open(path: &Path) -> Result<Self, ClientError> {
        let (file, length) = open(path)?;
        let sent = Arc::new(Sent::default());
        let source = Box::new(Counted { file, sent: sent.clone() }.take(length));
        Ok(Self { path: path.to_owned(), source, length, left: Some(length), is_ended: false, hasher: blake3::Hasher::new(), sent })
    }

    /// Opens a disk image, packed by gzip, xz, zstd or bzip2 or not, or qcow2 with zstd inside: what is sent is unpacked.
    pub fn open_packed(path: &Path) -> Result<Self, ClientError> {
        let mut plain = Self::open(path)?;
        let refuse = |error: io::Error| ClientError::File(format!("{}: {error}", path.display()));
        let (mut file, _) = open(path)?;
        let mut magic = vec![];
        file.by_ref().take(qcow2::HEADER_BYTES as u64).read_to_end(&mut magic).map_err(refuse)?;
        file.seek(SeekFrom::Start(0)).map_err(refuse)?;
        let counted = Counted { file, sent: plain.sent.clone() };
        if let Some(header) = qcow2::Header::read(&magic) {
            let image = header.unpack(move |at, buffer: &mut [u8]| counted.read_at(at, buffer)).map_err(refuse)?;
            (plain.source, plain.left) = (Box::new(image), None);
            return Ok(plain);
        }
        let packed = BufReader::with_capacity(PIECE_BYTES, counted);
        plain.source = match magic.as_slice() {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
                let stream = xz2::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, xz2::stream::CONCATENATED);
                Box::new(xz2::bufread::XzDecoder::new_stream(packed, stream.map_err(|error| refuse(error.into()))?))
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(refuse)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(refuse)?;
                Box::new(decoder)
            }
            [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
            _ => return Ok(plain),
        };
        plain.left = None;
        Ok(plain)
    }

    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether all of it was sent.
    pub fn is_empty(&self) -> bool {
        self.is_ended
    }

    /// The count of what has left, which outlives the body.
    pub fn sent(&self) -> Arc<Sent> {
        Arc::clone(&self.sent)
    }

    /// The next piece; none at the end.
    fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut filled = 0;
        while filled < piece.len() {
            match self.source.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        piece.truncate(filled);
        let count = filled as u64;
        if let Some(left) = &mut self.left {
            *left = left
                .checked_sub(count)
                .filter(|_| count > 0 || *left == 0)
                .ok_or_else(|| io::Error::other("it shrank while it was read"))?;
        }
        self.hasher.update(&piece);
        self.sent.bytes.fetch_add(count, Ordering::Relaxed);
        self.is_ended = count == 0 || self.left == Some(0);
        if self.is_ended {
            self.sent.digest.get_or_init(|| self.hasher.finalize().to_hex().to_string());
        }
        Ok((count > 0).then_some(piece))
    }
}

/// A file, or a block device, and its length.
fn open(path: &Path) -> Result<(File, u64), ClientError> {
    let refuse = |why: String| ClientError::File(format!("{}: {why}", path.display()));
    let mut file = File::open(path).map_err(|error| refuse(error.to_string()))?;
    let kind = file.metadata().map_err(|error| refuse(error.to_string()))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(refuse("it is not a file".to_owned()));
    }
    let length = file.seek(SeekFrom::End(0)).and_then(|length| file.seek(SeekFrom::Start(0)).map(|_| length));
    match length.map_err(|error| refuse(error.to_string()))? {
        0 => Err(refuse("it is empty".to_owned())),
        length => Ok((file, length)),
    }
}

/// A file that tells how far it was read.
struct Counted {
    file: File,
    sent: Arc<Sent>,
}

impl Counted {
    /// Reads at a place, as much as there is.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], at.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.sent.read.fetch_add(filled as u64, Ordering::Relaxed);
        Ok(filled)
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.sent.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl Sent {
    /// Bytes that were sent.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

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
                    watch(self.read.load(Ordering::Relaxed));
                    return Some(done);
                }
                _ = ticks.tick() => {
                    let bytes = self.read.load(Ordering::Relaxed);
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
        if self.is_ended {
            return Poll::Ready(None);
        }
        match self.piece() {
            Ok(piece) => Poll::Ready(piece.map(|piece| Ok(Frame::data(piece.into())))),
            Err(error) => Poll::Ready(Some(Err(io::Error::other(format!("{}: {error}", self.path.display()))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
