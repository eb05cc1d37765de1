//! A driver as small as a driver can be: registers through the transport, rings and buffers in guest memory.
//!
//! ```text
//! queue q from (q + 1) * 0x1_0000:  +0 descriptors  +0x4000 available ring  +0x5000 used ring  +0x8000 indirect tables
//! data from 0x10_0000 on            RAM: 16 MiB at 0, 1 MiB at 4 GiB
//! ```

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use virtio_bindings::virtio_ring::VRING_DESC_F_INDIRECT;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    GuestRam, PlainThreads,
    room::Blocks,
    virtio::{
        PciTransport, VirtioDevice,
        pci::{
            registers::{self, Field},
            testing::{FakeHost, MSIX_CONTROL, TABLE},
        },
    },
};

/// Size of the rings that the driver makes.
pub(super) const SIZE: u16 = 64;
/// Requests in flight at most: each has a slot of the descriptor table of its own.
pub(super) const SLOTS: u16 = 16;
const SLOT_DESCRIPTORS: u16 = SIZE / SLOTS;
const DEADLINE: Duration = Duration::from_secs(20);
pub(super) const RAM_BYTES: u64 = 16 << 20;
pub(super) const DATA: u64 = 0x10_0000;

/// A buffer of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffer {
    pub(super) address: u64,
    pub(super) bytes: u32,
    pub(super) writable: bool,
}

pub(super) struct Driver {
    transport: PciTransport,
    host: Arc<FakeHost>,
    pub(super) ram: GuestRam,
    queues: [QueueEnd; 5],
}

#[derive(Debug, Default, Clone, Copy)]
struct QueueEnd {
    offered: u16,
    seen: u16,
    next_slot: u16,
}

pub(super) fn base(queue: u16) -> u64 {
    (u64::from(queue) + 1) * 0x1_0000
}

pub(super) fn avail(queue: u16) -> u64 {
    base(queue) + 0x4000
}

fn used(queue: u16) -> u64 {
    base(queue) + 0x5000
}

impl Driver {
    pub(super) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let ranges = [(GuestAddress(0), RAM_BYTES as usize), (GuestAddress(4 << 30), 1 << 20)];
        let ram = GuestRam::from_ranges(&ranges).unwrap();
        let host = Arc::new(FakeHost::default());
        let transport = transport(device, &ram, &host);
        Self { transport, host, ram, queues: Default::default() }
    }

    /// In a machine with room for more memory, of which its guest has these blocks.
    pub(super) fn within(device: Box<dyn VirtioDevice>, blocks: &Arc<Blocks>) -> Self {
        let driver = Self::new(device);
        Self { transport: driver.transport.within(blocks.clone()), ..driver }
    }

    /// The machine goes on elsewhere: the same memory, another device, no interrupts or kicks from before.
    pub(super) fn move_to(&mut self, device: Box<dyn VirtioDevice>) {
        self.host = Arc::default();
        self.transport = transport(device, &self.ram, &self.host);
    }

    pub(super) fn transport(&self) -> &PciTransport {
        &self.transport
    }

    pub(super) fn get(&self, (at, bytes): Field) -> u32 {
        let mut data = [0; 4];
        self.transport.read(at, &mut data[..bytes]);
        u32::from_le_bytes(data)
    }

    pub(super) fn set(&self, (at, bytes): Field, value: u32) {
        self.transport.write(at, &value.to_le_bytes()[..bytes]);
    }

    /// Switches MSI-X on: vector 0 for the configuration, vector q + 1 for queue q; each message carries its vector.
    fn set_vectors(&self, queues: u16) {
        self.set_msix_control(0x8000);
        for vector in 0..=queues {
            let entry = [0xfee0_0000, 0, u32::from(vector), 0].map(u32::to_le_bytes);
            for (at, word) in (TABLE + 16 * u64::from(vector)..).step_by(4).zip(entry) {
                self.transport.write(at, &word);
            }
        }
        self.set(registers::CONFIG_VECTOR, 0);
        for queue in 0..queues {
            self.set(registers::QUEUE_SELECT, queue.into());
            self.set(registers::QUEUE_VECTOR, u32::from(queue) + 1);
        }
    }

    pub(super) fn set_msix_control(&self, control: u16) {
        self.transport.write_config(MSIX_CONTROL, &control.to_le_bytes());
    }

    pub(super) fn offered(&self) -> u64 {
        let page = |page| {
            self.set(registers::DEVICE_FEATURES_SELECT, page);
            u64::from(self.get(registers::DEVICE_FEATURES))
        };
        assert_eq!(page(2), 0);
        page(0) | page(1) << 32
    }

    pub(super) fn set_features(&self, features: u64) {
        for page in 0..2 {
            self.set(registers::DRIVER_FEATURES_SELECT, page);
            self.set(registers::DRIVER_FEATURES, (features >> (32 * page)) as u32);
        }
    }

    /// Negotiates everything but `without` and starts the first `queues` queues, empty.
    pub(super) fn start(&mut self, without: u64, queues: u16) {
        self.set(registers::STATUS, 1);
        self.set(registers::STATUS, 3);
        self.set_features(self.offered() & !without);
        self.set(registers::STATUS, 11);
        assert_eq!(self.get(registers::STATUS), 11);
        for queue in 0..queues {
            self.ram.write_slice(&[0; 0x8000], GuestAddress(base(queue))).unwrap();
            self.queues[usize::from(queue)] = QueueEnd::default();
            self.place(queue, SIZE.into(), [base(queue), avail(queue), used(queue)]);
        }
        self.set_vectors(queues);
        self.set(registers::STATUS, 15);
    }

    /// Tells the device where a queue is, and makes it ready.
    pub(super) fn place(&self, queue: u16, size: u32, [desc, avail, used]: [u64; 3]) {
        self.set(registers::QUEUE_SELECT, queue.into());
        self.set(registers::QUEUE_SIZE, size);
        for ((at, bytes), address) in
            [registers::QUEUE_DESCRIPTORS, registers::QUEUE_DRIVER, registers::QUEUE_DEVICE].into_iter().zip([desc, avail, used])
        {
            self.set((at, bytes), address as u32);
            self.set((at + 4, bytes), (address >> 32) as u32);
        }
        self.set(registers::QUEUE_ENABLE, 1);
        assert_eq!(self.get(registers::QUEUE_ENABLE), 1);
    }

    pub(super) fn reset(&self) {
        self.set(registers::STATUS, 0);
    }

    pub(super) fn descriptor(&self, table: u64, index: u16, descriptor: Descriptor) {
        self.ram.write_obj(RawDescriptor::from(descriptor), GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    /// Makes a chain available, and returns its head.
    pub(super) fn offer(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        assert!(buffers.len() <= usize::from(SLOT_DESCRIPTORS));
        let end = &mut self.queues[usize::from(queue)];
        let head = end.next_slot * SLOT_DESCRIPTORS;
        end.next_slot = (end.next_slot + 1) % SLOTS;
        self.write_chain(base(queue), head, buffers);
        self.make_available(queue, head);
        head
    }

    fn write_chain(&self, table: u64, first: u16, buffers: &[Buffer]) {
        for (at, buffer) in (first..).zip(buffers) {
            let last = usize::from(at - first) + 1 == buffers.len();
            let flags = u16::from(!last) + 2 * u16::from(buffer.writable);
            self.descriptor(table, at, Descriptor::new(buffer.address, buffer.bytes, flags, at + 1));
        }
    }

    /// The same through an indirect table.
    pub(super) fn offer_indirect(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        let table = base(queue) + 0x8000;
        self.write_chain(table, 0, buffers);
        let descriptor = Descriptor::new(table, 16 * buffers.len() as u32, VRING_DESC_F_INDIRECT as u16, 0);
        self.descriptor(base(queue), 0, descriptor);
        self.make_available(queue, 0);
        0
    }

    /// Puts a head into the available ring, whatever the table holds there.
    pub(super) fn make_available(&mut self, queue: u16, head: u16) {
        let end = &mut self.queues[usize::from(queue)];
        let slot = u64::from(end.offered % SIZE);
        self.ram.write_obj(head.to_le(), GuestAddress(avail(queue) + 4 + 2 * slot)).unwrap();
        end.offered = end.offered.wrapping_add(1);
        self.ram.store(end.offered.to_le(), GuestAddress(avail(queue) + 2), Ordering::Release).unwrap();
    }

    pub(super) fn kick(&self, queue: u16) {
        self.transport.write(0x3000 + 4 * u64::from(queue), &queue.to_le_bytes());
    }

    pub(super) fn used_index(&self, queue: u16) -> u16 {
        self.ram.load(GuestAddress(used(queue) + 2), Ordering::Acquire).map(u16::from_le).unwrap()
    }

    /// Waits for `count` more used chains: (head, bytes written).
    pub(super) fn wait_used(&mut self, queue: u16, count: usize) -> Vec<(u32, u32)> {
        let seen = self.queues[usize::from(queue)].seen;
        let expected = seen.wrapping_add(count as u16);
        self.wait_until("used chains", |driver| driver.used_index(queue).wrapping_sub(seen) >= count as u16);
        assert_eq!(self.used_index(queue), expected, "more is used than was offered");
        self.queues[usize::from(queue)].seen = expected;
        let element = |at: usize| {
            let slot = u64::from(seen.wrapping_add(at as u16) % SIZE);
            let word = |offset| self.ram.read_obj::<u32>(GuestAddress(used(queue) + 4 + 8 * slot + offset)).unwrap();
            (word(0), word(4))
        };
        (0..count).map(element).collect()
    }

    pub(super) fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
            std::thread::yield_now();
        }
    }

    pub(super) fn set_avail_flags(&self, queue: u16, flags: u16) {
        self.ram.write_obj(flags.to_le(), GuestAddress(avail(queue))).unwrap();
    }

    pub(super) fn set_used_event(&self, queue: u16, event: u16) {
        self.ram.write_obj(event.to_le(), GuestAddress(avail(queue) + 4 + 2 * u64::from(SIZE))).unwrap();
    }

    /// Interrupts since the last call. The pause makes sure that none is on its way.
    pub(super) fn interrupts(&self) -> usize {
        self.transport.pause();
        let count = self.host.take_messages().len();
        self.transport.resume();
        count
    }

    /// Whether the device has said that its configuration changed, by either road.
    pub(super) fn config_changed(&self) -> bool {
        let mut isr = [0];
        self.transport.read(0x1000, &mut isr);
        isr[0] & 2 != 0 || self.host.take_messages().iter().any(|(_, vector)| *vector == 0)
    }
}

fn transport(device: Box<dyn VirtioDevice>, ram: &GuestRam, host: &Arc<FakeHost>) -> PciTransport {
    PciTransport::new(device, ram.clone(), host.clone(), 0xd000_0000, Arc::new(PlainThreads)).unwrap()
}
