//! The bench guest's heartbeats in what `rebec vm logs` prints. Their times are the guest's own, so that a log read late is as exact as one that was
//! watched.

use std::{
    fs::{self, File},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{Host, program};
use crate::netlab::{
    lab::expect,
    vmm::{SHORT, wait},
};

/// The heartbeats of a VM that are in its log.
#[derive(Debug)]
pub struct Beats {
    khz: u64,
    /// Number and time stamp of each.
    beats: Vec<(u64, u64)>,
}

impl Beats {
    /// Reads the log of a VM that has not moved.
    pub fn of(host: &Host, vm: &str) -> Result<Self> {
        // A log is longer than a pipe.
        let path = host.state().with_extension(format!("{vm}.log"));
        let mut command = Command::new(program()?);
        command.arg("--socket").arg(host.socket()).args(["vm", "logs", vm, "--tail", "2M"]);
        let mut child = command.stdin(Stdio::null()).stdout(File::create(&path)?).spawn().context("start rebec vm logs")?;
        let status = wait(&mut child, SHORT)?;
        expect(status.success(), || format!("rebec vm logs {vm} ended with {status}"))?;
        Self::parse(&String::from_utf8_lossy(&fs::read(&path)?)).with_context(|| format!("the log of VM {vm}"))
    }

    fn parse(log: &str) -> Result<Self> {
        let first =
            log.lines().rev().find_map(|line| line.strip_prefix("rebec-bench 1 tsc_khz=")).context("no first line of a bench guest")?;
        let khz = first.split(' ').next().unwrap_or_default().parse().context("its tsc_khz")?;
        let beats = log.lines().filter_map(|line| {
            let (number, stamp) = line.strip_prefix("hb ")?.split_once(' ')?;
            Some((number.parse().ok()?, u64::from_str_radix(stamp, 16).ok()?))
        });
        Ok(Self { khz, beats: whole(&beats.collect::<Vec<_>>()) })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.beats.len()
    }

    /// The last one's number.
    pub fn last(&self) -> u64 {
        self.beats.last().map_or(0, |beat| beat.0)
    }

    /// The longest time between two that follow each other, among those from a number on, beyond what beats that were not heard would fill.
    pub fn longest_gap(&self, from: u64) -> Duration {
        let pairs = || self.beats.windows(2).filter(|pair| pair[0].0 >= from);
        let stamps = |pair: &[(u64, u64)]| pair[1].1.saturating_sub(pair[0].1);
        let steps = |pair: &[(u64, u64)]| pair[1].0.saturating_sub(pair[0].0);
        let mut usual: Vec<u64> = pairs().filter(|pair| steps(pair) == 1).map(stamps).collect();
        usual.sort_unstable();
        let period = usual.get(usual.len() / 2).copied().unwrap_or_default();
        let gaps = pairs().map(|pair| stamps(pair).saturating_sub(steps(pair).saturating_sub(1) * period));
        Duration::from_micros(gaps.max().unwrap_or_default().saturating_mul(1000) / self.khz.max(1))
    }

    /// How many are not there between the first and the last: what an agent had not read when it was killed. None if the guest began anew.
    pub fn lost(&self) -> Option<u64> {
        let steps = self.beats.windows(2).map(|pair| pair[1].0.checked_sub(pair[0].0 + 1));
        steps.sum()
    }
}

/// Without a beat whose digits an agent had in its hands when it was killed: its number or its stamp falls back, and the next one goes on from before.
fn whole(beats: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let torn = |at: usize| {
        let before = at.checked_sub(1).and_then(|before| beats.get(before));
        let follows = |beat: (u64, u64), before: (u64, u64)| beat.0 > before.0 && beat.1 > before.1;
        matches!((before, beats.get(at + 1)), (Some(before), Some(after)) if !follows(beats[at], *before) && follows(*after, *before))
    };
    (0..beats.len()).filter(|at| !torn(*at)).map(|at| beats[at]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_the_guests_own() {
        let log = "rebec-bench 1 tsc_khz=1000 memory_bytes=7\r\nhb 0 0\nhb 1 64\nready pages=1\nhb 2 1064\nhb 3 10c8\n";
        let beats = Beats::parse(&log.replace('\r', "")).unwrap();
        assert_eq!((beats.count(), beats.last(), beats.lost()), (4, 3, Some(0)));
        assert_eq!(beats.longest_gap(0), Duration::from_millis(4) + Duration::from_micros(96));
        assert_eq!(beats.longest_gap(2), Duration::from_micros(100));
        let torn = Beats::parse("rebec-bench 1 tsc_khz=1000 x\nhb 0 0\nhb 1 64\nhb 4 190\n").unwrap();
        assert_eq!((torn.lost(), torn.longest_gap(0)), (Some(2), Duration::from_micros(100)));
        assert_eq!(Beats::parse("rebec-bench 1 tsc_khz=1000 x\nhb 7 0\nhb 0 64\n").unwrap().lost(), None);
        let halved = Beats::parse("rebec-bench 1 tsc_khz=1000 x\nhb 99 0\nhb 100 64\nhb 11 c8\nhb 102 12c\n").unwrap();
        assert_eq!((halved.count(), halved.lost()), (3, Some(1)));
        let late = Beats::parse("rebec-bench 1 tsc_khz=1000 x\nhb 5 164\nhb 6 1c8\nhb 7 2c\nhb 8 290\n").unwrap();
        assert_eq!((late.lost(), late.longest_gap(0)), (Some(1), Duration::from_micros(100)));
        assert!(Beats::parse("hb 0 0\n").is_err());
    }
}
