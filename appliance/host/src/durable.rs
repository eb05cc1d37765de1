//! What must survive a power cut, deed by deed: bytes of a file, that they are on the disk, names of files and folders. Whoever writes what others
//! are told of writes it through here; a test then has the deeds one by one, and cuts the power behind each of them (`cuts`).

#[cfg(any(test, feature = "cuts"))]
pub mod cuts;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _},
    path::{Path, PathBuf},
};

use anyhow::Result;

#[cfg(any(test, feature = "cuts"))]
use self::cuts::did;

/// Something that was done to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// A file is there, empty.
    Create(PathBuf),
    /// Bytes of a file, from an offset on.
    Write(PathBuf, u64, Vec<u8>),
    /// How long a file is.
    Length(PathBuf, u64),
    /// What was written to a file is on the disk.
    Sync(PathBuf),
    /// A folder is there, empty.
    MakeFolder(PathBuf),
    /// A file or folder has another name.
    Rename(PathBuf, PathBuf),
    /// A file is gone.
    Remove(PathBuf),
    /// A folder is gone, with what was in it.
    RemoveAll(PathBuf),
    /// The names in a folder are on the disk.
    SyncFolder(PathBuf),
}

#[cfg(not(any(test, feature = "cuts")))]
fn did(_: impl FnOnce() -> Deed) {}

/// Writes a file: whole, or it is as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    let file = tempfile::NamedTempFile::new_in(folder)?;
    let new = file.path().to_owned();
    created(&new);
    write(file.as_file(), &new, 0, bytes)?;
    file.as_file().sync_all()?;
    did(|| Deed::Sync(new.clone()));
    file.persist(path).map_err(|error| error.error)?;
    did(|| Deed::Rename(new, path.to_owned()));
    Ok(sync_folder(folder)?)
}

/// A file was made, and is empty.
pub fn created(path: &Path) {
    did(|| Deed::Create(path.to_owned()));
}

/// Writes bytes of a file.
pub fn write(file: &File, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, at)?;
    did(|| Deed::Write(path.to_owned(), at, bytes.to_vec()));
    Ok(())
}

/// Cuts a file, or makes it longer.
pub fn set_len(file: &File, path: &Path, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)?;
    did(|| Deed::Length(path.to_owned(), bytes));
    Ok(())
}

/// Returns when what was written to a file is on the disk, and how long it is.
pub fn sync(file: &File, path: &Path) -> io::Result<()> {
    file.sync_data()?;
    did(|| Deed::Sync(path.to_owned()));
    Ok(())
}

/// The same of a file that was made and written by somebody else.
pub fn sync_whole(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    created(path);
    did(|| Deed::Write(path.to_owned(), 0, fs::read(path).unwrap_or_default()));
    did(|| Deed::Sync(path.to_owned()));
    Ok(())
}

/// Makes a folder that is nobody else's, in one that is there. Its name is on the disk then.
pub fn make_folder(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        fs::DirBuilder::new().mode(0o700).create(path)?;
        did(|| Deed::MakeFolder(path.to_owned()));
    }
    sync_folder(path.parent().unwrap_or(path))
}

/// Gives a file or a folder another name in its folder.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    did(|| Deed::Rename(from.to_owned(), to.to_owned()));
    Ok(())
}

/// Removes a file.
pub fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    did(|| Deed::Remove(path.to_owned()));
    Ok(())
}

/// Removes a folder with what is in it.
pub fn remove_all(path: &Path) -> io::Result<()> {
    fs::remove_dir_all(path)?;
    did(|| Deed::RemoveAll(path.to_owned()));
    Ok(())
}

/// Returns when the names in a folder are on the disk.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    did(|| Deed::SyncFolder(path.to_owned()));
    Ok(())
}
