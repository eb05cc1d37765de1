//! A relay between a move's two sides that stops at one message of the handover and lets the test decide what becomes of it.
//!
//! ```text
//! ctl migrate --to meddler ──> meddler ──> receive --listen
//!   control: preambles and messages, one at a time; the chosen one is held until an order comes
//!   streams: bytes as they are
//! ```
//! It reads the protocol with the product's own codec, and is the only part of the lab that knows it. It decides nothing by itself: a message that
//! nobody gives an order for is dropped with the link after half a minute.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rebec_migrate::{
    frame::{PREAMBLE_BYTES, Preamble, Role},
    message::{FromSource, FromTarget, MESSAGE_HEAD_BYTES, MessageHead},
};

use super::Machine;

/// How long a held message waits for its order.
const PATIENCE: Duration = Duration::from_secs(30);

/// A message of the handover, in the order in which they travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The source says what wants to come.
    Offer,
    /// The target has built the machine.
    Accept,
    /// The first piece of the target's index.
    Have,
    /// The source is paused and has said everything.
    Final,
    /// The target is complete, durably.
    Prepared,
    /// The target may run the VM.
    Granted,
    /// The target runs it.
    Running,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Offer, Self::Accept, Self::Have, Self::Final, Self::Prepared, Self::Granted, Self::Running];
}

/// What becomes of the held message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It goes on.
    Pass,
    /// It goes on, and a copy of it follows.
    Twice,
    /// It goes on with other bytes.
    Garbage,
    /// It is lost, as is all that follows it in its direction; the other direction is whole.
    Swallow,
    /// It is lost, and the link with it.
    Cut,
}

/// The relay. Dropped, it cuts.
pub struct Meddler {
    to: SocketAddrV4,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    listener: TcpListener,
}

struct State {
    /// Where to stop; taken by the first such message.
    point: Option<Point>,
    reached: bool,
    order: Option<Order>,
    is_cut: bool,
    sockets: Vec<TcpStream>,
}

/// Which of its ends a control connection is read from.
type Names = fn(&MessageHead, &[u8]) -> Option<Point>;

impl Meddler {
    /// Listens on a machine at `port` and leads to the machine's port `to`.
    pub fn start(machine: &Machine, port: u16, to: u16, point: Point) -> Result<Self> {
        let address = machine.address();
        let listener = machine.within(move || TcpListener::bind((address, port)))?.context("listen as meddler")?;
        let state = State { point: Some(point), reached: false, order: None, is_cut: false, sockets: vec![] };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), listener });
        let serving = Arc::clone(&shared);
        machine.thread(move || serving.serve((address, to)));
        Ok(Self { to: SocketAddrV4::new(address, port), shared })
    }

    /// Where `ctl migrate` goes.
    pub fn address(&self) -> String {
        self.to.to_string()
    }

    /// Waits until the message is held.
    pub fn reached(&self, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline;
        let mut state = self.shared.lock();
        while !state.reached {
            let left = until.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the message {:?} was not seen in {} s", state.point, deadline.as_secs());
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Decides about the held message.
    pub fn order(&self, order: Order) {
        self.shared.lock().order = Some(order);
        self.shared.changed.notify_all();
    }

    /// Ends every connection, and takes no more.
    pub fn cut(&self) {
        self.shared.cut();
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Its fields are each whole whatever a thread that panicked was doing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) {
        let mut state = self.lock();
        state.is_cut = true;
        state.sockets.drain(..).for_each(|socket| hang_up(&socket));
        drop(state);
        self.changed.notify_all();
        // Wakes `accept`, which then fails. It may have done so before.
        rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both).unwrap_or_default();
    }

    fn serve(self: Arc<Self>, to: (Ipv4Addr, u16)) {
        while let Ok((source, _)) = self.listener.accept() {
            let relay = Arc::clone(&self);
            // A connection that fails ends as a cut would end it, which the two sides are tested for anyway.
            thread::spawn(move || relay.relay(source, to).unwrap_or_default());
        }
    }

    fn relay(self: Arc<Self>, mut source: TcpStream, to: (Ipv4Addr, u16)) -> io::Result<()> {
        let mut target = TcpStream::connect(to)?;
        for socket in [&source, &target] {
            socket.set_nodelay(true)?;
            self.keep(socket.try_clone()?);
        }
        let (from_source, from_target) = (source.try_clone()?, target.try_clone()?);
        let mut preamble = [0; PREAMBLE_BYTES];
        source.read_exact(&mut preamble)?;
        target.write_all(&preamble)?;
        let is_control = Preamble::from_bytes(&preamble).is_ok_and(|preamble| preamble.role == Role::Control);
        let there = Arc::clone(&self);
        let forth = thread::spawn(move || there.pump(from_source, target, is_control.then_some(point_of_source as Names)));
        if is_control {
            let mut from_target = &from_target;
            from_target.read_exact(&mut preamble)?;
            source.write_all(&preamble)?;
        }
        self.pump(from_target, source, is_control.then_some(point_of_target as Names));
        forth.join().unwrap_or_default();
        Ok(())
    }

    fn keep(&self, socket: TcpStream) {
        let mut state = self.lock();
        if state.is_cut {
            hang_up(&socket);
        }
        state.sockets.push(socket);
    }

    /// One direction of a connection, to its end, which it hands on.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, names: Option<Names>) {
        let done = match names {
            Some(names) => self.messages(&mut from, &mut to, names),
            None => io::copy(&mut from, &mut to).map(drop),
        };
        match done {
            Ok(()) => to.shutdown(Shutdown::Write).unwrap_or_default(),
            Err(_) => [from, to].iter().for_each(hang_up),
        }
    }

    fn messages(&self, from: &mut TcpStream, to: &mut TcpStream, names: Names) -> io::Result<()> {
        loop {
            let mut head = [0; MESSAGE_HEAD_BYTES];
            match from.read_exact(&mut head) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            }
            let parsed = MessageHead::from_bytes(&head).map_err(io::Error::other)?;
            let mut body = vec![0; parsed.length()];
            from.read_exact(&mut body)?;
            let point = names(&parsed, &body);
            let mut frame = [head.as_slice(), &body].concat();
            match self.decide(point) {
                Order::Pass => to.write_all(&frame)?,
                Order::Twice => to.write_all(&frame.repeat(2))?,
                Order::Garbage => {
                    frame[MESSAGE_HEAD_BYTES..].fill(0xa5);
                    to.write_all(&frame)?;
                }
                Order::Swallow => return io::copy(from, &mut io::sink()).map(drop),
                Order::Cut => {
                    self.cut();
                    return Ok(());
                }
            }
        }
    }

    /// What to do with a message; waits for the order if it is the chosen one.
    fn decide(&self, point: Option<Point>) -> Order {
        let mut state = self.lock();
        if point.is_none() || state.point != point {
            return Order::Pass;
        }
        state.point = None;
        state.reached = true;
        self.changed.notify_all();
        let until = Instant::now() + PATIENCE;
        while state.order.is_none() && !state.is_cut {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Order::Cut;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.order.unwrap_or(Order::Cut)
    }
}

fn point_of_source(head: &MessageHead, body: &[u8]) -> Option<Point> {
    match head.read::<FromSource>(body).ok()? {
        FromSource::Offer { .. } => Some(Point::Offer),
        FromSource::Final { .. } => Some(Point::Final),
        FromSource::Granted { .. } => Some(Point::Granted),
        _ => None,
    }
}

fn point_of_target(head: &MessageHead, body: &[u8]) -> Option<Point> {
    match head.read::<FromTarget>(body).ok()? {
        FromTarget::Accept { .. } => Some(Point::Accept),
        FromTarget::Have { .. } => Some(Point::Have),
        FromTarget::Prepared { .. } => Some(Point::Prepared),
        FromTarget::Running { .. } => Some(Point::Running),
        _ => None,
    }
}

/// Ends a connection, so that whoever reads or writes it wakes up. It may have ended already.
fn hang_up(socket: &TcpStream) {
    socket.shutdown(Shutdown::Both).unwrap_or_default();
}
