//! What a card has carried and lost. Written by its thread, read by whoever asks for the status.

use std::sync::atomic::{AtomicU64, Ordering};

/// Totals since the device was made. Sent and received are the guest's point of view.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames that the guest sent and the port took.
    pub tx_frames: AtomicU64,
    /// Their bytes.
    pub tx_bytes: AtomicU64,
    /// Frames that the guest sent and that made no sense or that the port refused.
    pub tx_dropped: AtomicU64,
    /// Frames that the guest received.
    pub rx_frames: AtomicU64,
    /// Their bytes.
    pub rx_bytes: AtomicU64,
    /// Frames larger than any buffer of this guest, or than [`rebec_offload::FRAME_BYTES_MAX`].
    pub rx_dropped: AtomicU64,
    /// Times that a frame had to wait because the guest had too few buffers.
    pub rx_waits: AtomicU64,
    /// Errors of the port while receiving.
    pub rx_errors: AtomicU64,
}

/// Adds to a counter. Only one thread adds, so a load and a store will do, without the bus lock of an atomic addition.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}
