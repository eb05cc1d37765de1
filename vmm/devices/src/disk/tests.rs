//! Disks over temporary files: content, backing chains, sizes, extents, a full host, hostile headers.

mod ends;
mod tables;

use std::{io::Write, thread};

use proptest::prelude::*;
use rebec_layout::{DISK_BYTES_MAX, PAGE_BYTES};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
};

use super::*;

const MIB: u64 = 1 << 20;

/// In memory: some of these tests flush thousands of times.
fn raw_file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("disk", MemfdFlags::empty()).unwrap());
    file.write_all(bytes).unwrap();
    file
}

fn qcow2_file(bytes: u64, backing: Option<(&str, ImageFormat)>) -> File {
    let file = tempfile::tempfile().unwrap();
    let backing = backing.map(|(name, format)| BackingName { name: name.to_owned(), format: Some(format) });
    Disk::create_qcow2("new.qcow2", &file, bytes, backing.as_ref()).unwrap();
    file
}

fn qcow2_with(bytes: u64, cluster_bytes: usize, backing: bool) -> File {
    let file = tempfile::tempfile().unwrap();
    let storage = imago::file::File::try_from(file.try_clone().unwrap()).unwrap();
    let mut builder = Qcow2::<imago::file::File>::create_builder(storage).size(bytes).cluster_size(cluster_bytes);
    if backing {
        builder = builder.backing("base".to_owned(), "raw".to_owned());
    }
    builder.create().unwrap();
    file
}

fn open(file: &File, backing: &[&File]) -> Disk {
    let copy = |file: &File| file.try_clone().unwrap();
    Disk::open("d", copy(file), backing.iter().map(|file| copy(file)).collect(), false).unwrap()
}

fn refusal(name: &str, file: &File) -> String {
    Disk::open(name, file.try_clone().unwrap(), Vec::new(), false).unwrap_err().to_string()
}

fn content(disk: &Disk, offset: u64, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; bytes];
    disk.read_at(offset, &mut buffer).unwrap();
    buffer
}

/// Extents of one kind joined, as the user of them sees the disk.
fn extents(disk: &Disk) -> Vec<(std::ops::Range<u64>, ExtentKind)> {
    let mut all: Vec<(std::ops::Range<u64>, ExtentKind)> = Vec::new();
    let mut at = 0;
    while let Some(Extent { range, kind, .. }) = disk.extent_at(at).unwrap() {
        assert!(range.start == at && range.end > at && range.end <= disk.size_bytes());
        at = range.end;
        match all.last_mut() {
            Some((last, of)) if *of == kind => last.end = range.end,
            _ => all.push((range, kind)),
        }
    }
    assert_eq!(at, disk.size_bytes());
    all
}

/// Beyond a file's end there would be zeros without a word.
#[test]
fn both_formats_keep_what_is_written_across_a_reopen() {
    for file in [raw_file(&vec![0; MIB as usize]), qcow2_file(MIB, None)] {
        let disk = open(&file, &[]);
        assert_eq!(disk.size_bytes(), MIB);
        disk.write_at(100 * 512, &[7; 70_000]).unwrap();
        disk.zero_at(110 * 512, 512).unwrap();
        disk.discard_at(0, 65_536).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let disk = open(&file, &[]);
        assert_eq!(content(&disk, 0, 65_536), vec![0; 65_536]);
        assert_eq!(content(&disk, 65_536, 51_200 + 70_000 - 65_536), vec![7; 51_200 + 70_000 - 65_536]);
        assert_eq!(content(&disk, 51_200 + 70_000, 512), [0; 512]);
        assert!(disk.write_at(MIB - 511, &[0; 512]).is_err());
        assert!(disk.read_at(u64::MAX, &mut [0; 512]).is_err());
        assert!(disk.discard_at(MIB, 512).is_err());
    }
}

/// Found by fuzzing: where the disk is smaller than a cluster, zeros beside data ended in an underflow within imago.
#[test]
fn zeros_leave_what_stands_beside_them() {
    for bytes in [512, 1024, 65_024, 65_536, 66_048, 100 * 1024] {
        let file_of_format = |raw: bool| if raw { raw_file(&vec![0; bytes as usize]) } else { qcow2_file(bytes, None) };
        for (raw, discard) in [(true, false), (true, true), (false, false), (false, true)] {
            for range in [0..512, bytes / 1024 * 512..bytes / 1024 * 512 + 512, bytes - 512..bytes, 0..bytes, 512.min(bytes - 512)..bytes] {
                let disk = open(&file_of_format(raw), &[]);
                disk.write_at(0, &vec![7; bytes as usize]).unwrap();
                let length = range.end - range.start;
                if discard { disk.discard_at(range.start, length) } else { disk.zero_at(range.start, length) }.unwrap();
                let mut expected = vec![7; bytes as usize];
                expected[range.start as usize..range.end as usize].fill(0);
                assert!(content(&disk, 0, bytes as usize) == expected, "{range:?} of {bytes}, raw {raw}, discard {discard}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]
    /// Whatever is written, zeroed and discarded, with clusters of one sector and of many: the disk is the bytes.
    #[test]
    fn a_disk_reads_as_a_plain_array_does(
        sectors in 1_u64..300,
        cluster_bits in 9_u32..17,
        backing in any::<bool>(),
        changes in proptest::collection::vec((0..3_u8, any::<u64>(), any::<u64>()), 1..40),
    ) {
        let bytes = sectors * SECTOR_BYTES;
        let base = raw_file(&vec![9; bytes as usize]);
        let below = [&base];
        let file = qcow2_with(bytes, 1 << cluster_bits, backing);
        let disk = open(&file, &below[..usize::from(backing)]);
        let mut expected = vec![if backing { 9 } else { 0 }; bytes as usize];
        for (kind, at, length) in changes {
            let start = at % sectors;
            let range = start * SECTOR_BYTES..(start + 1 + length % (sectors - start)) * SECTOR_BYTES;
            let (value, length) = (if kind == 0 { at as u8 | 1 } else { 0 }, range.end - range.start);
            match kind {
                0 => disk.write_at(range.start, &vec![value; length as usize]).unwrap(),
                1 => disk.zero_at(range.start, length).unwrap(),
                _ => disk.discard_at(range.start, length).unwrap(),
            }
            expected[range.start as usize..range.end as usize].fill(value);
            // Where bytes lie is where they are read without imago, and what is written there is inside of what imago knows of its file.
            let (lease, mut parts) = (disk.lease(), vec![]);
            for writes in [false, true] {
                if !disk.parts(&lease, range.start, length, writes, &mut parts).unwrap() {
                    continue;
                }
                let mut found = vec![];
                for part in &parts {
                    match *part {
                        Part::Zeros { bytes } => found.resize(found.len() + bytes as usize, 0),
                        Part::File { file: number, offset, bytes } => {
                            prop_assert!(number == 0 || !writes && backing, "file {number}");
                            let from = if number == 0 { &file } else { &base };
                            let mut read = vec![0; bytes as usize];
                            let inside = read_from(from, offset, &mut read);
                            prop_assert!(!writes || inside == bytes, "{inside} of {bytes} bytes are in the file");
                            found.append(&mut read);
                        }
                    }
                }
                prop_assert!(found == expected[range.start as usize..range.end as usize], "{parts:?}");
            }
        }
        prop_assert!(content(&disk, 0, bytes as usize) == expected);
    }
}

/// A host that lost its power may leave an image whose last cluster is behind the end of its file. imago cuts files to the length that it knows, so what is
/// written there goes through imago.
/// Reads as far as the file goes; how far that is.
fn read_from(file: &File, offset: u64, into: &mut [u8]) -> u64 {
    let length = file.metadata().unwrap().len().saturating_sub(offset).min(into.len() as u64);
    file.read_exact_at(&mut into[..length as usize], offset).unwrap();
    length
}

/// A move's streams write neighbours of one cluster at the same time.
#[test]
fn zeros_beside_another_thread_s_write_leave_it() {
    const CLUSTERS: u64 = 2000;
    const CLUSTER_BYTES: u64 = 8192;
    let disk = open(&qcow2_with(CLUSTERS * CLUSTER_BYTES, CLUSTER_BYTES as usize, false), &[]);
    let together = std::sync::Barrier::new(2);
    let each = |change: &dyn Fn(u64)| {
        for cluster in 0..CLUSTERS {
            together.wait();
            change(cluster * CLUSTER_BYTES);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| each(&|at| disk.write_at(at, &[7; 4096]).unwrap()));
        scope.spawn(|| each(&|at| disk.zero_at(at + 4096, 4096).unwrap()));
    });
    let lost = (0..CLUSTERS).filter(|cluster| content(&disk, cluster * CLUSTER_BYTES, 4096) != [7; 4096]).count();
    assert_eq!(lost, 0);
}

#[test]
fn version_2_has_no_zero_clusters_and_gets_zeros_all_the_same() {
    let file = qcow2_file(MIB, None);
    file.write_all_at(&2_u32.to_be_bytes(), 4).unwrap();
    let disk = open(&file, &[]);
    disk.write_at(0, &[7; 200_000]).unwrap();
    disk.zero_at(512, 100_000).unwrap();
    disk.discard_at(150_016, MIB - 150_016).unwrap();
    assert_eq!(content(&disk, 0, 512), [7; 512]);
    assert!(content(&disk, 512, 100_000) == [0; 100_000]);
    assert!(content(&disk, 100_512, 49_504) == [7; 49_504]);
    assert!(content(&disk, 150_016, 898_560) == [0; 898_560]);
}

/// Where an image does not show its backing image, as starts and ends, neighbours joined.
fn own(disk: &Disk) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = vec![];
    for Extent { range, is_backing, .. } in disk.extents().map(Result::unwrap) {
        match found.last_mut() {
            _ if is_backing => {}
            Some((_, end)) if *end == range.start => *end = range.end,
            _ => found.push((range.start, range.end)),
        }
    }
    found
}

#[test]
fn a_chain_shows_what_lies_below_and_never_changes_it() {
    let base = raw_file(&vec![1; MIB as usize]);
    let middle = qcow2_file(MIB, Some(("base.raw", ImageFormat::Raw)));
    let top = qcow2_file(2 * MIB, Some(("middle.qcow2", ImageFormat::Qcow2)));
    {
        let disk = open(&middle, &[&base]);
        disk.write_at(65_536, &[2; 65_536]).unwrap();
        disk.flush().unwrap();
    }
    let name = Disk::backing_name("top", &top).unwrap().unwrap();
    assert_eq!(name, BackingName { name: "middle.qcow2".to_owned(), format: Some(ImageFormat::Qcow2) });
    let disk = open(&top, &[&middle, &base]);
    disk.write_at(4096, &[3; 4096]).unwrap();
    assert_eq!(content(&disk, 0, 12_288), [vec![1; 4096], vec![3; 4096], vec![1; 4096]].concat());
    assert_eq!(content(&disk, 65_536, 4096), [2; 4096]);
    assert_eq!(content(&disk, MIB + 4096, 4096), [0; 4096], "beyond the backing image there are zeros");
    assert_eq!(extents(&disk), [(0..MIB, ExtentKind::Data), (MIB..2 * MIB, ExtentKind::Zero)]);
    assert_eq!(own(&disk), [(0, 65_536)]);
    disk.discard_at(65_536, 65_536).unwrap();
    assert_eq!(content(&disk, 65_536, 65_536), vec![0; 65_536], "a discard does not show the backing image");
    assert_eq!(own(&disk), [(0, 131_072)], "zeros of its own");
    disk.flush().unwrap();
    let mut below = vec![0; MIB as usize];
    base.read_exact_at(&mut below, 0).unwrap();
    assert!(below == vec![1; MIB as usize]);
    assert_eq!(content(&open(&middle, &[&base]), 65_536, 4096), [2; 4096]);
}

#[test]
fn a_disk_grows_while_it_is_used_and_never_shrinks() {
    let base = raw_file(&vec![1; MIB as usize]);
    let layer = qcow2_file(MIB, Some(("base.raw", ImageFormat::Raw)));
    let disk = open(&layer, &[&base]);
    disk.write_at(MIB - 4096, &[2; 4096]).unwrap();
    assert!(disk.write_at(MIB, &[3; 512]).is_err());
    // Far enough for a longer L1 table.
    let large = 40 << 30;
    thread::scope(|scope| {
        let reader = scope.spawn(|| (0..200).all(|_| content(&disk, 0, 4096) == [1; 4096]));
        for bytes in [2 * MIB, 3 * MIB + 512, large] {
            disk.grow(bytes).unwrap();
            assert_eq!(disk.size_bytes(), bytes);
        }
        assert!(reader.join().unwrap());
    });
    assert_eq!(content(&disk, MIB - 4096, 8192), [vec![2; 4096], vec![0; 4096]].concat());
    assert_eq!(extents(&disk), [(0..MIB, ExtentKind::Data), (MIB..large, ExtentKind::Zero)]);
    disk.write_at(large - 512, &[4; 512]).unwrap();
    let refused = disk.grow(MIB).unwrap_err().to_string();
    assert!(refused.contains("does not shrink") && disk.size_bytes() == large, "{refused}");
    for wrong in [large + 1, DISK_BYTES_MAX + 512, u64::MAX] {
        assert!(disk.grow(wrong).is_err());
    }
    drop(disk);
    let again = open(&layer, &[&base]);
    assert_eq!(again.size_bytes(), large);
    assert_eq!(content(&again, large - 1024, 1024), [vec![0; 512], vec![4; 512]].concat());
    let read_only = Disk::open("d", layer.try_clone().unwrap(), vec![base.try_clone().unwrap()], true).unwrap();
    assert!(read_only.grow(2 * large).is_err());
    assert!(open(&raw_file(&[0; 4096]), &[]).grow(8192).is_err());
}

#[test]
fn a_chain_that_is_not_what_the_header_says_is_refused() {
    let base = raw_file(&[0; 4096]);
    let top = qcow2_file(4096, Some(("base", ImageFormat::Qcow2)));
    let try_open = |file: &File, backing: Vec<File>| Disk::open("d", file.try_clone().unwrap(), backing, false).unwrap_err().to_string();
    assert_eq!(try_open(&top, vec![]), "disk d: its backing image base was not given");
    assert!(try_open(&top, vec![base.try_clone().unwrap()]).contains("calls its backing image base qcow2, which it is not"));
    assert_eq!(try_open(&base, vec![base.try_clone().unwrap()]), "disk d: has no backing image, but one was given");
}

#[test]
fn extents_tell_data_from_holes_in_both_formats() {
    let raw = tempfile::tempfile().unwrap();
    raw.set_len(8 * MIB).unwrap();
    for file in [raw, qcow2_file(8 * MIB, None)] {
        let disk = open(&file, &[]);
        assert_eq!(extents(&disk), [(0..8 * MIB, ExtentKind::Zero)]);
        disk.write_at(2 * MIB, &vec![1; MIB as usize]).unwrap();
        disk.flush().unwrap();
        assert_eq!(
            extents(&disk),
            [(0..2 * MIB, ExtentKind::Zero), (2 * MIB..3 * MIB, ExtentKind::Data), (3 * MIB..8 * MIB, ExtentKind::Zero)]
        );
        disk.discard_at(2 * MIB, MIB).unwrap();
        assert_eq!(extents(&disk), [(0..8 * MIB, ExtentKind::Zero)]);
    }
}

#[test]
fn tracking_names_what_changed_and_only_that() {
    let disk = open(&qcow2_file(MIB, None), &[]);
    disk.write_at(0, &[1; 4096]).unwrap();
    disk.track_start();
    disk.write_at(4096 * 5 + 512, &[1; 4096]).unwrap();
    disk.zero_at(4096 * 64, 1).unwrap();
    disk.discard_at(4096 * 70, 4096).unwrap();
    content(&disk, 0, 8192);
    assert_eq!(disk.track_take().iter().collect::<Vec<_>>(), [5, 6, 64, 70]);
    assert!(disk.track_take().is_empty());
    disk.track_stop();
    disk.write_at(0, &[1; 4096]).unwrap();
    assert!(disk.track_take().is_empty());
}

#[test]
fn a_unit_is_marked_while_it_changes_and_again_when_it_has() {
    let disk = open(&qcow2_file(MIB, None), &[]);
    disk.track_start();
    let mut during = BitSet::default();
    disk.changing(4096, 512, || {
        during = disk.track_take();
        Ok(())
    })
    .unwrap();
    // Who took the map during the change may have read what was there before it.
    assert!(during.contains(1) && disk.track_take().contains(1));
    // A change that failed may have happened in part.
    disk.changing(0, 512, || Err(io::ErrorKind::StorageFull.into())).unwrap_err();
    assert!(disk.track_take().contains(0));
}

/// What a move does: copy everything while the guest writes, then again what the map names, until nothing is named. The copy is the disk.
#[test]
fn copying_by_the_map_under_writes_ends_in_the_same_disk() {
    const UNITS: u64 = 256;
    for file in [raw_file(&vec![0; (UNITS * PAGE_BYTES) as usize]), qcow2_file(UNITS * PAGE_BYTES, None)] {
        let disk = open(&file, &[]);
        disk.track_start();
        let mut copy = vec![0; (UNITS * PAGE_BYTES) as usize];
        let take = |copy: &mut Vec<u8>, unit: u64| {
            let at = (unit * PAGE_BYTES) as usize;
            disk.read_at(unit * PAGE_BYTES, &mut copy[at..at + PAGE_BYTES as usize]).unwrap();
        };
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut random = 1_u64;
                for round in 0..3000_u64 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let unit = random >> 33 & (UNITS - 1);
                    if round % 16 == 15 {
                        disk.discard_at(unit * PAGE_BYTES, PAGE_BYTES).unwrap();
                    } else {
                        disk.write_at(unit * PAGE_BYTES, &[round as u8; PAGE_BYTES as usize]).unwrap();
                    }
                }
            });
            (0..UNITS).for_each(|unit| take(&mut copy, unit));
            loop {
                let ended = writer.is_finished();
                disk.track_take().iter().for_each(|unit| take(&mut copy, unit));
                if ended {
                    break;
                }
            }
        });
        assert!(copy == content(&disk, 0, copy.len()));
    }
}

#[test]
fn a_read_only_disk_refuses_changes_and_leaves_its_file_alone() {
    let file = qcow2_file(MIB, None);
    let mut before = Vec::new();
    std::io::Read::read_to_end(&mut file.try_clone().unwrap(), &mut before).unwrap();
    let disk = Disk::open("d", file.try_clone().unwrap(), Vec::new(), true).unwrap();
    assert!(disk.read_only());
    for refused in [disk.write_at(0, &[1; 512]), disk.zero_at(0, 512), disk.discard_at(0, 512)] {
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
    disk.flush().unwrap();
    assert_eq!(content(&disk, 0, 512), [0; 512]);
}

#[test]
fn a_full_host_is_an_error_and_no_more() {
    // A memfd sealed against growth is as full as a host can be.
    let memfd = File::from(memfd_create("full", MemfdFlags::ALLOW_SEALING).unwrap());
    Disk::create_qcow2("full", &memfd, MIB, None).unwrap();
    rustix::fs::fcntl_add_seals(&memfd, rustix::fs::SealFlags::GROW).unwrap();
    let disk = open(&memfd, &[]);
    let error = disk.write_at(0, &vec![1; MIB as usize]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::PERM.raw_os_error()), "{error}");
    assert_eq!(content(&disk, 0, 4096), [0; 4096]);
    assert!(disk.write_at(0, &[1; 512]).is_err(), "still an error, still no panic");
}

#[test]
fn what_is_no_image_is_refused_with_its_name_and_a_reason() {
    for (name, bytes, reason) in [
        ("a", b"".as_slice(), "it is empty"),
        ("b.qcow2", &[0; 1024], "its name says qcow2, its content does not"),
        ("c", &[1; 1000], "is no multiple of 512"),
        ("d", b"KDMV", "it is a VMDK image"),
        ("e", b"QFI\xfb", "its qcow2 header is cut short"),
        ("f", b"vhdxfile", "it is a VHDX image"),
    ] {
        let said = refusal(name, &raw_file(bytes));
        assert!(said.starts_with(&format!("disk {name}: not what it says: ")) && said.contains(reason), "{said}");
    }
    let file = raw_file(b"something");
    assert!(Disk::create_qcow2("g", &file, MIB, None).unwrap_err().to_string().contains("needs an empty file"));
    let file = tempfile::tempfile().unwrap();
    assert!(Disk::create_qcow2("h", &file, 1000, None).is_err());
    assert!(Disk::create_qcow2("h", &file, DISK_BYTES_MAX + 512, None).is_err());
}

#[test]
fn a_raw_disk_never_turns_into_another_format() {
    let file = raw_file(&[0; 4096]);
    let disk = open(&file, &[]);
    for (offset, data) in [(0, b"QFI\xfb".as_slice()), (0, b"KDMVxxxx"), (0, &[b"QFI\xfb".as_slice(), &[0; 508]].concat())] {
        assert_eq!(disk.write_at(offset, data).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
    disk.write_at(0, b"QFI").unwrap();
    assert!(disk.write_at(3, b"\xfb").is_err(), "byte by byte neither");
    disk.write_at(4, b"QFI\xfb").unwrap();
    assert_eq!(content(&disk, 0, 8), b"QFI\0QFI\xfb");
    open(&qcow2_file(4096, None), &[]).write_at(0, b"QFI\xfb").unwrap();
}

#[test]
fn each_hostile_header_field_is_refused_before_anything_is_allocated() {
    let file = qcow2_file(MIB, None);
    for (at, bytes, reason) in [
        (4, &[0, 0, 0, 9][..], "version 9"),
        (20, &[0, 0, 0, 8], "cluster size is 2^8"),
        (20, &[0, 0, 0, 63], "cluster size is 2^63"),
        (20, &[0xff; 4], "cluster size"),
        (24, &[0xff; 8], "too short for"),
        (32, &[0, 0, 0, 1], "encrypted"),
        (36, &[0xff; 4], "L1 table"),
        (36, &[0; 4], "too short"),
        (40, &[0xff; 8], "L1 table"),
        (40, &[0; 8], "L1 table"),
        (48, &[0x7f; 8], "refcount table"),
        (56, &[0xff; 4], "refcount table"),
        (60, &[0, 0, 0, 1], "snapshots"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 1], "not closed properly"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 2], "corrupt"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 4], "an external data file, which is not supported; convert it with"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 24], "zstd compression, extended L2 entries, which"),
        (72, &[0x80, 0, 0, 0, 0, 0, 0, 0], "features"),
        (96, &[0, 0, 0, 7], "no sense"),
        (100, &[0xff; 4], "no sense"),
        (8, &[0xff; 8], "name of its backing image"),
        (8, &[0, 0, 0, 0, 0, 0, 0, 200], "name of its backing image"),
    ] {
        let mut hostile = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut hostile, 0).unwrap();
        hostile[at..at + bytes.len()].copy_from_slice(bytes);
        let said = refusal("x", &raw_file(&hostile));
        assert!(said.starts_with("disk x: not what it says: ") && said.contains(reason), "{at}: {said}");
    }
}

/// Found by fuzzing: writing to such an image ended in a stack overflow.
#[test]
fn refcounts_that_leave_out_the_header_are_refused() {
    let file = qcow2_file(MIB, None);
    let mut table = [0; 8];
    file.read_exact_at(&mut table, 48).unwrap();
    file.write_all_at(&[0; 8], u64::from_be_bytes(table)).unwrap();
    let said = refusal("x", &file);
    assert!(said.starts_with("disk x: not what it says: its qcow2 refcounts leave out its own header"), "{said}");
}

/// Found by fuzzing: such a table of feature names was read past its end.
#[test]
fn extensions_that_make_no_sense_are_refused() {
    for (bytes, count, reason) in [(49_u32, 1, "table of feature names has 49 bytes"), (48, 33, "more than 32 extensions")] {
        let file = qcow2_file(MIB, None);
        let mut at = [0; 4];
        file.read_exact_at(&mut at, 100).unwrap();
        let mut at = u64::from(u32::from_be_bytes(at));
        for _ in 0..count {
            file.write_all_at(&[0x6803_f857_u32.to_be_bytes(), bytes.to_be_bytes()].concat(), at).unwrap();
            at += 8 + u64::from(bytes).next_multiple_of(8);
        }
        file.write_all_at(&[0; 8], at).unwrap();
        let said = refusal("x", &file);
        assert!(said.starts_with("disk x: not what it says: ") && said.contains(reason), "{said}");
    }
}

#[test]
fn tables_within_a_sparse_file_are_limited_all_the_same() {
    for (at, bytes, reason) in [(36, 5_000_000_u32, "L1 table (40000000 bytes"), (56, 200, "refcount table (13107200 bytes")] {
        let file = qcow2_file(MIB, None);
        file.set_len(1 << 40).unwrap();
        file.write_all_at(&bytes.to_be_bytes(), at).unwrap();
        let said = refusal("x", &file);
        assert!(said.contains(reason), "{said}");
    }
}

/// A small image with data, a zero cluster and a backing name: its tables are what a hostile image changes.
fn image_to_spoil() -> Vec<u8> {
    let file = qcow2_with(64 * 1024, 512, false);
    {
        let disk = open(&file, &[]);
        disk.write_at(0, &[1; 8192]).unwrap();
        disk.zero_at(1024, 512).unwrap();
        disk.flush().unwrap();
    }
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_spoilt_image_gives_errors_or_wrong_bytes_and_nothing_worse() {
    let sound = image_to_spoil();
    let metadata = sound.len() as u64;
    let spoil = proptest::collection::vec((0..metadata, any::<u8>()), 1..8);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() });
    runner
        .run(&spoil, |changes| {
            let mut bytes = sound.clone();
            for (at, value) in changes {
                bytes[at as usize] = value;
            }
            let file = raw_file(&bytes);
            if let Ok(disk) = Disk::open("spoilt", file, Vec::new(), false) {
                let size = disk.size_bytes().min(64 * 1024);
                let mut buffer = vec![0; size as usize];
                disk.read_at(0, &mut buffer).ok();
                let mut at = 0;
                while let Ok(Some(extent)) = disk.extent_at(at) {
                    at = extent.range.end;
                    if at > 4 * size {
                        break;
                    }
                }
                for offset in (0..size).step_by(512) {
                    disk.write_at(offset, &[9; 512]).ok();
                }
                disk.discard_at(0, size).ok();
                disk.flush().ok();
            }
            Ok(())
        })
        .unwrap();
}
