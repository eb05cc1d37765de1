//! What a file says it is, read before imago sees it: limits come before allocation, and reasons are for the user.
//!
//! ```text
//! qcow2, big endian:  0 magic "QFI\xfb"   4 version   8 backing name offset (8)   16 its length   20 cluster bits   24 virtual size (8)
//!                    32 encryption       36 L1 entries   40 L1 offset (8)   48 refcount table offset (8)   56 its clusters
//!                    60 snapshots        72 incompatible features (8)   96 refcount order   100 header length   then extensions
//! ```
//! (docs/interop/qcow2.txt of QEMU.)

use std::{fmt, fs::File, io, os::unix::fs::FileExt};

use rebec_layout::DISK_BYTES_MAX;

use super::{DiskError, SECTOR_BYTES};

const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// Other formats by their first bytes: taken for raw, a guest would see the container.
const FOREIGN: [(&[u8], &str); 5] = [(b"KDMV", "VMDK"), (b"# Di", "VMDK"), (b"vhdx", "VHDX"), (b"cone", "VHD"), (b"QED\0", "QED")];
const NAME_BYTES_MAX: u32 = 1023;
/// Incompatible features that are refused by name.
const FEATURES: [(u64, &str); 3] = [(4, "an external data file"), (8, "zstd compression"), (16, "extended L2 entries")];
/// QEMU's own limits for these tables.
const L1_BYTES_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
/// Of one feature: type, bit and 46 bytes of text.
const FEATURE_NAME_BYTES: u32 = 48;
/// Extensions read at most: real images carry three.
const EXTENSIONS_MAX: usize = 32;

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// A backing image as a qcow2 header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingName {
    /// A path, absolute or relative to the folder of the image that names it.
    pub name: String,
    /// Its format, if the header says so; otherwise its content decides.
    pub format: Option<ImageFormat>,
}

/// What is needed of a qcow2 header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) tables: Tables,
    pub(super) backing: Option<BackingName>,
}

/// Where a qcow2 image's tables are, checked as far as the header goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    pub(super) cluster_bits: u32,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u64,
    pub(super) refcounts_offset: u64,
    pub(super) refcounts_clusters: u64,
    /// Bits of a refcount, as an exponent.
    pub(super) refcount_order: u32,
}

impl Tables {
    pub(super) fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }
}

/// Reads a file's start: a sound qcow2 header, or `None` for a raw image.
pub(super) fn probe(name: &str, file: &File) -> Result<Option<Header>, DiskError> {
    let refuse = |reason: String| DiskError::NotWhatItSays { name: name.to_owned(), reason };
    let file_error = |source| DiskError::File { name: name.to_owned(), operation: "read its header", source };
    let start = read_up_to(file, 0, 4096).map_err(file_error)?;
    if start.is_empty() {
        return Err(refuse("it is empty; give a raw or qcow2 image".to_owned()));
    }
    if start.starts_with(&QCOW2_MAGIC) {
        return parse(file, &start).map(Some).map_err(|fault| match fault {
            Fault::Content(reason) => refuse(reason),
            Fault::File(source) => file_error(source),
        });
    }
    if let Some((_, format)) = FOREIGN.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(refuse(format!("it is a {format} image; convert it to raw or qcow2")));
    }
    if name.ends_with(".qcow2") {
        return Err(refuse("its name says qcow2, its content does not; give a raw or qcow2 image".to_owned()));
    }
    Ok(None)
}

/// Whether a raw disk that begins so would be taken for another format.
pub(super) fn is_foreign_magic(start: &[u8; 4]) -> bool {
    *start == QCOW2_MAGIC || FOREIGN.iter().any(|(magic, _)| start.starts_with(magic))
}

pub(super) fn check_size(name: &str, bytes: u64) -> Result<(), DiskError> {
    let reason = if bytes == 0 {
        "its size is 0".to_owned()
    } else if !bytes.is_multiple_of(SECTOR_BYTES) {
        format!("its size of {bytes} bytes is no multiple of {SECTOR_BYTES}, and it is no qcow2 image; was the file cut off?")
    } else if bytes > DISK_BYTES_MAX {
        format!("its size of {bytes} bytes is above the limit of {DISK_BYTES_MAX}")
    } else {
        return Ok(());
    };
    Err(DiskError::NotWhatItSays { name: name.to_owned(), reason })
}

/// What is wrong with an image.
pub(super) enum Fault {
    Content(String),
    File(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

fn parse(file: &File, start: &[u8]) -> Result<Header, Fault> {
    let fault = |reason: String| Err(Fault::Content(reason));
    let Some(header) = start.get(..104) else { return fault("its qcow2 header is cut short".to_owned()) };
    let (word, long) = (|at: usize| be32(header, at), |at: usize| be64(header, at));
    let (version, cluster_bits, bytes) = (word(4), word(20), long(24));
    if !(2..=3).contains(&version) {
        return fault(format!("it is qcow2 version {version}; 2 and 3 are supported"));
    }
    if !(9..=21).contains(&cluster_bits) {
        return fault(format!("its qcow2 cluster size is 2^{cluster_bits}"));
    }
    if word(32) != 0 {
        return fault("it is encrypted, which is not supported".to_owned());
    }
    if word(60) != 0 {
        return fault("it holds internal snapshots, which are not supported; delete them with qemu-img snapshot -d".to_owned());
    }
    let (features, refcount_order, header_bytes) = if version == 2 { (0, 4, 72) } else { (long(72), word(96), word(100)) };
    if features & 1 != 0 {
        return fault("it was not closed properly; repair it with qemu-img check -r all".to_owned());
    }
    if features & 2 != 0 {
        return fault("it is marked corrupt; look at it with qemu-img check".to_owned());
    }
    if features != 0 {
        let names: Vec<_> = FEATURES.iter().filter(|(bit, _)| features & bit != 0).map(|(_, name)| *name).collect();
        let known = FEATURES.iter().map(|(bit, _)| bit).sum::<u64>();
        let names = if features & !known == 0 { names.join(", ") } else { format!("features {features:#x}") };
        return fault(format!(
            "its qcow2 has {names}, which is not supported; convert it with `qemu-img convert -O qcow2 -o compression_type=zlib,extended_l2=off FILE disk.qcow2`"
        ));
    }
    let cluster_bytes = 1_u64 << cluster_bits;
    if refcount_order > 6 || u64::from(header_bytes) > cluster_bytes {
        return fault("its qcow2 header makes no sense".to_owned());
    }
    let file_bytes = io::Seek::seek(&mut &*file, io::SeekFrom::End(0))?;
    let l1_needed = bytes.div_ceil(cluster_bytes * (cluster_bytes / 8));
    let l1_entries = u64::from(word(36));
    if l1_entries < l1_needed {
        return fault(format!("its qcow2 L1 table of {l1_entries} entries is too short for {bytes} bytes"));
    }
    for (table, offset, length, max) in [
        ("L1 table", long(40), l1_entries * 8, L1_BYTES_MAX),
        ("refcount table", long(48), u64::from(word(56)) << cluster_bits, REFCOUNT_TABLE_BYTES_MAX),
    ] {
        let end = offset.checked_add(length).filter(|end| *end <= file_bytes);
        if length == 0 || length > max || offset < cluster_bytes || !offset.is_multiple_of(cluster_bytes) || end.is_none() {
            return fault(format!("its qcow2 {table} ({length} bytes at {offset}) is not inside the file"));
        }
    }
    // The header's own cluster is always in use. Where nothing counts it, imago 0.2.6 looks for room to count it in without an end.
    let first = read_up_to(file, long(48), 8)?;
    if first.len() < 8 || be64(&first, 0) < 512 {
        return fault("its qcow2 refcounts leave out its own header; repair it with qemu-img check -r all".to_owned());
    }
    let extensions = if version == 2 { Vec::new() } else { read_extensions(file, header_bytes, cluster_bytes)? };
    let backing = read_backing(file, header, &extensions, cluster_bytes)?;
    let tables = Tables {
        cluster_bits,
        l1_offset: long(40),
        l1_entries,
        refcounts_offset: long(48),
        refcounts_clusters: word(56).into(),
        refcount_order,
    };
    Ok(Header { tables, backing })
}

/// Where a header extension's data lies.
struct Extension {
    kind: u32,
    at: u64,
    bytes: u32,
}

fn read_extensions(file: &File, header_bytes: u32, cluster_bytes: u64) -> Result<Vec<Extension>, Fault> {
    let mut found = Vec::new();
    let mut at = u64::from(header_bytes);
    loop {
        let head = read_up_to(file, at, 8)?;
        if head.len() < 8 || at + 8 > cluster_bytes {
            return Ok(found);
        }
        let extension = Extension { kind: be32(&head, 0), at: at + 8, bytes: be32(&head, 4) };
        if extension.kind == 0 {
            return Ok(found);
        }
        // imago 0.2.6 panics on a name that is cut short.
        if extension.kind == EXTENSION_FEATURE_NAMES && !extension.bytes.is_multiple_of(FEATURE_NAME_BYTES) {
            return Err(Fault::Content(format!("its qcow2 table of feature names has {} bytes", extension.bytes)));
        }
        if found.len() == EXTENSIONS_MAX {
            return Err(Fault::Content(format!("its qcow2 header has more than {EXTENSIONS_MAX} extensions")));
        }
        at = extension.at + u64::from(extension.bytes).next_multiple_of(8);
        found.push(extension);
    }
}

fn read_backing(file: &File, header: &[u8], extensions: &[Extension], cluster_bytes: u64) -> Result<Option<BackingName>, Fault> {
    let (offset, length) = (be64(header, 8), be32(header, 16));
    if offset == 0 {
        return Ok(None);
    }
    let inside = offset.checked_add(u64::from(length)).is_some_and(|end| end <= cluster_bytes);
    if length == 0 || length > NAME_BYTES_MAX || !inside {
        return Err(Fault::Content(format!("the name of its backing image ({length} bytes at {offset}) is not in its header")));
    }
    let name = read_up_to(file, offset, length as usize)?;
    let name = String::from_utf8(name).map_err(|_| Fault::Content("the name of its backing image is no text".to_owned()))?;
    let named = extensions.iter().find(|extension| extension.kind == EXTENSION_BACKING_FORMAT);
    let format = named.map(|extension| read_backing_format(file, extension)).transpose()?;
    Ok(Some(BackingName { name, format }))
}

fn read_backing_format(file: &File, extension: &Extension) -> Result<ImageFormat, Fault> {
    let text = read_up_to(file, extension.at, extension.bytes.min(16) as usize)?;
    match text.as_slice() {
        b"raw" | b"file" | b"host_device" => Ok(ImageFormat::Raw),
        b"qcow2" => Ok(ImageFormat::Qcow2),
        other => Err(Fault::Content(format!("its backing image has the unsupported format {:?}", String::from_utf8_lossy(other)))),
    }
}

pub(super) fn read_up_to(file: &File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}
