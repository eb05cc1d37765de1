//! The `rebec` command line, as a user or a script calls it.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::program;
use crate::netlab::{lab::expect, vmm::wait_with_output};

/// No command of a story takes longer; a move over a slow link is the longest.
const DEADLINE: Duration = Duration::from_secs(120);

/// A command that runs.
pub struct Asked {
    words: String,
    child: Child,
}

/// How a command ended.
#[derive(Debug)]
pub struct Answer {
    words: String,
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

/// Starts a command that asks the agent behind a socket.
pub fn begin(socket: &Path, words: &[&str]) -> Result<Asked> {
    let mut command = Command::new(program()?);
    command.arg("--socket").arg(socket).arg("--json").args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Tickets are secrets: not all the words go into messages.
    let words = words.iter().take(3).copied().collect::<Vec<_>>().join(" ");
    let child = command.spawn().with_context(|| format!("start rebec {words}"))?;
    Ok(Asked { words, child })
}

impl Asked {
    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn end(self) -> Result<Answer> {
        let output = wait_with_output(self.child, DEADLINE).with_context(|| format!("rebec {}", self.words))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let code = output.status.code().with_context(|| format!("rebec {} was killed", self.words))?;
        Ok(Answer { words: self.words, code, stdout: text(output.stdout), stderr: text(output.stderr) })
    }
}

impl Answer {
    /// Whether what was asked is done.
    pub fn is_done(&self) -> bool {
        self.code == 0
    }

    /// What was answered; a failure is an error.
    pub fn value(&self) -> Result<Value> {
        let Self { words, code, stdout, stderr } = self;
        expect(*code == 0, || format!("rebec {words} ended with {code}: {}", stderr.trim()))?;
        if stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(stdout).with_context(|| format!("rebec {words} printed `{}`", stdout.trim()))
    }
}
