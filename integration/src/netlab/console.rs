//! A guest's serial port as lines with the time they arrived, waited for with deadlines and kept as evidence.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read, Write},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Lines kept in memory; a heartbeat of 10 ms fills them in an hour and a half.
const LINES_MAX: usize = 500_000;

/// One line and when its end arrived.
#[derive(Debug, Clone)]
pub struct Line {
    /// When.
    pub at: Instant,
    /// Without its end.
    pub text: String,
}

/// One beat of the bench guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// When it arrived.
    pub at: Instant,
    /// Its number.
    pub number: u64,
    /// The guest's time stamp counter.
    pub tsc: u64,
}

/// Both directions of a serial port.
pub struct Console {
    shared: Arc<Shared>,
    input: Mutex<Box<dyn Write + Send>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    ended: bool,
}

impl Console {
    /// Reads `output` until it ends, copying it to `file`.
    pub fn new(output: impl Read + Send + 'static, input: impl Write + Send + 'static, file: &Path) -> Result<Self> {
        let mut copy = File::create(file).with_context(|| format!("make {}", file.display()))?;
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut bytes = Vec::new();
            while matches!(output.read_until(b'\n', &mut bytes), Ok(count) if count > 0) {
                // Evidence that cannot be written must not end the test it is evidence of.
                copy.write_all(&bytes).ok();
                let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                writer.add(Line { at: Instant::now(), text });
                bytes.clear();
            }
            writer.lock().ended = true;
            writer.changed.notify_all();
        });
        Ok(Self { shared, input: Mutex::new(Box::new(input)) })
    }

    /// Types bytes.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        input.write_all(bytes).and_then(|()| input.flush()).context("write to the serial port")
    }

    /// How many lines there are: a mark for [`Console::wait_after`].
    pub fn mark(&self) -> usize {
        self.shared.lock().lines.len()
    }

    /// Waits for a line that begins so, from the start of the console.
    pub fn wait(&self, beginning: &str, deadline: Duration) -> Result<Line> {
        self.wait_after(0, beginning, deadline)
    }

    /// Waits for a line that begins so and came after a mark.
    pub fn wait_after(&self, mark: usize, beginning: &str, deadline: Duration) -> Result<Line> {
        let until = Instant::now() + deadline;
        let mut state = self.shared.lock();
        let mut seen = mark;
        loop {
            if let Some(line) = state.lines[seen.min(state.lines.len())..].iter().find(|line| line.text.starts_with(beginning)) {
                return Ok(line.clone());
            }
            seen = state.lines.len();
            let left = until.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let why = if state.ended { "the console ended" } else { "the deadline passed" };
                let last = state.lines.iter().rev().find(|line| !line.text.starts_with("hb ")).map_or("nothing", |line| line.text.as_str());
                bail!("waited for a line `{beginning}...`, but {why} after {} lines; the last was `{last}`", state.lines.len());
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The last line that begins so.
    pub fn last(&self, beginning: &str) -> Option<Line> {
        self.shared.lock().lines.iter().rev().find(|line| line.text.starts_with(beginning)).cloned()
    }

    /// All lines that begin so.
    pub fn all(&self, beginning: &str) -> Vec<Line> {
        self.shared.lock().lines.iter().filter(|line| line.text.starts_with(beginning)).cloned().collect()
    }

    /// All heartbeats.
    pub fn beats(&self) -> Vec<Beat> {
        self.all("hb ").iter().filter_map(Beat::parse).collect()
    }
}

impl Beat {
    fn parse(line: &Line) -> Option<Self> {
        let mut words = line.text.strip_prefix("hb ")?.split(' ');
        Some(Self { at: line.at, number: words.next()?.parse().ok()?, tsc: u64::from_str_radix(words.next()?, 16).ok()? })
    }
}

impl Line {
    /// The number of a `key=number` in the line.
    pub fn number(&self, key: &str) -> Result<u64> {
        let found = self.text.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        found.and_then(|text| text.parse().ok()).with_context(|| format!("no number `{key}` in line `{}`", self.text))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A reader that panicked left whole lines behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: Line) {
        let mut state = self.lock();
        if state.lines.len() < LINES_MAX {
            state.lines.push(line);
        }
        drop(state);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_waited_for_and_end_with_the_port() {
        let folder = tempfile::tempdir().unwrap();
        let (read, mut write) = std::io::pipe().unwrap();
        let console = Console::new(read, std::io::sink(), &folder.path().join("console")).unwrap();
        write.write_all(b"ready pages=7\nhb 3 ff\n").unwrap();
        assert_eq!(console.wait("ready", Duration::from_secs(5)).unwrap().number("pages").unwrap(), 7);
        console.wait("hb", Duration::from_secs(5)).unwrap();
        let beat = console.beats()[0];
        assert_eq!((beat.number, beat.tsc), (3, 255));
        let error = console.wait_after(2, "hb", Duration::from_millis(20)).unwrap_err().to_string();
        assert!(error.contains("deadline passed") && error.contains("ready pages=7"), "{error}");
        drop(write);
        let error = console.wait("bye", Duration::from_secs(5)).unwrap_err().to_string();
        assert!(error.contains("console ended"), "{error}");
    }
}
