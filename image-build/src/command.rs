//! Host programs, run with a deadline and errors that name them.
//!
//! Every program that the image build or the lab starts on the host goes through here or is owned by a value whose `Drop` ends it.

use std::{
    ffi::OsStr,
    io::Read as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// Most bytes of a program's output that are kept for its caller.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// How often a child is asked whether it has ended.
const CHILD_POLL: Duration = Duration::from_millis(5);

/// One program to run to its end.
pub struct Program {
    command: Command,
    name: String,
    deadline: Duration,
}

impl Program {
    /// `name` is found through PATH.
    pub fn new(name: &str) -> Self {
        let mut command = Command::new(name);
        command.stdin(Stdio::null());
        Self { command, name: name.to_owned(), deadline: Duration::from_secs(120) }
    }

    /// Appends one argument.
    #[must_use]
    pub fn arg(mut self, value: impl AsRef<OsStr>) -> Self {
        self.command.arg(value);
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, values: I) -> Self {
        self.command.args(values);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Takes the variables out of its environment whose names begin so.
    #[must_use]
    pub fn without_env(mut self, beginning: &str) -> Self {
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with(beginning)) {
            self.command.env_remove(key);
        }
        self
    }

    /// Sets the folder it runs in.
    #[must_use]
    pub fn folder(mut self, path: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Gives it a file as standard input.
    #[must_use]
    pub fn stdin(mut self, file: std::fs::File) -> Self {
        self.command.stdin(file);
        self
    }

    /// Gives it a file as standard output.
    #[must_use]
    pub fn stdout(mut self, file: std::fs::File) -> Self {
        self.command.stdout(file);
        self
    }

    /// How long it may take; 120 s unless said otherwise.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it with its output shown to the user; an exit code other than 0 is an error.
    pub fn run(mut self) -> Result<()> {
        let child = self.command.spawn().with_context(|| format!("start {}", self.name))?;
        wait(child, &self.name, Instant::now(), self.deadline)
    }

    /// As [`Program::run`], and tells for how long processors worked for it and for all that it started and waited for.
    pub fn measured(mut self) -> (Result<()>, Duration) {
        let (start, mut worked) = (Instant::now(), Duration::ZERO);
        let done = self.command.spawn().with_context(|| format!("start {}", self.name)).and_then(|child| {
            // Its account is gone once it was waited for.
            while !has_ended(&child) && start.elapsed() <= self.deadline {
                std::thread::sleep(CHILD_POLL);
            }
            worked = worked_for(child.id());
            wait(child, &self.name, start, self.deadline)
        });
        (done, worked)
    }

    /// Runs it in silence; when it fails, the error carries the end of what it said.
    pub fn quiet(self) -> Result<()> {
        self.output().map(|_| ())
    }

    /// Runs it and returns its standard output; when it fails, the error carries the end of what it said.
    pub fn output(mut self) -> Result<String> {
        self.command.stdout(Stdio::piped());
        self.collect()
    }

    /// Runs it with standard output going where [`Program::stdout`] said.
    pub fn into_file(self) -> Result<()> {
        self.collect().map(|_| ())
    }

    fn collect(mut self) -> Result<String> {
        self.command.stderr(Stdio::piped());
        let mut child = self.command.spawn().with_context(|| format!("start {}", self.name))?;
        let stdout = child.stdout.take().map(collector);
        let stderr = child.stderr.take().map(collector);
        let ended = wait(child, &self.name, Instant::now(), self.deadline);
        let text = |thread: Option<std::thread::JoinHandle<Vec<u8>>>| {
            let bytes = thread.and_then(|thread| thread.join().ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (out, err) = (text(stdout), text(stderr));
        match ended {
            Ok(()) => Ok(out),
            Err(error) => {
                let said = if err.trim().is_empty() { &out } else { &err };
                let tail: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).rev().take(3).collect();
                bail!("{error}: {}", tail.into_iter().rev().collect::<Vec<_>>().join(" | "))
            }
        }
    }
}

fn collector(mut pipe: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A read error ends the output early; the exit code tells the rest.
        pipe.by_ref().take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).ok();
        bytes
    })
}

/// Whether a child has ended. It stays to be waited for.
fn has_ended(child: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // Where that cannot be told, waiting for it tells why.
    waitid(WaitId::Pid(Pid::from_child(child)), options).map_or(true, |status| status.is_some())
}

/// What a process and its ended children took of processors; nothing if it cannot be read (proc(5), `/proc/pid/stat`).
fn worked_for(process: u32) -> Duration {
    const TICKS_PER_SECOND: u64 = 100;
    // From behind the name, which may hold anything: utime, stime, cutime and cstime are the fields 14 to 17.
    const FIELDS: std::ops::Range<usize> = 11..15;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields.get(FIELDS).unwrap_or_default().iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

fn wait(mut child: Child, name: &str, start: Instant, deadline: Duration) -> Result<()> {
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for {name}"))? {
            if status.success() {
                return Ok(());
            }
            bail!("{name} ended with {status}");
        }
        if start.elapsed() > deadline {
            child.kill().ok();
            child.wait().ok();
            bail!("{name} did not end in {} s", deadline.as_secs());
        }
        std::thread::sleep(CHILD_POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_program_and_what_it_said() {
        let error = Program::new("sh").args(["-c", "echo broken >&2; exit 3"]).output().unwrap_err().to_string();
        assert!(error.contains("sh ended with") && error.contains("3") && error.contains("broken"), "{error}");
    }

    #[test]
    fn a_program_s_work_is_told_apart_from_its_waiting() {
        let work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let (done, worked) = Program::new("sh").args(["-c", &format!("sleep 0.3; sh -c '{work}'")]).measured();
        done.unwrap();
        assert!(worked > Duration::ZERO, "{worked:?}");
        let (done, worked) = Program::new("sleep").arg("0.5").measured();
        done.unwrap();
        assert!(worked < Duration::from_millis(200), "{worked:?}");
        let (done, _) = Program::new("sleep").arg("60").deadline(Duration::from_millis(50)).measured();
        assert!(done.unwrap_err().to_string().contains("did not end"));
        assert!(Program::new("false").measured().0.is_err());
    }

    #[test]
    fn a_deadline_ends_what_hangs() {
        let error = Program::new("sleep").arg("60").deadline(Duration::from_millis(50)).quiet().unwrap_err().to_string();
        assert!(error.contains("did not end"), "{error}");
    }
}
