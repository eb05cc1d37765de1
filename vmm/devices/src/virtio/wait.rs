//! What a queue thread sleeps on: its stop request, kicks, and whatever else its device has. One epoll descriptor per thread.

use std::{io, os::fd::AsRawFd, time::Duration};

use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::EventFd,
};

use super::worker::Stop;

const STOP: u64 = u64::MAX;
/// Events taken per wait: stop, two kicks and a port.
const EVENTS_MAX: usize = 4;

/// Waits for any of a few descriptors, each known by a number below 64.
#[derive(Debug)]
pub(crate) struct Waiter {
    epoll: Epoll,
}

/// Which descriptors are readable, by number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ready(u64);

impl Ready {
    pub(crate) fn contains(self, number: u64) -> bool {
        self.0 >> number & 1 == 1
    }
}

impl Waiter {
    /// Waits for `stop` too, so that a request to end never goes unheard.
    pub(crate) fn new(stop: &Stop) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, stop.wake().as_raw_fd(), EpollEvent::new(EventSet::IN, STOP))?;
        Ok(Self { epoll })
    }

    /// Adds a descriptor. It must stay open as long as this waiter lives.
    pub(crate) fn add(&self, descriptor: &impl AsRawFd, number: u64) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, descriptor.as_raw_fd(), EpollEvent::new(EventSet::IN, number))
    }

    /// Listens to a descriptor or turns a deaf ear to it.
    pub(crate) fn listen(&self, descriptor: &impl AsRawFd, number: u64, listen: bool) -> io::Result<()> {
        let events = if listen { EventSet::IN } else { EventSet::empty() };
        self.epoll.ctl(ControlOperation::Modify, descriptor.as_raw_fd(), EpollEvent::new(events, number))
    }

    /// Sleeps until something is readable, stop is requested or the time is over.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        // Rounded up, or the last fraction of a millisecond before a deadline would be spent spinning.
        let timeout = timeout.map_or(-1, |time| i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        let count = match self.epoll.wait(timeout, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        let numbers = events[..count].iter().map(|event| event.data()).filter(|number| *number != STOP);
        Ok(Ready(numbers.fold(0, |all, number| all | 1 << number)))
    }
}

/// Takes all kicks that have piled up. Do it before looking at the ring: a kick that comes later then wakes again.
pub(crate) fn take_kicks(kick: &EventFd) {
    if let Err(error) = kick.read()
        && error.kind() != io::ErrorKind::WouldBlock
    {
        log::error!("read a kick: {error}");
    }
}
