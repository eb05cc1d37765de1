//! What is left of a move when a process has died: no memory, only a ledger that says who may run the VM. The two sides
//! speak the handover's last messages, and its table (docs/formats/handover.md) has one outcome.

use std::{
    io,
    net::TcpStream,
    os::fd::OwnedFd,
    sync::mpsc::sync_channel,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rebec_devices::Threads;
use rebec_migrate::{
    Record, Source, SourceInput, SourceOutput,
    frame::{Preamble, Role, VERSIONS},
    message::FromTarget,
};
use rebec_vmm_api::report::MoveReport;

use super::connection::{hang_up, read_messages, read_preamble, watch, write_control, write_preamble};

/// A target that stands says so at once.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// Who has the VM after all.
pub enum Settled {
    /// The target runs it.
    Moved(MoveReport),
    /// It is held here, at this epoch: start it from its disk.
    Mine {
        /// The epoch.
        epoch: u64,
        /// How that came.
        report: MoveReport,
    },
    /// Nobody knows yet.
    Waiting(MoveReport),
}

/// Asks the target at the other end of the first connection, for a source whose last record is `record` (`Granted`, or one
/// that holds, if an old target is to let go). `write` makes a record durable.
///
/// # Errors
/// When the connection does not lead to a target.
pub fn settle_source(
    record: Record,
    threads: &dyn Threads,
    connections: Vec<OwnedFd>,
    mut write: impl FnMut(Record) -> io::Result<()>,
) -> Result<Settled> {
    let streams = connections.len().saturating_sub(1).max(1) as u8;
    let control = TcpStream::from(connections.into_iter().next().context("no connection was passed")?);
    watch(&control)?;
    let mut engine = Source::restarted(record, Duration::ZERO);
    let preamble = Preamble { speaks: VERSIONS, role: Role::Control, streams, move_id: engine.move_id() };
    write_preamble(&control, &preamble).context("greet the target")?;
    read_preamble(&control).context("the target did not greet")?.agree(VERSIONS)?;
    let (sender, events) = sync_channel(16);
    let reading = control.try_clone()?;
    let body = move || {
        let reason = read_messages::<FromTarget>(&reading, |message| sender.send(SourceInput::Control(message)).is_ok());
        sender.send(SourceInput::Cut(reason)).unwrap_or_default();
    };
    let reader = threads.spawn("move-control", Box::new(body))?;
    let origin = Instant::now();
    engine.handle(Duration::ZERO, SourceInput::Reconnected);
    let mut mine = None;
    let settled = loop {
        let Some(output) = engine.poll_output() else {
            let left = ANSWER_TIME.saturating_sub(origin.elapsed());
            let input = events.recv_timeout(left).unwrap_or_else(|_| SourceInput::Cut("no answer in time".into()));
            engine.handle(origin.elapsed(), input);
            continue;
        };
        match output {
            SourceOutput::Control(bytes) => write_control(&control, &bytes),
            SourceOutput::WriteLedger(record) => {
                let written = write(record);
                let input = written.map_or_else(|error| SourceInput::LedgerFailed(error.to_string()), |()| SourceInput::LedgerWritten);
                engine.handle(origin.elapsed(), input);
            }
            SourceOutput::Resume { epoch } => mine = Some(epoch),
            SourceOutput::Waiting(report) => break Settled::Waiting(report),
            SourceOutput::Ended(report) => {
                let is_moved = report.outcome == rebec_vmm_api::report::Outcome::Moved;
                break match mine {
                    _ if is_moved => Settled::Moved(report),
                    epoch => Settled::Mine { epoch: epoch.unwrap_or(record.epoch), report },
                };
            }
            _ => {}
        }
    };
    hang_up(&control);
    drop(events);
    if reader.join().is_err() {
        log::error!("a thread of the move panicked");
    }
    Ok(settled)
}
