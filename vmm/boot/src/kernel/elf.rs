//! Validates an ELF kernel: what is loaded where, and the PVH entry from its notes. Copying is `load`'s.
//!
//! Limits come first: a hostile file makes neither a large allocation nor a long loop.

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr};
use rebec_layout::{KERNEL_START, LOW_RAM_BYTES_MAX};
use vm_memory::ByteValued;

use super::{KernelError, read};
use crate::content::Content;

const MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
const EXECUTABLE: u32 = 1;
/// Linux has 5; the limit keeps the check for overlaps short.
const PROGRAM_HEADERS_MAX: u16 = 128;
/// Linux's notes take 500 bytes.
const NOTE_BYTES_MAX: u64 = 64 * 1024;
/// XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h).
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_OWNER: &[u8] = b"Xen\0";
const NOTE_ALIGN: usize = 4;

/// Why an ELF file cannot be started.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ElfError {
    /// Not 64-bit little-endian x86-64.
    #[error("an ELF file, but not for 64-bit x86 (class {class}, byte order {data}, machine {machine}); use an x86-64 kernel")]
    Machine {
        /// EI_CLASS.
        class: u8,
        /// EI_DATA.
        data: u8,
        /// e_machine.
        machine: u16,
    },
    /// Not ET_EXEC.
    #[error("an ELF file of type {0}, not an executable (2); use the vmlinux of a kernel, not a module, library or core file")]
    Type(u16),
    /// The table of program headers is impossible.
    #[error("the ELF's program headers ({count} of {bytes} bytes) are not 1 to 128 of 56 bytes; the file is damaged")]
    ProgramHeaders {
        /// e_phnum.
        count: u16,
        /// e_phentsize.
        bytes: u16,
    },
    /// A segment holds more in the file than in memory, or wraps around.
    #[error("segment at {address:#x}: {file_bytes} bytes of file do not fit into {memory_bytes} bytes of memory; the file is damaged")]
    SegmentSize {
        /// p_paddr.
        address: u64,
        /// p_filesz.
        file_bytes: u64,
        /// p_memsz.
        memory_bytes: u64,
    },
    /// A segment where a kernel may not be.
    #[error("segment {start:#x}..{end:#x} is outside 0x100000..0xc0000000; link the kernel above 1 MiB and below 3 GiB")]
    SegmentPlace {
        /// p_paddr.
        start: u64,
        /// Its end, saturated.
        end: u64,
    },
    /// Two segments claim the same memory.
    #[error("the segment at {second:#x} overlaps the one at {first:#x}; the file is damaged")]
    Overlap {
        /// The lower one.
        first: u64,
        /// The one that begins inside it.
        second: u64,
    },
    /// Nothing to load.
    #[error("the ELF holds nothing to load; use a vmlinux, not a file of symbols")]
    NoSegments,
    /// No XEN_ELFNOTE_PHYS32_ENTRY.
    #[error("no PVH entry note; use a kernel built with CONFIG_PVH, or a bzImage of one")]
    NoPvhEntry,
    /// The entry points elsewhere.
    #[error("the PVH entry {0:#x} is not inside an executable segment; the file is damaged")]
    Entry(u64),
}

/// A piece of the kernel to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Physical address.
    pub address: u64,
    /// Where its bytes begin in the ELF.
    pub offset: u64,
    /// Bytes in the ELF.
    pub file_bytes: u64,
    /// Bytes in memory; what is beyond `file_bytes` is zero.
    pub memory_bytes: u64,
    executable: bool,
}

impl Segment {
    /// First address after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.address + self.memory_bytes
    }
}

/// What `parse` vouches for: segments in order of address, apart, inside file and address limits; the entry inside one.
#[derive(Debug)]
pub(super) struct ElfLayout {
    pub(super) segments: Vec<Segment>,
    pub(super) entry: u32,
}

pub(super) fn is_elf(content: &Content) -> Result<bool, KernelError> {
    let mut magic = [0; MAGIC.len()];
    match read(content, "the first bytes", 0, &mut magic) {
        Err(KernelError::Truncated { .. }) => Ok(false),
        other => other.map(|()| magic == MAGIC),
    }
}

pub(super) fn parse(content: &Content) -> Result<ElfLayout, KernelError> {
    let headers = program_headers(content)?;
    let mut segments = Vec::new();
    let mut entry = None;
    for header in &headers {
        match header.p_type {
            SEGMENT_LOAD if header.p_memsz > 0 => segments.push(segment(content, header)?),
            SEGMENT_NOTE if entry.is_none() => entry = pvh_entry(&notes(content, header)?),
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(ElfError::NoSegments.into());
    }
    segments.sort_by_key(|segment| segment.address);
    if let Some([first, second]) = segments.array_windows().find(|[first, second]| first.end() > second.address) {
        return Err(ElfError::Overlap { first: first.address, second: second.address }.into());
    }
    let entry = entry.ok_or(ElfError::NoPvhEntry)?;
    let inside = segments.iter().any(|segment| segment.executable && (segment.address..segment.end()).contains(&entry));
    let entry = u32::try_from(entry).ok().filter(|_| inside).ok_or(ElfError::Entry(entry))?;
    Ok(ElfLayout { segments, entry })
}

fn program_headers(content: &Content) -> Result<Vec<Elf64_Phdr>, KernelError> {
    let mut header = Elf64_Ehdr::default();
    read(content, "the ELF header", 0, header.as_mut_slice())?;
    let [_, _, _, _, class, data, ..] = header.e_ident;
    if header.e_ident[..4] != MAGIC || class != CLASS_64 || data != DATA_LITTLE_ENDIAN || header.e_machine != MACHINE_X86_64 {
        return Err(ElfError::Machine { class, data, machine: header.e_machine }.into());
    }
    if header.e_type != TYPE_EXECUTABLE {
        return Err(ElfError::Type(header.e_type).into());
    }
    let (count, bytes) = (header.e_phnum, header.e_phentsize);
    if !(1..=PROGRAM_HEADERS_MAX).contains(&count) || usize::from(bytes) != size_of::<Elf64_Phdr>() {
        return Err(ElfError::ProgramHeaders { count, bytes }.into());
    }
    let mut headers = vec![Elf64_Phdr::default(); usize::from(count)];
    for (number, entry) in (0u64..).zip(&mut headers) {
        let offset = header.e_phoff.saturating_add(number * u64::from(bytes));
        read(content, "the program headers", offset, entry.as_mut_slice())?;
    }
    Ok(headers)
}

fn segment(content: &Content, header: &Elf64_Phdr) -> Result<Segment, KernelError> {
    let (address, file_bytes, memory_bytes) = (header.p_paddr, header.p_filesz, header.p_memsz);
    if file_bytes > memory_bytes {
        return Err(ElfError::SegmentSize { address, file_bytes, memory_bytes }.into());
    }
    let end = address.saturating_add(memory_bytes);
    if address < KERNEL_START || end > LOW_RAM_BYTES_MAX {
        return Err(ElfError::SegmentPlace { start: address, end }.into());
    }
    inside_file(content, "a segment", header)?;
    Ok(Segment { address, offset: header.p_offset, file_bytes, memory_bytes, executable: header.p_flags & EXECUTABLE != 0 })
}

fn notes(content: &Content, header: &Elf64_Phdr) -> Result<Vec<u8>, KernelError> {
    inside_file(content, "a note segment", header)?;
    let mut bytes = vec![0; header.p_filesz.min(NOTE_BYTES_MAX) as usize];
    read(content, "a note segment", header.p_offset, &mut bytes)?;
    Ok(bytes)
}

fn inside_file(content: &Content, what: &'static str, header: &Elf64_Phdr) -> Result<(), KernelError> {
    let end = header.p_offset.saturating_add(header.p_filesz);
    if end > content.len() {
        return Err(KernelError::Truncated { what, end, length: content.len() });
    }
    Ok(())
}

/// The entry that a note segment names, if it does. A note that reaches past the end ends the search: it may be another owner's.
fn pvh_entry(mut notes: &[u8]) -> Option<u64> {
    while let Some((header, rest)) = notes.split_first_chunk::<12>() {
        let [name_bytes, desc_bytes, kind] =
            [0, 4, 8].map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
        let desc_start = (name_bytes as usize).next_multiple_of(NOTE_ALIGN);
        let desc_end = desc_start + desc_bytes as usize;
        let name = rest.get(..name_bytes as usize)?;
        let desc = rest.get(desc_start..desc_end)?;
        if kind == NOTE_PHYS32_ENTRY && name == NOTE_OWNER {
            // 4 bytes by the letter, 8 in Linux, which writes it with the size of a pointer.
            return match *desc {
                [a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d]).into()),
                [a, b, c, d, e, f, g, h] => Some(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
                _ => None,
            };
        }
        notes = rest.get(desc_end.next_multiple_of(NOTE_ALIGN)..)?;
    }
    None
}
