//! `/v1/vms/{name}/capture`: what passes a port of a VM, as its VMM writes it, block by block.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Extension, Query, State},
    http::{Request, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use rebec_api::{ApiError, ErrorCode};
use rebec_book::authority::Granted;
use rebec_vmm_api::{
    MacAddr,
    control::{Capture, Command},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use serde::Deserialize;
use tokio::{
    net::UnixDatagram,
    time::{Instant, timeout_at},
};

use super::{answer::Failure, streams, vms};
use crate::agent::Agent;

/// Where nobody says how long, or how much.
const SECONDS: u32 = 60;
const BYTES_MAX: u64 = 64 << 20;
/// What may wait for a client that reads slowly; beyond, frames are lost and counted.
const WAITING_BYTES: usize = 4 << 20;
/// The largest message: a frame of 64 KiB as a block, or several smaller blocks.
const MESSAGE_BYTES: usize = 128 << 10;
/// A VMM whose card does not run ends nothing by itself.
const END_TIME: Duration = Duration::from_secs(10);

/// `?net=MAC&filter=WORDS&seconds=N&max_bytes=N`
#[derive(Debug, Deserialize)]
pub struct CaptureQuery {
    net: Option<String>,
    #[serde(default)]
    filter: String,
    seconds: Option<u32>,
    max_bytes: Option<u64>,
}

/// `GET /v1/vms/{name}/capture`
pub async fn show(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    Query(query): Query<CaptureQuery>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let vm = match vms::local_or_holder(&agent, &granted)? {
        Ok(vm) => vm,
        Err(holder) => return streams::elsewhere(&agent, &holder, &granted, request).await,
    };
    let wrong = |message: String| ApiError::new(ErrorCode::BadRequest, message);
    let nics = vm.kept().body.nics;
    let net = match &query.net {
        Some(net) => net.parse::<MacAddr>().map_err(|error| wrong(format!("net: {error}")))?,
        None => nics.first().map(|nic| MacAddr(nic.mac)).ok_or_else(|| wrong(format!("VM {} is on no LAN", vm.name())))?,
    };
    if nics.iter().all(|nic| nic.mac != net.0) {
        return Err(wrong(format!("VM {} has no NIC {net}; `rebec vm show` lists those it has", vm.name())).into());
    }
    let seconds = query.seconds.unwrap_or(SECONDS);
    if !(1..=Capture::SECONDS_MAX).contains(&seconds) {
        return Err(wrong(format!("seconds: expected a number from 1 to {}", Capture::SECONDS_MAX)).into());
    }
    let capture = Capture {
        net,
        name: format!("{} {net}", vm.name()),
        filter: query.filter,
        seconds,
        bytes_max: query.max_bytes.unwrap_or(BYTES_MAX),
    };
    let (near, far) = pair().map_err(|error| ApiError::new(ErrorCode::Failed, format!("make a socket pair: {error}")))?;
    let begun = vm.talk(move |control| control.give(Command::Capture(capture), far.as_fd())).await;
    begun.map_err(|error| wrong(format!("VM {}: {error:#}", vm.name())))?;
    let deadline = Instant::now() + Duration::from_secs(seconds.into()) + END_TIME;
    let blocks = stream::unfold(near, move |near| async move {
        let message = timeout_at(deadline, next(&near)).await.unwrap_or(Ok(Bytes::new()));
        match message {
            Ok(bytes) if bytes.is_empty() => None,
            Ok(bytes) => Some((Ok(Frame::data(bytes)), near)),
            Err(error) => Some((Err(error), near)),
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-pcapng")], Body::new(StreamBody::new(blocks))).into_response())
}

/// This agent's end, and the VMM's.
fn pair() -> io::Result<(UnixDatagram, OwnedFd)> {
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if sockopt::set_socket_send_buffer_size_force(&far, WAITING_BYTES).is_err() {
        sockopt::set_socket_send_buffer_size(&far, WAITING_BYTES)?;
    }
    // Messages with borders and an end: read as datagrams are.
    Ok((UnixDatagram::from_std(near.into())?, far))
}

/// The next message; empty at the end.
async fn next(near: &UnixDatagram) -> io::Result<Bytes> {
    let mut message = vec![0; MESSAGE_BYTES];
    let bytes = match near.recv(&mut message).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
        other => other?,
    };
    message.truncate(bytes);
    Ok(Bytes::from(message))
}
