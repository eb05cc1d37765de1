//! What the demo saw, and whether it is as it should be. Numbers come from guests, VMMs and the switch; none is made here.

use std::fmt;

use rebec_vmm_api::{MoveReport, Outcome, UnitCounts};
use rebec_workload::words::{ClockReport, PingPhase, SenderReport, ServerReport, Verified};
use serde::Serialize;

/// Longest silence of the ping that a move may cause on machines that give their VMs the processor when they ask.
const SILENCE_MS_MAX: f64 = 3000.0;
/// Where the machines themselves stall, the VM that stayed says how long: a move may cost this many such stalls.
const STALLS_MAX: f64 = 5.0;
/// Pings that may be lost outside the silence.
const LOST_OUTSIDE_MAX: f64 = 0.01;
/// How far CLOCK_REALTIME of a moved guest may be from the host's.
const CLOCK_MS_MAX: f64 = 50.0;
/// A look at the clock that is less sure than this says nothing.
const UNSURE_MS_MAX: f64 = 250.0;

/// One move, from every side.
#[derive(Debug, Serialize)]
pub struct MoveSeen {
    /// From machine, to machine.
    pub way: String,
    /// What `ctl migrate` reported.
    pub reported: MoveReport,
    /// Bytes that crossed the link in the move's direction, all traffic included.
    pub link_bytes: u64,
    /// Pings to the VM that moved.
    pub pings: PingPhase,
    /// Pings to the VM that did not.
    pub control: PingPhase,
    /// Longest time one of the guest's own watchers did not run.
    pub guest_stall_ms: u64,
    /// Every acknowledged write, read from the disk afterwards.
    pub disk: Verified,
    /// Every page of the pattern.
    pub memory: Verified,
    /// CLOCK_REALTIME of the guest less the host's.
    pub clock_off_ms: f64,
    /// Half of what it took to ask: the answer is not surer than that.
    pub clock_unsure_ms: f64,
    /// The guest's clocks.
    pub clock: ClockReport,
}

/// The whole story.
#[derive(Debug, Serialize)]
pub struct DemoReport {
    /// In order.
    pub moves: Vec<MoveSeen>,
    /// The client's end of the transfer.
    pub sender: SenderReport,
    /// The moved VM's end.
    pub server: ServerReport,
    /// What is right and what is not.
    pub verdicts: Vec<Verdict>,
}

/// One thing that must hold.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// What.
    pub what: String,
    /// Whether it holds.
    pub right: bool,
    /// What was seen.
    pub seen: String,
}

impl DemoReport {
    /// Judges what was seen.
    pub fn new(moves: Vec<MoveSeen>, sender: SenderReport, server: ServerReport) -> Self {
        let mut verdicts = Vec::new();
        let mut judge = |what: String, right: bool, seen: String| verdicts.push(Verdict { what, right, seen });
        for (number, seen) in (1..).zip(&moves) {
            let name = |what: &str| format!("move {number}: {what}");
            let outcome = seen.reported.outcome;
            let reason = seen.reported.reason.clone().unwrap_or_default();
            judge(name("the VM moved"), outcome == Outcome::Moved, format!("{outcome:?} {reason}").trim().to_owned());
            let silence = seen.pings.longest_silence_ms;
            let stall = seen.control.longest_silence_ms;
            let allowed = SILENCE_MS_MAX.max(STALLS_MAX * stall);
            let seen_silence = format!("{silence:.0} ms, {allowed:.0} allowed; the VM that stayed was silent for {stall:.0} ms");
            judge(name("silence under 3 s, or under five stalls of the VM that stayed"), silence < allowed, seen_silence);
            let outside = seen.pings.lost_outside_silence as f64 / seen.pings.sent.max(1) as f64;
            let lost = format!("{} of {} lost outside the silence", seen.pings.lost_outside_silence, seen.pings.sent);
            judge(name("pings lost outside the silence under 1 %"), seen.pings.sent > 0 && outside < LOST_OUTSIDE_MAX, lost);
            judge(name("every acknowledged write is on the disk"), sound(&seen.disk), verified(&seen.disk, "blocks"));
            judge(name("the pattern in memory is whole"), sound(&seen.memory), verified(&seen.memory, "pages"));
            let clock = format!("{} looks, {} steps back", seen.clock.looks, seen.clock.steps_back);
            judge(name("CLOCK_MONOTONIC never steps back"), seen.clock.looks > 0 && seen.clock.steps_back == 0, clock);
            let (off, unsure) = (seen.clock_off_ms, seen.clock_unsure_ms);
            let is_near = off.abs() - unsure < CLOCK_MS_MAX && unsure < UNSURE_MS_MAX;
            judge(name("CLOCK_REALTIME within 50 ms of the host's"), is_near, format!("{off:+.1} ms, give or take {unsure:.1}"));
        }
        let same = server.connections == 1 && sender.nonce == server.nonce;
        let seen = format!("{} accepted, named {} at one end and {} at the other", server.connections, sender.nonce, server.nonce);
        judge("one TCP connection from beginning to end".to_owned(), same, seen);
        let whole = sender.blocks == server.blocks && sender.blocks > 0 && server.wrong == 0 && sender.wrong == 0;
        let seen = format!("{} blocks sent, {} received, {} wrong", sender.blocks, server.blocks, server.wrong + sender.wrong);
        judge("no sequence number is missing".to_owned(), whole, seen);
        let seen = format!("{} and {}", short(&sender.checksum), short(&server.checksum));
        judge("both ends have the same checksum".to_owned(), sender.checksum == server.checksum && !sender.checksum.is_empty(), seen);
        Self { moves, sender, server, verdicts }
    }

    /// Whether all of it holds.
    pub fn is_right(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.right)
    }
}

fn sound(verified: &Verified) -> bool {
    verified.checked > 0 && verified.wrong == 0
}

fn verified(verified: &Verified, what: &str) -> String {
    let first = verified.first.as_ref().map(|first| format!(": {first}")).unwrap_or_default();
    format!("{} {what} checked, {} wrong{first}", verified.checked, verified.wrong)
}

fn short(checksum: &str) -> &str {
    checksum.get(..16).unwrap_or(checksum)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn units(counts: &UnitCounts) -> String {
    let UnitCounts { unchanged, zero, digest, compressed, raw, on_base } = counts;
    format!("unchanged {unchanged}, zero {zero}, digest {digest}, compressed {compressed}, raw {raw}, on base {on_base}")
}

impl fmt::Display for MoveSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moved = &self.reported;
        let control = self.control.longest_silence_ms;
        let times = self.pings.longest_silence_ms / control.max(0.001);
        writeln!(f, "  total               {:.1} s, {} rounds, {} streams", moved.total_ms as f64 / 1000.0, moved.rounds, moved.streams)?;
        writeln!(
            f,
            "  silence from outside {:.0} ms, {times:.1} times the {control:.0} ms of the VM that stayed",
            self.pings.longest_silence_ms
        )?;
        writeln!(f, "  pause               {} ms by the VMMs' own account, {} ms by the guest's", moved.downtime_ms, self.guest_stall_ms)?;
        let (memory, disk) = (mib(moved.memory_bytes), mib(moved.disk_bytes));
        writeln!(f, "  on the wire         {:.1} MiB for {memory:.0} MiB of memory and {disk:.0} MiB of disk", mib(moved.wire_bytes))?;
        writeln!(f, "                      {:.1} MiB crossed the link, all traffic included", mib(self.link_bytes))?;
        writeln!(f, "  pages               {}", units(&moved.pages))?;
        writeln!(f, "  disk, in 4 KiB      {}", units(&moved.clusters))?;
        let PingPhase { sent, lost, lost_outside_silence, median_ms, .. } = self.pings;
        writeln!(
            f,
            "  pings               {sent} sent, {lost} lost, {lost_outside_silence} of them outside the silence, median {median_ms:.1} ms"
        )
    }
}

impl fmt::Display for DemoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, seen) in (1..).zip(&self.moves) {
            writeln!(f, "move {number}, {}", seen.way)?;
            write!(f, "{seen}")?;
        }
        writeln!(
            f,
            "transfer              {:.1} MiB, longest wait for a confirmation {} ms",
            mib(self.sender.blocks * 4096),
            self.sender.longest_wait_ms
        )?;
        for verdict in &self.verdicts {
            let mark = if verdict.right { "right" } else { "WRONG" };
            writeln!(f, "{mark}  {}: {}", verdict.what, verdict.seen)?;
        }
        let wrong = self.verdicts.iter().filter(|verdict| !verdict.right).count();
        match wrong {
            0 => write!(f, "all {} verdicts are right", self.verdicts.len()),
            wrong => write!(f, "{wrong} of {} verdicts are WRONG", self.verdicts.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> (Vec<MoveSeen>, SenderReport, ServerReport) {
        let reported = serde_json::from_str(
            r#"{"outcome":"moved","total_ms":1,"downtime_ms":1,"wire_bytes":1,"rounds":1,"streams":1,"pages":{},"clusters":{},"memory_bytes":1,"disk_bytes":1}"#,
        );
        let checked = || Verified { checked: 9, wrong: 0, first: None };
        let seen = MoveSeen {
            way: "a to b".into(),
            reported: reported.unwrap(),
            link_bytes: 1,
            pings: PingPhase { sent: 1000, lost: 20, lost_outside_silence: 1, longest_silence_ms: 200.0, ..PingPhase::default() },
            control: PingPhase { longest_silence_ms: 50.0, ..PingPhase::default() },
            guest_stall_ms: 100,
            disk: checked(),
            memory: checked(),
            clock_off_ms: 60.0,
            clock_unsure_ms: 11.0,
            clock: ClockReport { looks: 9, ..ClockReport::default() },
        };
        let sender = SenderReport { nonce: "1".into(), blocks: 5, checksum: "ab".into(), ..SenderReport::default() };
        let server = ServerReport { connections: 1, nonce: "1".into(), blocks: 5, checksum: "ab".into(), ..ServerReport::default() };
        (vec![seen], sender, server)
    }

    #[test]
    fn what_is_good_is_right() {
        let (moves, sender, server) = good();
        let report = DemoReport::new(moves, sender, server);
        assert!(report.is_right(), "{report}");
        assert!(report.to_string().contains("4.0 times the 50 ms"), "{report}");
    }

    #[test]
    fn each_fault_makes_one_verdict_wrong() {
        type Fault = fn(&mut MoveSeen, &mut SenderReport, &mut ServerReport);
        let faults: [Fault; 11] = [
            |seen, _, _| seen.reported.outcome = Outcome::Failed,
            |seen, _, _| seen.pings.longest_silence_ms = 3001.0,
            |seen, _, _| seen.pings.lost_outside_silence = 10,
            |seen, _, _| seen.disk.wrong = 1,
            |seen, _, _| seen.memory.checked = 0,
            |seen, _, _| seen.clock.steps_back = 1,
            |seen, _, _| seen.clock_off_ms = -62.0,
            |seen, _, _| seen.clock_unsure_ms = 251.0,
            |_, _, server| server.connections = 2,
            |_, _, server| server.wrong = 1,
            |_, sender, _| sender.checksum = "cd".into(),
        ];
        for fault in faults {
            let (mut moves, mut sender, mut server) = good();
            fault(&mut moves[0], &mut sender, &mut server);
            let report = DemoReport::new(moves, sender, server);
            assert_eq!(report.verdicts.iter().filter(|verdict| !verdict.right).count(), 1, "{report}");
        }
    }
}
