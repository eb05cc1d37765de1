//! The client side of the control protocol: hello, request, answers.

use std::{
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use rebec_vmm_api::control::{Answer, Command, Hello, Progress, Request, Response, ResponseBody, Status};

use super::CtlError;
use crate::control::wire::{LineReader, WireError, send_line};

/// How long a VMM may take for anything but a move: it pauses a machine in milliseconds.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// A connection to a VMM that speaks a version of the protocol that this program does too.
pub struct Client {
    stream: UnixStream,
    reader: LineReader,
    last_id: u64,
}

impl Client {
    /// Connects, and checks who answers.
    pub fn connect(path: &Path) -> Result<Self, CtlError> {
        let failed = |source| CtlError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        Self::greet(stream).map_err(|error| error.unwrap_or_else(|| CtlError::NotRebec(path.to_owned())))
    }

    /// Reads the hello; an error without words says that there was none.
    pub(super) fn greet(stream: UnixStream) -> Result<Self, Option<CtlError>> {
        stream.set_read_timeout(Some(ANSWER_TIME)).map_err(|error| CtlError::NoAnswer { what: "hello", source: error.into() })?;
        stream.set_write_timeout(Some(ANSWER_TIME)).map_err(|error| CtlError::NoAnswer { what: "hello", source: error.into() })?;
        let mut reader = LineReader::default();
        let line = match reader.next_line(&stream) {
            Ok(Some(line)) => line,
            Err(source @ WireError::Io(_)) => return Err(Some(CtlError::NoAnswer { what: "hello", source })),
            Ok(None) | Err(_) => return Err(None),
        };
        if let Ok(Response { body: ResponseBody::Error(source), .. }) = serde_json::from_slice(&line.bytes) {
            return Err(Some(CtlError::Refused { what: "hello", source }));
        }
        let hello: Hello = serde_json::from_slice(&line.bytes).map_err(|_| None)?;
        hello.agree().map_err(|other| Some(CtlError::Version(other)))?;
        Ok(Self { stream, reader, last_id: 0 })
    }

    /// Asks for the VM's state.
    pub fn status(&mut self) -> Result<Status, CtlError> {
        match self.ask("status", Command::Status)? {
            Answer::Status(status) => Ok(status),
            _ => Err(CtlError::Unexpected { what: "status" }),
        }
    }

    /// Makes one request that is answered soon. `what` names it in errors.
    pub fn ask(&mut self, what: &'static str, command: Command) -> Result<Answer, CtlError> {
        self.request(what, command, &[], |_| {})
    }

    /// Makes a request that takes as long as it takes, with the descriptors it needs, and hears how far it is.
    pub fn ask_patiently(
        &mut self,
        what: &'static str,
        command: Command,
        descriptors: &[BorrowedFd<'_>],
        heard: impl FnMut(&Progress),
    ) -> Result<Answer, CtlError> {
        self.stream.set_read_timeout(None).map_err(|error| CtlError::NoAnswer { what, source: error.into() })?;
        self.request(what, command, descriptors, heard)
    }

    /// Turns the connection into a donor connection: from here on it speaks `rebec_migrate::donor`, in which a donor says
    /// nothing unasked. Bytes read beyond the answer would be lost, so they are an error.
    pub fn donate(mut self) -> Result<UnixStream, CtlError> {
        match self.ask("donate", Command::Donate)? {
            Answer::Done if self.reader.is_empty() => Ok(self.stream),
            _ => Err(CtlError::Unexpected { what: "donate" }),
        }
    }

    fn request(
        &mut self,
        what: &'static str,
        command: Command,
        descriptors: &[BorrowedFd<'_>],
        mut heard: impl FnMut(&Progress),
    ) -> Result<Answer, CtlError> {
        let no_answer = |source| CtlError::NoAnswer { what, source };
        self.last_id += 1;
        let id = self.last_id;
        send_line(&self.stream, &Request::new(id, command), descriptors).map_err(no_answer)?;
        loop {
            let line = self.reader.next_line(&self.stream).and_then(|line| line.ok_or(WireError::CutShort)).map_err(no_answer)?;
            let response: Response = serde_json::from_slice(&line.bytes).map_err(|_| CtlError::Unexpected { what })?;
            // 0 is the id of errors about lines that could not be read; anything else answers somebody else.
            if response.id != id && response.id != 0 {
                return Err(CtlError::Unexpected { what });
            }
            match response.body {
                ResponseBody::Ok(answer) => return Ok(answer),
                ResponseBody::Error(source) => return Err(CtlError::Refused { what, source }),
                ResponseBody::Progress(progress) => heard(&progress),
            }
        }
    }
}
