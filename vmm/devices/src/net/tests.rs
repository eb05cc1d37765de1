//! The card by itself, its thread included: offloads, merged buffers, frames that wait, frames that are lost, the port's clock. A driver's
//! view of requests, pauses and moves is the conformance suite's.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use rebec_offload::{Checksum, FRAME_BYTES_MAX, Offload, SegmentKind, Segmentation};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{header::to_bytes, memory::MemoryWire, *};
use crate::{GuestRam, PlainThreads, virtio::Signals};

const SIZE: u16 = 64;
const BASES: [u64; 2] = [0x1_0000, 0x2_0000];
const DATA: u64 = 0x10_0000;
const TX: u16 = 1;

#[derive(Debug)]
struct NoSignals;

impl Signals for NoSignals {
    fn used(&self, _queue: u16) {}
    fn broken(&self) {
        panic!("the rings of these tests are sound");
    }
}

/// A card with its rings, started with some features.
struct Card {
    wire: MemoryWire,
    device: NetDevice,
    ram: GuestRam,
    kicks: [EventFd; 2],
    offered: [u16; 2],
    seen: [u16; 2],
}

impl Card {
    fn new(features: &[u32], arrived: bool) -> Self {
        Self::with_wire(MemoryWire::new(), features, arrived)
    }

    fn with_wire(wire: MemoryWire, features: &[u32], arrived: bool) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let device = NetDevice::new([0x52, 0x54, 0, 0, 0, 1], 1400, wire.port());
        let kicks = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        let mut card = Self { wire, device, ram, kicks, offered: [0; 2], seen: [0; 2] };
        let states = card.fresh_states();
        card.start(features, states, arrived);
        card
    }

    fn fresh_states(&self) -> Vec<(u16, QueueState)> {
        let state = |queue: u16| {
            let base = BASES[usize::from(queue)];
            let place = QueueState { desc_table: base, avail_ring: base + 0x4000, used_ring: base + 0x8000, ..QueueState::default() };
            QueueState { max_size: QUEUE_SIZES[usize::from(queue)], size: SIZE, ready: true, ..place }
        };
        vec![(0, state(0)), (1, state(1))]
    }

    fn start(&mut self, features: &[u32], states: Vec<(u16, QueueState)>, arrived: bool) {
        let setup =
            |(index, state): (u16, QueueState)| QueueSetup { index, state, kick: self.kicks[usize::from(index)].try_clone().unwrap() };
        let environment = QueueEnvironment {
            ram: self.ram.clone(),
            signals: Arc::new(NoSignals),
            threads: Arc::new(PlainThreads),
            blocks: None,
            features: features.iter().fold(0, |all, bit| all | 1 << bit),
            arrived,
        };
        self.device.start_queues(states.into_iter().map(setup).collect(), environment).unwrap();
    }

    /// Offers a chain of one buffer; buffers are at their chain's own 64 KiB.
    fn offer(&mut self, queue: u16, bytes: u32) -> u64 {
        let base = BASES[usize::from(queue)];
        let address = self.next_buffer(queue);
        let count = &mut self.offered[usize::from(queue)];
        let slot = u64::from(*count % SIZE);
        let writable = u16::from(queue == RX) * 2;
        let descriptor = [&address.to_le_bytes()[..], &bytes.to_le_bytes(), &writable.to_le_bytes(), &[0, 0]].concat();
        self.ram.write_slice(&descriptor, GuestAddress(base + 16 * slot)).unwrap();
        self.ram.write_obj((slot as u16).to_le(), GuestAddress(base + 0x4000 + 4 + 2 * slot)).unwrap();
        *count = count.wrapping_add(1);
        self.ram.store(count.to_le(), GuestAddress(base + 0x4002), Ordering::Release).unwrap();
        address
    }

    fn next_buffer(&self, queue: u16) -> u64 {
        let slot = self.offered[usize::from(queue)] % SIZE;
        DATA + (u64::from(queue) * u64::from(SIZE) + u64::from(slot)) * 0x1_1000
    }

    /// Offers a chain that begins with some content. It is there before the card can see the chain, which needs no kick for it.
    fn transmit(&mut self, content: &[u8], bytes: usize) {
        self.ram.write_slice(content, GuestAddress(self.next_buffer(TX))).unwrap();
        self.offer(TX, bytes as u32);
    }

    fn kick(&self, queue: u16) {
        self.kicks[usize::from(queue)].write(1).unwrap();
    }

    fn used_index(&self, queue: u16) -> u16 {
        self.ram.load(GuestAddress(BASES[usize::from(queue)] + 0x8002), Ordering::Acquire).map(u16::from_le).unwrap()
    }

    /// Waits for used chains: the bytes written into each.
    fn wait_used(&mut self, queue: u16, count: u16) -> Vec<u32> {
        let seen = self.seen[usize::from(queue)];
        wait("used chains", || self.used_index(queue).wrapping_sub(seen) >= count);
        self.seen[usize::from(queue)] = seen.wrapping_add(count);
        let written = |at: u16| {
            let slot = u64::from(seen.wrapping_add(at) % SIZE);
            self.ram.read_obj(GuestAddress(BASES[usize::from(queue)] + 0x8004 + 8 * slot + 4)).unwrap()
        };
        (0..count).map(written).collect()
    }

    fn memory(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        self.ram.read_slice(&mut content, GuestAddress(address)).unwrap();
        content
    }

    /// What was counted when all that was published is counted too.
    fn counted(&mut self, counters: [fn(&NetCounters) -> &std::sync::atomic::AtomicU64; 2]) -> [u64; 2] {
        self.device.stop_queues();
        counters.map(|counter| self.count(counter))
    }

    fn count(&self, counter: fn(&NetCounters) -> &std::sync::atomic::AtomicU64) -> u64 {
        counter(&self.device.counters).load(Ordering::Relaxed)
    }
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn frame(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 3) as u8).collect()
}

fn tso(segment_bytes: u16) -> Offload {
    let segmentation = Segmentation { kind: SegmentKind::Tcp4, ecn: false, header_bytes: 54, segment_bytes };
    Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, segmentation: Some(segmentation) }
}

#[test]
fn the_port_hears_what_the_driver_takes() {
    let all = Accepts { checksum: true, tcp4: true, tcp6: true, ecn: true };
    for (features, expected) in [
        (FEATURES.to_vec(), all),
        (vec![], Accepts::default()),
        (vec![VIRTIO_NET_F_GUEST_CSUM], Accepts { checksum: true, ..Accepts::default() }),
        (vec![VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_ECN], Accepts::default()),
        (vec![VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO6], Accepts { checksum: true, tcp6: true, ..Accepts::default() }),
    ] {
        let mut card = Card::new(&features, false);
        card.device.stop_queues();
        assert_eq!(card.wire.lock().accepts, Some(expected), "{features:?}");
        assert_eq!(card.wire.lock().announced, 0);
    }
}

#[test]
fn a_tso_frame_of_64_kib_passes_both_ways() {
    let mut card = Card::new(FEATURES, false);
    let large = frame(FRAME_BYTES_MAX);
    card.transmit(&[&to_bytes(&tso(1346), 0)[..], &large].concat(), HEADER_BYTES + large.len());
    card.kick(TX);
    card.wait_used(TX, 1);
    assert!(card.wire.lock().sent == [(tso(1346), large.clone())]);
    wait("a flush", || card.wire.lock().flushes >= 1);

    // Merged over buffers of 1536 bytes, all of them shown at once, the header in the first.
    let buffers: Vec<_> = (0..50).map(|_| card.offer(RX, 1536)).collect();
    card.kick(RX);
    card.wire.put(tso(1346), large.clone());
    let needed = (HEADER_BYTES + large.len()).div_ceil(1536) as u16;
    let written = card.wait_used(RX, needed);
    assert_eq!(card.used_index(RX), needed);
    assert_eq!(written.iter().sum::<u32>() as usize, HEADER_BYTES + large.len());
    let received: Vec<u8> = buffers.iter().zip(&written).flat_map(|(at, bytes)| card.memory(*at, *bytes as usize)).collect();
    assert_eq!(received[..HEADER_BYTES], to_bytes(&tso(1346), needed));
    assert!(received[HEADER_BYTES..] == large);
    assert_eq!(card.counted([|c| &c.tx_frames, |c| &c.rx_frames]), [1, 1]);
    assert_eq!([card.count(|c| &c.tx_bytes), card.count(|c| &c.rx_bytes)], [large.len() as u64; 2]);
    assert_eq!([card.count(|c| &c.tx_dropped), card.count(|c| &c.rx_dropped)], [0, 0]);
}

/// No descriptor becomes readable by an answer, and a guest that waits for it kicks nothing.
#[test]
fn an_answer_of_the_port_itself_arrives_without_being_waited_for() {
    let mut card = Card::new(FEATURES, false);
    card.wire.lock().echo = true;
    for round in 1..=20_u8 {
        // The first answers wait for buffers, the others for nothing.
        let ask = |card: &mut Card| {
            card.transmit(&[&to_bytes(&Offload::default(), 0)[..], &[round; 60]].concat(), HEADER_BYTES + 60);
            card.kick(TX);
            card.wait_used(TX, 1);
        };
        if round == 1 {
            ask(&mut card);
        }
        let buffer = card.offer(RX, 1536);
        card.kick(RX);
        if round > 1 {
            ask(&mut card);
        }
        let written = card.wait_used(RX, 1);
        assert_eq!(card.memory(buffer, written[0] as usize)[HEADER_BYTES..], [round; 60]);
    }
}

#[test]
fn the_buffers_of_a_frame_are_shown_at_once() {
    let mut card = Card::new(FEATURES, false);
    for _ in 0..500 {
        let seen = card.used_index(RX);
        for _ in 0..51 {
            card.offer(RX, 100);
        }
        card.kick(RX);
        card.wire.put(Offload::default(), frame(5000));
        wait("a frame", || {
            let shown = card.used_index(RX).wrapping_sub(seen);
            assert!(shown == 0 || shown == 51, "{shown} buffers of 51 are shown");
            shown == 51
        });
    }
}

#[test]
fn a_frame_waits_for_buffers_and_comes_whole() {
    let mut card = Card::new(FEATURES, false);
    card.offer(RX, 1000);
    card.kick(RX);
    card.wire.put(Offload::default(), frame(2500));
    card.wire.put(Offload::default(), frame(60));
    wait("the frame to wait", || card.count(|c| &c.rx_waits) == 1);
    assert_eq!(card.used_index(RX), 0, "half a frame was shown");
    // One more is still too few.
    card.offer(RX, 1000);
    card.kick(RX);
    card.offer(RX, 1000);
    card.kick(RX);
    assert_eq!(card.wait_used(RX, 3), [1000, 1000, 512]);
    card.offer(RX, 1000);
    card.kick(RX);
    assert_eq!(card.wait_used(RX, 1), [72]);
    assert_eq!(card.count(|c| &c.rx_dropped), 0);
}

#[test]
fn a_waiting_frame_survives_a_pause() {
    let mut card = Card::new(FEATURES, false);
    card.offer(RX, 1000);
    card.kick(RX);
    card.wire.put(Offload::default(), frame(1500));
    wait("the frame to wait", || card.count(|c| &c.rx_waits) == 1);
    let states = card.device.stop_queues();
    assert_eq!(states.iter().map(|(queue, state)| (*queue, state.next_avail, state.next_used)).collect::<Vec<_>>(), [(0, 0, 0), (1, 0, 0)]);
    card.offer(RX, 1000);
    card.start(FEATURES, states, false);
    assert_eq!(card.wait_used(RX, 2), [1000, 512]);
}

#[test]
fn what_no_buffer_can_take_is_dropped_and_counted() {
    // Without merging, a frame larger than a buffer; the buffer serves the next one.
    let mut card = Card::new(&[VIRTIO_NET_F_MAC], false);
    card.offer(RX, 1000);
    card.kick(RX);
    card.wire.put(Offload::default(), frame(1500));
    card.wire.put(Offload::default(), frame(100));
    assert_eq!(card.wait_used(RX, 1), [112]);
    assert_eq!(card.counted([|c| &c.rx_dropped, |c| &c.rx_frames]), [1, 1]);
    // With merging, a frame larger than the whole ring, and one larger than any frame.
    let mut card = Card::new(FEATURES, false);
    for _ in 0..SIZE {
        card.offer(RX, 100);
    }
    card.kick(RX);
    card.wire.put(Offload::default(), frame(usize::from(SIZE) * 100));
    card.wire.put(Offload::default(), frame(FRAME_BYTES_MAX + 1));
    card.wire.put(Offload::default(), frame(60));
    assert_eq!(card.wait_used(RX, 1), [72]);
    assert_eq!(card.counted([|c| &c.rx_dropped, |c| &c.rx_frames]), [2, 1]);
}

#[test]
fn a_guest_frame_that_makes_no_sense_is_dropped_and_counted() {
    let mut card = Card::new(FEATURES, false);
    let bad_checksum = Offload { checksum: Checksum::Partial { start: 1400, offset: 200 }, segmentation: None };
    for (header, bytes) in [
        (to_bytes(&Offload::default(), 0), HEADER_BYTES - 1),
        (to_bytes(&Offload::default(), 0), HEADER_BYTES + 13),
        (to_bytes(&Offload::default(), 0), HEADER_BYTES + FRAME_BYTES_MAX + 1),
        (to_bytes(&bad_checksum, 0), HEADER_BYTES + 1500),
        ([0, 3, 0, 0, 9, 9, 0, 0, 0, 0, 0, 0], HEADER_BYTES + 1500),
    ] {
        card.transmit(&header, bytes);
    }
    card.kick(TX);
    card.wait_used(TX, 5);
    wait("drops", || card.count(|c| &c.tx_dropped) == 5);
    assert!(card.wire.lock().sent.is_empty());
    // What the port refuses counts as well, and the card goes on.
    card.wire.lock().refuse = true;
    card.transmit(&[], 100);
    card.kick(TX);
    card.wait_used(TX, 1);
    assert_eq!(card.counted([|c| &c.tx_dropped, |c| &c.tx_frames]), [6, 0]);
}

#[test]
fn a_port_that_fails_is_asked_again_but_not_at_once() {
    let mut card = Card::new(FEATURES, false);
    card.wire.lock().refuse = true;
    card.offer(RX, 2000);
    card.kick(RX);
    card.wire.put(Offload::default(), frame(60));
    wait("errors", || card.count(|c| &c.rx_errors) >= 3);
    let (start, errors) = (Instant::now(), card.count(|c| &c.rx_errors));
    wait("more errors", || card.count(|c| &c.rx_errors) >= errors + 5);
    assert!(start.elapsed() >= Duration::from_millis(30), "the port is asked without a breath");
    card.wire.lock().refuse = false;
    assert_eq!(card.wait_used(RX, 1), [72]);
}

#[test]
fn an_arrival_is_announced_once_and_the_clock_ticks() {
    let wire = MemoryWire::new();
    wire.lock().tick_every = Some(Duration::from_millis(1));
    let mut card = Card::with_wire(wire, FEATURES, true);
    wait("ticks", || card.wire.lock().ticks >= 3);
    assert_eq!(card.wire.lock().announced, 1);
    let states = card.device.stop_queues();
    card.start(FEATURES, states, false);
    let ticks = card.wire.lock().ticks;
    wait("ticks", || card.wire.lock().ticks > ticks);
    assert_eq!(card.wire.lock().announced, 1);
}

#[test]
fn what_the_port_learnt_travels_and_what_it_refuses_is_refused() {
    let mut card = Card::new(FEATURES, false);
    card.wire.lock().learnt = vec![1, 2, 3];
    card.device.stop_queues();
    let saved = card.device.save();
    let wire = MemoryWire::new();
    let mut other = NetDevice::new([0x52, 0x54, 0, 0, 0, 1], 1400, wire.port());
    other.restore(&saved).unwrap();
    assert_eq!(wire.lock().learnt, [1, 2, 3]);
    card.wire.lock().learnt = vec![0xff];
    assert_eq!(other.restore(&card.device.save()), Err("no address begins so".to_owned()));
}
