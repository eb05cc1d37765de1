//! Small kernels for tests, built piece by piece so that each piece can be made wrong.

use linux_loader::{
    bootparam::setup_header,
    elf::{Elf64_Ehdr, Elf64_Phdr},
};
use vm_memory::ByteValued;

pub(crate) const LOAD: u32 = 1;
pub(crate) const NOTE: u32 = 4;
/// Entry of [`elf`].
pub(crate) const ENTRY: u32 = 0x100_0010;
/// Address of the first segment of [`elf`].
pub(crate) const TEXT: u64 = 0x100_0000;

/// An ELF file in the making.
#[derive(Clone)]
pub(crate) struct ElfSample {
    pub(crate) header: Elf64_Ehdr,
    pub(crate) segments: Vec<(Elf64_Phdr, Vec<u8>)>,
}

impl ElfSample {
    /// Text with a page of zeros inside, data with more memory than file, and notes with the entry as the third.
    pub(crate) fn new() -> Self {
        let mut text = vec![0xaa; 0x3000];
        text[0x1000..0x2000].fill(0);
        let other_owner = note(18, b"GNU\0", &[9; 8]);
        let other_kind = note(7, b"Xen\0", b"2.6\0");
        let entry = note(18, b"Xen\0", &u64::from(ENTRY).to_le_bytes());
        let segment = |p_type, p_flags, p_paddr, p_memsz| Elf64_Phdr { p_type, p_flags, p_paddr, p_memsz, ..Default::default() };
        Self {
            header: Elf64_Ehdr {
                e_ident: *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
                e_type: 2,
                e_machine: 62,
                e_version: 1,
                e_phentsize: 56,
                e_phoff: 64,
                ..Default::default()
            },
            segments: vec![
                (segment(LOAD, 5, TEXT, 0x3000), text),
                (segment(LOAD, 6, TEXT + 0x3800, 0x5000), vec![0xdd; 0x900]),
                (segment(NOTE, 4, 0, 0), [other_owner, other_kind, entry].concat()),
            ],
        }
    }

    /// The file: headers, then the segments' bytes. File sizes and offsets are filled in, counts unless they were set.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut header = self.header;
        if header.e_phnum == 0 {
            header.e_phnum = self.segments.len() as u16;
        }
        let mut offset = 64 + 56 * self.segments.len() as u64;
        let mut table = Vec::new();
        let mut body = Vec::new();
        for (segment, content) in &self.segments {
            let filled = Elf64_Phdr { p_offset: offset, p_filesz: content.len() as u64, ..*segment };
            offset += content.len() as u64;
            table.extend_from_slice(filled.as_slice());
            body.extend_from_slice(content);
        }
        [header.as_slice(), &table, &body].concat()
    }
}

/// One note, padded to four bytes.
pub(crate) fn note(kind: u32, owner: &[u8], desc: &[u8]) -> Vec<u8> {
    let mut bytes = [owner.len() as u32, desc.len() as u32, kind].map(u32::to_le_bytes).concat();
    for part in [owner, desc] {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// A good ELF kernel.
pub(crate) fn elf() -> Vec<u8> {
    ElfSample::new().bytes()
}

/// A bzImage around a payload that is complete with its size.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let (setup_sectors, payload_offset) = (2usize, 0x40usize);
    let header = setup_header {
        setup_sects: setup_sectors as u8,
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x020f,
        payload_offset: payload_offset as u32,
        payload_length: payload.len() as u32,
        ..Default::default()
    };
    let mut bytes = vec![0; (1 + setup_sectors) * 512 + payload_offset];
    bytes[0x1f1..][..size_of::<setup_header>()].copy_from_slice(header.as_slice());
    bytes.extend_from_slice(payload);
    // Code follows the payload in real images.
    bytes.extend_from_slice(&[0x90; 100]);
    bytes
}

/// Adds the size that the kernel's build appends.
pub(crate) fn with_size(mut packed: Vec<u8>, unpacked: usize) -> Vec<u8> {
    packed.extend_from_slice(&(unpacked as u32).to_le_bytes());
    packed
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    with_size(zstd::bulk::compress(bytes, 3).unwrap(), bytes.len())
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(bytes.len() + 1024);
    let mut encoder = xz2::stream::Stream::new_easy_encoder(1, xz2::stream::Check::Crc32).unwrap();
    assert_eq!(encoder.process_vec(bytes, &mut packed, xz2::stream::Action::Finish).unwrap(), xz2::stream::Status::StreamEnd);
    with_size(packed, bytes.len())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    with_size(encoder.finish().unwrap(), bytes.len())
}

pub(crate) fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(vec![], bzip2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    with_size(encoder.finish().unwrap(), bytes.len())
}

pub(crate) fn lzma(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(bytes.len() + 1024);
    let options = xz2::stream::LzmaOptions::new_preset(1).unwrap();
    let mut encoder = xz2::stream::Stream::new_lzma_encoder(&options).unwrap();
    assert_eq!(encoder.process_vec(bytes, &mut packed, xz2::stream::Action::Finish).unwrap(), xz2::stream::Status::StreamEnd);
    with_size(packed, bytes.len())
}

/// The legacy frame, as `lz4 -l` writes it: 8 MiB to a block.
pub(crate) fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
    for block in bytes.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
        packed.extend_from_slice(&block);
    }
    with_size(packed, bytes.len())
}

/// As `lzop -9` writes it: version 0x1030, a name, Adler-32 of what is unpacked; 256 KiB to a block, kept as it is where packing does not help.
pub(crate) fn lzo(bytes: &[u8]) -> Vec<u8> {
    let mut packed = [super::lzop::MAGIC, &[0x10, 0x30, 0x20, 0xa0, 0x09, 0x40, 3, 9], &0x0300_0001_u32.to_be_bytes()].concat();
    packed.extend_from_slice(&[0; 12]);
    packed.extend_from_slice(b"\x07vmlinux\0\0\0\0");
    for block in bytes.chunks(256 << 10) {
        let small = lzokay::compress::compress(block).unwrap();
        let content = if small.len() < block.len() { &small } else { block };
        for word in [block.len(), content.len(), 0] {
            packed.extend_from_slice(&(word as u32).to_be_bytes());
        }
        packed.extend_from_slice(content);
    }
    packed.extend_from_slice(&[0; 4]);
    with_size(packed, bytes.len())
}
