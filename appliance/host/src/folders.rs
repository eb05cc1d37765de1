//! Folders of VMs, below one of them all: how one goes.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use crate::durable;

/// What a folder is called that is being removed.
const GONE_PREFIX: &str = ".gone-";

/// Removes the folder of a VM. It has gone at once; what is cut short is gone on with by [`sweep`].
pub fn remove(folder: &Path) -> io::Result<()> {
    let gone = gone(folder)?;
    remove_all(&gone)?;
    match durable::rename(folder, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    if let Some(all) = folder.parent() {
        durable::sync_folder(all)?;
    }
    remove_all(&gone)
}

fn gone(folder: &Path) -> io::Result<PathBuf> {
    let name = folder.file_name().ok_or_else(|| io::Error::other("a folder without a name"))?;
    let mut gone = OsStr::new(GONE_PREFIX).to_owned();
    gone.push(name);
    Ok(folder.with_file_name(gone))
}

fn remove_all(folder: &Path) -> io::Result<()> {
    match durable::remove_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what was being removed when an earlier agent ended, and folders of VMs that were just being made: nothing in them was ever
/// acknowledged. One that holds a disk or a ledger stays, whatever else it lacks.
pub fn sweep(all: &Path) -> io::Result<()> {
    for entry in fs::read_dir(all)? {
        let path = entry?.path();
        let is_gone = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(GONE_PREFIX));
        let is_empty = path.is_dir() && ["vm.json", "disk.qcow2", "ledger"].iter().all(|name| !path.join(name).exists());
        if (is_gone || is_empty)
            && let Err(error) = remove_all(&path)
        {
            log::error!("remove {}: {error}", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_short_is_swept_and_a_disk_stays() {
        let all = tempfile::tempdir().unwrap();
        let [whole, disk, half, made] = ["1", "2", ".gone-3", "4"].map(|name| all.path().join(name));
        for folder in [&whole, &disk, &half, &made] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(whole.join("vm.json"), "{}").unwrap();
        fs::write(disk.join("disk.qcow2"), "").unwrap();
        fs::write(half.join("disk.qcow2"), "").unwrap();
        fs::write(made.join(".tmp1"), "").unwrap();
        sweep(all.path()).unwrap();
        assert_eq!([&whole, &disk, &half, &made].map(|folder| folder.exists()), [true, true, false, false]);
        // An earlier removal of the same VM was cut short.
        fs::create_dir(all.path().join(".gone-1")).unwrap();
        fs::write(all.path().join(".gone-1").join("disk.qcow2"), "").unwrap();
        remove(&whole).unwrap();
        remove(&whole).unwrap();
        assert_eq!(fs::read_dir(all.path()).unwrap().count(), 1);
    }
}
