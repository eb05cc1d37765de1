//! Lines and the descriptors that come with them, over one Unix stream; the same code at both ends.
//!
//! A line belongs to its descriptors by position: whoever passes descriptors sends the whole line and them in one
//! `sendmsg`, and sends nothing more until the answer. The kernel ends a read after bytes that carried descriptors
//! (unix(7)), so what has arrived when a line ends the buffer is that line's. What a line means is not decided here.

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
};

use rebec_vmm_api::control::{DESCRIPTORS_MAX, LINE_BYTES_MAX};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};

/// Bytes asked of the kernel at once: several ordinary lines.
const READ_BYTES: usize = 4096;

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection failed, or a time limit on it passed.
    #[error("control connection")]
    Io(#[from] io::Error),
    /// The other side does not end its line.
    #[error("a line is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    /// More descriptors than any request has.
    #[error("more than {DESCRIPTORS_MAX} descriptors came with one line")]
    TooManyDescriptors,
    /// The other side left in the middle of a line.
    #[error("the connection was closed in the middle of a line")]
    CutShort,
}

/// One line without its newline, and the descriptors that came with it.
pub struct Line {
    /// The bytes, not yet known to be JSON or even text.
    pub bytes: Vec<u8>,
    /// In the order they were passed; close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// What has arrived on one connection and was not yet taken as a line.
#[derive(Default)]
pub struct LineReader {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl LineReader {
    /// Waits for the next line. `None` says that the other side closed the connection between two lines.
    pub fn next_line(&mut self, stream: &UnixStream) -> Result<Option<Line>, WireError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.bytes[searched..].iter().position(|byte| *byte == b'\n') {
                return self.take_line(searched + end).map(Some);
            }
            searched = self.bytes.len();
            if searched > LINE_BYTES_MAX {
                return Err(WireError::LineTooLong);
            }
            if !self.read_more(stream)? {
                return if self.bytes.is_empty() { Ok(None) } else { Err(WireError::CutShort) };
            }
        }
    }

    /// Whether bytes or descriptors have arrived that no line has claimed.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.descriptors.is_empty()
    }

    fn take_line(&mut self, end: usize) -> Result<Line, WireError> {
        if end > LINE_BYTES_MAX {
            return Err(WireError::LineTooLong);
        }
        let rest = self.bytes.split_off(end + 1);
        let mut bytes = std::mem::replace(&mut self.bytes, rest);
        bytes.truncate(end);
        let descriptors = if self.bytes.is_empty() { std::mem::take(&mut self.descriptors) } else { Vec::new() };
        Ok(Line { bytes, descriptors })
    }

    /// Reads once; false at the end of the stream.
    fn read_more(&mut self, stream: &UnixStream) -> Result<bool, WireError> {
        let mut chunk = [0; READ_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(stream, &mut [IoSliceMut::new(&mut chunk)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_err(io::Error::from)?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                self.descriptors.extend(passed);
            }
        }
        // The kernel closed what did not fit, here or in this process's table; what did fit is closed when this reader goes.
        if received.flags.contains(ReturnFlags::CTRUNC) || self.descriptors.len() > DESCRIPTORS_MAX {
            return Err(WireError::TooManyDescriptors);
        }
        self.bytes.extend_from_slice(&chunk[..received.bytes]);
        Ok(received.bytes > 0)
    }
}

/// Sends one line, the descriptors with its first byte.
pub fn send_line(mut stream: &UnixStream, value: &impl serde::Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    let line = encode_line(value)?;
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(WireError::TooManyDescriptors);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(WireError::TooManyDescriptors);
    }
    let sent = loop {
        match sendmsg(stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.map_err(io::Error::from)?,
        }
    };
    // A stream socket may take a part; the rest carries no descriptors. The standard library ignores SIGPIPE.
    Ok(stream.write_all(&line[sent..])?)
}

/// One line as it goes over the wire, newline included.
pub fn encode_line(value: &impl serde::Serialize) -> Result<Vec<u8>, WireError> {
    let mut line = serde_json::to_vec(value).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    if line.len() > LINE_BYTES_MAX {
        return Err(WireError::LineTooLong);
    }
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::{net::Shutdown, os::fd::AsFd};

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn lines_arrive_whole_however_they_are_cut() {
        let sent = b"{\"a\":1}\n\n\xff\xfe\nlast\n";
        for cut in 0..=sent.len() {
            let (mut here, there) = pair();
            let mut reader = LineReader::default();
            here.write_all(&sent[..cut]).unwrap();
            let mut lines = Vec::new();
            let complete = sent[..cut].iter().filter(|byte| **byte == b'\n').count();
            for _ in 0..complete {
                lines.push(reader.next_line(&there).unwrap().unwrap().bytes);
            }
            here.write_all(&sent[cut..]).unwrap();
            here.shutdown(Shutdown::Write).unwrap();
            while let Some(line) = reader.next_line(&there).unwrap() {
                lines.push(line.bytes);
            }
            assert_eq!(lines, [b"{\"a\":1}".as_slice(), b"", b"\xff\xfe", b"last"], "cut at {cut}");
        }
    }

    #[test]
    fn an_end_in_the_middle_of_a_line_is_told_apart() {
        let (mut here, there) = pair();
        here.write_all(b"half").unwrap();
        drop(here);
        assert!(matches!(LineReader::default().next_line(&there), Err(WireError::CutShort)));
    }

    #[test]
    fn the_longest_line_passes_and_one_byte_more_does_not() {
        for (length, passes) in [(LINE_BYTES_MAX, true), (LINE_BYTES_MAX + 1, false)] {
            let (mut here, there) = pair();
            let writer = std::thread::spawn(move || {
                let mut line = vec![b'x'; length];
                line.push(b'\n');
                // The reader may hang up first; that is its right.
                here.write_all(&line).ok();
            });
            let result = LineReader::default().next_line(&there);
            drop(there);
            writer.join().unwrap();
            assert_eq!(result.is_ok(), passes, "{length} bytes");
        }
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_memory() {
        let (mut here, there) = pair();
        let writer = std::thread::spawn(move || while here.write_all(&[b'x'; 4096]).is_ok() {});
        let mut reader = LineReader::default();
        assert!(matches!(reader.next_line(&there), Err(WireError::LineTooLong)));
        assert!(reader.bytes.len() <= LINE_BYTES_MAX + READ_BYTES);
        drop(there);
        writer.join().unwrap();
    }

    #[test]
    fn descriptors_stay_with_their_line_and_close_on_exec() {
        let (mut here, there) = pair();
        let (one, two) = (null(), null());
        here.write_all(b"\"before\"\n").unwrap();
        send_line(&here, &"with", &[one.as_fd(), two.as_fd()]).unwrap();
        here.write_all(b"\"after\"\n").unwrap();
        let mut reader = LineReader::default();
        let mut counts = Vec::new();
        for _ in 0..3 {
            let line = reader.next_line(&there).unwrap().unwrap();
            for descriptor in &line.descriptors {
                let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
                assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            }
            counts.push((String::from_utf8(line.bytes).unwrap(), line.descriptors.len()));
        }
        assert_eq!(counts, [("\"before\"".into(), 0), ("\"with\"".into(), 2), ("\"after\"".into(), 0)]);
    }

    #[test]
    fn one_descriptor_too_many_is_refused_at_once_and_in_instalments() {
        let null = null();
        let (here, there) = pair();
        let many = [null.as_fd(); DESCRIPTORS_MAX + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&here, &[IoSlice::new(b"{}\n")], &mut control, SendFlags::empty()).unwrap();
        assert!(matches!(LineReader::default().next_line(&there), Err(WireError::TooManyDescriptors)));

        let (here, there) = pair();
        for _ in 0..=DESCRIPTORS_MAX {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&many[..1])));
            sendmsg(&here, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        }
        assert!(matches!(LineReader::default().next_line(&there), Err(WireError::TooManyDescriptors)));
        assert!(matches!(send_line(&here, &"x", &many), Err(WireError::TooManyDescriptors)));
    }
}
