//! A port's counters, written by its queue thread and read by the control thread.

use std::sync::atomic::{AtomicU64, Ordering};

use rebec_overlay::{Counters, Reason};

const PLAIN: usize = 9;

/// Each value is right by itself; two may stem from different bursts.
#[derive(Debug)]
pub struct SharedCounters {
    plain: [AtomicU64; PLAIN],
    dropped: [AtomicU64; Reason::ALL.len()],
}

impl Default for SharedCounters {
    fn default() -> Self {
        Self { plain: Default::default(), dropped: [const { AtomicU64::new(0) }; Reason::ALL.len()] }
    }
}

impl SharedCounters {
    /// Publishes.
    pub fn store(&self, counters: &Counters) {
        let Counters { tx_frames, tx_datagrams, rx_frames, rx_datagrams, relayed, flooded, answered, near, spared, dropped } = *counters;
        let plain = [tx_frames, tx_datagrams, rx_frames, rx_datagrams, relayed, flooded, answered, near, spared];
        for (shared, value) in self.plain.iter().zip(plain).chain(self.dropped.iter().zip(dropped)) {
            shared.store(value, Ordering::Relaxed);
        }
    }

    /// Reads.
    pub fn load(&self) -> Counters {
        let [tx_frames, tx_datagrams, rx_frames, rx_datagrams, relayed, flooded, answered, near, spared] = self.plain.each_ref().map(value);
        Counters {
            tx_frames,
            tx_datagrams,
            rx_frames,
            rx_datagrams,
            relayed,
            flooded,
            answered,
            near,
            spared,
            dropped: self.dropped.each_ref().map(value),
        }
    }
}

fn value(shared: &AtomicU64) -> u64 {
    shared.load(Ordering::Relaxed)
}
