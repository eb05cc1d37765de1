//! The agent's end of a VMM's control socket (docs/formats/control.md). Blocking: callers run it where that is allowed.

use std::{
    io::{Read, Write},
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rebec_vmm_api::{
    MoveReport,
    control::{Answer, Command, Hello, LINE_BYTES_MAX, NetTalk, Progress, Request, Response, ResponseBody, Status},
    metrics::Family,
};

use crate::handover;

/// A VMM answers in milliseconds; one that is stopped in a debugger does not hang its agent.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// A connection to a VMM.
pub struct Control {
    stream: UnixStream,
    read: Vec<u8>,
    last_id: u64,
}

impl Control {
    /// Connects and checks who answers.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        let mut control = Self { stream, read: vec![], last_id: 0 };
        let hello: Hello = serde_json::from_slice(&control.line()?).context("the VMM's hello")?;
        hello.agree()?;
        Ok(control)
    }

    /// The process that serves a VMM's control socket, whether it answers or hangs.
    pub fn process(path: &Path) -> Result<u32> {
        let stream = UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
        Self { stream, read: vec![], last_id: 0 }.pid()
    }

    /// The VMM's process.
    pub fn pid(&self) -> Result<u32> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.stream).context("ask who holds the control socket")?;
        Ok(credentials.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// How the VM is.
    pub fn status(&mut self) -> Result<Status> {
        match self.ask(Command::Status, &[], |_| {})? {
            Answer::Status(status) => Ok(status),
            _ => bail!("the VMM answered something else than its status"),
        }
    }

    /// Who talked to whom. A VMM of before that question knows nothing of it.
    pub fn traffic(&mut self) -> Result<Vec<NetTalk>> {
        match self.ask(Command::Talk, &[], |_| {})? {
            Answer::Talk(talk) => Ok(talk),
            _ => bail!("the VMM answered something else than who talked"),
        }
    }

    /// What was counted. A VMM of before that question knows nothing of it.
    pub fn metrics(&mut self) -> Result<Vec<Family>> {
        match self.ask(Command::Metrics, &[], |_| {})? {
            Answer::Metrics(families) => Ok(families),
            _ => bail!("the VMM answered something else than what it counted"),
        }
    }

    /// Returns when the VM that the VMM waits for has come; takes as long as it takes.
    pub fn arrival(&mut self) -> Result<()> {
        self.stream.set_read_timeout(None)?;
        self.tell(Command::Arrival)
    }

    /// A connection that is asked for content (docs/formats/donor.md).
    pub fn donate(mut self) -> Result<UnixStream> {
        self.tell(Command::Donate)?;
        ensure!(self.read.is_empty(), "the VMM said more than that it lends");
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)?;
        Ok(self.stream)
    }

    /// A command without an answer of its own.
    pub fn tell(&mut self, command: Command) -> Result<()> {
        self.ask(command, &[], |_| {}).map(|_| ())
    }

    /// A command that comes with a descriptor.
    pub fn give(&mut self, command: Command, descriptor: BorrowedFd<'_>) -> Result<()> {
        self.ask(command, &[descriptor], |_| {}).map(|_| ())
    }

    /// Moves the VM over connected streams; takes as long as it takes.
    pub fn migrate(&mut self, command: Command, streams: &[BorrowedFd<'_>], heard: impl FnMut(&Progress)) -> Result<MoveReport> {
        self.stream.set_read_timeout(None)?;
        match self.ask(command, streams, heard)? {
            Answer::Moved(report) => Ok(report),
            _ => bail!("the VMM answered something else than the report of a move"),
        }
    }

    fn ask(&mut self, command: Command, descriptors: &[BorrowedFd<'_>], mut heard: impl FnMut(&Progress)) -> Result<Answer> {
        self.last_id += 1;
        let mut line = serde_json::to_vec(&Request::new(self.last_id, command))?;
        line.push(b'\n');
        self.send(&line, descriptors).context("send to the VMM")?;
        loop {
            let response: Response = serde_json::from_slice(&self.line()?).context("the VMM's answer")?;
            match response.body {
                ResponseBody::Ok(answer) => return Ok(answer),
                ResponseBody::Error(error) => return Err(error.into()),
                ResponseBody::Progress(progress) => heard(&progress),
            }
        }
    }

    fn send(&mut self, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        if descriptors.is_empty() {
            return self.stream.write_all(line);
        }
        let sent = handover::send(&self.stream, line, descriptors)?;
        self.stream.write_all(&line[sent..])
    }

    fn line(&mut self) -> Result<Vec<u8>> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.read, rest);
                line.pop();
                return Ok(line);
            }
            if self.read.len() > LINE_BYTES_MAX {
                bail!("the VMM sent a line of more than {LINE_BYTES_MAX} bytes");
            }
            match self.stream.read(&mut chunk).context("read from the VMM")? {
                0 => bail!("the VMM closed its control socket"),
                count => self.read.extend_from_slice(&chunk[..count]),
            }
        }
    }
}
