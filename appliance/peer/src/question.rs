//! Questions to another host, and their answers.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{Method, Request, Response, header},
};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rebec_api::{ApiError, ErrorCode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{mesh::Mesh, peer::Peer, versions};

/// How long a host may take to answer a short question.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Longest answer to a short question.
const ANSWER_BYTES_MAX: usize = 16 << 20;

impl Mesh {
    /// Makes a short request; an answer that is not a success is its [`ApiError`].
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(&self, peer: &Peer, path: &str, question: &Q) -> Result<A, ApiError> {
        let body = serde_json::to_vec(question).map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()))?;
        let request = Request::builder().method(Method::POST).uri(path).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body)).map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()))?;
        let answer = async {
            let response = self.request(peer, request).await?;
            read_answer(peer, response).await
        };
        tokio::time::timeout(ANSWER_TIME, answer).await.unwrap_or_else(|_| Err(peer.silent("no answer in time")))
    }

    /// Makes a short request whose body is no JSON, nor is the answer's; that is at most so long and comes within a time.
    pub async fn ask_bytes(&self, peer: &Peer, path: &str, question: Vec<u8>, bytes_max: usize, time: Duration) -> Result<Bytes, ApiError> {
        let request = Request::builder().method(Method::POST).uri(path).header(header::CONTENT_TYPE, "application/cbor");
        let request = request.body(Body::from(question)).map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()))?;
        let answer = async {
            let response = self.request(peer, request).await?;
            read_bytes(peer, response, bytes_max).await
        };
        tokio::time::timeout(time, answer).await.unwrap_or_else(|_| Err(peer.silent("no answer in time")))
    }

    /// Makes any request. An upgrade of the response upgrades the stream.
    pub async fn request(&self, peer: &Peer, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let stream = self.stream(peer).await.map_err(|error| peer.silent(&format!("{error:#}")))?;
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
