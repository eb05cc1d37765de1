//! `ctl migrate`: connects to the target, hands the connections to the VM, shows how far it is, and reports the outcome.
//!
//! The VM is sealed and connects nothing, so the connections are made here and passed to it: the first for control, the
//! others as streams. Once it has them, this process only listens; ending it does not end the move (`ctl cancel` does).

use std::{
    io::{self, IsTerminal, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use rebec_vmm_api::{
    MoveReport, Outcome, UnitCounts,
    control::{Answer, Command, MigrateOptions, Progress, Status, VmState},
};

use super::{CtlError, client::Client, show};
use crate::cli::MigrateTo;

/// How long each connection to the target may take: twenty slow round trips, less than a person waits for nothing.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Between two progress lines where they cannot replace each other.
const PLAIN_PERIOD: Duration = Duration::from_secs(1);

/// Moves the VM and ends with one JSON object on standard output, unless the outcome is unknown.
pub fn run(client: &mut Client, to: &MigrateTo) -> Result<ExitCode, CtlError> {
    let began = Instant::now();
    let status = client.status()?;
    if !status.ledger {
        eprintln!("rebec-vmm: this VM keeps no ledger: a crash of both sides while it moves is not covered; give both --ledger FILE");
    }
    let report = match attempt(client, to) {
        Ok(report) => report,
        // The VM was not touched: that is an outcome, and scripts get their object.
        Err(error @ (CtlError::Target { .. } | CtlError::Refused { .. })) => not_begun(&error, &status, to, began.elapsed()),
        Err(error) => return Err(error),
    };
    if let Some(reason) = &report.reason {
        eprintln!("rebec-vmm: migrate to {}: {reason}", to.to);
    }
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(ExitCode::from(report.outcome.exit_code()))
}

fn attempt(client: &mut Client, to: &MigrateTo) -> Result<MoveReport, CtlError> {
    let connections = connect(to.to, 1 + usize::from(to.streams))?;
    let passed: Vec<_> = connections.iter().map(AsFd::as_fd).collect();
    let options = MigrateOptions {
        streams: to.streams,
        downtime_ms_max: to.downtime_max_ms,
        bandwidth_mbit_max: to.bandwidth_max_mbit,
        clock_ahead_ms: 0,
    };
    let mut line = ProgressLine::new();
    let answer = client.ask_patiently("migrate", Command::Migrate(options), &passed, |progress| line.show(progress));
    line.end();
    match answer? {
        Answer::Moved(report) => Ok(report),
        _ => Err(CtlError::Unexpected { what: "migrate" }),
    }
}

fn connect(to: SocketAddr, count: usize) -> Result<Vec<TcpStream>, CtlError> {
    let one = || {
        let stream = TcpStream::connect_timeout(&to, CONNECT_TIME)?;
        // Small messages of the handover wait for nobody.
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    (0..count).map(|_| one()).collect::<io::Result<_>>().map_err(|source| CtlError::Target { to, source })
}

fn not_begun(error: &CtlError, status: &Status, to: &MigrateTo, elapsed: Duration) -> MoveReport {
    let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    // A VM that waits for its target runs on nowhere that is known here, whatever became of this attempt.
    let outcome = if status.state == VmState::Waiting { Outcome::Waiting } else { Outcome::Failed };
    MoveReport {
        outcome,
        reason: Some(format!("{error}{cause}")),
        total_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        downtime_ms: 0,
        wire_bytes: 0,
        rounds: 0,
        streams: u32::from(to.streams),
        pages: UnitCounts::default(),
        clusters: UnitCounts::default(),
        memory_bytes: status.memory_bytes,
        disk_bytes: status.disk_bytes.iter().sum(),
    }
}

/// One line that is rewritten on a terminal, and one line a second elsewhere.
struct ProgressLine {
    rewrite: bool,
    shown: Option<(Instant, String)>,
}

impl ProgressLine {
    fn new() -> Self {
        Self { rewrite: io::stderr().is_terminal(), shown: None }
    }

    fn show(&mut self, progress: &Progress) {
        let now = Instant::now();
        let due = self.shown.as_ref().is_none_or(|(at, phase)| *phase != progress.phase || now.duration_since(*at) >= PLAIN_PERIOD);
        if self.rewrite {
            // Return to the first column and erase what the longer line before may have left.
            eprint!("\r{}\x1b[K", show::progress(progress));
        } else if due {
            eprintln!("{}", show::progress(progress));
        } else {
            return;
        }
        self.shown = Some((now, progress.phase.clone()));
    }

    fn end(&self) {
        if self.rewrite && self.shown.is_some() {
            eprintln!();
        }
    }
}
