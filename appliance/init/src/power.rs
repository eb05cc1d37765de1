//! The machine's end, the button that asks for it, and the watchdog that ends it when this process no longer runs.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    sync::mpsc::SyncSender,
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

use crate::{agent::Agent, event::Event, spawn, volumes::STATE};

/// How long the agent may take to end: it may be in the middle of handing over a VM.
const AGENT_DEADLINE: Duration = Duration::from_secs(20);
/// How long all others may take, VMMs among them, whose guests power themselves off.
const OTHERS_DEADLINE: Duration = Duration::from_secs(60);
/// From when on it is said that they are waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);
/// `struct input_event`: 16 bytes of time, then type, code and value.
const INPUT_EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

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

/// Listens to an input device, named as below `/dev`, if it has a power button.
pub fn listen(device: &str, events: &SyncSender<Event>) {
    let keys = fs::read_to_string(format!("/sys/class/{device}/device/capabilities/key")).unwrap_or_default();
    if !has_key(&keys, KEY_POWER) {
        return;
    }
    let Ok(mut device) = File::open(format!("/dev/{device}")) else { return };
    let events = events.clone();
    let listening = std::thread::Builder::new().name("power button".to_owned()).spawn(move || {
        let mut event = [0; INPUT_EVENT_BYTES];
        // Until the device goes.
        while device.read_exact(&mut event).is_ok() {
            if is_press(&event, KEY_POWER) && events.send(Event::PowerButton).is_err() {
                return;
            }
        }
    });
    // A machine that is out of threads can still be told to end by Ctrl-Alt-Del.
    listening.ok();
}

/// Whether a key is in a device's bitmap: words of 64 bits in hexadecimal, the highest first.
fn has_key(bitmap: &str, key: u16) -> bool {
    let word = bitmap.split_whitespace().rev().nth(usize::from(key / 64));
    word.and_then(|word| u64::from_str_radix(word, 16).ok()).is_some_and(|word| word >> (key % 64) & 1 == 1)
}

fn is_press(event: &[u8; INPUT_EVENT_BYTES], key: u16) -> bool {
    event[16..18] == EV_KEY.to_ne_bytes() && event[18..20] == key.to_ne_bytes() && event[20..24] == 1i32.to_ne_bytes()
}

/// Ends everything in order: agent, all others, disks, machine.
pub fn end(ending: Ending, agent: Option<Agent>, mut watchdog: Watchdog, say: impl Fn(&str)) -> ! {
    if let Some(agent) = agent {
        end_agent(agent, &mut watchdog);
    }
    for (signal, limit) in [(Signal::SIGTERM, OTHERS_DEADLINE), (Signal::SIGKILL, Duration::from_secs(2))] {
        // All processes but this one.
        if kill(Pid::from_raw(-1), signal) == Err(Errno::ESRCH) {
            break;
        }
        let start = Instant::now();
        let mut told = false;
        while !all_ended() && start.elapsed() < limit {
            if !told && start.elapsed() > PATIENCE {
                told = true;
                say(&format!("VMs power themselves off; they are waited for, {} s at most.\r\n", limit.as_secs()));
            }
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

    #[test]
    fn a_power_button_is_known_by_its_bitmap_and_a_press_by_its_event() {
        // Those of an ACPI button, of a keyboard that has one too, and of a mouse.
        let keyboard = "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe";
        for (bitmap, has) in [("10000000000000 0\n", true), (keyboard, true), ("1f0000 0 0 0 0", false), ("", false), ("x y", false)] {
            assert_eq!(has_key(bitmap, KEY_POWER), has, "{bitmap}");
        }
        let event = |kind: u8, key: u8, value: u8| {
            let mut event = [7; INPUT_EVENT_BYTES];
            event[16..].copy_from_slice(&[kind, 0, key, 0, value, 0, 0, 0]);
            event
        };
        assert!(is_press(&event(1, 116, 1), KEY_POWER));
        for other in [event(1, 116, 0), event(1, 116, 2), event(1, 115, 1), event(0, 0, 0)] {
            assert!(!is_press(&other, KEY_POWER));
        }
    }
}
