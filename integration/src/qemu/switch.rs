//! A switch in user space: lab machines plug in by `-netdev stream` sockets, links between them have shapes.
//!
//! One thread owns sockets and frames; it learns which MAC is behind which port and sends what it does not know to all
//! others. Every ordered pair of ports has its own [`Link`], so that any topology of sites is a table of shapes. On a
//! stream socket a frame is its length (u32, big endian) and its bytes.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{
    link::{Link, Passed, Shape},
    pcap::Pcap,
};

/// Largest frame that is believed; a longer one means the stream is out of step.
const FRAME_BYTES_MAX: usize = 70_000;
/// Bytes that may wait for a machine that does not read.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// Bytes read from one port before the others get their turn.
const READ_BYTES: usize = 256 * 1024;
/// Addresses the switch remembers.
const ADDRESSES_MAX: usize = 4096;

/// Which port.
pub type PortIndex = usize;

type Links = Arc<Mutex<HashMap<(PortIndex, PortIndex), Link>>>;

/// A running switch. Dropping it ends its thread and removes its sockets.
pub struct Switch {
    links: Links,
    wake: Arc<OwnedFd>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<JoinHandle<()>>,
    sockets: Vec<PathBuf>,
    // Held for its Drop.
    _folder: tempfile::TempDir,
}

impl Switch {
    /// A switch with so many ports, every link in its default shape; `capture` is where frames are noted.
    pub fn start(ports: usize, capture: Option<&Path>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("rebec-").tempdir().context("create a folder for the switch")?;
        let sockets: Vec<PathBuf> = (0..ports).map(|port| folder.path().join(format!("port{port}"))).collect();
        let mut cables = Vec::new();
        for path in &sockets {
            let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
            listener.set_nonblocking(true).context("listen for machines")?;
            cables.push(Cable { listener, stream: None, inbox: Vec::new(), outbox: Vec::new(), sent: 0 });
        }
        let links: Links = Arc::default();
        for from in 0..ports {
            for to in (0..ports).filter(|to| *to != from) {
                links_of(&links).insert((from, to), Link::new(Shape::default(), (from * 1000 + to) as u64));
            }
        }
        let pcap = capture.map(|path| Pcap::create(path).with_context(|| format!("create {}", path.display()))).transpose()?;
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).context("create an eventfd")?);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut body =
            Body { cables, links: Arc::clone(&links), addresses: HashMap::new(), pcap, wake: Arc::clone(&wake), stop: Arc::clone(&stop) };
        let thread = std::thread::Builder::new().name("switch".to_owned()).spawn(move || body.run())?;
        Ok(Self { links, wake, stop, thread: Some(thread), sockets, _folder: folder })
    }

    /// Where a machine plugs in.
    pub fn socket(&self, port: PortIndex) -> PathBuf {
        self.sockets[port].clone()
    }

    /// Shapes both directions between two ports.
    pub fn shape(&self, one: PortIndex, other: PortIndex, shape: Shape) {
        let mut links = links_of(&self.links);
        for pair in [(one, other), (other, one)] {
            if let Some(link) = links.get_mut(&pair) {
                link.reshape(shape);
            }
        }
        drop(links);
        self.wake_up();
    }

    /// Cuts or heals both directions between two ports, their shapes otherwise unchanged.
    pub fn cut(&self, one: PortIndex, other: PortIndex, cut: bool) {
        let shape = links_of(&self.links).get(&(one, other)).map(Link::shape).unwrap_or_default();
        self.shape(one, other, Shape { cut, ..shape });
    }

    /// What passed from one port to another since the start.
    pub fn passed(&self, from: PortIndex, to: PortIndex) -> Passed {
        links_of(&self.links).get(&(from, to)).map(Link::passed).unwrap_or_default()
    }

    fn wake_up(&self) {
        // The counter cannot overflow, and a thread that has ended needs no wake.
        rustix::io::write(&*self.wake, &1u64.to_ne_bytes()).ok();
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.wake_up();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn links_of(links: &Links) -> MutexGuard<'_, HashMap<(PortIndex, PortIndex), Link>> {
    links.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One machine's connection.
struct Cable {
    listener: UnixListener,
    stream: Option<UnixStream>,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// How much of the outbox is gone already.
    sent: usize,
}

struct Body {
    cables: Vec<Cable>,
    links: Links,
    addresses: HashMap<[u8; 6], PortIndex>,
    pcap: Option<Pcap>,
    wake: Arc<OwnedFd>,
    stop: Arc<std::sync::atomic::AtomicBool>,
}

impl Body {
    fn run(&mut self) {
        let mut space = vec![0; READ_BYTES];
        while !self.stop.load(std::sync::atomic::Ordering::Relaxed) {
            self.wait();
            // Read to reset; an empty counter is as good.
            rustix::io::read(&*self.wake, &mut [0; 8]).ok();
            let now = Instant::now();
            for port in 0..self.cables.len() {
                self.cables[port].connect();
                for frame in self.cables[port].receive(&mut space) {
                    self.forward(port, frame.into(), now);
                }
            }
            self.deliver(Instant::now());
        }
        if let Some(pcap) = &mut self.pcap {
            pcap.flush().ok();
        }
    }

    /// Sleeps until a socket is ready or a frame arrives at the end of its link.
    fn wait(&self) {
        const IDLE: Duration = Duration::from_secs(1);
        let now = Instant::now();
        let next = links_of(&self.links).values().filter_map(Link::next_deadline).min();
        let sleep = next.map_or(IDLE, |next| next.saturating_duration_since(now).min(IDLE));
        let timeout = Timespec { tv_sec: sleep.as_secs().try_into().unwrap_or(1), tv_nsec: sleep.subsec_nanos().into() };
        let mut waited = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        for cable in &self.cables {
            match &cable.stream {
                None => waited.push(PollFd::new(&cable.listener, PollFlags::IN)),
                Some(stream) if cable.outbox.is_empty() => waited.push(PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)),
                Some(stream) => waited.push(PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN | PollFlags::OUT)),
            }
        }
        // A signal ends the sleep early, which does no harm.
        poll(&mut waited, Some(&timeout)).ok();
    }

    fn forward(&mut self, from: PortIndex, frame: Arc<[u8]>, now: Instant) {
        const HEADER_BYTES: usize = 14;
        if frame.len() < HEADER_BYTES {
            return;
        }
        if let Some(pcap) = &mut self.pcap
            && pcap.note(&frame).is_err()
        {
            // A full disk must not end the run.
            self.pcap = None;
        }
        let address = |at: usize| <[u8; 6]>::try_from(&frame[at..at + 6]).expect("invariant: the header was checked to be there");
        let (to, source) = (address(0), address(6));
        if source[0] & 1 == 0 && (self.addresses.len() < ADDRESSES_MAX || self.addresses.contains_key(&source)) {
            self.addresses.insert(source, from);
        }
        let known = if to[0] & 1 == 0 { self.addresses.get(&to).copied() } else { None };
        let mut links = links_of(&self.links);
        for port in (0..self.cables.len()).filter(|port| *port != from && known.is_none_or(|known| known == *port)) {
            if let Some(link) = links.get_mut(&(from, port)) {
                link.offer(now, &frame);
            }
        }
    }

    fn deliver(&mut self, now: Instant) {
        let mut links = links_of(&self.links);
        for ((_, to), link) in links.iter_mut() {
            while let Some(frame) = link.arrived(now) {
                self.cables[*to].queue(&frame);
            }
        }
        drop(links);
        for cable in &mut self.cables {
            cable.send();
        }
    }
}

impl Cable {
    fn connect(&mut self) {
        if self.stream.is_none()
            && let Ok((stream, _)) = self.listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            self.inbox.clear();
            self.outbox.clear();
            self.sent = 0;
            self.stream = Some(stream);
        }
    }

    /// Whole frames that have come; `space` is what one reading may take.
    fn receive(&mut self, space: &mut [u8]) -> Vec<Vec<u8>> {
        let Some(stream) = &mut self.stream else { return Vec::new() };
        match stream.read(space) {
            Ok(0) => self.stream = None,
            Ok(count) => self.inbox.extend_from_slice(&space[..count]),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => self.stream = None,
            Err(_) => return Vec::new(),
        }
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some(header) = self.inbox.get(at..at + 4) {
            let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
            if length > FRAME_BYTES_MAX {
                self.stream = None;
                break;
            }
            let Some(frame) = self.inbox.get(at + 4..at + 4 + length) else { break };
            frames.push(frame.to_vec());
            at += 4 + length;
        }
        self.inbox.drain(..at);
        frames
    }

    fn queue(&mut self, frame: &[u8]) {
        let length = frame.len() as u32;
        if self.stream.is_some() && self.outbox.len() - self.sent + frame.len() <= WAITING_BYTES_MAX {
            self.outbox.extend_from_slice(&length.to_be_bytes());
            self.outbox.extend_from_slice(frame);
        }
    }

    fn send(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        while self.sent < self.outbox.len() {
            match stream.write(&self.outbox[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.stream = None;
                    break;
                }
            }
        }
        self.outbox.clear();
        self.sent = 0;
    }
}
