//! Requests one by one, without a ring's thread in between: what each type does, what is refused, what the status says.

use std::{
    fs::File,
    io,
    os::fd::RawFd,
    sync::{Arc, Mutex},
};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress};

use super::{
    by_hand::BUFFER_BYTES,
    request::{RANGE_SECTORS_MAX, REQUEST_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENTS_MAX},
    *,
};
use crate::{
    GuestRam, PlainThreads,
    disk::{BackingName, Done, FileRing, ImageFormat},
    testing::ring_over,
    virtio::{
        Signals,
        chain::{Chain, DescriptorTable},
        ring::Broken,
        single::Serve,
    },
};

const MIB: u64 = 1 << 20;
const TABLE: u64 = 0x1000;
const HEADER: u64 = 0x2000;
const STATUS: u64 = 0x3000;
const DATA: u64 = 0x10_0000;

#[derive(Debug)]
struct NoSignals;

impl Signals for NoSignals {
    fn used(&self, _queue: u16) {}
    fn broken(&self) {}
}

struct Bench {
    ram: GuestRam,
    disk: Arc<Disk>,
    queue: BlockQueue,
    file: File,
}

/// By hand, and beside each other.
const ROADS: [bool; 2] = [false, true];

impl Bench {
    fn new(read_only: bool, has_ring: bool) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MIB).unwrap();
        let rings: Vec<Box<dyn FileRing>> = if has_ring { vec![ring_over(&[&file])] } else { vec![] };
        let disk = Disk::open("dir/a-name-of-more-than-20-bytes.img", file.try_clone().unwrap(), Vec::new(), read_only).unwrap();
        Self::over(disk.with_queues(1, rings), file)
    }

    fn over(disk: Disk, file: File) -> Self {
        let disk = Arc::new(disk);
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
        let environment = QueueEnvironment {
            ram: ram.clone(),
            signals: Arc::new(NoSignals),
            threads: Arc::new(PlainThreads),
            features: 1 << VIRTIO_BLK_F_FLUSH,
            arrived: false,
            blocks: None,
        };
        let mut device = BlockDevice::new(Arc::clone(&disk));
        let Some(SingleQueue::Stopped(mut queue)) = device.queues.pop() else { unreachable!("a new device is stopped") };
        queue.start(&environment).unwrap();
        Self { ram, disk, queue, file }
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
        let chain = self.lay(buffers)?;
        self.queue.ask(chain, &self.ram).map(|(_, written)| written)
    }

    fn lay(&self, buffers: &[(u64, u32, u16)]) -> Result<Chain, Broken> {
        for (at, (address, bytes, flags)) in (0_u16..).zip(buffers) {
            let next = u16::from(usize::from(at) + 1 < buffers.len());
            let descriptor = RawDescriptor::from(Descriptor::new(*address, *bytes, flags | next, at + 1));
            self.ram.write_obj(descriptor, GuestAddress(TABLE + 16 * u64::from(at))).unwrap();
        }
        let mut chain = Chain::default();
        chain.load(&self.ram, None, DescriptorTable { address: TABLE, entries: 16, indirect_allowed: false }, 0)?;
        Ok(chain)
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let range = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
        self.ram.write_slice(&range, GuestAddress(DATA)).unwrap();
        self.ask(kind, 0, 16, false).0
    }

    fn write_chain(&self, sector: u64, bytes: u32) -> Chain {
        let header = [&1_u32.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.ram.write_slice(&header, GuestAddress(HEADER)).unwrap();
        self.lay(&[(HEADER, 16, 0), (DATA, bytes, 0), (STATUS, 1, 2)]).unwrap()
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
    for has_ring in ROADS {
        let mut bench = Bench::new(false, has_ring);
        let bytes = 3 * BUFFER_BYTES + 512;
        bench.fill(7, bytes);
        assert_eq!(bench.ask(1, 8, bytes as u32, false), (0, 1));
        bench.fill(0, bytes);
        assert_eq!(bench.ask(0, 8, bytes as u32, true), (0, bytes as u32 + 1));
        assert!(bench.data(bytes) == vec![7; bytes]);
        assert_eq!(bench.ask(0, 7, 512, true), (0, 513));
        assert_eq!(bench.data(512), [0; 512]);
    }
}

#[test]
fn what_lies_outside_of_disk_or_limits_is_an_error() {
    for has_ring in ROADS {
        let mut bench = Bench::new(false, has_ring);
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
}

#[test]
fn a_flush_and_an_identity_are_answered() {
    for has_ring in ROADS {
        let mut bench = Bench::new(false, has_ring);
        assert_eq!(bench.ask(4, 0, 0, false), (0, 1));
        bench.fill(0xee, 64);
        assert_eq!(bench.ask(8, 0, 20, true), (0, 21));
        assert_eq!(bench.data(21), [b"a-name-of-more-than-".as_slice(), &[0xee]].concat());
        bench.fill(0xee, 64);
        assert_eq!(bench.ask(8, 0, 5, true), (0, 6));
        assert_eq!(bench.data(6), b"a-nam\xee");
    }
}

#[test]
fn discard_and_write_zeroes_leave_zeros_within_their_limits() {
    for has_ring in ROADS {
        let mut bench = Bench::new(false, has_ring);
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
}

#[test]
fn a_read_only_disk_answers_writes_with_an_error() {
    for has_ring in ROADS {
        let mut bench = Bench::new(true, has_ring);
        assert_eq!(bench.ask(1, 0, 512, false), (1, 1));
        assert_eq!(bench.range(11, 0, 8, 0), 1);
        assert_eq!(bench.ask(0, 0, 512, true), (0, 513));
        assert_eq!(bench.ask(4, 0, 0, false), (0, 1));
    }
}

#[test]
fn an_error_of_the_host_is_an_error_of_the_request() {
    for has_ring in ROADS {
        let mut bench = Bench::new(false, has_ring);
        bench.fill(7, 512);
        // A host that refuses is met without filling a disk: this start of a raw disk is refused as if it were.
        bench.ram.write_slice(b"QFI\xfb", GuestAddress(DATA)).unwrap();
        assert_eq!(bench.ask(1, 0, 512, false), (1, 1));
        bench.fill(7, 512);
        assert_eq!(bench.ask(1, 0, 512, false), (0, 1));
        assert_eq!(bench.file.metadata().unwrap().len(), MIB);
    }
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

/// A ring whose answers are not what one hopes for.
#[derive(Debug)]
struct Faulty {
    ring: Box<dyn FileRing>,
    faults: Arc<Mutex<Faults>>,
}

#[derive(Debug, Default)]
struct Faults {
    /// Bytes carried at once at most.
    short: Option<u32>,
    /// What comes back in place of an answer, once each.
    answers: Vec<Result<u32, i32>>,
    asked: usize,
    synced: usize,
}

impl Faulty {
    fn shortened(&mut self, pieces: &[(GuestAddress, u32)]) -> Vec<(GuestAddress, u32)> {
        let mut faults = self.faults.lock().unwrap();
        faults.asked += 1;
        let mut left = faults.short.unwrap_or(u32::MAX);
        let cut = |(address, bytes): &(GuestAddress, u32)| {
            let bytes = left.min(*bytes);
            left -= bytes;
            (*address, bytes)
        };
        pieces.iter().map(cut).filter(|(_, bytes)| *bytes > 0).collect()
    }
}

impl FileRing for Faulty {
    fn attach(&mut self, ram: &GuestRam) -> io::Result<()> {
        self.ring.attach(ram)
    }
    fn room(&self) -> usize {
        self.ring.room()
    }
    fn read(&mut self, token: u64, file: u32, offset: u64, into: &[(GuestAddress, u32)]) -> io::Result<()> {
        let into = self.shortened(into);
        self.ring.read(token, file, offset, &into)
    }
    fn write(&mut self, token: u64, file: u32, offset: u64, from: &[(GuestAddress, u32)]) -> io::Result<()> {
        let from = self.shortened(from);
        self.ring.write(token, file, offset, &from)
    }
    fn sync_data(&mut self, token: u64, file: u32) -> io::Result<()> {
        self.faults.lock().unwrap().synced += 1;
        self.ring.sync_data(token, file)
    }
    fn submit(&mut self) -> io::Result<()> {
        self.ring.submit()
    }
    fn wait(&mut self) -> io::Result<()> {
        self.ring.wait()
    }
    fn next_done(&mut self) -> Option<Done> {
        let (token, result) = self.ring.next_done()?;
        Some((token, self.faults.lock().unwrap().answers.pop().unwrap_or(result)))
    }
    fn descriptor(&self) -> RawFd {
        self.ring.descriptor()
    }
}

/// A raw disk on such a ring.
fn faulty() -> (Bench, Arc<Mutex<Faults>>) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB).unwrap();
    let faults = Arc::<Mutex<Faults>>::default();
    let ring = Box::new(Faulty { ring: ring_over(&[&file]), faults: Arc::clone(&faults) });
    let disk = Disk::open("faulty", file.try_clone().unwrap(), vec![], false).unwrap();
    (Bench::over(disk.with_queues(1, vec![ring]), file), faults)
}

#[test]
fn short_answers_are_made_whole() {
    let (mut bench, faults) = faulty();
    faults.lock().unwrap().short = Some(1000);
    bench.fill(7, 8192);
    assert_eq!(bench.ask(1, 8, 8192, false), (0, 1));
    bench.fill(0, 8192);
    assert_eq!(bench.ask(0, 8, 8192, true), (0, 8193));
    assert!(bench.data(8192) == [7; 8192]);
    assert_eq!(faults.lock().unwrap().asked, 18, "nine times each");
}

#[test]
fn a_file_that_ends_early_reads_as_zeros() {
    let (mut bench, _) = faulty();
    bench.fill(7, 8192);
    assert_eq!(bench.ask(1, 8, 8192, false), (0, 1));
    bench.file.set_len(8192).unwrap();
    bench.fill(9, 8192);
    assert_eq!(bench.ask(0, 8, 8192, true), (0, 8193));
    assert!(bench.data(8192) == [vec![7; 4096], vec![0; 4096]].concat());
}

#[test]
fn an_error_of_the_host_is_told_and_its_units_are_marked_all_the_same() {
    let (mut bench, faults) = faulty();
    bench.disk.track_start();
    for (error, answers) in [(5, vec![Err(5)]), (28, vec![Err(28), Ok(512)])] {
        let mut faults = faults.lock().unwrap();
        (faults.answers, faults.short) = (answers, Some(512));
        drop(faults);
        bench.disk.track_take();
        assert_eq!(bench.ask(1, 16, 4096, false), (1, 1), "error {error}");
        assert_eq!(bench.disk.track_take().iter().collect::<Vec<_>>(), [2], "it may have happened in part");
        assert_eq!(bench.queue.on_the_way(), 0);
        assert_eq!(bench.ask(1, 16, 4096, false), (0, 1));
    }
    faults.lock().unwrap().answers = vec![Err(5)];
    assert_eq!(bench.ask(4, 0, 0, false), (1, 1), "a flush too");
}

#[test]
fn errors_of_the_way_are_no_errors_of_the_disk() {
    for error in [4, 11, 12, 95, 125] {
        let (mut bench, faults) = faulty();
        faults.lock().unwrap().answers = vec![Err(error)];
        bench.fill(7, 4096);
        assert_eq!(bench.ask(1, 8, 4096, false), (0, 1), "error {error}");
        bench.fill(0, 4096);
        faults.lock().unwrap().answers = vec![Err(error)];
        assert_eq!(bench.ask(0, 8, 4096, true), (0, 4097));
        assert!(bench.data(4096) == [7; 4096]);
        faults.lock().unwrap().answers = vec![Err(error)];
        assert_eq!(bench.ask(4, 0, 0, false), (0, 1));
        assert!(faults.lock().unwrap().answers.is_empty(), "all of it was met");
    }
}

/// A move takes the map while a write is on its way: what it then reads may be old, so the unit must be there again when the write has ended.
#[test]
fn a_unit_is_marked_before_a_write_is_on_its_way_and_after_it_has_ended() {
    let (mut bench, _) = faulty();
    bench.disk.track_start();
    bench.fill(7, 4096);
    let chain = bench.write_chain(24, 4096);
    bench.queue.put(chain, &bench.ram).unwrap();
    bench.queue.begin_alone(&bench.ram).unwrap();
    assert_eq!(bench.queue.on_the_way(), 1);
    assert_eq!(bench.disk.track_take().iter().collect::<Vec<_>>(), [3], "before");
    bench.queue.finish_alone(&bench.ram).unwrap();
    assert_eq!(bench.disk.track_take().iter().collect::<Vec<_>>(), [3], "after");
    assert!(bench.disk.track_take().is_empty());
}

#[test]
fn a_driver_that_does_not_flush_has_each_write_synced() {
    let (mut bench, faults) = faulty();
    assert_eq!((bench.ask(1, 8, 512, false), faults.lock().unwrap().synced), ((0, 1), 0));
    bench.queue.flush_writes(true);
    assert_eq!((bench.ask(1, 8, 512, false), faults.lock().unwrap().synced), ((0, 1), 1));
    for answers in [vec![Err(11), Ok(512)], vec![Err(11)]] {
        faults.lock().unwrap().answers = answers;
        assert_eq!(bench.ask(1, 8, 512, false), (0, 1), "a sync, or a write, that had to be done by hand");
    }
    faults.lock().unwrap().answers = vec![Err(5), Ok(512)];
    assert_eq!(bench.ask(1, 8, 512, false), (1, 1), "a sync that fails");
}

/// Clusters here, in the backing image and nowhere, in one request.
#[test]
fn a_request_over_several_files_is_one_request() {
    let base = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&base, &[1; 128 << 10], 0).unwrap();
    let file = tempfile::tempfile().unwrap();
    let name = BackingName { name: "base".to_owned(), format: Some(ImageFormat::Raw) };
    Disk::create_qcow2("top", &file, MIB, Some(&name)).unwrap();
    let disk = Disk::open("top", file.try_clone().unwrap(), vec![base.try_clone().unwrap()], false).unwrap();
    disk.write_at(64 << 10, &[2; 64 << 10]).unwrap();
    let faults = Arc::<Mutex<Faults>>::default();
    let ring = Box::new(Faulty { ring: ring_over(&[&file, &base]), faults: Arc::clone(&faults) });
    let mut bench = Bench::over(disk.with_queues(1, vec![ring]), file);
    bench.fill(9, 256 << 10);
    assert_eq!(bench.ask(0, 8, 192 << 10, true), (0, (192 << 10) + 1));
    let expected = [vec![1; 60 << 10], vec![2; 64 << 10], vec![0; 68 << 10], vec![9]].concat();
    assert!(bench.data((192 << 10) + 1) == expected);
    assert_eq!(faults.lock().unwrap().asked, 2);
    // Where it is allocated it is written in place, elsewhere by imago; a base is never written.
    bench.fill(3, 64 << 10);
    assert_eq!((bench.ask(1, 128, 64 << 10, false), faults.lock().unwrap().asked), ((0, 1), 3));
    assert_eq!((bench.ask(1, 0, 512, false), faults.lock().unwrap().asked), ((0, 1), 3));
    assert_eq!(bench.ask(0, 0, 64 << 10, true).0, 0);
    assert!(bench.data(64 << 10) == [vec![3; 512], vec![1; (64 << 10) - 512]].concat());
}
