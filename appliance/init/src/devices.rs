//! Every device that is there at boot, and each that comes later, gets its driver.
//!
//! The kernel announces devices as datagrams of `KEY=value` strings with zero bytes between them (netlink, kobject uevents). The socket
//! is opened before `/sys` is walked, so that nothing falls between the two.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
    sync::mpsc::SyncSender,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt::RcvBuf,
    },
};

use crate::{event, modules::Loader, power};

/// The kernel's own announcements; group 2 would be those of udev.
const KERNEL_GROUP: u32 = 1;
/// Room for the announcements of a large machine while modules load.
const SOCKET_BYTES: usize = 4 << 20;
/// The kernel limits one announcement to 2 KiB and a header.
const EVENT_BYTES_MAX: usize = 8 << 10;
/// How deep `/sys/devices` is walked.
const DEPTH_MAX: usize = 32;

/// Devices that no agent needs in order to join, by the start of their modalias: keys, beeper, buttons, the maker's extras, QEMU's own.
const LATER: [&str; 8] = ["input:", "serio:", "platform:pcspkr", "dmi:", "wmi:", "acpi:PNP0C0C:", "acpi:LNXPWRBN:", "acpi:QEMU0002:"];
/// And by the class in a PCI device's: ISA bridge (the way to the watchdog), SMBus.
const LATER_CLASSES: [&str; 2] = ["bc06sc01", "bc0Csc05"];
/// Fails on a processor without the instructions.
const SHA256: &str = "sha256_ssse3";
/// How far work that may wait stands behind, and how that is taken back: not so far that busy guests keep a power button from its driver.
const PATIENCE: i32 = 5;

/// What the kernel calls an input device, without its number.
const INPUT: &str = "input/event";

/// What happened to a device.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    added: bool,
    modalias: Option<String>,
    block: bool,
    /// Below `/dev`, if it is an input device's.
    input: Option<String>,
}

/// The devices of this machine.
pub struct Devices {
    socket: OwnedFd,
    loader: Loader,
    /// Found, and not loaded yet.
    later: Vec<String>,
    /// Whoever wants to hear of power buttons.
    events: SyncSender<event::Event>,
}

impl Devices {
    /// Starts to listen.
    pub fn open(loader: Loader, events: SyncSender<event::Event>) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkKObjectUEvent)?;
        setsockopt(&socket, RcvBuf, &SOCKET_BYTES)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Self { socket, loader, later: Vec::new(), events })
    }

    /// Loads modules by name and those for the devices that were left, without taking the processor from anybody.
    fn load_later(&mut self, names: &[&str]) {
        // Without it whoever runs beside it only runs more slowly.
        let patient = rustix::process::nice(PATIENCE).is_ok();
        let later = std::mem::take(&mut self.later);
        for wanted in names.iter().copied().chain(later.iter().map(String::as_str)) {
            self.loader.load(wanted);
        }
        if patient {
            rustix::process::nice(-PATIENCE).ok();
        }
    }

    /// Loads a module for every device that is there, but for those that may wait. The processor's own SHA-256 comes first: the kernel hashes
    /// each module to check its signature.
    pub fn load_present(&mut self) {
        self.loader.load(SHA256);
        let mut found = Vec::new();
        walk(Path::new("/sys/devices"), 0, &mut found);
        found.sort();
        found.dedup();
        let (later, now): (Vec<_>, Vec<_>) = found.into_iter().partition(|modalias| can_wait(modalias));
        self.later = later;
        for modalias in now {
            self.loader.load(&modalias);
        }
    }

    /// Serves announcements until `done` says so, nothing was announced for `quiet`, or `most` has passed. `done` is asked again
    /// whenever a disk came.
    pub fn settle(&mut self, quiet: Duration, most: Duration, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + most;
        let mut last = Instant::now();
        let mut finished = done();
        while !finished {
            let now = Instant::now();
            let until = (last + quiet).min(end);
            if now >= until {
                return;
            }
            match self.wait(Some(until - now)) {
                Ok(Some(event)) => {
                    last = Instant::now();
                    if event.added && event.block {
                        finished = done();
                    }
                }
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    /// Serves announcements for as long as the machine runs; loads `names` and what was left when `pause` has passed.
    /// `on_disk` hears of each disk that comes until it has heard enough.
    pub fn serve(mut self, names: &[&str], pause: Duration, mut on_disk: impl FnMut() -> bool) {
        let mut is_enough = on_disk();
        let mut later = Some(Instant::now() + pause);
        loop {
            if later.take_if(|time| Instant::now() >= *time).is_some() {
                self.load_later(names);
            }
            match self.wait(later.map(|time| time.saturating_duration_since(Instant::now()))) {
                Ok(event) => is_enough = is_enough || event.is_some_and(|event| event.added && event.block) && on_disk(),
                // The kernel dropped announcements: look at everything again.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                    self.load_present();
                    is_enough = is_enough || on_disk();
                    later = Some(Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Waits for one announcement and loads what it asks for.
    fn wait(&mut self, limit: Option<Duration>) -> io::Result<Option<Event>> {
        let timeout = limit.map_or(PollTimeout::NONE, |limit| {
            // Rounded up, or the last millisecond would be polled in a loop.
            PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, timeout)? == 0 {
            return Ok(None);
        }
        let mut bytes = [0; EVENT_BYTES_MAX];
        let length = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)?;
        let event = read(&bytes[..length]);
        if let Some(modalias) = event.modalias.as_deref().filter(|_| event.added) {
            self.loader.load(modalias);
        }
        if let Some(input) = event.input.as_deref().filter(|_| event.added) {
            power::listen(input, &self.events);
        }
        Ok(Some(event))
    }
}

fn can_wait(modalias: &str) -> bool {
    let class = || LATER_CLASSES.iter().any(|class| modalias.contains(class));
    LATER.iter().any(|start| modalias.starts_with(start)) || modalias.starts_with("pci:") && class()
}

fn read(bytes: &[u8]) -> Event {
    let mut event = Event::default();
    for field in bytes.split(|byte| *byte == 0) {
        match std::str::from_utf8(field).ok().and_then(|field| field.split_once('=')) {
            Some(("ACTION", action)) => event.added = action == "add" || action == "change",
            Some(("MODALIAS", alias)) => event.modalias = Some(alias.to_owned()),
            Some(("SUBSYSTEM", subsystem)) => event.block = subsystem == "block",
            Some(("DEVNAME", name)) => event.input = name.starts_with(INPUT).then(|| name.to_owned()),
            _ => {}
        }
    }
    event
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<String>) {
    if depth > DEPTH_MAX {
        return;
    }
    // Devices may go while they are looked at.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type();
        if kind.as_ref().is_ok_and(fs::FileType::is_dir) {
            walk(&entry.path(), depth + 1, found);
        } else if entry.file_name() == "modalias"
            && let Ok(text) = fs::read_to_string(entry.path())
            && !text.trim().is_empty()
        {
            found.push(text.trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_read() {
        let bytes = b"add@/devices/pci0/x\0ACTION=add\0DEVPATH=/devices/pci0/x\0SUBSYSTEM=pci\0MODALIAS=pci:v1d2\0SEQNUM=7\0";
        assert_eq!(read(bytes), Event { added: true, modalias: Some("pci:v1d2".to_owned()), ..Event::default() });
        assert_eq!(read(b"remove@/x\0ACTION=remove\0SUBSYSTEM=block\0DEVNAME=sda\0"), Event { block: true, ..Event::default() });
        let button = Event { added: true, input: Some("input/event3".to_owned()), ..Event::default() };
        assert_eq!(read(b"add@/x\0ACTION=add\0SUBSYSTEM=input\0DEVNAME=input/event3\0"), button);
        assert_eq!(read(b"\xff\xff=\0=\0ACTION"), Event::default());
    }

    #[test]
    fn disks_networks_and_processors_never_wait() {
        for now in [
            "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01",
            "pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00",
            "pci:v00008086d0000A0EDsv00001D72sd00002104bc0Csc03i30",
            "cpu:type:x86,ven0002fam000Fmod006B:feature:,0000",
            "virtio:d00000001v00001AF4",
            "acpi:VMBUS:",
        ] {
            assert!(!can_wait(now), "{now}");
        }
        for later in ["serio:ty06pr00id00ex00", "pci:v00008086d00002930sv00001AF4sd00001100bc0Csc05i00", "acpi:PNP0C0C:"] {
            assert!(can_wait(later), "{later}");
        }
    }

    #[test]
    fn modaliases_are_found_below_folders() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::write(folder.path().join("a/b/modalias"), "pci:v1\n").unwrap();
        fs::write(folder.path().join("a/modalias"), "\n").unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/loop")).unwrap();
        let mut found = Vec::new();
        walk(folder.path(), 0, &mut found);
        assert_eq!(found, ["pci:v1"]);
    }
}
