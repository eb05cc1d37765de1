//! The balloon's queues and the thread that serves them all.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use rebec_layout::PAGE_BYTES;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::{Balloon, HINTS, REPORTS, statistics};
use crate::{
    GuestRam,
    virtio::{
        QueueEnvironment, QueueSetup, QueueState, StartError,
        chain::Chain,
        ring::{Broken, Ring},
        wait::{Waiter, take_kicks},
        worker::{Stop, Worker},
    },
};

/// Between two questions for statistics.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Page numbers that are read, sorted and given to the host at a time.
const PAGES_AT_ONCE: usize = 1024;
/// Page numbers of one chain: 1 GiB. Linux sends 256.
const CHAIN_PAGES_MAX: usize = 256 * PAGES_AT_ONCE;
const NUMBER_BYTES: usize = 4;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Inflate,
    /// Its buffers are answered and say nothing that is needed here: deflated pages, hints that were not asked for.
    Heard,
    Statistics,
    Report,
}

impl Purpose {
    /// Of a queue by its number, for a driver with these features.
    fn of(queue: u16, features: u64) -> Self {
        match queue {
            0 => Self::Inflate,
            1 => Self::Heard,
            2 => Self::Statistics,
            3 if features & HINTS != 0 => Self::Heard,
            _ if features & REPORTS != 0 => Self::Report,
            _ => Self::Heard,
        }
    }
}

/// The queues and their thread.
#[derive(Debug)]
pub(super) enum Queues {
    /// No thread.
    Stopped(Arc<Balloon>),
    Running(Worker<Work>),
    /// Its thread panicked. Only a new device helps.
    Lost,
}

#[derive(Debug)]
struct Served {
    purpose: Purpose,
    ring: Ring,
    kick: EventFd,
}

/// What the thread works with.
#[derive(Debug)]
pub(super) struct Work {
    balloon: Arc<Balloon>,
    queues: Vec<Served>,
    chain: Chain,
    numbers: Vec<u8>,
    /// The buffer of statistics that the driver gave, kept until it is to fill it anew.
    kept: Option<u16>,
    ask_at: Instant,
}

impl Queues {
    pub(super) fn new(balloon: Arc<Balloon>) -> Self {
        Self::Stopped(balloon)
    }

    pub(super) fn start(&mut self, setups: Vec<QueueSetup>, environment: &QueueEnvironment) -> Result<(), StartError> {
        let serve = |setup: QueueSetup| {
            let ring = Ring::new(&setup, environment)?;
            Ok(Served { purpose: Purpose::of(setup.index, environment.features), ring, kick: setup.kick })
        };
        let queues = setups.into_iter().map(serve).collect::<Result<Vec<_>, StartError>>()?;
        if queues.is_empty() {
            return Ok(());
        }
        let Self::Stopped(balloon) = self else {
            return Err(StartError::Host(std::io::Error::other("the device already runs or was lost")));
        };
        let (balloon, numbers) = (balloon.clone(), vec![0; PAGES_AT_ONCE * NUMBER_BYTES]);
        let work = Work { balloon, queues, chain: Chain::default(), numbers, kept: None, ask_at: Instant::now() };
        *self = Self::Running(Worker::start(&*environment.threads, "virtio-balloon", work, Work::run).map_err(|(_, error)| error)?);
        Ok(())
    }

    pub(super) fn stop(&mut self) -> Vec<(u16, QueueState)> {
        match std::mem::replace(self, Self::Lost) {
            Self::Running(worker) => match worker.stop() {
                Some(mut work) => {
                    work.give_back();
                    *self = Self::Stopped(work.balloon);
                    work.queues.iter().map(|queue| queue.ring.state()).collect()
                }
                None => Vec::new(),
            },
            other => {
                *self = other;
                Vec::new()
            }
        }
    }
}

impl Work {
    fn run(&mut self, stop: &Stop) {
        if let Err(why) = self.serve(stop) {
            // Of several rings any will do: the device is broken as a whole.
            if let Some(queue) = self.queues.first() {
                queue.ring.report_broken(&why);
            }
        }
    }

    fn serve(&mut self, stop: &Stop) -> Result<(), Broken> {
        let waiter = Waiter::new(stop)?;
        for (number, queue) in (0..).zip(&self.queues) {
            waiter.add(&queue.kick, number)?;
        }
        loop {
            let mut more = false;
            for at in 0..self.queues.len() {
                self.queues[at].ring.suppress_kicks()?;
                self.drain(at, stop)?;
                if stop.requested() {
                    return Ok(());
                }
                // What is left of statistics is looked at when they are asked for.
                more |= self.queues[at].ring.want_kick()? && !(self.queues[at].purpose == Purpose::Statistics && self.kept.is_some());
            }
            if more {
                continue;
            }
            let until = self.kept.map(|_| self.ask_at.saturating_duration_since(Instant::now()));
            let ready = waiter.wait(until)?;
            for (number, queue) in (0..).zip(&self.queues) {
                if ready.contains(number) {
                    take_kicks(&queue.kick);
                }
            }
            self.ask()?;
        }
    }

    fn drain(&mut self, at: usize, stop: &Stop) -> Result<(), Broken> {
        while !stop.requested() {
            let Served { purpose, ring, .. } = &mut self.queues[at];
            if *purpose == Purpose::Statistics && self.kept.is_some() || !ring.pop(&mut self.chain)? {
                break;
            }
            let (balloon, ram) = (&self.balloon, ring.ram());
            match purpose {
                Purpose::Inflate => inflate(balloon, &self.chain, ring, &mut self.numbers),
                Purpose::Report => report(balloon, &self.chain, ram),
                Purpose::Heard => {}
                Purpose::Statistics => {
                    let read = self.chain.reader(ram).read(&mut self.numbers[..statistics::BYTES_MAX]);
                    // A driver says something about once it has looked, so the first buffer may be empty of sense.
                    balloon.heard(statistics::read(&self.numbers[..read]));
                    self.kept = Some(self.chain.head());
                    self.ask_at = Instant::now() + ASK_EVERY;
                    continue;
                }
            }
            ring.add_used(&[(self.chain.head(), 0)])?;
            ring.notify()?;
        }
        Ok(())
    }

    /// Gives the buffer of statistics to the driver, if it is time: that is the question for new ones.
    fn ask(&mut self) -> Result<(), Broken> {
        let Some(head) = self.kept.filter(|_| Instant::now() >= self.ask_at) else { return Ok(()) };
        self.kept = None;
        if let Some(queue) = self.queues.iter_mut().find(|queue| queue.purpose == Purpose::Statistics) {
            queue.ring.add_used(&[(head, 0)])?;
            queue.ring.notify()?;
        }
        Ok(())
    }

    /// Nothing is in flight in a stopped device: the buffer that was kept is available again.
    fn give_back(&mut self) {
        if self.kept.take().is_some()
            && let Some(queue) = self.queues.iter_mut().find(|queue| queue.purpose == Purpose::Statistics)
        {
            queue.ring.push_back(1);
        }
    }
}

/// Pages by their numbers, which are those of 4 KiB whatever the guest's own are.
fn inflate(balloon: &Balloon, chain: &Chain, ring: &Ring, numbers: &mut [u8]) {
    let mut reader = chain.reader(ring.ram());
    let mut left = CHAIN_PAGES_MAX;
    loop {
        let read = reader.read(numbers) / NUMBER_BYTES;
        if read == 0 || left == 0 {
            break;
        }
        left = left.saturating_sub(read);
        let mut pages: Vec<u32> =
            numbers.chunks_exact(NUMBER_BYTES).take(read).filter_map(|number| number.try_into().ok().map(u32::from_le_bytes)).collect();
        pages.sort_unstable();
        pages.dedup();
        for run in runs(&pages) {
            give(balloon, ring.ram(), run.start * PAGE_BYTES..run.end * PAGE_BYTES, |range| ring.reaches(range));
        }
    }
    balloon.refuse(reader.left() / NUMBER_BYTES as u64);
}

/// Free pages as the buffers of a chain, which is known to be in RAM.
fn report(balloon: &Balloon, chain: &Chain, ram: &GuestRam) {
    for range in chain.writable() {
        let inner = range.start.next_multiple_of(PAGE_BYTES)..range.end / PAGE_BYTES * PAGE_BYTES;
        if inner.start < inner.end {
            balloon.reported_bytes.fetch_add(inner.end - inner.start, std::sync::atomic::Ordering::Relaxed);
            give(balloon, ram, inner, |_| true);
        }
    }
}

fn give(balloon: &Balloon, ram: &GuestRam, range: Range<u64>, reaches: impl FnOnce(&Range<u64>) -> bool) {
    let bytes = range.end - range.start;
    if ram.check_range(GuestAddress(range.start), bytes as usize) && reaches(&range) {
        balloon.take(range);
    } else {
        balloon.refuse(bytes / PAGE_BYTES);
    }
}

/// Ascending numbers as ranges.
fn runs(pages: &[u32]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = vec![];
    for page in pages.iter().map(|page| u64::from(*page)) {
        match runs.last_mut() {
            Some(run) if run.end == page => run.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}
