//! Requests about what is elsewhere go to the host that has it, over the mesh, with the signature of who gave them, and their answers come
//! back as they are: bodies that stream and connections that upgrade too.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderValue, Request, Response, StatusCode, header},
};
use hyper_util::rt::TokioIo;
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{Key, key::Id, names};

use super::{answer::Failure, warrants};
use crate::agent::Agent;

/// Marks a request that was forwarded: it is not forwarded again.
const FORWARDED: &str = "rebec-forwarded";

/// Sends a request about a VM or a host on, with its id in place of the name that it has here.
pub async fn about(agent: &Arc<Agent>, host: &Key, thing: Id, mut request: Request<Body>) -> Result<Response<Body>, Failure> {
    let mut segments: Vec<&str> = request.uri().path().split('/').collect();
    let id = names::by_id(&thing);
    // /v1/vms/NAME/…
    if let Some(name) = segments.get_mut(3) {
        *name = &id;
    }
    let query = request.uri().query().map_or_else(String::new, |query| format!("?{query}"));
    let uri = format!("{}{query}", segments.join("/")).parse();
    *request.uri_mut() = uri.map_err(|_| ApiError::new(ErrorCode::BadRequest, "a path that cannot be sent on"))?;
    to(agent, host, request).await
}

/// Sends a request on to the host that it is about.
pub async fn to(agent: &Arc<Agent>, host: &Key, request: Request<Body>) -> Result<Response<Body>, Failure> {
    if request.headers().contains_key(FORWARDED) {
        let message = "what this is about has just gone to another host; try again";
        return Err(ApiError::new(ErrorCode::Conflict, message).into());
    }
    let peer =
        agent.knowledge.peer(host).ok_or_else(|| ApiError::new(ErrorCode::Unreachable, "its host is not known here yet; try again"))?;
    let mut request = warrants::sign(agent, request).await?;
    request.headers_mut().insert(FORWARDED, HeaderValue::from_static("1"));
    let upgrades = request.headers().contains_key(header::UPGRADE);
    let (parts, body) = request.into_parts();
    let mut onward = Request::new(body);
    *onward.method_mut() = parts.method.clone();
    *onward.uri_mut() = parts.uri.clone();
    *onward.headers_mut() = parts.headers.clone();
    let mut response = agent.peers.mesh.request(&peer, onward).await?;
    if upgrades && response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let mut original = Request::from_parts(parts, Body::empty());
        let (far, near) = (hyper::upgrade::on(&mut response), hyper::upgrade::on(&mut original));
        tokio::spawn(async move {
            if let (Ok(far), Ok(near)) = (far.await, near.await) {
                // Either side's end is the end; there is nobody to tell.
                tokio::io::copy_bidirectional(&mut TokioIo::new(far), &mut TokioIo::new(near)).await.map(|_| ()).unwrap_or_default();
            }
        });
    }
    Ok(response)
}
