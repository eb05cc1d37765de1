//! The host's side of the channel: jobs in one lab machine.
//!
//! One thread reads frames and files them under their jobs; callers wait on a job with a deadline. A job that says more
//! than its limit keeps the limit's worth and counts the rest. Dropping a job ends it in the machine.

use std::{
    collections::HashMap,
    io,
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};

use super::{Frame, Kind, PAYLOAD_BYTES_MAX, PathOnly, Put, Run};

/// Most bytes a job may have waiting to be read by its caller.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// A clock is right when it is this close to the host's, round trip included.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(2);
/// How often a clock is tried before it is called unsettable.
const CLOCK_TRIES: u32 = 50;

#[derive(Default)]
struct JobState {
    output: Vec<u8>,
    errors: Vec<u8>,
    dropped_bytes: u64,
    ended: Option<End>,
}

#[derive(Clone)]
enum End {
    Exit(i32),
    Refused(String),
    Time(i128),
}

#[derive(Default)]
struct Shared {
    jobs: HashMap<u32, JobState>,
    next: u32,
    hello: bool,
    closed: Option<String>,
}

/// A connection to one machine's agent.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Mutex<Shared>,
    changed: Condvar,
    writer: Mutex<UnixStream>,
    /// The machine's name, for errors.
    name: String,
}

/// What a finished program left.
#[derive(Debug, Clone)]
pub struct Finished {
    /// 128 + n for signal n.
    pub code: i32,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl Client {
    /// Takes over the connection of a machine. Ready when [`Client::wait_ready`] says so.
    pub fn new(name: &str, stream: UnixStream) -> Result<Self> {
        let reader = stream.try_clone().context("clone the channel")?;
        let inner =
            Arc::new(Inner { shared: Mutex::default(), changed: Condvar::new(), writer: Mutex::new(stream), name: name.to_owned() });
        let weak = Arc::downgrade(&inner);
        std::thread::Builder::new().name(format!("channel {name}")).spawn(move || {
            let mut reader = io::BufReader::with_capacity(PAYLOAD_BYTES_MAX, reader);
            loop {
                let frame = Frame::read(&mut reader);
                let Some(inner) = weak.upgrade() else { return };
                match frame {
                    Ok(frame) => inner.file(frame),
                    Err(error) => {
                        inner.lock().closed = Some(error.to_string());
                        inner.changed.notify_all();
                        return;
                    }
                }
            }
        })?;
        Ok(Self { inner })
    }

    /// Waits for the agent's hello.
    pub fn wait_ready(&self, deadline: Duration) -> Result<()> {
        self.inner.wait(deadline, "its agent", |shared| shared.hello.then_some(()))
    }

    /// Starts a program and returns while it runs.
    pub fn start(&self, argv: &[&str]) -> Result<Job> {
        let argv = argv.iter().map(|arg| (*arg).to_owned()).collect();
        self.begin(Kind::Run, &Run { argv })
    }

    /// Runs a program to its end, whatever its exit code.
    pub fn run(&self, argv: &[&str], deadline: Duration) -> Result<Finished> {
        let job = self.start(argv)?;
        job.finish(deadline).with_context(|| format!("run {} on machine {}", argv.join(" "), self.inner.name))
    }

    /// Runs a program; an exit code other than 0 is an error with what it said.
    pub fn check(&self, argv: &[&str], deadline: Duration) -> Result<String> {
        let done = self.run(argv, deadline)?;
        if done.code != 0 {
            let said = if done.errors.trim().is_empty() { &done.output } else { &done.errors };
            bail!("{} on machine {} ended with code {}: {}", argv.join(" "), self.inner.name, done.code, said.trim());
        }
        Ok(done.output)
    }

    /// Opens a Unix socket in the machine; what it says is the job's output.
    pub fn connect(&self, path: &str) -> Result<Job> {
        self.begin(Kind::Connect, &PathOnly { path: path.to_owned() })
    }

    /// Writes a file in the machine.
    pub fn put(&self, path: &str, bytes: &[u8], mode: u32, deadline: Duration) -> Result<()> {
        let job = self.begin(Kind::Put, &Put { path: path.to_owned(), mode })?;
        for piece in bytes.chunks(PAYLOAD_BYTES_MAX) {
            job.send(piece)?;
        }
        job.send_end()?;
        job.finish(deadline).with_context(|| format!("write {path} on machine {}", self.inner.name)).map(|_| ())
    }

    /// Copies a file of the host into the machine.
    pub fn put_file(&self, path: &str, source: &Path, mode: u32, deadline: Duration) -> Result<()> {
        let bytes = std::fs::read(source).with_context(|| format!("read {}", source.display()))?;
        self.put(path, &bytes, mode, deadline)
    }

    /// Reads a file of the machine.
    pub fn get(&self, path: &str, deadline: Duration) -> Result<Vec<u8>> {
        let job = self.begin(Kind::Get, &PathOnly { path: path.to_owned() })?;
        job.end(deadline).with_context(|| format!("read {path} on machine {}", self.inner.name))?;
        Ok(job.take_output())
    }

    /// Sets the machine's CLOCK_REALTIME to the host's and returns the error that is left, at most 2 ms plus the channel's
    /// own asymmetry.
    pub fn set_clock(&self) -> Result<Duration> {
        let mut best = Duration::MAX;
        for _ in 0..CLOCK_TRIES {
            let (offset_ns, round_trip) = self.clock_offset()?;
            let off = Duration::from_nanos(u64::try_from(offset_ns.unsigned_abs()).unwrap_or(u64::MAX));
            best = best.min(off + round_trip / 2);
            if off + round_trip / 2 <= CLOCK_TOLERANCE {
                return Ok(off + round_trip / 2);
            }
            // A slow answer says little: step only by what is surely wrong.
            if off > round_trip / 2 {
                self.ask_clock(Frame::json(0, Kind::StepClock, &i64::try_from(-offset_ns).context("clock offset")?)?)?;
            }
        }
        if best > 4 * CLOCK_TOLERANCE {
            bail!("clock of machine {} stays {} ms off; the host is too busy", self.inner.name, best.as_millis());
        }
        Ok(best)
    }

    /// How far the machine's CLOCK_REALTIME is ahead of the host's, and how long the answer took.
    pub fn clock_offset(&self) -> Result<(i128, Duration)> {
        let start = Instant::now();
        let before = SystemTime::now().duration_since(UNIX_EPOCH).context("the host's clock")?;
        let theirs = self.ask_clock(Frame::new(0, Kind::ReadClock, []))?;
        let round_trip = start.elapsed();
        let middle = i128::try_from((before + round_trip / 2).as_nanos()).context("the host's clock")?;
        Ok((theirs - middle, round_trip))
    }

    fn ask_clock(&self, mut frame: Frame) -> Result<i128> {
        let job = self.reserve()?;
        frame.job = job.number;
        self.inner.send(&frame)?;
        match job.end(Duration::from_secs(30))? {
            End::Time(ns) => Ok(ns),
            _ => bail!("machine {} did not tell the time", self.inner.name),
        }
    }

    fn begin(&self, kind: Kind, payload: &impl serde::Serialize) -> Result<Job> {
        let job = self.reserve()?;
        self.inner.send(&Frame::json(job.number, kind, payload)?)?;
        Ok(job)
    }

    fn reserve(&self) -> Result<Job> {
        let mut shared = self.inner.lock();
        if let Some(why) = &shared.closed {
            bail!("machine {} is gone: {why}", self.inner.name);
        }
        shared.next += 1;
        let number = shared.next;
        shared.jobs.insert(number, JobState::default());
        Ok(Job { inner: Arc::clone(&self.inner), number })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Ends the reader thread; a socket that is closed already is as good.
        writer.shutdown(std::net::Shutdown::Both).ok();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, frame: &Frame) -> Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&mut *writer).with_context(|| format!("talk to machine {}", self.name))
    }

    fn file(&self, frame: Frame) {
        let mut shared = self.lock();
        if frame.kind == Kind::Hello {
            shared.hello = true;
        } else if let Some(job) = shared.jobs.get_mut(&frame.job) {
            match frame.kind {
                Kind::Output => append(&mut job.output, &mut job.dropped_bytes, &frame.payload),
                Kind::Errors => append(&mut job.errors, &mut job.dropped_bytes, &frame.payload),
                Kind::Exit => job.ended = Some(End::Exit(frame.parse().unwrap_or(-1))),
                Kind::Time => job.ended = frame.parse().ok().map(|ns: i64| End::Time(ns.into())),
                _ => job.ended = Some(End::Refused(String::from_utf8_lossy(&frame.payload).into_owned())),
            }
        }
        drop(shared);
        self.changed.notify_all();
    }

    fn wait<T>(&self, deadline: Duration, what: &str, mut ready: impl FnMut(&mut Shared) -> Option<T>) -> Result<T> {
        let end = Instant::now() + deadline;
        let mut shared = self.lock();
        loop {
            if let Some(value) = ready(&mut shared) {
                return Ok(value);
            }
            if let Some(why) = &shared.closed {
                bail!("machine {} is gone while waiting for {what}: {why}", self.name);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("machine {}: {what} did not answer in {} s", self.name, deadline.as_secs());
            }
            shared = self.changed.wait_timeout(shared, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn append(buffer: &mut Vec<u8>, dropped: &mut u64, bytes: &[u8]) {
    let room = WAITING_BYTES_MAX.saturating_sub(buffer.len()).min(bytes.len());
    buffer.extend_from_slice(&bytes[..room]);
    *dropped += (bytes.len() - room) as u64;
}

/// Something under way in a machine. Dropped before its end, it is ended there.
pub struct Job {
    inner: Arc<Inner>,
    number: u32,
}

impl Job {
    /// Sends bytes to its standard input or socket.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PAYLOAD_BYTES_MAX) {
            self.inner.send(&Frame::new(self.number, Kind::Input, piece))?;
        }
        Ok(())
    }

    /// Says that nothing more will be sent.
    pub fn send_end(&self) -> Result<()> {
        self.inner.send(&Frame::new(self.number, Kind::InputEnd, []))
    }

    /// Takes what it has said on standard output since the last call.
    pub fn take_output(&self) -> Vec<u8> {
        self.inner.lock().jobs.get_mut(&self.number).map(|job| std::mem::take(&mut job.output)).unwrap_or_default()
    }

    /// Takes what it has said on standard error since the last call.
    pub fn take_errors(&self) -> Vec<u8> {
        self.inner.lock().jobs.get_mut(&self.number).map(|job| std::mem::take(&mut job.errors)).unwrap_or_default()
    }

    /// Waits until it says something or ends; false when neither happened in time.
    pub fn wait_output(&self, deadline: Duration) -> bool {
        let number = self.number;
        let spoke = |shared: &mut Shared| {
            let job = shared.jobs.get(&number)?;
            (!job.output.is_empty() || !job.errors.is_empty() || job.ended.is_some()).then_some(())
        };
        self.inner.wait(deadline, "a job", spoke).is_ok()
    }

    /// Its exit code, if it has ended. That its machine is gone is an error.
    pub fn ended(&self) -> Result<Option<i32>> {
        let shared = self.inner.lock();
        match shared.jobs.get(&self.number).and_then(|job| job.ended.as_ref()) {
            Some(End::Exit(code)) => Ok(Some(*code)),
            Some(_) => Ok(Some(-1)),
            None => shared.closed.as_ref().map_or(Ok(None), |why| bail!("machine {} is gone: {why}", self.inner.name)),
        }
    }

    /// Waits for its end and returns all it said since the last take.
    pub fn finish(&self, deadline: Duration) -> Result<Finished> {
        let End::Exit(code) = self.end(deadline)? else { bail!("the job ended in another way than by exiting") };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Finished { code, output: text(self.take_output()), errors: text(self.take_errors()) })
    }

    fn end(&self, deadline: Duration) -> Result<End> {
        let number = self.number;
        match self.inner.wait(deadline, "a job", |shared| shared.jobs.get(&number)?.ended.clone())? {
            End::Refused(why) => bail!("{why}"),
            end => Ok(end),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let job = self.inner.lock().jobs.remove(&self.number);
        if job.is_some_and(|job| job.ended.is_none()) {
            // A machine that is gone has no jobs left to end.
            self.inner.send(&Frame::new(self.number, Kind::Kill, [])).ok();
        }
    }
}
