//! When cheap machines were to be had: JSON as the traces of "Can't Be Late" are, packed by gzip or not. Files are strangers' bytes and have limits.
//!
//! ```text
//! {"metadata": {"gap_seconds": 195}, "data": [0, 1, 1, ...]}      machines that were to be had at each tick
//! ```

use std::io::{BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;

use crate::trace::GZIP;

/// Years of ticks.
const BYTES_MAX: u64 = 32 << 20;
/// Between two ticks.
const GAP_S_MAX: u64 = 24 * 3600;

/// A zone, tick by tick. After its end it begins anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticks {
    /// Between two of them.
    pub gap_s: u64,
    /// For how many ticks a machine has been there by the end of each.
    since: Vec<u32>,
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TicksError {
    /// The bytes do not come, or are not what they should be.
    #[error("{0}; a trace is {{\"metadata\": {{\"gap_seconds\": 195}}, \"data\": [0, 1, 1]}}")]
    Json(#[from] serde_json::Error),
    /// The bytes do not come.
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// No time between two ticks, or too much.
    #[error("gap_seconds is {0}, and has to be from 1 to {GAP_S_MAX}")]
    Gap(u64),
    /// Nothing in it.
    #[error("it has no ticks")]
    Empty,
}

#[derive(Deserialize)]
struct File {
    metadata: Metadata,
    data: Vec<u32>,
}

#[derive(Deserialize)]
struct Metadata {
    gap_seconds: u64,
}

/// Reads a trace, packed by gzip or not.
///
/// # Errors
/// What is wrong with it.
pub fn read(from: impl Read) -> Result<Ticks, TicksError> {
    let mut from = BufReader::new(from);
    let File { metadata, data } = match from.fill_buf()?.starts_with(&GZIP) {
        true => serde_json::from_reader(BufReader::new(MultiGzDecoder::new(from).take(BYTES_MAX)))?,
        false => serde_json::from_reader(from.take(BYTES_MAX))?,
    };
    let gap_s = metadata.gap_seconds;
    if !(1..=GAP_S_MAX).contains(&gap_s) {
        return Err(TicksError::Gap(gap_s));
    }
    if data.is_empty() {
        return Err(TicksError::Empty);
    }
    Ok(Ticks::new(gap_s, data.into_iter().map(|machines| machines > 0)))
}

impl Ticks {
    /// Of whether there is a machine at each tick; at least one.
    pub fn new(gap_s: u64, there: impl IntoIterator<Item = bool>) -> Self {
        let count = |since: &mut u32, there: bool| {
            *since = if there { *since + 1 } else { 0 };
            Some(*since)
        };
        Self { gap_s, since: there.into_iter().scan(0, count).collect() }
    }

    /// For how many ticks a machine has been there, with this one; 0 where there is none.
    pub(super) fn since(&self, tick: usize) -> u32 {
        self.since[tick % self.since.len()]
    }

    /// Whether a machine is there.
    pub(super) fn is_there(&self, tick: usize) -> bool {
        self.since(tick) > 0
    }

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.since.len()
    }
}
