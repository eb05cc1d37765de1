//! virtio-rng (virtio 1.3 §5.4): fills the guest's buffers from a source of randomness that was opened before sealing.

use std::{fmt, io::Read, sync::Arc};

use crate::{
    GuestRam,
    virtio::{
        DeviceKind, LiveConfig, QueueEnvironment, QueueSetup, QueueState, StartError, VirtioDevice,
        chain::Chain,
        ring::Broken,
        single::{Answer, OneByOne, SingleQueue},
    },
};

const QUEUE_SIZES: [u16; 1] = [64];
/// Most bytes given for one request. A driver takes less than it asked for (§5.4.6.1) and asks again.
const ANSWER_BYTES_MAX: usize = 4096;

/// An entropy source.
#[derive(Debug)]
pub struct RngDevice {
    queue: SingleQueue<OneByOne<RngAnswers>>,
}

impl RngDevice {
    /// A device that gives out what `source` yields: the host's /dev/urandom.
    pub fn new(source: impl Read + Send + 'static) -> Self {
        let answers = RngAnswers { source: Box::new(source), buffer: vec![0; ANSWER_BYTES_MAX] };
        Self { queue: SingleQueue::Stopped(OneByOne::new(answers)) }
    }
}

impl VirtioDevice for RngDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        vec![]
    }

    fn live_config(&self) -> Option<Arc<dyn LiveConfig>> {
        None
    }

    fn start_queues(&mut self, queues: Vec<QueueSetup>, environment: QueueEnvironment) -> Result<(), StartError> {
        // A driver may set DRIVER_OK without making the queue ready: then there is nothing to serve.
        queues.into_iter().try_for_each(|setup| self.queue.start("virtio-rng", setup, &environment))
    }

    fn stop_queues(&mut self) -> Vec<(u16, QueueState)> {
        self.queue.stop().into_iter().collect()
    }

    /// Nothing: the randomness of one place says nothing about that of another.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        if saved.is_empty() { Ok(()) } else { Err(format!("{} bytes in the part of a device that has none", saved.len())) }
    }
}

struct RngAnswers {
    source: Box<dyn Read + Send>,
    buffer: Vec<u8>,
}

impl fmt::Debug for RngAnswers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RngAnswers")
    }
}

impl Answer for RngAnswers {
    fn answer(&mut self, chain: &Chain, ram: &GuestRam) -> Result<u32, Broken> {
        let mut writer = chain.writer(ram);
        let wanted = writer.left().min(ANSWER_BYTES_MAX as u64) as usize;
        let piece = &mut self.buffer[..wanted];
        // A guest that believes in bytes that are not random is worse off than one that gets none.
        match self.source.read_exact(piece) {
            Ok(()) => Ok(writer.write(piece) as u32),
            Err(error) => {
                log::error!("read the source of randomness: {error}");
                Ok(0)
            }
        }
    }
}
