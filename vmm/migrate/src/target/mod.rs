//! The side that will run the VM: an engine that decides where contents come from, when the machine is complete, and
//! whether the VM may run. It never sees a page, a socket or a clock. Inputs come from `vmm/process/src/moving/target.rs`.
//!
//! ```text
//! Empty -> Building -> Indexing -> Receiving -> Restoring -> Settling
//!          the machine  donors      frames of    all frames   ledger: PREPARED, then GRANTED, then RUNNING
//!          is made      and disks   all rounds   applied,     (or RELEASED; then it never runs here)
//!                                                none missing
//! ```
//! Up to Settling every failure ends this target and costs the VM nothing; so does a source that says nothing while it is its turn.

mod handover;
mod receiving;

use std::{collections::VecDeque, net::SocketAddrV4, time::Duration};

use self::{
    handover::{TargetAct, TargetHandover},
    receiving::Receiving,
};
use crate::{
    base::BaseName,
    frame::{Entry, FrameHead},
    index::{HELD_ENTRIES_MAX, Holder, Index, Place},
    ledger::{MoveId, Record, Right},
    message::{FromSource, FromTarget, HAVE_BYTES_MAX, Message, Shape, bounded},
    page::{Digest, Key},
    unit::units_of,
};

/// A source that says and sends nothing for so long while it is its turn is gone: nobody holds memory and disks here for ever.
const IDLE_TIME_MAX: Duration = Duration::from_secs(60);
/// What donors and disks hold is looked at for so long; the rest travels. The source waits for twice that.
const INDEX_TIME_MAX: Duration = Duration::from_secs(60);
/// Units of a holder that are judged by one request; a donor gives no more.
pub const INDEX_UNITS: u32 = crate::donor::DIGESTS_MAX;

/// What happened, from the driver.
#[derive(Debug)]
pub enum TargetInput {
    /// A message arrived.
    Control(FromSource),
    /// A connection broke, or what came over it was no message and no frame.
    Cut(String),
    /// Something local failed: a disk, a worker.
    Failed(String),
    /// The user of this side wants it gone.
    Cancel,
    /// To [`TargetOutput::Build`]: it stands.
    Built {
        /// Who may hold contents, in the order they are asked.
        holders: Vec<Holder>,
        /// Where each NIC's port listens.
        ports: Vec<SocketAddrV4>,
        /// For each disk, the name of the base that it shows all of: one that was never written here.
        bases: Vec<Option<BaseName>>,
    },
    /// To [`TargetOutput::Build`]: it cannot be built here.
    Unfit(String),
    /// To [`TargetOutput::Index`]: what the holder has there, and where to go on; `None` at its end or when it is gone.
    Indexed {
        /// First unit not looked at.
        next: Option<u64>,
        /// Units and digests of their contents.
        found: Vec<(u64, Digest)>,
    },
    /// To [`TargetOutput::Blank`] and [`TargetOutput::FlushNow`].
    Blanked,
    /// A frame arrived on a stream; the stream's worker waits for [`TargetOutput::Apply`].
    Frame {
        /// The stream.
        stream: usize,
        /// Its head.
        head: FrameHead,
        /// Its entries, which passed [`crate::frame::RawHead::entries`].
        entries: Vec<Entry>,
    },
    /// To [`TargetOutput::Apply`]: verified and written, but for these units, whose content was not found. An unverifiable frame is [`Self::Failed`].
    Applied {
        /// The stream.
        stream: usize,
        /// Units that came as digests and were not found.
        missed: Vec<u64>,
    },
    /// To [`TargetOutput::Flush`].
    Flushed,
    /// To [`TargetOutput::Restore`]: restored, and the disks flushed.
    Restored,
    /// To [`TargetOutput::WriteLedger`]: durable.
    LedgerWritten,
    /// To [`TargetOutput::WriteLedger`]: not written; the file was cut back to what it was.
    LedgerFailed(String),
    /// To [`TargetOutput::Run`]: the first vCPU runs.
    Started,
}

/// What to do, for the driver, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum TargetOutput {
    /// Write these bytes to the control connection.
    Control(Vec<u8>),
    /// Build the machine, paused and empty, or say why not.
    Build {
        /// What it is.
        shape: Shape,
        /// Key of the wire digests.
        key: Key,
    },
    /// Judge units of a holder.
    Index {
        /// Who.
        holder: Holder,
        /// First unit.
        first: u64,
        /// How many at most.
        count: u32,
    },
    /// Make ranges (first unit, count) of a disk zero. A read-only disk must be zero there already.
    Blank {
        /// Which disk.
        disk: usize,
        /// Where.
        ranges: Vec<(u64, u64)>,
    },
    /// Apply the frame that waits on this stream: `places` says for each entry where a held content may be copied from.
    /// On a disk the unit itself is looked at first. Every copy is verified; what fails is missed.
    Apply {
        /// The stream.
        stream: usize,
        /// One a entry.
        places: Vec<Option<Place>>,
    },
    /// Flush the disks, while frames go on arriving, so that little is left to flush when the VM is paused.
    Flush,
    /// Flush the disks now, and say [`TargetInput::Blanked`]: the source wants to know how long that takes.
    FlushNow,
    /// Restore the machine from `SavedMachine` bytes, still paused, and flush the disks: what is prepared is durable.
    Restore(Vec<u8>),
    /// Append a record and sync it.
    WriteLedger(Record),
    /// Let the vCPUs run.
    Run {
        /// The epoch it is held at.
        epoch: u64,
    },
    /// Nothing can be done before the source connects again: keep everything.
    Waiting {
        /// For the user.
        reason: String,
    },
    /// The VM runs here. The engine stays, to answer a source that did not hear it.
    Running {
        /// Its epoch.
        epoch: u64,
    },
    /// The VM will not run here.
    Ended {
        /// Why.
        reason: String,
    },
}

enum Phase {
    Empty,
    Building,
    Indexing { holders: VecDeque<Holder>, first: u64, since: Duration },
    Receiving,
    Restoring,
    Settling(TargetHandover),
    Ended,
}

/// The target engine.
pub struct Target {
    move_id: MoveId,
    phase: Phase,
    outputs: VecDeque<TargetOutput>,
    shape: Option<Shape>,
    streams: usize,
    index: Index,
    receiving: Option<Receiving>,
    granted: Option<Duration>,
    /// When the source was last heard, or its turn began.
    heard: Option<Duration>,
    /// The ledger's last record when this process started.
    last: Option<Record>,
}

impl Target {
    /// A target whose control connection named this move and so many streams.
    pub fn new(move_id: MoveId, streams: usize) -> Self {
        Self {
            move_id,
            phase: Phase::Empty,
            outputs: VecDeque::new(),
            shape: None,
            streams,
            index: Index::default(),
            receiving: None,
            granted: None,
            heard: None,
            last: None,
        }
    }

    /// Knows the ledger's last record, so that a source which never heard of a release is told again.
    pub fn remembering(self, last: Option<Record>) -> Self {
        Self { last, ..self }
    }

    /// Continues, without memory, from the ledger of a target that died; `None` if that says nothing about a move to here.
    pub fn restarted(record: Record) -> Option<Self> {
        let (settlement, actions) = TargetHandover::restarted(record)?;
        let mut target = Self::new(record.move_id, 1);
        target.phase = Phase::Settling(settlement);
        for action in actions {
            target.perform(action);
        }
        Some(target)
    }

    /// The move that every connection's preamble must name.
    pub fn move_id(&self) -> MoveId {
        self.move_id
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Duration, input: TargetInput) {
        // Whatever it is, the source was or is waited for until now.
        self.heard = Some(now);
        match input {
            TargetInput::Control(message) => self.message(now, message),
            TargetInput::Cut(reason) => self.cut(&reason),
            TargetInput::Failed(reason) => self.fail(&reason),
            TargetInput::Cancel => self.cancel(),
            TargetInput::Built { holders, ports, bases } => self.built(now, holders, ports, &bases),
            TargetInput::Unfit(reason) => {
                if matches!(self.phase, Phase::Building) {
                    self.send(&FromTarget::Refuse { reason: bounded(reason.clone()) });
                    self.end(reason);
                }
            }
            TargetInput::Indexed { next, found } => self.indexed(now, next, found),
            TargetInput::Blanked => {
                if matches!(self.phase, Phase::Receiving) {
                    self.send(&FromTarget::Blanked);
                }
            }
            TargetInput::Frame { stream, head, entries } => self.frame(stream, &head, entries),
            TargetInput::Applied { stream, missed } => self.applied(stream, missed),
            TargetInput::Flushed => {
                if let Some(receiving) = &mut self.receiving {
                    receiving.flushed();
                }
            }
            TargetInput::Restored => self.restored(),
            TargetInput::LedgerWritten => self.settle(TargetHandover::written),
            TargetInput::LedgerFailed(error) => self.settle(|settlement| settlement.write_failed(&error)),
            TargetInput::Started => self.started(now),
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<TargetOutput> {
        self.outputs.pop_front()
    }

    /// When a source whose turn it is has been silent for too long. One that was prepared waits for ever.
    pub fn next_deadline(&self) -> Option<Duration> {
        let is_its_turn = matches!(self.phase, Phase::Empty | Phase::Receiving);
        is_its_turn.then(|| self.heard.map_or(Duration::ZERO, |heard| heard + IDLE_TIME_MAX))
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        let Some(deadline) = self.next_deadline() else { return };
        match self.heard {
            None => self.heard = Some(now),
            Some(_) if now >= deadline => self.fail(&format!("the source has sent nothing for {} s", IDLE_TIME_MAX.as_secs())),
            Some(_) => {}
        }
    }

    /// Contents and units that it keeps tables of: none once the machine is complete.
    pub fn table_entries(&self) -> usize {
        self.index.len() + self.receiving.as_ref().map_or(0, Receiving::units) as usize
    }

    /// Whether the process has nothing to lose: no machine is complete here, or it was given back.
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    fn message(&mut self, now: Duration, message: FromSource) {
        match (&mut self.phase, message) {
            (Phase::Settling(settlement), message) => {
                let was_granted = settlement.is_granted();
                let actions = settlement.message(&message);
                if !was_granted && settlement.is_granted() {
                    self.granted = Some(now);
                }
                for action in actions {
                    self.perform(action);
                }
            }
            (Phase::Ended, FromSource::Resume { record }) => self.refuse_resume(&record),
            (Phase::Ended, _) => {}
            (_, FromSource::Abort { reason }) => self.end(format!("the source calls it off: {reason}")),
            (Phase::Empty, FromSource::OfferWithRoom { shape, key, memory_max_bytes }) => {
                let shape = Shape { memory_max_bytes: Some(memory_max_bytes), ..shape };
                self.message(now, FromSource::Offer { shape, key });
            }
            (Phase::Empty, FromSource::Offer { shape, key }) => {
                self.shape = Some(shape.clone());
                self.phase = Phase::Building;
                self.outputs.push_back(TargetOutput::Build { shape, key: Key(key) });
            }
            (Phase::Empty, FromSource::Resume { record }) => self.resumed_late(&record),
            (Phase::Receiving, FromSource::Blank { disk, ranges }) => self.blank(usize::from(disk), ranges),
            (Phase::Receiving, FromSource::Final { frames, saved }) => {
                let receiving = self.receiving.as_mut().expect("invariant: made before this phase");
                match receiving.finish(frames, saved) {
                    Ok(()) => self.see_whether_complete(),
                    Err(reason) => self.fail(reason),
                }
            }
            _ => self.fail("the source speaks out of turn"),
        }
    }

    /// A source resumes a move, and this process knows it at most from its ledger.
    fn resumed_late(&mut self, theirs: &Record) {
        let ours = self.last.filter(|last| last.right == Right::Released && (last.vm, last.move_id) == (theirs.vm, theirs.move_id));
        match ours {
            Some(Record { epoch, .. }) => {
                self.send(&FromTarget::Released { epoch });
                self.end(format!("epoch {epoch} was released here, and its source has been told; start again to receive a VM"));
            }
            None => {
                self.refuse_resume(theirs);
                self.end("its source resumes a move that is not known here".into());
            }
        }
    }

    fn refuse_resume(&mut self, record: &Record) {
        let reason = format!("nothing is known here of move {} of VM {}", record.move_id, record.vm);
        self.send(&FromTarget::Refuse { reason });
    }

    fn built(&mut self, now: Duration, holders: Vec<Holder>, ports: Vec<SocketAddrV4>, bases: &[Option<BaseName>]) {
        if let (Phase::Building, Some(shape)) = (&self.phase, &self.shape) {
            self.receiving = Some(Receiving::new(shape, self.streams));
            let on_base = shape.disks.iter().zip(bases).map(|(disk, base)| base.is_some() && disk.base == *base).collect();
            self.send(&FromTarget::Accept { ports, on_base });
            self.phase = Phase::Indexing { holders: holders.into(), first: 0, since: now };
            self.index_next(now);
        }
    }

    fn index_next(&mut self, now: Duration) {
        let Phase::Indexing { holders, first, since } = &self.phase else { return };
        let has_time = now.saturating_sub(*since) < INDEX_TIME_MAX;
        match holders.front() {
            Some(&holder) if has_time && self.index.len() < HELD_ENTRIES_MAX => {
                self.outputs.push_back(TargetOutput::Index { holder, first: *first, count: INDEX_UNITS });
            }
            _ => {
                self.phase = Phase::Receiving;
                self.announce();
            }
        }
    }

    fn indexed(&mut self, now: Duration, next: Option<u64>, found: Vec<(u64, Digest)>) {
        let Phase::Indexing { holders, first, .. } = &mut self.phase else { return };
        let Some(&holder) = holders.front() else { return };
        for (unit, digest) in found {
            self.index.insert(digest, Place { holder, unit }, HELD_ENTRIES_MAX);
        }
        match next.filter(|next| next > first) {
            Some(next) => *first = next,
            None => {
                holders.pop_front();
                *first = 0;
            }
        }
        self.index_next(now);
    }

    fn announce(&mut self) {
        let filter = self.index.filter();
        let filter_bytes = filter.bytes().len() as u32;
        if filter_bytes == 0 {
            return self.send(&FromTarget::Have { filter_bytes, offset: 0, bytes: vec![] });
        }
        for (number, piece) in filter.bytes().chunks(HAVE_BYTES_MAX).enumerate() {
            self.send(&FromTarget::Have { filter_bytes, offset: (number * HAVE_BYTES_MAX) as u32, bytes: piece.to_vec() });
        }
    }

    fn blank(&mut self, disk: usize, ranges: Vec<(u64, u64)>) {
        let units = self.shape.as_ref().and_then(|shape| shape.disks.get(disk)).map_or(0, |disk| units_of(disk.bytes));
        let mut next = 0;
        for &(first, count) in &ranges {
            let end = first.checked_add(count).filter(|&end| first >= next && count > 0 && end <= units);
            match end {
                Some(end) => next = end,
                None => return self.fail("the source names zeros outside a disk"),
            }
        }
        self.outputs.push_back(if ranges.is_empty() { TargetOutput::FlushNow } else { TargetOutput::Blank { disk, ranges } });
    }

    fn frame(&mut self, stream: usize, head: &FrameHead, entries: Vec<Entry>) {
        let (Phase::Receiving, Some(receiving)) = (&self.phase, &mut self.receiving) else {
            return self.fail("a frame arrives out of turn");
        };
        match receiving.arrived(stream, head, entries, &self.index) {
            Ok(places) => self.outputs.push_back(TargetOutput::Apply { stream, places }),
            Err(reason) => self.fail(reason),
        }
    }

    fn applied(&mut self, stream: usize, missed: Vec<u64>) {
        let (Phase::Receiving, Some(receiving)) = (&self.phase, &mut self.receiving) else { return };
        match receiving.applied(stream, &missed, &mut self.index) {
            Ok(sequence) => {
                if receiving.wants_flush() {
                    self.outputs.push_back(TargetOutput::Flush);
                }
                self.send(&FromTarget::Applied { stream: stream as u8, sequence, wanted: missed });
                self.see_whether_complete();
            }
            Err(reason) => self.fail(&reason),
        }
    }

    fn see_whether_complete(&mut self) {
        let Some(receiving) = &mut self.receiving else { return };
        match receiving.complete() {
            Ok(None) => {}
            Ok(Some(saved)) => {
                self.phase = Phase::Restoring;
                self.outputs.push_back(TargetOutput::Restore(saved));
            }
            Err(reason) => self.fail(&reason),
        }
    }

    fn restored(&mut self) {
        if let (Phase::Restoring, Some(shape)) = (&self.phase, &self.shape) {
            let record = Record { right: Right::Prepared, vm: shape.vm, epoch: shape.epoch + 1, move_id: self.move_id };
            let (settlement, write) = TargetHandover::begin(record);
            self.phase = Phase::Settling(settlement);
            // The engine lives as long as the VM does, to answer its source; what it knew of pages is needed no more.
            (self.receiving, self.index) = (None, Index::default());
            self.perform(write);
        }
    }

    fn started(&mut self, now: Duration) {
        if let (Phase::Settling(settlement), Some(shape)) = (&self.phase, &self.shape)
            && settlement.is_running()
        {
            let epoch = shape.epoch + 1;
            let after = self.granted.map_or(Duration::ZERO, |granted| now.saturating_sub(granted));
            self.send(&FromTarget::Running { epoch, after_grant_us: after.as_micros() as u64 });
            self.outputs.push_back(TargetOutput::Running { epoch });
        }
    }

    fn cut(&mut self, reason: &str) {
        match self.phase {
            Phase::Settling(_) => self.settle(|settlement| settlement.unanswered(reason)),
            Phase::Ended => {}
            _ => self.end(format!("the connection to the source is gone: {reason}")),
        }
    }

    fn cancel(&mut self) {
        match self.phase {
            Phase::Settling(_) => self.settle(TargetHandover::cancel),
            _ => self.fail("cancelled at the target"),
        }
    }

    fn fail(&mut self, reason: &str) {
        if !matches!(self.phase, Phase::Settling(_) | Phase::Ended) {
            self.send(&FromTarget::Abort { reason: bounded(reason.into()) });
            self.end(reason.into());
        }
    }

    fn settle(&mut self, step: impl FnOnce(&mut TargetHandover) -> Vec<TargetAct>) {
        if let Phase::Settling(settlement) = &mut self.phase {
            for action in step(settlement) {
                self.perform(action);
            }
        }
    }

    fn perform(&mut self, action: TargetAct) {
        match action {
            TargetAct::Write(record) => self.outputs.push_back(TargetOutput::WriteLedger(record)),
            TargetAct::Send(message) => self.send(&message),
            TargetAct::Run { epoch } => self.outputs.push_back(TargetOutput::Run { epoch }),
            // The settlement stays: it answers a source that has not heard of the release.
            TargetAct::Over { reason } => self.outputs.push_back(TargetOutput::Ended { reason }),
            TargetAct::Waiting { reason } => self.outputs.push_back(TargetOutput::Waiting { reason }),
        }
    }

    fn end(&mut self, reason: String) {
        self.phase = Phase::Ended;
        (self.receiving, self.index) = (None, Index::default());
        self.outputs.push_back(TargetOutput::Ended { reason });
    }

    fn send(&mut self, message: &FromTarget) {
        self.outputs.push_back(TargetOutput::Control(message.to_frame()));
    }
}
