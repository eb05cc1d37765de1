//! virtio-mmio devices and their split virtqueues, polled (virtio 1.3 §2.7, §4.2).
//!
//! Descriptors are laid out once by their owner: buffer n always has the same descriptors, so there is no free list. The device is told not to
//! interrupt; it is kicked unless it says that it polls.

use core::sync::atomic::{Ordering, fence};

use crate::{cpu, memory::Memory};

const SLOTS: u64 = 16;
const SLOT_FIRST: u64 = 0xd000_0000;
const SLOT_BYTES: u64 = 0x1000;

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SELECT: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SELECT: u64 = 0x024;
const QUEUE_SELECT: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;
const QUEUE_DESCRIPTORS: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG: u64 = 0x100;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// VIRTIO_F_VERSION_1, without which a modern device is not driven.
pub const VERSION_1: u64 = 1 << 32;

/// Kinds of device that the guest drives (virtio 1.3 §5).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceKind {
    /// Network card.
    Net = 1,
    /// Disk.
    Block = 2,
    /// Entropy source.
    Entropy = 4,
}

/// One device's registers.
#[derive(Clone, Copy)]
pub struct Device {
    base: u64,
}

impl Device {
    /// The devices of a kind, in the order of their slots.
    pub fn all(kind: DeviceKind) -> impl Iterator<Item = Self> {
        Self::present().filter(move |device| device.read(DEVICE_ID) == kind as u32)
    }

    /// Whatever device is there.
    pub fn present() -> impl Iterator<Item = Self> {
        (0..SLOTS)
            .map(|slot| Self { base: SLOT_FIRST + slot * SLOT_BYTES })
            .filter(|device| device.read(MAGIC) == u32::from_le_bytes(*b"virt") && device.read(VERSION) == 2)
    }

    /// Resets the device and agrees on features: those of `wanted` that it has. `Err` says what it refused.
    pub fn begin(&self, wanted: u64) -> Result<u64, &'static str> {
        self.write(STATUS, 0);
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            self.write(DEVICE_FEATURES_SELECT, half);
            offered |= u64::from(self.read(DEVICE_FEATURES)) << (32 * half);
        }
        let agreed = offered & (wanted | VERSION_1);
        for half in 0..2 {
            self.write(DRIVER_FEATURES_SELECT, half);
            self.write(DRIVER_FEATURES, (agreed >> (32 * half)) as u32);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if agreed & VERSION_1 == 0 || self.read(STATUS) & FEATURES_OK == 0 {
            return Err("a virtio device refuses the features");
        }
        Ok(agreed)
    }

    /// Makes a queue of at most `size` descriptors.
    pub fn queue(&self, index: u32, size: u16, memory: &mut Memory) -> Result<Queue, &'static str> {
        self.write(QUEUE_SELECT, index);
        let size = self.read(QUEUE_SIZE_MAX).min(u32::from(size)) as u16;
        if size < 16 {
            return Err("a virtio device has too small a queue");
        }
        let (count, align) = (u64::from(size), 4096);
        let (driver, device) = (count * 16, (count * 16 + 6 + count * 2).next_multiple_of(align));
        let base = memory.take(device + 6 + count * 8).ok_or("no memory for a virtqueue")?.as_mut_ptr();
        let queue = Queue {
            descriptors: base.cast(),
            driver: base.wrapping_add(driver as usize),
            device: base.wrapping_add(device as usize),
            size,
            index,
            notify: self.base + QUEUE_NOTIFY,
            offered: 0,
            kicked: 0,
            seen: 0,
        };
        // SAFETY: the flags of the driver's ring, in memory taken above. 1 is VIRTQ_AVAIL_F_NO_INTERRUPT: the guest polls.
        unsafe { queue.driver.cast::<u16>().write_volatile(1) };
        self.write(QUEUE_SIZE, u32::from(size));
        for (register, address) in [(QUEUE_DESCRIPTORS, base), (QUEUE_DRIVER, queue.driver), (QUEUE_DEVICE, queue.device)] {
            self.write(register, address as u64 as u32);
            self.write(register + 4, (address as u64 >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
        Ok(queue)
    }

    /// Starts the device.
    pub fn go(&self) {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// One byte of its configuration.
    pub fn config8(&self, offset: u64) -> u8 {
        cpu::register_read8(self.base + CONFIG + offset)
    }

    /// Four bytes of its configuration.
    pub fn config32(&self, offset: u64) -> u32 {
        self.read(CONFIG + offset)
    }

    /// Reads a register.
    pub fn read(&self, register: u64) -> u32 {
        cpu::register_read(self.base + register)
    }

    /// Writes a register.
    pub fn write(&self, register: u64, value: u32) {
        cpu::register_write(self.base + register, value);
    }
}

#[repr(C)]
struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

/// A piece of memory in a chain.
#[derive(Clone, Copy)]
pub struct Piece {
    /// Physical address.
    pub address: u64,
    /// Length.
    pub bytes: u32,
    /// Whether the device writes it.
    pub device_writes: bool,
}

/// One split virtqueue.
pub struct Queue {
    descriptors: *mut Descriptor,
    driver: *mut u8,
    device: *mut u8,
    size: u16,
    index: u32,
    notify: u64,
    offered: u16,
    kicked: u16,
    seen: u16,
}

impl Queue {
    /// Descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Offers the chain whose descriptors are `head` and those after it.
    pub fn offer(&mut self, head: u16, pieces: &[Piece]) {
        for (number, piece) in (head..).zip(pieces) {
            let last = usize::from(number - head) + 1 == pieces.len();
            let flags = u16::from(!last) | u16::from(piece.device_writes) << 1;
            let descriptor = Descriptor { address: piece.address, bytes: piece.bytes, flags, next: if last { 0 } else { number + 1 } };
            // SAFETY: owners number descriptors below `size`, and the device does not read a chain that was not offered.
            unsafe { self.descriptors.add(usize::from(number % self.size)).write_volatile(descriptor) };
        }
        let slot = usize::from(self.offered % self.size);
        // SAFETY: an entry of the driver's ring, which has `size` of them after flags and index.
        unsafe { self.driver.cast::<u16>().add(2 + slot).write_volatile(head) };
        self.offered = self.offered.wrapping_add(1);
        fence(Ordering::Release);
        // SAFETY: the index of the driver's ring.
        unsafe { self.driver.cast::<u16>().add(1).write_volatile(self.offered) };
    }

    /// Tells the device of what was offered, unless it polls.
    pub fn kick(&mut self) {
        if self.offered == self.kicked {
            return;
        }
        self.kicked = self.offered;
        // The index must be out before the device's wish is read, or both sides wait for each other.
        fence(Ordering::SeqCst);
        // SAFETY: the flags of the device's ring.
        if unsafe { self.device.cast::<u16>().read_volatile() } & 1 == 0 {
            cpu::register_write(self.notify, self.index);
        }
    }

    /// The next chain that the device is done with, and how many bytes it wrote.
    pub fn done(&mut self) -> Option<(u16, u32)> {
        // SAFETY: the index of the device's ring.
        if unsafe { self.device.cast::<u16>().add(1).read_volatile() } == self.seen {
            return None;
        }
        fence(Ordering::Acquire);
        let slot = usize::from(self.seen % self.size);
        // SAFETY: an entry of the device's ring: two words each, after flags and index.
        let (head, bytes) = unsafe {
            let entry = self.device.add(4).cast::<u32>().add(slot * 2);
            (entry.read_volatile(), entry.add(1).read_volatile())
        };
        self.seen = self.seen.wrapping_add(1);
        Some((head as u16, bytes))
    }
}
