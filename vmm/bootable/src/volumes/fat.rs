//! FAT, by `fatfs`.

use std::io::{self, Read};

use fatfs::{FileSystem, FsOptions};

use super::{FileError, Files, Known, NAMES_MAX, read_all};
use crate::disk::Window;

const CHUNK_BYTES: usize = 256 << 10;

pub fn open(window: Window) -> Result<Known, String> {
    let fs = FileSystem::new(window, FsOptions::new()).map_err(|error| error.to_string())?;
    let (id, label) = (fs.volume_id(), fs.volume_label());
    let uuid = format!("{:04X}-{:04X}", id >> 16, id & 0xffff);
    Ok(Known { kind: "FAT", uuid, label, files: Box::new(fs) })
}

impl Files for FileSystem<Window> {
    fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FileError> {
        let mut file = self.root_dir().open_file(path.trim_start_matches('/')).map_err(|error| of_io(&error))?;
        read_all(path, bytes_max, CHUNK_BYTES, &mut |_, buffer| file.read(buffer).map_err(|error| of_io(&error)))
    }

    fn has(&self, path: &str) -> bool {
        self.root_dir().open_file(path.trim_start_matches('/')).is_ok()
    }

    fn list(&self, path: &str) -> Vec<String> {
        let root = self.root_dir();
        let folder = match path.trim_matches('/') {
            "" => root,
            inner => match root.open_dir(inner) {
                Ok(folder) => folder,
                Err(_) => return vec![],
            },
        };
        folder.iter().take(NAMES_MAX).map_while(Result::ok).map(|entry| entry.file_name()).collect()
    }
}

fn of_io(error: &io::Error) -> FileError {
    match error.kind() {
        io::ErrorKind::NotFound => FileError::Absent,
        _ => FileError::Unread(error.to_string()),
    }
}
