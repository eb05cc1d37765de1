//! PID 1 of the appliance: small, no network, no shell. It prepares the machine, starts the agent and keeps it running.
//!
//! ```text
//! options   what the kernel's command line asks for: rebec.join, rebec.hostname, rebec.ip, rebec.vlan, rebec.ntp, rebec.state
//! event     what the machine's loop hears of
//! mounts    /proc /sys /dev /run /tmp and their like
//! alias     which modules a device asks for: depmod's files, read without modprobe
//! pack      the file that holds the modules that few machines load
//! modules   loading them, for devices and for the kernel's own requests
//! devices   every device that is there at boot, and each that comes later
//! label     which label a disk's file system carries
//! volumes   where state is kept, and the ticket on a seed volume
//! spawn     starting programs; this process is their parent and reaps all
//! agent     the agent: started, its log kept within bounds, started again when it ends
//! screen    what a person sees, out of the agent's words and our own
//! console   the terminals it is drawn on, and the ticket that is typed there
//! power     power button, watchdog, orderly reboot and power off
//! machine   the loop that holds it together
//! ```
//! The `rebec` binary is `/init` of the image, and `/sbin/modprobe` once that runs; [`take_over`] decides by name.

use std::path::Path;

mod options;

mod event;

mod mounts;

mod alias;

mod pack;

mod modules;

mod devices;

mod label;
mod late;

mod volumes;

mod spawn;

mod agent;

mod screen;

mod console;

mod power;

mod machine;

pub use machine::run;

/// To be called first in `main`: never returns when this process is the machine's init, or was started by the kernel to load a
/// module; returns at once otherwise. The name counts besides the number, because PID 1 of a container may be an agent.
pub fn take_over() {
    let mut words = std::env::args();
    let name = words.next().unwrap_or_default();
    let name = Path::new(&name).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match name {
        "init" if std::process::id() == 1 => run(),
        "modprobe" => std::process::exit(modules::answer_kernel(words)),
        _ => {}
    }
}
