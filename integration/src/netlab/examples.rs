//! Examples of a page, typed as they stand there.
//!
//! A block that begins with three backquotes and `sh` is one example, typed in a folder of its own. A line that ends with `&` goes on; every other one is
//! typed again until it succeeds, as by somebody who waits for what the line before began. What goes on must end, and end well, with its example.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Machine,
    vmm::{self, SHORT},
};

/// Between two tries of a line.
const AGAIN: Duration = Duration::from_millis(100);

/// The examples of a page.
pub fn of(page: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let blocks = text.split("\n```sh\n").skip(1);
    Ok(blocks.filter_map(|block| Some(block.split_once("\n```")?.0.to_owned())).collect())
}

/// Types one on a machine, in a folder that holds what it needs. Programs of `path` are found first.
pub fn type_in(example: &str, machine: &Machine, folder: &Path, path: &Path) -> Result<()> {
    let path = format!("{}:{}", path.display(), std::env::var("PATH").unwrap_or_default());
    let start = |line: &str| -> Result<Child> {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {line}")]).current_dir(folder).env("PATH", &path);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        machine.spawn(command)
    };
    let mut going_on = vec![];
    let mut typed = Ok(());
    for line in example.lines() {
        match line.strip_suffix('&') {
            Some(line) => going_on.push((line, Ended(Some(start(line)?)))),
            None => typed = succeeds(line, &start),
        }
        if typed.is_err() {
            break;
        }
    }
    // One that has ended by itself says why, and is the cause of what failed after it.
    let ended =
        going_on.into_iter().rev().try_for_each(|(line, child)| child.well(line, if typed.is_ok() { SHORT } else { Duration::ZERO }));
    match (typed, ended) {
        (Err(error), Err(cause)) => Err(cause.context(error)),
        (typed, ended) => typed.and(ended),
    }
}

fn succeeds(line: &str, start: &impl Fn(&str) -> Result<Child>) -> Result<()> {
    let began = Instant::now();
    loop {
        let output = vmm::wait_with_output(start(line)?, SHORT)?;
        if output.status.success() {
            return Ok(());
        }
        ensure!(began.elapsed() < SHORT, "`{line}`: {}", String::from_utf8_lossy(&output.stderr).trim());
        std::thread::sleep(AGAIN);
    }
}

/// A process that is killed if nobody waits for its end.
struct Ended(Option<Child>);

impl Ended {
    fn well(mut self, line: &str, patience: Duration) -> Result<()> {
        let child = self.0.take().context("invariant: nobody has waited for it")?;
        let output = vmm::wait_with_output(child, patience).with_context(|| format!("`{line}` has not ended"))?;
        ensure!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
