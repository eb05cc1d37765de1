//! Questions to another host, and their answers.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{Method, Request, Response, header},
};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use hyper_util::rt::TokioIo;
use rebec_api::{ApiError, ErrorCode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{kept::PER_KEY, line::Line, mesh::Mesh, peer::Peer, versions};

/// How long a host may take to answer a short question.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Longest answer to a short question.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// A body up to this length is kept until its question is answered.
const REPEATED_BYTES_MAX: u64 = 64 << 10;

/// When a question whose connection was lost is asked once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// Also where the host may have heard it: what it answers twice it does once, and orders have names.
    Always,
    /// Only where nothing says that the host heard it.
    Unheard,
}

impl Mesh {
    /// Makes a short request; an answer that is not a success is its [`ApiError`]. The host may hear it twice.
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(&self, peer: &Peer, path: &str, question: &Q) -> Result<A, ApiError> {
        let body = serde_json::to_vec(question).map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()))?;
        let question = post(path, "application/json", body)?;
        let answer = self.answered(peer, question, Repeat::Always, |response| read_answer(peer, response));
        tokio::time::timeout(ANSWER_TIME, answer).await.unwrap_or_else(|_| Err(peer.silent("no answer in time")))
    }

    /// Makes a short request whose body is no JSON, nor is the answer's; that is at most so long and comes within a time. The host may hear it
    /// twice.
    pub async fn ask_bytes(&self, peer: &Peer, path: &str, question: Vec<u8>, bytes_max: usize, time: Duration) -> Result<Bytes, ApiError> {
        let question = post(path, "application/cbor", question)?;
        let answer = self.answered(peer, question, Repeat::Always, |response| read_bytes(peer, response, bytes_max));
        tokio::time::timeout(time, answer).await.unwrap_or_else(|_| Err(peer.silent("no answer in time")))
    }

    /// Makes any request. An upgrade of the response upgrades the stream.
    pub async fn request(&self, peer: &Peer, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let (parts, body) = request.into_parts();
        // What is short is had whole, so that it can be asked again.
        if body.size_hint().exact().is_some_and(|bytes| bytes <= REPEATED_BYTES_MAX) {
            let body = body.collect().await.map_err(|error| ApiError::new(ErrorCode::BadRequest, error.to_string()))?;
            let question = Request::from_parts(parts, body.to_bytes());
            return self.answered(peer, question, Repeat::Unheard, async |response| Ok(response)).await;
        }
        let line = self.line(peer).await.map_err(|error| peer.silent(&format!("{error:#}")))?;
        self.over(&line, peer, Request::from_parts(parts, body)).await
    }

    /// Has a question answered. A connection that was kept may have been lost before: the question finds it out, and is asked over another.
    async fn answered<T, F: Future<Output = Result<T, ApiError>>>(
        &self,
        peer: &Peer,
        question: Request<Bytes>,
        repeat: Repeat,
        read: impl Fn(Response<Body>) -> F,
    ) -> Result<T, ApiError> {
        let mut kept = 0;
        loop {
            let line = self.line(peer).await.map_err(|error| peer.silent(&format!("{error:#}")))?;
            let attempt = async { read(self.over(&line, peer, question.clone().map(Body::from)).await?).await };
            let (answer, is_lost) = tokio::select! {
                answer = attempt => {
                    let is_lost = answer.is_err() && line.is_lost();
                    (answer, is_lost)
                }
                () = self.deaf(peer, &line), if line.is_kept() => (Err(peer.silent("its agent has started anew meanwhile")), true),
            };
            kept += usize::from(line.is_kept());
            if is_lost && line.is_kept() && kept <= PER_KEY && (repeat == Repeat::Always || line.is_unheard()) {
                log::debug!("host {}: asked again: a connection to it was lost", peer.name);
                continue;
            }
            return answer;
        }
    }

    async fn over(&self, line: &Line, peer: &Peer, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let stream = line.stream().await.map_err(|error| peer.silent(&format!("{error:#}")))?;
        request_over(stream, peer, self.said(request)).await
    }

    /// The same for what brings many bytes: over TCP where that reaches the host.
    pub async fn request_bulk(&self, peer: &Peer, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        match self.bulk.connect(peer).await {
            Some(stream) => request_over(stream, peer, self.said(request)).await,
            None => self.request(peer, request).await,
        }
    }

    /// With what this side speaks.
    fn said(&self, mut request: Request<Body>) -> Request<Body> {
        request.headers_mut().insert(versions::SPEAKS, versions::said(self.speaks));
        request
    }
}

fn post(path: &str, content: &'static str, body: Vec<u8>) -> Result<Request<Bytes>, ApiError> {
    let request = Request::builder().method(Method::POST).uri(path).header(header::CONTENT_TYPE, content);
    request.body(Bytes::from(body)).map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()))
}

pub(crate) async fn request_over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: &Peer,
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("rebec"));
    // What ended the connection is below what hyper says.
    let failed = |error: hyper::Error| peer.silent(&format!("{:#}", anyhow::Error::from(error)));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(connection.with_upgrades());
    let response = sender.send_request(request).await.map_err(failed)?;
    Ok(response.map(Body::new))
}

/// The body of a success, or the error that the other side told.
pub async fn read_answer<A: DeserializeOwned>(peer: &Peer, response: Response<Body>) -> Result<A, ApiError> {
    let bytes = read_bytes(peer, response, ANSWER_BYTES_MAX).await?;
    let bytes = if bytes.is_empty() { &b"null"[..] } else { &bytes };
    serde_json::from_slice(bytes).map_err(|error| peer.silent(&format!("an answer that makes no sense: {error}")))
}

async fn read_bytes(peer: &Peer, response: Response<Body>, bytes_max: usize) -> Result<Bytes, ApiError> {
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), bytes_max).collect().await;
    let bytes = body.map_err(|error| peer.silent(&error.to_string()))?.to_bytes();
    if status.is_success() {
        return Ok(bytes);
    }
    Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| peer.silent(&format!("HTTP status {status}"))))
}
