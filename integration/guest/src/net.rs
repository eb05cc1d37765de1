//! A network port under load: virtio-net rings, the answers every port gives, and the traffic that the command line asks for.
//!
//! Always on: answers to ARP and to echo requests (ICMP, and UDP port 7), a checked receiver of one TCP connection on port 5001, a counter of
//! numbered datagrams on UDP port 5002. The stream's bytes are a fixed pattern, so sending copies nothing and every received byte is compared.

use core::slice;

use crate::{
    console::Console,
    memory::Memory,
    options::NetOptions,
    pattern::{self, STREAM_BYTES},
    say,
    tcp::{self, Receiver, Segment, Sender},
    virtio::{Device, Piece, Queue},
    wire::{self, Ends, Packet, Received},
};

/// VIRTIO_NET_F_CSUM, GUEST_CSUM, MTU, MAC, GUEST_TSO4 and HOST_TSO4.
const WANTED: u64 = 1 << 0 | 1 << 1 | HAS_MTU | 1 << 5 | 1 << 7 | HOST_TSO4;
const HAS_MTU: u64 = 1 << 3;
const HOST_TSO4: u64 = 1 << 11;
/// Bytes of virtio_net_hdr_v1.
const HEADER: usize = 12;
const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCP4: u8 = 1;

/// The largest frame that a card with TSO hands up (virtio 1.3 §5.1.6.3.1), in whole pages.
const RECEIVE_BYTES: usize = 17 * 4096;
const RECEIVE_BUFFERS: usize = 128;
/// Frames written here are short, or of the MTU when an echo is answered.
const SEND_BYTES: usize = 2048;
const SEND_BUFFERS: usize = 64;
/// Frames taken per turn of the main loop.
const FRAMES_PER_TURN: usize = 32;

const ECHO_PORT: u16 = 7;
const STREAM_PORT: u16 = 5001;
const COUNT_PORT: u16 = 5002;
const OWN_PORT: u16 = 40_000;
const PING_US: u64 = 10_000;
const ARP_US: u64 = 200_000;
const PING_ID: [u8; 2] = [0xbe, 0xc0];
/// Seed of the stream's bytes, the same in every guest and in the lab.
pub const STREAM_SEED: u64 = 0x0072_6562_6563;

/// One port.
pub struct Port {
    number: usize,
    options: NetOptions,
    rx: Queue,
    tx: Queue,
    rx_buffers: *mut u8,
    tx_buffers: *mut u8,
    tx_free: [u16; SEND_BUFFERS],
    tx_free_count: usize,
    /// The pattern, and its beginning once more, so that any frame's payload is one piece.
    stream: &'static [u8],
    ends: Ends,
    sender: Sender,
    receiver: Receiver,
    stream_from: Ends,
    stream_port: u16,
    packet_id: u16,
    began_us: u64,
    stream_began_us: Option<u64>,
    next_arp_us: u64,
    pings: Pings,
    done_said: bool,
    counts: Counts,
}

#[derive(Default)]
struct Pings {
    next_us: u64,
    sent: u64,
    received: u64,
    last_us: u64,
    gap_us_max: u64,
}

#[derive(Default)]
struct Counts {
    frames: u64,
    bad_bytes: u64,
    bad_checksums: u64,
    datagrams_sent: u64,
    datagrams: u64,
    datagrams_highest: u64,
    no_buffer: u64,
}

/// The stream's bytes, made once for all ports.
pub fn stream_bytes(memory: &mut Memory) -> Result<&'static [u8], &'static str> {
    let words = memory.take_words((STREAM_BYTES + 65536) as u64).ok_or("no memory for the stream")?;
    pattern::stream(STREAM_SEED, &mut words[..STREAM_BYTES / 8]);
    words.copy_within(..65536 / 8, STREAM_BYTES / 8);
    // SAFETY: the same memory, seen as bytes; words have no invalid bytes and the mutable view ends here.
    Ok(unsafe { slice::from_raw_parts(words.as_ptr().cast::<u8>(), words.len() * 8) })
}

impl Port {
    /// Drives the device from now on.
    pub fn new(
        number: usize,
        device: Device,
        options: NetOptions,
        stream: &'static [u8],
        memory: &mut Memory,
    ) -> Result<Self, &'static str> {
        let features = device.begin(WANTED)?;
        let mut mac = [0; 6];
        for (offset, byte) in (0..).zip(&mut mac) {
            *byte = device.config8(offset);
        }
        let mtu = if features & HAS_MTU == 0 { 1400 } else { u16::from_le_bytes([device.config8(10), device.config8(11)]) };
        let rx = device.queue(0, RECEIVE_BUFFERS as u16, memory)?;
        let tx = device.queue(1, 2 * SEND_BUFFERS as u16, memory)?;
        let rx_buffers = memory.take((RECEIVE_BUFFERS * RECEIVE_BYTES) as u64).ok_or("no memory for receive buffers")?.as_mut_ptr();
        let tx_buffers = memory.take((SEND_BUFFERS * SEND_BYTES) as u64).ok_or("no memory for send buffers")?.as_mut_ptr();
        device.go();
        let mss = mtu.saturating_sub(40).max(64);
        let tx_free_count = SEND_BUFFERS.min(usize::from(tx.size()) / 2);
        let mut port = Self {
            number,
            options,
            rx,
            tx,
            rx_buffers,
            tx_buffers,
            tx_free: core::array::from_fn(|buffer| buffer as u16),
            tx_free_count,
            stream,
            ends: Ends { mac, peer_mac: options.peer_mac, ip: options.ip, peer: options.peer },
            sender: Sender::new(options.bytes, mss, if features & HOST_TSO4 == 0 { u64::from(mss) } else { tcp::PAYLOAD_MAX }),
            receiver: Receiver::new(mss),
            stream_from: Ends::default(),
            stream_port: 0,
            packet_id: 0,
            began_us: 0,
            stream_began_us: None,
            next_arp_us: 0,
            pings: Pings::default(),
            done_said: false,
            counts: Counts::default(),
        };
        for buffer in 0..RECEIVE_BUFFERS.min(usize::from(port.rx.size())) {
            port.offer_receive(buffer as u16);
        }
        port.rx.kick();
        Ok(port)
    }

    /// One turn: what came in, then what is due to go out.
    pub fn turn(&mut self, now_us: u64, console: &mut Console) {
        while let Some((head, _)) = self.tx.done() {
            self.tx_free[self.tx_free_count] = head / 2;
            self.tx_free_count += 1;
        }
        let before = self.receiver.received();
        for _ in 0..FRAMES_PER_TURN {
            let Some((buffer, bytes)) = self.rx.done() else { break };
            self.received(buffer, bytes as usize, now_us, console);
            self.offer_receive(buffer);
        }
        self.rx.kick();
        if self.receiver.received() != before {
            // One acknowledgement for the whole batch.
            self.send_segment(&self.stream_from.clone(), (STREAM_PORT, self.stream_port), &self.receiver.acknowledge());
        }
        if self.ends.peer != 0 {
            if self.ends.peer_mac == [0; 6] {
                self.ask(now_us);
            } else {
                self.send_loads(now_us, console);
            }
        }
        self.tx.kick();
    }

    /// A line of counters.
    pub fn say(&self, console: &mut Console) {
        let lost = self.counts.datagrams_highest.saturating_sub(self.counts.datagrams);
        say!(
            console,
            "net {} acked={} retransmits={} opened={} received={} accepted={} bad={} csum_bad={} udp_sent={} udp_received={} udp_lost={lost} \
             ping_sent={} ping_received={} ping_gap_us_max={} frames={} no_buffer={}",
            self.number,
            self.sender.acknowledged(),
            self.sender.retransmits,
            self.sender.opened,
            self.receiver.received(),
            self.receiver.accepted,
            self.counts.bad_bytes,
            self.counts.bad_checksums,
            self.counts.datagrams_sent,
            self.counts.datagrams,
            self.pings.sent,
            self.pings.received,
            self.pings.gap_us_max,
            self.counts.frames,
            self.counts.no_buffer
        );
    }

    /// Sends a stream that has ended once more.
    pub fn stream_again(&mut self) {
        self.sender.again();
        self.done_said = false;
    }

    /// Begins the longest silence anew.
    pub fn forget_gap(&mut self) {
        self.pings.gap_us_max = 0;
    }

    fn ask(&mut self, now_us: u64) {
        if now_us >= self.next_arp_us {
            self.next_arp_us = now_us + ARP_US;
            let ends = self.ends;
            self.send_plain(|out| wire::write_arp(out, &ends, true));
        }
    }

    fn send_loads(&mut self, now_us: u64, console: &mut Console) {
        let ends = self.ends;
        if self.options.ping && now_us >= self.pings.next_us {
            self.pings.next_us = (self.pings.next_us + PING_US).max(now_us);
            self.pings.sent += 1;
            let mut body = [0; 56];
            body[..2].copy_from_slice(&PING_ID);
            body[2..4].copy_from_slice(&(self.pings.sent as u16).to_be_bytes());
            self.send_plain(|out| wire::write_echo(out, &ends, true, &body));
        }
        if self.options.tso && self.options.mbit > 0 {
            let began_us = *self.stream_began_us.get_or_insert(now_us);
            self.sender.allow((now_us - began_us) * self.options.mbit / 8);
        }
        while self.options.tso && self.tx_free_count > 4 {
            let Some(segment) = self.sender.poll(now_us) else { break };
            self.send_segment(&ends, (OWN_PORT + self.sender.opened as u16, STREAM_PORT), &segment);
        }
        if self.options.tso && self.sender.finished() && !self.done_said {
            self.done_said = true;
            say!(console, "net {} done bytes={} ms={}", self.number, self.sender.acknowledged(), now_us / 1000);
        }
        if self.options.small {
            self.send_small(now_us);
        }
    }

    fn send_small(&mut self, now_us: u64) {
        if self.began_us == 0 {
            self.began_us = now_us;
        }
        let due = match self.options.rate {
            0 => u64::MAX,
            rate => ((now_us - self.began_us) as u128 * u128::from(rate) / 1_000_000) as u64,
        };
        let ends = self.ends;
        while self.counts.datagrams_sent < due && self.tx_free_count > 4 {
            self.counts.datagrams_sent += 1;
            let mut body = [0; 18];
            body[..8].copy_from_slice(&self.counts.datagrams_sent.to_be_bytes());
            self.send_plain(|out| wire::write_udp(out, &ends, (OWN_PORT, COUNT_PORT), &body));
        }
    }

    fn received(&mut self, buffer: u16, bytes: usize, now_us: u64, console: &mut Console) {
        // SAFETY: the device is done with the buffer, and it is not offered again before this function has returned.
        let all = unsafe { slice::from_raw_parts(self.receive_buffer(buffer), bytes.min(RECEIVE_BYTES)) };
        let Some((header, frame)) = all.split_at_checked(HEADER) else { return };
        self.counts.frames += 1;
        let vouched = header[0] & (NEEDS_CHECKSUM | DATA_VALID) != 0;
        let Some(Received { ends, packet, intact }) = wire::read(frame, !vouched) else { return };
        if !intact {
            self.counts.bad_checksums += 1;
            return;
        }
        if ends.peer != self.ends.ip {
            return;
        }
        let back = Ends { mac: self.ends.mac, ..ends.swapped() };
        match packet {
            Packet::Arp { request } => {
                if ends.ip == self.ends.peer && self.options.peer_mac == [0; 6] {
                    self.ends.peer_mac = ends.mac;
                }
                if request {
                    self.send_plain(|out| wire::write_arp(out, &back, false));
                }
            }
            Packet::Echo { request: true, body } if body.len() <= SEND_BYTES - 128 => {
                self.send_plain(|out| wire::write_echo(out, &back, false, body))
            }
            Packet::Echo { request: false, body } if body[..2] == PING_ID => self.pong(now_us),
            Packet::Udp { ports: (from, ECHO_PORT), body } if body.len() <= SEND_BYTES - 128 => {
                self.send_plain(|out| wire::write_udp(out, &back, (ECHO_PORT, from), body));
            }
            Packet::Udp { ports: (_, COUNT_PORT), body } if body.len() >= 8 => {
                let number = body[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
                self.counts.datagrams += 1;
                self.counts.datagrams_highest = self.counts.datagrams_highest.max(number);
            }
            Packet::Tcp { ports: (STREAM_PORT, _), segment, .. } if ends.ip == self.ends.peer => {
                if let Some(answer) = self.sender.receive(&segment, now_us) {
                    self.send_segment(&back, (OWN_PORT + self.sender.opened as u16, STREAM_PORT), &answer);
                }
            }
            Packet::Tcp { ports: (from, STREAM_PORT), segment, body } => self.stream(back, from, &segment, body, now_us, console),
            _ => {}
        }
    }

    fn pong(&mut self, now_us: u64) {
        self.pings.received += 1;
        if self.pings.last_us != 0 {
            self.pings.gap_us_max = self.pings.gap_us_max.max(now_us - self.pings.last_us);
        }
        self.pings.last_us = now_us;
    }

    fn stream(&mut self, back: Ends, from: u16, segment: &Segment, body: &[u8], now_us: u64, console: &mut Console) {
        (self.stream_from, self.stream_port) = (back, from);
        let verdict = self.receiver.receive(segment, now_us);
        if verdict.take > 0 {
            let payload = &body[verdict.skip as usize..][..verdict.take as usize];
            let at = (verdict.offset % STREAM_BYTES as u64) as usize;
            if !same(payload, &self.stream[at..at + payload.len()]) {
                let wrong = payload.iter().zip(&self.stream[at..]).filter(|(have, want)| have != want).count();
                if self.counts.bad_bytes == 0 {
                    say!(console, "net {} bad offset={} bytes={wrong}", self.number, verdict.offset);
                }
                self.counts.bad_bytes += wrong as u64;
            }
        }
        if verdict.ended {
            say!(console, "net {} end bytes={} bad={}", self.number, self.receiver.received(), self.counts.bad_bytes);
        }
        if let Some(answer) = verdict.answer {
            self.send_segment(&back, (STREAM_PORT, from), &answer);
        }
    }

    fn receive_buffer(&self, buffer: u16) -> *mut u8 {
        self.rx_buffers.wrapping_add(usize::from(buffer) % RECEIVE_BUFFERS * RECEIVE_BYTES)
    }

    fn offer_receive(&mut self, buffer: u16) {
        let address = self.receive_buffer(buffer) as u64;
        self.rx.offer(buffer, &[Piece { address, bytes: RECEIVE_BYTES as u32, device_writes: true }]);
    }

    /// Sends a frame that `write` puts into a buffer; counts it if no buffer is free.
    fn send_plain(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        self.send(|out| {
            out[..HEADER].fill(0);
            (HEADER + write(&mut out[HEADER..]), None)
        });
    }

    fn send_segment(&mut self, ends: &Ends, ports: (u16, u16), segment: &Segment) {
        self.packet_id = self.packet_id.wrapping_add(1);
        let (id, mss, stream) = (self.packet_id, self.sender.mss(), self.stream);
        self.send(|out| {
            let length = wire::write_tcp(&mut out[HEADER..], ends, ports, segment, id);
            let large = segment.bytes > u32::from(mss);
            let header = &mut out[..HEADER];
            header.fill(0);
            header[0] = NEEDS_CHECKSUM;
            if large {
                header[1] = GSO_TCP4;
                header[2..4].copy_from_slice(&(length as u16).to_le_bytes());
                header[4..6].copy_from_slice(&mss.to_le_bytes());
            }
            header[6..8].copy_from_slice(&(wire::TRANSPORT as u16).to_le_bytes());
            header[8..10].copy_from_slice(&wire::TCP_CHECKSUM.to_le_bytes());
            let at = (segment.offset % STREAM_BYTES as u64) as usize;
            (HEADER + length, (segment.bytes > 0).then(|| &stream[at..at + segment.bytes as usize]))
        });
    }

    fn send(&mut self, write: impl FnOnce(&mut [u8]) -> (usize, Option<&'static [u8]>)) {
        let Some(left) = self.tx_free_count.checked_sub(1) else {
            self.counts.no_buffer += 1;
            return;
        };
        self.tx_free_count = left;
        let buffer = self.tx_free[left];
        let start = self.tx_buffers.wrapping_add(usize::from(buffer) * SEND_BYTES);
        // SAFETY: the buffer is free, so neither the device nor anything else reads or writes it now.
        let out = unsafe { slice::from_raw_parts_mut(start, SEND_BYTES) };
        let (bytes, payload) = write(out);
        let first = Piece { address: start as u64, bytes: bytes as u32, device_writes: false };
        match payload {
            None => self.tx.offer(buffer * 2, &[first]),
            Some(payload) => {
                let second = Piece { address: payload.as_ptr() as u64, bytes: payload.len() as u32, device_writes: false };
                self.tx.offer(buffer * 2, &[first, second]);
            }
        }
    }
}

/// Whether two pieces of equal length hold the same, in vector registers.
fn same(left: &[u8], right: &[u8]) -> bool {
    let (mut a, mut b) = (left.chunks_exact(64), right.chunks_exact(64));
    let mut difference = 0;
    for (a, b) in a.by_ref().zip(b.by_ref()) {
        difference |= a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    }
    difference == 0 && a.remainder() == b.remainder()
}
