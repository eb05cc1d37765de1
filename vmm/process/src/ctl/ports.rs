//! `ctl near` and `ctl capture`: what ports are given as sockets, which a sealed VM cannot make.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rebec_vmm_api::control::{Answer, Capture, Command};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt::set_socket_send_buffer_size};

use super::{CtlError, client::Client};

/// What each end of a road may have under way, beyond the system's limit only for who may: some twenty large frames.
const ROAD_BYTES: usize = 1 << 20;
/// A whole block of pcapng, or several small ones, whichever message brings them.
const MESSAGE_BYTES: usize = 512 << 10;

/// One port, as somebody else names it.
pub struct Port<'a> {
    /// Its VM.
    pub client: &'a mut Client,
    /// What it is given.
    pub command: Command,
}

/// Gives both ports an end.
pub fn near(ports: [Port<'_>; 2]) -> Result<(), CtlError> {
    let (one, other) = pair()?;
    for (Port { client, command }, end) in ports.into_iter().zip([one, other]) {
        let sized = set_socket_send_buffer_size(&end, ROAD_BYTES);
        sized.map_err(io::Error::from)?;
        give(client, "near", command, end)?;
    }
    Ok(())
}

/// Writes a capture to a file until it ends.
pub fn capture(client: &mut Client, capture: Capture, out: &Path) -> Result<(), CtlError> {
    let mut file: Box<dyn Write> = if out == Path::new("-") { Box::new(io::stdout()) } else { Box::new(File::create(out)?) };
    let (near, far) = pair()?;
    give(client, "capture", Command::Capture(capture), far)?;
    let (mut near, mut message) = (File::from(near), vec![0; MESSAGE_BYTES]);
    loop {
        match near.read(&mut message)? {
            0 => return Ok(file.flush()?),
            bytes => file.write_all(&message[..bytes])?,
        }
    }
}

fn pair() -> Result<(OwnedFd, OwnedFd), CtlError> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    Ok(pair.map_err(io::Error::from)?)
}

fn give(client: &mut Client, what: &'static str, command: Command, socket: OwnedFd) -> Result<(), CtlError> {
    match client.ask_patiently(what, command, &[socket.as_fd()], |_| {})? {
        Answer::Done => Ok(()),
        _ => Err(CtlError::Unexpected { what }),
    }
}
