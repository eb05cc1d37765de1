//! A bridge between the first two network ports: what comes in at one goes out at the other as it is, for stations that are behind this guest. It learns
//! nothing and answers nothing. No offload is agreed on, so that frames are whole and short.

use core::slice;

use crate::{
    console::Console,
    memory::Memory,
    say,
    virtio::{Device, DeviceKind, Piece, Queue},
};

/// VIRTIO_NET_F_MAC.
const WANTED: u64 = 1 << 5;
/// Bytes of virtio_net_hdr_v1.
const HEADER: usize = 12;
const BUFFER_BYTES: usize = 2048;
const BUFFERS: usize = 128;
/// Frames taken per turn of the main loop and direction.
const FRAMES_PER_TURN: usize = 32;

/// Both directions.
pub struct Bridge {
    ways: [Way; 2],
}

/// From the receiving queue of one port to the sending queue of the other. A buffer is in one of them.
struct Way {
    from: Queue,
    to: Queue,
    buffers: *mut u8,
    frames: u64,
}

impl Bridge {
    /// Drives the first two network devices from now on.
    pub fn new(memory: &mut Memory) -> Result<Self, &'static str> {
        let mut found = Device::all(DeviceKind::Net);
        let (Some(left), Some(right)) = (found.next(), found.next()) else { return Err("a bridge wants two network ports") };
        let mut queues = |device: &Device| -> Result<_, &'static str> {
            device.begin(WANTED)?;
            let queues = (device.queue(0, BUFFERS as u16, memory)?, device.queue(1, BUFFERS as u16, memory)?);
            let buffers = memory.take((BUFFERS * BUFFER_BYTES) as u64).ok_or("no memory for a bridge")?.as_mut_ptr();
            device.go();
            Ok((queues, buffers))
        };
        let ((left_in, left_out), left_buffers) = queues(&left)?;
        let ((right_in, right_out), right_buffers) = queues(&right)?;
        let ways = [Way::new(left_in, right_out, left_buffers), Way::new(right_in, left_out, right_buffers)];
        Ok(Self { ways })
    }

    /// One turn.
    pub fn turn(&mut self) {
        self.ways.iter_mut().for_each(Way::turn);
    }

    /// A line of counters.
    pub fn say(&self, console: &mut Console) {
        say!(console, "bridge right={} left={}", self.ways[0].frames, self.ways[1].frames);
    }
}

impl Way {
    fn new(from: Queue, to: Queue, buffers: *mut u8) -> Self {
        let mut way = Self { from, to, buffers, frames: 0 };
        for buffer in 0..BUFFERS.min(usize::from(way.from.size())).min(usize::from(way.to.size())) {
            way.offer(buffer as u16);
        }
        way.from.kick();
        way
    }

    fn turn(&mut self) {
        while let Some((buffer, _)) = self.to.done() {
            self.offer(buffer);
        }
        for _ in 0..FRAMES_PER_TURN {
            let Some((buffer, bytes)) = self.from.done() else { break };
            let address = self.buffer(buffer);
            // SAFETY: the one device is done with the buffer and the other does not have it yet.
            unsafe { slice::from_raw_parts_mut(address, HEADER) }.fill(0);
            self.to.offer(buffer, &[Piece { address: address as u64, bytes: bytes.min(BUFFER_BYTES as u32), device_writes: false }]);
            self.frames += 1;
        }
        self.from.kick();
        self.to.kick();
    }

    fn buffer(&self, buffer: u16) -> *mut u8 {
        self.buffers.wrapping_add(usize::from(buffer) % BUFFERS * BUFFER_BYTES)
    }

    fn offer(&mut self, buffer: u16) {
        let address = self.buffer(buffer) as u64;
        self.from.offer(buffer, &[Piece { address, bytes: BUFFER_BYTES as u32, device_writes: true }]);
    }
}
