//! The entropy device: asked once for 32 bytes, which are printed.

use core::slice;

use crate::{
    console::Console,
    memory::Memory,
    say,
    virtio::{Device, Piece, Queue},
};

const BYTES: u32 = 32;

/// The device with its one request.
pub struct Entropy {
    queue: Queue,
    buffer: *mut u8,
}

impl Entropy {
    /// Asks for bytes.
    pub fn new(device: Device, memory: &mut Memory) -> Result<Self, &'static str> {
        device.begin(0)?;
        let mut queue = device.queue(0, 16, memory)?;
        let buffer = memory.take(u64::from(BYTES)).ok_or("no memory for entropy")?.as_mut_ptr();
        device.go();
        queue.offer(0, &[Piece { address: buffer as u64, bytes: BYTES, device_writes: true }]);
        queue.kick();
        Ok(Self { queue, buffer })
    }

    /// Prints the bytes when they are there.
    pub fn turn(&mut self, console: &mut Console) {
        if let Some((_, bytes)) = self.queue.done() {
            // SAFETY: the device is done with the buffer, which has `BYTES` bytes.
            let bytes = unsafe { slice::from_raw_parts(self.buffer, bytes.min(BYTES) as usize) };
            say!(console, "rng {bytes:02x?}");
        }
    }
}
