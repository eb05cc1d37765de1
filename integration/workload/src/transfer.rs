//! A TCP transfer whose both ends keep a running checksum over the same blocks.
//!
//! ```text
//! sender -> server   blocks of 4 KiB (`pattern`), place = 0, 1, 2, ...; a last one with place = END
//! server -> sender   after every 32nd block and the last: u64 blocks so far | 32 bytes checksum          little endian
//! checksum(0) = zeros, checksum(n + 1) = BLAKE3(checksum(n) | block n)
//! ```
//! The owner of the blocks is a number the sender picks at random for its connection: one connection that lives through
//! everything shows one owner, no missing place, and the same checksum at both ends.

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    pattern::{BLOCK_BYTES, Label},
    words::{SenderReport, ServerReport},
};

/// Place of the block that ends a transfer.
const END: u64 = u64::MAX;
/// Blocks that are written at once: one frame where segmentation is the NIC's, and a few wake-ups a second.
const TURN_BLOCKS: u64 = 8;
/// Blocks between two confirmations.
const CONFIRM_EVERY: u64 = 32;
/// Confirmations that may be outstanding; a server that sends none makes the sender wait.
const UNCONFIRMED_MAX: usize = 4096;
const CONFIRMATION_BYTES: usize = 40;
/// How long the orderly end of a transfer may take.
const END_DEADLINE: Duration = Duration::from_secs(60);

type Checksum = [u8; 32];

fn advance(checksum: &Checksum, block: &[u8; BLOCK_BYTES]) -> Checksum {
    let mut hasher = blake3::Hasher::new();
    hasher.update(checksum).update(block);
    *hasher.finalize().as_bytes()
}

fn hex(checksum: &Checksum) -> String {
    checksum.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The receiving end, for the life of the process.
pub struct Server {
    report: Arc<Mutex<ServerReport>>,
}

impl Server {
    /// Listens; one connection after another is served and the latest reported.
    pub fn start(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        let report = Arc::new(Mutex::new(ServerReport::default()));
        let shared = Arc::clone(&report);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connections = locked(&shared).connections + 1;
                *locked(&shared) = ServerReport { connections, ..ServerReport::default() };
                let end = receive(stream, &shared);
                locked(&shared).ended = Some(end.map_or_else(|error| error.to_string(), |()| "complete".to_owned()));
            }
        });
        Ok(Self { report })
    }

    /// The latest connection.
    pub fn report(&self) -> ServerReport {
        locked(&self.report).clone()
    }
}

fn receive(mut stream: TcpStream, report: &Mutex<ServerReport>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut block = [0; BLOCK_BYTES];
    let mut checksum = Checksum::default();
    let mut owner = None;
    for place in 0.. {
        stream.read_exact(&mut block)?;
        let label = Label::read(&block).ok_or_else(|| io::Error::other(format!("block {place} is none")))?;
        let owner = *owner.get_or_insert(label.owner);
        let last = label.place == END;
        let expected = Label { owner, place: if last { END } else { place }, version: 0 };
        checksum = advance(&checksum, &block);
        let mut report = locked(report);
        report.nonce = format!("{owner:016x}");
        report.blocks = place + 1;
        report.wrong += u64::from(!expected.matches(&block));
        report.checksum = hex(&checksum);
        drop(report);
        if last || (place + 1) % CONFIRM_EVERY == 0 {
            let mut confirmation = (place + 1).to_le_bytes().to_vec();
            confirmation.extend_from_slice(&checksum);
            stream.write_all(&confirmation)?;
        }
        if last {
            return Ok(());
        }
    }
    Ok(())
}

/// What sender and listener for confirmations share.
#[derive(Default)]
struct Sending {
    report: SenderReport,
    /// Checksums the server has not confirmed yet.
    outstanding: VecDeque<(u64, Checksum)>,
}

/// The sending end of one transfer.
pub struct Sender {
    sending: Arc<Mutex<Sending>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Sender {
    /// Connects and starts sending at a rate. `owner` names the connection.
    pub fn start(to: SocketAddrV4, kbit: u32, owner: u64) -> io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        let reading = stream.try_clone()?;
        let sending = Arc::new(Mutex::new(Sending::default()));
        locked(&sending).report.nonce = format!("{owner:016x}");
        let stop = Arc::new(AtomicBool::new(false));
        let sender = {
            let (sending, stop) = (Arc::clone(&sending), Arc::clone(&stop));
            thread::spawn(move || {
                if let Err(error) = send(stream, kbit, owner, &sending, &stop) {
                    locked(&sending).report.ended.get_or_insert(format!("sending: {error}"));
                }
            })
        };
        let listener = {
            let sending = Arc::clone(&sending);
            thread::spawn(move || {
                let end = confirmations(reading, &sending);
                locked(&sending)
                    .report
                    .ended
                    .get_or_insert(end.map_or_else(|error| format!("confirmations: {error}"), |()| "complete".to_owned()));
            })
        };
        Ok(Self { sending, stop, threads: vec![sender, listener] })
    }

    /// Sends the last block and waits for its confirmation.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let start = Instant::now();
        while !self.threads.iter().all(JoinHandle::is_finished) {
            if start.elapsed() > END_DEADLINE {
                return Err(io::Error::other(format!("the transfer did not end in {} s", END_DEADLINE.as_secs())));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// How far it is.
    pub fn report(&self) -> SenderReport {
        locked(&self.sending).report.clone()
    }
}

fn send(mut stream: TcpStream, kbit: u32, owner: u64, sending: &Mutex<Sending>, stop: &AtomicBool) -> io::Result<()> {
    let every = Duration::from_nanos(TURN_BLOCKS * BLOCK_BYTES as u64 * 8 * 1_000_000 / u64::from(kbit.max(1)));
    let mut turn = Vec::new();
    let mut block = [0; BLOCK_BYTES];
    let mut checksum = Checksum::default();
    let mut due = Instant::now();
    for count in 1.. {
        let last = stop.load(Ordering::Relaxed);
        Label { owner, place: if last { END } else { count - 1 }, version: 0 }.fill(&mut block);
        checksum = advance(&checksum, &block);
        let mut shared = locked(sending);
        if last || count % CONFIRM_EVERY == 0 {
            shared.outstanding.push_back((count, checksum));
        }
        let full = shared.outstanding.len() >= UNCONFIRMED_MAX;
        drop(shared);
        if full {
            return Err(io::Error::other("the server confirms nothing"));
        }
        turn.extend_from_slice(&block);
        if !last && count % TURN_BLOCKS != 0 {
            continue;
        }
        stream.write_all(&turn)?;
        turn.clear();
        let mut shared = locked(sending);
        shared.report.blocks = count;
        shared.report.checksum = hex(&checksum);
        drop(shared);
        if last {
            return stream.shutdown(Shutdown::Write);
        }
        // What a stall held back is not sent in a burst afterwards.
        due = (due + every).max(Instant::now() - every);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn confirmations(mut stream: TcpStream, sending: &Mutex<Sending>) -> io::Result<()> {
    let mut latest = Instant::now();
    loop {
        let mut confirmation = [0; CONFIRMATION_BYTES];
        match stream.read_exact(&mut confirmation) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            done => done?,
        }
        let (count, checksum) = confirmation.split_at(8);
        let count = u64::from_le_bytes(count.try_into().map_err(io::Error::other)?);
        let mut shared = locked(sending);
        let expected = shared.outstanding.pop_front();
        let right = expected.is_some_and(|(number, expected)| number == count && expected[..] == *checksum);
        shared.report.wrong += u64::from(!right);
        shared.report.confirmed = count;
        let waited = u64::try_from(latest.elapsed().as_millis()).unwrap_or(u64::MAX);
        shared.report.longest_wait_ms = shared.report.longest_wait_ms.max(waited);
        latest = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_port() -> u16 {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn both_ends_agree_on_one_connection() {
        let port = free_port();
        let server = Server::start(port).unwrap();
        let mut sender = Sender::start(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), 1_000_000, 77).unwrap();
        while sender.report().confirmed < 100 {
            thread::sleep(Duration::from_millis(1));
        }
        sender.finish().unwrap();
        let (sent, received) = (sender.report(), server.report());
        assert_eq!((sent.wrong, sent.ended.as_deref()), (0, Some("complete")));
        assert_eq!(sent.confirmed, sent.blocks);
        assert_eq!((received.connections, received.wrong, received.blocks), (1, 0, sent.blocks));
        assert_eq!((received.nonce, received.checksum), (sent.nonce, sent.checksum));
    }

    #[test]
    fn a_wrong_block_is_counted_and_changes_the_checksum() {
        let port = free_port();
        let server = Server::start(port).unwrap();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut block = [0; BLOCK_BYTES];
        for place in [0, 2, END] {
            Label { owner: 1, place, version: 0 }.fill(&mut block);
            stream.write_all(&block).unwrap();
        }
        while server.report().ended.is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(server.report().wrong, 1);
    }
}
