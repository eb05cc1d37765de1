//! Where connections of a move arrive, and wait until they have said what they are for. They speak side by side: one that says nothing holds up no
//! other, and is put out after a time.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use anyhow::{Result, anyhow};
use rebec_migrate::frame::{PREAMBLE_BYTES, Preamble};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SocketFlags, acceptfrom_with, recv},
};

use super::connection::PREAMBLE_TIME;

/// Connections that have not spoken yet; the one that has waited longest makes room.
const GUESTS_MAX: usize = 64;

/// A socket that listens, TCP, or Unix where somebody relays, and who came and has not spoken.
pub struct Lobby {
    listener: OwnedFd,
    guests: Vec<Guest>,
}

struct Guest {
    stream: TcpStream,
    from: Option<SocketAddr>,
    until: Instant,
    said: Vec<u8>,
}

/// A connection, whom it is from, if it has an address, and what it says it is for, or why it is put out.
pub type Spoken = (TcpStream, Option<SocketAddr>, Result<Preamble>);

impl Lobby {
    pub fn new(listener: OwnedFd) -> Self {
        Self { listener, guests: vec![] }
    }

    /// Waits for the next connection that has spoken or is put out.
    pub fn next(&mut self) -> io::Result<Spoken> {
        loop {
            let has_room = self.guests.len() < GUESTS_MAX;
            if !has_room && let Some(spoken) = self.put_out(0, "too many others came and said nothing") {
                return Ok(spoken);
            }
            let now = Instant::now();
            if let Some(late) = self.guests.iter().position(|guest| guest.until <= now)
                && let Some(spoken) = self.put_out(late, "the peer did not say what it wants")
            {
                return Ok(spoken);
            }
            let ready = self.wait(now)?;
            if ready.first() == Some(&true) {
                self.accept(now)?;
            }
            let heard = ready.iter().skip(1).position(|ready| *ready);
            if let Some(spoken) = heard.and_then(|guest| self.hear(guest)) {
                return Ok(spoken);
            }
        }
    }

    /// The listener first, then the guests in order: who has something.
    fn wait(&self, now: Instant) -> io::Result<Vec<bool>> {
        let all = std::iter::once(self.listener.as_fd()).chain(self.guests.iter().map(|guest| guest.stream.as_fd()));
        let mut polled: Vec<PollFd<'_>> = all.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)).collect();
        let until = self.guests.iter().map(|guest| guest.until).min();
        let left = until.map(|until| until.saturating_duration_since(now));
        let timeout = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(polled.iter().map(|polled| !polled.revents().is_empty()).collect())
    }

    fn accept(&mut self, now: Instant) -> io::Result<()> {
        match acceptfrom_with(&self.listener, SocketFlags::CLOEXEC) {
            Ok((connection, from)) => {
                let from = from.and_then(|from| from.try_into().ok());
                self.guests.push(Guest { stream: connection.into(), from, until: now + PREAMBLE_TIME, said: vec![] });
                Ok(())
            }
            // It left again before it was taken in.
            Err(Errno::INTR | Errno::CONNABORTED) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads on; the guest, if that was all of it or its end.
    fn hear(&mut self, number: usize) -> Option<Spoken> {
        let guest = self.guests.get_mut(number)?;
        let mut bytes = [0; PREAMBLE_BYTES];
        let missing = PREAMBLE_BYTES - guest.said.len();
        match recv(&guest.stream, &mut bytes[..missing], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return self.put_out(number, "the peer left before it said what it wants"),
            Ok((_, count)) => guest.said.extend_from_slice(&bytes[..count]),
            Err(Errno::AGAIN | Errno::INTR) => return None,
            Err(error) => return self.put_out(number, &error.to_string()),
        }
        let said: [u8; PREAMBLE_BYTES] = guest.said.as_slice().try_into().ok()?;
        let Guest { stream, from, .. } = self.guests.remove(number);
        Some((stream, from, Preamble::from_bytes(&said).map_err(anyhow::Error::from)))
    }

    fn put_out(&mut self, number: usize, why: &str) -> Option<Spoken> {
        if number >= self.guests.len() {
            return None;
        }
        let Guest { stream, from, .. } = self.guests.remove(number);
        Some((stream, from, Err(anyhow!("{why}"))))
    }
}
