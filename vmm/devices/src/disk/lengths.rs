//! How long a disk's files are: whoever reads beyond a file's end is given zeros by imago, as if the guest had never written there. A file that became
//! shorter while it was in use is therefore an error of every read.

use std::{fs::File, io, os::unix::fs::FileTypeExt as _};

use rustix::fs::{SeekFrom, seek};

/// The files of an image and its backing images, and how long each was.
#[derive(Debug)]
pub(super) struct Lengths(Vec<(File, u64)>);

impl Lengths {
    pub(super) fn of(file: &File, backing: &[File]) -> io::Result<Self> {
        let all = std::iter::once(file).chain(backing);
        all.map(|file| Ok((file.try_clone()?, length(file)?))).collect::<io::Result<_>>().map(Self)
    }

    /// Whether all are as long as they were.
    pub(super) fn check(&self) -> io::Result<()> {
        for (file, was) in &self.0 {
            let is = length(file)?;
            if is < *was {
                let said = format!("a file of it was made shorter while it was in use: it had {was} bytes and has {is}");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, said));
            }
        }
        Ok(())
    }
}

/// Of a file or of a device, which says so in no other way that needs no ioctl. Nothing reads from where a description stands.
fn length(file: &File) -> io::Result<u64> {
    Ok(seek(file, SeekFrom::End(0))?)
}

pub(super) fn is_device(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_block_device())
}
