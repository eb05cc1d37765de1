//! A virtual disk over opened files: raw or qcow2, with a chain of read-only backing images. Reads and writes come from the block device's
//! thread and, while the VM moves, from the threads that send or receive its clusters.
//!
//! Nothing here opens a path: files come in opened, backing images with them, and imago gets a gate that refuses to open anything itself.
//! Not here: the guest's requests (`block`), and what is done with dirty units (the move).
//!
//! ```text
//!   block thread ──write──┐  shared   ┌─► imago: qcow2 or raw ──► file (page cache)
//!   move threads ──read───┴──────────►│        └─ backing ──► qcow2 or raw, read only
//!   discard ───────exclusive─────────►┘
//!         └── dirty map: one bit per 4 KiB unit, set before and after each change
//! ```
//!
//! Where bytes lie in the files as they are (`parts`), a queue carries them between there and guest memory without imago (`ring`), under a lease (`lease`).
//!
//! The lock is imago's own condition put in code: a discard frees clusters, so nobody may hold a mapping meanwhile. It is held across the I/O
//! that it protects; reads and writes share it. The host's disk is waited for without it.

mod dirty;
mod extent;
mod header;
mod lease;
mod lengths;
mod parts;
mod ring;
mod tables;
mod zeros;

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, format::PreallocateMode, qcow2::Qcow2, raw::Raw,
};
use rebec_bits::BitSet;

use dirty::DirtyMap;
pub use extent::{Extent, ExtentKind};
pub use header::{BackingName, ImageFormat};
pub(crate) use lease::Lease;
use lease::Leases;
use lengths::Lengths;
pub(crate) use parts::{PARTS_MAX, Part};
use ring::Rings;
pub use ring::{Done, FileRing};

/// Sectors of the virtio block protocol.
pub const SECTOR_BYTES: u64 = 512;
/// Devices erase whole sectors only, and none has larger ones.
const DEVICE_SECTOR_BYTES_MAX: u64 = 4096;
/// Longest chain of backing images.
pub const BACKING_MAX: usize = 16;

/// Why a disk cannot be used. Each names the disk as the user did.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The content is no image, or not the one its name or header claims.
    #[error("disk {name}: not what it says: {reason}")]
    NotWhatItSays {
        /// The disk.
        name: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A backing image is named in the header and was not given, or the other way around.
    #[error("disk {name}: {reason}")]
    Backing {
        /// The disk.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The file cannot be read or written.
    #[error("disk {name}: {operation}: {source}")]
    File {
        /// The disk.
        name: String,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

type Image = FormatAccess<imago::file::File>;

/// An opened virtual disk. Safe to share: a read sees each 4 KiB unit as before or after a concurrent write, or torn; whoever copies the
/// disk while the guest runs takes the dirty map first and reads what was torn again.
#[derive(Debug)]
pub struct Disk {
    name: String,
    /// Grows, and never shrinks.
    bytes: AtomicU64,
    read_only: bool,
    format: ImageFormat,
    image: RwLock<Image>,
    /// Identities of the files, the image's own first.
    files: Vec<usize>,
    leases: Arc<Leases>,
    rings: Rings,
    queues: u8,
    /// The file once more: to be synced without the lock that imago holds meanwhile, and, of a raw image, to ask the host where its holes are.
    file: File,
    /// How long the files were when they were opened.
    lengths: Lengths,
    /// What the format's tables tell apart: a cluster of qcow2, a byte of a raw disk, the largest sector of a device.
    cluster_bytes: u64,
    dirty: DirtyMap,
}

impl Disk {
    /// The backing image that an image names, if any: who opens disks asks this, opens that file beside the image and passes it to
    /// [`Disk::open`]. Ask the backing file in turn.
    pub fn backing_name(name: &str, file: &File) -> Result<Option<BackingName>, DiskError> {
        Ok(header::probe(name, file)?.and_then(|header| header.backing))
    }

    /// Opens an image, raw or qcow2 by its content. `backing` is the chain that [`Disk::backing_name`] asked for, nearest first.
    pub fn open(name: &str, file: File, backing: Vec<File>, read_only: bool) -> Result<Self, DiskError> {
        let file_error = |operation| move |source| DiskError::File { name: name.to_owned(), operation, source };
        let header = header::probe(name, &file)?;
        let mut lower: Option<Arc<Image>> = None;
        let mut files = Vec::with_capacity(backing.len() + 1);
        let mut above = header.as_ref().and_then(|h| h.backing.clone());
        let chain = resolve_chain(name, &backing, &mut above)?;
        let lengths = Lengths::of(&file, &backing).map_err(file_error("open"))?;
        for (file, format) in backing.into_iter().zip(chain).rev() {
            let image = Arc::new(open_image(file, format, lower, true).map_err(file_error("open its backing image"))?);
            files.push(parts::identity(&image));
            lower = Some(image);
        }
        let (format, cluster_bytes) = match header {
            Some(header) => {
                tables::check(name, &file, &header.tables)?;
                (ImageFormat::Qcow2, header.tables.cluster_bytes())
            }
            None => (ImageFormat::Raw, if lengths::is_device(&file).map_err(file_error("open"))? { DEVICE_SECTOR_BYTES_MAX } else { 1 }),
        };
        let once_more = file.try_clone().map_err(file_error("open"))?;
        let image = open_image(file, format, lower, read_only).map_err(file_error("open"))?;
        files.push(parts::identity(&image));
        files.reverse();
        let bytes = image.size();
        header::check_size(name, bytes)?;
        let (name, bytes, image, dirty) = (name.to_owned(), AtomicU64::new(bytes), RwLock::new(image), DirtyMap::default());
        let (leases, rings) = (Arc::default(), Rings::default());
        Ok(Self { name, bytes, read_only, format, image, files, leases, rings, queues: 1, file: once_more, lengths, cluster_bytes, dirty })
    }

    /// Makes an empty qcow2 image in an empty file that is open for reading and writing. Open it with [`Disk::open`] afterwards.
    pub fn create_qcow2(name: &str, file: &File, bytes: u64, backing: Option<&BackingName>) -> Result<(), DiskError> {
        let file_error = |operation| move |source| DiskError::File { name: name.to_owned(), operation, source };
        header::check_size(name, bytes)?;
        if file.metadata().map_err(file_error("create"))?.len() != 0 {
            let reason = "a new image needs an empty file, and this one holds something".to_owned();
            return Err(DiskError::NotWhatItSays { name: name.to_owned(), reason });
        }
        let storage = file.try_clone().and_then(imago::file::File::try_from).map_err(file_error("create"))?;
        let mut builder = Qcow2::<imago::file::File>::create_builder(storage).size(bytes);
        if let Some(backing) = backing {
            builder = builder.backing(backing.name.clone(), backing.format.unwrap_or(ImageFormat::Raw).to_string());
        }
        builder.create().map_err(file_error("create"))
    }

    /// The same disk for a device of so many queues, which have these rings to its files: the image's first, then those of its backing images in their
    /// order. A queue without one does by hand what it has to do.
    pub fn with_queues(self, queues: u8, rings: Vec<Box<dyn FileRing>>) -> Self {
        Self { queues, rings: Rings::new(rings), ..self }
    }

    /// How many queues its device has.
    pub fn queues(&self) -> u8 {
        self.queues
    }

    /// As the user named it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Virtual size, a multiple of [`SECTOR_BYTES`].
    pub fn size_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Makes the disk larger; what is new shows its backing image, if that is so long, and zeros after that. It may be in use, but must not be moving:
    /// maps of what changed have the size that they began with.
    pub fn grow(&self, bytes: u64) -> Result<(), DiskError> {
        let refuse = |reason: String| Err(DiskError::NotWhatItSays { name: self.name.clone(), reason });
        let old = self.size_bytes();
        if self.read_only || self.format == ImageFormat::Raw {
            return refuse("only a qcow2 disk that may be written grows".to_owned());
        }
        if bytes < old {
            return refuse(format!("it has {old} bytes and does not shrink: what lies beyond {bytes} would be lost"));
        }
        header::check_size(&self.name, bytes)?;
        let grown = {
            let image = self.exclusive();
            image.resize_grow(bytes, PreallocateMode::None).and_then(|()| image.flush()).and_then(|()| image.sync())
        };
        grown.map_err(|source| DiskError::File { name: self.name.clone(), operation: "grow", source })?;
        self.bytes.store(bytes, Ordering::Release);
        Ok(())
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Raw or qcow2.
    pub fn format(&self) -> ImageFormat {
        self.format
    }

    /// Reads all of `buffer`; past the end is an error, and so is a file that somebody has made shorter: what was there is no zeros.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, buffer.len() as u64)?;
        self.shared().read(buffer, offset)?;
        self.lengths.check()
    }

    /// Writes all of `data`; past the end is an error, and so is a full host disk.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_change(offset, data.len() as u64)?;
        self.refuse_disguise(offset, data)?;
        self.changing(offset, data.len() as u64, || self.shared().write(data, offset))
    }

    /// Makes a range read as zeros, its space kept.
    pub fn zero_at(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.check_change(offset, bytes)?;
        let range = offset..offset + bytes;
        self.changing(offset, bytes, || self.zero_with(&range, |whole| self.shared().write_zeroes(whole.start, whole.end - whole.start)))
    }

    /// Makes a range read as zeros and gives its space back to the host where the format can.
    pub fn discard_at(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.check_change(offset, bytes)?;
        let range = offset..offset + bytes;
        self.changing(offset, bytes, || {
            self.leases.alone(|| self.zero_with(&range, |whole| self.exclusive().discard_to_zero(whole.start, whole.end - whole.start)))
        })
    }

    /// `clear` makes whole clusters zero; the ends are written, and all of it where the format has no zero clusters (qcow2 version 2).
    fn zero_with(&self, range: &Range<u64>, clear: impl FnOnce(&Range<u64>) -> io::Result<()>) -> io::Result<()> {
        let mut whole = zeros::whole_clusters(range, self.cluster_bytes, self.size_bytes());
        if !whole.is_empty() {
            match clear(&whole) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => whole = range.start..range.start,
                done => done?,
            }
        }
        for part in [range.start..whole.start, whole.end..range.end] {
            zeros::write(&self.shared(), self.raw(), part)?;
        }
        Ok(())
    }

    /// Everything written so far is on the host's disk when this returns.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.flush_tables()?;
        self.lengths.check()?;
        // Reads and writes go on meanwhile, of this guest and of a move.
        self.file.sync_data()
    }

    /// Writes what imago keeps of its tables to the file. A sync of the file's data then makes lasting all that was written before.
    pub(crate) fn flush_tables(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.shared().flush() }
    }

    /// What the tables say stays so while this is held.
    pub(crate) fn lease(&self) -> Lease {
        self.leases.take()
    }

    /// Where the bytes of a range lie, into `parts`; false where they must be read or written by [`Disk::read_at`] or [`Disk::write_at`]. True as long as the
    /// lease is held. Whoever writes there calls [`Disk::mark`] before and after.
    pub(crate) fn parts(&self, _lease: &Lease, offset: u64, bytes: u64, writes: bool, parts: &mut Vec<Part>) -> io::Result<bool> {
        // A disguise is looked for in what is written to the beginning.
        if writes && (self.read_only || self.raw().is_some() && offset < 4) {
            return Ok(false);
        }
        self.check_range(offset, bytes)?;
        parts::find(&self.shared(), &self.files, offset, bytes, writes, parts)
    }

    /// A range is about to change, or has changed.
    pub(crate) fn mark(&self, offset: u64, bytes: u64) {
        self.dirty.mark(offset, bytes);
    }

    /// A ring to the files, if there is one left.
    pub(crate) fn take_ring(&self) -> Option<Box<dyn FileRing>> {
        self.rings.take()
    }

    /// Gives a ring back, with nothing under way.
    pub(crate) fn give_ring(&self, ring: Box<dyn FileRing>) {
        self.rings.give(ring);
    }

    /// The file of a raw image.
    fn raw(&self) -> Option<&File> {
        (self.format == ImageFormat::Raw).then_some(&self.file)
    }

    /// Starts recording which 4 KiB units change, from none.
    pub fn track_start(&self) {
        self.dirty.start(self.size_bytes());
    }

    /// The units that changed since the last call. None, out of none, while nothing is recorded.
    pub fn track_take(&self) -> BitSet {
        self.dirty.take()
    }

    /// Ends recording.
    pub fn track_stop(&self) {
        self.dirty.stop();
    }

    /// What the image holds at `offset` and how far that goes on; `None` past the end.
    pub fn extent_at(&self, offset: u64) -> io::Result<Option<Extent>> {
        let bytes = self.size_bytes();
        if offset >= bytes {
            return Ok(None);
        }
        extent::find(&self.shared(), self.raw(), offset, bytes).map(Some)
    }

    /// All of the disk, one extent after the other; whoever meets an error stops there.
    pub fn extents(&self) -> impl Iterator<Item = io::Result<Extent>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let found = self.extent_at(at).transpose()?;
            at = found.as_ref().map_or(u64::MAX, |extent| extent.range.end.max(at + 1));
            Some(found)
        })
    }

    fn check_range(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{bytes} bytes at {offset} of a disk of {} bytes", self.size_bytes()),
            )),
        }
    }

    fn check_change(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the disk is read only"));
        }
        self.check_range(offset, bytes)
    }

    /// A raw disk that begins with qcow2's magic would be opened as qcow2 the next time, with a backing file of the guest's choice.
    fn refuse_disguise(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let Some(raw) = self.raw().filter(|_| offset < 4) else { return Ok(()) };
        let mut start = [0; 4];
        if offset > 0 || data.len() < 4 {
            raw.read_exact_at(&mut start, 0)?;
        }
        let replaced = &mut start[offset as usize..];
        let count = replaced.len().min(data.len());
        replaced[..count].copy_from_slice(&data[..count]);
        if header::is_foreign_magic(&start) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a raw disk must not begin like an image of another format"));
        }
        Ok(())
    }

    /// Marks before, so that a unit being written is known to be so, and after, so that whoever took the map and read meanwhile reads again.
    fn changing(&self, offset: u64, bytes: u64, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.dirty.mark(offset, bytes);
        let done = change();
        self.dirty.mark(offset, bytes);
        done
    }

    fn shared(&self) -> RwLockReadGuard<'_, Image> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Image> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The formats of the chain, checked against what each header above says.
fn resolve_chain(name: &str, backing: &[File], above: &mut Option<BackingName>) -> Result<Vec<ImageFormat>, DiskError> {
    let refuse = |reason: String| DiskError::Backing { name: name.to_owned(), reason };
    if backing.len() > BACKING_MAX {
        return Err(refuse(format!("{} backing images; at most {BACKING_MAX} are supported", backing.len())));
    }
    let mut formats = Vec::with_capacity(backing.len());
    for file in backing {
        let Some(expected) = above.take() else {
            return Err(refuse("has no backing image, but one was given".to_owned()));
        };
        // The header's word counts: a raw backing image may begin with anything, qcow2's magic included.
        let found = if expected.format == Some(ImageFormat::Raw) { None } else { header::probe(&expected.name, file)? };
        if expected.format == Some(ImageFormat::Qcow2) && found.is_none() {
            let reason = format!("its header calls its backing image {} qcow2, which it is not", expected.name);
            return Err(DiskError::NotWhatItSays { name: name.to_owned(), reason });
        }
        if let Some(header) = &found {
            tables::check(&expected.name, file, &header.tables)?;
        }
        formats.push(if found.is_some() { ImageFormat::Qcow2 } else { ImageFormat::Raw });
        *above = found.and_then(|header| header.backing);
    }
    match above {
        None => Ok(formats),
        Some(missing) => Err(refuse(format!("its backing image {} was not given", missing.name))),
    }
}

fn open_image(file: File, format: ImageFormat, backing: Option<Arc<Image>>, read_only: bool) -> io::Result<Image> {
    let storage = imago::file::File::try_from(file)?;
    let gate = DenyImplicitOpenGate::default();
    match format {
        ImageFormat::Raw => Ok(FormatAccess::new(Raw::builder(storage).write(!read_only).open(gate)?)),
        ImageFormat::Qcow2 => {
            let builder = Qcow2::<_, Arc<Image>>::builder(storage).backing(backing).data_file(None);
            Ok(FormatAccess::new(builder.write(!read_only).open(gate)?))
        }
    }
}

#[cfg(test)]
mod tests;
