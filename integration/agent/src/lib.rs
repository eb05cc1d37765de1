//! What the host of the lab and the agent in a lab machine say to each other: frames over one virtio-serial port, many
//! jobs at once. A crate of its own, so that a change in the lab does not rebuild the agent and every image with it.
//!
//! ```text
//! frame   u32 payload bytes | u32 job | u8 kind | payload                  little endian
//!
//! host -> agent                                agent -> host
//!   Run {argv}         start a program           Hello             once, when the agent is ready
//!   Connect {path}     open a Unix socket        Output bytes      standard output, socket or file
//!   Put {path, mode}   write a file              Errors bytes      standard error
//!   Get {path}         read a file               Exit {code}       the job ended; 128 + n for signal n
//!   Input bytes        for Run, Connect, Put     Refused text      the job could not begin or broke
//!   InputEnd           end of that               Time {ns}         CLOCK_REALTIME
//!   Kill               end the job
//!   ReadClock, StepClock {ns}
//! ```
//! A job's number is chosen by the host and is free again after Exit, Refused or Time. Structured payloads are JSON.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The port's name as the machine sees it in /sys/class/virtio-ports/*/name.
pub const PORT_NAME: &str = "rebec.lab";
/// Largest payload of one frame.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// What a frame means. Numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Start a program.
    Run = 1,
    /// Open a Unix stream socket.
    Connect = 2,
    /// Write a file.
    Put = 3,
    /// Read a file.
    Get = 4,
    /// Bytes for a job.
    Input = 5,
    /// No more bytes for a job.
    InputEnd = 6,
    /// End a job.
    Kill = 7,
    /// Ask for the time.
    ReadClock = 8,
    /// Move the clock by so many nanoseconds.
    StepClock = 9,
    /// The agent is ready.
    Hello = 16,
    /// Bytes from a job.
    Output = 17,
    /// Bytes from a job's standard error.
    Errors = 18,
    /// A job's end.
    Exit = 19,
    /// A job that could not begin, or broke.
    Refused = 20,
    /// The machine's time.
    Time = 21,
}

impl TryFrom<u8> for Kind {
    type Error = u8;

    fn try_from(number: u8) -> Result<Self, u8> {
        const KINDS: [Kind; 15] = [
            Kind::Run,
            Kind::Connect,
            Kind::Put,
            Kind::Get,
            Kind::Input,
            Kind::InputEnd,
            Kind::Kill,
            Kind::ReadClock,
            Kind::StepClock,
            Kind::Hello,
            Kind::Output,
            Kind::Errors,
            Kind::Exit,
            Kind::Refused,
            Kind::Time,
        ];
        KINDS.into_iter().find(|kind| *kind as u8 == number).ok_or(number)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which job.
    pub job: u32,
    /// What it means.
    pub kind: Kind,
    /// Bytes or JSON.
    pub payload: Vec<u8>,
}

/// Payload of [`Kind::Run`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Program and arguments.
    pub argv: Vec<String>,
}

/// Payload of [`Kind::Connect`] and [`Kind::Get`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PathOnly {
    /// In the machine.
    pub path: String,
}

/// Payload of [`Kind::Put`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Put {
    /// In the machine; folders above it are made.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
}

impl Frame {
    /// A frame with bytes.
    pub fn new(job: u32, kind: Kind, payload: impl Into<Vec<u8>>) -> Self {
        Self { job, kind, payload: payload.into() }
    }

    /// A frame with JSON.
    pub fn json(job: u32, kind: Kind, value: &impl Serialize) -> io::Result<Self> {
        Ok(Self::new(job, kind, serde_json::to_vec(value)?))
    }

    /// Reads a JSON payload.
    pub fn parse<T: for<'a> Deserialize<'a>>(&self) -> io::Result<T> {
        Ok(serde_json::from_slice(&self.payload)?)
    }

    /// Writes the frame in one piece.
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let length = u32::try_from(self.payload.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(9 + self.payload.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&self.job.to_le_bytes());
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&self.payload);
        stream.write_all(&bytes)
    }

    /// Reads one frame; refuses a length or kind that this protocol does not have.
    pub fn read(stream: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; 9];
        stream.read_exact(&mut header)?;
        let [a, b, c, d, e, f, g, h, kind] = header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        if length > PAYLOAD_BYTES_MAX {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        let kind = Kind::try_from(kind).map_err(|number| invalid(format!("a frame of kind {number}")))?;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        Ok(Self { job: u32::from_le_bytes([e, f, g, h]), kind, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_and_nonsense_is_refused() {
        let frame = Frame::json(7, Kind::Run, &Run { argv: vec!["true".into()] }).unwrap();
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        assert_eq!(Frame::read(&mut bytes.as_slice()).unwrap(), frame);
        assert_eq!(&bytes[..9], &[17, 0, 0, 0, 7, 0, 0, 0, 1]);
        assert!(Frame::read(&mut [255u8; 16].as_slice()).is_err());
        assert!(Frame::read(&mut [0, 0, 0, 0, 0, 0, 0, 0, 99].as_slice()).is_err());
        assert!(Frame::read(&mut &bytes[..12]).is_err());
    }
}
