//! The signed commands that came since the agent started: each counts once.

use std::{sync::Mutex, time::Instant};

use rebec_book::warrant::{BadWarrant, Proven, Replays};
use rebec_host::lock;

use crate::chance::now_s;

/// The warrants that came since the agent started.
pub struct Warrants {
    since: Instant,
    replays: Mutex<Replays>,
}

impl Default for Warrants {
    fn default() -> Self {
        Self { since: Instant::now(), replays: Mutex::default() }
    }
}

impl Warrants {
    /// Lets a warrant through once.
    pub fn once(&self, proven: &Proven) -> Result<(), BadWarrant> {
        lock(&self.replays).once(proven, now_s(), self.since.elapsed().as_secs())
    }
}
