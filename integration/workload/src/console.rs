//! Takes orders from the serial console and carries them out.

use std::{
    collections::VecDeque,
    io::{self, BufRead, Read as _, Write},
    time::Duration,
};

use crate::{
    clock::{self, Watch},
    disk::{Plan, Writer},
    memory::Holder,
    ping::Pinger,
    transfer::{Sender, Server},
    words::{Answer, LINE_BYTES_MAX, Order, Outcome, Report, Told, What},
};

/// Targets pinged at once.
const PINGERS_MAX: usize = 8;
/// Answers kept for orders that come twice.
const ANSWERS_KEPT: usize = 16;

/// Everything that is under way.
struct Work {
    watch: Option<Watch>,
    server: Option<Server>,
    sender: Option<Sender>,
    pingers: Vec<Pinger>,
    writer: Option<Writer>,
    holder: Option<Holder>,
}

/// Serves until the input ends.
pub fn serve(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut input = input;
    let mut work = Work { watch: None, server: None, sender: None, pingers: Vec::new(), writer: None, holder: None };
    let mut answered: VecDeque<Answer> = VecDeque::new();
    loop {
        let mut line = Vec::new();
        if input.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        // What is not an order is noise on the line.
        let Ok(order) = serde_json::from_slice::<Order>(&line) else { continue };
        // What tells of now is always fresh; anything else is done once.
        let before = answered.iter().find(|answer| answer.id == order.id && !matches!(order.what, What::Report | What::Now)).cloned();
        let answer = before.unwrap_or_else(|| {
            let outcome = work.carry_out(order.what).map_or_else(|error| Outcome::Error(error.to_string()), Outcome::Ok);
            Answer { id: order.id, outcome }
        });
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        // A line end first: the kernel may have begun a line of its own.
        output.write_all(b"\n")?;
        output.write_all(&text)?;
        output.flush()?;
        answered.push_front(answer);
        answered.truncate(ANSWERS_KEPT);
    }
}

impl Work {
    fn carry_out(&mut self, what: What) -> io::Result<Told> {
        match what {
            What::Hello => {}
            What::Serve { port } => self.server = Some(Server::start(port).map_err(|error| named(&format!("port {port}"), &error))?),
            What::Send { to, kbit } => {
                self.sender = Some(Sender::start(to, kbit, random()?).map_err(|error| named(&format!("connect to {to}"), &error))?);
            }
            What::StopSend => self.sender.as_mut().ok_or_else(|| missing("transfer"))?.finish()?,
            What::Ping { to, every_ms } => {
                if self.pingers.len() >= PINGERS_MAX {
                    return Err(io::Error::other(format!("more than {PINGERS_MAX} targets to ping")));
                }
                let pinger = Pinger::start(to, Duration::from_millis(every_ms.max(1)));
                self.pingers.push(pinger.map_err(|error| named(&format!("ping {to}"), &error))?);
            }
            What::Phase { name } => {
                self.watch.iter().for_each(Watch::phase);
                self.pingers.iter().for_each(|pinger| pinger.phase(&name));
            }
            What::Write { file, blocks, batch, batches_per_second } => {
                let plan = Plan { file: file.clone(), blocks, batch, batches_per_second, owner: random()? };
                self.writer = Some(Writer::start(plan).map_err(|error| named(&file, &error))?);
            }
            What::VerifyDisk => return self.writer.as_mut().ok_or_else(|| missing("writer"))?.verify().map(Told::Verified),
            What::Hold { mib, rewrites_per_second } => match &mut self.holder {
                Some(holder) if holder.holds(mib) => holder.rewrite(rewrites_per_second),
                _ => self.holder = Some(Holder::start(mib, rewrites_per_second, random()?)?),
            },
            What::VerifyMemory => return Ok(Told::Verified(self.holder.as_mut().ok_or_else(|| missing("pattern"))?.verify())),
            What::WatchClocks => {
                self.watch.get_or_insert_with(Watch::start);
            }
            What::Now => return Ok(Told::Now(clock::realtime_ns())),
            What::StepClock { by_ns } => clock::step(by_ns)?,
            What::Report => return Ok(Told::Report(Box::new(self.report()))),
        }
        Ok(Told::Done)
    }

    fn report(&self) -> Report {
        Report {
            server: self.server.as_ref().map(Server::report),
            sender: self.sender.as_ref().map(Sender::report),
            pings: self.pingers.iter().map(Pinger::report).collect(),
            disk: self.writer.as_ref().map(Writer::report),
            memory: self.holder.as_ref().map(Holder::report),
            clock: self.watch.as_ref().map(Watch::report),
        }
    }
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

fn missing(what: &str) -> io::Error {
    io::Error::other(format!("no {what} was started"))
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_answered_once_and_noise_is_passed_over() {
        let folder = std::env::temp_dir().join(format!("rebec-console-{}", std::process::id()));
        let lines = format!(
            "noise\n{}\n{}\n{}\n{}\n",
            r#"{"id":1,"do":"hello"}"#,
            r#"{"id":2,"do":"verify-disk"}"#,
            format_args!(r#"{{"id":3,"do":"write","file":"{}","blocks":8,"batch":1,"batches_per_second":10}}"#, folder.display()),
            r#"{"id":1,"do":"verify-memory"}"#,
        );
        let mut output = Vec::new();
        serve(lines.as_bytes(), &mut output).unwrap();
        let text = String::from_utf8(output).unwrap();
        let answers: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        let expected = [
            r#"{"id":1,"ok":"done"}"#,
            r#"{"id":2,"error":"no writer was started"}"#,
            r#"{"id":3,"ok":"done"}"#,
            r#"{"id":1,"ok":"done"}"#,
        ];
        assert_eq!(answers, expected);
        std::fs::remove_file(folder).unwrap();
    }
}
