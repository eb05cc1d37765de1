//! Kernels good and bad, from bytes. Real kernels are tried in the lab (docs/notes/kernels.md).

use proptest::prelude::*;

use super::{
    samples::{ENTRY, ElfSample, LOAD, NOTE, TEXT, bzimage, bzip2, elf, gzip, lz4, lzma, lzo, note, with_size, xz, zstd},
    *,
};

fn refuse(bytes: Vec<u8>) -> KernelError {
    KernelImage::from_bytes(bytes).unwrap_err()
}

/// The refusal of an ELF sample after `spoil`.
fn refuse_elf(spoil: impl FnOnce(&mut ElfSample)) -> ElfError {
    let mut sample = ElfSample::new();
    spoil(&mut sample);
    match refuse(sample.bytes()) {
        KernelError::Elf(error) => error,
        other => panic!("refused for another reason: {other}"),
    }
}

#[test]
fn a_good_elf_is_taken_with_its_segments_and_entry() {
    let image = KernelImage::from_bytes(elf()).unwrap();
    assert_eq!((image.format(), image.entry(), image.end()), (KernelFormat::Elf, ENTRY, TEXT + 0x8800));
    let sizes: Vec<_> = image.segments().iter().map(|segment| (segment.address, segment.file_bytes, segment.memory_bytes)).collect();
    assert_eq!(sizes, [(TEXT, 0x3000, 0x3000), (TEXT + 0x3800, 0x900, 0x5000)]);
}

#[test]
fn a_file_is_read_like_bytes() {
    let path = std::env::temp_dir().join(format!("rebec-boot-{}", std::process::id()));
    std::fs::write(&path, elf()).unwrap();
    let image = KernelImage::from_file(&File::open(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(image.entry(), ENTRY);
    let mut word = [0; 2];
    image.content().read_at(image.segments()[1].offset, &mut word).unwrap();
    assert_eq!(word, [0xdd; 2]);
}

#[test]
fn what_is_not_a_regular_file_is_refused() {
    for (path, kind) in [("/", "a directory"), ("/dev/zero", "a device")] {
        let error = KernelImage::from_file(&File::open(path).unwrap()).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(kind), "{error}: {source}");
    }
}

#[test]
fn every_supported_compression_unpacks_to_the_same_kernel() {
    let plain = elf();
    for (payload, compression) in [
        (zstd(&plain), Compression::Zstd),
        (xz(&plain), Compression::Xz),
        (lz4(&plain), Compression::Lz4),
        (gzip(&plain), Compression::Gzip),
        (bzip2(&plain), Compression::Bzip2),
        (lzma(&plain), Compression::Lzma),
        (lzo(&plain), Compression::Lzo),
        (plain.clone(), Compression::None),
    ] {
        let image = KernelImage::from_bytes(bzimage(&payload)).unwrap();
        assert_eq!(image.format(), KernelFormat::BzImage(compression));
        assert_eq!((image.entry(), image.elf_bytes()), (ENTRY, plain.len() as u64), "{compression}");
        let mut unpacked = vec![0; plain.len()];
        image.content().read_at(0, &mut unpacked).unwrap();
        assert!(unpacked == plain, "{compression}");
    }
}

#[test]
fn blocks_after_the_first_are_appended() {
    let mut sample = ElfSample::new();
    sample.segments[1].1 = (0..9 << 20).map(|at: u32| (at / 251) as u8).collect();
    sample.segments[1].0.p_memsz = 9 << 20;
    let plain = sample.bytes();
    for payload in [lz4(&plain), lzo(&plain)] {
        let image = KernelImage::from_bytes(bzimage(&payload)).unwrap();
        let mut unpacked = vec![0; plain.len()];
        image.content().read_at(0, &mut unpacked).unwrap();
        assert!(unpacked == plain);
    }
}

#[test]
fn files_that_are_no_kernel_say_so() {
    assert!(matches!(refuse(vec![]), KernelError::Empty));
    assert!(matches!(refuse(vec![0x7f]), KernelError::UnknownFormat));
    assert!(matches!(refuse(b"#!/bin/sh\n".repeat(200)), KernelError::UnknownFormat));
}

#[test]
fn a_bzimage_is_refused_when_its_header_lies() {
    let good = bzimage(&zstd(&elf()));
    let spoilt = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        refuse(image)
    };
    assert!(matches!(spoilt(0x206, &[7, 2]), KernelError::OldProtocol(0x207)));
    // As memtest86+ is made.
    assert!(matches!(spoilt(0x24c, &[0; 4]), KernelError::NoPayload));
    assert!(matches!(spoilt(0x24c, &[15, 0, 0, 0]), KernelError::Size { what: "packed size", .. }));
    assert!(matches!(spoilt(0x24c, &[0xff; 4]), KernelError::Size { what: "packed size", .. }));
    assert!(matches!(spoilt(0x248, &[0xff; 4]), KernelError::Truncated { what: "the packed kernel", .. }));
    assert!(matches!(refuse(good[..good.len() - 200].to_vec()), KernelError::Truncated { .. }));
}

#[test]
fn damaged_payloads_are_refused_for_every_compression() {
    let plain = elf();
    for payload in [zstd(&plain), xz(&plain), lz4(&plain), gzip(&plain), bzip2(&plain), lzma(&plain), lzo(&plain)] {
        let packed = &payload[..payload.len() - 4];
        let sizes = [plain.len() - 1, plain.len() + 1];
        for size in sizes {
            assert!(matches!(refuse(bzimage(&with_size(packed.to_vec(), size))), KernelError::Unpack { .. }), "announced {size}");
        }
        let half = with_size(packed[..packed.len() / 2].to_vec(), plain.len());
        assert!(matches!(refuse(bzimage(&half)), KernelError::Unpack { .. }), "cut in half");
        let huge = with_size(packed.to_vec(), 1 << 30);
        assert!(matches!(refuse(bzimage(&huge)), KernelError::Size { what: "unpacked size", .. }), "announced 1 GiB");
    }
}

#[test]
fn a_compression_that_linux_does_not_have_is_refused() {
    for magic in [[1, 2, 3, 4], [0x89, b'L', b'Z', b'P']] {
        let payload = [&magic[..], &[0; 64]].concat();
        assert!(matches!(refuse(bzimage(&payload)), KernelError::Compression));
    }
}

#[test]
fn blocks_of_lzop_that_lie_are_refused() {
    let plain = elf();
    let payload = lzo(&plain);
    let first = payload.windows(4).position(|word| word == (plain.len() as u32).to_be_bytes()).unwrap();
    let with = |at: usize, value: u32| {
        let mut payload = payload.clone();
        payload[at..at + 4].copy_from_slice(&value.to_be_bytes());
        refuse(bzimage(&payload)).to_string()
    };
    for (at, value, why) in [
        (first, u32::MAX, "a block's sizes are impossible"),
        (first, 256 << 10, "more comes out than was announced"),
        (first, 1, "a block's sizes are impossible"),
        (first, plain.len() as u32 - 1, "the lzo payload is damaged"),
        (first + 4, u32::MAX, "a block reaches past the end"),
        (first + 4, 9, "the lzo payload is damaged"),
    ] {
        let said = with(at, value);
        assert!(said.contains(why), "{said}, not {why}");
    }
}

#[test]
fn an_elf_for_another_machine_is_refused() {
    assert!(matches!(refuse_elf(|elf| elf.header.e_ident[4] = 1), ElfError::Machine { class: 1, .. }));
    assert!(matches!(refuse_elf(|elf| elf.header.e_ident[5] = 2), ElfError::Machine { data: 2, .. }));
    assert!(matches!(refuse_elf(|elf| elf.header.e_machine = 183), ElfError::Machine { machine: 183, .. }));
    assert_eq!(refuse_elf(|elf| elf.header.e_type = 1), ElfError::Type(1));
}

#[test]
fn program_headers_are_checked() {
    assert!(matches!(refuse_elf(|elf| elf.header.e_phnum = 1000), ElfError::ProgramHeaders { count: 1000, .. }));
    assert!(matches!(refuse_elf(|elf| elf.header.e_phentsize = 32), ElfError::ProgramHeaders { bytes: 32, .. }));
    let mut sample = ElfSample::new();
    sample.header.e_phoff = u64::MAX;
    assert!(matches!(refuse(sample.bytes()), KernelError::Truncated { what: "the program headers", .. }));
}

#[test]
fn segments_are_checked() {
    assert!(matches!(refuse_elf(|elf| elf.segments[1].0.p_memsz = 0x8ff), ElfError::SegmentSize { file_bytes: 0x900, .. }));
    assert!(matches!(refuse_elf(|elf| elf.segments[0].0.p_paddr = 0x9000), ElfError::SegmentPlace { start: 0x9000, .. }));
    assert!(matches!(refuse_elf(|elf| elf.segments[1].0.p_memsz = u64::MAX), ElfError::SegmentPlace { end: u64::MAX, .. }));
    assert!(matches!(refuse_elf(|elf| elf.segments[1].0.p_paddr = 0xbfff_f000), ElfError::SegmentPlace { .. }));
    assert_eq!(refuse_elf(|elf| elf.segments[1].0.p_paddr = TEXT + 0x2fff), ElfError::Overlap { first: TEXT, second: TEXT + 0x2fff });
    assert_eq!(refuse_elf(|elf| elf.segments.retain(|(header, _)| header.p_type != LOAD)), ElfError::NoSegments);
    let cut = elf();
    let cut = cut[..0x3000].to_vec();
    assert!(matches!(refuse(cut), KernelError::Truncated { what: "a segment", .. }));
}

#[test]
fn the_entry_comes_from_the_note() {
    assert_eq!(refuse_elf(|elf| elf.segments.retain(|(header, _)| header.p_type != NOTE)), ElfError::NoPvhEntry);
    assert_eq!(refuse_elf(|elf| elf.segments[2].1 = note(18, b"xen\0", &[0; 8])), ElfError::NoPvhEntry);
    assert_eq!(refuse_elf(|elf| elf.segments[2].1 = note(18, b"Xen\0", &[0; 5])), ElfError::NoPvhEntry);
    assert_eq!(refuse_elf(|elf| elf.segments[2].1.truncate(20)), ElfError::NoPvhEntry);
    let entry_at = |address: u64| refuse_elf(|elf| elf.segments[2].1 = note(18, b"Xen\0", &address.to_le_bytes()));
    for address in [0, TEXT - 1, TEXT + 0x3000, TEXT + 0x3900, u64::from(ENTRY) | 1 << 32] {
        assert_eq!(entry_at(address), ElfError::Entry(address), "outside, or in data");
    }
}

#[test]
fn the_entry_is_found_in_any_note_segment_and_in_four_bytes() {
    let mut sample = ElfSample::new();
    let notes = sample.segments.pop().unwrap();
    let entry = note(18, b"Xen\0", &(ENTRY + 4).to_le_bytes());
    sample.segments.insert(0, (notes.0, note(1, b"GNU\0", &[1; 16])));
    sample.segments.push((notes.0, entry));
    sample.segments.push((notes.0, note(1, b"Linux\0", &[2; 3])));
    assert_eq!(KernelImage::from_bytes(sample.bytes()).unwrap().entry(), ENTRY + 4);
}

#[test]
fn a_kernel_cut_anywhere_is_refused() {
    let image = bzimage(&xz(&elf()));
    let payload_end = image.len() - 100;
    for length in (0..payload_end).step_by(7) {
        refuse(image[..length].to_vec());
    }
    let elf = elf();
    for length in 0..elf.len() {
        refuse(elf[..length].to_vec());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048), elf_magic: bool) {
        let bytes = if elf_magic { [&b"\x7fELF\x02\x01"[..], &bytes].concat() } else { bytes };
        prop_assert!(KernelImage::from_bytes(bytes).is_err());
    }

    #[test]
    fn a_changed_elf_never_panics_and_keeps_its_promises(changes in proptest::collection::vec((0usize..0x200, any::<u8>()), 1..6)) {
        let mut bytes = elf();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(image) = KernelImage::from_bytes(bytes) {
            let segments = image.segments();
            prop_assert!(segments.iter().all(|segment| segment.offset + segment.file_bytes <= image.elf_bytes() && segment.file_bytes <= segment.memory_bytes));
            prop_assert!(segments.windows(2).all(|pair| pair[0].end() <= pair[1].address));
            prop_assert!(segments.iter().any(|segment| (segment.address..segment.end()).contains(&image.entry().into())));
        }
    }

    #[test]
    fn a_changed_bzimage_never_panics(which in 0usize..4, changes in proptest::collection::vec((0usize..1 << 20, any::<u8>()), 1..6)) {
        let mut image = bzimage(&[zstd, xz, lz4, lzo][which](&elf()));
        for (at, byte) in changes {
            let at = 0x1f1 + at % (image.len() - 0x1f1);
            image[at] = byte;
        }
        drop(KernelImage::from_bytes(image));
    }
}
