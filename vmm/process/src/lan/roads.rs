//! What a port waits for and hears: its socket, roads to ports of this host that are no network, and the control thread's knocking.
//!
//! ```text
//! agent: socketpair(SOCK_SEQPACKET) --ctl near--> control thread --> Roads --> queue thread: records (rebec_overlay::near), both ways
//! ```
//! A road is one end of a pair; the other is another VMM's. It ends with either process, and frames then take the network again, without anybody
//! being told. The kernel holds what the sender's buffer has room for, which the agent has chosen.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddrV4,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Cache};
use rebec_overlay::near::HEAD_BYTES;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll},
    io::Errno,
    net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg},
};

use super::socket::{Received, Receiver};

/// Ports of this host that one is told roads to.
pub const ROADS_MAX: usize = 256;
/// Records that are taken of one road before others have their turn.
const TURN: u32 = 16;
/// Of what is ready, how much is looked at at once.
const READY_MAX: usize = 16;
/// How long a full road is waited for. One where that was in vain is waited for again only when it has taken something.
const SEND_WAIT: Duration = Duration::from_millis(10);

const SOCKET: u64 = 0;
const KNOCK: u64 = 1;
const FIRST_ROAD: u64 = 2;

/// Why a road was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RoadError {
    /// So many are enough for any host.
    #[error("{ROADS_MAX} roads to ports of this host are known, the limit")]
    Full,
    /// It cannot be waited for.
    #[error("wait for the socket that was handed over")]
    Wait(#[from] io::Error),
}

/// One end of a pair.
#[derive(Debug)]
struct Road {
    number: u64,
    peer: SocketAddrV4,
    socket: OwnedFd,
    /// It was waited for in vain.
    stuck: AtomicBool,
}

#[derive(Debug, Clone, Default)]
struct Table {
    to: BTreeMap<SocketAddrV4, Arc<Road>>,
    numbered: BTreeMap<u64, Arc<Road>>,
}

/// All that one port waits for.
#[derive(Debug)]
pub struct Roads {
    epoll: OwnedFd,
    knock: OwnedFd,
    is_knocked: AtomicBool,
    table: Arc<ArcSwap<Table>>,
    /// Held while the table is edited, by the control thread or by the queue thread that has found a road's end. The number of the next one.
    next: Mutex<u64>,
}

impl Roads {
    /// Of a port with this socket, to nowhere yet.
    pub fn new(socket: &impl AsFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let knock = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, socket, epoll::EventData::new_u64(SOCKET), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &knock, epoll::EventData::new_u64(KNOCK), epoll::EventFlags::IN)?;
        Ok(Self { epoll, knock, is_knocked: AtomicBool::new(false), table: Arc::default(), next: Mutex::new(FIRST_ROAD) })
    }

    /// A road to the port behind an endpoint, in place of the one that was there.
    pub fn add(&self, peer: SocketAddrV4, socket: OwnedFd) -> Result<(), RoadError> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table.load());
        let before = table.to.remove(&peer);
        if table.to.len() >= ROADS_MAX {
            return Err(RoadError::Full);
        }
        let road = Arc::new(Road { number: *next, peer, socket, stuck: AtomicBool::new(false) });
        let added = epoll::add(&self.epoll, &road.socket, epoll::EventData::new_u64(road.number), epoll::EventFlags::IN);
        added.map_err(io::Error::from)?;
        *next += 1;
        if let Some(before) = before {
            table.numbered.remove(&before.number);
            self.forget(&before);
        }
        table.numbered.insert(road.number, road.clone());
        table.to.insert(peer, road);
        self.table.store(Arc::new(table));
        Ok(())
    }

    fn remove(&self, road: &Road) {
        let _editing = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table.load());
        if table.numbered.remove(&road.number).is_some() {
            self.forget(road);
        }
        if table.to.get(&road.peer).is_some_and(|other| other.number == road.number) {
            table.to.remove(&road.peer);
        }
        self.table.store(Arc::new(table));
    }

    /// Somebody may still hold the descriptor, and would be woken by it for ever.
    fn forget(&self, road: &Road) {
        if let Err(error) = epoll::delete(&self.epoll, &road.socket) {
            log::warn!("a road to {}: {error}", road.peer);
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.table.load().to.len()
    }

    /// Has the queue thread look at what the control thread has for it.
    pub fn knock(&self) -> io::Result<()> {
        rustix::io::write(&self.knock, &1_u64.to_ne_bytes())?;
        // Behind the event: whoever sees it finds that taken.
        self.is_knocked.store(true, Ordering::Release);
        Ok(())
    }

    fn hear_knock(&self) -> bool {
        if !self.is_knocked.swap(false, Ordering::Acquire) {
            return false;
        }
        // An empty counter says that it was heard before.
        rustix::io::read(&self.knock, &mut [0; 8]).ok();
        true
    }
}

impl AsFd for Roads {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// What arrived.
#[derive(Debug, Clone, Copy)]
pub enum Arrived {
    /// From the network.
    Datagrams(Received),
    /// From the port of this host that is behind an endpoint: one record of so many bytes.
    Record(SocketAddrV4, usize),
    /// The control thread has something.
    Knock,
}

/// The receiving side, of whichever thread owns the port.
#[derive(Debug)]
pub struct Intake {
    receiver: Receiver,
    roads: Arc<Roads>,
    table: Cache<Arc<ArcSwap<Table>>, Arc<Table>>,
    /// Roads with something to take, and how much of the last one's turn is left.
    ready: Vec<Arc<Road>>,
    turn: u32,
}

impl Intake {
    /// Of a port's socket and its roads.
    pub fn new(receiver: Receiver, roads: Arc<Roads>) -> Self {
        Self { receiver, table: Cache::new(roads.table.clone()), roads, ready: Vec::with_capacity(READY_MAX), turn: TURN }
    }

    /// Takes what is there, of roads and the network in turn; `None` if nothing is.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Arrived>> {
        if self.roads.hear_knock() {
            return Ok(Some(Arrived::Knock));
        }
        while let Some(road) = self.ready.last() {
            self.turn -= 1;
            let taken = take(road, buffer);
            let is_over = taken == Taken::Over;
            if is_over {
                log::debug!("the port at {} is not reached on this host any more", road.peer);
                self.roads.remove(road);
            }
            let arrived = if let Taken::Record(bytes) = taken { Some(Arrived::Record(road.peer, bytes)) } else { None };
            if arrived.is_none() || self.turn == 0 {
                (self.turn, _) = (TURN, self.ready.pop());
            }
            if arrived.is_some() {
                return Ok(arrived);
            }
        }
        if let Some(received) = self.receiver.receive(buffer)? {
            self.look()?;
            return Ok(Some(Arrived::Datagrams(received)));
        }
        self.look()?;
        // There is no end to this: what is ready has a record or is removed.
        if self.ready.is_empty() { Ok(None) } else { self.receive(buffer) }
    }

    /// Which roads have something to take. Without any no question is asked.
    fn look(&mut self) -> io::Result<()> {
        let table = self.table.load();
        if table.to.is_empty() {
            return Ok(());
        }
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(SOCKET) }; READY_MAX];
        let count = match epoll::wait(&self.roads.epoll, &mut events[..], Some(&Timespec::default())) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        self.ready.extend(events[..count].iter().filter_map(|event| table.numbered.get(&event.data.u64()).cloned()));
        Ok(())
    }
}

#[derive(PartialEq, Eq)]
enum Taken {
    Record(usize),
    Nothing,
    Over,
}

fn take(road: &Road, buffer: &mut [u8]) -> Taken {
    loop {
        let mut slices = [IoSliceMut::new(buffer)];
        return match recvmsg(&road.socket, &mut slices, &mut RecvAncillaryBuffer::default(), RecvFlags::DONTWAIT) {
            Ok(message) if message.flags.contains(ReturnFlags::TRUNC) => {
                log::debug!("a record of the port at {} is longer than any", road.peer);
                continue;
            }
            Ok(message) if message.bytes == 0 => Taken::Over,
            Ok(message) => Taken::Record(message.bytes),
            Err(Errno::AGAIN) => Taken::Nothing,
            Err(Errno::INTR) => continue,
            // The other end is gone, or nothing is to be had of it any more.
            Err(_) => Taken::Over,
        };
    }
}

/// The sending side.
#[derive(Debug)]
pub struct Exits {
    roads: Arc<Roads>,
    table: Cache<Arc<ArcSwap<Table>>, Arc<Table>>,
    lost: u64,
}

impl Exits {
    /// Of a port.
    pub fn new(roads: Arc<Roads>) -> Self {
        Self { table: Cache::new(roads.table.clone()), roads, lost: 0 }
    }

    /// Records that no road had room for.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether there is one to the port behind an endpoint.
    pub fn has(&mut self, to: SocketAddrV4) -> bool {
        self.table.load().to.contains_key(&to)
    }

    /// Sends a record. Whether there was a road: what it had no room for is lost.
    pub fn send(&mut self, to: SocketAddrV4, head: &[u8], frame: &[u8]) -> bool {
        let Some(road) = self.table.load().to.get(&to) else { return false };
        debug_assert_eq!(head.len(), HEAD_BYTES);
        match put(road, head, frame) {
            Ok(()) => true,
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED) => {
                let road = road.clone();
                self.roads.remove(&road);
                false
            }
            Err(error) => {
                log::debug!("to the port at {to} of this host: {error}");
                self.lost += 1;
                true
            }
        }
    }
}

fn put(road: &Road, head: &[u8], frame: &[u8]) -> Result<(), Errno> {
    let send = || loop {
        let slices = [IoSlice::new(head), IoSlice::new(frame)];
        match sendmsg(&road.socket, &slices, &mut SendAncillaryBuffer::default(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(|_bytes| ()),
        }
    };
    let sent = match send() {
        Err(Errno::AGAIN) if !road.stuck.load(Ordering::Relaxed) => {
            let timeout = Timespec { tv_sec: 0, tv_nsec: SEND_WAIT.subsec_nanos().into() };
            let has_room =
                poll(&mut [PollFd::from_borrowed_fd(road.socket.as_fd(), PollFlags::OUT)], Some(&timeout)).is_ok_and(|ready| ready > 0);
            if has_room { send() } else { Err(Errno::AGAIN) }
        }
        result => result,
    };
    road.stuck.store(sent == Err(Errno::AGAIN), Ordering::Relaxed);
    sent
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn endpoint(number: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, number), 4789)
    }

    fn port() -> (Arc<Roads>, Intake, Exits, UdpSocket) {
        let socket = Arc::new(super::super::socket::prepare(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap());
        let roads = Arc::new(Roads::new(&socket).unwrap());
        let to_it = UdpSocket::bind("127.0.0.1:0").unwrap();
        to_it.connect(socket.local_addr().unwrap()).unwrap();
        (roads.clone(), Intake::new(Receiver::new(socket), roads.clone()), Exits::new(roads), to_it)
    }

    fn is_readable(roads: &Roads) -> bool {
        poll(&mut [PollFd::new(roads, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0
    }

    #[test]
    fn records_go_both_ways_and_the_network_has_its_turn() {
        let ((roads, mut intake, mut exits, network), (near, far)) = (port(), pair());
        let mut buffer = vec![0; 70_000];
        roads.add(endpoint(2), near).unwrap();
        assert!(exits.has(endpoint(2)) && !exits.has(endpoint(3)) && !exits.send(endpoint(3), &[7; HEAD_BYTES], b"frame"));
        assert!(exits.send(endpoint(2), &[7; HEAD_BYTES], b"frame"));
        let mut got = vec![0; 100];
        let bytes = rustix::io::read(&far, &mut got).unwrap();
        assert_eq!((&got[..HEAD_BYTES], &got[HEAD_BYTES..bytes]), (&[7; HEAD_BYTES][..], &b"frame"[..]));
        for number in 0..40 {
            rustix::io::write(&far, &[number; 30]).unwrap();
        }
        network.send(b"datagram").unwrap();
        let (mut records, mut datagram_at) = (0, None);
        while let Some(arrived) = intake.receive(&mut buffer).unwrap() {
            match arrived {
                Arrived::Record(peer, bytes) => {
                    assert_eq!((peer, &buffer[..bytes]), (endpoint(2), &[records; 30][..]));
                    records += 1;
                }
                Arrived::Datagrams(received) => datagram_at = Some((records, received.bytes)),
                Arrived::Knock => unreachable!("nobody knocked"),
            }
        }
        assert_eq!(records, 40);
        assert!(datagram_at.is_some_and(|(after, bytes)| after <= TURN as u8 && bytes == 8), "{datagram_at:?}");
    }

    #[test]
    fn a_road_whose_other_end_is_gone_is_none_and_wakes_nobody() {
        let ((roads, mut intake, mut exits, _network), (near, far)) = (port(), pair());
        roads.add(endpoint(2), near).unwrap();
        drop(far);
        assert!(is_readable(&roads));
        assert!(intake.receive(&mut [0; 100]).unwrap().is_none());
        assert!(!is_readable(&roads) && !exits.has(endpoint(2)) && roads.count() == 0);
        let (near, far) = pair();
        roads.add(endpoint(2), near).unwrap();
        drop(far);
        assert!(!exits.send(endpoint(2), &[0; HEAD_BYTES], b"frame") && roads.count() == 0, "the sender finds out too");
    }

    #[test]
    fn a_new_road_takes_the_place_of_the_old_one() {
        let ((roads, mut intake, mut exits, _network), (near, far), (newer, newer_far)) = (port(), pair(), pair());
        roads.add(endpoint(2), near).unwrap();
        roads.add(endpoint(2), newer).unwrap();
        assert!(exits.send(endpoint(2), &[0; HEAD_BYTES], b"frame") && roads.count() == 1);
        assert_eq!(rustix::io::read(&newer_far, &mut [0; 100]).unwrap(), HEAD_BYTES + 5);
        rustix::io::write(&newer_far, &[1; 30]).unwrap();
        assert!(matches!(intake.receive(&mut [0; 100]).unwrap(), Some(Arrived::Record(_, 30))));
        drop((far, newer_far));
        assert!(intake.receive(&mut [0; 100]).unwrap().is_none() && roads.count() == 0);
    }

    #[test]
    fn a_full_road_is_waited_for_once() {
        let ((roads, _intake, mut exits, _network), (near, far)) = (port(), pair());
        roads.add(endpoint(2), near).unwrap();
        let began = std::time::Instant::now();
        let mut sent = 0;
        while exits.lost() < 1000 {
            assert!(exits.send(endpoint(2), &[0; HEAD_BYTES], &[0; 60_000]));
            sent += 1;
        }
        assert!(sent > 1000 && began.elapsed() < Duration::from_secs(5), "{sent} in {:?}", began.elapsed());
        while rustix::io::read(&far, &mut [0; 70_000]).is_ok_and(|bytes| bytes > 0) && !is_writable(&far) {}
        assert!(exits.send(endpoint(2), &[0; HEAD_BYTES], b"frame"));
    }

    fn is_writable(far: &OwnedFd) -> bool {
        // The far end's own buffer is empty; what counts is whether this end's is, which shows by what is left to read.
        poll(&mut [PollFd::new(far, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 0
    }

    #[test]
    fn a_knock_is_heard_once() {
        let (roads, mut intake, ..) = port();
        roads.knock().unwrap();
        assert!(is_readable(&roads));
        assert!(matches!(intake.receive(&mut [0; 100]).unwrap(), Some(Arrived::Knock)));
        assert!(!is_readable(&roads) && intake.receive(&mut [0; 100]).unwrap().is_none());
    }
}
