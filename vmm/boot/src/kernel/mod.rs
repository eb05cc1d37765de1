//! A kernel file becomes a [`KernelImage`]: an ELF whose segments, notes and entry have been checked.
//!
//! ```text
//! file --ELF magic--------------------------------> elf: validate
//!      --"HdrS"--> bzimage: payload --> unpack --/
//! ```
//!
//! linux-loader supplies the structures; its ELF loader is not used, because it takes the last PT_NOTE segment only, checks
//! neither class nor `p_memsz`, and would populate guest memory with the kernel's many pages of zeros.

mod bzimage;
mod elf;
mod lzop;
mod unpack;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::{fmt, fs::File, io};

use crate::content::Content;
pub use elf::{ElfError, Segment};
pub use unpack::Compression;

/// Why a file is not a kernel that can be started. The caller puts the file's name before it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The descriptor has no content to offer.
    #[error("cannot be read as a file")]
    Open(#[source] io::Error),
    /// Reading failed, or the file became shorter meanwhile.
    #[error("read {what}")]
    Read {
        /// What was being read.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// No bytes at all.
    #[error("the file is empty; give a distribution's vmlinuz, or a vmlinux")]
    Empty,
    /// Neither kind of kernel.
    #[error("neither a bzImage nor an ELF file; give a distribution's vmlinuz, or a vmlinux")]
    UnknownFormat,
    /// A structure reaches past the end.
    #[error("the file is cut short: {what} ends at byte {end} and the file at {length}; copy it again")]
    Truncated {
        /// Which structure.
        what: &'static str,
        /// Where it should end.
        end: u64,
        /// Where the file ends.
        length: u64,
    },
    /// A bzImage that does not say where its payload is.
    #[error("boot protocol {}.{:02} is older than 2.08; use Linux 2.6.26 or later", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    /// Made like a Linux kernel for boot loaders, without one inside.
    #[error(
        "it has Linux's boot header and no packed kernel inside, as memtest86+ and boot managers have; give a Linux kernel, or an ELF with a PVH entry"
    )]
    NoPayload,
    /// Sizes in the header or at the end of the payload are impossible.
    #[error("the payload's {what} of {bytes} bytes is not between {min} and {max}; the file is damaged, copy it again")]
    Size {
        /// Which size.
        what: &'static str,
        /// What the file says.
        bytes: u64,
        /// Least that makes sense.
        min: u64,
        /// Most that is accepted.
        max: u64,
    },
    /// A compression that Linux does not have.
    #[error("the payload's compression is unknown; use a kernel with gzip, bzip2, lzma, xz, lzo, lz4 or zstd, or its vmlinux")]
    Compression,
    /// The payload does not unpack.
    #[error("the {compression} payload is damaged ({reason}); copy the file again")]
    Unpack {
        /// How it is compressed.
        compression: Compression,
        /// What the decoder said.
        reason: String,
    },
    /// The ELF is not one that can be started.
    #[error(transparent)]
    Elf(#[from] ElfError),
}

/// What the file was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    /// An ELF file, used as it is.
    Elf,
    /// A bzImage, whose payload was packed so.
    BzImage(Compression),
}

impl fmt::Display for KernelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf => f.write_str("ELF"),
            Self::BzImage(compression) => write!(f, "bzImage ({compression})"),
        }
    }
}

/// A kernel whose segments lie inside its file, apart from each other, above the first MiB and below 3 GiB, and whose PVH entry
/// lies in one of them.
#[derive(Debug)]
pub struct KernelImage {
    format: KernelFormat,
    content: Content,
    layout: elf::ElfLayout,
}

impl KernelImage {
    /// Reads a kernel. An ELF file keeps a duplicate of the descriptor and is read again by [`crate::load()`]; the payload of a bzImage is
    /// unpacked now and held until the image is dropped.
    ///
    /// # Errors
    /// A [`KernelError`]; the caller names the file.
    pub fn from_file(file: &File) -> Result<Self, KernelError> {
        Self::from_content(Content::from_file(file).map_err(KernelError::Open)?)
    }

    /// Like [`KernelImage::from_file`], from bytes in memory.
    ///
    /// # Errors
    /// A [`KernelError`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, KernelError> {
        Self::from_content(Content::from_bytes(bytes))
    }

    fn from_content(content: Content) -> Result<Self, KernelError> {
        if content.is_empty() {
            return Err(KernelError::Empty);
        }
        let (format, content) = if elf::is_elf(&content)? {
            (KernelFormat::Elf, content)
        } else {
            let (compression, vmlinux) = unpack::unpack(&bzimage::payload(&content)?)?;
            (KernelFormat::BzImage(compression), Content::from_bytes(vmlinux))
        };
        let layout = elf::parse(&content)?;
        Ok(Self { format, content, layout })
    }

    /// What the file was.
    #[must_use]
    pub fn format(&self) -> KernelFormat {
        self.format
    }

    /// Size of the ELF: of the file, or after unpacking.
    #[must_use]
    pub fn elf_bytes(&self) -> u64 {
        self.content.len()
    }

    /// Writes the ELF.
    ///
    /// # Errors
    /// Of reading the file or of writing.
    pub fn write_elf(&self, out: &mut impl io::Write) -> io::Result<()> {
        self.content.pieces(0, self.content.len(), |_, piece| out.write_all(piece))
    }

    /// Physical address of the PVH entry.
    #[must_use]
    pub fn entry(&self) -> u32 {
        self.layout.entry
    }

    /// What is loaded, in order of address.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.layout.segments
    }

    /// End of the last segment: RAM that the kernel needs at least.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.layout.segments.last().map_or(0, Segment::end)
    }

    pub(crate) fn content(&self) -> &Content {
        &self.content
    }
}

/// Reads `buffer.len()` bytes at `offset`, or says that `what` is cut short.
fn read(content: &Content, what: &'static str, offset: u64, buffer: &mut [u8]) -> Result<(), KernelError> {
    let end = offset.saturating_add(buffer.len() as u64);
    if end > content.len() {
        return Err(KernelError::Truncated { what, end, length: content.len() });
    }
    content.read_at(offset, buffer).map_err(|source| KernelError::Read { what, source })
}
