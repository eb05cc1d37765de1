//! How far long work is, and what a move cost.

use rebec_api::job::JobProgress;
use rebec_vmm_api::{MoveReport, UnitCounts};

use super::{count, printable, size, table::pairs};

/// Bytes of one unit of a move.
const UNIT_BYTES: u64 = 4096;

/// The share that is done; empty when the whole is not known.
pub fn percent(progress: &JobProgress) -> String {
    let JobProgress { done_bytes, total_bytes, .. } = progress;
    let share = u128::from(*done_bytes) * 100 / u128::from((*total_bytes).max(1));
    if *total_bytes == 0 { String::new() } else { format!("{}%", share.min(100)) }
}

/// One line that says how far a job is.
pub fn progress(progress: &JobProgress) -> String {
    let phase = printable(&progress.phase);
    match (progress.done_bytes, progress.total_bytes) {
        (0, 0) => phase,
        (done, 0) => format!("{phase}: {}", size(done)),
        (done, total) => format!("{phase}: {} of {} ({})", size(done), size(total), percent(progress)),
    }
}

/// What a move did, for people. `from` and `to` are hosts.
pub fn moved(vm: &str, from: &str, to: &str, report: &MoveReport) -> String {
    let MoveReport { total_ms, downtime_ms, wire_bytes, memory_bytes, disk_bytes, rounds, streams, .. } = report;
    let ways = format!("{}, {}", count((*rounds).into(), "round"), count((*streams).into(), "stream"));
    let disk = if *disk_bytes == 0 { String::new() } else { format!(" and {} of disk", size(*disk_bytes)) };
    let head = format!("vm {} moved from {} to {}\n", printable(vm), printable(from), printable(to));
    let mut lines = vec![
        ("took", format!("{}, paused for {downtime_ms} ms", seconds(*total_ms))),
        ("sent", format!("{} for {} of memory{disk} ({ways})", size(*wire_bytes), size(*memory_bytes))),
    ];
    lines.extend(units(&report.pages).map(|text| ("memory", text)));
    lines.extend(units(&report.clusters).map(|text| ("disk", text)));
    head + &pairs(&lines).lines().map(|line| format!("  {line}\n")).collect::<String>()
}

/// What became of memory or a disk: only the forms that occurred, the dear ones first.
fn units(counts: &UnitCounts) -> Option<String> {
    let UnitCounts { unchanged, zero, digest, compressed, raw, on_base } = *counts;
    let forms = [
        (raw, "sent as it is"),
        (compressed, "compressed"),
        (digest, "already there"),
        (on_base, "of the image"),
        (zero, "zero"),
        (unchanged, "unchanged"),
    ];
    let said: Vec<String> = forms
        .into_iter()
        .filter(|(units, _)| *units > 0)
        .map(|(units, form)| format!("{} {form}", size(units.saturating_mul(UNIT_BYTES))))
        .collect();
    (!said.is_empty()).then(|| said.join(", "))
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100)
}
