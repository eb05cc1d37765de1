//! The rounds: which units are still to send, which batches are with the workers, which frames are in flight. It decides
//! the form in which every unit travels; the order of a stream is the order in which its batches were read.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rebec_bits::BitSet;
use rebec_vmm_api::report::UnitCounts;

use super::{
    pace::Pace,
    sent::{LastSent, RUNS_MAX},
};
use crate::{
    frame::FrameHead,
    index::{Filter, Moved},
    page::{Digest, Form, Packed, Verdict},
    unit::{BATCH_BYTES, RUN_UNITS, Space, stream_of, take_batch},
};

/// Batches of one stream that workers may hold at a time: one is read while another is packed and a third is written.
pub const LANE_BATCHES_MAX: usize = 4;
/// Digests that must have been tried before the target's index may be found useless.
const DIGESTS_TRIED_MIN: u64 = 512;

/// Names a batch between engine and workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchId(pub u64);

/// A batch to copy and to judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBatch {
    /// Its name.
    pub id: BatchId,
    /// The stream that will carry it.
    pub stream: usize,
    /// Where its units are.
    pub space: Space,
    /// Their numbers, ascending.
    pub units: Vec<u64>,
}

/// A batch to pack and to write, or (if no unit needs to travel) to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendBatch {
    /// Its name.
    pub id: BatchId,
    /// The stream that carries it.
    pub stream: usize,
    /// The head of its frame; `None` means forget the batch.
    pub head: Option<FrameHead>,
    /// The form of each unit that was read.
    pub forms: Vec<Form>,
}

struct SpaceRounds {
    space: Space,
    todo: BitSet,
    sent: LastSent,
    /// Compared at the target, never written there: always sent as digests.
    read_only: bool,
}

/// One stream.
#[derive(Default)]
struct Lane {
    at_space: usize,
    at_run: u64,
    resend: VecDeque<(Space, u64)>,
    working: usize,
    next_sequence: u64,
    next_applied: u64,
    flights: VecDeque<Flight>,
}

/// A frame that the target has not applied, as far as is known.
struct Flight {
    space: Space,
    sent: Option<(u64, Duration)>,
    applied: bool,
    held: Vec<u64>,
    digests: Vec<Digest>,
}

struct Batch {
    stream: usize,
    space: Space,
    units: Vec<u64>,
    /// Wanted by the target: no digest will do.
    wanted: bool,
    /// Its place on the stream, once planned.
    sequence: Option<u64>,
}

/// What travelled in the round under way.
#[derive(Debug, Clone, Copy, Default)]
struct RoundCost {
    taken: u64,
    travelled: u64,
    with_bytes: u64,
    bytes: u64,
}

/// All that is on its way.
pub struct Rounds {
    spaces: Vec<SpaceRounds>,
    lanes: Vec<Lane>,
    batches: BTreeMap<BatchId, Batch>,
    next_batch: u64,
    round: u32,
    round_units: u64,
    is_final: bool,
    held: Filter,
    moved: Moved,
    digests_sent: u64,
    digests_wanted: u64,
    tables_room: usize,
    in_flight_bytes: u64,
    cost: RoundCost,
    /// Bytes a unit with bytes cost, and the part of dirty units that had to travel, in the last round that says something.
    learnt: (f64, f64),
    /// Memory and disks.
    pub counts: [UnitCounts; 2],
    /// Everything written to the streams.
    pub wire_bytes: u64,
}

impl Rounds {
    /// Before the first round. `spaces`: units and whether it is read-only, memory first.
    pub fn new(spaces: &[(u64, bool)], streams: usize) -> Self {
        let space = |(number, &(units, read_only)): (usize, &(u64, bool))| SpaceRounds {
            space: Space::from_number(number as u16).expect("invariant: a shape has at most DISKS_MAX disks"),
            todo: BitSet::new(units),
            sent: LastSent::new(units),
            read_only,
        };
        Self {
            spaces: spaces.iter().enumerate().map(space).collect(),
            lanes: std::iter::repeat_with(Lane::default).take(streams).collect(),
            batches: BTreeMap::new(),
            next_batch: 0,
            round: 0,
            round_units: 0,
            is_final: false,
            held: Filter::default(),
            moved: Moved::default(),
            digests_sent: 0,
            digests_wanted: 0,
            tables_room: RUNS_MAX,
            in_flight_bytes: 0,
            cost: RoundCost::default(),
            learnt: (crate::unit::UNIT_BYTES as f64, 1.0),
            counts: [UnitCounts::default(); 2],
            wire_bytes: 0,
        }
    }

    /// Nothing is sent any more: the tables, which may be large, are given back. What was counted stays.
    pub fn forget(&mut self) {
        for space in &mut self.spaces {
            (space.todo, space.sent) = (BitSet::default(), LastSent::new(0));
        }
        (self.held, self.moved) = (Filter::default(), Moved::default());
    }

    /// The target's filter has arrived.
    pub fn set_held(&mut self, held: Filter) {
        self.held = held;
    }

    /// Adds what is populated, or what became dirty; one set a space.
    pub fn add(&mut self, dirty: &[BitSet]) {
        for (space, dirty) in self.spaces.iter_mut().zip(dirty) {
            space.todo.union(dirty);
        }
    }

    /// Begins a pass over everything that was added.
    pub fn begin(&mut self, round: u32, is_final: bool) {
        if self.cost.taken > 0 {
            self.learn();
        }
        (self.round, self.is_final, self.round_units) = (round, is_final, self.remaining());
        self.cost = RoundCost::default();
        for lane in &mut self.lanes {
            (lane.at_space, lane.at_run) = (0, 0);
        }
    }

    fn learn(&mut self) {
        let RoundCost { taken, travelled, with_bytes, bytes } = self.cost;
        let each = if with_bytes > 0 { bytes as f64 / with_bytes as f64 } else { self.learnt.0 };
        // A tiny round says little about the part that changes.
        let part = if taken >= RUN_UNITS { travelled as f64 / taken as f64 } else { self.learnt.1 };
        self.learnt = (each, part);
    }

    /// Bytes that the units still to send will probably take, all with bytes.
    pub fn expected_bytes(&mut self) -> f64 {
        self.learn();
        let (each, part) = self.learnt;
        self.remaining() as f64 * each * part
    }

    /// Units still to read in this pass.
    pub fn remaining(&self) -> u64 {
        self.spaces.iter().map(|space| space.todo.len()).sum()
    }

    /// Units this pass began with.
    pub fn round_units(&self) -> u64 {
        self.round_units
    }

    /// Frames planned so far on each stream.
    pub fn frames(&self) -> Vec<u64> {
        self.lanes.iter().map(|lane| lane.next_sequence).collect()
    }

    /// Whether every unit of the pass is planned: nothing to read, nothing with the workers that has no place on its stream.
    pub fn is_planned(&self) -> bool {
        self.remaining() == 0
            && self.lanes.iter().all(|lane| lane.resend.is_empty())
            && self.batches.values().all(|batch| batch.sequence.is_some())
    }

    /// Whether every frame is applied and no unit is wanted.
    pub fn is_drained(&self) -> bool {
        self.is_planned() && self.batches.is_empty() && self.lanes.iter().all(|lane| lane.flights.is_empty())
    }

    /// The next batch to read, while less than `window_bytes` are in flight. What is with the workers counts as if it were incompressible.
    pub fn next_read(&mut self, window_bytes: u64) -> Option<ReadBatch> {
        if self.in_flight_bytes + (self.batches.len() * BATCH_BYTES) as u64 >= window_bytes.max(BATCH_BYTES as u64) {
            return None;
        }
        let by_load = (0..self.lanes.len()).filter(|&stream| self.lanes[stream].working < LANE_BATCHES_MAX);
        let mut streams: Vec<usize> = by_load.collect();
        streams.sort_by_key(|&stream| self.lanes[stream].working);
        streams.into_iter().find_map(|stream| self.next_read_on(stream))
    }

    fn next_read_on(&mut self, stream: usize) -> Option<ReadBatch> {
        let (space, units, wanted) = self.next_wanted(stream).or_else(|| self.next_todo(stream))?;
        let id = BatchId(self.next_batch);
        self.next_batch += 1;
        self.lanes[stream].working += 1;
        self.cost.taken += units.len() as u64;
        self.batches.insert(id, Batch { stream, space, units: units.clone(), wanted, sequence: None });
        Some(ReadBatch { id, stream, space, units })
    }

    fn next_wanted(&mut self, stream: usize) -> Option<(Space, Vec<u64>, bool)> {
        let resend = &mut self.lanes[stream].resend;
        let (space, _) = *resend.front()?;
        let mut units = vec![];
        while let Some(&(next, unit)) = resend.front()
            && next == space
            && units.len() < RUN_UNITS as usize
        {
            units.push(unit);
            resend.pop_front();
        }
        units.sort_unstable();
        units.dedup();
        Some((space, units, true))
    }

    fn next_todo(&mut self, stream: usize) -> Option<(Space, Vec<u64>, bool)> {
        let streams = self.lanes.len();
        let lane = &mut self.lanes[stream];
        // Disks first, memory last: memory changes faster, so its copy should be the youngest.
        while lane.at_space < self.spaces.len() {
            let index = (lane.at_space + 1) % self.spaces.len();
            let space = &mut self.spaces[index];
            let units = take_batch(&mut space.todo, stream, streams, &mut lane.at_run);
            if !units.is_empty() {
                return Some((space.space, units, false));
            }
            (lane.at_space, lane.at_run) = (lane.at_space + 1, 0);
        }
        None
    }

    /// A worker has copied and judged a batch: decide the form of each unit.
    pub fn prepared(&mut self, id: BatchId, verdicts: &[Verdict]) -> Option<SendBatch> {
        let mut batch = self.batches.remove(&id)?;
        let (stream, space) = (batch.stream, batch.space);
        let forms: Vec<Form> =
            batch.units.iter().zip(verdicts).map(|(&unit, &verdict)| self.form(space, unit, verdict, batch.wanted)).collect();
        self.count(space, &forms);
        if forms.iter().all(|form| *form == Form::Unchanged) {
            self.lanes[stream].working -= 1;
            return Some(SendBatch { id, stream, head: None, forms });
        }
        let lane = &mut self.lanes[stream];
        let sequence = lane.next_sequence;
        lane.next_sequence += 1;
        let held = batch.units.iter().zip(&forms).filter(|(_, form)| matches!(form, Form::Held(_))).map(|(&unit, _)| unit).collect();
        let digests = forms.iter().filter_map(|form| if let Form::Bytes(digest) = form { Some(*digest) } else { None }).collect();
        lane.flights.push_back(Flight { space, sent: None, applied: false, held, digests });
        batch.sequence = Some(sequence);
        self.batches.insert(id, batch);
        Some(SendBatch { id, stream, head: Some(FrameHead { space, round: self.round, sequence }), forms })
    }

    fn form(&mut self, space: Space, unit: u64, verdict: Verdict, wanted: bool) -> Form {
        let trusted = self.digests_sent < DIGESTS_TRIED_MIN || self.digests_wanted * 2 < self.digests_sent;
        let rounds = &mut self.spaces[usize::from(space.number())];
        if rounds.sent.is(unit, verdict) {
            return Form::Unchanged;
        }
        rounds.sent.set(unit, verdict, &mut self.tables_room);
        match verdict {
            Verdict::Zero => Form::Zero,
            Verdict::Content(digest) if rounds.read_only => Form::Held(digest),
            // Nothing may be left open when the VM is paused, so the last round asks nothing.
            Verdict::Content(digest) if wanted || self.is_final => Form::Bytes(digest),
            Verdict::Content(digest) if trusted && (self.held.contains(&digest) || self.moved.contains(&digest)) => {
                self.digests_sent += 1;
                Form::Held(digest)
            }
            Verdict::Content(digest) => Form::Bytes(digest),
        }
    }

    fn count(&mut self, space: Space, forms: &[Form]) {
        let counts = &mut self.counts[usize::from(space != Space::MEMORY)];
        for form in forms {
            match form {
                Form::Unchanged => counts.unchanged += 1,
                Form::Zero => counts.zero += 1,
                Form::Held(_) => counts.digest += 1,
                Form::Bytes(_) => self.cost.with_bytes += 1,
            }
            self.cost.travelled += u64::from(matches!(form, Form::Held(_) | Form::Bytes(_)));
        }
    }

    /// A worker has written a batch to its stream.
    pub fn sent(&mut self, id: BatchId, bytes: u64, packed: Packed, now: Duration, pace: &mut Pace) {
        let Some(batch) = self.batches.remove(&id) else { return };
        let idle = self.in_flight_bytes == 0;
        let lane = &mut self.lanes[batch.stream];
        lane.working -= 1;
        let first = lane.next_sequence - lane.flights.len() as u64;
        let flight = batch.sequence.and_then(|sequence| lane.flights.get_mut((sequence - first) as usize));
        if let Some(flight) = flight {
            flight.sent = Some((bytes, now));
        }
        let counts = &mut self.counts[usize::from(batch.space != Space::MEMORY)];
        counts.compressed += packed.compressed;
        counts.raw += packed.raw;
        self.wire_bytes += bytes;
        self.in_flight_bytes += bytes;
        self.cost.bytes += bytes;
        pace.sent(now, idle);
        self.retire(batch.stream, now, pace);
    }

    /// The target has applied a frame, or says what it needs of it.
    ///
    /// # Errors
    /// When it answers something that was not asked.
    pub fn applied(&mut self, stream: usize, sequence: u64, wanted: &[u64], now: Duration, pace: &mut Pace) -> Result<(), String> {
        let streams = self.lanes.len();
        let lane = self.lanes.get_mut(stream).ok_or("the target acknowledges a stream that does not exist")?;
        if sequence != lane.next_applied || sequence >= lane.next_sequence {
            return Err("the target acknowledges a frame out of order".into());
        }
        lane.next_applied += 1;
        let first = lane.next_sequence - lane.flights.len() as u64;
        let flight = lane.flights.get_mut((sequence - first) as usize).expect("invariant: frames leave the queue only when applied");
        flight.applied = true;
        let space = flight.space;
        if !wanted.iter().all(|unit| flight.held.contains(unit) && stream_of(*unit, streams) == stream) {
            return Err("the target wants a unit that did not travel as a digest".into());
        }
        for digest in flight.digests.drain(..) {
            self.moved.insert(digest);
        }
        self.digests_wanted += wanted.len() as u64;
        for &unit in wanted {
            self.spaces[usize::from(space.number())].sent.forget(unit);
            lane.resend.push_back((space, unit));
        }
        self.retire(stream, now, pace);
        Ok(())
    }

    /// Frames leave when both the worker and the target have spoken, which may happen in either order.
    fn retire(&mut self, stream: usize, now: Duration, pace: &mut Pace) {
        let flights = &mut self.lanes[stream].flights;
        while let Some(Flight { applied: true, sent: Some((bytes, at)), .. }) = flights.front() {
            self.in_flight_bytes -= bytes;
            pace.applied(now, *bytes, *at, self.in_flight_bytes == 0);
            flights.pop_front();
        }
    }
}
