//! Descriptors that whoever started this process opened for it. They come with one byte over standard input, a Unix socket, and options
//! name them by number: `fd:0` is the first.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use rebec_vmm_api::{Handle, handle::HANDED_MAX};
use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg},
};

/// What was handed over and not yet taken. Nothing is read before the first is asked for.
#[derive(Default)]
pub struct Handed(Option<Vec<Option<OwnedFd>>>);

impl Handed {
    /// The descriptor of this number; each is given once.
    pub fn take(&mut self, number: usize) -> Result<OwnedFd> {
        let handle = Handle::Descriptor(number);
        let all = match &mut self.0 {
            Some(all) => all,
            none => none.insert(receive(io::stdin()).with_context(|| format!("{handle}: no descriptor came over standard input"))?),
        };
        let count = all.len();
        let place = all.get_mut(number).with_context(|| format!("{handle}: {count} descriptors came over standard input"))?;
        place.take().with_context(|| format!("{handle} is given twice; hand it over twice"))
    }
}

/// What people know a descriptor by: the path it was opened with, if it has one.
pub fn name(descriptor: impl AsFd, number: usize) -> PathBuf {
    let link = format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd());
    let path = std::fs::read_link(link).ok().filter(|path| path.is_absolute());
    path.unwrap_or_else(|| Handle::Descriptor(number).to_string().into())
}

fn receive(socket: impl AsFd) -> Result<Vec<Option<OwnedFd>>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDED_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::NOTSOCK) => anyhow::bail!("it is no socket"),
            other => break other.map_err(io::Error::from)?,
        }
    };
    let mut descriptors = vec![];
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed.map(Some));
        }
    }
    ensure!(received.bytes == 1, "it ended first");
    ensure!(!received.flags.contains(ReturnFlags::CTRUNC), "more came than a process may have open");
    Ok(descriptors)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::IoSlice, os::unix::net::UnixStream};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    fn handed(count: usize) -> Vec<Option<OwnedFd>> {
        let (here, there) = UnixStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let many = vec![null.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDED_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&here, &[IoSlice::new(&[0])], &mut control, SendFlags::empty()).unwrap();
        receive(&there).unwrap()
    }

    #[test]
    fn each_is_given_once_and_has_a_name() {
        let mut all = Handed(Some(handed(2)));
        let one = all.take(1).unwrap();
        assert_eq!(name(&one, 1), PathBuf::from("/dev/null"));
        assert!(all.take(1).unwrap_err().to_string().contains("fd:1 is given twice"));
        assert!(all.take(0).is_ok());
        assert!(all.take(2).unwrap_err().to_string().contains("fd:2: 2 descriptors came"));
        assert_eq!(handed(HANDED_MAX).len(), HANDED_MAX);
        assert_eq!(name(UnixStream::pair().unwrap().0, 7), PathBuf::from("fd:7"));
    }

    #[test]
    fn what_hands_nothing_over_is_named() {
        let reason = |error: anyhow::Error| format!("{error:#}");
        assert_eq!(reason(receive(File::open("/dev/null").unwrap()).unwrap_err()), "it is no socket");
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert_eq!(reason(receive(there).unwrap_err()), "it ended first");
    }
}
