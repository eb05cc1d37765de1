//! Which memory goes to the host, and which does not, whatever the driver says.

use std::{
    io,
    time::{Duration, Instant},
};

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::{GuestRam, PlainThreads, room::Blocks, virtio::Signals};

const PAGE: u64 = PAGE_BYTES;
const RAM_BYTES: u64 = 16 << 20;
const ROOM: Range<u64> = 4 << 30..(4 << 30) + (4 << 20);
const WRITE: u16 = 2;

#[derive(Debug, Default)]
struct Given(Mutex<Vec<Range<u64>>>);

impl HostMemory for Given {
    fn open(&self, _: Range<u64>) -> io::Result<()> {
        unreachable!("a balloon opens nothing")
    }

    fn close(&self, _: Range<u64>) -> io::Result<()> {
        unreachable!("a balloon closes nothing")
    }

    fn discard(&self, addresses: Range<u64>) -> io::Result<()> {
        self.0.lock().unwrap().push(addresses);
        Ok(())
    }
}

#[derive(Debug)]
struct NoSignals;

impl Signals for NoSignals {
    fn used(&self, _: u16) {}
    fn broken(&self) {}
}

struct Guest {
    ram: GuestRam,
    given: Arc<Given>,
    balloon: Arc<Balloon>,
    device: BalloonDevice,
    states: Vec<QueueState>,
    features: u64,
    blocks: Arc<Blocks>,
}

/// Of queue `q` the descriptors are at `base(q)`.
fn base(queue: u16) -> u64 {
    (u64::from(queue) + 1) * 0x1_0000
}

impl Guest {
    fn new(features: u64) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize), (GuestAddress(ROOM.start), 4 << 20)]).unwrap();
        let given = Arc::<Given>::default();
        let balloon = Arc::new(Balloon::new(given.clone()));
        let state = |queue| QueueState {
            max_size: QUEUE_SIZES[usize::from(queue)],
            size: 8,
            ready: true,
            desc_table: base(queue),
            avail_ring: base(queue) + 0x4000,
            used_ring: base(queue) + 0x8000,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: false,
        };
        let blocks = Arc::new(Blocks::new(ROOM));
        let (device, states) = (BalloonDevice::new(balloon.clone()), (0..5).map(state).collect());
        Self { ram, given, balloon, device, states, features, blocks }
    }

    /// One buffer for a queue, which is not running.
    fn offer(&self, queue: u16, address: u64, bytes: u32, writable: bool) {
        let base = base(queue);
        let offered: u16 = self.ram.read_obj(GuestAddress(base + 0x4002)).unwrap();
        let descriptor = Descriptor::new(address, bytes, if writable { WRITE } else { 0 }, 0);
        self.ram.write_obj(RawDescriptor::from(descriptor), GuestAddress(base + 16 * u64::from(offered))).unwrap();
        self.ram.write_obj(offered, GuestAddress(base + 0x4004 + 2 * u64::from(offered))).unwrap();
        self.ram.write_obj(offered + 1, GuestAddress(base + 0x4002)).unwrap();
    }

    fn used(&self, queue: u16) -> u16 {
        self.ram.read_obj(GuestAddress(base(queue) + 0x8002)).unwrap()
    }

    /// Runs the device until it has used so many buffers of a queue, or said something; then it is stopped.
    fn run(&mut self, until: impl Fn(&Self) -> bool) {
        let setup = |(index, state): (u16, &QueueState)| QueueSetup { index, state: *state, kick: EventFd::new(EFD_NONBLOCK).unwrap() };
        let (signals, threads) = (Arc::new(NoSignals), Arc::new(PlainThreads));
        let (ram, features, blocks) = (self.ram.clone(), self.features, Some(self.blocks.clone()));
        let environment = QueueEnvironment { ram, signals, threads, features, blocks, arrived: false };
        self.device.start_queues((0..).zip(&self.states).map(setup).collect(), environment).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !until(self) {
            assert!(Instant::now() < deadline, "the balloon does not answer");
            std::thread::yield_now();
        }
        for (index, state) in self.device.stop_queues() {
            self.states[usize::from(index)] = state;
        }
    }

    fn given(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.given.0.lock().unwrap())
    }
}

const ALL: u64 = STATISTICS | DEFLATE_ON_OOM | HINTS | REPORTS;

#[test]
fn pages_that_the_guest_lends_go_to_the_host_in_runs_and_lies_are_counted() {
    let mut guest = Guest::new(ALL);
    let pages: [u32; 10] = [0x300, 0x302, 0x301, 0x301, 0x900, 0x1000, 0xf_ffff, u32::MAX, 0x10_0000, 0x10_0200];
    guest.ram.write_slice(&pages.map(u32::to_le_bytes).concat(), GuestAddress(0x20_0000)).unwrap();
    guest.offer(0, 0x20_0000, 40, false);
    guest.blocks.set(1..2, true);
    guest.run(|guest| guest.used(0) == 1);
    let expected = [0x300 * PAGE..0x303 * PAGE, 0x900 * PAGE..0x901 * PAGE, 0x10_0200 * PAGE..0x10_0201 * PAGE];
    assert_eq!(guest.given(), expected);
    // Beyond RAM three times; in a block of the room that the guest does not have once.
    assert_eq!(guest.balloon.refused(), 4);
}

#[test]
fn reported_pages_go_to_the_host_by_either_place_of_their_queue() {
    for (features, queue) in [(ALL, 4), (ALL & !HINTS, 3)] {
        let mut guest = Guest::new(features);
        guest.offer(queue, 0x40_0001, 0x20_0000, true);
        guest.run(|guest| guest.used(queue) == 1);
        assert_eq!(guest.given().first(), Some(&(0x40_1000..0x60_0000)));
        assert_eq!(guest.balloon.reported_bytes(), 0x1f_f000);
    }
    let mut guest = Guest::new(ALL);
    guest.offer(3, 0x40_0000, 0x20_0000, true);
    guest.offer(1, 0x40_0000, 4, false);
    guest.run(|guest| guest.used(3) == 1 && guest.used(1) == 1);
    assert_eq!(guest.given(), [], "hints and deflated pages are only heard");
}

#[test]
fn statistics_are_kept_and_their_buffer_is_the_drivers_again_after_a_stop() {
    let mut guest = Guest::new(ALL);
    let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    guest.ram.write_slice(&[entry(5, 1 << 30), entry(6, 7 << 20)].concat(), GuestAddress(0x30_0000)).unwrap();
    guest.offer(2, 0x30_0000, 20, false);
    guest.run(|guest| guest.balloon.guest().is_some());
    let said = GuestMemory { total: Some(1 << 30), available: Some(7 << 20), ..GuestMemory::default() };
    assert_eq!((guest.balloon.guest(), guest.used(2), guest.states[2].next_avail), (Some(said), 0, 0));
}

#[test]
fn what_is_asked_and_lent_is_in_the_configuration_and_travels() {
    let guest = Guest::new(ALL);
    guest.balloon.ask(3 << 20);
    guest.balloon.write(4, &500_u32.to_le_bytes());
    // Neither place nor size of what a driver says.
    guest.balloon.write(0, &9_u32.to_le_bytes());
    guest.balloon.write(4, &[9]);
    guest.balloon.write(u64::MAX, &[9; 8]);
    assert_eq!((guest.balloon.asked_bytes(), guest.balloon.lent_bytes()), (3 << 20, 500 * PAGE));
    let config = [768_u32, 500, 0, 0].map(u32::to_le_bytes).concat();
    assert_eq!(guest.device.config(), config);
    let mut there = Guest::new(ALL);
    there.device.restore(&guest.device.save()).unwrap();
    assert_eq!(there.device.config(), config);
    guest.balloon.ask(u64::MAX);
    assert_eq!(guest.balloon.asked_bytes(), u64::from(u32::MAX) * PAGE);
}
