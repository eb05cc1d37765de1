//! A driver that writes anything: to registers, to its rings, to the buffers they name; and moves and pauses at any moment.
//!
//! ```text
//! input = device:u8 step*       0 raw disk, 1 qcow2 disk, 2 entropy source, 3 network card
//! step  = kind:u8 ...           as `step` reads them
//! RAM     512 KiB at 0, 64 KiB at 4 GiB
//! queue q from (q + 1) * 0x1_0000:  +0 descriptors  +0x4000 available ring  +0x5000 used ring       64 entries
//! ```
//!
//! Devices work on threads of their own. So that an input does the same each time, this driver waits after every step until all of them
//! sleep ([`Watched::settle`]), and touches memory only then.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rebec_devices::{
    GuestRam, PciTransport, Threads,
    block::BlockDevice,
    disk::Disk,
    net::{FramePort, HEADER_BYTES, NetDevice, ReceivedFrame, header},
    rng::RngDevice,
    virtio::{VirtioDevice, pci::PciHost},
};
use rebec_offload::{Accepts, FRAME_BYTES_MAX, FrameBytes, Offload};
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{MemfdFlags, memfd_create},
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::input::Input;

const RAM_BYTES: usize = 512 << 10;
const HIGH_RAM: (u64, usize) = (4 << 30, 64 << 10);
const DISK_BYTES: u64 = 1 << 20;
const SIZE: u16 = 64;
const QUEUES: u16 = 2;
/// Steps of one input: some rounds of the ring.
const STEPS_MAX: usize = 256;
/// How long a device may stay awake: a ring in whose index it writes itself keeps it busy, and it must still be stopped.
const SETTLE_MAX: Duration = Duration::from_millis(20);

/// Fields of the common structure: offset and bytes (virtio 1.3 §4.1.4.3).
type Field = (u64, usize);
const DEVICE_FEATURES_SELECT: Field = (0x00, 4);
const DEVICE_FEATURES: Field = (0x04, 4);
const DRIVER_FEATURES_SELECT: Field = (0x08, 4);
const DRIVER_FEATURES: Field = (0x0c, 4);
const STATUS: Field = (0x14, 1);
const QUEUE_SELECT: Field = (0x16, 2);
const QUEUE_SIZE: Field = (0x18, 2);
const QUEUE_ENABLE: Field = (0x1c, 2);
const QUEUE_ADDRESSES: [u64; 3] = [0x20, 0x28, 0x30];
const NOTIFY: u64 = 0x3000;
const NEEDS_RESET: u32 = 0x40;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut driver = Driver::new(input.u8());
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        driver.step(&mut input);
        driver.threads.settle();
    }
    driver.comes_back();
}

struct Driver {
    device: u8,
    transport: PciTransport,
    ram: GuestRam,
    threads: Arc<Watched>,
    wire: Option<Wire>,
    offered: [u16; QUEUES as usize],
}

impl Driver {
    fn new(device: u8) -> Self {
        let ranges = [(GuestAddress(0), RAM_BYTES), (GuestAddress(HIGH_RAM.0), HIGH_RAM.1)];
        let ram = GuestRam::from_ranges(&ranges).expect("memory for a guest");
        let threads = Arc::new(Watched::default());
        let (transport, wire) = transport(device, &ram, &threads);
        Self { device, transport, ram, threads, wire, offered: [0; QUEUES as usize] }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 14 {
            0 => {
                let (at, width, value) = (input.u8(), 1 << (input.u8() % 3), input.u32());
                self.transport.write(at.into(), &value.to_le_bytes()[..width]);
            }
            1 => {
                let (offset, width) = (input.u64(), usize::from(input.u8() % 9));
                self.transport.write(offset, &[0xa5; 8][..width]);
                self.transport.read(offset, &mut [0; 8][..width]);
                let value = input.u32();
                self.transport.write_config(offset % 0x200, &value.to_le_bytes()[..width.min(4)]);
                self.transport.read_config(offset % 0x200, &mut [0; 8][..width]);
            }
            2 => start(&self.transport),
            3 => {
                let (queue, index, address, bytes) = (input.u8(), input.u8(), input.u32(), input.u32());
                let (flags, next) = (input.u16(), input.u16());
                let place = base(queue) + 16 * u64::from(index % SIZE as u8);
                // The top byte says where: mostly low RAM, sometimes above 4 GiB or nowhere.
                let address = match address >> 24 {
                    0xff => u64::MAX - u64::from(address & 0xff_ffff),
                    0xfe => HIGH_RAM.0 + u64::from(address & 0xff_ffff),
                    _ => u64::from(address & 0xf_ffff),
                };
                let bytes = if bytes >> 24 == 0xff { bytes } else { bytes & 0xffff };
                let words = u64::from(bytes) | u64::from(flags) << 32 | u64::from(next) << 48;
                self.put(place, &[address.to_le_bytes(), words.to_le_bytes()].concat());
            }
            4 => self.offer(input.u8(), input.u16()),
            5 => self.kick(input.u8()),
            6 => {
                // A whole request in one step: chain of one to three buffers, made available and kicked.
                let (queue, head, shape) = (input.u8(), input.u8() % SIZE as u8, input.u8());
                self.request(queue, head, shape, input.u16());
            }
            7 => {
                let address = u64::from(input.u32() & 0xf_ffff);
                self.put(address, input.piece());
            }
            8 => self.transport.pause(),
            9 => self.transport.resume(),
            10 => self.moves(),
            11 => {
                let frame = input.piece();
                let header: [u8; HEADER_BYTES] = std::array::from_fn(|at| *frame.get(at).unwrap_or(&0));
                let zeros = usize::from(input.u16());
                self.arrives(&header, [frame, &vec![0; zeros]].concat());
            }
            12 => {
                let (queue, flags, event) = (input.u8(), input.u16(), input.u16());
                self.put(base(queue) + 0x4000, &flags.to_le_bytes());
                self.put(base(queue) + 0x4004 + 2 * u64::from(SIZE), &event.to_le_bytes());
            }
            _ => {
                // A place of the driver's own choice for a queue.
                let (queue, size) = (input.u8(), input.u16());
                let places = [input.u32(), input.u32(), input.u32()].map(u64::from);
                place(&self.transport, queue.into(), size.into(), places);
            }
        }
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        // What lies outside of RAM is not written.
        self.ram.write_slice(bytes, GuestAddress(address)).ok();
    }

    fn offer(&mut self, queue: u8, head: u16) {
        let offered = &mut self.offered[usize::from(queue % QUEUES as u8)];
        let slot = base(queue) + 0x4004 + 2 * u64::from(*offered % SIZE);
        *offered = offered.wrapping_add(1);
        let index = *offered;
        self.put(slot, &head.to_le_bytes());
        self.put(base(queue) + 0x4002, &index.to_le_bytes());
    }

    fn kick(&self, queue: u8) {
        self.transport.write(NOTIFY + 4 * u64::from(queue), &[queue, 0]);
    }

    /// Buffers at 0x4_0000 and on: a readable head, data of either kind, a writable end.
    fn request(&mut self, queue: u8, head: u8, shape: u8, bytes: u16) {
        let buffers = [(0x4_0000_u64, 16_u32, 0_u64), (0x4_1000, bytes.into(), u64::from(shape >> 2 & 1) * 2), (0x5_8000, 1, 2)];
        let skip = usize::from(shape & 3).min(2);
        for (at, (address, bytes, flags)) in buffers.iter().enumerate().skip(skip) {
            let index = (usize::from(head) + at - skip) % usize::from(SIZE);
            let next = (index as u64 + 1) % u64::from(SIZE);
            let words = u64::from(*bytes) | (flags | u64::from(at < 2)) << 32 | next << 48;
            self.put(base(queue) + 16 * index as u64, &[address.to_le_bytes(), words.to_le_bytes()].concat());
        }
        self.offer(queue, head.into());
        self.kick(queue);
    }

    /// The machine goes on in another process: a saved device is taken by a fresh one.
    fn moves(&mut self) {
        let part = self.transport.save(3);
        let (transport, wire) = transport(self.device, &self.ram, &self.threads);
        match transport.restore(&part) {
            Ok(()) => {
                assert_eq!(transport.save(3), part);
                (self.transport, self.wire) = (transport, wire);
            }
            // A driver may put its rings where they cannot be while they run; then the source keeps it.
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        self.transport.resume();
    }

    fn arrives(&self, bytes: &[u8; HEADER_BYTES], frame: Vec<u8>) {
        if let Some(wire) = &self.wire
            && let Ok(offload) = header::parse(bytes, frame.len())
        {
            wire.put(offload, frame);
        }
    }

    /// Whatever happened, a reset mends it: the device starts, is not broken, and stops.
    fn comes_back(&self) {
        self.transport.resume();
        set(&self.transport, STATUS, 0);
        assert_eq!(get(&self.transport, STATUS), 0);
        self.put(0x1_0000, &[0; 0x2_0000]);
        start(&self.transport);
        self.threads.settle();
        let status = get(&self.transport, STATUS);
        assert!(status == 15, "status {status:#x} after a reset and a good start");
        set(&self.transport, STATUS, 0);
        assert!(self.threads.lock().is_empty(), "threads are left after a reset");
        assert_eq!(get(&self.transport, STATUS) & NEEDS_RESET, 0);
    }
}

fn base(queue: u8) -> u64 {
    (u64::from(queue % QUEUES as u8) + 1) * 0x1_0000
}

fn get(transport: &PciTransport, (at, bytes): Field) -> u32 {
    let mut data = [0; 4];
    transport.read(at, &mut data[..bytes]);
    u32::from_le_bytes(data)
}

fn set(transport: &PciTransport, (at, bytes): Field, value: u32) {
    transport.write(at, &value.to_le_bytes()[..bytes]);
}

/// Negotiates all that is offered and starts both queues where they belong; in a device that runs it changes nothing.
pub fn start(transport: &PciTransport) {
    for status in [1, 3] {
        set(transport, STATUS, status);
    }
    for page in 0..2 {
        set(transport, DEVICE_FEATURES_SELECT, page);
        set(transport, DRIVER_FEATURES_SELECT, page);
        let offered = get(transport, DEVICE_FEATURES);
        set(transport, DRIVER_FEATURES, offered);
    }
    set(transport, STATUS, 11);
    for queue in 0..QUEUES {
        let base = base(queue as u8);
        place(transport, queue.into(), SIZE.into(), [base, base + 0x4000, base + 0x5000]);
    }
    set(transport, STATUS, 15);
}

fn place(transport: &PciTransport, queue: u32, size: u32, addresses: [u64; 3]) {
    set(transport, QUEUE_SELECT, queue);
    set(transport, QUEUE_SIZE, size);
    for (at, address) in QUEUE_ADDRESSES.into_iter().zip(addresses) {
        set(transport, (at, 4), address as u32);
        set(transport, (at + 4, 4), (address >> 32) as u32);
    }
    set(transport, QUEUE_ENABLE, 1);
}

/// The function of a device in a machine that takes no interrupts.
pub fn function(device: Box<dyn VirtioDevice>, ram: &GuestRam, threads: Arc<dyn Threads>) -> PciTransport {
    PciTransport::new(device, ram.clone(), Arc::new(NoInterrupts), 0xd000_0000, threads).expect("descriptors for a device")
}

#[derive(Debug)]
struct NoInterrupts;

impl PciHost for NoInterrupts {
    fn interrupt(&self, _address: u64, _data: u32) {}

    fn watch(&self, _address: u64, _kick: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn forget(&self, _address: u64, _kick: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

fn transport(device: u8, ram: &GuestRam, threads: &Arc<Watched>) -> (PciTransport, Option<Wire>) {
    let (device, wire): (Box<dyn VirtioDevice>, _) = match device % 4 {
        0 => (block_device(false), None),
        1 => (block_device(true), None),
        2 => (Box::new(RngDevice::new(io::repeat(0x5a))), None),
        _ => {
            let (device, wire) = net_device();
            (device, Some(wire))
        }
    };
    (function(device, ram, Arc::clone(threads) as Arc<dyn Threads>), wire)
}

/// A block device over a fresh disk of 1 MiB in memory.
pub fn block_device(qcow2: bool) -> Box<dyn VirtioDevice> {
    let file: std::fs::File = memfd_create("fuzz-disk", MemfdFlags::CLOEXEC).expect("memory for a file").into();
    if qcow2 {
        Disk::create_qcow2("fuzz", &file, DISK_BYTES, None).expect("an image is made");
    } else {
        file.set_len(DISK_BYTES).expect("a memory file grows");
    }
    let disk = Disk::open("fuzz", file, Vec::new(), false).expect("a sound image opens");
    Box::new(BlockDevice::new(Arc::new(disk)))
}

/// A network card and the test's end of its wire.
pub fn net_device() -> (Box<dyn VirtioDevice>, Wire) {
    let wire = Wire { incoming: Arc::default(), readable: Arc::new(eventfd(0, EventfdFlags::NONBLOCK).expect("a descriptor")) };
    let port = Box::new(Port { wire: wire.clone(), lent: Vec::new(), learnt: Vec::new() });
    (Box::new(NetDevice::new([0x52, 0x54, 0, 0, 0, 1], 1400, port)), wire)
}

type Sent = (Offload, Vec<u8>);

/// Frames on their way to the card.
#[derive(Debug, Clone)]
pub struct Wire {
    incoming: Arc<Mutex<VecDeque<Sent>>>,
    readable: Arc<OwnedFd>,
}

impl Wire {
    fn put(&self, offload: Offload, frame: Vec<u8>) {
        lock(&self.incoming).push_back((offload, frame));
        rustix::io::write(&self.readable, &1_u64.to_ne_bytes()).expect("a counter far from its end");
    }
}

struct Port {
    wire: Wire,
    lent: Vec<u8>,
    learnt: Vec<u8>,
}

impl FramePort for Port {
    fn set_accepts(&mut self, _accepts: Accepts) {}

    fn send(&mut self, _offload: &Offload, frame: &[u8]) -> io::Result<()> {
        assert!(frame.len() <= FRAME_BYTES_MAX, "the guest sent a frame of {} bytes", frame.len());
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Option<ReceivedFrame<'_>>> {
        let Some((offload, frame)) = lock(&self.wire.incoming).pop_front() else {
            // An empty counter says that it would block.
            rustix::io::read(&self.wire.readable, &mut [0; 8]).ok();
            return Ok(None);
        };
        self.lent = frame;
        Ok(Some(ReceivedFrame { offload, frame: FrameBytes::whole(&self.lent) }))
    }

    fn has_answer(&self) -> bool {
        false
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.wire.readable.as_fd()
    }

    fn announce(&mut self) {}

    fn tick(&mut self, _now: Instant) {}

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn saved(&self) -> Vec<u8> {
        self.learnt.clone()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        self.learnt = saved.to_vec();
        Ok(())
    }
}

/// Threads whose sleep can be seen.
#[derive(Default)]
struct Watched {
    /// Kernel's numbers of the threads that have not ended; `None` for one that is only about to begin.
    running: Arc<Mutex<Vec<Option<i32>>>>,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<i32>>> {
        lock(&self.running)
    }

    /// Waits until all threads sleep, or for [`SETTLE_MAX`]. A wake-up counts from the write that causes it on, so none is missed.
    fn settle(&self) {
        let start = Instant::now();
        loop {
            let threads = self.lock().clone();
            if threads.into_iter().all(|thread| thread.is_some_and(sleeps)) || start.elapsed() > SETTLE_MAX {
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// The letter behind the name in /proc/self/task/N/stat: S sleeps; a thread that is gone counts too.
fn sleeps(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('S'))
}

impl Threads for Watched {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        self.lock().push(None);
        let running = Arc::clone(&self.running);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let number = rustix::thread::gettid().as_raw_nonzero().get();
            // One device has one thread at a time, so the one that is about to begin is this one.
            if let Some(place) = lock(&running).iter_mut().find(|place| place.is_none()) {
                *place = Some(number);
            }
            body();
            lock(&running).retain(|thread| *thread != Some(number));
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For each device: a good request, one that is damaged, a move and a pause in between, chains that loop.
pub fn seeds() -> Vec<Vec<u8>> {
    let put = |address: u32, bytes: &[u8]| [&[7][..], &address.to_le_bytes(), &(bytes.len() as u16).to_le_bytes(), bytes].concat();
    let request = |queue: u8, head: u8, shape: u8, bytes: u16| [&[6, queue, head, shape][..], &bytes.to_le_bytes()].concat();
    let descriptor = |index: u8, address: u32, bytes: u32, flags: u16, next: u16| {
        [&[3, 0, index][..], &address.to_le_bytes(), &bytes.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    let block_header = |kind: u8, sector: u8| put(0x4_0000, &[kind, 0, 0, 0, 0, 0, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0]);
    let ranges = put(0x4_1000, &[8, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0]);
    let (start, pause, resume, moves) = (vec![2], vec![8], vec![9], vec![10]);
    let looping = [descriptor(0, 0x4_0000, 16, 1, 1), descriptor(1, 0x4_0000, 16, 1, 0), vec![4, 0, 0, 0], vec![5, 0]].concat();
    let indirect = [
        put(0x6_0000, &[0, 0, 4, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 33, 0, 0, 0, 2, 0, 0, 0]),
        descriptor(5, 0x6_0000, 32, 4, 0),
        vec![4, 0, 5, 0],
        vec![5, 0],
    ]
    .concat();
    let frame = [&[0; HEADER_BYTES][..], &[0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2, 8, 0]].concat();
    let arrives = |zeros: u16| [&[11][..], &(frame.len() as u16).to_le_bytes(), &frame, &zeros.to_le_bytes()].concat();
    let mut seeds = Vec::new();
    for device in 0..2 {
        for kind in [0, 1, 4, 8, 11, 13] {
            let shape = if kind == 0 || kind == 8 { 4 } else { 0 };
            let bytes = if kind > 8 { 16 } else { 1024 };
            let parts = [vec![device], start.clone(), block_header(kind, 1), ranges.clone(), request(0, 0, shape, bytes), moves.clone()];
            seeds.push([parts.concat(), block_header(kind, 255), request(0, 3, shape, bytes)].concat());
        }
        seeds.push([vec![device], start.clone(), looping.clone()].concat());
    }
    seeds.push([vec![2], start.clone(), request(0, 0, 2, 0), pause.clone(), request(0, 3, 2, 0), resume, indirect].concat());
    seeds.push([vec![2], start.clone(), looping].concat());
    let buffers: Vec<u8> = (0..3).flat_map(|slot| request(0, slot * 3, 5, 1500)).collect();
    seeds.push([vec![3], start.clone(), buffers.clone(), arrives(100), arrives(4000), moves, arrives(10)].concat());
    seeds.push([vec![3], start, put(0x4_0000, &frame), request(1, 0, 0, 1400), pause, buffers, arrives(60_000)].concat());
    // Registers by hand, and rings where none can be.
    seeds.push(vec![3, 0, 0x14, 0, 1, 0, 0, 0, 0, 0x14, 0, 3, 0, 0, 0, 13, 0, 64, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 2, 0, 0, 0, 2]);
    seeds
}
