//! What the trade demo saw, and whether it is as it should be.

use std::{fmt, time::Duration};

use serde::Serialize;
use serde_json::Value;

use super::queue::Tally;
use crate::demo::report::Verdict;

/// From the queue's word until a borrowed node runs a job, its boot apart; a quiet machine's target, and what a busy one may take.
const FIRST_JOB_S: (f64, f64) = (2.0, 10.0);
/// From the lender's word until its machine is free, beside the move itself.
const RECALL_S: (f64, f64) = (1.0, 5.0);
/// What must be in the audit logs, granted.
const AUDITED: [&str; 6] = ["PolicySet", "DemandSet", "ContractSign", "ContractRecall", "ContractEnd", "VmCreate"];

/// All that was seen.
pub struct Seen {
    /// Contracts that were active at once.
    pub agreed: usize,
    /// As their lender knows them, at the end.
    pub contracts: Vec<ContractSeen>,
    /// The lender's account.
    pub lent: Vec<Value>,
    /// The borrower's.
    pub borrowed: Vec<Value>,
    /// What was asked of the brokers' hosts, and whether it was granted.
    pub audit: Vec<(String, bool)>,
    /// What `rebec why` says of a borrowed node.
    pub why: String,
    /// The report of the move home.
    pub moved: Value,
    /// Of jobs.
    pub jobs: Tally,
    /// From the jobs' submission.
    pub first_job: Duration,
    /// Of it, a node's boot.
    pub boot: Duration,
    /// From the lender's demand to its machine.
    pub recall: Duration,
    /// What rebec-elastic said.
    pub told: String,
}

/// One contract.
#[derive(Debug, Serialize)]
pub struct ContractSeen {
    /// Its first digits.
    pub id: String,
    /// The machine.
    pub host: String,
    /// What both sides said.
    pub words: Vec<String>,
    /// Work that was lost, in seconds.
    pub wasted_s: u64,
}

impl ContractSeen {
    /// From `rebec contract ls`.
    pub fn of(contract: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let words = contract["words"].as_array().cloned().unwrap_or_default();
        Self {
            id: text(&contract["id"]).chars().take(8).collect(),
            host: text(&contract["host"]),
            words: words.iter().map(|word| format!("{} {}: {}", text(&word["by"]), text(&word["what"]), text(&word["why"]))).collect(),
            wasted_s: words.iter().filter_map(|word| word["wasted_s"].as_u64()).sum(),
        }
    }
}

/// The report.
#[derive(Debug, Serialize)]
pub struct TradeReport {
    /// Contracts, with what was said of them.
    pub contracts: Vec<ContractSeen>,
    /// Rows of both audit logs.
    pub audit_rows: usize,
    /// Hours that machines were lent.
    pub node_hours: f64,
    /// What they cost, in thousandths.
    pub cost_milli: u64,
    /// Bytes that moved home with a VM.
    pub moved_bytes: u64,
    /// Of how many of memory.
    pub memory_bytes: u64,
    /// Seconds of the move, first to last.
    pub move_s: f64,
    /// Seconds from the jobs' submission to the first that runs on a borrowed node, boot included.
    pub first_job_s: f64,
    /// Of them, a node's boot.
    pub boot_s: f64,
    /// Seconds from the lender's demand to its free machine.
    pub recall_s: f64,
    /// Jobs that ended well.
    pub jobs_done: usize,
    /// Jobs that were lost.
    pub jobs_lost: usize,
    /// What is right and what is not.
    pub verdicts: Vec<Verdict>,
}

impl TradeReport {
    /// Judges what was seen.
    pub fn new(seen: Seen) -> Self {
        let mut verdicts = vec![];
        let mut judge = |what: &str, right: bool, seen: String| verdicts.push(Verdict { what: what.to_owned(), right, seen });
        let sum = |lines: &[Value], field: &str| lines.iter().filter_map(|line| line[field].as_u64()).sum::<u64>();
        let Tally { done, lost, open } = seen.jobs;
        judge("no job is lost", (done, lost, open) == (3, 0, 0), format!("{done} done, {lost} lost, {open} open"));
        judge("two machines were borrowed at once", seen.agreed == 2, format!("{} contracts were active", seen.agreed));
        let recalled = seen.contracts.iter().filter(|one| one.words.iter().any(|word| word.starts_with("lender recalled"))).count();
        let ended = seen.contracts.iter().filter(|one| one.words.iter().any(|word| word.starts_with("borrower ended"))).count();
        judge(
            "one was called back, and both were given back",
            (recalled, ended) == (1, 2),
            format!("{recalled} recalled, {ended} given back"),
        );
        let moved = seen.moved["outcome"].as_str().unwrap_or("no report").to_owned();
        judge("the called back node moved home", moved == "moved", moved.clone());
        let wasted = sum(&seen.lent, "wasted_s") + sum(&seen.borrowed, "wasted_s");
        judge("no work is wasted in either account", wasted == 0, format!("{wasted} s"));
        let facts = |lines: &[Value]| {
            let mut facts: Vec<String> =
                lines.iter().map(|line| format!("{} {} {}", line["contract"], line["seconds"], line["cost_milli"])).collect();
            facts.sort();
            facts
        };
        judge(
            "both accounts agree",
            facts(&seen.lent) == facts(&seen.borrowed),
            format!("{} lines and {}", seen.lent.len(), seen.borrowed.len()),
        );
        let missing: Vec<&str> = AUDITED.into_iter().filter(|asked| !seen.audit.contains(&((*asked).to_owned(), true))).collect();
        judge(
            "each decision is in an audit log",
            missing.is_empty(),
            format!("{} rows; missing: {}", seen.audit.len(), missing.join(", ")),
        );
        judge("`rebec why` names the contract", seen.why.contains("it is there by contract"), seen.why.chars().take(160).collect());
        let (move_ms, wire) = (seen.moved["total_ms"].as_u64().unwrap_or(0), seen.moved["wire_bytes"].as_u64().unwrap_or(0));
        let (first, boot, recall) = (seen.first_job.as_secs_f64(), seen.boot.as_secs_f64(), seen.recall.as_secs_f64());
        let apart = (first - boot).max(0.0);
        judge(
            "the first job on a borrowed node",
            apart < FIRST_JOB_S.1,
            format!("after {apart:.2} s and {boot:.2} s of boot; {} s on a quiet machine", FIRST_JOB_S.0),
        );
        let move_s = move_ms as f64 / 1000.0;
        let beside = recall - move_s;
        judge(
            "a machine is back after the move's time",
            beside < RECALL_S.1,
            format!("{recall:.2} s, {move_s:.2} s of them the move; {} s more on a quiet machine", RECALL_S.0),
        );
        let complaints: Vec<&str> = seen.told.lines().filter(|line| line.contains("not told") || line.contains("panicked")).collect();
        judge("rebec-elastic had no complaint", complaints.is_empty(), complaints.first().copied().unwrap_or("none").to_owned());
        Self {
            audit_rows: seen.audit.len(),
            node_hours: sum(&seen.lent, "seconds") as f64 / 3600.0,
            cost_milli: sum(&seen.lent, "cost_milli"),
            moved_bytes: wire,
            memory_bytes: seen.moved["memory_bytes"].as_u64().unwrap_or(0),
            move_s,
            first_job_s: first,
            boot_s: boot,
            recall_s: recall,
            jobs_done: done,
            jobs_lost: lost,
            contracts: seen.contracts,
            verdicts,
        }
    }

    /// Whether all of it holds.
    pub fn is_right(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.right)
    }
}

impl fmt::Display for TradeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for contract in &self.contracts {
            writeln!(f, "contract {} about {}, {} s of work lost", contract.id, contract.host, contract.wasted_s)?;
            contract.words.iter().try_for_each(|word| writeln!(f, "  {word}"))?;
        }
        writeln!(f, "audit rows            {}", self.audit_rows)?;
        writeln!(f, "node-hours lent       {:.4}, for {} thousandths", self.node_hours, self.cost_milli)?;
        writeln!(f, "moved                 {:.1} MiB for {} MiB of memory", self.moved_bytes as f64 / 1048576.0, self.memory_bytes >> 20)?;
        writeln!(f, "jobs                  {} done, {} lost", self.jobs_done, self.jobs_lost)?;
        writeln!(f, "demand to first job   {:.2} s, of which {:.2} s a node's boot", self.first_job_s, self.boot_s)?;
        writeln!(f, "recall to machine     {:.2} s, of which {:.2} s the move", self.recall_s, self.move_s)?;
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
