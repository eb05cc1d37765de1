//! Disks that mean something: one for state, and one with a ticket.
//!
//! ```text
//! REBEC-STATE   ext4                     mounted on /var/lib/rebec; without it that is in RAM
//! REBEC-SEED    ext4, vfat or iso9660    its file `ticket` is copied to /run/rebec/ticket
//! ```
//! No disk is ever written to because it is empty or unknown.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::label::{self, Kind};

/// Where state lives.
pub const STATE: &str = "/var/lib/rebec";
/// Where the ticket is handed to the agent.
pub const TICKET: &str = "/run/rebec/ticket";
const STATE_LABEL: &str = "REBEC-STATE";
const SEED_LABEL: &str = "REBEC-SEED";
const TICKET_BYTES_MAX: u64 = 64 << 10;
const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Whether state survives a reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It does, on this disk.
    Disk(PathBuf),
    /// It does not, for this reason.
    Ram(String),
}

/// Labelled volumes that were found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Volumes {
    state: Option<(PathBuf, Kind)>,
    seed: Option<(PathBuf, Kind)>,
}

impl Volumes {
    /// Looks at every disk and partition.
    pub fn find() -> Self {
        let mut volumes = Self::default();
        let mut names: Vec<_> = fs::read_dir("/sys/class/block").into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            let name = name.to_string_lossy();
            // Floppy drives take seconds to say that they are empty.
            if ["loop", "ram", "zram", "fd"].iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            let path = Path::new("/dev").join(name.as_ref());
            // An empty drive is an error; it is as good as no disk.
            let Ok(Some((kind, label))) = File::open(&path).and_then(|mut disk| label::read(&mut disk)) else { continue };
            match label.as_str() {
                STATE_LABEL if volumes.state.is_none() => volumes.state = Some((path, kind)),
                SEED_LABEL if volumes.seed.is_none() => volumes.seed = Some((path, kind)),
                _ => {}
            }
        }
        volumes
    }

    /// Whether a volume for state is there.
    pub fn has_state(&self) -> bool {
        self.state.is_some()
    }

    /// Whether a volume with a ticket is there.
    pub fn has_seed(&self) -> bool {
        self.seed.is_some()
    }

    /// Mounts the place for state.
    pub fn mount_state(&self, asked_for_ram: bool) -> io::Result<State> {
        fs::create_dir_all(STATE)?;
        let disk = if asked_for_ram { Err("asked for by rebec.state=ram".to_owned()) } else { self.mount_disk() };
        disk.or_else(|reason| {
            mount("tmpfs", STATE, "tmpfs", SAFE, Some(c"mode=0755,size=50%"))?;
            Ok(State::Ram(reason))
        })
    }

    /// Mounts the disk for state, over what is there; or why not.
    pub fn mount_disk(&self) -> Result<State, String> {
        match &self.state {
            None => Err(format!("no disk has the label {STATE_LABEL}; give an ext4 partition that label to keep state")),
            Some((path, kind)) if *kind != Kind::Ext4 => {
                Err(format!("{} has the label {STATE_LABEL} but is {}; make it ext4", path.display(), kind.name()))
            }
            Some((path, kind)) => mount(path, STATE, kind.name(), SAFE, Some(c"errors=remount-ro"))
                .map(|()| State::Disk(path.clone()))
                .map_err(|error| format!("{} cannot be mounted: {error}; check it with fsck.ext4 on another machine", path.display())),
        }
    }

    /// Copies the seed volume's ticket; whether there was one, or why it could not be read.
    pub fn take_ticket(&self) -> Result<bool, String> {
        let Some((path, kind)) = &self.seed else { return Ok(false) };
        let refusal = |why: String| format!("seed volume {}: {why}", path.display());
        let place = "/run/rebec/seed";
        fs::create_dir_all(place).map_err(|error| refusal(error.to_string()))?;
        mount(path, place, kind.name(), SAFE | MountFlags::RDONLY, None)
            .map_err(|error| refusal(format!("cannot be mounted as {}: {error}; make it anew", kind.name())))?;
        let ticket = read_ticket(&Path::new(place).join("ticket"));
        // Whatever was read, the volume is not needed any more.
        unmount(place, UnmountFlags::DETACH).ok();
        let ticket = ticket.map_err(refusal)?;
        hand_over(&ticket).map_err(|error| refusal(format!("its ticket could not be kept: {error}")))?;
        Ok(true)
    }
}

fn read_ticket(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(TICKET_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("its file `ticket` cannot be read: {error}; put a ticket there"))?;
    let text = String::from_utf8(bytes).unwrap_or_default();
    let mut words = text.split_whitespace();
    match (words.next(), words.next()) {
        (Some(ticket), None) if text.len() as u64 <= TICKET_BYTES_MAX => Ok(ticket.to_owned()),
        _ => Err("its file `ticket` holds no ticket; write one line of text as `host invite` gives it".to_owned()),
    }
}

/// Writes a ticket where only the agent finds it.
pub fn hand_over(ticket: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(TICKET)?;
    writeln!(file, "{ticket}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_one_word() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ticket");
        assert!(read_ticket(&path).unwrap_err().contains("cannot be read"));
        for (text, expected) in [(&b"rebec1abc\r\n"[..], Some("rebec1abc")), (b"", None), (b"two words", None), (b"\xff\xfe", None)] {
            fs::write(&path, text).unwrap();
            assert_eq!(read_ticket(&path).ok().as_deref(), expected);
        }
        fs::write(&path, vec![b'a'; 70_000]).unwrap();
        assert!(read_ticket(&path).is_err());
    }
}
