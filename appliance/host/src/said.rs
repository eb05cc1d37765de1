//! Files that grow with what somebody says, and are bounded: one that has become long is cut, and its end is kept beside it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// A longer file is cut.
pub const FILE_BYTES: u64 = 1 << 20;

/// The end of a file that may be long.
pub fn tail_of(path: &Path, bytes_max: u64) -> io::Result<String> {
    tail_after(path, 0, bytes_max)
}

/// The end of what came after a length that the file had once. One that was cut since then is looked at from its beginning.
pub fn tail_after(path: &Path, length: u64, bytes_max: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let bytes = end_of(&mut file, length, bytes_max)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn end_of(file: &mut File, after: u64, bytes_max: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let after = if after <= length { after } else { 0 };
    file.seek(SeekFrom::Start(after.max(length.saturating_sub(bytes_max))))?;
    let mut bytes = vec![];
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where the end of a file is kept that was cut.
pub fn before(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

/// Cuts a file that others append to and hold open. What they say at this moment may be lost.
pub fn bound(path: &Path) -> io::Result<()> {
    let mut file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    if file.metadata()?.len() < FILE_BYTES {
        return Ok(());
    }
    let kept = end_of(&mut file, 0, FILE_BYTES).and_then(|end| fs::write(before(path), end));
    // Where there is no room for its end it is cut all the same.
    file.set_len(0)?;
    kept
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_that_others_append_to_stays_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmm.log");
        bound(&path).unwrap();
        let mut writer = File::options().create(true).append(true).open(&path).unwrap();
        writer.write_all(b"short\n").unwrap();
        bound(&path).unwrap();
        assert_eq!(tail_of(&path, 100).unwrap(), "short\n");
        writer.write_all(&vec![b'x'; 3 << 20]).unwrap();
        writer.write_all(b"last words\n").unwrap();
        bound(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(fs::metadata(before(&path)).unwrap().len(), FILE_BYTES);
        assert!(tail_of(&before(&path), 11).unwrap() == "last words\n");
        writer.write_all(b"new\n").unwrap();
        assert_eq!(tail_of(&path, 100).unwrap(), "new\n", "it left a hole");
        assert_eq!(tail_after(&path, 3 << 20, 100).unwrap(), "new\n");
        assert_eq!(tail_after(&path, 2, 100).unwrap(), "w\n");
    }
}
