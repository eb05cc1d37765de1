//! The frequency of the time stamp counter that emulated machines see.
//!
//! An emulated machine's TSC is the host's, and its kernel measures the frequency against an emulated timer while it boots.
//! On a busy host a guest's clock was seen to run twelve times too fast, most likely because that went wrong.
//! So the rate of a machine's clock is compared with the host's; from a wrong rate follows the right frequency, which is
//! kept for this boot of the host and told to every later kernel (`tsc_early_khz`).

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{channel::client::Client, paths, qemu::machine::ORDER_DEADLINE};

/// How long a clock is watched.
const WATCHED: Duration = Duration::from_secs(3);
/// Looks at a clock, of which the quickest counts.
const LOOKS: u32 = 8;
/// A rate further off than this is a wrong frequency, not a slow answer. The kernel itself refines what is closer.
const RATE_TOLERANCE: f64 = 0.01;

/// The frequency, if it was learnt since the host booted.
pub fn known_khz() -> Option<u64> {
    fs::read_to_string(file().ok()?).ok()?.trim().parse().ok()
}

/// Compares a machine's clock with the host's. Learns the frequency; false if the machine runs by a wrong one.
pub fn learn(machine: &Client) -> Result<bool> {
    let rate = rate(machine)?;
    let log = machine.check(&["sh", "-c", "dmesg | grep 'tsc:'"], ORDER_DEADLINE)?;
    let believed = frequency_khz(&log).with_context(|| format!("no TSC frequency in the kernel's log: {}", log.trim()))?;
    let right = (rate - 1.0).abs() <= RATE_TOLERANCE;
    if known_khz().is_none() || !right {
        // What is right was refined by the kernel, more exactly than a look from outside can.
        let khz = if right { believed } else { believed * rate };
        let path = file()?;
        fs::write(&path, format!("{khz:.0}\n")).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(right)
}

/// Seconds of the machine in a second of the host.
fn rate(machine: &Client) -> Result<f64> {
    let (begin, before) = look(machine)?;
    std::thread::sleep(WATCHED);
    let (end, after) = look(machine)?;
    let elapsed = end.duration_since(begin).as_secs_f64();
    Ok(1.0 + (after - before) / elapsed)
}

/// When the quickest of some answers came, and by how many seconds the machine was ahead then.
fn look(machine: &Client) -> Result<(Instant, f64)> {
    let mut best: Option<(Duration, Instant, f64)> = None;
    for _ in 0..LOOKS {
        let (offset_ns, took) = machine.clock_offset()?;
        if best.is_none_or(|(shortest, ..)| took < shortest) {
            best = Some((took, Instant::now(), offset_ns as f64 / 1e9));
        }
    }
    best.map(|(_, when, ahead)| (when, ahead)).context("invariant: there is at least one look")
}

/// What the kernel believes: `tsc: Detected 2000.123 MHz ...`, then perhaps `tsc: Refined ... calibration: 2000.099 MHz`.
fn frequency_khz(log: &str) -> Option<f64> {
    let megahertz = |line: &str| line.split(" MHz").next()?.rsplit(' ').next()?.parse::<f64>().ok();
    log.lines().filter(|line| line.contains(" MHz")).filter_map(megahertz).next_back().map(|value| value * 1000.0)
}

/// One file for each boot of the host: a frequency may differ after the next one.
fn file() -> Result<PathBuf> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the host's boot id")?;
    Ok(paths::lab().join(format!("tsc-khz-{}", boot.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_frequency_counts() {
        let log = "[    0.000000] tsc: Detected 2000.123 MHz processor\n\
                   [    0.000000] tsc: Marking TSC unstable due to nothing\n\
                   [    2.100000] tsc: Refined TSC clocksource calibration: 1999.998 MHz\n";
        assert_eq!(frequency_khz(log), Some(1_999_998.0));
        assert_eq!(frequency_khz("tsc: Detected 163.5 MHz TSC\n"), Some(163_500.0));
        assert_eq!(frequency_khz("nothing"), None);
    }
}
