//! ext2 to ext4, by `ext4-view`, which replays a journal in memory.

use ext4_view::{Ext4, Ext4Error};

use super::{FileError, Files, Known, NAMES_MAX, read_all};
use crate::disk::Window;

const CHUNK_BYTES: usize = 256 << 10;

pub fn open(window: Window) -> Result<Known, String> {
    let fs = Ext4::load(Box::new(window)).map_err(|error| error.to_string())?;
    let (uuid, label) = (fs.uuid().to_string(), fs.label().display().to_string());
    Ok(Known { kind: "ext4", uuid, label, files: Box::new(fs) })
}

impl Files for Ext4 {
    fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FileError> {
        let mut file = self.open(path).map_err(of_ext4)?;
        read_all(path, bytes_max, CHUNK_BYTES, &mut |_, buffer| file.read_bytes(buffer).map_err(of_ext4))
    }

    fn has(&self, path: &str) -> bool {
        self.open(path).is_ok()
    }

    fn list(&self, path: &str) -> Vec<String> {
        let Ok(entries) = self.read_dir(path) else { return vec![] };
        let entries = entries.take(NAMES_MAX).map_while(Result::ok);
        entries.filter_map(|entry| entry.file_name().as_str().ok().map(str::to_owned)).collect()
    }
}

fn of_ext4(error: Ext4Error) -> FileError {
    match error {
        Ext4Error::NotFound | Ext4Error::NotADirectory => FileError::Absent,
        other => FileError::Unread(other.to_string()),
    }
}
