//! A guest that means no good: random values in every device register, configuration space, ring and port that it can reach.
//!
//! What it proves is outside: the VMM neither ends nor gives up its memory. From one seed, so that a finding can be repeated.

use crate::{
    cpu,
    memory::Memory,
    pattern,
    virtio::{BAR, BAR_BYTES, Device, QUEUE_ADDRESSES, QUEUE_ENABLE, QUEUE_SELECT, QUEUE_SIZE},
};

const RING_WORDS: usize = 4096;
const DEVICES_MAX: usize = 16;
/// Where the BAR has interrupt messages of 16 bytes.
const MESSAGES: u64 = 0x4000;
const MESSAGES_END: u64 = 0x5000;

/// The source of nonsense.
pub struct Nonsense {
    random: u64,
    devices: [Option<Device>; DEVICES_MAX],
    rings: &'static mut [u64],
    /// Accesses made.
    pub steps: u64,
}

impl Nonsense {
    /// Begins with a seed.
    pub fn new(seed: u64, memory: &mut Memory) -> Result<Self, &'static str> {
        let rings = memory.take_words(RING_WORDS as u64 * 8).ok_or("no memory for nonsense")?;
        let mut found = Device::present();
        Ok(Self { random: seed, devices: core::array::from_fn(|_| found.next()), rings, steps: 0 })
    }

    /// A few accesses.
    pub fn turn(&mut self) {
        for _ in 0..8 {
            self.steps += 1;
            match self.next() % 16 {
                0 => self.port(),
                1 => self.ring(),
                2 => self.space(),
                _ => self.register(),
            }
        }
    }

    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        pattern::mix(self.random)
    }

    fn device(&mut self) -> Option<Device> {
        let count = self.devices.iter().flatten().count().max(1) as u64;
        self.devices[(self.next() % count) as usize]
    }

    /// Numbers that mean something somewhere, and some that mean nothing.
    fn value(&mut self) -> u32 {
        let base = self.rings.as_ptr() as u64;
        match self.next() % 8 {
            0 => 0,
            1 => 1 << (self.next() % 32),
            2 => (self.next() % 16) as u32,
            3 => (base + self.next() % (RING_WORDS as u64 * 8)) as u32,
            4 => u32::MAX,
            5 => 0x0f,
            _ => self.next() as u32,
        }
    }

    fn register(&mut self) {
        let Some(device) = self.device() else { return };
        let bytes = 1 << (self.next() % 3);
        // Mostly the common structure, at times anywhere in the BAR.
        let range = if self.next().is_multiple_of(4) { BAR_BYTES } else { 0x38 };
        let field = (self.next() % range & !(u64::from(bytes) - 1), bytes);
        if self.next().is_multiple_of(4) {
            device.read(field);
        } else {
            // An NMI, a reset or another message that no mask stops would end this guest, which has no handlers: it sends plain vectors.
            let plain = if (MESSAGES..MESSAGES_END).contains(&field.0) && field.0 % 16 == 8 { 0xff } else { u32::MAX };
            let value = self.value() & plain;
            device.write(field, value);
        }
    }

    /// A configuration space, for a moment: what is written may take the BAR away or put it over memory.
    fn space(&mut self) {
        let Some(device) = self.device() else { return };
        let (command, bar) = (cpu::register_read(device.space + 4), cpu::register_read(device.space + BAR));
        for _ in 0..4 {
            let at = device.space + (self.next() % 0x110 & !3);
            let value = self.value();
            cpu::register_write(at, value);
            cpu::register_read(at);
        }
        cpu::register_write(device.space + BAR, bar);
        cpu::register_write(device.space + 4, command);
    }

    /// A queue that looks alive and is full of nonsense.
    fn ring(&mut self) {
        let Some(device) = self.device() else { return };
        let base = self.rings.as_ptr() as u64;
        for at in 0..512 {
            let (address, rest) = (self.next(), self.next());
            // Most addresses lie in the rings themselves: the device follows them, and writes what is read next.
            self.rings[at * 2] = if address.is_multiple_of(8) { address } else { base + address % (RING_WORDS as u64 * 8) };
            self.rings[at * 2 + 1] = if rest.is_multiple_of(4) { rest } else { rest & 0x000f_0007_0000_1fff };
        }
        if device.begin(u64::MAX).is_err() {
            return;
        }
        for queue in 0..2 {
            device.write(QUEUE_SELECT, queue);
            let size = 1 << (self.next() % 9);
            device.write(QUEUE_SIZE, size);
            for at in QUEUE_ADDRESSES {
                let offset = self.next() % 16 * 256;
                device.write((at, 4), (base + offset) as u32);
                device.write((at + 4, 4), 0);
            }
            device.write(QUEUE_ENABLE, 1);
        }
        device.go();
        device.kick((self.next() % 3) as u16);
    }

    /// Any port but those that end the machine or carry this guest's lines.
    fn port(&mut self) {
        let port = self.next() as u16;
        let value = self.next() as u32;
        if matches!(port, 0x60..=0x64 | 0x92 | 0x3f8..=0x3ff | 0x600..=0x60f | 0xcf9) {
            return;
        }
        match value % 6 {
            0 => cpu::out8(port, value as u8),
            1 => cpu::out16(port, value as u16),
            2 => cpu::out32(port, value),
            3 => drop(cpu::in8(port)),
            4 => drop(cpu::in16(port)),
            _ => drop(cpu::in32(port)),
        }
    }
}
