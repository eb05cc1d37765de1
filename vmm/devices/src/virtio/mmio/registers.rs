//! What a driver has written: feature pages, the selected queue and each queue's place. Plain data, checked when queues start.

use virtio_bindings::{
    virtio_config::{VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK},
    virtio_mmio as offsets,
};

use crate::virtio::QueueState;

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

    pub(super) fn drop_selected(&mut self) {
        if let Some(queue) = self.queues.get_mut(self.queue as usize) {
            *queue = QueueRegisters::new(queue.size_max);
        }
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

    /// Writes a register that only keeps what is written; false if there is none at this offset or it may not be written now.
    pub(super) fn write(&mut self, offset: u32, value: u32) -> bool {
        match offset {
            offsets::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_page = value,
            offsets::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_page = value,
            offsets::VIRTIO_MMIO_QUEUE_SEL => self.queue = value,
            // Negotiated features are final (§3.1.1).
            offsets::VIRTIO_MMIO_DRIVER_FEATURES if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 => match self.driver_features_page {
                0 => set_low(&mut self.driver_features, value),
                1 => set_high(&mut self.driver_features, value),
                _ => return false,
            },
            _ => return self.write_queue(offset, value),
        }
        true
    }

    /// A queue's place may be written while it is not ready (§4.2.2.2).
    fn write_queue(&mut self, offset: u32, value: u32) -> bool {
        let Some(queue) = self.queues.get_mut(self.queue as usize).filter(|queue| !queue.ready) else { return false };
        match offset {
            // 0 never starts, so it can stand for what no u16 holds.
            offsets::VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
            offsets::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
            offsets::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
            offsets::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.avail_ring, value),
            offsets::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.avail_ring, value),
            offsets::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used_ring, value),
            offsets::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used_ring, value),
            _ => return false,
        }
        true
    }
}

fn set_low(register: &mut u64, value: u32) {
    *register = *register & !0xffff_ffff | u64::from(value);
}

fn set_high(register: &mut u64, value: u32) {
    *register = *register & 0xffff_ffff | u64::from(value) << 32;
}
