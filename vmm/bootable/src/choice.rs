//! Asks what lies on a disk in the order in which a machine would: its own boot loader first, a kernel that merely lies there last.

use std::{io, ops::Range, rc::Rc};

use crate::{
    Entry, Forget, INITRAMFS_BYTES_MAX, KERNEL_BYTES_MAX, ReadAt, TEXT_BYTES_MAX, absolute,
    disk::Disk,
    entries, grub, partitions, plain, syslinux, unified,
    version::compare,
    volumes::{self, FileError, Volume},
};

/// Where grub.cfg lies; Debian's and its kin's first, last those in a subvolume of btrfs (Ubuntu's, Fedora's).
const GRUB: [&str; 6] = [
    "/boot/grub/grub.cfg",
    "/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub2/grub.cfg",
    "/@/boot/grub/grub.cfg",
    "/root/boot/grub2/grub.cfg",
];
const SYSLINUX: [&str; 7] = [
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
];
/// Folders of entries: where systemd-boot looks, and where Fedora has them if /boot is no file system of its own.
const ENTRIES: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];
const UNIFIED: &str = "/EFI/Linux";
/// Its presence says who reads entries.
const SYSTEMD_BOOT: &str = "/EFI/systemd/systemd-bootx64.efi";

/// What starts from a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The kernel's file.
    pub kernel: Vec<u8>,
    /// All initial RAM disks, one behind the other.
    pub initramfs: Option<Vec<u8>>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Where that was found, as a clause: which entry of what.
    pub from: String,
    /// What is to be written when it starts.
    pub forget: Option<Forget>,
}

/// Why nothing starts from a disk. Each is a clause about the disk.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It has no table and no file system.
    #[error("it has neither partitions nor a file system that is known")]
    Empty,
    /// Boot loaders and kernels were looked for in vain.
    #[error("nothing on it says what starts{}", listed(.0))]
    Nothing(Vec<String>),
    /// It could not be read.
    #[error("its partitions cannot be read: {0}")]
    Read(#[from] io::Error),
}

fn listed(notes: &[String]) -> String {
    if notes.is_empty() { ": no boot loader's configuration and no kernel in /boot".to_owned() } else { format!(": {}", notes.join("; ")) }
}

/// One way in which a disk may say what starts; why it does not is noted.
type Road = fn(&[Volume], &mut Vec<String>) -> Option<Start>;

/// What starts from a disk.
///
/// # Errors
/// A [`Refusal`], where nothing does.
pub fn find(source: Rc<dyn ReadAt>) -> Result<Start, Refusal> {
    find_on(&Rc::new(Disk::new(source)))
}

/// What starts from a disk, and all that was read to know it: a disk that has the same bytes there, and is as long, starts the same.
///
/// # Errors
/// As [`find`].
pub fn find_traced(source: Rc<dyn ReadAt>) -> Result<(Start, Vec<Range<u64>>), Refusal> {
    let disk = Rc::new(Disk::traced(source));
    let start = find_on(&disk)?;
    Ok((start, disk.trace()))
}

fn find_on(disk: &Rc<Disk>) -> Result<Start, Refusal> {
    let (volumes, mut notes) = volumes::open(disk, partitions::find(disk)?);
    if volumes.is_empty() && notes.is_empty() {
        return Err(Refusal::Empty);
    }
    let roads: [Road; 5] = [systemd_boot, of_grub, of_entries, of_syslinux, lying_there];
    let start = roads.into_iter().find_map(|road| road(&volumes, &mut notes));
    start.ok_or(Refusal::Nothing(notes))
}

/// Entries and unified images, on a disk where systemd-boot would read them.
fn systemd_boot(volumes: &[Volume], notes: &mut Vec<String>) -> Option<Start> {
    volumes.iter().any(|volume| volume.has(SYSTEMD_BOOT)).then(|| of_entries(volumes, notes))?
}

fn of_grub(volumes: &[Volume], notes: &mut Vec<String>) -> Option<Start> {
    for (at, volume) in volumes.iter().enumerate() {
        for path in GRUB {
            let bytes = match volume.read(path, TEXT_BYTES_MAX) {
                Ok(bytes) => bytes,
                Err(FileError::Absent) => continue,
                Err(FileError::Unread(why)) => {
                    notes.push(format!("{path} on {}: {why}", volume.name()));
                    continue;
                }
            };
            let folder = path.trim_end_matches("/grub.cfg");
            let place = format!("{path} on {}", volume.name());
            let mut grub = match grub::read(volumes, at, folder, &crate::text(bytes)) {
                Ok(grub) => grub,
                Err(why) => {
                    notes.push(format!("{place}: {why}"));
                    continue;
                }
            };
            match grub::choose(&mut grub) {
                None => notes.push(format!("{place}: no entry of it starts a kernel that is there")),
                Some(entry) => {
                    if let Some(start) = load(volumes, entry, &place, notes) {
                        return Some(Start { forget: grub.forget, ..start });
                    }
                }
            }
        }
    }
    None
}

fn of_entries(volumes: &[Volume], notes: &mut Vec<String>) -> Option<Start> {
    let default = volumes.iter().find_map(entries::default_of);
    for (at, volume) in volumes.iter().enumerate() {
        for folder in ENTRIES {
            let mut found = entries::read(volume, folder);
            // One whose files are not there is no entry.
            found.retain(|words| volume.has(&words.linux));
            if let Some(words) = entries::preferred(&found, default.as_deref(), |words| &words.id) {
                let place = format!("{folder}/{}.conf on {}", words.id, volume.name());
                if let Some(start) = load(volumes, words.entry(at), &place, notes) {
                    return Some(start);
                }
            }
        }
        if let Some(start) = of_unified(volume, default.as_deref(), notes) {
            return Some(start);
        }
    }
    None
}

fn of_unified(volume: &Volume, default: Option<&str>, notes: &mut Vec<String>) -> Option<Start> {
    let mut names: Vec<String> = volume.list(UNIFIED).into_iter().filter(|name| name.to_ascii_lowercase().ends_with(".efi")).collect();
    let id = |name: &String| entries::without_tries(name.rsplit_once('.').map_or(name, |(id, _)| id)).0.to_owned();
    let is_bad = |name: &String| entries::without_tries(name.rsplit_once('.').map_or(name, |(id, _)| id)).1 == Some(0);
    names.sort_by(|a, b| is_bad(a).cmp(&is_bad(b)).then_with(|| compare(&id(b), &id(a))));
    let default = default.map(|default| default.trim_end_matches(".efi"));
    let name = entries::preferred(&names, default, |name| name.rsplit_once('.').map_or(name, |(id, _)| id))?;
    let (path, place) = (absolute(UNIFIED, name), format!("{UNIFIED}/{name} on {}", volume.name()));
    let parts = match volume.read(&path, KERNEL_BYTES_MAX + INITRAMFS_BYTES_MAX) {
        Ok(bytes) => unified::parse(&bytes),
        Err(FileError::Absent) => None,
        Err(FileError::Unread(why)) => {
            notes.push(format!("{place}: {why}"));
            return None;
        }
    };
    let Some(parts) = parts.filter(|parts| parts.kernel.len() as u64 <= KERNEL_BYTES_MAX) else {
        notes.push(format!("{place}: it is no unified kernel image"));
        return None;
    };
    let initramfs = Some(parts.initramfs).filter(|bytes| !bytes.is_empty());
    Some(Start { kernel: parts.kernel, initramfs, cmdline: parts.cmdline, from: place, forget: None })
}

fn of_syslinux(volumes: &[Volume], notes: &mut Vec<String>) -> Option<Start> {
    volumes.iter().enumerate().find_map(|(at, volume)| {
        SYSLINUX.into_iter().find_map(|path| {
            let text = volume.text(path)?;
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let entry = syslinux::parse(&text, at, folder)?;
            load(volumes, entry, &format!("{path} on {}", volume.name()), notes)
        })
    })
}

fn lying_there(volumes: &[Volume], notes: &mut Vec<String>) -> Option<Start> {
    let entry = plain::find(volumes)?;
    let place = volumes.get(entry.kernel.0).map(Volume::name).unwrap_or_default();
    load(volumes, entry, &place, notes)
}

/// Reads the files of an entry, or notes why not.
fn load(volumes: &[Volume], entry: Entry, place: &str, notes: &mut Vec<String>) -> Option<Start> {
    let title = entry.title.clone();
    match read(volumes, &entry) {
        Ok((kernel, initramfs)) => {
            let from = format!("`{title}` of {place}");
            Some(Start { kernel, initramfs, cmdline: entry.cmdline, from, forget: None })
        }
        Err(why) => {
            notes.push(format!("`{title}` of {place}: {why}"));
            None
        }
    }
}

fn read(volumes: &[Volume], entry: &Entry) -> Result<(Vec<u8>, Option<Vec<u8>>), String> {
    let kernel = file(volumes, &entry.kernel, KERNEL_BYTES_MAX)?;
    let mut initramfs: Option<Vec<u8>> = None;
    for place in &entry.initramfs {
        let held = initramfs.as_ref().map_or(0, |held| held.len() as u64);
        let more = file(volumes, place, INITRAMFS_BYTES_MAX.saturating_sub(held))?;
        match &mut initramfs {
            None => initramfs = Some(more),
            Some(held) => {
                // Each begins at a multiple of four bytes (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
                held.resize(held.len().next_multiple_of(4), 0);
                held.extend_from_slice(&more);
            }
        }
    }
    Ok((kernel, initramfs.filter(|bytes| !bytes.is_empty())))
}

fn file(volumes: &[Volume], (volume, path): &(usize, String), bytes_max: u64) -> Result<Vec<u8>, String> {
    let found = volumes.get(*volume).ok_or(FileError::Absent).and_then(|volume| volume.read(path, bytes_max));
    found.map_err(|error| match error {
        FileError::Absent => format!("{path} is not there"),
        FileError::Unread(why) => format!("{path}: {why}"),
    })
}
