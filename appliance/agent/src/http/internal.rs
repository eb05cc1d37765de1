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
    gossip::message as gossip,
    key::{Digest, Id},
    record::Kind,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{
    Caller,
    answer::{Answer, Failure, Json, Whole},
    jobs, rights,
};
use crate::{
    agent::Agent,
    audit::{Entry, Who},
    keeper::{self, Verdict, Wish},
    orders::{
        addresses::{self, LeaseQuestion},
        order::StartOrder,
        record::Introduction,
        remove::Removal,
        returns::{self, ReturnQuestion},
    },
    pool::{self, JoinAnswer, JoinQuestion},
    vm::{
        arrive,
        depart::Offer,
        start::{self, Order},
        stop,
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
    agent.knowledge.pool(|_| ())?;
    let granted = rights::ask(&agent, caller, Question::Join).await?;
    let admitted = pool::admit(&agent.membership, granted, &question);
    agent.audit.try_note(Entry::new(Who::new(caller, None), &Question::Join, admitted.as_ref().err().map(|error| error.message.clone())));
    Ok(axum::Json(admitted?))
}

/// `POST /internal/leave`
pub async fn leave(State(agent): State<Arc<Agent>>, Extension(caller): Extension<Caller>) -> Result<(), Failure> {
    Ok(pool::dismiss(&agent.membership, rights::ask(&agent, caller, Question::Leave).await?)?)
}

/// `POST /internal/exchange`
pub async fn exchange(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Whole(bytes): Whole,
) -> Result<Response, Failure> {
    let Caller::Host(from) = caller else { return Err(ApiError::new(ErrorCode::Forbidden, "hosts gossip, users do not").into()) };
    let question = gossip::Question::from_bytes(&bytes).map_err(|error| ApiError::new(ErrorCode::BadRequest, error.to_string()))?;
    let answer = agent.peers.answer(from, question);
    Ok(told(&answer.ok_or_else(|| ApiError::new(ErrorCode::Conflict, "this host belongs to no pool"))?))
}

/// An answer of the gossip.
pub fn told(answer: &gossip::Answer) -> Response {
    ([(header::CONTENT_TYPE, "application/cbor")], answer.to_bytes()).into_response()
}

/// `POST /internal/records`
pub async fn records(State(agent): State<Arc<Agent>>, Json(introduction): Json<Introduction>) -> Answer<()> {
    let Introduction { records, vm, private } = introduction;
    agent.peers.learn(records);
    if agent.knowledge.desired(vm)?.1.keeper == Some(agent.knowledge.key()) {
        start::take_private(&agent.vms, vm, &private)?;
    }
    Ok(axum::Json(()))
}

/// `POST /internal/leases`: the LAN's record, in which the asker now has a part of the range.
pub async fn leases(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(question): Json<LeaseQuestion>,
) -> Answer<Vec<Signed>> {
    addresses::grant(&agent.orders, rights::ask(&agent, caller, Question::Addresses(question.lan)).await?)?;
    Ok(axum::Json(lan_records(&agent, question.lan)?))
}

/// `POST /internal/returns`: the LAN's record, in which the asker does not have those parts of the range.
pub async fn returns(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(question): Json<ReturnQuestion>,
) -> Answer<Vec<Signed>> {
    let granted = rights::ask(&agent, caller, Question::Return(question.lan)).await?;
    returns::granted(&agent.orders, granted, &question.tags)?;
    Ok(axum::Json(lan_records(&agent, question.lan)?))
}

fn lan_records(agent: &Agent, lan: Id) -> Result<Vec<Signed>, ApiError> {
    agent.knowledge.pool(|book| book.select(|key| key.kind == Kind::LAN && key.id == lan, usize::MAX))
}

/// `POST /internal/promises`: from a host that has a copy of a VM that this one keeps.
pub async fn promises(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(question): Json<keeper::Question>,
) -> Answer<Verdict> {
    agent.peers.learn(question.records);
    let granted = rights::ask(&agent, caller, Question::Promise(question.vm)).await?;
    Ok(axum::Json(agent.keeper.answer(granted, question.ask)?))
}

/// `POST /internal/restarts`: to the keeper of a VM whose host is lost, for a user who wants it to run.
pub async fn restarts(State(agent): State<Arc<Agent>>, Extension(caller): Extension<Caller>, Json(wish): Json<Wish>) -> Answer<()> {
    rights::ask(&agent, caller, Question::Restart(wish.vm)).await?;
    Ok(axum::Json(agent.keeper.wish(wish.vm)?))
}

/// `POST /internal/starts`: a job whose result is how the VM is.
pub async fn starts(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(order): Json<StartOrder>,
) -> Result<Response, Failure> {
    let StartOrder { vm, epoch, reason, records, private, order } = order;
    agent.peers.learn(records);
    rights::ask(&agent, caller, Question::Start(vm, epoch)).await?;
    start::take_private(&agent.vms, vm, &private)?;
    let (_, body) = agent.knowledge.desired(vm)?;
    Ok(jobs::begin(&agent, caller, order, format!("start VM {}", body.name), async move |agent, reporter| {
        start::as_ordered(&agent.vms, vm, Order { epoch, reason }, &reporter).await?;
        agent.knowledge.pool(|book| book.select(|key| key.kind == Kind::SEEN && key.id == vm, usize::MAX))
    })?)
}

/// `POST /internal/removals`: from the VM's home. A job, where the order has a name.
pub async fn removals(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(removal): Json<Removal>,
) -> Result<Response, Failure> {
    let Removal { vm, order } = removal;
    rights::ask(&agent, caller, Question::Remove(vm)).await?;
    if order.is_none() {
        stop::remove(&agent.vms, vm).await?;
        return Ok(axum::Json(()).into_response());
    }
    let what = format!("remove VM {}", agent.vms.get(&vm).map_or_else(|| vm.short(), |vm| vm.name()));
    Ok(jobs::begin(&agent, caller, order, what, async move |agent, _| stop::remove(&agent.vms, vm).await)?)
}

/// `POST /internal/arrivals`: a job.
pub async fn arrivals(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(offer): Json<Offer>,
) -> Result<Response, Failure> {
    agent.peers.learn(offer.records);
    let granted = rights::ask(&agent, caller, Question::Arrive(offer.vm, offer.epoch)).await?;
    start::take_private(&agent.vms, offer.vm, &offer.private)?;
    let what = format!("make ready for VM {}", offer.vm.short());
    Ok(jobs::begin(&agent, caller, offer.order, what, async move |agent, reporter| arrive::prepare(&agent.vms, granted, &reporter).await)?)
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
    let mut file = tokio::fs::File::open(agent.host.depot.path(&digest)).await.map_err(missing)?;
    file.seek(SeekFrom::Start(from.unwrap_or(0))).await.map_err(missing)?;
    let pieces = futures_util::stream::try_unfold(file, |mut file| async {
        let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
        let count = file.read_buf(&mut piece).await?;
        Ok::<_, std::io::Error>((count > 0).then(|| (Frame::data(piece.freeze()), file)))
    });
    let status = if from.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    Ok((status, Body::new(StreamBody::new(pieces))).into_response())
}
