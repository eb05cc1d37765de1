//! Source and target in one process: a fake network, workers, ledgers and machines around the two real engines. Events are
//! ordered by time and then by birth, and all chance comes from one seed, so a seed replays a run.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod machine;
mod sides;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rebec_migrate::{
    MoveId, Record, Source, SourceConfig, SourceInput, Target, TargetInput, VmId,
    base::BaseName,
    ledger::{self, Decision, Right},
    message::{DiskShape, FromSource, FromTarget, MESSAGE_HEAD_BYTES, Message, MessageHead, NetShape, Shape},
    page::{Key, Packer, Unpacker},
    source::{BatchId, LANE_BATCHES_MAX},
};
use rebec_vmm_api::report::MoveReport;

pub use machine::{Machine, Rng};

pub const KEY: Key = Key([42; 32]);
pub const VM: VmId = VmId([7; 16]);
pub const MOVE: MoveId = MoveId([9; 16]);
pub const EPOCH: u64 = 5;

#[derive(Debug, Clone)]
pub enum Fault {
    Cut { at: Duration },
    Cancel { at: Duration },
    Flip { message: u64, byte: u64 },
    Double { message: u64 },
}

/// What the disks stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Nothing that has a name.
    None,
    /// The same at both sides.
    Same,
    /// Another at the target.
    Other,
}

impl Base {
    fn at_source(self) -> Option<BaseName> {
        (self != Self::None).then_some(BaseName([1; 32]))
    }

    pub fn at_target(self) -> Option<BaseName> {
        (self != Self::None).then_some(BaseName(if self == Self::Same { [1; 32] } else { [2; 32] }))
    }
}

/// One run, drawn from a seed.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub streams: usize,
    pub memory_units: u64,
    pub disk_units: Vec<u64>,
    pub guest_writes: u64,
    pub donor_share: u64,
    pub donor_changes: bool,
    pub base: Base,
    pub bytes_per_ms: u64,
    pub delay_ms: u64,
    pub downtime_max: Duration,
    /// What the target's disks take to be flushed.
    pub flush: Duration,
    pub fault: Option<Fault>,
}

impl Plan {
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            seed,
            streams: 1 + rng.below(4) as usize,
            memory_units: 100 + rng.below(150),
            disk_units: (0..rng.below(3)).map(|_| 20 + rng.below(60)).collect(),
            guest_writes: rng.below(4),
            donor_share: rng.below(3) * 30,
            donor_changes: rng.below(2) == 0,
            base: [Base::None, Base::Same, Base::Other][seed as usize % 3],
            bytes_per_ms: 2000 + rng.below(20_000),
            delay_ms: rng.below(20),
            downtime_max: Duration::from_millis(150),
            flush: Duration::from_millis(rng.below(6)),
            fault: None,
        }
    }

    /// The smallest machine, for enumerations.
    pub fn tiny() -> Self {
        let disk_units = vec![];
        Self { streams: 1, memory_units: 8, disk_units, guest_writes: 0, donor_share: 0, delay_ms: 5, ..Self::random(1) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Target,
}

/// What may happen next.
pub enum Event {
    Source(SourceInput),
    Target(TargetInput),
    /// The source's worker of a stream does its next piece of work.
    Work {
        stream: usize,
    },
    ToSource(Vec<u8>),
    ToTarget(Vec<u8>),
    Frame {
        stream: usize,
        bytes: Vec<u8>,
    },
    /// The target's worker of a stream has applied its frame.
    Apply {
        stream: usize,
        places: Vec<Option<rebec_migrate::index::Place>>,
    },
    WriteSource(Record),
    WriteTarget(Record),
    Guest,
    Donor,
    Cut,
    Cancel,
    TickSource,
    TickTarget,
}

pub struct SourceSide {
    pub engine: Option<Source>,
    pub machine: Machine,
    pub ledger: Vec<u8>,
    pub running: bool,
    pub work: Vec<VecDeque<Work>>,
    pub batches: BTreeMap<BatchId, (Vec<u64>, Vec<u8>)>,
    pub packer: Packer,
    pub report: Option<MoveReport>,
    pub waiting: bool,
    pub writing: bool,
}

pub enum Work {
    Read(rebec_migrate::source::ReadBatch),
    Send(rebec_migrate::source::SendBatch),
}

pub struct TargetSide {
    pub engine: Option<Target>,
    pub machine: Machine,
    pub ledger: Vec<u8>,
    pub running: bool,
    pub queued: Vec<VecDeque<Vec<u8>>>,
    pub applying: Vec<Option<sides::Pending>>,
    pub unpacker: Unpacker,
    pub restored: Option<Vec<u8>>,
    pub writing: bool,
}

pub struct Pair {
    pub plan: Plan,
    pub rng: Rng,
    pub now: Duration,
    pub events: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    pub source: SourceSide,
    pub target: TargetSide,
    pub donor: Vec<u8>,
    pub linked: bool,
    /// When the last byte of each connection arrives: two control directions, then streams.
    arrivals: Vec<Duration>,
    messages: u64,
    pub wanted: u64,
    pub throttle: u64,
    pub throttles: Vec<u8>,
    pub ignores_throttle: bool,
    /// Records that the ledgers refuse to write.
    pub refused: Vec<Right>,
    /// Whether what runs was started from its disk.
    pub cold_source: bool,
    pub cold_target: bool,
    in_flight_max: usize,
}

impl Pair {
    pub fn new(plan: Plan) -> Self {
        let mut rng = Rng::new(plan.seed ^ 0xabcd);
        let mut machine = Machine::random(&mut rng, plan.memory_units, &plan.disk_units);
        let mut arriving = match plan.base {
            Base::None => Machine::empty(plan.memory_units, &plan.disk_units),
            Base::Same => machine.on_base(&mut rng),
            Base::Other => Machine::random(&mut rng, plan.memory_units, &plan.disk_units),
        };
        arriving.spaces[0].fill(0);
        let donor = machine.lent(&mut rng, plan.donor_share);
        let holding = Record { right: Right::Holding, vm: VM, epoch: EPOCH, move_id: MoveId::NONE };
        let source = SourceSide {
            engine: Some(Source::new(config(&plan, MOVE), Duration::ZERO)),
            machine,
            ledger: holding.to_bytes().to_vec(),
            running: true,
            work: (0..plan.streams).map(|_| VecDeque::new()).collect(),
            batches: BTreeMap::new(),
            packer: Packer::new().unwrap(),
            report: None,
            waiting: false,
            writing: false,
        };
        let target = TargetSide {
            engine: Some(Target::new(MOVE, plan.streams)),
            machine: arriving,
            ledger: vec![],
            running: false,
            queued: (0..plan.streams).map(|_| VecDeque::new()).collect(),
            applying: (0..plan.streams).map(|_| None).collect(),
            unpacker: Unpacker::new().unwrap(),
            restored: None,
            writing: false,
        };
        let mut pair = Self {
            arrivals: vec![Duration::ZERO; plan.streams + 2],
            rng,
            now: Duration::ZERO,
            events: BTreeMap::new(),
            next_event: 0,
            source,
            target,
            donor,
            linked: true,
            messages: 0,
            wanted: 0,
            throttle: 0,
            throttles: vec![],
            ignores_throttle: false,
            refused: vec![],
            cold_source: false,
            cold_target: false,
            in_flight_max: 0,
            plan,
        };
        if pair.plan.guest_writes > 0 {
            pair.later(Duration::from_millis(1), Event::Guest);
        }
        if pair.plan.donor_changes {
            pair.later(Duration::from_millis(3), Event::Donor);
        }
        match pair.plan.fault {
            Some(Fault::Cut { at }) => pair.later(at, Event::Cut),
            Some(Fault::Cancel { at }) => pair.later(at, Event::Cancel),
            _ => {}
        }
        pair.drain_outputs();
        pair
    }

    /// Runs until nothing is left to happen.
    pub fn run(&mut self) {
        for _ in 0..200_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the move never ends: {:?}", self.source.engine.as_ref().map(Source::progress));
    }

    /// Lets the next thing happen; false if there is none.
    pub fn step(&mut self) -> bool {
        let Some(((at, _), event)) = self.events.pop_first() else { return false };
        self.now = self.now.max(at);
        self.happen(event);
        true
    }

    pub fn happen(&mut self, event: Event) {
        match event {
            Event::Source(input) => self.tell_source(input),
            Event::Target(input) => self.tell_target(input),
            Event::Work { stream } => self.work(stream),
            Event::ToSource(bytes) => self.arrive_at_source(&bytes),
            Event::ToTarget(bytes) => self.arrive_at_target(&bytes),
            Event::Frame { stream, bytes } => self.frame_arrives(stream, bytes),
            Event::Apply { stream, places } => self.apply(stream, &places),
            Event::WriteSource(record) if self.refused.contains(&record.right) => {
                self.source.writing = false;
                self.tell_source(SourceInput::LedgerFailed("disk full".into()));
            }
            Event::WriteSource(record) => {
                self.source.ledger.extend(record.to_bytes());
                self.source.writing = false;
                ledger::read(&self.source.ledger).unwrap();
                self.tell_source(SourceInput::LedgerWritten);
            }
            Event::WriteTarget(record) if self.refused.contains(&record.right) => {
                self.target.writing = false;
                self.tell_target(TargetInput::LedgerFailed("disk full".into()));
            }
            Event::WriteTarget(record) => {
                self.target.ledger.extend(record.to_bytes());
                self.target.writing = false;
                ledger::read(&self.target.ledger).unwrap();
                self.tell_target(TargetInput::LedgerWritten);
            }
            Event::Guest => self.guest_writes(),
            Event::Donor => {
                let (unit, byte) = (self.rng.below(self.donor.len() as u64 / 4096), self.rng.below(4096));
                self.donor[(unit * 4096 + byte) as usize] ^= 1;
                if self.source.engine.is_some() && self.source.report.is_none() {
                    self.later(Duration::from_millis(3), Event::Donor);
                }
            }
            Event::Cut => self.cut("cut by the test"),
            Event::Cancel => self.tell_source(SourceInput::Cancel),
            Event::TickSource => {
                if let Some(engine) = &mut self.source.engine {
                    engine.tick(self.now);
                }
            }
            Event::TickTarget => {
                if let Some(engine) = &mut self.target.engine {
                    engine.tick(self.now);
                }
            }
        }
        self.drain_outputs();
        assert!(!(self.source.running && self.target.running), "the VM runs twice");
        assert!(self.source.batches.len() <= self.plan.streams * LANE_BATCHES_MAX, "the source holds too many batches");
        self.in_flight_max = self.in_flight_max.max(self.target.queued.iter().flatten().map(Vec::len).sum());
        assert!(self.in_flight_max <= 36 << 20, "too much in flight");
    }

    fn guest_writes(&mut self) {
        if self.source.running {
            let share = if self.ignores_throttle { 100 } else { 100 - self.throttle };
            for _ in 0..self.plan.guest_writes * share / 100 {
                self.source.machine.write_somewhere(&mut self.rng);
            }
        }
        if self.source.engine.is_some() && self.source.report.is_none() {
            self.later(Duration::from_millis(1), Event::Guest);
        }
    }

    pub fn later(&mut self, delay: Duration, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + delay, self.next_event), event);
    }

    /// Puts bytes on a connection: late, in order, perhaps damaged or doubled by the plan's fault.
    pub fn transmit(&mut self, connection: usize, mut bytes: Vec<u8>, event: fn(usize, Vec<u8>) -> Event) {
        if !self.linked {
            return;
        }
        self.messages += 1;
        let doubled = matches!(self.plan.fault, Some(Fault::Double { message }) if message == self.messages);
        if let Some(Fault::Flip { message, byte }) = self.plan.fault
            && message == self.messages
        {
            let at = (byte % bytes.len() as u64) as usize;
            bytes[at] ^= 1 << (byte % 8);
        }
        for _ in 0..1 + u32::from(doubled) {
            let travel = Duration::from_micros(bytes.len() as u64 * 1000 / self.plan.bytes_per_ms);
            let delay = Duration::from_millis(self.plan.delay_ms + self.rng.below(3));
            let arrival = (self.arrivals[connection] + travel).max(self.now + delay + travel);
            self.arrivals[connection] = arrival;
            self.later(arrival - self.now, event(connection, bytes.clone()));
        }
    }

    /// The link breaks: what is on it is lost, and both sides notice.
    pub fn cut(&mut self, reason: &str) {
        if self.linked {
            self.linked = false;
            self.events.retain(|_, event| !matches!(event, Event::ToSource(_) | Event::ToTarget(_) | Event::Frame { .. }));
            self.later(Duration::from_millis(1), Event::Source(SourceInput::Cut(reason.into())));
            self.later(Duration::from_millis(2), Event::Target(TargetInput::Cut(reason.into())));
        }
    }

    /// A process dies: its memory is gone, its ledger stays.
    pub fn kill(&mut self, side: Side) {
        match side {
            Side::Source => {
                (self.source.engine, self.source.running, self.source.waiting, self.source.writing) = (None, false, false, false);
                self.source.machine = Machine::empty(0, &[]);
                self.source.batches.clear();
                self.events.retain(|_, event| {
                    !matches!(event, Event::Source(_) | Event::Work { .. } | Event::ToSource(_) | Event::WriteSource(_) | Event::TickSource)
                });
            }
            Side::Target => {
                (self.target.engine, self.target.running, self.target.writing) = (None, false, false);
                self.target.machine = Machine::empty(0, &[]);
                self.events.retain(|_, event| {
                    !matches!(
                        event,
                        Event::Target(_)
                            | Event::Apply { .. }
                            | Event::ToTarget(_)
                            | Event::Frame { .. }
                            | Event::WriteTarget(_)
                            | Event::TickTarget
                    )
                });
            }
        }
        // What the dead side had already sent may still arrive; the cut is noticed behind it.
        let last = self.arrivals.iter().max().copied().unwrap_or_default().max(self.now) - self.now + Duration::from_millis(1);
        match side {
            Side::Source => self.later(last, Event::Target(TargetInput::Cut("the source died".into()))),
            Side::Target => self.later(last, Event::Source(SourceInput::Cut("the target died".into()))),
        }
    }

    /// Starts dead processes from their ledgers, mends the link, and lets the source ask the target again.
    pub fn heal(&mut self) {
        self.events.retain(|_, event| !matches!(event, Event::ToSource(_) | Event::ToTarget(_) | Event::Frame { .. }));
        self.linked = true;
        self.plan.fault = None;
        let (theirs, mine) = (last(&self.target.ledger), last(&self.source.ledger));
        if self.target.engine.is_none() {
            let (decision, _) = ledger::may_run(theirs.as_ref());
            self.target.running = matches!(decision, Decision::Run { .. });
            self.cold_target = true;
            self.target.engine = Some(theirs.and_then(Target::restarted).unwrap_or_else(|| Target::new(MOVE, 1)));
        }
        if self.source.engine.is_none() {
            let (decision, _) = ledger::may_run(mine.as_ref());
            self.source.running = matches!(decision, Decision::Run { .. });
            self.cold_source = true;
        }
        let keeps_waiting = self.source.engine.is_some() && self.source.waiting;
        if !keeps_waiting {
            self.source.report = None;
            self.source.engine = Some(Source::restarted(mine.unwrap(), self.now));
        }
        self.source.waiting = false;
        self.drain_outputs();
        self.run();
        self.tell_source(SourceInput::Reconnected);
        self.drain_outputs();
        self.run();
    }

    /// Another move of the same VM, to the same target process.
    pub fn start_again(&mut self, move_id: MoveId) {
        self.source.report = None;
        self.source.engine = Some(Source::new(config(&self.plan, move_id), self.now));
        self.drain_outputs();
    }

    pub fn report(&self) -> &MoveReport {
        self.source.report.as_ref().expect("the move has ended")
    }

    pub fn assert_moved(&self) {
        assert!(self.target.running && !self.source.running);
        self.assert_equal();
    }

    fn assert_equal(&self) {
        for (number, (mine, theirs)) in self.source.machine.spaces.iter().zip(&self.target.machine.spaces).enumerate() {
            let differs = mine.chunks(4096).zip(theirs.chunks(4096)).position(|(mine, theirs)| mine != theirs);
            assert_eq!(differs, None, "unit of space {number}");
        }
        assert_eq!(self.target.restored.as_deref(), Some(&b"saved machine"[..]));
    }

    /// Exactly one side runs; if it is the target, it has everything.
    pub fn assert_one_runs(&self) {
        assert!(self.source.running != self.target.running, "source {} target {}", self.source.running, self.target.running);
        if self.target.running && !self.source.machine.spaces[0].is_empty() {
            self.assert_equal();
        }
    }
}

pub fn last(bytes: &[u8]) -> Option<Record> {
    ledger::read(bytes).unwrap().last
}

fn config(plan: &Plan, move_id: MoveId) -> SourceConfig {
    let (shape, streams, downtime_max) = (shape(plan), plan.streams, plan.downtime_max);
    SourceConfig { move_id, key: KEY, shape, streams, downtime_max, bytes_per_second_max: None }
}

fn shape(plan: &Plan) -> Shape {
    Shape {
        vm: VM,
        epoch: EPOCH,
        memory_bytes: plan.memory_units * 4096,
        vcpus: 2,
        nets: vec![NetShape { mac: [2, 0, 0, 0, 0, 1], vni: 5 }],
        disks: plan
            .disk_units
            .iter()
            .map(|units| DiskShape { bytes: units * 4096, read_only: false, base: plan.base.at_source() })
            .collect(),
        cpu_model: vec![1, 2, 3],
        memory_max_bytes: None,
    }
}

/// Reads a whole message frame.
pub fn read_message<M: Message>(bytes: &[u8]) -> Result<M, String> {
    let (head, body) = bytes.split_at(MESSAGE_HEAD_BYTES);
    let head = MessageHead::from_bytes(head.try_into().unwrap()).map_err(|error| error.to_string())?;
    head.read(body).map_err(|error| error.to_string())
}

impl Pair {
    fn arrive_at_source(&mut self, bytes: &[u8]) {
        match read_message::<FromTarget>(bytes) {
            Ok(message) => {
                if let FromTarget::Applied { wanted, .. } = &message {
                    self.wanted += wanted.len() as u64;
                }
                self.tell_source(SourceInput::Control(message));
            }
            Err(error) => self.cut(&error),
        }
    }

    fn arrive_at_target(&mut self, bytes: &[u8]) {
        match read_message::<FromSource>(bytes) {
            Ok(message) => self.tell_target(TargetInput::Control(message)),
            Err(error) => self.cut(&error),
        }
    }

    pub fn tell_source(&mut self, input: SourceInput) {
        if let Some(engine) = &mut self.source.engine {
            engine.handle(self.now, input);
        }
    }

    pub fn tell_target(&mut self, input: TargetInput) {
        if let Some(engine) = &mut self.target.engine {
            engine.handle(self.now, input);
        }
    }
}
