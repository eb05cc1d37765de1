//! The agent: started, its log kept within bounds, started again when it ends.
//!
//! VMMs are the agent's children and outlive it, so only the agent's own process is ever signalled, never its group; the next agent
//! adopts them. All agents write into one pipe, which a VMM may keep open.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::spawn::{self, Ended};

/// The program.
pub const REBEC: &str = "/usr/bin/rebec";
const LOG: &str = "/run/rebec/agent.log";
/// Size at which the log becomes `agent.log.1`, replacing the one before: it lies in RAM.
const LOG_BYTES_MAX: u64 = 1 << 20;
const LINE_BYTES_MAX: usize = 2048;
/// Lines that the screen may show.
const TAIL_LINES: usize = 6;
const DELAY_MIN: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(30);
/// After running so long, an end counts as the first one again.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// The agent's process, or when there will be one.
pub struct Agent {
    args: Vec<String>,
    output: OwnedFd,
    running: Option<(Pid, Instant)>,
    next: Instant,
    delay: Duration,
    /// How the last one ended, for the screen.
    pub trouble: Option<String>,
}

impl Agent {
    /// Prepares it with its arguments; [`Agent::tick`] starts it.
    pub fn new(args: Vec<String>, output: OwnedFd, now: Instant) -> Self {
        Self { args, output, running: None, next: now, delay: DELAY_MIN, trouble: None }
    }

    /// Starts it when it is time.
    pub fn tick(&mut self, now: Instant) {
        if self.running.is_some() || now < self.next {
            return;
        }
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        match spawn::start(REBEC, &args, &self.output) {
            Ok(pid) => self.running = Some((pid, now)),
            Err(error) => self.again(format!("cannot be started: {error}"), now),
        }
    }

    /// Takes notice of a child's end; true if it was the agent.
    pub fn ended(&mut self, ended: &Ended, now: Instant) -> bool {
        let Some((_, started)) = self.running.filter(|(pid, _)| *pid == ended.pid) else { return false };
        self.running = None;
        if now.duration_since(started) >= GOOD_RUN {
            self.delay = DELAY_MIN;
        }
        self.again(ended.how.clone(), now);
        true
    }

    /// Whether it runs for long enough that its last end is history.
    pub fn forget_trouble(&mut self, now: Instant) {
        if self.running.is_some_and(|(_, started)| now.duration_since(started) >= GOOD_RUN) {
            self.trouble = None;
        }
    }

    /// With other arguments from its next start on, which is now. Its end is no trouble.
    pub fn anew(&mut self, args: Vec<String>, now: Instant) {
        (self.args, self.next, self.delay, self.trouble) = (args, now, DELAY_MIN, None);
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some((pid, _)) = self.running {
            // It may have ended just now: then there is nobody to tell.
            kill(pid, signal).ok();
        }
    }

    fn again(&mut self, how: String, now: Instant) {
        self.trouble = Some(format!("{how}; starts again in {} s", self.delay.as_secs()));
        self.next = now + self.delay;
        self.delay = (self.delay * 2).min(DELAY_MAX);
    }
}

/// The agent's last lines.
#[derive(Debug, Clone, Default)]
pub struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    /// The lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lock().iter().cloned().collect()
    }

    fn push(&self, line: String) {
        let mut lines = self.lock();
        lines.push_back(line);
        while lines.len() > TAIL_LINES {
            lines.pop_front();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the pipe that the agent writes to, and keeps what it says.
pub fn keep_log() -> io::Result<(OwnedFd, Tail)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let tail = Tail::default();
    let (told, path) = (tail.clone(), PathBuf::from(LOG));
    std::thread::Builder::new().name("log".to_owned()).spawn(move || {
        let mut log = Log { path, file: None, written: 0 };
        lines(File::from(reader), |line| {
            // A log that cannot be written must not stop who writes it.
            log.write(line).ok();
            told.push(line.to_owned());
        });
    })?;
    Ok((writer, tail))
}

struct Log {
    path: PathBuf,
    file: Option<File>,
    written: u64,
}

impl Log {
    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.written >= LOG_BYTES_MAX {
            self.file = None;
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            self.written = 0;
        }
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
        }
        self.written += line.len() as u64 + 1;
        self.file.as_mut().map_or(Ok(()), |file| writeln!(file, "{line}"))
    }
}

/// Gives every line that arrives to `take`, until the other end is closed. What is too long is cut into several.
pub fn lines(mut from: impl io::Read, mut take: impl FnMut(&str)) {
    let (mut line, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let length = match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for byte in &bytes[..length] {
            if *byte == b'\n' || line.len() == LINE_BYTES_MAX {
                take(&String::from_utf8_lossy(&line));
                line.clear();
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
        }
    }
    if !line.is_empty() {
        take(&String::from_utf8_lossy(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(now: Instant) -> Agent {
        let (_, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        Agent::new(Vec::new(), writer, now)
    }

    #[test]
    fn an_agent_that_ends_at_once_is_started_ever_more_rarely() {
        let start = Instant::now();
        let mut agent = agent(start);
        let mut waits = Vec::new();
        for _ in 0..7 {
            agent.running = Some((Pid::from_raw(7), start));
            assert!(agent.ended(&Ended { pid: Pid::from_raw(7), how: "ended with code 1".to_owned() }, start));
            waits.push((agent.next - start).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(agent.trouble.as_deref(), Some("ended with code 1; starts again in 30 s"));
        agent.running = Some((Pid::from_raw(8), start));
        let later = start + GOOD_RUN;
        assert!(!agent.ended(&Ended { pid: Pid::from_raw(7), how: String::new() }, later));
        assert!(agent.ended(&Ended { pid: Pid::from_raw(8), how: String::new() }, later));
        assert_eq!((agent.next - later).as_secs(), 1);
    }

    #[test]
    fn lines_are_cut_and_the_last_one_needs_no_end() {
        let text = format!("one\n\n{}\nlast", "x".repeat(LINE_BYTES_MAX + 1));
        let mut found = Vec::new();
        lines(text.as_bytes(), |line| found.push(line.len()));
        assert_eq!(found, [3, 0, LINE_BYTES_MAX, 1, 4]);
    }

    #[test]
    fn a_log_stays_within_its_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log { path: folder.path().join("agent.log"), file: None, written: 0 };
        let line = "x".repeat(1023);
        for _ in 0..3000 {
            log.write(&line).unwrap();
        }
        let size = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
        assert_eq!((size("agent.log.1"), size("agent.log")), (1 << 20, (3000 - 2048) * 1024));
    }
}
