//! `/internal`: what agents ask each other.

use std::{io::SeekFrom, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Extension, Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use http_body_util::StreamBody;
use hyper::body::Frame;
use rebec_api::{
    ApiError, ErrorCode,
    job::{Job, JobProgress},
};
use rebec_book::{
    Key, Signed,
    key::{Digest, Id},
    record::Kind,
    view,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{
    Caller,
    answer::{Answer, Failure, Json},
    jobs, vms,
};
use crate::{
    agent::Agent,
    exchange::{self, News, Question},
    pool::{self, JoinAnswer, JoinQuestion},
    vm::{
        arrive::{self, Offer},
        create::{self, LeaseQuestion, Order, StartOrder},
        keeper::{self, Verdict, Wish},
        start,
    },
};

/// How long a question about a job waits for news.
const WAIT: Duration = Duration::from_secs(5);
/// A part is sent in pieces of this size.
const PIECE_BYTES: usize = 256 << 10;

/// The agent that asks; users are not let in here.
pub fn asker(caller: Caller) -> Result<Key, ApiError> {
    match caller {
        Caller::Agent(key) => Ok(key),
        Caller::User | Caller::Stranger => Err(ApiError::new(ErrorCode::Forbidden, "/internal is for agents")),
    }
}

/// `POST /internal/join`
pub async fn join(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(question): Json<JoinQuestion>,
) -> Answer<JoinAnswer> {
    Ok(axum::Json(pool::admit(&agent, asker(caller)?, &question)?))
}

/// `POST /internal/leave`
pub async fn leave(State(agent): State<Arc<Agent>>, Extension(caller): Extension<Caller>) -> Result<(), Failure> {
    Ok(pool::dismiss(&agent, asker(caller)?)?)
}

/// `POST /internal/exchange`
pub async fn exchange(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(question): Json<Question>,
) -> Answer<exchange::Answer> {
    agent.heard(asker(caller)?);
    let answer = exchange::answer(&agent, &question);
    Ok(axum::Json(answer.ok_or_else(|| ApiError::new(ErrorCode::Conflict, "this host belongs to no pool"))?))
}

/// `POST /internal/records`
pub async fn records(State(agent): State<Arc<Agent>>, Json(news): Json<News>) -> Answer<()> {
    agent.merge(news.records);
    Ok(axum::Json(()))
}

/// `POST /internal/leases`: the LAN's record, in which the asker now has a part of the range.
pub async fn leases(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(question): Json<LeaseQuestion>,
) -> Answer<Vec<Signed>> {
    create::grant(&agent, question.lan, asker(caller)?)?;
    let records = agent.pool(|book| book.select(|key| key.kind == Kind::Lan && key.id == question.lan, usize::MAX))?;
    Ok(axum::Json(records))
}

/// `POST /internal/promises`: from a host that has a copy of a VM that this one keeps.
pub async fn promises(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(question): Json<keeper::Question>,
) -> Answer<Verdict> {
    Ok(axum::Json(keeper::answer(&agent, asker(caller)?, &question)?))
}

/// `POST /internal/restarts`: to the keeper of a VM whose host is lost, for a user who wants it to run.
pub async fn restarts(State(agent): State<Arc<Agent>>, Json(wish): Json<Wish>) -> Answer<()> {
    Ok(axum::Json(keeper::wish(&agent, wish.vm)?))
}

/// `POST /internal/starts`: a job whose result is how the VM is.
pub async fn starts(State(agent): State<Arc<Agent>>, Json(order): Json<StartOrder>) -> Result<Response, Failure> {
    let StartOrder { vm, epoch, reason, records } = order;
    agent.merge(records);
    let (_, body) = start::desired(&agent, vm)?;
    Ok(jobs::begin(&agent, format!("start VM {}", body.name), async move |agent, reporter| {
        start::start(&agent, vm, Order { epoch, reason }, &reporter).await?;
        agent.pool(|book| book.select(|key| key.kind == Kind::Seen && key.id == vm, usize::MAX))
    }))
}

/// `POST /internal/removals`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removal {
    /// The VM.
    pub vm: Id,
}

/// `POST /internal/removals`: from the VM's home.
pub async fn removals(State(agent): State<Arc<Agent>>, Extension(caller): Extension<Caller>, Json(removal): Json<Removal>) -> Answer<()> {
    let asker = asker(caller)?;
    let home = agent.pool(|book| view::vms(book).into_iter().find(|vm| vm.id == removal.vm).map(|vm| vm.home))?;
    if home != Some(asker) {
        return Err(ApiError::new(ErrorCode::Forbidden, "only a VM's home host has it removed").into());
    }
    vms::remove_here(&agent, removal.vm)?;
    Ok(axum::Json(()))
}

/// `POST /internal/arrivals`: a job.
pub async fn arrivals(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(offer): Json<Offer>,
) -> Result<Response, Failure> {
    let from = asker(caller)?;
    let what = format!("make ready for VM {}", offer.vm.short());
    Ok(jobs::begin(&agent, what, async move |agent, reporter| arrive::prepare(&agent, from, offer, &reporter).await))
}

/// `POST /internal/jobs/wait`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobQuestion {
    id: String,
    /// What the asker has seen already.
    seen: JobProgress,
}

/// `POST /internal/jobs/wait`: the job once it has something to say.
pub async fn wait_job(State(agent): State<Arc<Agent>>, Json(question): Json<JobQuestion>) -> Answer<Job> {
    let mut job = agent.jobs.get(&question.id).ok_or_else(|| ApiError::not_found("job", &question.id, "rebec job ls"))?;
    let news = job.wait_for(|job| job.state != rebec_api::job::JobState::Running || job.progress != question.seen);
    // A job without news is told as it is.
    tokio::time::timeout(WAIT, news).await.map(|_| ()).unwrap_or_default();
    let now = job.borrow().clone();
    Ok(axum::Json(now))
}

/// `GET /internal/parts/{digest}`, with a range that goes to the end.
pub async fn part(State(agent): State<Arc<Agent>>, Path(digest): Path<String>, headers: HeaderMap) -> Result<Response, Failure> {
    let digest: Digest = digest.parse().map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("part: {error}")))?;
    let from =
        headers.get(header::RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<u64>().ok());
    let missing = |_| ApiError::new(ErrorCode::NotFound, format!("part {} is not in this host's depot", digest.short()));
    let mut file = tokio::fs::File::open(agent.depot.path(&digest)).await.map_err(missing)?;
    file.seek(SeekFrom::Start(from.unwrap_or(0))).await.map_err(missing)?;
    let pieces = futures_util::stream::try_unfold(file, |mut file| async {
        let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
        let count = file.read_buf(&mut piece).await?;
        Ok::<_, std::io::Error>((count > 0).then(|| (Frame::data(piece.freeze()), file)))
    });
    let status = if from.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    Ok((status, Body::new(StreamBody::new(pieces))).into_response())
}
