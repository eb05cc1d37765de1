//! A seat at a VM's console: `rebec vm console`, which stays when the VM moves and when an agent starts anew.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{Host, program};
use crate::netlab::{Console, console::Line, lab::expect};

/// What is typed while the console is between two streams is lost: it is typed again after this time.
const AGAIN: Duration = Duration::from_secs(3);
/// A guest that checks a little memory on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// A console that somebody sits at.
pub struct Seat {
    vm: String,
    /// What the command says beside.
    said: PathBuf,
    child: Child,
    /// What the guest says, and what is typed.
    pub console: Console,
}

impl Seat {
    /// Sits down; returns when the guest beats.
    pub fn take(host: &Host, vm: &str) -> Result<Self> {
        let mut command = Command::new(program()?);
        command.arg("--socket").arg(host.socket()).args(["vm", "console", vm]);
        let said = host.state().with_extension(format!("{vm}.console"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(fs::File::create(&said)?);
        let mut child = command.spawn().context("start rebec vm console")?;
        let (stdout, stdin) = (child.stdout.take().context("no stdout")?, child.stdin.take().context("no stdin")?);
        let copy = host.state().with_extension(format!("{vm}.seat"));
        let seat = Self { vm: vm.to_owned(), said, child, console: Console::new(stdout, stdin, &copy)? };
        seat.beats()?;
        Ok(seat)
    }

    /// Waits for another heartbeat.
    pub fn beats(&self) -> Result<()> {
        let mark = self.console.mark();
        self.console.wait_after(mark, "hb ", PATIENCE).with_context(|| format!("the console of VM {}", self.vm))?;
        Ok(())
    }

    /// Types a command until a line begins so.
    pub fn ask(&self, command: &[u8], beginning: &str) -> Result<Line> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let mark = self.console.mark();
            let said = || format!("the console of VM {} said: {}", self.vm, fs::read_to_string(&self.said).unwrap_or_default().trim());
            self.console.send(command).with_context(said)?;
            if let Ok(line) = self.console.wait_after(mark, beginning, AGAIN) {
                return Ok(line);
            }
        }
        bail!("VM {}: no line `{beginning}...` in {} s", self.vm, PATIENCE.as_secs())
    }

    /// Has the guest check every byte of its memory.
    pub fn check_memory(&self) -> Result<()> {
        let line = self.ask(b"c", "check ")?;
        expect(line.text.contains(" ok "), || format!("VM {}: memory: {}", self.vm, line.text))
    }

    /// Counters of the guest's first NIC.
    pub fn net(&self) -> Result<Line> {
        self.ask(b"s", "net 0 acked=")
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // It may have ended with its VM; either way it is gone afterwards.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
