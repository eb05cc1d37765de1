//! Descriptors for a `rebec-vmm` that is about to start (docs/formats/descriptors.md): this agent opens what the process uses, so that no
//! path, and no name inside an image, leads it anywhere.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::Stdio,
};

use anyhow::{Context, Result};
use rebec_vmm_api::{Handle, handle::HANDED_MAX};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// What is to be handed over.
#[derive(Default)]
pub struct Handover(Vec<OwnedFd>);

impl Handover {
    /// Hands a file over to be read.
    pub fn open(&mut self, path: &Path) -> Result<String> {
        self.open_with(path, File::options().read(true))
    }

    /// Hands a file over.
    pub fn open_with(&mut self, path: &Path, options: &OpenOptions) -> Result<String> {
        let file = options.open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(self.give(file))
    }

    /// Hands anything over; says what it is called on the command line.
    pub fn give(&mut self, descriptor: impl Into<OwnedFd>) -> String {
        self.0.push(descriptor.into());
        Handle::Descriptor(self.0.len() - 1).to_string()
    }

    /// All of it, on its way: the standard input of the process. The kernel keeps it until the process takes it, or ends.
    pub fn send(self) -> Result<Stdio> {
        let (near, far) = UnixStream::pair().context("make a socket pair")?;
        let descriptors: Vec<_> = self.0.iter().map(AsFd::as_fd).collect();
        send(&near, &[0], &descriptors).context("hand descriptors over")?;
        Ok(OwnedFd::from(far).into())
    }
}

/// Sends bytes with descriptors in one message; says how many of the bytes have left.
pub fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDED_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other(format!("{} descriptors; at most {HANDED_MAX} can be handed over", descriptors.len())));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}
