//! What a request is to each device, and how its answer is verified. Requests are numbered; a number's memory is its own among any
//! [`super::driver::SLOTS`] in a row.

use std::{
    fs::File,
    io,
    ops::Range,
    sync::{Arc, Mutex},
};

use rebec_offload::{Checksum, Offload};
use vm_memory::{Bytes, GuestAddress};

use super::driver::{Buffer, DATA, Driver, SLOTS};
use crate::{
    balloon::{Balloon, BalloonDevice},
    block::BlockDevice,
    disk::Disk,
    mem::{MemDevice, Room},
    net::{HEADER_BYTES, NetDevice, header, memory::MemoryWire},
    rng::RngDevice,
    room::HostMemory,
    testing::ring_over,
    virtio::{DeviceKind, VirtioDevice},
};

/// A device under test.
pub(super) trait Subject {
    /// What it is.
    const KIND: DeviceKind;
    /// The queue that requests go to.
    const QUEUE: u16;
    /// How many queues a driver starts.
    const QUEUES: u16;
    /// Whether answers come in the order of the requests.
    const IN_ORDER: bool = true;

    fn new() -> Self;
    /// A device over what this subject holds; several share it one after the other, as hosts do in a move.
    fn device(&self) -> Box<dyn VirtioDevice>;
    /// Prepares memory and whatever lies behind the device for a request.
    fn request(&self, driver: &Driver, number: u64) -> Vec<Buffer>;
    fn verify(&self, driver: &Driver, number: u64, written: u32);
}

fn place(number: u64) -> u64 {
    DATA + number % u64::from(SLOTS) * 0x1_0000
}

fn pattern(number: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (number.wrapping_mul(31) + at / 7) as u8).collect()
}

fn buffer(address: u64, bytes: usize, writable: bool) -> Buffer {
    Buffer { address, bytes: bytes as u32, writable }
}

fn memory(driver: &Driver, address: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    driver.ram.read_slice(&mut content, GuestAddress(address)).unwrap();
    content
}

/// Even numbers write a block, odd ones read it back, in pieces that cross segment borders.
pub(super) struct BlockSubject {
    file: File,
    disk: Arc<Disk>,
}

impl BlockSubject {
    /// So many times as large.
    pub(super) fn grow(&self, times: u64) {
        self.disk.grow(times * self.disk.size_bytes()).unwrap();
    }
}

const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = 64;

impl Subject for BlockSubject {
    const KIND: DeviceKind = DeviceKind::Block;
    const QUEUE: u16 = 0;
    const QUEUES: u16 = 1;

    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        Disk::create_qcow2("test", &file, BLOCKS * BLOCK_BYTES as u64, None).unwrap();
        let disk = Arc::new(Disk::open("test", file.try_clone().unwrap(), Vec::new(), false).unwrap());
        Self { file, disk }
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        Box::new(BlockDevice::new(Arc::clone(&self.disk)))
    }

    fn request(&self, driver: &Driver, number: u64) -> Vec<Buffer> {
        let at = place(number);
        let writes = number.is_multiple_of(2);
        let sector = number / 2 % BLOCKS * 8;
        driver
            .ram
            .write_slice(&[&[u8::from(writes), 0, 0, 0, 0, 0, 0, 0], sector.to_le_bytes().as_slice()].concat(), GuestAddress(at))
            .unwrap();
        let data = if writes { pattern(number, BLOCK_BYTES) } else { vec![0xee; BLOCK_BYTES] };
        driver.ram.write_slice(&data, GuestAddress(at + 0x1000)).unwrap();
        driver.ram.write_obj(0xff_u8, GuestAddress(at + 0x2000)).unwrap();
        vec![
            buffer(at, 16, false),
            buffer(at + 0x1000, 1000, !writes),
            buffer(at + 0x1000 + 1000, 3096, !writes),
            buffer(at + 0x2000, 1, true),
        ]
    }

    fn verify(&self, driver: &Driver, number: u64, written: u32) {
        assert_eq!(memory(driver, place(number) + 0x2000, 1), [0], "status of request {number}");
        let block = number / 2 % BLOCKS;
        if number.is_multiple_of(2) {
            assert_eq!(written, 1);
            let mut found = vec![0; BLOCK_BYTES];
            self.disk.read_at(block * BLOCK_BYTES as u64, &mut found).unwrap();
            assert!(found == pattern(number, BLOCK_BYTES), "disk after request {number}");
            assert!(self.file.metadata().unwrap().len() > 0);
        } else {
            assert_eq!(written as usize, BLOCK_BYTES + 1);
            let found = memory(driver, place(number) + 0x1000, BLOCK_BYTES);
            // Request 0 may not have been made: a test may begin with number 1.
            let never_written = number == 1 && found == vec![0; BLOCK_BYTES];
            assert!(never_written || found == pattern(number - 1, BLOCK_BYTES), "data of request {number}");
        }
    }
}

/// The same on a ring to its file, with two queues.
pub(super) struct RingBlockSubject(BlockSubject);

impl Subject for RingBlockSubject {
    const KIND: DeviceKind = DeviceKind::Block;
    const QUEUE: u16 = 1;
    const QUEUES: u16 = 2;
    const IN_ORDER: bool = false;

    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        Disk::create_qcow2("test", &file, BLOCKS * BLOCK_BYTES as u64, None).unwrap();
        let disk = Disk::open("test", file.try_clone().unwrap(), Vec::new(), false).unwrap();
        // Half of it is allocated: both roads are gone.
        disk.write_at(0, &vec![0; BLOCKS as usize / 2 * BLOCK_BYTES]).unwrap();
        let disk = Arc::new(disk.with_queues(2, vec![ring_over(&[&file]), ring_over(&[&file])]));
        Self(BlockSubject { file, disk })
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        Box::new(BlockDevice::new(Arc::clone(&self.0.disk)))
    }

    fn request(&self, driver: &Driver, number: u64) -> Vec<Buffer> {
        self.0.request(driver, number)
    }

    fn verify(&self, driver: &Driver, number: u64, written: u32) {
        self.0.verify(driver, number, written);
    }
}

/// A source that is easy to tell from zeros.
pub(super) struct RngSubject;

impl Subject for RngSubject {
    const KIND: DeviceKind = DeviceKind::Rng;
    const QUEUE: u16 = 0;
    const QUEUES: u16 = 1;

    fn new() -> Self {
        Self
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        Box::new(RngDevice::new(io::repeat(0x5a)))
    }

    fn request(&self, driver: &Driver, number: u64) -> Vec<Buffer> {
        driver.ram.write_slice(&[0; 256], GuestAddress(place(number))).unwrap();
        let bytes = 33 + number as usize % 64;
        vec![buffer(place(number), bytes, true), buffer(place(number) + 128, 7, true)]
    }

    fn verify(&self, driver: &Driver, number: u64, written: u32) {
        let bytes = 33 + number as usize % 64;
        assert_eq!(written as usize, bytes + 7);
        let found = memory(driver, place(number), 256);
        assert!(found.iter().enumerate().all(|(at, byte)| (*byte == 0x5a) == (at < bytes || (128..135).contains(&at))));
    }
}

fn net_device(wire: &MemoryWire) -> Box<dyn VirtioDevice> {
    Box::new(NetDevice::new([0x52, 0x54, 0, 0, 0, 1], 1400, wire.port()))
}

const FRAME_BYTES: usize = 1414;

/// Frames from the guest to the wire.
pub(super) struct NetTxSubject {
    wire: MemoryWire,
}

impl Subject for NetTxSubject {
    const KIND: DeviceKind = DeviceKind::Net;
    const QUEUE: u16 = 1;
    const QUEUES: u16 = 2;

    fn new() -> Self {
        Self { wire: MemoryWire::new() }
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        net_device(&self.wire)
    }

    fn request(&self, driver: &Driver, number: u64) -> Vec<Buffer> {
        let at = place(number);
        let offload = Offload { checksum: Checksum::Partial { start: 34, offset: number as u16 % 100 }, segmentation: None };
        driver.ram.write_slice(&header::to_bytes(&offload, 0), GuestAddress(at)).unwrap();
        driver.ram.write_slice(&pattern(number, FRAME_BYTES), GuestAddress(at + 0x1000)).unwrap();
        vec![buffer(at, HEADER_BYTES, false), buffer(at + 0x1000, 54, false), buffer(at + 0x1000 + 54, FRAME_BYTES - 54, false)]
    }

    fn verify(&self, _driver: &Driver, number: u64, written: u32) {
        assert_eq!(written, 0);
        let mut wire = self.wire.lock();
        let (offload, frame) = wire.sent.remove(0);
        assert_eq!(offload.checksum, Checksum::Partial { start: 34, offset: number as u16 % 100 });
        assert!(frame == pattern(number, FRAME_BYTES), "frame {number}");
    }
}

/// Frames from the wire to the guest.
pub(super) struct NetRxSubject {
    wire: MemoryWire,
}

impl Subject for NetRxSubject {
    const KIND: DeviceKind = DeviceKind::Net;
    const QUEUE: u16 = 0;
    const QUEUES: u16 = 2;

    fn new() -> Self {
        Self { wire: MemoryWire::new() }
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        net_device(&self.wire)
    }

    fn request(&self, driver: &Driver, number: u64) -> Vec<Buffer> {
        driver.ram.write_slice(&[0xee; 2048], GuestAddress(place(number))).unwrap();
        self.wire.put(Offload { checksum: Checksum::Valid, segmentation: None }, pattern(number, FRAME_BYTES));
        vec![buffer(place(number), 700, true), buffer(place(number) + 700, 1348, true)]
    }

    fn verify(&self, driver: &Driver, number: u64, written: u32) {
        assert_eq!(written as usize, HEADER_BYTES + FRAME_BYTES);
        let found = memory(driver, place(number), 2048);
        assert_eq!(found[..HEADER_BYTES], header::to_bytes(&Offload { checksum: Checksum::Valid, segmentation: None }, 1));
        assert!(found[HEADER_BYTES..][..FRAME_BYTES] == pattern(number, FRAME_BYTES), "frame {number}");
        assert!(found[HEADER_BYTES + FRAME_BYTES..].iter().all(|byte| *byte == 0xee));
    }
}

/// A host that does whatever is asked.
#[derive(Debug)]
struct Willing;

impl HostMemory for Willing {
    fn open(&self, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn close(&self, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }
}

/// Even numbers take a block in, odd ones ask for the state of the same. Each device has its own room, as a VM's has at each host.
pub(super) struct MemSubject {
    rooms: Mutex<Vec<Arc<Room>>>,
}

const ROOM: Range<u64> = 8 << 30..24 << 30;

impl MemSubject {
    /// A device of which nothing is asked.
    pub(super) fn idle(&self) -> Box<dyn VirtioDevice> {
        Box::new(MemDevice::new(Arc::new(Room::new(ROOM, Arc::new(Willing)))))
    }
}

impl Subject for MemSubject {
    const KIND: DeviceKind = DeviceKind::Mem;
    const QUEUE: u16 = 0;
    const QUEUES: u16 = 1;

    fn new() -> Self {
        Self { rooms: Mutex::default() }
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        let room = Arc::new(Room::new(ROOM, Arc::new(Willing)));
        room.ask(ROOM.end - ROOM.start);
        self.rooms.lock().unwrap().push(room.clone());
        Box::new(MemDevice::new(room))
    }

    fn request(&self, driver: &Driver, number: u64) -> Vec<Buffer> {
        let at = place(number);
        let kind = if number.is_multiple_of(2) { 0 } else { 3_u64 };
        let address = ROOM.start + number / 2 * rebec_layout::ROOM_BLOCK_BYTES;
        driver.ram.write_slice(&[kind, address, 1].map(u64::to_le_bytes).concat(), GuestAddress(at)).unwrap();
        driver.ram.write_slice(&[0xee; 16], GuestAddress(at + 0x1000)).unwrap();
        vec![buffer(at, 7, false), buffer(at + 7, 17, false), buffer(at + 0x1000, 9, true), buffer(at + 0x1009, 1, true)]
    }

    fn verify(&self, driver: &Driver, number: u64, written: u32) {
        assert_eq!(written, 10);
        let answer = memory(driver, place(number) + 0x1000, 11);
        let address = ROOM.start + number / 2 * rebec_layout::ROOM_BLOCK_BYTES;
        let is_had = self.rooms.lock().unwrap().iter().any(|room| room.blocks().have(address, 1));
        // A block that was taken in before a reset is taken in still, and taking it in again is an error.
        let expected: &[[u8; 2]] = if number.is_multiple_of(2) { &[[0, 0], [3, 0]] } else { &[[0, u8::from(!is_had)]] };
        assert!(expected.contains(&[answer[0], answer[8]]) && answer[10] == 0xee, "answer {answer:?} to {number}");
        assert!(is_had || !number.is_multiple_of(2), "block of request {number}");
    }
}

/// Pages lent by number.
pub(super) struct BalloonSubject;

impl Subject for BalloonSubject {
    const KIND: DeviceKind = DeviceKind::Balloon;
    const QUEUE: u16 = 0;
    const QUEUES: u16 = 2;

    fn new() -> Self {
        Self
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        Box::new(BalloonDevice::new(Arc::new(Balloon::new(Arc::new(Willing)))))
    }

    fn request(&self, driver: &Driver, number: u64) -> Vec<Buffer> {
        driver.ram.write_slice(&pattern(number, 64), GuestAddress(place(number))).unwrap();
        vec![buffer(place(number), 33, false), buffer(place(number) + 40, 7, false)]
    }

    fn verify(&self, _driver: &Driver, _number: u64, written: u32) {
        assert_eq!(written, 0);
    }
}

/// Pages reported as free.
pub(super) struct ReportSubject;

impl Subject for ReportSubject {
    const KIND: DeviceKind = DeviceKind::Balloon;
    const QUEUE: u16 = 4;
    const QUEUES: u16 = 5;

    fn new() -> Self {
        Self
    }

    fn device(&self) -> Box<dyn VirtioDevice> {
        BalloonSubject.device()
    }

    fn request(&self, _driver: &Driver, number: u64) -> Vec<Buffer> {
        vec![buffer(place(number), 0x8000, true), buffer(place(number) + 0x8001, 9, true)]
    }

    fn verify(&self, _driver: &Driver, _number: u64, written: u32) {
        assert_eq!(written, 0);
    }
}
