//! Processes that hold a state folder: VMMs are nobody's children once their agent is gone, and are found by their command lines.

use std::{fs, os::unix::ffi::OsStrExt as _, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::PREFIX;

/// Rounds of killing: a process may be forking while it is looked for.
const ROUNDS_MAX: usize = 50;
/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(20);

/// Kills every process whose command line names something below a folder, and waits until none is left.
pub fn kill_all(folder: &Path) {
    for _ in 0..ROUNDS_MAX {
        let found = holding(folder);
        if found.is_empty() {
            return;
        }
        for process in found {
            // It may end by itself meanwhile.
            kill(Pid::from_raw(process), Signal::SIGKILL).ok();
        }
        thread::sleep(PAUSE);
    }
}

/// The processes of a VMM, found before they are in a hurry.
pub struct Vmm(Vec<Pid>);

impl Vmm {
    /// Those whose command line names something below a VM's folder.
    pub fn of(folder: &Path) -> Self {
        Self(holding(folder).into_iter().map(Pid::from_raw).collect())
    }

    /// Has all of them stand still.
    pub fn stand_still(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Has all of them go on.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.0.iter().try_for_each(|process| kill(*process, signal)).context("signal a VMM")
    }
}

/// Processes whose command line names something below a folder.
fn holding(folder: &Path) -> Vec<i32> {
    let mut below = folder.as_os_str().as_bytes().to_vec();
    below.push(b'/');
    let Ok(entries) = fs::read_dir("/proc") else { return vec![] };
    let processes = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own = std::process::id().cast_signed();
    let named = |process: &i32| {
        // A process that has ended, zombies included, has no command line.
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        *process != own && line.windows(below.len()).any(|window| window == below)
    };
    processes.filter(named).collect()
}

/// Ends what runs of this lab that are no more have left; returns how many state folders there were.
pub fn clean() -> Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir("/tmp").context("read /tmp")? {
        let entry = entry.context("read /tmp")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists()) {
            kill_all(&entry.path());
            fs::remove_dir_all(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
            found += 1;
        }
    }
    Ok(found)
}
