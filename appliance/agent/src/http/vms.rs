//! `/v1/vms`. What is about a VM that runs elsewhere goes to its host.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequest, Path, State},
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use rebec_api::{
    ApiError, ErrorCode,
    vm::{MoveVm, NewVm, StopVm, VmInfo},
};
use rebec_book::{
    Book, Key,
    key::Id,
    record::{Kind, SeenState},
    view,
};

use super::{
    answer::{Answer, Failure, Json},
    forward, internal, jobs, shown,
};
use crate::{
    agent::Agent,
    vm::{
        LocalVm, Want,
        create::{self, Order},
        depart,
        keeper::{self, Wish},
        start, stop, watch,
    },
};

/// How long a start by a keeper is watched: a lease, its margin, and an image that must be fetched.
const START_TIME: Duration = Duration::from_secs(90);

/// `GET /v1/vms`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<VmInfo>> {
    Ok(axum::Json(agent.pool(|book| shown::vms(&agent, book))?))
}

/// `GET /v1/vms/{name}`
pub async fn show(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Answer<VmInfo> {
    Ok(axum::Json(info(&agent, &name)?))
}

fn info(agent: &Agent, name: &str) -> Result<VmInfo, ApiError> {
    let found = agent.pool(|book| shown::vms(agent, book).into_iter().find(|vm| vm.name == name))?;
    found.ok_or_else(|| ApiError::not_found("VM", name, "rebec vm ls"))
}

/// Where a VM is.
pub struct Whereabouts {
    /// The VM.
    pub id: Id,
    /// The host that keeps its desired record.
    pub home: Key,
    /// The host that holds its epoch; none before its first start.
    pub holder: Option<Key>,
}

/// Finds a VM by its name.
pub fn find(agent: &Agent, name: &str) -> Result<Whereabouts, ApiError> {
    let found = agent.pool(|book| {
        let vm = view::vms(book).into_iter().find(|vm| vm.name == name)?;
        Some(Whereabouts { id: vm.id, home: vm.home, holder: view::seen(book, vm.id).map(|seen| seen.holder) })
    })?;
    found.ok_or_else(|| ApiError::not_found("VM", name, "rebec vm ls"))
}

/// The VM here, or the host to ask.
pub fn local_or_holder(agent: &Agent, name: &str) -> Result<Result<Arc<LocalVm>, Key>, ApiError> {
    let found = find(agent, name)?;
    let never = || ApiError::new(ErrorCode::Conflict, format!("VM {name} has not been started yet; `rebec vm start {name}`"));
    let holder = found.holder.ok_or_else(never)?;
    if holder != agent.key() {
        return Ok(Err(holder));
    }
    agent.local_vm(&found.id).map(Ok).ok_or_else(never)
}

/// `POST /v1/vms`
pub async fn create(State(agent): State<Arc<Agent>>, Json(new): Json<NewVm>) -> Result<Response, Failure> {
    let (id, chosen) = create::record(&agent, &new).await?;
    let what = format!("run VM {} on host {} ({})", new.name, chosen.name, chosen.reason);
    Ok(jobs::begin(&agent, what, async move |agent, reporter| {
        let outcome = create::start_at(&agent, id, Order::FIRST, &chosen, &reporter).await;
        // A VM that never ran leaves nothing behind.
        if outcome.is_err() && agent.book(|book| view::seen(book, id).is_none()) == Some(true) {
            agent.publish(Kind::Vm, id, None)?;
        }
        outcome.and_then(|()| info(&agent, &new.name))
    }))
}

/// `POST /v1/vms/{name}/start`
pub async fn start(State(agent): State<Arc<Agent>>, Path(name): Path<String>, request: Request<Body>) -> Result<Response, Failure> {
    let found = find(&agent, &name)?;
    match found.holder {
        Some(holder) if holder != agent.key() && is_dead(&agent, &holder) => {
            if found.home != agent.key() {
                return Ok(forward::to(&agent, &found.home, request).await?.into_response());
            }
            start_elsewhere(&agent, found.id, name)
        }
        Some(holder) if holder != agent.key() => Ok(forward::to(&agent, &holder, request).await?.into_response()),
        _ => Ok(jobs::begin(&agent, format!("start VM {name}"), async move |agent, reporter| {
            start::start(&agent, found.id, Order::FIRST, &reporter).await?;
            info(&agent, &name)
        })),
    }
}

fn is_dead(agent: &Agent, host: &Key) -> bool {
    agent.book(|book| was_declared_dead(book, host)) == Some(true)
}

fn was_declared_dead(book: &Book, host: &Key) -> bool {
    book.membership(host).is_some_and(|(_, member)| member.dead.is_some())
}

/// What a VM had written is lost with its host: it starts from its image, at the epoch after the one that host held.
fn start_elsewhere(agent: &Arc<Agent>, id: Id, name: String) -> Result<Response, Failure> {
    let (_, body) = start::desired(agent, id)?;
    if let Some(keeper) = body.keeper {
        return Ok(start_by_keeper(agent, id, name, keeper));
    }
    let epoch = agent.pool(|book| view::seen(book, id).map_or(1, |seen| seen.body.epoch.saturating_add(1)))?;
    let chosen = create::place(agent, &body, None, None, None)?;
    let what = format!("start VM {name} from its image on host {}: its disk is lost with the host that was declared dead", chosen.name);
    Ok(jobs::begin(agent, what, async move |agent, reporter| {
        create::start_at(&agent, id, Order { epoch, reason: None }, &chosen, &reporter).await?;
        info(&agent, &name)
    }))
}

/// Who may run it is for its keeper to say, which starts it elsewhere by itself unless it was stopped.
fn start_by_keeper(agent: &Arc<Agent>, id: Id, name: String, keeper: Key) -> Response {
    let what = format!("have VM {name} started by its keeper, host {}", agent.name_of(&keeper));
    jobs::begin(agent, what, async move |agent, _| {
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
            return info(&agent, &name);
        }
        let message =
            format!("VM {name}: not started within {} s; its keeper goes on trying, see `rebec vm show {name}`", START_TIME.as_secs());
        Err(ApiError::new(ErrorCode::Failed, message))
    })
}

/// `POST /v1/vms/{name}/stop`
pub async fn stop(State(agent): State<Arc<Agent>>, Path(name): Path<String>, request: Request<Body>) -> Result<Response, Failure> {
    let vm = match local_or_holder(&agent, &name)? {
        Ok(vm) => vm,
        Err(holder) => return Ok(forward::to(&agent, &holder, request).await?.into_response()),
    };
    let Json(StopVm { timeout_s }) = Json::<StopVm>::from_request(request, &()).await?;
    if timeout_s > StopVm::TIMEOUT_S_MAX {
        let message = format!("a timeout of {timeout_s} s: expected at most {} s", StopVm::TIMEOUT_S_MAX);
        return Err(ApiError::new(ErrorCode::BadRequest, message).into());
    }
    let patience = Duration::from_secs(timeout_s.into());
    Ok(jobs::begin(&agent, format!("stop VM {name}"), async move |agent, reporter| {
        stop::stop(&agent, &vm, patience, Some(&reporter)).await?;
        info(&agent, &name)
    }))
}

/// `DELETE /v1/vms/{name}`: at its home, which has its holder remove what is there.
pub async fn remove(State(agent): State<Arc<Agent>>, Path(name): Path<String>, request: Request<Body>) -> Result<Response, Failure> {
    let found = find(&agent, &name)?;
    if found.home != agent.key() {
        return Ok(forward::to(&agent, &found.home, request).await?.into_response());
    }
    match found.holder {
        Some(holder) if holder != agent.key() => {
            let peer = agent.peer(&holder);
            let peer = peer.ok_or_else(|| ApiError::new(ErrorCode::Unreachable, format!("VM {name}: its host is not known here")))?;
            agent.mesh.ask::<_, ()>(&peer, "/internal/removals", &internal::Removal { vm: found.id }).await?;
        }
        Some(_) => remove_here(&agent, found.id)?,
        None => {}
    }
    agent.publish(Kind::Vm, found.id, None)?;
    Ok(StatusCode::OK.into_response())
}

/// Removes a stopped VM from this host.
pub fn remove_here(agent: &Arc<Agent>, id: Id) -> Result<(), ApiError> {
    let Some(vm) = agent.local_vm(&id) else { return Ok(()) };
    if vm.want() != Want::Stopped || vm.seen().pid != 0 {
        let name = vm.name();
        return Err(ApiError::new(ErrorCode::Conflict, format!("VM {name} runs; `rebec vm stop {name}` first")));
    }
    watch::remove(agent, &vm);
    Ok(())
}

/// `POST /v1/vms/{name}/move`
pub async fn depart(State(agent): State<Arc<Agent>>, Path(name): Path<String>, request: Request<Body>) -> Result<Response, Failure> {
    let vm = match local_or_holder(&agent, &name)? {
        Ok(vm) => vm,
        Err(holder) => return Ok(forward::to(&agent, &holder, request).await?.into_response()),
    };
    let Json(wish) = Json::<MoveVm>::from_request(request, &()).await?;
    if vm.want() != Want::Running {
        return Err(ApiError::new(ErrorCode::Conflict, format!("VM {name} does not run; only a running VM is moved")).into());
    }
    let kept = vm.kept();
    let chosen = create::place(&agent, &kept.body, wish.host.as_deref(), wish.domain.as_deref(), Some(&kept))?;
    let peer = agent.peer(&chosen.key).ok_or_else(|| ApiError::not_found("host", &chosen.name, "rebec host ls"))?;
    let what = format!("move VM {name} to host {} ({})", chosen.name, chosen.reason);
    Ok(jobs::begin(&agent, what, async move |agent, reporter| depart::depart(&agent, &vm, &peer, &wish, &reporter).await))
}
