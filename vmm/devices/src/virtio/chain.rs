//! A descriptor chain (virtio 1.3 §2.7.5), walked once into a list of segments that all lie in RAM, and read and written through cursors.
//!
//! virtio-queue's own iterator ends silently where a chain is broken; here a loop, a bad index, a nested table or an address outside of RAM is
//! an error, because a device that guesses at half a request writes half a request to a disk.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use crate::GuestRam;

/// Most descriptors of one chain. §2.7.5.3.1 limits a chain to the queue's size; drivers with indirect tables take it less strictly.
pub const CHAIN_SEGMENTS_MAX: usize = 1024;
const DESCRIPTOR_BYTES: u64 = 16;

/// Why a chain or ring cannot be followed. The device stops: DEVICE_NEEDS_RESET.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenRing {
    /// The available index is further ahead than the ring is long, or the ring lies outside of RAM.
    #[error("the ring's indexes or addresses are out of range")]
    Ring,
    /// A head or next index is outside of the table.
    #[error("descriptor {0} is outside of its table")]
    Index(u16),
    /// More descriptors than any honest chain has: a loop.
    #[error("a chain does not end")]
    Loop,
    /// An indirect table of odd length, within another one, with a successor, or not negotiated.
    #[error("an indirect table is misused")]
    Indirect,
    /// A table or buffer lies outside of RAM.
    #[error("{bytes} bytes at {address:#x} are not RAM")]
    Address {
        /// Guest physical address.
        address: u64,
        /// Length.
        bytes: u32,
    },
    /// A device-readable descriptor follows a device-writable one (§2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    Order,
}

/// One buffer of a chain, in RAM, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    address: GuestAddress,
    bytes: u32,
}

/// Where the descriptors of a queue are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DescriptorTable {
    pub(crate) address: u64,
    pub(crate) entries: u16,
    pub(crate) indirect_allowed: bool,
}

/// A chain taken from a ring. Reused from request to request: filling it allocates only until it has grown to the longest chain seen.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable: usize,
}

impl Chain {
    /// The head's index, which goes into the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// How many segments it has.
    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// What the driver wrote for the device.
    pub fn reader<'a>(&'a self, ram: &'a GuestRam) -> Cursor<'a> {
        Cursor::new(ram, &self.segments[..self.readable])
    }

    /// What the device may write.
    pub fn writer<'a>(&'a self, ram: &'a GuestRam) -> Cursor<'a> {
        Cursor::new(ram, &self.segments[self.readable..])
    }

    /// Walks the chain that begins at `head`.
    pub(crate) fn load(&mut self, ram: &GuestRam, table: DescriptorTable, head: u16) -> Result<(), BrokenRing> {
        self.head = head;
        self.segments.clear();
        self.readable = 0;
        let mut table = table;
        let (mut index, mut walked, mut nested) = (head, 0, false);
        loop {
            if index >= table.entries {
                return Err(BrokenRing::Index(index));
            }
            walked += 1;
            if walked > CHAIN_SEGMENTS_MAX {
                return Err(BrokenRing::Loop);
            }
            let descriptor = read_descriptor(ram, table.address, index)?;
            let flags = u32::from(descriptor.flags());
            if flags & VRING_DESC_F_INDIRECT != 0 {
                if nested || !table.indirect_allowed || flags & VRING_DESC_F_NEXT != 0 {
                    return Err(BrokenRing::Indirect);
                }
                table = indirect_table(&descriptor)?;
                (index, nested) = (0, true);
                continue;
            }
            self.push(ram, &descriptor)?;
            if flags & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next();
        }
    }

    fn push(&mut self, ram: &GuestRam, descriptor: &Descriptor) -> Result<(), BrokenRing> {
        let (address, bytes) = (descriptor.addr(), descriptor.len());
        if bytes == 0 {
            return Ok(());
        }
        if !ram.check_range(address, bytes as usize) {
            return Err(BrokenRing::Address { address: address.raw_value(), bytes });
        }
        let writable = u32::from(descriptor.flags()) & VRING_DESC_F_WRITE != 0;
        if !writable {
            if self.readable < self.segments.len() {
                return Err(BrokenRing::Order);
            }
            self.readable += 1;
        }
        self.segments.push(Segment { address, bytes });
        Ok(())
    }
}

fn read_descriptor(ram: &GuestRam, table: u64, index: u16) -> Result<Descriptor, BrokenRing> {
    let address = table.checked_add(u64::from(index) * DESCRIPTOR_BYTES);
    let broken = BrokenRing::Address { address: table, bytes: DESCRIPTOR_BYTES as u32 };
    ram.read_obj(GuestAddress(address.ok_or(broken)?)).map_err(|_| broken)
}

fn indirect_table(descriptor: &Descriptor) -> Result<DescriptorTable, BrokenRing> {
    let bytes = u64::from(descriptor.len());
    let entries = u16::try_from(bytes / DESCRIPTOR_BYTES).map_err(|_| BrokenRing::Indirect)?;
    if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR_BYTES) {
        return Err(BrokenRing::Indirect);
    }
    Ok(DescriptorTable { address: descriptor.addr().raw_value(), entries, indirect_allowed: false })
}

/// Walks through the bytes of a chain's readable or writable part.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    ram: &'a GuestRam,
    segments: &'a [Segment],
    /// Bytes of the first segment already passed.
    passed: u32,
    left: u64,
}

impl<'a> Cursor<'a> {
    fn new(ram: &'a GuestRam, segments: &'a [Segment]) -> Self {
        Self { ram, segments, passed: 0, left: segments.iter().map(|s| u64::from(s.bytes)).sum() }
    }

    /// Bytes from here to the end.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Copies from the guest until `buffer` is full or the chain ends; says how much.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buffer.len() {
            let Some((address, count)) = self.step(buffer.len() - done) else { break };
            // Checked when the chain was walked, and RAM does not shrink.
            if self.ram.read_slice(&mut buffer[done..done + count], address).is_err() {
                break;
            }
            done += count;
        }
        done
    }

    /// Copies to the guest until `data` or the chain ends; says how much. Marks the pages dirty.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while done < data.len() {
            let Some((address, count)) = self.step(data.len() - done) else { break };
            if self.ram.write_slice(&data[done..done + count], address).is_err() {
                break;
            }
            done += count;
        }
        done
    }

    /// Passes over bytes; says how many there were.
    pub fn skip(&mut self, bytes: u64) -> u64 {
        let mut done = 0;
        while done < bytes {
            let Some((_, count)) = self.step(usize::try_from(bytes - done).unwrap_or(usize::MAX)) else { break };
            done += count as u64;
        }
        done
    }

    /// Where the next bytes lie, into `pieces`, and passes over them.
    pub(crate) fn pieces(&mut self, bytes: u64, pieces: &mut Vec<(GuestAddress, u32)>) {
        let mut done = 0;
        while done < bytes {
            let Some((address, count)) = self.step(usize::try_from(bytes - done).unwrap_or(usize::MAX)) else { break };
            // No longer than the segment, whose length is of 32 bits.
            pieces.push((address, count as u32));
            done += count as u64;
        }
    }

    /// Takes at most `wanted` bytes that lie in one segment.
    fn step(&mut self, wanted: usize) -> Option<(GuestAddress, usize)> {
        let first = self.segments.first()?;
        let count = wanted.min((first.bytes - self.passed) as usize);
        let address = first.address.unchecked_add(u64::from(self.passed));
        self.passed += count as u32;
        self.left -= count as u64;
        if self.passed == first.bytes {
            self.segments = &self.segments[1..];
            self.passed = 0;
        }
        Some((address, count))
    }
}
