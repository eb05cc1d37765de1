//! One connection, on its own thread: hello, then request, answers, request, answers, until the client leaves, breaks the
//! protocol beyond repair, or donates the connection.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::mpsc::{SyncSender, TrySendError},
};

use rebec_vmm_api::control::{Command, ControlError, ErrorCode, MigrateOptions, Request, Response, ResponseBody, Unread};
use rustix::net::{SocketType, sockopt::socket_type};

use super::{
    ControlRequest,
    connections::Seat,
    reply::{Donation, Heard, reply},
    wire::{Line, LineReader, WireError, send_line},
};
use crate::later;

/// What goes on after a request.
enum Next {
    Listen,
    HandedOver,
    Over,
}

/// Serves one client to its end.
pub fn serve<E: From<ControlRequest>>(seat: &Seat, owner: &SyncSender<E>) {
    match converse(seat, owner) {
        Ok(()) => {}
        Err(WireError::Io(error)) => log::debug!("control: a client is gone: {error}"),
        Err(error) => {
            // Lines cannot be told apart any more, or descriptors are missing: say why, then close.
            log::warn!("control: a client was cut off: {error}");
            let refusal = Response { id: 0, body: refusal(error.to_string()) };
            send_line(seat.stream(), &refusal, &[]).ok();
        }
    }
}

fn converse<E: From<ControlRequest>>(seat: &Seat, owner: &SyncSender<E>) -> Result<(), WireError> {
    let stream = seat.stream();
    send_line(stream, &later::hello(), &[])?;
    let mut reader = LineReader::default();
    while let Some(line) = reader.next_line(stream)? {
        if !seat.begin() {
            return Ok(());
        }
        match carry_out(line, &reader, stream, owner)? {
            Next::Listen if seat.end() => {}
            Next::Listen | Next::HandedOver | Next::Over => return Ok(()),
        }
    }
    Ok(())
}

/// Passes one request to the owner and its answers to the client.
fn carry_out<E: From<ControlRequest>>(
    line: Line,
    reader: &LineReader,
    stream: &UnixStream,
    owner: &SyncSender<E>,
) -> Result<Next, WireError> {
    let (id, command) = match Request::read(&line.bytes) {
        Ok(Request { id, command, .. }) => (id, command),
        Err(Unread { id, error }) => {
            send_line(stream, &Response { id, body: ResponseBody::Error(error) }, &[])?;
            return Ok(Next::Listen);
        }
    };
    if let Err(message) = check(&command, &line.descriptors, reader) {
        send_line(stream, &Response { id, body: refusal(message) }, &[])?;
        return Ok(Next::Listen);
    }
    let donation = match command {
        Command::Donate => Some(Donation { stream: stream.try_clone()?, id }),
        _ => None,
    };
    let (reply, answers) = reply(donation);
    let request = ControlRequest { command, descriptors: line.descriptors, reply };
    // A refused request is dropped with its reply; the client hears the reason given here.
    let refused = match owner.try_send(E::from(request)) {
        Ok(()) => None,
        Err(TrySendError::Full(_)) => Some((ErrorCode::Busy, "the VM is busy with other requests; try again", Next::Listen)),
        Err(TrySendError::Disconnected(_)) => Some((ErrorCode::WrongState, "the VM has ended", Next::Over)),
    };
    if let Some((code, message, next)) = refused {
        send_line(stream, &Response { id, body: ResponseBody::Error(ControlError { code, message: message.into() }) }, &[])?;
        return Ok(next);
    }
    loop {
        match answers.next() {
            Heard::Progress(progress) => send_line(stream, &Response { id, body: ResponseBody::Progress(progress) }, &[])?,
            Heard::Final(body) => {
                send_line(stream, &Response { id, body }, &[])?;
                return Ok(Next::Listen);
            }
            Heard::HandedOver => return Ok(Next::HandedOver),
        }
    }
}

/// What the types cannot say: the numbers of a move, and that its descriptors are the connections it needs.
fn check(command: &Command, descriptors: &[OwnedFd], reader: &LineReader) -> Result<(), String> {
    match command {
        Command::Migrate(options) => check_move(options, descriptors),
        Command::Near { .. } | Command::Capture(_) => match descriptors {
            [socket] if socket_type(socket) == Ok(SocketType::SEQPACKET) => Ok(()),
            _ => Err("one connected socket comes with this request, of type SOCK_SEQPACKET".into()),
        },
        _ if !descriptors.is_empty() => Err(format!("{} descriptors came with a request that takes none", descriptors.len())),
        Command::Donate if !reader.is_empty() => Err("donate must be the last line until its answer".into()),
        _ => Ok(()),
    }
}

fn check_move(options: &MigrateOptions, descriptors: &[OwnedFd]) -> Result<(), String> {
    let max = MigrateOptions::STREAMS_MAX;
    if !(1..=max).contains(&options.streams) {
        return Err(format!("streams {}: a move has from 1 to {max}", options.streams));
    }
    let wanted = 1 + usize::from(options.streams);
    if descriptors.len() != wanted {
        return Err(format!("{} descriptors came with a move that needs {wanted}: control and streams", descriptors.len()));
    }
    match descriptors.iter().position(|descriptor| socket_type(descriptor) != Ok(SocketType::STREAM)) {
        Some(position) => Err(format!("descriptor {position} of the move is not a stream socket")),
        None => Ok(()),
    }
}

fn refusal(message: String) -> ResponseBody {
    ResponseBody::Error(ControlError { code: ErrorCode::BadRequest, message })
}
