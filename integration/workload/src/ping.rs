//! Pings at a steady rate, every one remembered, so that silences and losses can be told by phase afterwards.
//!
//! ICMP echo (RFC 792) through the kernel's ping sockets: the kernel sets the identifier and hands over only our answers.
//! The payload carries a 64-bit number, because the sequence field wraps.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use crate::words::{PingPhase, PingReport};

/// Pings remembered: three hours at 10 ms.
const PINGS_MAX: usize = 1_080_000;
/// A ping younger than this is not judged.
const PATIENCE: Duration = Duration::from_secs(3);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const HEADER_BYTES: usize = 8;
const PACKET_BYTES: usize = 64;

/// One ping: when it was sent and when its answer came, in nanoseconds since the start.
#[derive(Debug, Clone, Copy)]
struct Ping {
    sent_ns: u64,
    answered_ns: Option<u64>,
}

#[derive(Default)]
struct Log {
    pings: Vec<Ping>,
    /// Name and beginning of each phase.
    phases: Vec<(String, u64)>,
    failed: Option<String>,
}

/// Pings to one target, for the life of the process.
pub struct Pinger {
    to: Ipv4Addr,
    start: Instant,
    log: Arc<Mutex<Log>>,
}

impl Pinger {
    /// Starts pinging.
    pub fn start(to: Ipv4Addr, every: Duration) -> io::Result<Self> {
        let socket = ping_socket()?;
        socket.connect(SocketAddrV4::new(to, 0))?;
        let start = Instant::now();
        let log = Arc::new(Mutex::new(Log { phases: vec![("start".to_owned(), 0)], ..Log::default() }));
        let receiving = socket.try_clone()?;
        let heard = Arc::clone(&log);
        thread::spawn(move || receive(&receiving, &heard, start));
        let said = Arc::clone(&log);
        thread::spawn(move || send(&socket, &said, start, every));
        Ok(Self { to, start, log })
    }

    /// Begins a new phase.
    pub fn phase(&self, name: &str) {
        locked(&self.log).phases.push((name.to_owned(), nanoseconds(self.start)));
    }

    /// Every phase so far.
    pub fn report(&self) -> PingReport {
        let now = nanoseconds(self.start);
        let log = locked(&self.log);
        let ends = log.phases.iter().skip(1).map(|(_, begin)| *begin).chain([now]);
        let mut phases: Vec<PingPhase> =
            log.phases.iter().zip(ends).map(|((name, begin), end)| judge(name, *begin, end, now, &log.pings)).collect();
        if let Some(why) = &log.failed {
            phases.push(PingPhase { name: format!("failed: {why}"), ..PingPhase::default() });
        }
        PingReport { to: self.to.to_string(), phases }
    }
}

fn locked(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A datagram socket of the kernel's ping protocol. As a standard socket it brings timeouts and `connect` with it.
fn ping_socket() -> io::Result<UdpSocket> {
    let descriptor: OwnedFd = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ipproto::ICMP))?;
    Ok(UdpSocket::from(descriptor))
}

fn send(socket: &UdpSocket, log: &Mutex<Log>, start: Instant, every: Duration) {
    let mut due = Instant::now();
    for number in 0..PINGS_MAX {
        locked(log).pings.push(Ping { sent_ns: nanoseconds(start), answered_ns: None });
        let mut packet = [0; PACKET_BYTES];
        packet[0] = ECHO_REQUEST;
        packet[6..8].copy_from_slice(&(number as u16).to_be_bytes());
        packet[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&(number as u64).to_le_bytes());
        // Refused or dropped here is as lost as anywhere else on the way.
        socket.send(&packet).ok();
        due = (due + every).max(Instant::now() - every);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    locked(log).failed = Some(format!("{PINGS_MAX} pings are enough"));
}

fn receive(socket: &UdpSocket, log: &Mutex<Log>, start: Instant) {
    let mut packet = [0; 256];
    loop {
        match socket.recv_from(&mut packet) {
            Ok((length, SocketAddr::V4(_))) if length >= HEADER_BYTES + 8 && packet[0] == ECHO_REPLY => {
                let number = packet[HEADER_BYTES..HEADER_BYTES + 8].try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
                let now = nanoseconds(start);
                if let Some(ping) = usize::try_from(number).ok().and_then(|number| locked(log).pings.get_mut(number).map(|ping| *ping)) {
                    // The first answer counts; a doubled one changes nothing.
                    if ping.answered_ns.is_none() {
                        locked(log).pings[number as usize].answered_ns = Some(now);
                    }
                }
            }
            // Unreachable for a moment is what a move may look like: keep listening.
            Ok(_) | Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// What happened between two moments. Silence is measured between arrivals, whenever the answered pings were sent.
fn judge(name: &str, begin: u64, end: u64, now: u64, pings: &[Ping]) -> PingPhase {
    let mut arrivals: Vec<u64> = pings.iter().filter_map(|ping| ping.answered_ns).filter(|at| (begin..end).contains(at)).collect();
    arrivals.sort_unstable();
    let marks: Vec<u64> = [begin].into_iter().chain(arrivals).chain([end]).collect();
    let longest = marks.windows(2).map(|pair| (pair[1] - pair[0], pair[0], pair[1])).max().unwrap_or((0, begin, begin));
    let patience = u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
    let judged = |ping: &&Ping| (begin..end).contains(&ping.sent_ns) && ping.sent_ns.saturating_add(patience) <= now;
    let lost: Vec<u64> = pings.iter().filter(judged).filter(|ping| ping.answered_ns.is_none()).map(|ping| ping.sent_ns).collect();
    let mut took: Vec<u64> =
        pings.iter().filter(judged).filter_map(|ping| ping.answered_ns.map(|at| at.saturating_sub(ping.sent_ns))).collect();
    took.sort_unstable();
    PingPhase {
        name: name.to_owned(),
        sent: pings.iter().filter(judged).count() as u64,
        lost: lost.len() as u64,
        lost_outside_silence: lost.iter().filter(|sent| !(longest.1..=longest.2).contains(sent)).count() as u64,
        longest_silence_ms: longest.0 as f64 / 1e6,
        median_ms: took.get(took.len() / 2).map_or(0.0, |median| *median as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_silence_and_its_losses_are_told_from_other_losses() {
        let ping = |sent: u64, answered: Option<u64>| Ping { sent_ns: sent * MS, answered_ns: answered.map(|at| at * MS) };
        // Every 10 ms, answered in 2 ms; silence from 100 to 300 (answers of 100..250 lost), one stray loss at 500.
        let pings: Vec<Ping> = (0..100)
            .map(|number| number * 10)
            .map(|sent| match sent {
                100..=249 | 500 => ping(sent, None),
                250..=299 => ping(sent, Some(302)),
                _ => ping(sent, Some(sent + 2)),
            })
            .collect();
        let phase = judge("move", 0, 1000 * MS, 10_000 * MS, &pings);
        assert_eq!((phase.sent, phase.lost, phase.lost_outside_silence), (100, 16, 1));
        assert_eq!(phase.longest_silence_ms, 210.0);
        assert_eq!(phase.median_ms, 2.0);
        let calm = judge("later", 600 * MS, 1000 * MS, 10_000 * MS, &pings);
        assert_eq!((calm.sent, calm.lost), (40, 0));
        assert_eq!(judge("young", 0, 1000 * MS, 1000 * MS, &pings).sent, 0);
    }
}
