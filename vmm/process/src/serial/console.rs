//! The serial thread and what it shares with the vCPUs: a bounded backlog of output and the guest's end of the input.

use std::{
    collections::VecDeque,
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rebec_devices::Threads;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
};

use super::{
    Backend,
    terminal::{Commands, RawTerminal},
};
use crate::listen::SocketFile;

/// Output kept for a reader that is slow or not there yet: a screenful times thirty, a kernel's boot messages.
const BACKLOG_BYTES: usize = 64 * 1024;
/// Written at once. A pipe that polls as writable takes this much without waiting (pipe(7), PIPE_BUF).
const WRITE_BYTES: usize = 4096;
/// Read at once.
const READ_BYTES: usize = 256;
/// How long the end of the process waits for the last output to be taken.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Takes input; says how much of it.
type Sink = Box<dyn FnMut(&[u8]) -> usize + Send>;

/// The running serial backend.
pub struct Console {
    shared: Arc<Shared>,
    _socket: Option<SocketFile>,
}

/// The guest's end of the output. Clones write to the same place.
#[derive(Clone)]
pub struct SerialOutput {
    shared: Arc<Shared>,
}

struct Shared {
    backlog: Mutex<Backlog>,
    /// Called by the serial thread alone; the lock is for replacing it.
    sink: Mutex<Option<Sink>>,
    drained: Condvar,
    wake: OwnedFd,
}

#[derive(Default)]
struct Backlog {
    bytes: VecDeque<u8>,
    dropped: u64,
    /// Bytes that the thread has taken out and not yet written.
    in_hand: usize,
    /// Whether somebody takes output now.
    has_reader: bool,
}

impl Console {
    pub(super) fn start(backend: Backend, threads: &dyn Threads, quit: Box<dyn FnMut() + Send>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let Backend { input, output, listener, terminal, socket } = backend;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        let backlog = Mutex::new(Backlog { has_reader: output.is_some(), ..Backlog::default() });
        let shared = Arc::new(Shared { backlog, sink: Mutex::new(None), drained: Condvar::new(), wake });
        let commands = terminal.is_some().then(Commands::default);
        let thread = SerialThread {
            shared: shared.clone(),
            input,
            output,
            listener,
            commands,
            quit,
            in_hand: vec![],
            typed: vec![],
            _terminal: terminal,
        };
        threads.spawn("serial", Box::new(move || thread.run()))?;
        Ok(Self { shared, _socket: socket.map(|(_, file)| file) })
    }

    /// Where the guest's output goes.
    pub fn output(&self) -> SerialOutput {
        SerialOutput { shared: self.shared.clone() }
    }

    /// What tells this that the sink takes input again.
    pub fn waker(&self) -> impl Fn() + Send + use<> {
        let shared = self.shared.clone();
        move || shared.wake()
    }

    /// Who gets the input from now on. Until somebody does, it stays where it is. The sink must not wait: it says how much it took.
    pub fn set_sink(&self, sink: impl FnMut(&[u8]) -> usize + Send + 'static) {
        *self.shared.sink.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(sink));
        self.shared.wake();
    }

    /// Waits, not for long, until the output so far was taken by whoever takes it now. Belongs at the end of the process.
    pub fn finish(&self) {
        let backlog = self.shared.backlog();
        let unwritten = |backlog: &mut Backlog| backlog.has_reader && (backlog.in_hand > 0 || !backlog.bytes.is_empty());
        let waited = self.shared.drained.wait_timeout_while(backlog, LAST_OUTPUT, unwritten).unwrap_or_else(PoisonError::into_inner);
        if waited.1.timed_out() {
            log::warn!("serial: the last output was not taken in time");
        }
    }
}

impl Write for SerialOutput {
    /// Takes everything, at the cost of the oldest bytes if nobody reads.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut backlog = self.shared.backlog();
        let was_empty = backlog.bytes.is_empty();
        let newest = &bytes[bytes.len().saturating_sub(BACKLOG_BYTES)..];
        let excess = (backlog.bytes.len() + newest.len()).saturating_sub(BACKLOG_BYTES);
        backlog.bytes.drain(..excess);
        backlog.bytes.extend(newest);
        backlog.dropped += (excess + bytes.len() - newest.len()) as u64;
        drop(backlog);
        if was_empty {
            self.shared.wake();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// The backlog is consistent after every statement.
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when 2^64 wakes are pending, and one is enough.
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).ok();
    }
}

struct SerialThread {
    shared: Arc<Shared>,
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    listener: Option<UnixListener>,
    commands: Option<Commands>,
    quit: Box<dyn FnMut() + Send>,
    in_hand: Vec<u8>,
    /// Input that the guest had no room for.
    typed: Vec<u8>,
    _terminal: Option<RawTerminal>,
}

/// What poll said about each descriptor.
struct Ready {
    input: bool,
    output: bool,
    listener: bool,
}

impl SerialThread {
    fn run(mut self) {
        loop {
            self.give();
            self.take_in_hand();
            match self.wait() {
                Ok(ready) => self.serve(&ready),
                Err(error) => {
                    log::error!("serial: wait for input and output: {error}; the port is dead from here on");
                    self.set_output(None);
                    return;
                }
            }
        }
    }

    fn serve(&mut self, ready: &Ready) {
        if ready.output {
            self.write();
        }
        if ready.input {
            self.read();
        }
        if ready.listener {
            self.accept();
        }
    }

    fn wait(&self) -> Result<Ready, Errno> {
        let has_sink = self.shared.sink.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        // What a guest does not read stays where it is typed, as on a line with flow control.
        let input = self.input.as_ref().filter(|_| has_sink && self.typed.is_empty()).map(AsFd::as_fd);
        let output = self.output.as_ref().filter(|_| !self.in_hand.is_empty()).map(AsFd::as_fd);
        let listener = self.listener.as_ref().map(AsFd::as_fd);
        let wanted =
            [(Some(self.shared.wake.as_fd()), PollFlags::IN), (input, PollFlags::IN), (output, PollFlags::OUT), (listener, PollFlags::IN)];
        let mut polled: Vec<PollFd<'_>> =
            wanted.iter().filter_map(|(fd, flags)| fd.map(|fd| PollFd::from_borrowed_fd(fd, *flags))).collect();
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        // Whatever poll reports (an error and a hang-up too) is found out by reading or writing.
        let mut reports = polled.iter().map(|polled| !polled.revents().is_empty());
        let mut is_ready = |fd: Option<BorrowedFd<'_>>| fd.is_some() && reports.next().unwrap_or(false);
        if is_ready(wanted[0].0) {
            rustix::io::read(&self.shared.wake, &mut [0; 8]).ok();
        }
        Ok(Ready { input: is_ready(input), output: is_ready(output), listener: is_ready(listener) })
    }

    /// Moves output from the backlog into this thread's hand, so that it is written without the lock.
    fn take_in_hand(&mut self) {
        let mut backlog = self.shared.backlog();
        if self.in_hand.is_empty() && self.output.is_some() {
            let count = backlog.bytes.len().min(WRITE_BYTES);
            self.in_hand.extend(backlog.bytes.drain(..count));
            let dropped = std::mem::take(&mut backlog.dropped);
            if dropped > 0 {
                log::warn!("serial: {dropped} bytes of output were dropped, nobody took them in time");
            }
        }
        backlog.in_hand = self.in_hand.len();
        drop(backlog);
        self.shared.drained.notify_all();
    }

    fn write(&mut self) {
        let Some(output) = &self.output else { return };
        match rustix::io::write(output, &self.in_hand) {
            Ok(written) => drop(self.in_hand.drain(..written)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => {
                log::debug!("serial: nobody takes the output any more: {error}");
                self.set_output(None);
            }
        }
    }

    fn read(&mut self) {
        let Some(input) = &self.input else { return };
        let mut bytes = vec![0; READ_BYTES];
        match rustix::io::read(input, &mut bytes) {
            // Whoever ends its input may still read; a reader that is gone is found by writing.
            Ok(0) => self.input = None,
            Ok(count) => {
                bytes.truncate(count);
                self.deliver(bytes);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => {
                log::debug!("serial: no more input: {error}");
                self.input = None;
            }
        }
    }

    fn deliver(&mut self, mut bytes: Vec<u8>) {
        if self.commands.as_mut().is_some_and(|commands| commands.take_from(&mut bytes)) {
            (self.quit)();
        }
        self.typed.extend_from_slice(&bytes);
        self.give();
        // On a terminal the way out is typed too, behind whatever the guest does not read.
        if self.commands.is_some() && !self.typed.is_empty() {
            log::debug!("serial: the guest does not read: {} bytes of input dropped", self.typed.len());
            self.typed.clear();
        }
    }

    /// Gives the guest what it has room for.
    fn give(&mut self) {
        if let Some(sink) = &mut *self.shared.sink.lock().unwrap_or_else(PoisonError::into_inner)
            && !self.typed.is_empty()
        {
            let taken = sink(&self.typed).min(self.typed.len());
            self.typed.drain(..taken);
        }
    }

    /// Whoever connects last has the port: a dead client cannot lock others out.
    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let connected = listener.accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            Ok((OwnedFd::from(stream.try_clone()?), OwnedFd::from(stream)))
        });
        match connected {
            Ok((input, output)) => {
                self.input = Some(input);
                // What the one before had typed and the guest had not taken is gone with its connection.
                self.typed.clear();
                self.set_output(Some(output));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => log::warn!("serial: accept a connection: {error}"),
        }
    }

    /// What is still in hand goes to the next reader.
    fn set_output(&mut self, output: Option<OwnedFd>) {
        self.shared.backlog().has_reader = output.is_some();
        self.output = output;
        self.shared.drained.notify_all();
    }
}
