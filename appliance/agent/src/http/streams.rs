//! What is no question and answer: a console, its text as it grows, a stream of a move.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{Extension, Path, Query, State},
    http::{HeaderMap, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use rebec_api::{ApiError, ErrorCode, vm::STREAM_UPGRADE};
use rebec_book::{
    Key,
    authority::{Granted, Question},
};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::broadcast::error::RecvError,
};

use super::{Caller, answer::Failure, forward, rights, vms};
use crate::{
    agent::Agent,
    chance::now_ms,
    vm::{LocalVm, arrive, clock, depart},
};

/// Of the console's text, what is shown where nobody says how much.
const TAIL_BYTES: usize = 64 << 10;
/// The text before it that a new console begins with.
const CONSOLE_TAIL_BYTES: usize = 2 << 10;

/// `?tail=BYTES&follow=true`
#[derive(Debug, Deserialize)]
pub struct LogQuery {
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
}

/// `GET /v1/vms/{name}/logs`
pub async fn logs(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    Query(query): Query<LogQuery>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let vm = match vms::local_or_holder(&agent, &granted)? {
        Ok(vm) => vm,
        Err(holder) => return elsewhere(&agent, &holder, &granted, request).await,
    };
    let listener = query.follow.then(|| vm.console.listen());
    let tail = vm.console.tail(query.tail.unwrap_or(TAIL_BYTES));
    let type_of_text = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    let Some(listener) = listener else { return Ok((type_of_text, tail).into_response()) };
    let first = stream::once(async { Ok::<_, Infallible>(Frame::data(Bytes::from(tail))) });
    // The VM is held: its console ends with it.
    let later = stream::unfold((listener, vm), |(mut listener, vm)| async {
        loop {
            match listener.recv().await {
                Ok(bytes) => return Some((Ok(Frame::data(bytes)), (listener, vm))),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Ok((type_of_text, Body::new(StreamBody::new(first.chain(later)))).into_response())
}

/// `GET /v1/vms/{name}/console`
pub async fn console(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    require_upgrade(request.headers())?;
    let vm = match vms::local_or_holder(&agent, &granted)? {
        Ok(vm) => vm,
        Err(holder) => return elsewhere(&agent, &holder, &granted, request).await,
    };
    let mut request = request;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => converse(&agent, &vm, TokioIo::new(stream)).await,
            Err(error) => log::debug!("console of VM {}: {error}", vm.name()),
        }
    });
    Ok(switching())
}

/// Sends a request about a VM on to the host that has it.
pub async fn elsewhere(agent: &Arc<Agent>, holder: &Key, granted: &Granted, request: Request<Body>) -> Result<Response, Failure> {
    let vm = granted.about().ok_or_else(|| ApiError::new(ErrorCode::BadRequest, "the request is about no VM"))?;
    Ok(forward::about(agent, holder, vm, request).await?.into_response())
}

fn require_upgrade(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get(header::UPGRADE).is_some_and(|value| value == STREAM_UPGRADE) {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::BadRequest, format!("this needs `Connection: Upgrade` and `Upgrade: {STREAM_UPGRADE}`")))
}

fn switching() -> Response {
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, STREAM_UPGRADE)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Until the client leaves or the VM does.
async fn converse(agent: &Arc<Agent>, vm: &Arc<LocalVm>, stream: TokioIo<hyper::upgrade::Upgraded>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut said, typed) = (vm.console.listen(), vm.console.input());
    let mut changed = agent.knowledge.watch();
    let mut buffer = [0; 4096];
    if writer.write_all(&vm.console.tail(CONSOLE_TAIL_BYTES)).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            said = said.recv() => match said {
                Ok(bytes) => if writer.write_all(&bytes).await.is_err() { return },
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            count = reader.read(&mut buffer) => match count {
                Ok(count) if count > 0 => {
                    // A guest that reads nothing makes its user wait, nobody else.
                    if typed.send(Bytes::copy_from_slice(&buffer[..count])).await.is_err() { return }
                }
                _ => return,
            },
            _ = changed.changed() => if vm.seen().pid == 0 || vm.want() == crate::vm::Want::Gone { return },
        }
    }
}

/// `GET /v1/vms/{name}/forward/{port}`
pub async fn reach(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    Path((_, port)): Path<(String, String)>,
    mut request: Request<Body>,
) -> Result<Response, Failure> {
    let port = port.parse().ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| ApiError::new(ErrorCode::BadRequest, "port: expected a number from 1 to 65535"))?;
    require_upgrade(request.headers())?;
    let vm = match vms::local_or_holder(&agent, &granted)? {
        Ok(vm) => vm,
        Err(holder) => return elsewhere(&agent, &holder, &granted, request).await,
    };
    let mut guest = crate::forward::connect(&agent.forwards, &agent.knowledge, &vm, port).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(client) = upgrade.await
            && let Err(error) = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut guest.stream).await
        {
            log::debug!("a forward to VM {} ended: {error}", vm.name());
        }
    });
    Ok(switching())
}

/// `GET /internal/arrivals/{id}/stream`
pub async fn arrival(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    mut request: Request<Body>,
) -> Result<Response, Failure> {
    require_upgrade(request.headers())?;
    let id = id.parse().map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("arrival: {error}")))?;
    let granted = rights::ask(&agent, caller, Question::Stream(id)).await?;
    let (mut near, open) = arrive::connect(&agent.vms, id, granted).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(far) = upgrade.await {
            depart::carry(&mut near, far).await;
        }
        drop(open);
    });
    Ok(([(clock::HEADER, now_ms().to_string())], switching()).into_response())
}
