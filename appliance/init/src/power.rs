//! The machine's end, and the watchdog that ends it when this process no longer runs.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount_remount, unmount},
    system::{RebootCommand, reboot},
};

use crate::{agent::Agent, spawn, volumes::STATE};

/// How long the agent may take to end: it may be in the middle of handing over a VM.
const AGENT_DEADLINE: Duration = Duration::from_secs(20);
/// How long all others may take, VMMs among them.
const OTHERS_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It starts anew.
    Reboot,
    /// It is switched off.
    PowerOff,
}

impl Ending {
    /// What a signal to PID 1 asks for. SIGINT is the kernel's word for Ctrl-Alt-Del, SIGPWR that of a failing supply.
    pub fn of(signal: Signal) -> Option<Self> {
        match signal {
            Signal::SIGTERM | Signal::SIGINT => Some(Self::Reboot),
            Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGPWR => Some(Self::PowerOff),
            _ => None,
        }
    }
}

/// A hardware watchdog; it resets the machine unless it hears from this process about once a minute.
#[derive(Default)]
pub struct Watchdog(Option<File>);

impl Watchdog {
    /// Says that this process runs. Starts the machine's watchdog if it has one by now: its driver is loaded after the agent's start.
    pub fn pet(&mut self) {
        if self.0.is_none() {
            self.0 = OpenOptions::new().write(true).open("/dev/watchdog").ok();
        }
        if let Some(device) = &mut self.0 {
            // If it cannot be told, it does its work.
            device.write_all(b"\0").ok();
        }
    }

    /// Stops it: the magic letter of Documentation/watchdog/watchdog-api.rst.
    fn stop(mut self) {
        if let Some(device) = &mut self.0 {
            device.write_all(b"V").ok();
        }
    }
}

/// Ends everything in order: agent, all others, disks, machine.
pub fn end(ending: Ending, agent: Option<Agent>, mut watchdog: Watchdog) -> ! {
    if let Some(agent) = agent {
        end_agent(agent, &mut watchdog);
    }
    for (signal, limit) in [(Signal::SIGTERM, OTHERS_DEADLINE), (Signal::SIGKILL, Duration::from_secs(2))] {
        // All processes but this one.
        if kill(Pid::from_raw(-1), signal) == Err(Errno::ESRCH) {
            break;
        }
        let start = Instant::now();
        while !all_ended() && start.elapsed() < limit {
            watchdog.pet();
            std::thread::sleep(POLL);
        }
    }
    rustix::fs::sync();
    if unmount(STATE, UnmountFlags::NOFOLLOW).is_err() {
        // Somebody still has a file open: nothing can be written to it any more, at least.
        mount_remount(STATE, MountFlags::RDONLY, c"").ok();
    }
    rustix::fs::sync();
    let command = match ending {
        // The watchdog stays awake: a machine that hangs while it starts anew is started once more.
        Ending::Reboot => RebootCommand::Restart,
        Ending::PowerOff => {
            watchdog.stop();
            RebootCommand::PowerOff
        }
    };
    reboot(command).ok();
    // A machine that can do neither stands still.
    loop {
        std::thread::park();
    }
}

fn end_agent(mut agent: Agent, watchdog: &mut Watchdog) {
    agent.signal(Signal::SIGTERM);
    let start = Instant::now();
    while agent.is_running() && start.elapsed() < AGENT_DEADLINE {
        for ended in spawn::reap() {
            agent.ended(&ended, Instant::now());
        }
        watchdog.pet();
        std::thread::sleep(POLL);
    }
}

fn all_ended() -> bool {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return true,
            Ok(WaitStatus::StillAlive) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_ask_for_endings() {
        assert_eq!(Ending::of(Signal::SIGINT), Some(Ending::Reboot));
        assert_eq!(Ending::of(Signal::SIGUSR1), Some(Ending::PowerOff));
        assert_eq!(Ending::of(Signal::SIGCHLD), None);
    }
}
