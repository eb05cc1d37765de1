//! `/v1/vms`. What is about a VM that runs elsewhere goes to its host.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Extension, FromRequest, State},
    http::{HeaderMap, Request, StatusCode},
    response::{IntoResponse, Response},
};
use rebec_api::{
    ApiError, ErrorCode,
    vm::{MoveVm, NewVm, StopVm, VmInfo},
};
use rebec_book::{
    Book, Key,
    authority::{Asker, Granted},
    key::Id,
    record::{Assigned, Kind, SeenState},
    view,
};
use rebec_host::life::{Goal, Input};

use super::{
    answer::{Answer, Failure, Json},
    forward, internal, jobs, shown,
};
use crate::{
    agent::Agent,
    jobs::{Begun, Reporter},
    vm::{
        LocalVm, Want,
        create::{self, Order},
        depart,
        keeper::{self, Wish},
        start, stop,
    },
};

/// How long a start by a keeper is watched: a lease, its margin, and an image that must be fetched.
const START_TIME: Duration = Duration::from_secs(90);
/// How long the removal of a folder may take.
const REMOVE_TIME: Duration = Duration::from_secs(30);

/// `GET /v1/vms`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<VmInfo>> {
    Ok(axum::Json(agent.pool(|book| shown::vms(&agent, book))?))
}

/// `GET /v1/vms/{name}`
pub async fn show(State(agent): State<Arc<Agent>>, Extension(granted): Extension<Granted>) -> Answer<VmInfo> {
    Ok(axum::Json(info(&agent, granted.about().ok_or_else(gone)?)?))
}

/// How a VM is.
pub fn info(agent: &Agent, id: Id) -> Result<VmInfo, ApiError> {
    agent.pool(|book| view::vm(book, id).map(|vm| shown::vm(agent, book, vm)))?.ok_or_else(gone)
}

fn gone() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "the VM is gone; `rebec vm ls` lists those there are")
}

/// Where a VM is.
pub struct Whereabouts {
    /// The VM.
    pub id: Id,
    /// Its name here, for messages.
    pub name: String,
    /// The host that keeps its desired record.
    pub home: Key,
    /// The host that has it, or granted it and waits for its host's word.
    pub holder: Key,
    /// Its ownership counter there.
    pub epoch: u64,
    /// Whether its holder has said anything of it.
    pub is_known: bool,
}

/// Finds the VM that a granted command is about.
pub fn find(agent: &Agent, granted: &Granted) -> Result<Whereabouts, ApiError> {
    let found = agent.pool(|book| {
        let vm = view::vm(book, granted.about()?)?;
        let (at, seen) = (view::holder(book, vm.id)?, view::seen(book, vm.id));
        let holder = seen.map_or(at.host, |seen| seen.holder);
        Some(Whereabouts { id: vm.id, name: vm.name, home: vm.home, holder, epoch: at.epoch, is_known: seen.is_some() })
    })?;
    found.ok_or_else(gone)
}

/// The VM here, or the host to ask.
pub fn local_or_holder(agent: &Agent, granted: &Granted) -> Result<Result<Arc<LocalVm>, Key>, ApiError> {
    let found = find(agent, granted)?;
    if found.holder != agent.key() {
        return Ok(Err(found.holder));
    }
    let name = found.name;
    let never = || ApiError::new(ErrorCode::Conflict, format!("VM {name} has not been started yet; `rebec vm start {name}`"));
    agent.local_vm(&found.id).map(Ok).ok_or_else(never)
}

/// `POST /v1/vms`
pub async fn create(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    headers: HeaderMap,
    Json(new): Json<NewVm>,
) -> Result<Response, Failure> {
    let (reporter, again) = match agent.jobs.begin(granted.asker(), jobs::order(&headers)?, format!("run VM {}", new.name))? {
        Begun::Known(job) => return Ok(jobs::accepted(&job)),
        Begun::Taken { reporter, again, .. } => (reporter, again),
    };
    let begun = if again { create::begun(&agent, &new.name) } else { None };
    let recorded = match begun {
        Some(begun) => Ok(begun),
        None => create::record(&agent, &new).await,
    };
    let (id, chosen) = match recorded {
        Ok(recorded) => recorded,
        Err(error) => {
            agent.jobs.forget(reporter);
            return Err(error.into());
        }
    };
    let job = reporter.is_about(format!("run VM {} on host {} ({})", new.name, chosen.name, chosen.reason));
    jobs::goes_on(&agent, reporter, async move |agent, reporter| {
        let outcome = create::start_at(&agent, id, Order::FIRST, &chosen, &reporter).await;
        // A VM that never ran leaves nothing behind. One whose host did not answer may run, and one that another order is about as well.
        if let Err(error) = &outcome
            && !matches!(error.code, ErrorCode::Unreachable | ErrorCode::Conflict)
            && agent.book(|book| view::seen(book, id).is_none()) == Some(true)
        {
            agent.publish(Kind::VM, id, None)?;
        }
        outcome.and_then(|()| info(&agent, id))
    });
    Ok(jobs::accepted(&job))
}

/// `POST /v1/vms/{name}/start`: at the host that has it by proof, and after that was declared dead at its home.
pub async fn start(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let found = find(&agent, &granted)?;
    if found.holder != agent.key() && !is_dead(&agent, &found.holder) {
        return Ok(forward::about(&agent, &found.holder, found.id, request).await?.into_response());
    }
    if found.holder != agent.key() {
        if found.home != agent.key() {
            return Ok(forward::about(&agent, &found.home, found.id, request).await?.into_response());
        }
        return start_elsewhere(&agent, found, jobs::order(request.headers())?);
    }
    let (order, named) = (Order { epoch: found.epoch, reason: None }, jobs::order(request.headers())?);
    Ok(jobs::begin(&agent, granted.asker(), named, format!("start VM {}", found.name), async move |agent, reporter| {
        start::start(&agent, found.id, order, &reporter).await?;
        info(&agent, found.id)
    })?)
}

fn is_dead(agent: &Agent, host: &Key) -> bool {
    agent.book(|book| was_declared_dead(book, host)) == Some(true)
}

fn was_declared_dead(book: &Book, host: &Key) -> bool {
    book.dead(host).is_some()
}

/// What a VM had written is lost with its host: it starts from its image, where its home assigns it now.
fn start_elsewhere(agent: &Arc<Agent>, found: Whereabouts, order: Option<Id>) -> Result<Response, Failure> {
    let Whereabouts { id, name, .. } = found;
    let (_, body) = start::desired(agent, id)?;
    if let Some(keeper) = body.keeper {
        return Ok(start_by_keeper(agent, id, name, keeper, order)?);
    }
    let chosen = create::place(agent, &body, None, None, None)?;
    let epoch = create::assign(agent, id, Assigned { host: found.holder, epoch: found.epoch }, chosen.key)?;
    let what = format!("start VM {name} from its image on host {}: its disk is lost with the host that was declared dead", chosen.name);
    Ok(jobs::begin(agent, Asker::Host(agent.key()), order, what, async move |agent, reporter| {
        create::start_at(&agent, id, Order { epoch, reason: None }, &chosen, &reporter).await?;
        info(&agent, id)
    })?)
}

/// Who may run it is for its keeper to say, which starts it elsewhere by itself unless it was stopped.
fn start_by_keeper(agent: &Arc<Agent>, id: Id, name: String, keeper: Key, order: Option<Id>) -> Result<Response, ApiError> {
    let what = format!("have VM {name} started by its keeper, host {}", agent.name_of(&keeper));
    jobs::begin(agent, Asker::Host(agent.key()), order, what, async move |agent, _| {
        if keeper == agent.key() {
            keeper::wish(&agent, id)?;
        } else {
            let unknown = || ApiError::new(ErrorCode::Unreachable, format!("VM {name}: its keeper is not known here"));
            let peer = agent.peer(&keeper).ok_or_else(unknown)?;
            agent.mesh.ask::<_, ()>(&peer, "/internal/restarts", &Wish { vm: id }).await?;
        }
        let runs = |book: &Book| {
            view::seen(book, id).is_some_and(|seen| seen.body.state == SeenState::Running && !was_declared_dead(book, &seen.holder))
        };
        if agent.until(START_TIME, || agent.book(runs) == Some(true)).await {
            return info(&agent, id);
        }
        let message =
            format!("VM {name}: not started within {} s; its keeper goes on trying, see `rebec vm show {name}`", START_TIME.as_secs());
        Err(ApiError::new(ErrorCode::Failed, message))
    })
}

/// `POST /v1/vms/{name}/stop`
pub async fn stop(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let vm = match local_or_holder(&agent, &granted)? {
        Ok(vm) => vm,
        Err(holder) => return Ok(forward::about(&agent, &holder, granted.about().ok_or_else(gone)?, request).await?.into_response()),
    };
    let (name, order) = (vm.name(), jobs::order(request.headers())?);
    let Json(StopVm { timeout_s }) = Json::<StopVm>::from_request(request, &()).await?;
    if timeout_s > StopVm::TIMEOUT_S_MAX {
        let message = format!("a timeout of {timeout_s} s: expected at most {} s", StopVm::TIMEOUT_S_MAX);
        return Err(ApiError::new(ErrorCode::BadRequest, message).into());
    }
    let patience = Duration::from_secs(timeout_s.into());
    Ok(jobs::begin(&agent, granted.asker(), order, format!("stop VM {name}"), async move |agent, reporter| {
        stop::stop(&agent, &vm, patience, Some(&reporter)).await?;
        info(&agent, vm.id())
    })?)
}

/// `DELETE /v1/vms/{name}`: at its home, which has its holder remove what is there.
pub async fn remove(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let found = find(&agent, &granted)?;
    if found.home != agent.key() {
        return Ok(forward::about(&agent, &found.home, found.id, request).await?.into_response());
    }
    if found.holder == agent.key() {
        remove_here(&agent, found.id).await?;
    } else if found.is_known && !is_dead(&agent, &found.holder) {
        let peer = agent.peer(&found.holder);
        let peer = peer.ok_or_else(|| ApiError::new(ErrorCode::Unreachable, format!("VM {}: its host is not known here", found.name)))?;
        agent.mesh.ask::<_, ()>(&peer, "/internal/removals", &internal::Removal { vm: found.id }).await?;
    }
    agent.publish(Kind::VM, found.id, None)?;
    Ok(StatusCode::OK.into_response())
}

/// Removes a stopped VM from this host.
pub async fn remove_here(agent: &Arc<Agent>, id: Id) -> Result<(), ApiError> {
    let Some(vm) = agent.local_vm(&id) else { return Ok(()) };
    vm.hear(agent, Input::Want(Goal::Remove)).map_err(|_| {
        let name = vm.name();
        ApiError::new(ErrorCode::Conflict, format!("VM {name} runs; `rebec vm stop {name}` first"))
    })?;
    if agent.until(REMOVE_TIME, || agent.local_vm(&id).is_none()).await {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Failed, format!("VM {}: what is here of it does not go; does its disk answer?", vm.name())))
}

/// `POST /v1/vms/{name}/move`
pub async fn depart(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let vm = match local_or_holder(&agent, &granted)? {
        Ok(vm) => vm,
        Err(holder) => return Ok(forward::about(&agent, &holder, granted.about().ok_or_else(gone)?, request).await?.into_response()),
    };
    let (name, order) = (vm.name(), jobs::order(request.headers())?);
    let Json(wish) = Json::<MoveVm>::from_request(request, &()).await?;
    if vm.want() != Want::Running {
        return Err(ApiError::new(ErrorCode::Conflict, format!("VM {name} does not run; only a running VM is moved")).into());
    }
    let kept = vm.kept();
    // Into another domain only where somebody says so.
    let stays = if wish.host.is_none() { create::stays_in(&agent, &kept.home) } else { None };
    let domain = wish.domain.as_deref().or(stays.as_deref());
    let place = || create::place(&agent, &kept.body, wish.host.as_deref(), domain, Some(&kept));
    // The order may have come before, to an agent that ended while it was at it.
    agent.once_heard(|| place().is_ok()).await;
    let chosen = place()?;
    let peer = agent.peer(&chosen.key).ok_or_else(|| ApiError::not_found("host", &chosen.name, "rebec host ls"))?;
    let what = format!("move VM {name} to host {} ({})", chosen.name, chosen.reason);
    let work = async move |agent: Arc<Agent>, reporter: Arc<Reporter>| depart::depart(&agent, &vm, &peer, &wish, &reporter).await;
    Ok(jobs::begin(&agent, granted.asker(), order, what, work)?)
}
