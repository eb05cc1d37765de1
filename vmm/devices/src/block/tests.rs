//! Requests one by one, without a ring's thread in between: what each type does, what is refused, what the status says.

use std::fs::File;

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress};

use super::{request::REQUEST_BYTES_MAX, *};
use crate::virtio::chain::DescriptorTable;

const MIB: u64 = 1 << 20;
const TABLE: u64 = 0x1000;
const HEADER: u64 = 0x2000;
const STATUS: u64 = 0x3000;
const DATA: u64 = 0x10_0000;

struct Bench {
    ram: GuestRam,
    answers: BlockAnswers,
    file: File,
}

impl Bench {
    fn new(read_only: bool) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MIB).unwrap();
        let disk = Arc::new(Disk::open("dir/a-name-of-more-than-20-bytes.img", file.try_clone().unwrap(), Vec::new(), read_only).unwrap());
        let SingleQueue::Stopped(answers) = BlockDevice::new(disk).queue else { unreachable!("a new device is stopped") };
        Self { ram: GuestRam::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap(), answers, file }
    }

    /// One request with a data buffer; returns its status and the bytes written.
    fn ask(&mut self, kind: u32, sector: u64, data_bytes: u32, data_writable: bool) -> (u8, u32) {
        self.ram.write_slice(&[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat(), GuestAddress(HEADER)).unwrap();
        self.ram.write_obj(0xee_u8, GuestAddress(STATUS)).unwrap();
        let writable = 2 * u16::from(data_writable);
        let written = self.chain(&[(HEADER, 16, 0), (DATA, data_bytes, writable), (STATUS, 1, 2)]).unwrap();
        (self.ram.read_obj(GuestAddress(STATUS)).unwrap(), written)
    }

    fn chain(&mut self, buffers: &[(u64, u32, u16)]) -> Result<u32, Broken> {
        for (at, (address, bytes, flags)) in (0_u16..).zip(buffers) {
            let next = u16::from(usize::from(at) + 1 < buffers.len());
            let descriptor = RawDescriptor::from(Descriptor::new(*address, *bytes, flags | next, at + 1));
            self.ram.write_obj(descriptor, GuestAddress(TABLE + 16 * u64::from(at))).unwrap();
        }
        let mut chain = Chain::default();
        chain.load(&self.ram, None, DescriptorTable { address: TABLE, entries: 16, indirect_allowed: false }, 0)?;
        self.answers.answer(&chain, &self.ram)
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let range = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
        self.ram.write_slice(&range, GuestAddress(DATA)).unwrap();
        self.ask(kind, 0, 16, false).0
    }

    fn fill(&self, byte: u8, bytes: usize) {
        self.ram.write_slice(&vec![byte; bytes], GuestAddress(DATA)).unwrap();
    }

    fn data(&self, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.ram.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        data
    }
}

#[test]
fn reads_and_writes_larger_than_the_buffer_arrive() {
    let mut bench = Bench::new(false);
    let bytes = 3 * BUFFER_BYTES + 512;
    bench.fill(7, bytes);
    assert_eq!(bench.ask(1, 8, bytes as u32, false), (0, 1));
    bench.fill(0, bytes);
    assert_eq!(bench.ask(0, 8, bytes as u32, true), (0, bytes as u32 + 1));
    assert!(bench.data(bytes) == vec![7; bytes]);
    assert_eq!(bench.ask(0, 7, 512, true), (0, 513));
    assert_eq!(bench.data(512), [0; 512]);
}

#[test]
fn what_lies_outside_of_disk_or_limits_is_an_error() {
    let mut bench = Bench::new(false);
    for (kind, sector, bytes) in [
        (1, MIB / 512, 512),
        (1, MIB / 512 - 1, 1024),
        (1, u64::MAX, 512),
        (1, u64::MAX / 512, 512),
        (1, 0, 511),
        (0, 0, 513),
        (0, 0, REQUEST_BYTES_MAX as u32 + 512),
    ] {
        assert_eq!(bench.ask(kind, sector, bytes, kind == 0), (1, 1), "type {kind}, {bytes} bytes at {sector}");
    }
    for kind in [2, 3, 5, 14, 15, 99, u32::MAX] {
        assert_eq!(bench.ask(kind, 0, 512, false), (2, 1), "type {kind}");
    }
    assert!(bench.chain(&[(HEADER, 15, 0), (STATUS, 1, 2)]).is_err(), "no header");
    assert!(bench.chain(&[(HEADER, 16, 0)]).is_err(), "no status");
}

#[test]
fn a_flush_and_an_identity_are_answered() {
    let mut bench = Bench::new(false);
    assert_eq!(bench.ask(4, 0, 0, false), (0, 1));
    bench.fill(0xee, 64);
    assert_eq!(bench.ask(8, 0, 20, true), (0, 21));
    assert_eq!(bench.data(21), [b"a-name-of-more-than-".as_slice(), &[0xee]].concat());
    bench.fill(0xee, 64);
    assert_eq!(bench.ask(8, 0, 5, true), (0, 6));
    assert_eq!(bench.data(6), b"a-nam\xee");
}

#[test]
fn discard_and_write_zeroes_leave_zeros_within_their_limits() {
    let mut bench = Bench::new(false);
    bench.fill(7, 65_536);
    for kind in [11, 13] {
        assert_eq!(bench.ask(1, 0, 65_536, false).0, 0);
        assert_eq!(bench.range(kind, 8, 16, 0), 0);
        assert_eq!(bench.ask(0, 0, 65_536, true).0, 0);
        assert!(bench.data(65_536) == [vec![7; 4096], vec![0; 8192], vec![7; 65_536 - 12_288]].concat());
        assert_eq!(bench.range(kind, MIB / 512, 1, 0), 1);
        assert_eq!(bench.range(kind, 0, RANGE_SECTORS_MAX + 1, 0), 1);
        assert_eq!(bench.range(kind, 0, 1, 2), 2, "a flag that nobody knows");
        assert_eq!(bench.ask(kind, 0, 32, false), (2, 1), "two ranges");
        bench.fill(7, 65_536);
    }
    assert_eq!(bench.range(13, 0, 8, 1), 0);
    assert_eq!(bench.range(11, 0, 8, 1), 2, "a discard does not unmap");
}

#[test]
fn a_read_only_disk_answers_writes_with_an_error() {
    let mut bench = Bench::new(true);
    assert_eq!(bench.ask(1, 0, 512, false), (1, 1));
    assert_eq!(bench.range(11, 0, 8, 0), 1);
    assert_eq!(bench.ask(0, 0, 512, true), (0, 513));
    assert_eq!(bench.ask(4, 0, 0, false), (0, 1));
}

#[test]
fn an_error_of_the_host_is_an_error_of_the_request() {
    let mut bench = Bench::new(false);
    bench.fill(7, 512);
    // A host that refuses is met without filling a disk: this start of a raw disk is refused as if it were.
    bench.ram.write_slice(b"QFI\xfb", GuestAddress(DATA)).unwrap();
    assert_eq!(bench.ask(1, 0, 512, false), (1, 1));
    bench.fill(7, 512);
    assert_eq!(bench.ask(1, 0, 512, false), (0, 1));
    assert_eq!(bench.file.metadata().unwrap().len(), MIB);
}

#[test]
fn the_configuration_says_what_is_kept_to() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB).unwrap();
    for read_only in [false, true] {
        let disk = Disk::open("d", file.try_clone().unwrap(), Vec::new(), read_only).unwrap();
        let device = BlockDevice::new(Arc::new(disk));
        let word = |at: usize| u32::from_le_bytes(device.config()[at..at + 4].try_into().unwrap());
        assert_eq!((device.config().len(), word(0), word(4)), (60, 2048, 0));
        assert_eq!((word(8), word(12), word(20)), (SEGMENT_BYTES_MAX, SEGMENTS_MAX, 512));
        assert_eq!([word(36), word(40), word(44), word(48), word(52), word(56)], [RANGE_SECTORS_MAX, 1, 128, RANGE_SECTORS_MAX, 1, 1]);
        assert_eq!(device.features() >> VIRTIO_BLK_F_RO & 1 == 1, read_only);
        assert_eq!(device.features() >> VIRTIO_BLK_F_FLUSH & 1 == 0, read_only);
    }
}
