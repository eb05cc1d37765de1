//! Drives a [`Target`]: a VM arrives. Runs on the main thread of `receive` until the VM runs here or will not; afterwards a
//! thread keeps answering a source that did not hear it.

use std::{
    net::{Shutdown, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rebec_devices::Threads;
use rebec_migrate::{
    Record, Target, TargetInput, TargetOutput,
    frame::{Preamble, Role, VERSIONS},
    message::{FromSource, Shape},
};
use rebec_vmm_api::Versions;

use super::{
    MovingMachine,
    connection::{hang_up, read_messages, watch, write_control, write_preamble},
    landing::Landing,
    lobby::Lobby,
};

/// What happened and was not yet told to the engine.
const EVENTS_MAX: usize = 256;
/// Connections whose preamble was read and whose move is not complete yet; the oldest is dropped.
const WAITING_MAX: usize = 64;
/// How long a source may take to hang up after the last message.
const GOODBYE_TIME: Duration = Duration::from_secs(3);

/// How an arrival ended.
pub enum Arrived<M> {
    /// The VM runs here, at this epoch.
    Running {
        /// The machine.
        machine: M,
        /// Its epoch.
        epoch: u64,
    },
    /// It will not run here.
    Ended {
        /// Why.
        reason: String,
    },
}

/// What waits at the listener and lends contents.
pub struct Incoming {
    lobby: Lobby,
    donors: Vec<UnixStream>,
    threads: Arc<dyn Threads>,
    origin: Instant,
    last: Option<Record>,
    speaks: Versions,
}

/// The connections of one attempt and the threads on them.
struct Link {
    control: TcpStream,
    sockets: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Incoming {
    /// `listener` is a socket that listens, TCP or Unix; `donors` are connections that `donate` has turned.
    pub fn new(listener: impl Into<OwnedFd>, donors: Vec<UnixStream>, threads: Arc<dyn Threads>) -> Self {
        let lobby = Lobby::new(listener.into());
        Self { lobby, donors, threads, origin: Instant::now(), last: None, speaks: VERSIONS }
    }

    /// In other versions than this program's.
    pub fn speaking(self, speaks: Versions) -> Self {
        Self { speaks, ..self }
    }

    /// Knows the ledger's last record: a source that never heard of a release is told again.
    pub fn remembering(self, last: Option<Record>) -> Self {
        Self { last, ..self }
    }

    /// Takes in one VM. `build` makes the machine of a shape, paused and empty, or says why it cannot be made here.
    /// `waiting` hears, in words, when only the source can go on.
    ///
    /// # Errors
    /// When the listener fails.
    pub fn run<M: MovingMachine>(
        mut self,
        mut build: impl FnMut(&Shape) -> Result<M, String>,
        mut waiting: impl FnMut(&str),
    ) -> Result<Arrived<M>> {
        let (sender, events) = sync_channel(EVENTS_MAX);
        let (first, mut link) = self.accept_move(&sender)?;
        let mut engine = Target::new(first.move_id, usize::from(first.streams)).remembering(self.last);
        let mut landing: Option<Landing<M>> = None;
        let outcome = loop {
            match self.turn(&mut engine, &mut landing, &mut link, &events, &sender, &mut build)? {
                Turn::Waiting(reason) => {
                    waiting(&reason);
                    if let Some(landing) = &mut landing {
                        landing.dismiss();
                    }
                    link.close(&events);
                    link = self.accept_control(&engine, &sender)?;
                }
                Turn::Running(epoch) => break Ok(epoch),
                Turn::Ended(reason) => break Err(reason),
            }
        };
        if let Some(landing) = &mut landing {
            // The workers' last frame is applied; without places they end.
            landing.dismiss();
        }
        drop(sender);
        match (outcome, landing) {
            (Ok(epoch), Some(landing)) => {
                self.stand_by(engine, link, events)?;
                Ok(Arrived::Running { machine: landing.machine, epoch })
            }
            (Ok(_), None) => anyhow::bail!("invariant: what runs was built"),
            (Err(reason), _) => {
                link.say_goodbye(&events);
                link.close(&events);
                Ok(Arrived::Ended { reason })
            }
        }
    }

    /// Settles the move of a target that died before it ran: writes `released` (from
    /// [`rebec_migrate::ledger::Decision::Release`]), then waits for the source to connect and tells it.
    ///
    /// # Errors
    /// When the ledger or the listener fails.
    pub fn settle(mut self, released: Record, mut write: impl FnMut(Record) -> std::io::Result<()>) -> Result<()> {
        write(released).context("ledger: write that the VM is released")?;
        let mut engine = Target::restarted(released).context("invariant: a released record can be settled")?;
        let (sender, events) = sync_channel(EVENTS_MAX);
        let mut link = self.accept_control(&engine, &sender)?;
        drop(sender);
        while let Ok(input) = events.recv() {
            engine.handle(self.origin.elapsed(), input);
            say(&mut engine, &link.control);
        }
        link.close(&events);
        Ok(())
    }

    /// Collects the connections of one move. What does not speak the protocol is told nothing and dropped.
    fn accept_move(&mut self, events: &SyncSender<TargetInput>) -> Result<(Preamble, Link)> {
        let mut waiting: Vec<(Preamble, TcpStream)> = vec![];
        loop {
            let Some(arrived) = self.accept()? else { continue };
            let move_id = arrived.0.move_id;
            waiting.push(arrived);
            let of_move = || waiting.iter().filter(|(preamble, _)| preamble.move_id == move_id);
            let control = of_move().find(|(preamble, _)| preamble.role == Role::Control).map(|(preamble, _)| *preamble);
            if let Some(control) = control
                && of_move().count() == usize::from(control.streams) + 1
            {
                let mut streams: Vec<(Preamble, TcpStream)> =
                    waiting.into_iter().filter(|(preamble, _)| preamble.move_id == move_id).collect();
                streams.sort_by_key(|(preamble, _)| match preamble.role {
                    Role::Control => 0,
                    Role::Stream(number) => 1 + u16::from(number),
                });
                let mut sockets: Vec<TcpStream> = streams.into_iter().map(|(_, stream)| stream).collect();
                let link = self.open(control, sockets.remove(0), sockets, events)?;
                return Ok((control, link));
            }
            if waiting.len() > WAITING_MAX {
                waiting.remove(0);
            }
        }
    }

    /// Waits for a control connection: the source asks again, or another move of the same VM shows that ours is over.
    fn accept_control(&mut self, engine: &Target, events: &SyncSender<TargetInput>) -> Result<Link> {
        log::info!("receive: waiting for the source of move {}", engine.move_id());
        loop {
            let Some((preamble, stream)) = self.accept()? else { continue };
            if preamble.role == Role::Control {
                return self.open(preamble, stream, vec![], events);
            }
        }
    }

    fn accept(&mut self) -> Result<Option<(Preamble, TcpStream)>> {
        let (stream, from, greeted) = self.lobby.next().context("accept a connection")?;
        let greeted = greeted.and_then(|preamble| {
            watch(&stream)?;
            let spoken = preamble.agree(self.speaks);
            if spoken.is_err() && preamble.role == Role::Control {
                // So that the source can say which side is behind; it may be gone already.
                write_preamble(&stream, &Preamble { speaks: self.speaks, ..preamble }).ok();
            }
            spoken.map(|_| preamble).map_err(anyhow::Error::from)
        });
        match greeted {
            Ok(preamble) => Ok(Some((preamble, stream))),
            Err(error) => {
                let from = from.map_or_else(String::new, |from| format!(" from {from}"));
                log::warn!("receive: dropped a connection{from}: {error:#}");
                Ok(None)
            }
        }
    }

    fn open(&self, preamble: Preamble, control: TcpStream, sockets: Vec<TcpStream>, events: &SyncSender<TargetInput>) -> Result<Link> {
        let version = preamble.agree(self.speaks)?;
        // The source may be gone already; its reader then says so.
        if let Err(error) = write_preamble(&control, &Preamble { speaks: Versions::only(version), ..preamble }) {
            log::debug!("receive: greet the source: {error}");
        }
        control.set_write_timeout(Some(Duration::from_secs(30)))?;
        let reading = control.try_clone()?;
        let told = events.clone();
        let body = move || {
            let reason = read_messages::<FromSource>(&reading, |message| told.send(TargetInput::Control(message)).is_ok());
            told.send(TargetInput::Cut(reason)).unwrap_or_default();
        };
        let thread = self.threads.spawn("move-control", Box::new(body))?;
        Ok(Link { control, sockets, threads: vec![thread] })
    }

    fn turn<M: MovingMachine>(
        &mut self,
        engine: &mut Target,
        landing: &mut Option<Landing<M>>,
        link: &mut Link,
        events: &Receiver<TargetInput>,
        sender: &SyncSender<TargetInput>,
        build: &mut impl FnMut(&Shape) -> Result<M, String>,
    ) -> Result<Turn> {
        loop {
            while let Some(output) = engine.poll_output() {
                let input = match output {
                    TargetOutput::Control(bytes) => {
                        write_control(&link.control, &bytes);
                        continue;
                    }
                    TargetOutput::Build { shape, key } => match build(&shape) {
                        Ok(machine) => {
                            let ports = machine.ports();
                            let donors = std::mem::take(&mut self.donors);
                            let (made, started) = Landing::open(machine, key, &*self.threads, donors, &link.sockets, sender)?;
                            link.threads.extend(started);
                            let (holders, bases) = (made.holders(), made.fresh_bases()?);
                            *landing = Some(made);
                            TargetInput::Built { holders, ports, bases }
                        }
                        Err(reason) => TargetInput::Unfit(reason),
                    },
                    TargetOutput::Run { epoch } => {
                        let landing = landing.as_ref().context("invariant: the machine is built first")?;
                        // The ledger says that it runs here: if it cannot, it restarts here from its disk.
                        landing.machine.resume(epoch).context("let the VM run; start it again with `rebec-vmm run` and its ledger")?;
                        TargetInput::Started
                    }
                    TargetOutput::Waiting { reason } => return Ok(Turn::Waiting(reason)),
                    TargetOutput::Running { epoch } => return Ok(Turn::Running(epoch)),
                    TargetOutput::Ended { reason } => {
                        // What was said last must still go out.
                        while let Some(TargetOutput::Control(bytes)) = engine.poll_output() {
                            write_control(&link.control, &bytes);
                        }
                        return Ok(Turn::Ended(reason));
                    }
                    other => {
                        let landing = landing.as_ref().context("invariant: the machine is built first")?;
                        match landing.perform(other) {
                            Ok(Some(input)) => input,
                            Ok(None) => continue,
                            Err(error) => TargetInput::Failed(format!("{error:#}")),
                        }
                    }
                };
                engine.handle(self.origin.elapsed(), input);
            }
            match self.hear(engine, events)? {
                Some(input) => engine.handle(self.origin.elapsed(), input),
                None => engine.tick(self.origin.elapsed()),
            }
        }
    }

    /// What happens next; `None` when the engine's deadline has come.
    fn hear(&self, engine: &Target, events: &Receiver<TargetInput>) -> Result<Option<TargetInput>> {
        const KEPT: &str = "invariant: a sender is kept";
        let Some(deadline) = engine.next_deadline() else { return Ok(Some(events.recv().context(KEPT)?)) };
        match events.recv_timeout(deadline.saturating_sub(self.origin.elapsed())) {
            Ok(input) => Ok(Some(input)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!(KEPT),
        }
    }

    /// Keeps the engine, so that a source that lost the link before it heard `RUNNING` can ask.
    fn stand_by(mut self, mut engine: Target, mut link: Link, mut events: Receiver<TargetInput>) -> Result<()> {
        let threads = self.threads.clone();
        let body = move || {
            loop {
                while let Ok(input) = events.recv() {
                    let is_cut = matches!(input, TargetInput::Cut(_));
                    engine.handle(self.origin.elapsed(), input);
                    say(&mut engine, &link.control);
                    if is_cut {
                        break;
                    }
                }
                link.close(&events);
                let (sender, next) = sync_channel(EVENTS_MAX);
                match self.accept_control(&engine, &sender) {
                    Ok(again) => (link, events) = (again, next),
                    Err(error) => return log::warn!("receive: {error:#}; a source that asks again is not answered"),
                }
            }
        };
        threads.spawn("move-answers", Box::new(body)).context("start the thread that answers the source")?;
        Ok(())
    }
}

enum Turn {
    Waiting(String),
    Running(u64),
    Ended(String),
}

impl Link {
    /// Lets the source hear the last message before its streams break: it hangs up when it has.
    fn say_goodbye(&self, events: &Receiver<TargetInput>) {
        self.control.shutdown(Shutdown::Write).unwrap_or_default();
        let until = Instant::now() + GOODBYE_TIME;
        while let Ok(input) = events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            if matches!(input, TargetInput::Cut(_)) {
                break;
            }
        }
    }

    /// Ends the connections and waits for the threads on them, against a queue that is read.
    fn close(&mut self, events: &Receiver<TargetInput>) {
        self.sockets.iter().for_each(hang_up);
        hang_up(&self.control);
        for thread in self.threads.drain(..) {
            while !thread.is_finished() {
                if events.recv_timeout(Duration::from_millis(10)).is_err() {
                    std::thread::yield_now();
                }
            }
            if thread.join().is_err() {
                log::error!("a thread of the move panicked");
            }
        }
        // What they said last is about connections that are gone.
        while events.try_recv().is_ok() {}
    }
}

/// Sends what an engine says that has nothing else to do any more.
fn say(engine: &mut Target, control: &TcpStream) {
    while let Some(output) = engine.poll_output() {
        if let TargetOutput::Control(bytes) = output {
            write_control(control, &bytes);
        }
    }
}
