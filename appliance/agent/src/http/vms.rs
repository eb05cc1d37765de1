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
    Key,
    authority::{self, Asker, Granted, Role},
    key::Id,
    record::Assigned,
    view,
};

use super::{
    answer::{Answer, Failure, Json},
    forward, jobs, shown,
};
use crate::{
    agent::Agent,
    chance::now_s,
    jobs::{Begun, Reporter},
    orders::{order, plan, record, remove, restart},
    vm::{
        LocalVm, Want, depart,
        start::{self, Order},
        stop,
    },
};

/// `GET /v1/vms`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<VmInfo>> {
    Ok(axum::Json(agent.knowledge.pool(|book| shown::vms(&agent, book))?))
}

/// `GET /v1/vms/{name}`
pub async fn show(State(agent): State<Arc<Agent>>, Extension(granted): Extension<Granted>) -> Answer<VmInfo> {
    Ok(axum::Json(info(&agent, granted.about().ok_or_else(gone)?)?))
}

/// How a VM is.
pub fn info(agent: &Agent, id: Id) -> Result<VmInfo, ApiError> {
    agent.knowledge.pool(|book| view::vm(book, id).map(|vm| shown::vm(agent, book, vm)))?.ok_or_else(gone)
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
    let found = agent.knowledge.pool(|book| {
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
    if found.holder != agent.knowledge.key() {
        return Ok(Err(found.holder));
    }
    let name = found.name;
    let never = || ApiError::new(ErrorCode::Conflict, format!("VM {name} has not been started yet; `rebec vm start {name}`"));
    agent.vms.get(&found.id).map(Ok).ok_or_else(never)
}

/// `POST /v1/vms`
pub async fn create(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    headers: HeaderMap,
    Json(new): Json<NewVm>,
) -> Result<Response, Failure> {
    if new.lans.iter().any(|lan| record::lan_of(lan).is_ok_and(|(_, trunk)| trunk)) {
        may_bridge(&agent, &granted)?;
    }
    let (reporter, again) = match agent.jobs.begin(granted.asker(), jobs::order(&headers)?, format!("run VM {}", new.name))? {
        Begun::Known(job) => return Ok(jobs::accepted(&job)),
        Begun::Taken { reporter, again, .. } => (reporter, again),
    };
    let begun = if again { record::begun(&agent.orders, &new.name) } else { None };
    let recorded = match begun {
        Some(begun) => Ok(begun),
        None => record::record(&agent.orders, &new).await,
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
        order::first(&agent.orders, id, &chosen, &reporter).await?;
        info(&agent, id)
    });
    Ok(jobs::accepted(&job))
}

/// A guest that bridges speaks for stations of its own: who looks after LANs decides that.
fn may_bridge(agent: &Agent, granted: &Granted) -> Result<(), Failure> {
    let Asker::Signer(signer) = granted.asker() else {
        return Err(ApiError::new(ErrorCode::Forbidden, "a trunk is asked for with a signature").into());
    };
    let (own, now) = (agent.knowledge.key(), now_s());
    let refused = agent.knowledge.pool(|book| {
        let may = authority::role_of(Some(book), own, now, &signer) >= Some(Role::Operator);
        (!may).then(|| authority::needs_role(Some(book), own, now, &signer, "let a VM bridge", Role::Operator))
    })?;
    refused.map_or(Ok(()), |why| Err(ApiError::new(ErrorCode::Forbidden, why).into()))
}

/// `POST /v1/vms/{name}/start`: at the host that has it by proof, and after that was declared dead at its home.
pub async fn start(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let found = find(&agent, &granted)?;
    if found.holder != agent.knowledge.key() && !agent.knowledge.is_dead(&found.holder) {
        return Ok(forward::about(&agent, &found.holder, found.id, request).await?.into_response());
    }
    if found.holder != agent.knowledge.key() {
        if found.home != agent.knowledge.key() {
            return Ok(forward::about(&agent, &found.home, found.id, request).await?.into_response());
        }
        return start_elsewhere(&agent, found, jobs::order(request.headers())?);
    }
    let (order, named) = (Order { epoch: found.epoch, reason: None }, jobs::order(request.headers())?);
    Ok(jobs::begin(&agent, granted.asker(), named, format!("start VM {}", found.name), async move |agent, reporter| {
        start::start(&agent.vms, found.id, order, &reporter).await?;
        info(&agent, found.id)
    })?)
}

/// What a VM had written is lost with its host: it starts from its image, where its home assigns it now.
fn start_elsewhere(agent: &Arc<Agent>, found: Whereabouts, order: Option<Id>) -> Result<Response, Failure> {
    let Whereabouts { id, name, .. } = found;
    let (_, body) = agent.knowledge.desired(id)?;
    if let Some(keeper) = body.keeper {
        return Ok(start_by_keeper(agent, id, name, keeper, order)?);
    }
    let chosen = plan::place(&agent.orders, &body, plan::Asked::default(), None)?;
    let epoch = plan::assign(&agent.orders, id, Assigned { host: found.holder, epoch: found.epoch }, chosen.key)?;
    let what = format!("start VM {name} from its image on host {}: its disk is lost with the host that was declared dead", chosen.name);
    Ok(jobs::begin(agent, Asker::Host(agent.knowledge.key()), order, what, async move |agent, reporter| {
        order::start_at(&agent.orders, id, Order { epoch, reason: None }, &chosen, &reporter).await?;
        info(&agent, id)
    })?)
}

/// Who may run it is for its keeper to say, which starts it elsewhere by itself unless it was stopped.
fn start_by_keeper(agent: &Arc<Agent>, id: Id, name: String, keeper: Key, order: Option<Id>) -> Result<Response, ApiError> {
    let what = format!("have VM {name} started by its keeper, host {}", agent.knowledge.name_of(&keeper));
    jobs::begin(agent, Asker::Host(agent.knowledge.key()), order, what, async move |agent, _| {
        restart::by_keeper(&agent.orders, id, &name, keeper).await?;
        info(&agent, id)
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
        stop::stop(&vm, patience, Some(&reporter)).await?;
        info(&agent, vm.id())
    })?)
}

/// `DELETE /v1/vms/{name}`: at its home, which has its holder remove what is there.
pub async fn remove(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let order = jobs::order(request.headers())?;
    if granted.about().is_none() {
        // It has gone, by this order: what an agent that ended left to do is done.
        jobs::finish(&agent, granted.asker(), order, "remove a VM".to_owned(), async |_, _| Ok(())).await?;
        return Ok(StatusCode::OK.into_response());
    }
    let found = find(&agent, &granted)?;
    if found.home != agent.knowledge.key() {
        return Ok(forward::about(&agent, &found.home, found.id, request).await?.into_response());
    }
    let holder = Some(found.holder).filter(|host| *host == agent.knowledge.key() || found.is_known);
    let (id, name, what) = (found.id, found.name.clone(), format!("remove VM {}", found.name));
    let removed =
        async move |agent: Arc<Agent>, reporter: Arc<Reporter>| remove::everywhere(&agent.orders, id, &name, holder, &reporter).await;
    jobs::finish(&agent, granted.asker(), order, what, removed).await?;
    Ok(StatusCode::OK.into_response())
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
    let (chosen, peer) = plan::elsewhere(&agent.orders, &kept, &wish).await?;
    let what = format!("move VM {name} to host {} ({})", chosen.name, chosen.reason);
    let work = async move |agent: Arc<Agent>, reporter: Arc<Reporter>| depart::depart(&agent.vms, &vm, &peer, &wish, &reporter).await;
    Ok(jobs::begin(&agent, granted.asker(), order, what, work)?)
}
