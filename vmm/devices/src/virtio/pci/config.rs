//! The configuration space of one PCI function: header, one BAR, virtio's capabilities and MSI-X (PCI 3.0 §6.1, virtio 1.3 §4.1.4).
//!
//! It is bytes and a mask of those bits that a driver may write; what writes mean is read back from the bytes.

use super::{BAR_BYTES, COMMON, DEVICE, ISR, NOTIFY, NOTIFY_STRIDE, PENDING, REGION_BYTES, TABLE, copy};
use crate::virtio::DeviceKind;

/// A function without PCI Express's extended space.
pub(super) const BYTES: usize = 256;

const VENDOR_ID: u16 = 0x1af4;
/// Device ids of modern devices are this and the device type (§4.1.2.1).
const DEVICE_ID: u16 = 0x1040;
/// Modern devices have revision 1 or later.
const REVISION: u8 = 1;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_NO_INTX: u16 = 1 << 10;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CLASS: usize = 0x08;
const BAR: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_WINDOW: u8 = 5;

const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;

/// Where the capabilities lie, in the order of their list.
const AT_COMMON: usize = 0x40;
const AT_ISR: usize = 0x50;
const AT_DEVICE: usize = 0x60;
const AT_NOTIFY: usize = 0x70;
const AT_WINDOW: usize = 0x84;
const AT_MSIX: usize = 0x98;
/// The window's last field, through which the BAR is read and written.
const AT_WINDOW_DATA: usize = AT_WINDOW + 16;

#[derive(Debug, Clone)]
pub(super) struct ConfigSpace {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
}

impl ConfigSpace {
    /// A function as firmware leaves it: its BAR has an address and is decoded.
    pub(super) fn new(kind: DeviceKind, queues: u16, address: u32) -> Self {
        let mut space = Self { bytes: [0; BYTES], writable: [0; BYTES] };
        let device_id = DEVICE_ID + kind as u16;
        space.put(0, &VENDOR_ID.to_le_bytes());
        space.put(2, &device_id.to_le_bytes());
        space.put(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER).to_le_bytes());
        space.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTX).to_le_bytes());
        space.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        let [class, subclass] = class(kind);
        space.put(CLASS, &[REVISION, 0, subclass, class]);
        space.put(BAR, &address.to_le_bytes());
        space.allow(BAR, &(!(BAR_BYTES as u32 - 1)).to_le_bytes());
        space.put(SUBSYSTEM, &[VENDOR_ID.to_le_bytes(), device_id.to_le_bytes()].concat());
        space.put(CAPABILITIES, &[AT_COMMON as u8]);
        space.allow(INTERRUPT_LINE, &[0xff]);

        space.virtio(AT_COMMON, AT_ISR, TYPE_COMMON, COMMON, REGION_BYTES, &[]);
        space.virtio(AT_ISR, AT_DEVICE, TYPE_ISR, ISR, REGION_BYTES, &[]);
        space.virtio(AT_DEVICE, AT_NOTIFY, TYPE_DEVICE, DEVICE, REGION_BYTES, &[]);
        space.virtio(AT_NOTIFY, AT_WINDOW, TYPE_NOTIFY, NOTIFY, NOTIFY_STRIDE * u64::from(queues), &(NOTIFY_STRIDE as u32).to_le_bytes());
        space.virtio(AT_WINDOW, AT_MSIX, TYPE_WINDOW, 0, 0, &[0; 4]);
        // Bar, offset, length and data are the driver's.
        space.allow(AT_WINDOW + 4, &[0xff]);
        space.allow(AT_WINDOW + 8, &[0xff; 12]);

        // Encoded as one less than there are: the queues' vectors and the configuration's.
        let [size_low, size_high] = queues.to_le_bytes();
        space.put(AT_MSIX, &[CAPABILITY_MSIX, 0, size_low, size_high]);
        space.put(AT_MSIX + 4, &(TABLE as u32).to_le_bytes());
        space.put(AT_MSIX + 8, &(PENDING as u32).to_le_bytes());
        space.allow(AT_MSIX + 2, &(MSIX_ENABLE | MSIX_MASK).to_le_bytes());
        space
    }

    pub(super) fn read(&self, at: usize, data: &mut [u8]) {
        copy(data, self.bytes.get(at..).unwrap_or_default());
    }

    pub(super) fn write(&mut self, at: usize, data: &[u8]) {
        for ((byte, writable), new) in self.bytes.iter_mut().zip(&self.writable).skip(at).zip(data) {
            *byte = *byte & !writable | new & writable;
        }
    }

    /// Where the BAR is decoded, if it is.
    pub(super) fn address(&self) -> Option<u64> {
        (self.word(COMMAND) & COMMAND_MEMORY != 0).then(|| u64::from(self.dword(BAR)))
    }

    /// Whether MSI-X is on, and whether all of its vectors are masked.
    pub(super) fn msix(&self) -> (bool, bool) {
        let control = self.word(AT_MSIX + 2);
        (control & MSIX_ENABLE != 0, control & MSIX_MASK != 0)
    }

    /// Where in the BAR an access of `bytes` bytes at `at` goes through the window (§4.1.4.9), if it goes there.
    pub(super) fn window(&self, at: usize, bytes: usize) -> Option<u64> {
        let width = self.dword(AT_WINDOW + 12) as usize;
        let open = at == AT_WINDOW_DATA && bytes == width && matches!(width, 1 | 2 | 4) && self.bytes[AT_WINDOW + 4] == 0;
        open.then(|| self.dword(AT_WINDOW + 8).into())
    }

    pub(super) fn saved(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes the bits that a driver may write; the others must be what they are here.
    pub(super) fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        let bytes: [u8; BYTES] = saved.try_into().map_err(|_| format!("a configuration space of {} bytes", saved.len()))?;
        for (at, ((new, old), writable)) in bytes.iter().zip(&self.bytes).zip(&self.writable).enumerate() {
            if (new ^ old) & !writable != 0 {
                return Err(format!("configuration byte {at:#x} is {new:#04x}, this function has {old:#04x}"));
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    fn virtio(&mut self, at: usize, next: usize, kind: u8, offset: u64, bytes: u64, more: &[u8]) {
        let length = 16 + more.len() as u8;
        self.put(at, &[CAPABILITY_VENDOR, next as u8, length, kind, 0, 0, 0, 0]);
        self.put(at + 8, &[(offset as u32).to_le_bytes(), (bytes as u32).to_le_bytes()].concat());
        self.put(at + 16, more);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn dword(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }
}

/// Class and subclass.
fn class(kind: DeviceKind) -> [u8; 2] {
    match kind {
        DeviceKind::Net => [0x02, 0x00],
        DeviceKind::Block => [0x01, 0x80],
        DeviceKind::Rng => [0x10, 0x80],
        DeviceKind::Balloon | DeviceKind::Mem => [0x05, 0x80],
    }
}
