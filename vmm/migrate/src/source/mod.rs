//! The side that runs the VM: an engine that decides what to send, when to pause, and when the right to run is given away.
//! It never sees a page, a socket or a clock. Inputs come from `vmm/process/src/moving/source.rs`, outputs go there.
//!
//! ```text
//! Offered -> Indexing -> Starting -> Blanking -> Round <-> Flushing, Looking -> Pausing -> Saving -> Collecting -> LastRound -> AwaitPrepared -> Settling -> Ended
//!            filter      dirty log    zeros of   |  all applied: have        |                   last dirty     all of it      PREPARED       ledger,
//!            arrives     runs         disks      |  disks flushed, then      |                   bits           is sent        arrives        GRANTED
//!                                                |  look at what is dirty    |
//!                                                +- too much: again          +- a cancel, a cut or a refusal up to here: the VM runs on
//! ```

mod handover;
mod pace;
mod rounds;
mod sent;
mod words;

use std::{collections::VecDeque, net::SocketAddrV4, time::Duration};

use rebec_bits::BitSet;
use rebec_vmm_api::{
    control::Progress,
    report::{MoveReport, Outcome},
};

use self::{
    handover::{SourceAct, SourceHandover},
    pace::{Bucket, Convergence, Pace, Step},
    rounds::Rounds,
};
pub use self::{
    pace::THROTTLE_PERCENT_MAX,
    rounds::{BatchId, LANE_BATCHES_MAX, ReadBatch, SendBatch},
    words::{SourceConfig, SourceInput, SourceOutput},
};
use crate::{
    frame::{ROOM_SINCE, VERSIONS},
    index::Filter,
    ledger::{MoveId, Record, Right},
    message::{BLANK_RANGES_MAX, FromSource, FromTarget, Message, Shape, bounded},
    page::{Key, Verdict},
    unit::{Space, units_of},
};

/// The target has to build the machine; then, as long again, to index what its donors hold.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(120);
/// A target that applies nothing for so long is gone; the VM runs on.
const APPLY_TIME_MAX: Duration = Duration::from_secs(30);
/// A switch that takes so long is undone: the VM runs on.
const SWITCH_TIME_MAX: Duration = Duration::from_secs(15);
/// When the user is told that a granted target has not answered. The wait itself has no end.
const GRANT_TIME_MAX: Duration = Duration::from_secs(10);

enum Phase {
    Offered,
    Indexing {
        filter: Vec<u8>,
        on_base: Vec<bool>,
    },
    Starting,
    Blanking {
        disk: usize,
        unit: u64,
        data: Vec<BitSet>,
        zeros: Vec<BitSet>,
    },
    Round,
    /// The target was asked to flush what the round wrote to its disks.
    Flushing {
        asked: Duration,
    },
    Looking,
    Pausing,
    Saving,
    Collecting {
        saved: Vec<u8>,
    },
    LastRound {
        saved: Vec<u8>,
    },
    AwaitPrepared,
    Settling(SourceHandover),
    Ended,
}

/// Moments of the move that the report is made of.
#[derive(Default)]
struct Moments {
    started: Duration,
    paused: Option<Duration>,
    granted: Option<Duration>,
    downtime: Option<Duration>,
}

/// The source engine.
pub struct Source {
    config: SourceConfig,
    phase: Phase,
    outputs: VecDeque<SourceOutput>,
    rounds: Rounds,
    round: u32,
    pace: Pace,
    bucket: Option<Bucket>,
    course: Convergence,
    predicted: Duration,
    deadline: Option<Duration>,
    moments: Moments,
    control_bytes: u64,
    is_waiting: bool,
    target_ports: Vec<SocketAddrV4>,
}

impl Source {
    /// Begins a move: the control connection stands and the preambles are exchanged.
    pub fn new(config: SourceConfig, now: Duration) -> Self {
        let disks = config.shape.disks.iter().map(|disk| (units_of(disk.bytes), disk.read_only));
        let spaces: Vec<(u64, bool)> = std::iter::once((config.shape.memory_units(), false)).chain(disks).collect();
        let mut source = Self {
            rounds: Rounds::new(&spaces, config.streams),
            phase: Phase::Offered,
            outputs: VecDeque::new(),
            round: 0,
            pace: Pace::default(),
            bucket: config.bytes_per_second_max.map(|cap| Bucket::new(cap, now)),
            course: Convergence::default(),
            predicted: Duration::ZERO,
            deadline: Some(now + ANSWER_TIME_MAX),
            moments: Moments { started: now, ..Moments::default() },
            control_bytes: 0,
            is_waiting: false,
            target_ports: vec![],
            config,
        };
        source.send(&FromSource::offer(source.config.shape.clone(), source.config.key.0));
        source
    }

    /// Continues, without memory, from the ledger of a source that died: its last record is `Granted` (the target must
    /// be asked), or `Holding` or `Running` (a target left over must let go). Feed [`SourceInput::Reconnected`] next.
    pub fn restarted(record: Record, now: Duration) -> Self {
        let shape = Shape {
            vm: record.vm,
            epoch: record.epoch,
            memory_bytes: 0,
            vcpus: 0,
            nets: vec![],
            disks: vec![],
            cpu_model: vec![],
            memory_max_bytes: None,
        };
        let config = SourceConfig {
            move_id: record.move_id,
            key: Key([0; 32]),
            shape,
            streams: 1,
            downtime_max: Duration::ZERO,
            bytes_per_second_max: None,
        };
        let mut source = Self::new(config, now);
        source.outputs.clear();
        source.control_bytes = 0;
        source.deadline = None;
        source.is_waiting = true;
        source.phase = Phase::Settling(SourceHandover::restarted(record));
        source
    }

    /// The oldest version of the protocol in which this machine can be spoken of.
    pub fn version_min(&self) -> u16 {
        if self.config.shape.memory_max_bytes.is_some() { ROOM_SINCE } else { VERSIONS.lowest }
    }

    /// The move that every connection's preamble names.
    pub fn move_id(&self) -> MoveId {
        self.config.move_id
    }

    /// Where the target's ports listen, once it has accepted.
    pub fn target_ports(&self) -> &[SocketAddrV4] {
        &self.target_ports
    }

    /// Whether the right to run was granted and its holder has not spoken.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Duration, input: SourceInput) {
        if matches!(self.phase, Phase::Ended) {
            return;
        }
        match input {
            SourceInput::Control(message) => self.message(now, message),
            SourceInput::Cut(reason) => self.cut(now, &reason),
            SourceInput::Reconnected => self.settle(now, SourceHandover::reconnected),
            SourceInput::Cancel => self.fail(now, "cancelled"),
            SourceInput::Failed(reason) => self.fail(now, &reason),
            SourceInput::Populated { data, zeros } => self.populated(now, data, zeros),
            SourceInput::Dirty(sets) => self.dirty(now, &sets),
            SourceInput::Prepared { id, verdicts } => self.prepared(id, &verdicts),
            SourceInput::Sent { id, bytes, packed } => {
                if let Some(bucket) = &mut self.bucket {
                    bucket.pay(bytes);
                }
                self.rounds.sent(id, bytes, packed, now, &mut self.pace);
            }
            SourceInput::Paused { stopped } => {
                if matches!(self.phase, Phase::Pausing) {
                    self.moments.paused = Some(stopped);
                    self.enter(Phase::Saving, SourceOutput::Save);
                }
            }
            SourceInput::Saved(saved) => {
                if matches!(self.phase, Phase::Saving) {
                    // Saving may write guest memory, so the last dirty bits are taken after it.
                    self.enter(Phase::Collecting { saved }, SourceOutput::TakeDirty);
                }
            }
            SourceInput::LedgerWritten => self.settle(now, SourceHandover::written),
            SourceInput::LedgerFailed(error) => self.settle(now, |settlement| settlement.write_failed(&error)),
        }
        self.advance(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<SourceOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::tick`] wants to be called, whatever happens.
    pub fn next_deadline(&self) -> Option<Duration> {
        let reading = matches!(self.phase, Phase::Round | Phase::LastRound { .. });
        let opens = self.bucket.as_ref().filter(|_| reading && self.rounds.remaining() > 0).map(Bucket::opens_at);
        [self.deadline, opens].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.deadline = None;
            match &self.phase {
                Phase::Ended => {}
                Phase::Settling(_) => self.settle(now, |settlement| settlement.unanswered("no answer in time")),
                Phase::Offered | Phase::Indexing { .. } | Phase::Starting | Phase::Blanking { .. } => {
                    self.fail(now, "the target did not get ready in time")
                }
                Phase::Round | Phase::Flushing { .. } | Phase::Looking => self.fail(now, "the target has applied nothing for 30 s"),
                _ => self.fail(now, "the switch took longer than 15 s"),
            }
        }
        self.advance(now);
    }

    /// Whether the move can still be called off.
    pub fn is_cancellable(&self) -> bool {
        !matches!(self.phase, Phase::Settling(_) | Phase::Ended)
    }

    /// How far it is, for people.
    pub fn progress(&self) -> Progress {
        let phase = match self.phase {
            Phase::Offered | Phase::Indexing { .. } => "preparing",
            Phase::Starting | Phase::Blanking { .. } | Phase::Round | Phase::Flushing { .. } | Phase::Looking => "rounds",
            Phase::Pausing | Phase::Saving | Phase::Collecting { .. } | Phase::LastRound { .. } | Phase::AwaitPrepared => "switching",
            Phase::Settling(_) if self.is_waiting => "waiting",
            Phase::Settling(_) => "switching",
            Phase::Ended => "ended",
        };
        Progress {
            phase: phase.into(),
            round: self.round + 1,
            remaining_units: self.rounds.remaining(),
            total_units: self.rounds.round_units(),
            wire_bytes: self.wire_bytes(),
            applied_mbit: (self.pace.rate() * 8.0 / 1e6) as u64,
            predicted_ms: self.predicted.as_millis() as u64,
        }
    }

    fn message(&mut self, now: Duration, message: FromTarget) {
        match (&mut self.phase, message) {
            (Phase::Ended, _) => {}
            (Phase::Settling(_), message) => self.settle(now, |settlement| settlement.message(&message)),
            (_, FromTarget::Refuse { reason }) => self.fail(now, &format!("the target refuses: {reason}")),
            (_, FromTarget::Abort { reason }) => self.fail(now, &format!("the target gave up: {reason}")),
            (_, FromTarget::Released { .. }) => {
                self.fail(now, "the target was still prepared for an older move and has let go of it now: start it again")
            }
            (Phase::Offered, FromTarget::Accept { ports, on_base }) => {
                let disks = &self.config.shape.disks;
                if on_base.len() != disks.len() || on_base.iter().zip(disks).any(|(&on_base, disk)| on_base && disk.base.is_none()) {
                    return self.fail(now, "the target names a base that is not the VM's");
                }
                self.target_ports = ports;
                self.deadline = Some(now + ANSWER_TIME_MAX);
                self.phase = Phase::Indexing { filter: vec![], on_base };
            }
            (Phase::Indexing { filter, on_base }, FromTarget::Have { filter_bytes, offset, bytes }) => {
                let whole = filter_bytes as usize;
                if !Filter::is_size(whole)
                    || offset as usize != filter.len()
                    || filter.len() + bytes.len() > whole
                    || (bytes.is_empty() && whole > 0)
                {
                    return self.fail(now, "the target's index is malformed");
                }
                filter.extend_from_slice(&bytes);
                self.deadline = Some(now + ANSWER_TIME_MAX);
                if filter.len() == whole {
                    let (filter, on_base) = (Filter::from_bytes(std::mem::take(filter)), std::mem::take(on_base));
                    self.rounds.set_held(filter);
                    self.enter(Phase::Starting, SourceOutput::StartDirty { on_base });
                }
            }
            (Phase::Blanking { .. }, FromTarget::Blanked) => self.blank(now),
            (Phase::Flushing { asked }, FromTarget::Blanked) => {
                self.pace.flushed(now.saturating_sub(*asked));
                self.deadline = Some(now + APPLY_TIME_MAX);
                self.enter(Phase::Looking, SourceOutput::TakeDirty);
            }
            (
                Phase::Round | Phase::Looking | Phase::LastRound { .. } | Phase::AwaitPrepared,
                FromTarget::Applied { stream, sequence, wanted },
            ) => {
                if matches!(self.phase, Phase::Round | Phase::Looking) {
                    self.deadline = Some(now + APPLY_TIME_MAX);
                } else if !wanted.is_empty() {
                    return self.fail(now, "the target wants content after everything was resolved");
                }
                if let Err(reason) = self.rounds.applied(usize::from(stream), sequence, &wanted, now, &mut self.pace) {
                    self.fail(now, &reason);
                }
            }
            (Phase::AwaitPrepared, FromTarget::Prepared { epoch }) if epoch == self.config.shape.epoch + 1 => {
                let record = Record { right: Right::Granted, vm: self.config.shape.vm, epoch, move_id: self.config.move_id };
                let (settlement, write) = SourceHandover::begin(record);
                self.phase = Phase::Settling(settlement);
                self.rounds.forget();
                self.deadline = Some(now + GRANT_TIME_MAX);
                self.perform(now, write);
            }
            _ => self.fail(now, "the target speaks out of turn"),
        }
    }

    fn populated(&mut self, now: Duration, data: Vec<BitSet>, zeros: Vec<BitSet>) {
        if matches!(self.phase, Phase::Starting) {
            let disks = data.iter().skip(1).zip(&zeros);
            self.rounds.counts[1].on_base = disks.map(|(data, zeros)| data.size() - data.len() - zeros.len()).sum();
            self.phase = Phase::Blanking { disk: 0, unit: 0, data, zeros };
            self.blank(now);
        }
    }

    /// Names the zeros of the disks, one bounded list at a time. Memory needs none: the target's is fresh.
    fn blank(&mut self, now: Duration) {
        let Phase::Blanking { disk, unit, data, zeros } = &mut self.phase else { return };
        while let Some(set) = zeros.get(*disk) {
            let mut ranges = vec![];
            while ranges.len() < BLANK_RANGES_MAX
                && let Some(range) = set.next_range(*unit)
            {
                *unit = range.end;
                ranges.push((range.start, range.end - range.start));
            }
            if !ranges.is_empty() {
                let message = FromSource::Blank { disk: *disk as u8, ranges };
                self.deadline = Some(now + ANSWER_TIME_MAX);
                return self.send(&message);
            }
            (*disk, *unit) = (*disk + 1, 0);
        }
        self.rounds.add(&std::mem::take(data));
        self.rounds.begin(0, false);
        self.phase = Phase::Round;
        self.deadline = Some(now + APPLY_TIME_MAX);
    }

    fn dirty(&mut self, now: Duration, sets: &[BitSet]) {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Looking => {
                self.rounds.add(sets);
                self.decide(now);
            }
            Phase::Collecting { saved } => {
                self.rounds.add(sets);
                self.round += 1;
                self.rounds.begin(self.round, true);
                self.phase = Phase::LastRound { saved };
            }
            other => self.phase = other,
        }
    }

    fn decide(&mut self, now: Duration) {
        let bytes = self.rounds.expected_bytes();
        self.predicted = self.pace.predicted_pause(bytes);
        if let Some(cap) = self.config.bytes_per_second_max {
            self.predicted = self.predicted.max(Duration::from_secs_f64((bytes / cap.max(1) as f64).min(1e6)));
        }
        match self.course.decide(self.round + 1, self.predicted, self.config.downtime_max) {
            Step::Switch => {
                self.deadline = Some(now + SWITCH_TIME_MAX.max(self.config.downtime_max * 3));
                self.enter(Phase::Pausing, SourceOutput::Pause);
            }
            Step::Round { throttle } => {
                self.outputs.extend(throttle.map(SourceOutput::Throttle));
                self.round += 1;
                self.rounds.begin(self.round, false);
                self.phase = Phase::Round;
                self.deadline = Some(now + APPLY_TIME_MAX);
            }
            Step::GiveUp { reason } => {
                self.phase = Phase::Looking;
                self.fail(now, &reason);
            }
        }
    }

    fn prepared(&mut self, id: BatchId, verdicts: &[Verdict]) {
        if let Some(batch) = self.rounds.prepared(id, verdicts) {
            self.outputs.push_back(SourceOutput::Send(batch));
        }
    }

    /// Reads on, and sees whether a round has ended.
    fn advance(&mut self, now: Duration) {
        if !matches!(self.phase, Phase::Round | Phase::LastRound { .. }) {
            return;
        }
        while self.bucket.as_mut().is_none_or(|bucket| bucket.is_open(now)) {
            let Some(batch) = self.rounds.next_read(self.pace.window_bytes()) else { break };
            self.outputs.push_back(SourceOutput::Read(batch));
        }
        if matches!(self.phase, Phase::Round) && self.rounds.is_drained() {
            self.look(now);
        } else if let Phase::LastRound { saved } = &mut self.phase
            && self.rounds.is_planned()
        {
            let message = FromSource::Final { frames: self.rounds.frames(), saved: std::mem::take(saved) };
            self.phase = Phase::AwaitPrepared;
            self.send(&message);
        }
    }

    /// A round is over. Disks are flushed before it is seen what is dirty: how long that takes is part of a pause, and little is left for it then.
    /// Zeros of no range ask for it: an older target answers at once.
    fn look(&mut self, now: Duration) {
        match self.config.shape.disks.iter().position(|disk| !disk.read_only) {
            Some(disk) => {
                self.phase = Phase::Flushing { asked: now };
                self.deadline = Some(now + APPLY_TIME_MAX);
                self.send(&FromSource::Blank { disk: disk as u8, ranges: vec![] });
            }
            None => self.enter(Phase::Looking, SourceOutput::TakeDirty),
        }
    }

    fn cut(&mut self, now: Duration, reason: &str) {
        match self.phase {
            Phase::Settling(_) => self.settle(now, |settlement| settlement.unanswered(reason)),
            _ => self.fail(now, &format!("the connection to the target is gone: {reason}")),
        }
    }

    /// Before the grant every failure ends the same way: the VM runs on here. After it, none does.
    fn fail(&mut self, now: Duration, reason: &str) {
        if !self.is_cancellable() {
            return;
        }
        self.send(&FromSource::Abort { reason: bounded(reason.into()) });
        if self.course.throttle() > 0 {
            self.outputs.push_back(SourceOutput::Throttle(0));
        }
        let paused = matches!(
            self.phase,
            Phase::Pausing | Phase::Saving | Phase::Collecting { .. } | Phase::LastRound { .. } | Phase::AwaitPrepared
        );
        if paused {
            self.outputs.push_back(SourceOutput::Resume { epoch: self.config.shape.epoch });
        }
        self.end(now, Outcome::Failed, Some(reason.into()));
    }

    fn settle(&mut self, now: Duration, step: impl FnOnce(&mut SourceHandover) -> Vec<SourceAct>) {
        if let Phase::Settling(settlement) = &mut self.phase {
            for action in step(settlement) {
                self.perform(now, action);
            }
        }
    }

    fn perform(&mut self, now: Duration, action: SourceAct) {
        match action {
            SourceAct::Write(record) => self.outputs.push_back(SourceOutput::WriteLedger(record)),
            SourceAct::Send(message) => {
                if matches!(message, FromSource::Granted { .. }) {
                    self.moments.granted.get_or_insert(now);
                }
                self.is_waiting = false;
                self.deadline = Some(now + GRANT_TIME_MAX);
                self.send(&message);
            }
            SourceAct::Moved { after_grant_us } => {
                self.measure_downtime(now, Duration::from_micros(after_grant_us));
                self.end(now, Outcome::Moved, None);
            }
            SourceAct::Back { epoch } => {
                if self.course.throttle() > 0 {
                    self.outputs.push_back(SourceOutput::Throttle(0));
                }
                if epoch == self.config.shape.epoch {
                    self.send(&FromSource::Abort { reason: "the source's ledger cannot be written".into() });
                }
                self.outputs.push_back(SourceOutput::Resume { epoch });
                let reason = format!("the target did not run the VM: it runs on at the source, at epoch {epoch}");
                self.end(now, Outcome::Failed, Some(reason));
            }
            SourceAct::Dismissed => {
                let reason = "the VM is held here; the target of an older move has let go of it".to_owned();
                self.end(now, Outcome::Failed, Some(reason));
            }
            SourceAct::Waiting { reason } => {
                if !std::mem::replace(&mut self.is_waiting, true) {
                    self.deadline = None;
                    let report = self.report(now, Outcome::Waiting, Some(reason));
                    self.outputs.push_back(SourceOutput::Waiting(report));
                }
            }
        }
    }

    /// Last vCPU stopped here to first vCPU running there, without a common clock: what this side measured up to the
    /// grant, what the target measured after it, and half of the rest of the round trip between grant and answer.
    fn measure_downtime(&mut self, now: Duration, after_grant: Duration) {
        let (Some(paused), Some(granted)) = (self.moments.paused, self.moments.granted) else { return };
        let on_the_way = now.saturating_sub(granted).saturating_sub(after_grant) / 2;
        let bound = now.saturating_sub(paused);
        self.moments.downtime = Some((granted.saturating_sub(paused) + on_the_way + after_grant).min(bound));
    }

    fn end(&mut self, now: Duration, outcome: Outcome, reason: Option<String>) {
        let report = self.report(now, outcome, reason);
        self.outputs.push_back(SourceOutput::Ended(report));
        self.phase = Phase::Ended;
        self.deadline = None;
    }

    fn report(&self, now: Duration, outcome: Outcome, reason: Option<String>) -> MoveReport {
        let shape = &self.config.shape;
        let downtime = self.moments.downtime.or(self.moments.paused.map(|paused| now.saturating_sub(paused)));
        MoveReport {
            outcome,
            reason,
            total_ms: now.saturating_sub(self.moments.started).as_millis() as u64,
            downtime_ms: downtime.unwrap_or_default().as_millis() as u64,
            wire_bytes: self.wire_bytes(),
            rounds: self.round + 1,
            streams: self.config.streams as u32,
            pages: self.rounds.counts[0],
            clusters: self.rounds.counts[1],
            memory_bytes: shape.memory_bytes,
            disk_bytes: shape.disks.iter().map(|disk| disk.bytes).sum(),
        }
    }

    fn wire_bytes(&self) -> u64 {
        self.rounds.wire_bytes + self.control_bytes
    }

    fn enter(&mut self, phase: Phase, output: SourceOutput) {
        self.phase = phase;
        self.outputs.push_back(output);
    }

    fn send(&mut self, message: &FromSource) {
        let frame = message.to_frame();
        self.control_bytes += frame.len() as u64;
        self.outputs.push_back(SourceOutput::Control(frame));
    }

    /// Units of a space, for the driver's buffers.
    pub fn units(&self, space: Space) -> u64 {
        match space.disk_index() {
            None => self.config.shape.memory_units(),
            Some(index) => self.config.shape.disks.get(index).map_or(0, |disk| units_of(disk.bytes)),
        }
    }
}
