//! `/v1/jobs`. A job's name begins with the digits of its host's key, so that any host can be asked.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{Extension, Path, State},
    http::{HeaderMap, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use rebec_api::{
    ApiError, ErrorCode,
    job::{Job, JobState, ORDER},
};
use rebec_book::{
    Book, Key,
    authority::{self, Asker, Granted},
    key::Id,
    view,
};
use serde::Serialize;
use tokio::sync::watch;

use super::{
    answer::{Answer, Failure},
    forward,
};
use crate::{
    agent::Agent,
    jobs::{Begun, Reporter},
};

/// Begins a job, which goes on without its caller, and answers with it; one that was ordered before is answered with as it is. What the work
/// returns is the job's result. Work that an earlier agent had begun is done again: it looks first how far that came.
pub fn begin<T: Serialize, F: Future<Output = Result<T, ApiError>> + Send + 'static>(
    agent: &Arc<Agent>,
    by: Asker,
    order: Option<Id>,
    what: String,
    work: impl FnOnce(Arc<Agent>, Arc<Reporter>) -> F,
) -> Result<Response, ApiError> {
    Ok(match agent.jobs.begin(by, order, what)? {
        Begun::Known(job) => accepted(&job),
        Begun::Taken { job, reporter, .. } => {
            goes_on(agent, reporter, work);
            accepted(&job)
        }
    })
}

/// The same for what is answered once it is done.
pub async fn finish<F: Future<Output = Result<(), ApiError>> + Send + 'static>(
    agent: &Arc<Agent>,
    by: Asker,
    order: Option<Id>,
    what: String,
    work: impl FnOnce(Arc<Agent>, Arc<Reporter>) -> F,
) -> Result<(), ApiError> {
    let id = match agent.jobs.begin(by, order, what)? {
        Begun::Known(job) => job.id,
        Begun::Taken { job, reporter, .. } => {
            goes_on(agent, reporter, work);
            job.id
        }
    };
    let (_, mut job) = agent.jobs.get(&id).ok_or_else(|| ApiError::not_found("job", &id, "rebec job ls"))?;
    // A worker that goes says so last.
    let ended = job.wait_for(|job| job.state != JobState::Running).await.map(|job| job.error.clone());
    ended.unwrap_or_else(|_| Some(ApiError::new(ErrorCode::Failed, "the agent ends; try again"))).map_or(Ok(()), Err)
}

/// Does the work of a job that has begun.
pub fn goes_on<T: Serialize, F: Future<Output = Result<T, ApiError>> + Send + 'static>(
    agent: &Arc<Agent>,
    reporter: Reporter,
    work: impl FnOnce(Arc<Agent>, Arc<Reporter>) -> F,
) {
    let reporter = Arc::new(reporter);
    let work = work(agent.clone(), reporter.clone());
    tokio::spawn(async move {
        let as_json = |result| serde_json::to_value(result).map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()));
        reporter.end(work.await.and_then(as_json));
    });
}

/// The answer to an order.
pub fn accepted(job: &Job) -> Response {
    (StatusCode::ACCEPTED, axum::Json(job)).into_response()
}

/// The name of an order, where whoever gave it named it.
pub fn order(headers: &HeaderMap) -> Result<Option<Id>, ApiError> {
    let Some(text) = headers.get(ORDER) else { return Ok(None) };
    let named = text.to_str().ok().and_then(|text| text.parse().ok());
    let bad = || ApiError::new(ErrorCode::BadRequest, format!("header {ORDER}: expected 32 hexadecimal digits"));
    named.map(Some).ok_or_else(bad)
}

/// `GET /v1/jobs`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<Job>> {
    Ok(axum::Json(agent.jobs.all()))
}

/// `GET /v1/jobs/{id}`
pub async fn show(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    Path(id): Path<String>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    match find(&agent, granted.asker(), &id)? {
        Some(job) => Ok(axum::Json(job.borrow().clone()).into_response()),
        None => Ok(forward::to(&agent, &elsewhere(&agent, &id)?, request).await?.into_response()),
    }
}

/// A job of this host, if it is the asker's to see: who has a role in this host's domain sees all, others those that somebody of a domain of
/// theirs began.
pub fn find(agent: &Agent, asker: Asker, id: &str) -> Result<Option<watch::Receiver<Job>>, ApiError> {
    let Some((by, job)) = agent.jobs.get(id) else { return Ok(None) };
    let is_root = matches!(asker, Asker::Signer(signer) if signer.key() == agent.knowledge.key());
    let concerns = |book: &Book| {
        let (own, theirs) = (book.own_domain(), domains(book, asker));
        let is_ours = matches!(asker, Asker::Signer(_)) && own.is_some_and(|own| theirs.contains(&own));
        is_ours || domains(book, by).iter().any(|domain| theirs.contains(domain))
    };
    let may = is_root || by == asker || agent.knowledge.read(concerns) == Some(true);
    if may { Ok(Some(job)) } else { Err(ApiError::not_found("job", id, "rebec job ls")) }
}

fn domains(book: &Book, asker: Asker) -> Vec<Key> {
    match asker {
        Asker::Host(host) => book.domain_of(&host).into_iter().collect(),
        Asker::Signer(signer) => authority::domains_of(book, &signer.key()),
        Asker::Nobody => vec![],
    }
}

fn elsewhere(agent: &Agent, id: &str) -> Result<Key, ApiError> {
    let prefix = id.split('-').next().unwrap_or_default();
    let own = agent.knowledge.key();
    let host = agent
        .knowledge
        .read(|book| view::hosts(book).iter().find(|host| host.key.short() == prefix && host.key != own).map(|host| host.key));
    host.flatten().ok_or_else(|| ApiError::not_found("job", id, "rebec job ls"))
}

/// `GET /v1/jobs/{id}/events`
pub async fn events(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    Path(id): Path<String>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let Some(job) = find(&agent, granted.asker(), &id)? else {
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
