//! Tables of qcow2 images that lie, images of QEMU's that do not, and what a power cut leaves.

use super::*;

/// The first entry of the L1 table, of the L2 table that it leads to, and of the refcount table: where they are in the file.
fn first_entries(image: &[u8]) -> [usize; 3] {
    let long = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let (l1, refcounts) = (long(40) as usize, long(48) as usize);
    [l1, (long(l1) & 0x00ff_ffff_ffff_fe00) as usize, refcounts]
}

#[test]
fn tables_that_lie_are_refused_before_anything_is_read_through_them() {
    let sound = image_to_spoil();
    let [l1, l2, refcounts] = first_entries(&sound);
    let long = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap());
    let entry = |at: u64| at.to_be_bytes();
    for (at, value, reason) in [
        (l1, l1 as u64, "L2 table 0 lies where something else is"),
        (l1, refcounts as u64, "L2 table 0 lies where something else is"),
        (l1 + 8, long(l1), "L2 table 1 lies where something else is"),
        (l1, long(l1) | 1, "L2 table 0 is where no cluster begins"),
        (l1, 1 << 50, "L2 table 0 lies outside the file"),
        (l2, l2 as u64, "cluster of L2 table 0 lies where something else is"),
        (l2, 0, ""),
        (l2 + 8, long(l2), "cluster of L2 table 0 lies where something else is"),
        (l2, 1 << 50, "cluster of L2 table 0 lies outside the file"),
        (l2, long(l2) | 4, "cluster of L2 table 0 is where no cluster begins"),
        (l2, 1 << 62 | l1 as u64, "cluster of L2 table 0 lies where something else is"),
        (l2, 1 << 62 | 1 << 55, "cluster of L2 table 0 lies outside the file"),
        (refcounts + 8, long(refcounts), "refcount block 1 lies where something else is"),
        (refcounts, 1 << 50, "refcount block 0 lies outside the file"),
    ] {
        let mut image = sound.clone();
        image[at..at + 8].copy_from_slice(&entry(value));
        match Disk::open("x", raw_file(&image), Vec::new(), false) {
            Ok(_) => assert_eq!(reason, "", "{value:#x} at {at:#x}"),
            Err(error) => assert!(!reason.is_empty() && error.to_string().contains(reason), "{value:#x} at {at:#x}: {error}"),
        }
    }
}

/// A table that counts 2^35 clusters would be searched for a free one, one after the other, by the guest's first write.
#[test]
fn a_refcount_table_for_clusters_that_are_not_there_is_refused() {
    let mut image = image_to_spoil();
    let [_, _, refcounts] = first_entries(&image);
    // The table is one cluster of 64 entries: block 63 would count from cluster 16,128 on; with a file of a few it may not be there.
    let end = image.len() as u64;
    image.extend([0xff; 512]);
    image[refcounts + 63 * 8..refcounts + 64 * 8].copy_from_slice(&end.to_be_bytes());
    let file = raw_file(&image);
    // A GiB behind the end is forgiven, which is 8192 blocks of 512-byte clusters: only larger clusters' tables reach further.
    Disk::open("x", file, Vec::new(), false).unwrap();

    let file = qcow2_with(64 * MIB, 65_536, false);
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let [_, _, refcounts] = first_entries(&bytes);
    let end = bytes.len() as u64;
    bytes.resize(bytes.len() + 65_536, 0xff);
    bytes[refcounts + 8000 * 8..refcounts + 8001 * 8].copy_from_slice(&end.to_be_bytes());
    let said = refusal("x", &raw_file(&bytes));
    assert!(said.contains("refcount table counts clusters that the file does not have (block 8000)"), "{said}");
}

/// After a power cut the file may be shorter than its tables say: zeros are there, and the guest never heard that it was flushed.
#[test]
fn a_cluster_that_was_not_written_any_more_is_forgiven() {
    let file = qcow2_with(MIB, 4096, false);
    {
        let disk = open(&file, &[]);
        disk.write_at(0, &[1; 65_536]).unwrap();
        disk.flush().unwrap();
    }
    let length = file.metadata().unwrap().len();
    file.set_len(length - 4096 * 3).unwrap();
    let disk = open(&file, &[]);
    assert_eq!(content(&disk, 0, 4096), [1; 4096]);
    assert_eq!(content(&disk, 61_440, 4096), [0; 4096]);
}

/// What QEMU itself makes of an image passes, compressed clusters and all.
#[test]
fn images_of_qemu_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let content: Vec<u8> = (0..4 * MIB).map(|at| if at % 65_536 < 20_000 { ((at * at) >> 7) as u8 } else { 7 }).collect();
    std::fs::write(path("raw"), &content).unwrap();
    for options in [
        &["-c"][..],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
        &["-o", "refcount_bits=1"],
        &["-o", "refcount_bits=64"],
        &["-o", "preallocation=metadata"],
        &["-o", "compat=0.10"],
        &["-c", "-o", "cluster_size=512"],
        &["-o", "lazy_refcounts=on"],
    ] {
        let mut qemu = std::process::Command::new("qemu-img");
        qemu.args(["convert", "-f", "raw", "-O", "qcow2"]).args(options).arg(path("raw")).arg(path("image"));
        assert!(qemu.status().unwrap().success(), "{options:?}");
        let file = File::options().read(true).write(true).open(path("image")).unwrap();
        assert!(self::content(&open(&file, &[]), 0, content.len()) == content, "{options:?}");
    }
}
