//! A device with one queue of requests and one thread that answers them in order: the block device and the entropy source.

use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::{
    QueueEnvironment, QueueSetup, QueueState, StartError,
    chain::Chain,
    ring::{Broken, Ring},
    wait::{Waiter, take_kicks},
    worker::{Stop, Worker},
};
use crate::GuestRam;

const KICK: u64 = 0;

/// Answers requests.
pub(crate) trait Answer: Send + 'static {
    /// When the next request may be answered; none, where that is now.
    fn not_before(&mut self) -> Option<Instant>;
    /// Called before the first request after each start.
    fn start(&mut self, features: u64);
    /// Answers one request; says how many bytes it wrote into the chain. An error says that the chain is no request at all.
    fn answer(&mut self, chain: &Chain, ram: &GuestRam) -> Result<u32, Broken>;
}

/// The queue and its thread.
#[derive(Debug)]
pub(crate) enum SingleQueue<A> {
    /// No thread.
    Stopped(A),
    /// A thread has it.
    Running(Worker<Work<A>>),
    /// Its thread panicked. Only a new device helps.
    Lost,
}

/// What the thread works with.
#[derive(Debug)]
pub(crate) struct Work<A> {
    ring: Ring,
    kick: EventFd,
    answer: A,
    chain: Chain,
}

impl<A: Answer> SingleQueue<A> {
    pub(crate) fn start(&mut self, name: &str, queues: Vec<QueueSetup>, environment: &QueueEnvironment) -> Result<(), StartError> {
        // A driver may set DRIVER_OK without making the queue ready: then there is nothing to serve.
        let Some(setup) = queues.into_iter().next() else { return Ok(()) };
        let ring = Ring::new(&setup, environment)?;
        match std::mem::replace(self, Self::Lost) {
            Self::Stopped(mut answer) => {
                answer.start(environment.features);
                let work = Work { ring, kick: setup.kick, answer, chain: Chain::default() };
                match Worker::start(&*environment.threads, name, work, Work::run) {
                    Ok(worker) => *self = Self::Running(worker),
                    Err((work, error)) => {
                        *self = Self::Stopped(work.answer);
                        return Err(error.into());
                    }
                }
            }
            running => {
                *self = running;
                return Err(StartError::Host(std::io::Error::other("the device already runs or was lost")));
            }
        }
        Ok(())
    }

    pub(crate) fn stop(&mut self) -> Vec<(u16, QueueState)> {
        match std::mem::replace(self, Self::Lost) {
            Self::Running(worker) => match worker.stop() {
                Some(work) => {
                    *self = Self::Stopped(work.answer);
                    vec![work.ring.state()]
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

impl<A: Answer> Work<A> {
    fn run(&mut self, stop: &Stop) {
        if let Err(why) = self.serve(stop) {
            self.ring.report_broken(&why);
        }
    }

    fn serve(&mut self, stop: &Stop) -> Result<(), Broken> {
        let waiter = Waiter::new(stop)?;
        waiter.add(&self.kick, KICK)?;
        loop {
            // First thing after a start too: what was available before it brings no kick.
            self.ring.suppress_kicks()?;
            let mut later = None;
            while !stop.requested() {
                later = self.answer.not_before();
                if later.is_some() || !self.ring.pop(&mut self.chain)? {
                    break;
                }
                let written = self.answer.answer(&self.chain, self.ring.ram())?;
                self.ring.add_used(&[(self.chain.head(), written)])?;
                // One by one: a slow request must not keep the finished ones before it from the guest.
                self.ring.notify()?;
            }
            if stop.requested() {
                return Ok(());
            }
            // A request that has to wait needs no kick to be seen.
            if let Some(at) = later {
                if waiter.wait(Some(at.saturating_duration_since(Instant::now())))?.contains(KICK) {
                    take_kicks(&self.kick);
                }
                continue;
            }
            let more = self.ring.want_kick()?;
            // Kicks are taken before the ring is looked at: one that comes in between wakes again.
            if !more && waiter.wait(None)?.contains(KICK) {
                take_kicks(&self.kick);
            }
        }
    }
}
