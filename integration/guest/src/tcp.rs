//! Enough TCP to carry a checked stream (RFC 9293): one sender that opens a connection, one receiver that accepts one.
//!
//! Pure: segments and times in, segments out. The sender goes back to the last acknowledged byte when three acknowledgements repeat
//! (RFC 5681 without selective recovery) or 200 ms pass without progress, without backing off further: after a stall it must be quick. Both
//! sides interoperate with the kernel's TCP. Not here: listening queues, urgent data, out-of-order assembly, keep-alive.

/// FIN, SYN, RST, PSH and ACK.
pub const FIN: u8 = 1;
/// See [`FIN`].
pub const SYN: u8 = 2;
/// See [`FIN`].
pub const RST: u8 = 4;
/// See [`FIN`].
pub const PSH: u8 = 8;
/// See [`FIN`].
pub const ACK: u8 = 16;

/// Shift of the windows that this side announces.
pub const SHIFT: u8 = 7;
/// Bytes under way at most.
const WINDOW_BYTES: u64 = 4 << 20;
const RETRY_US: u64 = 200_000;
/// Largest payload of one frame before segmentation: an IPv4 packet has at most 65,535 bytes, headers included.
pub const PAYLOAD_MAX: u64 = 65_495;

/// A segment's header, either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags.
    pub flags: u8,
    /// Window as the field has it.
    pub window: u16,
    /// Maximum segment size option; 0 is none.
    pub mss: u16,
    /// Window shift option.
    pub shift: Option<u8>,
    /// Where the payload begins in the stream.
    pub offset: u64,
    /// Bytes of payload.
    pub bytes: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Closed,
    Opening,
    Open,
    Finished,
}

/// The side that opens a connection and sends.
pub struct Sender {
    state: State,
    iss: u32,
    peer_next: u32,
    una: u64,
    next: u64,
    sent: u64,
    total: u64,
    allowed: u64,
    window: u64,
    shift: u8,
    mss: u64,
    payload_max: u64,
    congestion: u64,
    threshold: u64,
    repeats: u32,
    recover: u64,
    progress_us: u64,
    /// Times it went back.
    pub retransmits: u64,
    /// Connections it opened.
    pub opened: u32,
}

impl Sender {
    /// Will send `total` bytes, or without end if that is 0, in segments of at most `mss`, of which one frame may hold `payload_max` bytes.
    pub fn new(total: u64, mss: u16, payload_max: u64) -> Self {
        Self {
            state: State::Closed,
            iss: 0,
            peer_next: 0,
            una: 0,
            next: 0,
            sent: 0,
            total: if total == 0 { u64::MAX } else { total },
            allowed: u64::MAX,
            window: 0,
            shift: 0,
            mss: u64::from(mss),
            payload_max,
            congestion: 0,
            threshold: WINDOW_BYTES,
            repeats: 0,
            recover: 0,
            progress_us: 0,
            retransmits: 0,
            opened: 0,
        }
    }

    /// Sends the stream once more, over a new connection, if it was sent to its end.
    pub fn again(&mut self) {
        if self.state == State::Finished {
            self.state = State::Closed;
            (self.una, self.next, self.sent) = (0, 0, 0);
        }
    }

    /// Bytes of the stream that the peer has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.una.min(self.total)
    }

    /// Limits what may have been sent by now, for a sender with a rate.
    pub fn allow(&mut self, bytes: u64) {
        self.allowed = bytes;
    }

    /// Whether all was sent and acknowledged.
    pub fn finished(&self) -> bool {
        self.state == State::Finished
    }

    /// Largest segment on the wire.
    pub fn mss(&self) -> u16 {
        self.mss as u16
    }

    /// The next segment to send, if one is due. A connection begins with the sequence number that follows from the time.
    pub fn poll(&mut self, now_us: u64) -> Option<Segment> {
        match self.state {
            State::Finished => None,
            State::Closed | State::Opening => {
                let due = self.opened == 0 || now_us.wrapping_sub(self.progress_us) >= RETRY_US;
                due.then(|| self.open(now_us))
            }
            State::Open => {
                if self.una < self.sent && now_us.wrapping_sub(self.progress_us) >= RETRY_US {
                    self.go_back(now_us, 2 * self.mss);
                }
                self.data(now_us)
            }
        }
    }

    fn open(&mut self, now_us: u64) -> Segment {
        if self.state == State::Closed {
            self.iss = (now_us as u32).wrapping_mul(250) ^ 0x5eed_0000;
            self.opened += 1;
            (self.una, self.next, self.sent) = (0, 0, 0);
            self.state = State::Opening;
        }
        self.progress_us = now_us;
        Segment { seq: self.iss, flags: SYN, window: u16::MAX, mss: self.mss as u16, shift: Some(SHIFT), ..Segment::default() }
    }

    fn data(&mut self, now_us: u64) -> Option<Segment> {
        let room = self.window.min(self.congestion).min(WINDOW_BYTES).saturating_sub(self.next - self.una);
        let left = self.total.min(self.allowed).saturating_sub(self.next);
        let most = (self.payload_max / self.mss).max(1) * self.mss;
        let bytes = left.min(most).min(room);
        let fin = self.total <= self.next && self.next == self.total;
        // Small pieces are not worth a frame while acknowledgements are on their way.
        if !fin && (bytes == 0 || (bytes < most / 2 && bytes < self.total - self.next && self.next > self.una)) {
            return None;
        }
        if self.una == self.sent {
            self.progress_us = now_us;
        }
        let segment = self.at(self.next, if fin { FIN | ACK } else { PSH | ACK }, if fin { 0 } else { bytes });
        self.next += if fin { 1 } else { bytes };
        self.sent = self.sent.max(self.next);
        Some(segment)
    }

    fn at(&self, offset: u64, flags: u8, bytes: u64) -> Segment {
        let seq = self.iss.wrapping_add(1).wrapping_add(offset as u32);
        Segment { seq, ack: self.peer_next, flags, window: u16::MAX, offset, bytes: bytes as u32, ..Segment::default() }
    }

    fn go_back(&mut self, now_us: u64, congestion: u64) {
        self.threshold = ((self.next - self.una) / 2).max(4 * self.mss);
        self.congestion = congestion;
        self.recover = self.sent;
        self.next = self.una;
        self.repeats = 0;
        self.retransmits += 1;
        self.progress_us = now_us;
    }

    /// Takes a segment that came back; an answer may be due.
    pub fn receive(&mut self, segment: &Segment, now_us: u64) -> Option<Segment> {
        if segment.flags & RST != 0 {
            if self.state != State::Finished {
                self.state = State::Closed;
                self.progress_us = now_us;
            }
            return None;
        }
        match self.state {
            State::Opening if segment.flags & (SYN | ACK) == SYN | ACK && segment.ack == self.iss.wrapping_add(1) => {
                self.state = State::Open;
                self.peer_next = segment.seq.wrapping_add(1);
                self.shift = segment.shift.unwrap_or(0).min(14);
                self.window = u64::from(segment.window);
                self.mss = self.mss.min(if segment.mss == 0 { 536 } else { u64::from(segment.mss) }).max(64);
                self.congestion = 10 * self.mss;
                self.progress_us = now_us;
                Some(self.at(0, ACK, 0))
            }
            State::Open | State::Finished if segment.flags & SYN != 0 => Some(self.at(self.next, ACK, 0)),
            State::Open => self.acknowledged_by(segment, now_us),
            State::Finished if segment.flags & FIN != 0 => {
                self.peer_next = segment.seq.wrapping_add(segment.bytes).wrapping_add(1);
                Some(self.at(self.next, ACK, 0))
            }
            _ => None,
        }
    }

    fn acknowledged_by(&mut self, segment: &Segment, now_us: u64) -> Option<Segment> {
        self.window = u64::from(segment.window) << self.shift;
        let advance = u64::from(segment.ack.wrapping_sub(self.iss.wrapping_add(1).wrapping_add(self.una as u32)));
        if advance > self.sent - self.una {
            return None;
        }
        if advance > 0 {
            self.una += advance;
            self.next = self.next.max(self.una);
            self.progress_us = now_us;
            self.repeats = 0;
            self.congestion = if self.congestion < self.threshold {
                self.congestion + advance
            } else {
                self.congestion + (self.mss * advance / self.congestion).max(1)
            }
            .min(WINDOW_BYTES);
        } else if segment.bytes == 0 && self.next > self.una && segment.flags & FIN == 0 {
            self.repeats += 1;
            if self.repeats == 3 && self.una >= self.recover {
                let half = ((self.next - self.una) / 2).max(4 * self.mss);
                self.go_back(now_us, half);
            }
        }
        if self.una > self.total {
            self.state = State::Finished;
        }
        if segment.flags & FIN != 0 {
            self.peer_next = segment.seq.wrapping_add(segment.bytes).wrapping_add(1);
            return Some(self.at(self.next, ACK, 0));
        }
        None
    }
}

/// What a receiver makes of a segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Bytes to leave out at the payload's start.
    pub skip: u32,
    /// Bytes to take after these; they begin at `offset` in the stream.
    pub take: u32,
    /// See `take`.
    pub offset: u64,
    /// Answer at once, rather than after the batch.
    pub answer: Option<Segment>,
    /// The stream has ended.
    pub ended: bool,
}

/// The side that accepts a connection and receives. A new connection replaces the one before.
pub struct Receiver {
    state: State,
    irs: u32,
    iss: u32,
    mss: u16,
    scaled: bool,
    next: u64,
    fin: bool,
    /// Connections it accepted.
    pub accepted: u32,
}

impl Receiver {
    /// Will tell peers to send at most `mss`.
    pub fn new(mss: u16) -> Self {
        Self { state: State::Closed, irs: 0, iss: 0, mss, scaled: false, next: 0, fin: false, accepted: 0 }
    }

    /// Bytes of the stream received in order.
    pub fn received(&self) -> u64 {
        self.next
    }

    /// An acknowledgement of all that was received.
    pub fn acknowledge(&self) -> Segment {
        let ack = self.irs.wrapping_add(1).wrapping_add(self.next as u32).wrapping_add(u32::from(self.fin));
        let window = if self.scaled { (WINDOW_BYTES >> SHIFT) as u16 } else { u16::MAX };
        let flags = if self.fin { ACK | FIN } else { ACK };
        Segment { seq: self.iss.wrapping_add(1), ack, flags, window, ..Segment::default() }
    }

    /// Takes a segment.
    pub fn receive(&mut self, segment: &Segment, now_us: u64) -> Verdict {
        let mut verdict = Verdict { skip: 0, take: 0, offset: self.next, answer: None, ended: false };
        if segment.flags & RST != 0 {
            self.state = State::Closed;
        } else if segment.flags & SYN != 0 {
            if self.state == State::Closed || segment.seq != self.irs {
                self.irs = segment.seq;
                self.iss = (now_us as u32).wrapping_mul(250) ^ 0xacc0_0000;
                self.scaled = segment.shift.is_some();
                (self.next, self.fin, self.state) = (0, false, State::Open);
                self.accepted += 1;
            }
            verdict.answer = Some(Segment {
                seq: self.iss,
                ack: self.irs.wrapping_add(1),
                flags: SYN | ACK,
                window: u16::MAX,
                mss: self.mss,
                shift: self.scaled.then_some(SHIFT),
                ..Segment::default()
            });
        } else if self.state == State::Closed {
            // A connection of an earlier life: say so, or its sender tries for ever.
            verdict.answer = Some(Segment { seq: segment.ack, flags: RST, ..Segment::default() });
        } else if segment.bytes > 0 || segment.flags & FIN != 0 {
            self.payload(segment, &mut verdict);
        }
        verdict
    }

    fn payload(&mut self, segment: &Segment, verdict: &mut Verdict) {
        let expected = self.irs.wrapping_add(1).wrapping_add(self.next as u32);
        // How far the segment begins before what is expected; a large number means after it.
        let early = expected.wrapping_sub(segment.seq);
        if early > segment.bytes || self.fin {
            verdict.answer = Some(self.acknowledge());
            return;
        }
        verdict.skip = early;
        verdict.take = segment.bytes - early;
        self.next += u64::from(verdict.take);
        if segment.flags & FIN != 0 {
            self.fin = true;
            verdict.ended = true;
            verdict.answer = Some(self.acknowledge());
        } else if verdict.take == 0 {
            verdict.answer = Some(self.acknowledge());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries a stream over a link that loses about one in `lose` segments either way.
    fn carry(total: u64, lose: u64) {
        let (mut sender, mut receiver) = (Sender::new(total, 1360, PAYLOAD_MAX), Receiver::new(1360));
        let (mut now_us, mut random, mut taken) = (0, lose, 0);
        let mut lost = move || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % lose == 0
        };
        while !sender.finished() {
            now_us += 1000;
            assert!(now_us < 600_000_000, "no progress at {taken}");
            for _ in 0..64 {
                let Some(segment) = sender.poll(now_us) else { break };
                if lost() {
                    continue;
                }
                let verdict = receiver.receive(&segment, now_us);
                assert_eq!(verdict.offset, taken);
                assert!(verdict.take == 0 || segment.offset + u64::from(verdict.skip) == taken);
                taken += u64::from(verdict.take);
                let answer = verdict.answer.unwrap_or(receiver.acknowledge());
                if !lost()
                    && let Some(segment) = sender.receive(&answer, now_us)
                {
                    receiver.receive(&segment, now_us);
                }
            }
        }
        assert_eq!((taken, receiver.received(), sender.acknowledged()), (total, total, total));
        sender.again();
        let syn = sender.poll(now_us + RETRY_US).unwrap();
        assert_eq!((syn.flags, sender.opened), (SYN, 2));
    }

    #[test]
    fn a_stream_arrives_whole_with_and_without_loss() {
        carry(64 << 20, 1 << 40);
        for lose in [3, 7, 50, 1001] {
            carry(4 << 20, lose);
        }
    }

    #[test]
    fn sequence_numbers_may_pass_four_gigabytes() {
        carry((1 << 32) + (8 << 20), 1 << 40);
    }

    #[test]
    fn a_segment_ahead_of_its_turn_is_asked_for_again() {
        let mut receiver = Receiver::new(1360);
        let syn = Segment { seq: 100, flags: SYN, ..Segment::default() };
        assert_eq!(receiver.receive(&syn, 0).answer.unwrap().ack, 101);
        let ahead = Segment { seq: 201, flags: ACK, bytes: 100, ..Segment::default() };
        let verdict = receiver.receive(&ahead, 0);
        assert_eq!((verdict.take, verdict.answer.unwrap().ack), (0, 101));
        let overlapping = Segment { seq: 101, flags: ACK, bytes: 150, ..Segment::default() };
        assert_eq!(receiver.receive(&overlapping, 0).take, 150);
        let verdict = receiver.receive(&ahead, 0);
        assert_eq!((verdict.skip, verdict.take, verdict.offset), (50, 50, 150));
    }
}
