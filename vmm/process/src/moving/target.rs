//! Drives a [`Target`]: a VM arrives. Runs on the main thread of `receive` until the VM runs here or will not; afterwards a
//! thread keeps answering a source that did not hear it.

use std::{
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rebec_devices::{
    Threads,
    disk::{Disk, ExtentKind},
};
use rebec_migrate::{
    Record, Space, Target, TargetInput, TargetOutput, UNIT_BYTES,
    frame::{Preamble, Role},
    index::{Holder, Place},
    message::{FromSource, Shape},
    page::{self, Key, Verdict},
    unit::units_of,
};

use super::{
    MovingMachine,
    connection::{hang_up, read_messages, read_preamble, watch, write_control, write_preamble},
    donor::DonorHandle,
    spaces::Spaces,
    streams::Receiving,
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
    listener: TcpListener,
    donors: Vec<UnixStream>,
    threads: Arc<dyn Threads>,
    origin: Instant,
}

/// The connections of one attempt and the threads on them.
struct Link {
    control: TcpStream,
    sockets: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

/// The arriving machine and the workers that write it.
struct Site<M> {
    machine: M,
    spaces: Spaces,
    key: Key,
    donors: Vec<DonorHandle>,
    places: Vec<SyncSender<Vec<Option<Place>>>>,
    flush: Option<SyncSender<()>>,
}

impl Incoming {
    /// `donors` are connections that `donate` has turned.
    pub fn new(listener: TcpListener, donors: Vec<UnixStream>, threads: Arc<dyn Threads>) -> Self {
        Self { listener, donors, threads, origin: Instant::now() }
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
        let mut engine = Target::new(first.move_id, usize::from(first.streams));
        let mut site: Option<Site<M>> = None;
        let outcome = loop {
            match self.turn(&mut engine, &mut site, &mut link, &events, &sender, &mut build)? {
                Turn::Waiting(reason) => {
                    waiting(&reason);
                    if let Some(site) = &mut site {
                        site.dismiss();
                    }
                    link.close(&events);
                    link = self.accept_control(&engine, &sender)?;
                }
                Turn::Running(epoch) => break Ok(epoch),
                Turn::Ended(reason) => break Err(reason),
            }
        };
        if let Some(site) = &mut site {
            // The workers' last frame is applied; without places they end.
            site.dismiss();
        }
        drop(sender);
        match (outcome, site) {
            (Ok(epoch), Some(site)) => {
                self.stand_by(engine, link, events)?;
                Ok(Arrived::Running { machine: site.machine, epoch })
            }
            (Ok(_), None) => anyhow::bail!("invariant: what runs was built"),
            (Err(reason), _) => {
                link.say_goodbye(&events);
                link.close(&events);
                Ok(Arrived::Ended { reason })
            }
        }
    }

    /// Settles the move of a target that died: the source has to connect and hears what the ledger says.
    ///
    /// # Errors
    /// When the listener fails.
    pub fn settle(self, record: Record, mut write: impl FnMut(Record) -> std::io::Result<()>) -> Result<()> {
        let Some(mut engine) = Target::restarted(record) else { return Ok(()) };
        settle_outputs(&mut engine, None, &mut write);
        let (sender, events) = sync_channel(EVENTS_MAX);
        let mut link = self.accept_control(&engine, &sender)?;
        drop(sender);
        while let Ok(input) = events.recv() {
            engine.handle(self.origin.elapsed(), input);
            settle_outputs(&mut engine, Some(&link.control), &mut write);
        }
        link.close(&events);
        Ok(())
    }

    /// Collects the connections of one move. What does not speak the protocol is told nothing and dropped.
    fn accept_move(&self, events: &SyncSender<TargetInput>) -> Result<(Preamble, Link)> {
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
    fn accept_control(&self, engine: &Target, events: &SyncSender<TargetInput>) -> Result<Link> {
        log::info!("receive: waiting for the source of move {}", engine.move_id());
        loop {
            let Some((preamble, stream)) = self.accept()? else { continue };
            if preamble.role == Role::Control {
                return self.open(preamble, stream, vec![], events);
            }
        }
    }

    fn accept(&self) -> Result<Option<(Preamble, TcpStream)>> {
        let (stream, from) = self.listener.accept().context("accept a connection")?;
        let greeted = watch(&stream).map_err(anyhow::Error::from).and_then(|()| read_preamble(&stream));
        match greeted {
            Ok(preamble) => Ok(Some((preamble, stream))),
            Err(error) => {
                log::warn!("receive: dropped a connection from {from}: {error:#}");
                Ok(None)
            }
        }
    }

    fn open(&self, preamble: Preamble, control: TcpStream, sockets: Vec<TcpStream>, events: &SyncSender<TargetInput>) -> Result<Link> {
        // The source may be gone already; its reader then says so.
        if let Err(error) = write_preamble(&control, &preamble) {
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
        site: &mut Option<Site<M>>,
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
                            let made = self.settle_in(machine, key, link, sender)?;
                            let holders = holders(&made);
                            *site = Some(made);
                            TargetInput::Built { holders, ports }
                        }
                        Err(reason) => TargetInput::Unfit(reason),
                    },
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
                        let site = site.as_ref().context("invariant: the machine is built first")?;
                        match site.perform(other) {
                            Ok(Some(input)) => input,
                            Ok(None) => continue,
                            Err(error) => TargetInput::Failed(format!("{error:#}")),
                        }
                    }
                };
                engine.handle(self.origin.elapsed(), input);
            }
            let input = events.recv().context("invariant: a sender is kept")?;
            engine.handle(self.origin.elapsed(), input);
        }
    }

    /// Starts the workers of the streams, now that there is something to write to.
    fn settle_in<M: MovingMachine>(&mut self, machine: M, key: Key, link: &mut Link, events: &SyncSender<TargetInput>) -> Result<Site<M>> {
        let spaces = Spaces { ram: machine.ram().clone(), disks: machine.disks().to_vec() };
        let started = self.donors.drain(..).map(|stream| DonorHandle::start(&*self.threads, stream));
        let donors = started.collect::<Result<Vec<_>>>()?;
        let (flush, wanted) = sync_channel::<()>(1);
        let (disks, told) = (spaces.disks.clone(), events.clone());
        let flusher = move || {
            while wanted.recv().is_ok() {
                let flushed = flush_disks(&disks).map_or_else(|error| TargetInput::Failed(format!("{error:#}")), |()| TargetInput::Flushed);
                if told.send(flushed).is_err() {
                    break;
                }
            }
        };
        link.threads.push(self.threads.spawn("move-flush", Box::new(flusher))?);
        let mut site = Site { machine, spaces, key, donors, places: vec![], flush: Some(flush) };
        let streams = link.sockets.len();
        for (number, socket) in link.sockets.iter().enumerate() {
            let (sender, places) = sync_channel(1);
            let worker = Receiving {
                spaces: site.spaces.clone(),
                key,
                number,
                streams,
                stream: socket.try_clone()?,
                places,
                donors: site.donors.clone(),
                events: events.clone(),
            };
            link.threads.push(self.threads.spawn(&format!("move-{number}"), Box::new(move || worker.run()))?);
            site.places.push(sender);
        }
        Ok(site)
    }

    /// Keeps the engine, so that a source that lost the link before it heard `RUNNING` can ask.
    fn stand_by(self, mut engine: Target, mut link: Link, mut events: Receiver<TargetInput>) -> Result<()> {
        let threads = self.threads.clone();
        let body = move || {
            loop {
                while let Ok(input) = events.recv() {
                    let is_cut = matches!(input, TargetInput::Cut(_));
                    engine.handle(self.origin.elapsed(), input);
                    while let Some(output) = engine.poll_output() {
                        if let TargetOutput::Control(bytes) = output {
                            write_control(&link.control, &bytes);
                        }
                    }
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

impl<M> Site<M> {
    /// Nothing is left to write: the workers and donors end.
    fn dismiss(&mut self) {
        self.places.clear();
        self.donors.clear();
        self.flush = None;
    }
}

impl<M: MovingMachine> Site<M> {
    fn perform(&self, output: TargetOutput) -> Result<Option<TargetInput>> {
        let input = match output {
            TargetOutput::Index { holder, first, count } => self.index(holder, first, count)?,
            TargetOutput::Blank { disk, ranges } => {
                let space = Space::disk(disk);
                ranges.into_iter().try_for_each(|(first, count)| self.spaces.clear(space, first..first + count))?;
                TargetInput::Blanked
            }
            TargetOutput::Apply { stream, places } => {
                let worker = self.places.get(stream).context("invariant: a frame came from a worker")?;
                // The worker takes one answer a frame; if it has ended, it has said why.
                worker.try_send(places).unwrap_or_default();
                return Ok(None);
            }
            TargetOutput::Flush => {
                if let Some(flush) = &self.flush {
                    flush.try_send(()).unwrap_or_default();
                }
                return Ok(None);
            }
            TargetOutput::Restore(saved) => {
                self.machine.restore(&saved).context("restore the machine")?;
                flush_disks(&self.spaces.disks)?;
                TargetInput::Restored
            }
            TargetOutput::WriteLedger(record) => match self.machine.write_ledger(record) {
                Ok(()) => TargetInput::LedgerWritten,
                Err(error) => TargetInput::LedgerFailed(error.to_string()),
            },
            TargetOutput::Run { epoch } => {
                self.machine.resume(epoch).context("let the VM run")?;
                TargetInput::Started
            }
            TargetOutput::Control(_)
            | TargetOutput::Build { .. }
            | TargetOutput::Waiting { .. }
            | TargetOutput::Running { .. }
            | TargetOutput::Ended { .. } => {
                return Ok(None);
            }
        };
        Ok(Some(input))
    }

    fn index(&self, holder: Holder, first: u64, count: u32) -> Result<TargetInput> {
        let (next, found) = match holder {
            Holder::Donor(number) => match self.donors.get(usize::from(number)).and_then(|donor| donor.digests(self.key, first, count)) {
                Some(rebec_migrate::donor::Response::Digests { next, found }) => {
                    (next, found.into_iter().map(|(offset, digest)| (first + u64::from(offset), digest)).collect())
                }
                _ => (None, vec![]),
            },
            Holder::Disk(disk) => self.index_disk(usize::from(disk), first, count)?,
            Holder::Memory => (None, vec![]),
        };
        Ok(TargetInput::Indexed { next, found })
    }

    /// Judges what a disk already holds, a batch at a time; ranges that read as zeros are skipped without reading.
    fn index_disk(&self, index: usize, first: u64, count: u32) -> Result<(Option<u64>, Vec<(u64, page::Digest)>)> {
        const UNIT: u64 = UNIT_BYTES as u64;
        let disk = &self.spaces.disks[index];
        let units = units_of(disk.size_bytes());
        let end = units.min(first + u64::from(count));
        let (mut at, mut found, mut copy) = (first, vec![], vec![]);
        while at < end {
            let Some(extent) = disk.extent_at(at * UNIT)? else { break };
            let extent_end = extent.range.end.div_ceil(UNIT).max(at + 1);
            if extent.kind == ExtentKind::Zero {
                // A unit that is only partly zeros belongs to the data behind it.
                at = (extent.range.end / UNIT).max(at + 1);
                continue;
            }
            let batch: Vec<u64> = (at..extent_end.min(end).min(at + 256)).collect();
            self.spaces.read(Space::disk(index), &batch, &mut copy)?;
            let judged = batch.iter().zip(page::judge(&self.key, &copy));
            found.extend(
                judged.filter_map(|(&unit, verdict)| if let Verdict::Content(digest) = verdict { Some((unit, digest)) } else { None }),
            );
            at += batch.len() as u64;
        }
        Ok((Some(at).filter(|&at| at < units), found))
    }
}

fn flush_disks(disks: &[Arc<Disk>]) -> Result<()> {
    disks.iter().try_for_each(|disk| disk.flush().with_context(|| format!("flush disk {}", disk.name())))
}

/// Donors before disks: the first place seen of a content counts, and memory is read faster.
fn holders<M>(site: &Site<M>) -> Vec<Holder> {
    let donors = (0..site.donors.len()).map(|number| Holder::Donor(number as u16));
    let disks = (0..site.spaces.disks.len()).map(|number| Holder::Disk(number as u16));
    donors.chain(disks).collect()
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
    }
}

fn settle_outputs(engine: &mut Target, control: Option<&TcpStream>, write: &mut impl FnMut(Record) -> std::io::Result<()>) {
    while let Some(output) = engine.poll_output() {
        match output {
            TargetOutput::Control(bytes) => {
                if let Some(control) = control {
                    write_control(control, &bytes);
                }
            }
            TargetOutput::WriteLedger(record) => {
                let input =
                    write(record).map_or_else(|error| TargetInput::LedgerFailed(error.to_string()), |()| TargetInput::LedgerWritten);
                engine.handle(Duration::ZERO, input);
            }
            _ => {}
        }
    }
}
