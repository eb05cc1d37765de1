//! Orders to the workload in a VM, over its serial port.
//!
//! The port is a Unix socket of the VMM in a lab machine; the agent carries it. Whatever else the guest prints is kept as
//! its console. A line can be lost when the VM moves, so an order without an answer is repeated with its own number.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rebec_workload::words::{Answer, Order, Outcome, Report, Told, Verified, What};

use super::Machine;
use crate::channel::client::Job;

/// After this long without an answer an order is said again.
const REPEAT_AFTER: Duration = Duration::from_secs(15);
/// How long the socket of a VMM that was just started may take to appear.
const SOCKET_DEADLINE: Duration = Duration::from_secs(60);

/// A serial port with a workload at its other end.
pub struct Orders {
    name: String,
    job: Job,
    console: File,
    /// Bytes after the last whole line.
    rest: Vec<u8>,
    next: u64,
}

impl Orders {
    /// Connects to a VM's serial socket. `first` is the number of the first order; the numbers of a VM must not repeat.
    pub fn connect(machine: &Machine, name: &str, socket: &str, console: &Path, first: u64) -> Result<Self> {
        let wait = format!("n=0; until [ -S {socket} ]; do n=$((n+1)); [ $n -gt 500 ] && exit 1; sleep 0.1; done");
        let appeared = machine.check(&["sh", "-c", &wait], SOCKET_DEADLINE);
        appeared.with_context(|| format!("vm {name} on machine {} has no serial socket {socket}", machine.name()))?;
        Ok(Self { next: first, ..Self::on(machine.connect(socket)?, name, console)? })
    }

    /// Talks over a job that carries the serial port.
    pub fn on(job: Job, name: &str, console: &Path) -> Result<Self> {
        let console = OpenOptions::new().create(true).append(true).open(console);
        let console = console.with_context(|| format!("keep the console of vm {name}"))?;
        Ok(Self { name: name.to_owned(), job, console, rest: Vec::new(), next: 1 })
    }

    /// The number of the next order.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// Gives an order and waits for its answer; what is refused is an error.
    pub fn order(&mut self, what: What, deadline: Duration) -> Result<Told> {
        let order = Order { id: self.next, what };
        self.next += 1;
        let mut line = serde_json::to_vec(&order)?;
        line.push(b'\n');
        let end = Instant::now() + deadline;
        let mut repeat_at = Instant::now();
        loop {
            let now = Instant::now();
            if now >= end {
                bail!("vm {} did not answer {:?} in {} s", self.name, order.what, deadline.as_secs());
            }
            if now >= repeat_at {
                self.job.send(&line)?;
                repeat_at = now + REPEAT_AFTER;
            }
            if let Some(code) = self.job.ended()? {
                self.read_answers()?;
                bail!("the serial port of vm {} closed (code {code}) before it answered {:?}", self.name, order.what);
            }
            self.job.wait_output(repeat_at.min(end).saturating_duration_since(Instant::now()).min(Duration::from_secs(1)));
            for answer in self.read_answers()? {
                if answer.id == order.id {
                    return match answer.outcome {
                        Outcome::Ok(told) => Ok(told),
                        Outcome::Error(why) => bail!("vm {}: {why}", self.name),
                    };
                }
            }
        }
    }

    /// Waits until the workload is there.
    pub fn hello(&mut self, deadline: Duration) -> Result<()> {
        self.order(What::Hello, deadline).map(|_| ())
    }

    /// Asks for everything the workload knows.
    pub fn report(&mut self, deadline: Duration) -> Result<Report> {
        match self.order(What::Report, deadline)? {
            Told::Report(report) => Ok(*report),
            other => bail!("vm {} answered a report with {other:?}", self.name),
        }
    }

    /// Has something verified.
    pub fn verify(&mut self, what: What, deadline: Duration) -> Result<Verified> {
        match self.order(what, deadline)? {
            Told::Verified(verified) => Ok(verified),
            other => bail!("vm {} answered a verification with {other:?}", self.name),
        }
    }

    fn read_answers(&mut self) -> Result<Vec<Answer>> {
        let bytes = self.job.take_output();
        // What is left with the job would wake whoever waits for its words, again and again.
        let console = self.console.write_all(&bytes).and_then(|()| self.console.write_all(&self.job.take_errors()));
        console.with_context(|| format!("keep the console of vm {}", self.name))?;
        self.rest.extend_from_slice(&bytes);
        let mut answers = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            answers.extend(serde_json::from_slice::<Answer>(line.trim_ascii()));
        }
        Ok(answers)
    }
}
