//! virtio-balloon (virtio 1.3 §5.5): pages that the guest lends to the host when it is asked to, pages that it says are free, and what it says of its memory.
//!
//! ```text
//! user ──ask──► Balloon.asked ──configuration change──► driver ──inflate──► pages go to the host       deflate: it takes them again by touching them
//!                                       the driver's own free pages ──report──► go to the host too     statistics: what it says, every ten seconds
//! ```
//! All of it is the guest's good will: a driver gets its pages back whenever it wants them, and without a word when it runs short (DEFLATE_ON_OOM). So nothing
//! of it is counted as taken for certain; that is what `mem` is for.

mod queues;
mod saved;
mod statistics;

#[cfg(test)]
mod tests;

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use rebec_layout::PAGE_BYTES;

use crate::{
    room::HostMemory,
    virtio::{DeviceKind, LiveConfig, QueueEnvironment, QueueSetup, QueueState, StartError, VirtioDevice},
};
use queues::Queues;
use saved::SavedBalloon;
pub use statistics::GuestMemory;

/// Inflate, deflate, statistics, hints of free pages (never asked for), reports of free pages.
const QUEUE_SIZES: [u16; 5] = [128; 5];
/// Feature bits (§5.5.3). That of hints is offered for the places of the queues alone: Linux numbers them without gaps, so that reports come by queue 3 from
/// a driver that has no queue of hints.
const STATISTICS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const HINTS: u64 = 1 << 3;
const REPORTS: u64 = 1 << 5;
/// Where the driver says how many pages it has lent (§5.5.4), and how long the configuration is.
const ACTUAL_AT: usize = 4;
const CONFIG_BYTES: usize = 16;

/// What is asked of a guest and what it has done: shared by the device and whoever asks.
#[derive(Debug)]
pub struct Balloon {
    asked_pages: AtomicU32,
    lent_pages: AtomicU32,
    reported_bytes: AtomicU64,
    refused: AtomicU64,
    guest: Mutex<Option<GuestMemory>>,
    host: Arc<dyn HostMemory>,
}

impl Balloon {
    /// Empty.
    pub fn new(host: Arc<dyn HostMemory>) -> Self {
        let (asked_pages, lent_pages) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { asked_pages, lent_pages, reported_bytes: AtomicU64::new(0), refused: AtomicU64::new(0), guest: Mutex::new(None), host }
    }

    /// Asks the guest to lend so much; its device is to be told by `reconfigure`.
    pub fn ask(&self, bytes: u64) {
        self.asked_pages.store(u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX), Ordering::Release);
    }

    /// How much it was asked to lend.
    pub fn asked_bytes(&self) -> u64 {
        u64::from(self.asked_pages.load(Ordering::Acquire)) * PAGE_BYTES
    }

    /// How much it says it has lent.
    pub fn lent_bytes(&self) -> u64 {
        u64::from(self.lent_pages.load(Ordering::Acquire)) * PAGE_BYTES
    }

    /// How much it has reported as free since the machine began, counted each time.
    pub fn reported_bytes(&self) -> u64 {
        self.reported_bytes.load(Ordering::Relaxed)
    }

    /// How many of its pages made no sense.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// What it said of its memory last.
    pub fn guest(&self) -> Option<GuestMemory> {
        *self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self, guest: GuestMemory) {
        *self.guest.lock().unwrap_or_else(PoisonError::into_inner) = Some(guest);
    }

    fn refuse(&self, pages: u64) {
        self.refused.fetch_add(pages, Ordering::Relaxed);
    }

    /// Gives memory of the guest's to the host.
    fn take(&self, addresses: Range<u64>) {
        if let Err(error) = self.host.discard(addresses) {
            log::warn!("balloon: give pages to the host: {error}");
        }
    }
}

impl LiveConfig for Balloon {
    fn overlay(&self, config: &mut [u8]) {
        if let Some(actual) = config.get_mut(ACTUAL_AT..ACTUAL_AT + 4) {
            actual.copy_from_slice(&self.lent_pages.load(Ordering::Acquire).to_le_bytes());
        }
    }

    fn write(&self, at: u64, data: &[u8]) {
        if let (ACTUAL_AT, Ok(pages)) = (at as usize, data.try_into()) {
            self.lent_pages.store(u32::from_le_bytes(pages), Ordering::Release);
        }
    }
}

/// The device.
#[derive(Debug)]
pub struct BalloonDevice {
    balloon: Arc<Balloon>,
    queues: Queues,
}

impl BalloonDevice {
    /// Over what is shared with whoever asks.
    pub fn new(balloon: Arc<Balloon>) -> Self {
        Self { queues: Queues::new(balloon.clone()), balloon }
    }
}

impl VirtioDevice for BalloonDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        STATISTICS | DEFLATE_ON_OOM | HINTS | REPORTS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// struct virtio_balloon_config (§5.5.4): asked, lent, the command for hints (0: none), the value of poisoned pages.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; CONFIG_BYTES];
        config[..ACTUAL_AT].copy_from_slice(&self.balloon.asked_pages.load(Ordering::Acquire).to_le_bytes());
        self.balloon.overlay(&mut config);
        config
    }

    fn live_config(&self) -> Option<Arc<dyn LiveConfig>> {
        Some(self.balloon.clone())
    }

    fn start_queues(&mut self, queues: Vec<QueueSetup>, environment: QueueEnvironment) -> Result<(), StartError> {
        self.queues.start(queues, &environment)
    }

    fn stop_queues(&mut self) -> Vec<(u16, QueueState)> {
        self.queues.stop()
    }

    fn save(&self) -> Vec<u8> {
        let pages = |pages: &AtomicU32| pages.load(Ordering::Acquire);
        SavedBalloon { asked_pages: pages(&self.balloon.asked_pages), lent_pages: pages(&self.balloon.lent_pages) }.encode()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        let SavedBalloon { asked_pages, lent_pages } = SavedBalloon::decode(saved)?;
        self.balloon.asked_pages.store(asked_pages, Ordering::Release);
        self.balloon.lent_pages.store(lent_pages, Ordering::Release);
        Ok(())
    }
}
