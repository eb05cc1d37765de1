//! A capture at a port: what passes between guest and port, as pcapng, into a socket that was handed over; the frame path waits for nobody.
//!
//! Each message of the socket (SOCK_SEQPACKET) is a whole block, or several. What the socket has no room for is lost and counted, and the file says so in
//! its last block.

use std::{
    io::{self, IoSlice},
    os::fd::OwnedFd,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rebec_offload::FrameBytes;
use rebec_overlay::capture::{self, BadFilter, Filter, Way};
use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendFlags, sendmsg},
};

/// How long the end waits before it is tried again, should the reader be slow.
const END_RETRY: Duration = Duration::from_millis(20);
/// And how long in all: who does not read by then gets no end.
const END_TIME: Duration = Duration::from_secs(5);

/// A capture that has begun.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
    filter: Filter,
    until: Instant,
    /// Bytes that may still be written.
    left: u64,
    wanted: u64,
    lost: u64,
    block: Vec<u8>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// The last block is to be written, by then or never.
    Ending(Instant),
    Over,
}

impl Tap {
    /// Begins to write into a socket: at most so many bytes, for so long.
    pub fn begin(socket: OwnedFd, name: &str, filter: &str, bytes_max: u64, until: Instant) -> Result<Self, TapError> {
        let parsed: Filter = filter.parse()?;
        let mut tap = Self {
            socket,
            filter: parsed,
            until,
            left: bytes_max,
            wanted: 0,
            lost: 0,
            block: capture::begin(name, filter),
            stage: Stage::Open,
        };
        tap.left = tap.left.saturating_sub(tap.block.len() as u64);
        tap.put().map_err(|error| TapError::Begin(error.into()))?;
        Ok(tap)
    }

    /// Whether all of it is written, or nobody reads it any more.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        match self.stage {
            Stage::Open => Some(self.until),
            Stage::Ending(_) => Some(now + END_RETRY),
            Stage::Over => None,
        }
    }

    /// A frame passes.
    pub fn take(&mut self, way: Way, frame: &FrameBytes<'_>) {
        let head = frame.iter().find(|piece| !piece.is_empty()).unwrap_or_default();
        if self.stage != Stage::Open || !self.filter.wants(head) {
            return;
        }
        self.wanted += 1;
        capture::packet(&mut self.block, since_1970(), way, frame);
        let bytes = self.block.len() as u64;
        if bytes > self.left {
            // It is wanted all the same, and the file does not have it.
            self.lost += 1;
            return self.end(Instant::now());
        }
        match self.put() {
            Ok(()) => self.left -= bytes,
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::MSGSIZE) => self.lost += 1,
            Err(_) => self.stage = Stage::Over,
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        match self.stage {
            Stage::Open if now >= self.until => self.end(now),
            Stage::Ending(by) => self.write_end(now, by),
            _ => {}
        }
    }

    fn end(&mut self, now: Instant) {
        self.write_end(now, now + END_TIME);
    }

    fn write_end(&mut self, now: Instant, by: Instant) {
        self.block = capture::statistics(since_1970(), self.wanted, self.lost);
        self.stage = match self.put() {
            Err(Errno::AGAIN | Errno::NOBUFS) if now < by => Stage::Ending(by),
            _ => Stage::Over,
        };
    }

    fn put(&self) -> Result<(), Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(&self.socket, &[IoSlice::new(&self.block)], &mut SendAncillaryBuffer::default(), flags) {
                Err(Errno::INTR) => {}
                result => return result.map(|_bytes| ()),
            }
        }
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Why a capture did not begin.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Its filter.
    #[error(transparent)]
    Filter(#[from] BadFilter),
    /// Its socket.
    #[error("write to the socket that was handed over")]
    Begin(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn frame(bytes: usize) -> Vec<u8> {
        [&[0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 8, 6][..], &vec![7; bytes - 14]].concat()
    }

    fn tap(filter: &str, bytes_max: u64, time: Duration) -> (Tap, OwnedFd) {
        let (near, far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None).unwrap();
        (Tap::begin(near, "web", filter, bytes_max, Instant::now() + time).unwrap(), far)
    }

    /// Kinds of all blocks that can be read, and the last one.
    fn read(far: &OwnedFd) -> (Vec<u32>, Vec<u8>) {
        let (mut kinds, mut last, mut buffer) = (vec![], vec![], vec![0; 1 << 20]);
        while let Ok(bytes @ 1..) = rustix::io::read(far, &mut buffer) {
            let mut rest = &buffer[..bytes];
            while let Some((head, _)) = rest.split_first_chunk::<8>() {
                let [a, b, c, d, e, f, g, h] = *head;
                kinds.push(u32::from_le_bytes([a, b, c, d]));
                let (block, others) = rest.split_at(u32::from_le_bytes([e, f, g, h]) as usize);
                (last, rest) = (block.to_vec(), others);
            }
        }
        (kinds, last)
    }

    fn counted(statistics: &[u8]) -> (u64, u64) {
        let number = |at: usize| u64::from_le_bytes(*statistics[at..].first_chunk().unwrap());
        (number(24), number(36))
    }

    #[test]
    fn a_capture_ends_by_time_with_what_it_lost() {
        let (mut tap, far) = tap("arp", 1 << 30, Duration::from_secs(1));
        tap.take(Way::Out, &FrameBytes::whole(&frame(60)));
        let mut other = frame(60);
        other[12] = 9;
        tap.take(Way::In, &FrameBytes::whole(&other));
        assert_eq!(read(&far).0, [0x0a0d_0d0a, 1, 6]);
        // Nobody reads: the frame path goes on, and frames are lost.
        for _ in 0..1000 {
            tap.take(Way::In, &FrameBytes::whole(&frame(60_000)));
        }
        let now = Instant::now() + Duration::from_secs(2);
        tap.tick(now);
        assert!(!tap.is_over() && tap.next_deadline(now).is_some(), "there is no room for the end");
        let kept = read(&far).0.len() as u64;
        tap.tick(now + END_RETRY);
        let (kinds, last) = read(&far);
        assert!(tap.is_over() && kinds == [5] && kept > 0 && kept < 1000);
        assert_eq!(counted(&last), (1001, 1000 - kept));
    }

    #[test]
    fn a_capture_ends_by_size_and_with_its_reader() {
        let (mut tap, far) = tap("", 1000, Duration::from_secs(60));
        (0..20).for_each(|_| tap.take(Way::Out, &FrameBytes::whole(&frame(200))));
        let (kinds, last) = read(&far);
        assert!(tap.is_over() && kinds.len() == 6 && counted(&last) == (4, 1), "{kinds:?} {:?}", counted(&last));
        let (mut tap, far) = self::tap("", 1000, Duration::from_secs(60));
        drop(far);
        tap.take(Way::Out, &FrameBytes::whole(&frame(200)));
        assert!(tap.is_over());
    }
}
