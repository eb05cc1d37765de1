//! `/v1/jobs`. A job's name begins with the digits of its host's key, so that any host can be asked.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    http::{Request, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use rebec_api::{
    ApiError,
    job::{Job, JobState},
};
use rebec_pool::{Key, view};

use super::{
    answer::{Answer, Failure},
    forward,
};
use crate::agent::Agent;

/// `GET /v1/jobs`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<Job>> {
    Ok(axum::Json(agent.jobs.all()))
}

/// `GET /v1/jobs/{id}`
pub async fn show(State(agent): State<Arc<Agent>>, Path(id): Path<String>, request: Request<Body>) -> Result<Response, Failure> {
    match agent.jobs.get(&id) {
        Some(job) => Ok(axum::Json(job.borrow().clone()).into_response()),
        None => Ok(forward::to(&agent, &elsewhere(&agent, &id)?, request).await?.into_response()),
    }
}

fn elsewhere(agent: &Agent, id: &str) -> Result<Key, ApiError> {
    let prefix = id.split('-').next().unwrap_or_default();
    let own = agent.key();
    let host = agent.book(|book| view::hosts(book).iter().find(|host| host.key.short() == prefix && host.key != own).map(|host| host.key));
    host.flatten().ok_or_else(|| ApiError::not_found("job", id, "rebec job ls"))
}

/// `GET /v1/jobs/{id}/events`
pub async fn events(State(agent): State<Arc<Agent>>, Path(id): Path<String>, request: Request<Body>) -> Result<Response, Failure> {
    let Some(job) = agent.jobs.get(&id) else {
        return Ok(forward::to(&agent, &elsewhere(&agent, &id)?, request).await?.into_response());
    };
    let events = stream::unfold(Some((job, true)), |state| async {
        let (mut job, first) = state?;
        if !first && job.changed().await.is_err() {
            return None;
        }
        let now = job.borrow_and_update().clone();
        let event = format!("event: job\ndata: {}\n\n", serde_json::to_string(&now).unwrap_or_default());
        let next = (now.state == JobState::Running).then_some((job, false));
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(event))), next))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::new(StreamBody::new(events))).into_response())
}
