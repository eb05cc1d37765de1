//! What one receive call brought: where its datagrams lie, and whose they are.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
};

use crate::{counters::Counters, seal::Seals};

/// The datagrams of one receive call, and how far they have been looked at. Used again and again: it allocates while it grows.
#[derive(Debug, Clone)]
pub struct Inbound {
    source: SocketAddrV4,
    datagrams: Datagrams,
}

#[derive(Debug, Clone)]
enum Datagrams {
    /// As they came: `bytes` bytes in pieces of `stride`, the last perhaps shorter.
    Plain { stride: usize, bytes: usize, next: usize },
    /// Where the payload of each lies that was opened.
    Opened { payloads: Vec<(Range<usize>, SocketAddrV4)>, next: usize },
    /// One record of a port of this host, of so many bytes; none once it was looked at.
    Near(Option<usize>),
}

impl Inbound {
    /// `bytes` bytes from `source`: datagrams of `stride` bytes, the last perhaps shorter.
    pub fn new(source: SocketAddrV4, bytes: usize, stride: usize) -> Self {
        Self { source, datagrams: Datagrams::Plain { stride: stride.max(1), bytes, next: 0 } }
    }

    /// One record of a port of this host, whose endpoint is `source`.
    pub fn near(source: SocketAddrV4, bytes: usize) -> Self {
        Self { source, datagrams: Datagrams::Near(Some(bytes)) }
    }

    /// Takes that record: how long it is, and the endpoint of who sent it.
    pub fn take_near(&mut self) -> Option<(usize, SocketAddrV4)> {
        let Datagrams::Near(record) = &mut self.datagrams else { return None };
        Some((record.take()?, self.source))
    }

    /// Nothing.
    pub fn empty() -> Self {
        Self::new(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), 0, 1)
    }

    /// Opens sealed datagrams of `stride` bytes, the last perhaps shorter, in place of what was here. What cannot be opened is counted.
    pub fn open(&mut self, seals: &mut Seals, run: &mut [u8], stride: usize, counters: &mut Counters) {
        let mut payloads = match std::mem::replace(self, Self::empty()).datagrams {
            Datagrams::Opened { payloads, .. } => payloads,
            Datagrams::Plain { .. } | Datagrams::Near(_) => Vec::new(),
        };
        payloads.clear();
        let stride = stride.max(1);
        for (start, datagram) in (0..).step_by(stride).zip(run.chunks_mut(stride)) {
            match seals.open(datagram) {
                Ok((range, from)) => payloads.push((start + range.start..start + range.end, from)),
                Err(reason) => {
                    counters.rx_datagrams += 1;
                    counters.drop(reason);
                }
            }
        }
        self.datagrams = Datagrams::Opened { payloads, next: 0 };
    }

    /// The next datagram: where it lies, and the endpoint of who sent it.
    pub fn peek(&self) -> Option<(Range<usize>, SocketAddrV4)> {
        match &self.datagrams {
            Datagrams::Plain { stride, bytes, next } => (next < bytes).then(|| (*next..(next + stride).min(*bytes), self.source)),
            Datagrams::Opened { payloads, next } => payloads.get(*next).cloned(),
            Datagrams::Near(_) => None,
        }
    }

    /// Goes on to the one after the next.
    pub fn skip(&mut self) {
        match &mut self.datagrams {
            Datagrams::Plain { stride, bytes, next } => *next = (*next + *stride).min(*bytes),
            Datagrams::Opened { payloads, next } => *next = (*next + 1).min(payloads.len()),
            Datagrams::Near(record) => *record = None,
        }
    }
}
