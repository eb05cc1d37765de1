//! Connections of a move: preambles, keepalive, and the control connection's messages. A connection comes as a descriptor
//! that somebody else connected; here it is only read and written.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rebec_migrate::{
    frame::{PREAMBLE_BYTES, Preamble},
    message::{MESSAGE_HEAD_BYTES, Message, MessageHead},
};
use rustix::net::{AddressFamily, sockopt};

/// How long a peer may take to say who it is.
pub const PREAMBLE_TIME: Duration = Duration::from_secs(10);
/// A dead link is noticed within half a minute: idle, then a probe each interval, or data unacknowledged for as long.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 4;
const UNACKNOWLEDGED_MS: u32 = 30_000;
/// Pieces in which a message is read, so that a length that nobody sends costs nothing.
const PIECE_BYTES: usize = 64 * 1024;

/// Makes a dead link show itself as an error. On a Unix socket there is no link: whoever relays behind it watches its own.
pub fn watch(stream: &TcpStream) -> io::Result<()> {
    if sockopt::socket_domain(stream)? == AddressFamily::UNIX {
        return Ok(());
    }
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?;
    Ok(())
}

/// Reads a preamble, not for ever.
pub fn read_preamble(mut stream: &TcpStream) -> Result<Preamble> {
    let mut bytes = [0; PREAMBLE_BYTES];
    stream.set_read_timeout(Some(PREAMBLE_TIME))?;
    stream.read_exact(&mut bytes).context("the peer did not say what it wants")?;
    stream.set_read_timeout(None)?;
    Ok(Preamble::from_bytes(&bytes)?)
}

/// Writes a preamble.
pub fn write_preamble(mut stream: &TcpStream, preamble: &Preamble) -> io::Result<()> {
    stream.write_all(&preamble.to_bytes())
}

/// Reads one message; an end between two messages is an error too, since neither side ends first without a word.
pub fn read_message<M: Message>(mut stream: &TcpStream) -> Result<M> {
    let mut head = [0; MESSAGE_HEAD_BYTES];
    stream.read_exact(&mut head).context("closed by the peer")?;
    let head = MessageHead::from_bytes(&head)?;
    let mut body = Vec::new();
    while body.len() < head.length() {
        let have = body.len();
        body.resize((have + PIECE_BYTES).min(head.length()), 0);
        stream.read_exact(&mut body[have..]).context("closed by the peer within a message")?;
    }
    Ok(head.read(&body)?)
}

/// Hands every message to `heard` until the connection ends or `heard` says no; the reason of the end.
pub fn read_messages<M: Message>(stream: &TcpStream, mut heard: impl FnMut(M) -> bool) -> String {
    loop {
        match read_message(stream) {
            Ok(message) => {
                if !heard(message) {
                    return "nobody listens here any more".into();
                }
            }
            Err(error) => return format!("{error:#}"),
        }
    }
}

/// The version that the target has chosen; its preamble must name the same move.
pub fn check_answer(ours: &Preamble, theirs: &Preamble) -> Result<u16> {
    let version = theirs.agree(ours.speaks)?;
    if theirs.move_id != ours.move_id {
        bail!("the target is busy with move {}", theirs.move_id);
    }
    Ok(version)
}

/// Writes framed messages. A connection that cannot be written is noticed by its reader, which is woken here.
pub fn write_control(mut control: &TcpStream, bytes: &[u8]) {
    if let Err(error) = control.write_all(bytes) {
        log::debug!("move: write to the peer: {error}");
        hang_up(control);
    }
}

/// Ends a connection so that whoever reads or writes it wakes up. It may have ended already.
pub fn hang_up(stream: &TcpStream) {
    if let Err(error) = stream.shutdown(Shutdown::Both) {
        log::trace!("hang up: {error}");
    }
}
