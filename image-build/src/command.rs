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
        wait(child, &self.name, self.deadline)
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
        let ended = wait(child, &self.name, self.deadline);
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

fn wait(mut child: Child, name: &str, deadline: Duration) -> Result<()> {
    let start = Instant::now();
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
    fn a_deadline_ends_what_hangs() {
        let error = Program::new("sleep").arg("60").deadline(Duration::from_millis(50)).quiet().unwrap_err().to_string();
        assert!(error.contains("did not end"), "{error}");
    }
}
