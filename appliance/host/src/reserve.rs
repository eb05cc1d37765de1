//! Room on the disk for what must be written when nothing else can be: who may run a VM, what is wanted of it, the records. A file in the state
//! folder holds it; guests' disks are on the same file system and fill it up. A step of it is given back for each write that finds no room, so
//! that a guest that takes what is given has not taken all.
//!
//! Where the file system keeps blocks for root alone (ext4 does), a sealed VMM gets none of those, and the reserve is hardly ever needed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

/// All of it.
const RESERVE_BYTES: u64 = 16 << 20;
/// Given back at a time: more than any one write takes.
const STEP_BYTES: u64 = 1 << 20;
/// Must be free beside it before it is made anew.
const SPARE_BYTES: u64 = 16 << 20;

/// The reserve of a state folder.
pub struct Reserve(PathBuf);

impl Reserve {
    /// That of a state folder.
    pub fn of(state: &Path) -> Self {
        Self(state.join("reserve"))
    }

    /// That of the state folder which a VM's folder is in.
    pub fn of_vm(folder: &Path) -> Self {
        Self::of(folder.parent().and_then(Path::parent).unwrap_or(folder))
    }

    /// Makes it whole if there is room for it.
    pub fn fill(&self) {
        let missing = RESERVE_BYTES.saturating_sub(self.bytes());
        if missing == 0 || free_bytes(&self.0) < missing + SPARE_BYTES {
            return;
        }
        let made = File::options().create(true).truncate(false).write(true).open(&self.0).and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?;
            file.sync_all()
        });
        if let Err(error) = made {
            log::warn!("no room on the disk is kept for records: {}: {error}", self.0.display());
        }
    }

    /// Writes what may be written again. It finds room as long as there is some of the reserve.
    pub fn write<T>(&self, write: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            match write() {
                Err(error) if is_full(&error) && self.give_back() => {}
                outcome => return outcome,
            }
        }
    }

    /// Sees to room for a write that must not fail once it has begun.
    pub fn make_room(&self) {
        while free_bytes(&self.0) < STEP_BYTES && self.give_back() {}
    }

    fn bytes(&self) -> u64 {
        fs::metadata(&self.0).map_or(0, |file| file.len())
    }

    /// Gives a step of it back. Whether there was one.
    fn give_back(&self) -> bool {
        let give = || -> io::Result<bool> {
            let file = File::options().write(true).open(&self.0)?;
            let bytes = file.metadata()?.len();
            file.set_len(bytes.saturating_sub(STEP_BYTES))?;
            // Some file systems have the blocks only once they have written that down.
            file.sync_all()?;
            Ok(bytes > 0)
        };
        let given = give();
        match &given {
            Ok(true) => log::warn!("the disk is full: {} MiB are left for records; remove an image or a VM", self.bytes() >> 20),
            Err(error) if error.kind() != io::ErrorKind::NotFound => log::warn!("give back {}: {error}", self.0.display()),
            _ => {}
        }
        given.unwrap_or(false)
    }
}

/// What this process may still write.
fn free_bytes(path: &Path) -> u64 {
    let is_root = rustix::process::geteuid().is_root();
    let stat = rustix::fs::statvfs(path.parent().unwrap_or(path));
    stat.map_or(u64::MAX, |stat| stat.f_frsize * if is_root { stat.f_bfree } else { stat.f_bavail })
}

/// Whether it is want of room that made something fail.
pub fn is_full(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let errno = cause.downcast_ref::<Errno>().map(|errno| io::Error::from(*errno).kind());
        matches!(io.or(errno), Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::durable::replace;

    /// Set where a test runs in namespaces of its own, on a small disk.
    const SMALL: &str = "REBEC_TEST_SMALL_DISK";

    fn fill_up(path: &Path) {
        let file = File::options().create(true).append(true).open(path).unwrap();
        while io::Write::write_all(&mut &file, &[1; 4096]).is_ok() {}
    }

    #[test]
    fn a_write_finds_room_on_a_full_disk() {
        let Some(state) = std::env::var_os(SMALL).map(PathBuf::from) else {
            let state = tempfile::tempdir().unwrap();
            let run = format!(
                "mount -t tmpfs -o size=48m none {0} && exec \"$0\" --exact reserve::tests::a_write_finds_room_on_a_full_disk --nocapture",
                state.path().display()
            );
            let test = std::env::current_exe().unwrap();
            let output = Command::new("unshare").args(["-rm", "sh", "-c", &run]).arg(test).env(SMALL, state.path()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
            return;
        };
        let reserve = Reserve::of(&state);
        reserve.fill();
        assert_eq!(reserve.bytes(), RESERVE_BYTES);
        let folder = state.join("vms").join("1");
        fs::create_dir_all(&folder).unwrap();
        let (kept, disk) = (folder.join("vm.json"), folder.join("disk.qcow2"));
        let path = &kept;
        let write = |text: &'static [u8]| move || replace(path, text);
        fill_up(&disk);
        assert!(is_full(&write(b"old")().unwrap_err()));
        // Each time the guest takes what was given.
        for _ in 0..10 {
            Reserve::of_vm(kept.parent().unwrap()).write(write(b"stopped")).unwrap();
            fill_up(&disk);
        }
        assert_eq!(fs::read(&kept).unwrap(), b"stopped");
        reserve.make_room();
        assert!(free_bytes(&reserve.0) >= STEP_BYTES);
        reserve.fill();
        assert!(reserve.bytes() < RESERVE_BYTES, "there was no room for it");
        fs::remove_file(&disk).unwrap();
        reserve.fill();
        assert_eq!(reserve.bytes(), RESERVE_BYTES);
    }
}
