//! virtio-pci devices and their split virtqueues, polled (virtio 1.3 §2.7, §4.1). The VMM leaves them as firmware would: each BAR has an
//! address and is decoded. Where in it the structures lie is known here; a stock kernel reads it from the capabilities.
//!
//! Descriptors are laid out once by their owner: buffer n always has the same descriptors, so there is no free list. The device is told not to
//! interrupt; it is kicked unless it says that it polls.

use core::sync::atomic::{Ordering, fence};

use crate::{cpu, memory::Memory};

/// Configuration spaces of bus 0; devices 1 to 16 are the machine's slots.
const ECAM: u64 = 0xe000_0000;
const ECAM_STRIDE: u64 = 0x8000;
const SLOTS: u64 = 16;
/// Device and vendor id of a modern device without its type.
const ID: u32 = 0x1040_1af4;
/// BAR 0.
pub const BAR: u64 = 0x10;

/// Where QEMU's q35 has them, and the BAR in which its virtio devices have the same structures at the same places.
const Q35_ECAM: u64 = 0xb000_0000;
const Q35_BAR: u64 = 0x20;
/// The command register: memory is decoded, and the device may reach memory. Firmware of a PC leaves the latter off.
const COMMAND: u64 = 0x04;
const COMMAND_ON: u32 = 0x6;

/// A field of the common structure: where it is in the BAR, and its bytes.
pub type Field = (u64, u8);

const DEVICE_FEATURES_SELECT: Field = (0x00, 4);
const DEVICE_FEATURES: Field = (0x04, 4);
const DRIVER_FEATURES_SELECT: Field = (0x08, 4);
const DRIVER_FEATURES: Field = (0x0c, 4);
const STATUS: Field = (0x14, 1);
pub const QUEUE_SELECT: Field = (0x16, 2);
pub const QUEUE_SIZE: Field = (0x18, 2);
pub const QUEUE_ENABLE: Field = (0x1c, 2);
/// Descriptors, driver's ring, device's ring: two halves each.
pub const QUEUE_ADDRESSES: [u64; 3] = [0x20, 0x28, 0x30];
/// The device's own configuration.
const CONFIG: u64 = 0x2000;
/// Kicks, four bytes for each queue.
const NOTIFY: u64 = 0x3000;
const NOTIFY_STRIDE: u64 = 4;
/// What the BAR has.
pub const BAR_BYTES: u64 = 0x8000;

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
    /// Memory that comes and goes.
    Mem = 24,
}

/// One device's registers.
#[derive(Clone, Copy)]
pub struct Device {
    /// Its configuration space.
    pub space: u64,
    base: u64,
}

impl Device {
    /// The devices of a kind, in the order of their slots.
    pub fn all(kind: DeviceKind) -> impl Iterator<Item = Self> {
        Self::present().filter(move |device| cpu::register_read(device.space) == ID + ((kind as u32) << 16))
    }

    /// Whatever device is there.
    pub fn present() -> impl Iterator<Item = Self> {
        Self::present_at(ECAM, BAR)
    }

    /// The disks of QEMU's q35, in the order of their slots.
    pub fn disks_of_q35() -> impl Iterator<Item = Self> {
        let disks = Self::present_at(Q35_ECAM, Q35_BAR)
            .filter(|device| cpu::register_read(device.space) == ID + ((DeviceKind::Block as u32) << 16));
        disks.inspect(|device| cpu::register_write(device.space + COMMAND, COMMAND_ON))
    }

    fn present_at(ecam: u64, bar: u64) -> impl Iterator<Item = Self> {
        (1..=SLOTS)
            .map(move |number| ecam + number * ECAM_STRIDE)
            .filter(|space| cpu::register_read(*space) & 0xffc0_ffff == ID)
            .map(move |space| Self { space, base: u64::from(cpu::register_read(space + bar) & !0xf) })
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
    pub fn queue(&self, index: u16, size: u16, memory: &mut Memory) -> Result<Queue, &'static str> {
        self.write(QUEUE_SELECT, index.into());
        let size = self.read(QUEUE_SIZE).min(u32::from(size)) as u16;
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
            notify: self.notify(index),
            offered: 0,
            kicked: 0,
            seen: 0,
        };
        // SAFETY: the flags of the driver's ring, in memory taken above. 1 is VIRTQ_AVAIL_F_NO_INTERRUPT: the guest polls.
        unsafe { queue.driver.cast::<u16>().write_volatile(1) };
        self.write(QUEUE_SIZE, u32::from(size));
        for (at, address) in QUEUE_ADDRESSES.into_iter().zip([base, queue.driver, queue.device]) {
            self.write((at, 4), address as u64 as u32);
            self.write((at + 4, 4), (address as u64 >> 32) as u32);
        }
        self.write(QUEUE_ENABLE, 1);
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
        cpu::register_read(self.base + CONFIG + offset)
    }

    /// Where a queue is kicked.
    fn notify(&self, queue: u16) -> u64 {
        self.base + NOTIFY + NOTIFY_STRIDE * u64::from(queue)
    }

    /// Kicks a queue that may not be there.
    pub fn kick(&self, queue: u16) {
        cpu::register_write16(self.notify(queue), queue);
    }

    /// Reads a register.
    pub fn read(&self, (at, bytes): Field) -> u32 {
        match bytes {
            1 => cpu::register_read8(self.base + at).into(),
            2 => cpu::register_read16(self.base + at).into(),
            _ => cpu::register_read(self.base + at),
        }
    }

    /// Writes a register.
    pub fn write(&self, (at, bytes): Field, value: u32) {
        match bytes {
            1 => cpu::register_write8(self.base + at, value as u8),
            2 => cpu::register_write16(self.base + at, value as u16),
            _ => cpu::register_write(self.base + at, value),
        }
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
    index: u16,
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
            cpu::register_write16(self.notify, self.index);
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
