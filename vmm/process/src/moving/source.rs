//! Drives a [`Source`]: the VM leaves. Runs on a thread of its own, which the owner lends the machine to.

use std::{
    net::{SocketAddrV4, TcpStream},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rebec_bits::BitSet;
use rebec_devices::Threads;
use rebec_migrate::{
    Source, SourceConfig, SourceInput, SourceOutput,
    frame::{Preamble, Role, VERSIONS},
    message::FromTarget,
    page::Key,
    source::LANE_BATCHES_MAX,
};
use rebec_vmm_api::{Versions, control::Progress, report::MoveReport};
use rebec_vmm_saved::SavedMachine;

use super::{
    MovingMachine,
    connection::{check_answer, hang_up, read_messages, read_preamble, watch, write_control, write_preamble},
    spaces::Spaces,
    streams::{SendWorker, Work},
};

/// What happened and was not yet told to the engine: what every worker can say at once, and the control connection.
const EVENTS_MAX: usize = 256;
/// Between two reports of progress.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

fn told_by_clock_ahead(saved: &[u8], ahead_ms: i64) -> Result<Vec<u8>> {
    let mut saved = SavedMachine::from_bytes(saved).context("read what was saved")?;
    rebec_kvm::told_by_clock_ahead(&mut saved, ahead_ms).context("carry the clock over")?;
    log::info!("move: the target's clock is {ahead_ms} ms ahead; the VM's goes on as if it were not");
    Ok(saved.to_bytes())
}

/// Calls a move off from any thread.
#[derive(Clone, Default)]
pub struct Canceller {
    /// Held for a moment, never across I/O.
    events: Arc<Mutex<Option<SyncSender<SourceInput>>>>,
}

impl Canceller {
    /// Asks; the move's report says whether it was in time.
    pub fn cancel(&self) {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(events) = events {
            events.send(SourceInput::Cancel).unwrap_or_default();
        }
    }

    fn set(&self, events: Option<SyncSender<SourceInput>>) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = events;
    }
}

/// A move out of this process.
pub struct Outgoing {
    engine: Source,
    key: Key,
    speaks: Versions,
    streams: usize,
    origin: Instant,
    canceller: Canceller,
    /// How far the target's clock is ahead of this host's.
    target_ahead_ms: i64,
    /// Whether connections were made before: the next ones resume.
    began: bool,
}

/// The connections of one attempt and the threads on them.
struct Link {
    /// What both sides speak.
    version: u16,
    control: TcpStream,
    sockets: Vec<TcpStream>,
    work: Vec<SyncSender<Work>>,
    threads: Vec<JoinHandle<()>>,
}

impl Outgoing {
    /// A new move.
    pub fn new(config: SourceConfig) -> Self {
        let (key, streams) = (config.key, config.streams);
        let origin = Instant::now();
        let (engine, canceller) = (Source::new(config, Duration::ZERO), Canceller::default());
        Self { engine, key, speaks: VERSIONS, streams, origin, canceller, target_ahead_ms: 0, began: false }
    }

    /// To a host whose clock is so far ahead.
    pub fn where_clock_is_ahead(self, target_ahead_ms: i64) -> Self {
        Self { target_ahead_ms, ..self }
    }

    /// In other versions than this program's.
    pub fn speaking(self, speaks: Versions) -> Self {
        Self { speaks, ..self }
    }

    /// Calls it off.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// Where the target's ports listen, once it has accepted the VM.
    pub fn target_ports(&self) -> &[SocketAddrV4] {
        self.engine.target_ports()
    }

    /// Whether the right to run was granted and its holder has not spoken.
    pub fn is_waiting(&self) -> bool {
        self.engine.is_waiting()
    }

    /// Moves over these connections (control first) until it is over, or waiting: then call again with new connections.
    ///
    /// # Errors
    /// When the connections do not lead to a target of this move. Nothing has happened to the VM then.
    pub fn run(
        &mut self,
        machine: &dyn MovingMachine,
        threads: &dyn Threads,
        connections: Vec<OwnedFd>,
        mut heard: impl FnMut(Progress),
    ) -> Result<MoveReport> {
        let (sender, events) = sync_channel(EVENTS_MAX);
        let spaces = Spaces { ram: machine.ram().clone(), disks: machine.disks().to_vec() };
        let mut link = self.connect(&spaces, threads, connections, &sender)?;
        self.canceller.set(Some(sender.clone()));
        drop(sender);
        if self.began {
            self.engine.handle(self.now(), SourceInput::Reconnected);
        }
        self.began = true;
        let report = self.turn(machine, &spaces, &link, &events, &mut heard);
        self.canceller.set(None);
        link.work.clear();
        link.sockets.iter().for_each(hang_up);
        hang_up(&link.control);
        // Workers may wait for room in the queue: let them finish against a queue that is read.
        while events.recv().is_ok() {}
        for thread in link.threads {
            if thread.join().is_err() {
                log::error!("a thread of the move panicked");
            }
        }
        Ok(report)
    }

    fn connect(&self, spaces: &Spaces, threads: &dyn Threads, connections: Vec<OwnedFd>, events: &SyncSender<SourceInput>) -> Result<Link> {
        let mut sockets: Vec<TcpStream> = connections.into_iter().map(TcpStream::from).collect();
        let roles = std::iter::once(Role::Control).chain((0..).map(Role::Stream));
        let (streams, move_id) = (sockets.len().saturating_sub(1) as u8, self.engine.move_id());
        let preamble = |role| Preamble { speaks: self.speaks, role, streams, move_id };
        for (socket, role) in sockets.iter().zip(roles) {
            watch(socket).and_then(|()| write_preamble(socket, &preamble(role))).context("greet the target")?;
        }
        let ours = preamble(Role::Control);
        let control = sockets.first().context("no connection was passed")?.try_clone()?;
        let version = check_answer(&ours, &read_preamble(&control).context("the target did not greet")?)?;
        log::debug!("move {move_id}: version {version}");
        let needed = self.engine.version_min();
        ensure!(
            version >= needed,
            "the other side's VMM speaks version {version} of the move protocol, and a VM whose memory changes while it runs needs {needed}: upgrade the \
             other host, and move the VM then"
        );
        control.set_write_timeout(Some(Duration::from_secs(30)))?;
        let sockets = sockets.split_off(1);
        let mut link = Link { version, control, sockets, work: vec![], threads: vec![] };
        let reading = link.control.try_clone()?;
        let told = events.clone();
        let body = move || {
            let reason = read_messages::<FromTarget>(&reading, |message| told.send(SourceInput::Control(message)).is_ok());
            told.send(SourceInput::Cut(reason)).unwrap_or_default();
        };
        link.threads.push(threads.spawn("move-control", Box::new(body))?);
        // A move that is only settled sends no frames.
        let workers = if self.began { 0 } else { self.streams };
        for (number, socket) in link.sockets.iter().take(workers).enumerate() {
            let (work, todo) = sync_channel(LANE_BATCHES_MAX * 2);
            let sending =
                SendWorker { spaces: spaces.clone(), key: self.key, stream: socket.try_clone()?, work: todo, events: events.clone() };
            link.threads.push(threads.spawn(&format!("move-{number}"), Box::new(move || sending.run()))?);
            link.work.push(work);
        }
        Ok(link)
    }

    fn turn(
        &mut self,
        machine: &dyn MovingMachine,
        spaces: &Spaces,
        link: &Link,
        events: &Receiver<SourceInput>,
        heard: &mut impl FnMut(Progress),
    ) -> MoveReport {
        let mut next_report = self.now();
        loop {
            while let Some(output) = self.engine.poll_output() {
                match self.perform(machine, spaces, link, output) {
                    Ok(Done::Nothing) => {}
                    Ok(Done::Input(input)) => self.engine.handle(self.now(), input),
                    Ok(Done::Over(report)) => return report,
                    Err(error) => self.engine.handle(self.now(), SourceInput::Failed(format!("{error:#}"))),
                }
            }
            let now = self.now();
            if now >= next_report {
                heard(self.engine.progress());
                next_report = now + PROGRESS_PERIOD;
            }
            let wake = self.engine.next_deadline().map_or(next_report, |deadline| deadline.min(next_report));
            match events.recv_timeout(wake.saturating_sub(now)) {
                Ok(input) => self.engine.handle(self.now(), input),
                Err(RecvTimeoutError::Timeout) => self.engine.tick(self.now()),
                Err(RecvTimeoutError::Disconnected) => self.engine.handle(self.now(), SourceInput::Cut("its threads ended".into())),
            }
        }
    }

    fn perform(&self, machine: &dyn MovingMachine, spaces: &Spaces, link: &Link, output: SourceOutput) -> Result<Done> {
        let input = match output {
            SourceOutput::Control(bytes) => {
                write_control(&link.control, &bytes);
                return Ok(Done::Nothing);
            }
            SourceOutput::Read(batch) => {
                let stream = batch.stream;
                return give(link, stream, Work::Read(batch));
            }
            SourceOutput::Send(batch) => {
                let stream = batch.stream;
                return give(link, stream, Work::Send(batch));
            }
            SourceOutput::StartDirty { on_base } => {
                spaces.disks.iter().for_each(|disk| disk.track_start());
                machine.dirty_log_start()?;
                // The first take reports every page and protects them; from here on marks mean writes.
                self.take_memory_dirty(machine, spaces)?;
                let (data, zeros) = spaces.populated(&on_base)?;
                SourceInput::Populated { data, zeros }
            }
            SourceOutput::TakeDirty => {
                let mut sets = vec![self.take_memory_dirty(machine, spaces)?];
                sets.extend(spaces.take_disks_dirty());
                SourceInput::Dirty(sets)
            }
            SourceOutput::Throttle(percent) => {
                machine.throttle(percent);
                return Ok(Done::Nothing);
            }
            SourceOutput::Pause => {
                let stopped = machine.pause()?;
                SourceInput::Paused { stopped: stopped.saturating_duration_since(self.origin) }
            }
            SourceOutput::Save => {
                let saved = machine.save(link.version)?;
                SourceInput::Saved(if self.target_ahead_ms == 0 { saved } else { told_by_clock_ahead(&saved, self.target_ahead_ms)? })
            }
            SourceOutput::Resume { epoch } => {
                // The engine has said its last word about this VM; the user hears of it here and in its status.
                if let Err(error) = machine.resume(epoch) {
                    log::error!("move: let the VM run on: {error:#}");
                }
                return Ok(Done::Nothing);
            }
            SourceOutput::WriteLedger(record) => match machine.write_ledger(record) {
                Ok(()) => SourceInput::LedgerWritten,
                Err(error) => SourceInput::LedgerFailed(error.to_string()),
            },
            SourceOutput::Waiting(report) => return Ok(Done::Over(report)),
            SourceOutput::Ended(report) => {
                spaces.disks.iter().for_each(|disk| disk.track_stop());
                if let Err(error) = machine.dirty_log_stop() {
                    log::warn!("move: stop the dirty log: {error:#}");
                }
                return Ok(Done::Over(report));
            }
        };
        Ok(Done::Input(input))
    }

    fn take_memory_dirty(&self, machine: &dyn MovingMachine, spaces: &Spaces) -> Result<BitSet> {
        let mut pages = BitSet::new(spaces.ram.pages());
        machine.dirty_log_take(&mut pages)?;
        Ok(pages)
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}

enum Done {
    Nothing,
    Input(SourceInput),
    Over(MoveReport),
}

/// Gives a worker its next piece. The engine never has more outstanding than the queue holds; a worker that ended has said why.
fn give(link: &Link, stream: usize, work: Work) -> Result<Done> {
    if let Some(worker) = link.work.get(stream)
        && worker.try_send(work).is_err()
    {
        log::debug!("move: stream {stream} has ended");
    }
    Ok(Done::Nothing)
}
