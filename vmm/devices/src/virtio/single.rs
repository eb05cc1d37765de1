//! A queue of requests and its thread: a disk has one or several, the entropy source one.

use std::io;

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

/// Serves the requests of a queue.
pub(crate) trait Serve: Send + 'static {
    /// Called before the first request after each start, on the caller's thread.
    fn start(&mut self, environment: &QueueEnvironment) -> io::Result<()>;
    /// Serves until told to stop; nothing is under way when it returns. Looks at the ring first, kick or not.
    fn serve(&mut self, ring: &mut Ring, kick: &EventFd, stop: &Stop) -> Result<(), Broken>;
    /// Called after the last request, on the thread of whoever stops the queue.
    fn stopped(&mut self);
}

/// Answers requests one by one.
pub(crate) trait Answer: Send + 'static {
    /// Answers one request; says how many bytes it wrote into the chain. An error says that the chain is no request at all.
    fn answer(&mut self, chain: &Chain, ram: &GuestRam) -> Result<u32, Broken>;
}

/// What serves by answering one request after the other.
#[derive(Debug)]
pub(crate) struct OneByOne<A> {
    answers: A,
    chain: Chain,
}

/// The queue and its thread.
#[derive(Debug)]
pub(crate) enum SingleQueue<S> {
    /// No thread.
    Stopped(S),
    /// A thread has it.
    Running(Worker<Work<S>>),
    /// Its thread panicked. Only a new device helps.
    Lost,
}

/// What the thread works with.
#[derive(Debug)]
pub(crate) struct Work<S> {
    ring: Ring,
    kick: EventFd,
    serves: S,
}

impl<S: Serve> SingleQueue<S> {
    pub(crate) fn start(&mut self, name: &str, setup: QueueSetup, environment: &QueueEnvironment) -> Result<(), StartError> {
        let ring = Ring::new(&setup, environment)?;
        match std::mem::replace(self, Self::Lost) {
            Self::Stopped(mut serves) => {
                if let Err(error) = serves.start(environment) {
                    *self = Self::Stopped(serves);
                    return Err(error.into());
                }
                let work = Work { ring, kick: setup.kick, serves };
                match Worker::start(&*environment.threads, name, work, Work::run) {
                    Ok(worker) => *self = Self::Running(worker),
                    Err((mut work, error)) => {
                        work.serves.stopped();
                        *self = Self::Stopped(work.serves);
                        return Err(error.into());
                    }
                }
            }
            running => {
                *self = running;
                return Err(StartError::Host(io::Error::other("the device already runs or was lost")));
            }
        }
        Ok(())
    }

    /// Where the queue stands; none if it did not run.
    pub(crate) fn stop(&mut self) -> Option<(u16, QueueState)> {
        match std::mem::replace(self, Self::Lost) {
            Self::Running(worker) => worker.stop().map(|mut work| {
                work.serves.stopped();
                *self = Self::Stopped(work.serves);
                work.ring.state()
            }),
            other => {
                *self = other;
                None
            }
        }
    }
}

impl<S: Serve> Work<S> {
    fn run(&mut self, stop: &Stop) {
        if let Err(why) = self.serves.serve(&mut self.ring, &self.kick, stop) {
            self.ring.report_broken(&why);
        }
    }
}

impl<A> OneByOne<A> {
    pub(crate) fn new(answers: A) -> Self {
        Self { answers, chain: Chain::default() }
    }
}

impl<A: Answer> Serve for OneByOne<A> {
    fn start(&mut self, _environment: &QueueEnvironment) -> io::Result<()> {
        Ok(())
    }

    fn serve(&mut self, ring: &mut Ring, kick: &EventFd, stop: &Stop) -> Result<(), Broken> {
        let waiter = Waiter::new(stop)?;
        waiter.add(kick, KICK)?;
        loop {
            // First thing after a start too: what was available before it brings no kick.
            ring.suppress_kicks()?;
            while !stop.requested() && ring.pop(&mut self.chain)? {
                let written = self.answers.answer(&self.chain, ring.ram())?;
                ring.add_used(&[(self.chain.head(), written)])?;
                // One by one: a slow request must not keep the finished ones before it from the guest.
                ring.notify()?;
            }
            if stop.requested() {
                return Ok(());
            }
            let more = ring.want_kick()?;
            // Kicks are taken before the ring is looked at: one that comes in between wakes again.
            if !more && waiter.wait(None)?.contains(KICK) {
                take_kicks(kick);
            }
        }
    }

    fn stopped(&mut self) {}
}
