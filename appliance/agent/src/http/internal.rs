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
    Signed,
    authority::Question,
    book::Came,
    key::{Digest, Id},
    record::Kind,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{
    Caller,
    answer::{Answer, Failure, Json},
    jobs, rights, vms,
};
use crate::{
    agent::Agent,
    audit::{Entry, Who},
    exchange::{self, News, Private},
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

/// `POST /internal/join`
pub async fn join(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(question): Json<JoinQuestion>,
) -> Answer<JoinAnswer> {
    // A host that is alone has nobody to ask: it says so itself.
    agent.pool(|_| ())?;
    let granted = rights::ask(&agent, caller, Question::Join).await?;
    let admitted = pool::admit(&agent, granted, &question);
    agent.audit.try_note(Entry::new(Who::new(caller, None), &Question::Join, admitted.as_ref().err().map(|error| error.message.clone())));
    Ok(axum::Json(admitted?))
}

/// `POST /internal/leave`
pub async fn leave(State(agent): State<Arc<Agent>>, Extension(caller): Extension<Caller>) -> Result<(), Failure> {
    Ok(pool::dismiss(&agent, rights::ask(&agent, caller, Question::Leave).await?)?)
}

/// `POST /internal/exchange`
pub async fn exchange(State(agent): State<Arc<Agent>>, Json(question): Json<exchange::Question>) -> Answer<exchange::Answer> {
    let answer = exchange::answer(&agent, &question);
    Ok(axum::Json(answer.ok_or_else(|| ApiError::new(ErrorCode::Conflict, "this host belongs to no pool"))?))
}

/// `POST /internal/records`
pub async fn records(State(agent): State<Arc<Agent>>, Json(news): Json<News>) -> Answer<()> {
    let came = news.came();
    agent.knowledge.take_in(news.records, came);
    for (vm, Private(private)) in news.private {
        let is_keeper = start::desired(&agent, vm)?.1.keeper == Some(agent.key());
        if is_keeper {
            start::take_private(&agent, vm, &private)?;
        }
    }
    Ok(axum::Json(()))
}

/// `POST /internal/leases`: the LAN's record, in which the asker now has a part of the range.
pub async fn leases(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(question): Json<LeaseQuestion>,
) -> Answer<Vec<Signed>> {
    create::grant(&agent, rights::ask(&agent, caller, Question::Addresses(question.lan)).await?)?;
    let records = agent.pool(|book| book.select(|key| key.kind == Kind::LAN && key.id == question.lan, usize::MAX))?;
    Ok(axum::Json(records))
}

/// `POST /internal/promises`: from a host that has a copy of a VM that this one keeps.
pub async fn promises(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(question): Json<keeper::Question>,
) -> Answer<Verdict> {
    agent.knowledge.take_in(question.records, Came::Alone);
    let granted = rights::ask(&agent, caller, Question::Promise(question.vm)).await?;
    Ok(axum::Json(keeper::answer(&agent, granted, question.ask)?))
}

/// `POST /internal/restarts`: to the keeper of a VM whose host is lost, for a user who wants it to run.
pub async fn restarts(State(agent): State<Arc<Agent>>, Extension(caller): Extension<Caller>, Json(wish): Json<Wish>) -> Answer<()> {
    rights::ask(&agent, caller, Question::Restart(wish.vm)).await?;
    Ok(axum::Json(keeper::wish(&agent, wish.vm)?))
}

/// `POST /internal/starts`: a job whose result is how the VM is.
pub async fn starts(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(order): Json<StartOrder>,
) -> Result<Response, Failure> {
    let StartOrder { vm, epoch, reason, records, private } = order;
    agent.knowledge.take_in(records, Came::Alone);
    rights::ask(&agent, caller, Question::Start(vm, epoch)).await?;
    start::take_private(&agent, vm, &private)?;
    let (_, body) = start::desired(&agent, vm)?;
    Ok(jobs::begin(&agent, caller, format!("start VM {}", body.name), async move |agent, reporter| {
        start::start(&agent, vm, Order { epoch, reason }, &reporter).await?;
        agent.pool(|book| book.select(|key| key.kind == Kind::SEEN && key.id == vm, usize::MAX))
    }))
}

/// `POST /internal/removals`
#[derive(Debug, Serialize, Deserialize)]
pub struct Removal {
    /// The VM.
    pub vm: Id,
}

/// `POST /internal/removals`: from the VM's home.
pub async fn removals(State(agent): State<Arc<Agent>>, Extension(caller): Extension<Caller>, Json(removal): Json<Removal>) -> Answer<()> {
    rights::ask(&agent, caller, Question::Remove(removal.vm)).await?;
    vms::remove_here(&agent, removal.vm).await?;
    Ok(axum::Json(()))
}

/// `POST /internal/arrivals`: a job.
pub async fn arrivals(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(offer): Json<Offer>,
) -> Result<Response, Failure> {
    agent.knowledge.take_in(offer.records, Came::Alone);
    let granted = rights::ask(&agent, caller, Question::Arrive(offer.vm, offer.epoch)).await?;
    start::take_private(&agent, offer.vm, &offer.private)?;
    let what = format!("make ready for VM {}", offer.vm.short());
    Ok(jobs::begin(&agent, caller, what, async move |agent, reporter| arrive::prepare(&agent, granted, &reporter).await))
}

/// `POST /internal/jobs/wait`
#[derive(Debug, Serialize, Deserialize)]
pub struct JobQuestion {
    id: String,
    /// What the asker has seen already.
    seen: JobProgress,
}

/// `POST /internal/jobs/wait`: the job once it has something to say.
pub async fn wait_job(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(question): Json<JobQuestion>,
) -> Answer<Job> {
    let granted = rights::ask(&agent, caller, Question::Job).await?;
    let job = jobs::find(&agent, granted.asker(), &question.id)?;
    let mut job = job.ok_or_else(|| ApiError::not_found("job", &question.id, "rebec job ls"))?;
    let news = job.wait_for(|job| job.state != rebec_api::job::JobState::Running || job.progress != question.seen);
    // A job without news is told as it is.
    tokio::time::timeout(WAIT, news).await.map(|_| ()).unwrap_or_default();
    let now = job.borrow().clone();
    Ok(axum::Json(now))
}

/// `GET /internal/parts/{digest}`, with a range that goes to the end.
pub async fn part(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let digest: Digest = digest.parse().map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("part: {error}")))?;
    rights::ask(&agent, caller, Question::Part(digest)).await?;
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
