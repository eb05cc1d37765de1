//! What a driver has written into the common configuration structure (virtio 1.3 §4.1.4.3): feature pages, the selected queue and each
//! queue's place. Plain data, checked when queues start.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK,
};

use crate::virtio::QueueState;

/// A field of the structure: where it is and how many bytes it has. Fields of eight bytes are two of four (§4.1.3.1).
pub(crate) type Field = (u64, usize);

pub(crate) const DEVICE_FEATURES_SELECT: Field = (0x00, 4);
pub(crate) const DEVICE_FEATURES: Field = (0x04, 4);
pub(crate) const DRIVER_FEATURES_SELECT: Field = (0x08, 4);
pub(crate) const DRIVER_FEATURES: Field = (0x0c, 4);
pub(crate) const CONFIG_VECTOR: Field = (0x10, 2);
pub(crate) const QUEUE_COUNT: Field = (0x12, 2);
pub(crate) const STATUS: Field = (0x14, 1);
pub(crate) const CONFIG_GENERATION: Field = (0x15, 1);
pub(crate) const QUEUE_SELECT: Field = (0x16, 2);
pub(crate) const QUEUE_SIZE: Field = (0x18, 2);
pub(crate) const QUEUE_VECTOR: Field = (0x1a, 2);
pub(crate) const QUEUE_ENABLE: Field = (0x1c, 2);
pub(crate) const QUEUE_NOTIFY_OFFSET: Field = (0x1e, 2);
pub(crate) const QUEUE_DESCRIPTORS: Field = (0x20, 4);
pub(crate) const QUEUE_DESCRIPTORS_HIGH: Field = (0x24, 4);
pub(crate) const QUEUE_DRIVER: Field = (0x28, 4);
pub(crate) const QUEUE_DRIVER_HIGH: Field = (0x2c, 4);
pub(crate) const QUEUE_DEVICE: Field = (0x30, 4);
pub(crate) const QUEUE_DEVICE_HIGH: Field = (0x34, 4);

/// Status bits in which a driver goes forward.
pub(super) const STATUS_STEPS: u32 =
    VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

/// One queue's registers and, while it does not run, its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) size_max: u16,
    /// As written; not checked until the queue starts.
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) desc_table: u64,
    pub(super) avail_ring: u64,
    pub(super) used_ring: u64,
    pub(super) next_avail: u16,
    pub(super) next_used: u16,
}

impl QueueRegisters {
    pub(super) fn new(size_max: u16) -> Self {
        Self { size_max, size: size_max, ready: false, desc_table: 0, avail_ring: 0, used_ring: 0, next_avail: 0, next_used: 0 }
    }

    fn read(&self, field: Field) -> u32 {
        match field {
            QUEUE_SIZE => self.size.into(),
            QUEUE_ENABLE => self.ready.into(),
            QUEUE_DESCRIPTORS => self.desc_table as u32,
            QUEUE_DESCRIPTORS_HIGH => (self.desc_table >> 32) as u32,
            QUEUE_DRIVER => self.avail_ring as u32,
            QUEUE_DRIVER_HIGH => (self.avail_ring >> 32) as u32,
            QUEUE_DEVICE => self.used_ring as u32,
            QUEUE_DEVICE_HIGH => (self.used_ring >> 32) as u32,
            _ => 0,
        }
    }

    pub(super) fn state(&self) -> QueueState {
        QueueState {
            max_size: self.size_max,
            next_avail: self.next_avail,
            next_used: self.next_used,
            // The features say it; whoever starts the queue knows them.
            event_idx_enabled: false,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        }
    }
}

/// All registers of a device that a driver writes and that are not atomic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) status: u32,
    pub(super) device_features_page: u32,
    pub(super) driver_features_page: u32,
    pub(super) driver_features: u64,
    pub(super) queue: u32,
    pub(super) queues: Vec<QueueRegisters>,
}

impl Registers {
    pub(super) fn new(sizes: &[u16]) -> Self {
        Self {
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            queue: 0,
            queues: sizes.iter().map(|size| QueueRegisters::new(*size)).collect(),
        }
    }

    pub(super) fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.queue as usize)
    }

    pub(super) fn set_selected_ready(&mut self) {
        if let Some(queue) = self.queues.get_mut(self.queue as usize) {
            queue.ready = true;
        }
    }

    pub(super) fn set_position(&mut self, index: u16, next_avail: u16, next_used: u16) {
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            (queue.next_avail, queue.next_used) = (next_avail, next_used);
        }
    }

    pub(super) fn ready_states(&self) -> impl Iterator<Item = (u16, QueueState)> {
        (0..).zip(&self.queues).filter(|(_, queue)| queue.ready).map(|(index, queue)| (index, queue.state()))
    }

    /// Reads back what was written; 0 if there is no such field.
    pub(super) fn read(&self, field: Field) -> u32 {
        match field {
            DEVICE_FEATURES_SELECT => self.device_features_page,
            DRIVER_FEATURES_SELECT => self.driver_features_page,
            DRIVER_FEATURES if self.driver_features_page < 2 => (self.driver_features >> (32 * self.driver_features_page)) as u32,
            QUEUE_SELECT => self.queue,
            // Each queue's kicks have their own place (§4.1.4.4).
            QUEUE_NOTIFY_OFFSET => self.queue,
            _ => self.selected().map_or(0, |queue| queue.read(field)),
        }
    }

    /// Writes a field that only keeps what is written; false if there is none or it may not be written now.
    pub(super) fn write(&mut self, field: Field, value: u32) -> bool {
        match field {
            DEVICE_FEATURES_SELECT => self.device_features_page = value,
            DRIVER_FEATURES_SELECT => self.driver_features_page = value,
            QUEUE_SELECT => self.queue = value,
            // Negotiated features are final (§3.1.1).
            DRIVER_FEATURES if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 => match self.driver_features_page {
                0 => set_low(&mut self.driver_features, value),
                1 => set_high(&mut self.driver_features, value),
                _ => return false,
            },
            _ => return self.write_queue(field, value),
        }
        true
    }

    /// A queue's place may be written while it is not enabled (§4.1.4.3.2).
    fn write_queue(&mut self, field: Field, value: u32) -> bool {
        let Some(queue) = self.queues.get_mut(self.queue as usize).filter(|queue| !queue.ready) else { return false };
        match field {
            QUEUE_SIZE => queue.size = value as u16,
            QUEUE_DESCRIPTORS => set_low(&mut queue.desc_table, value),
            QUEUE_DESCRIPTORS_HIGH => set_high(&mut queue.desc_table, value),
            QUEUE_DRIVER => set_low(&mut queue.avail_ring, value),
            QUEUE_DRIVER_HIGH => set_high(&mut queue.avail_ring, value),
            QUEUE_DEVICE => set_low(&mut queue.used_ring, value),
            QUEUE_DEVICE_HIGH => set_high(&mut queue.used_ring, value),
            _ => return false,
        }
        true
    }
}

pub(super) fn set_low(register: &mut u64, value: u32) {
    *register = *register & !0xffff_ffff | u64::from(value);
}

pub(super) fn set_high(register: &mut u64, value: u32) {
    *register = *register & 0xffff_ffff | u64::from(value) << 32;
}
