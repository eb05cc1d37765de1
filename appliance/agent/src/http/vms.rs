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
    job::Job,
    vm::{MoveVm, NewVm, VmInfo},
};
use rebec_pool::{Key, key::Id, record::Kind, view};
use rebec_vmm_api::control::Command;

use super::{
    answer::{Answer, Failure, Json},
    forward, internal, shown,
};
use crate::{
    agent::Agent,
    jobs::Reporter,
    vm::{LocalVm, Want, control::Control, create, depart, start, watch},
};

/// How long a VMM may take to end.
const END_TIME: Duration = Duration::from_secs(10);

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
    let (id, body) = create::record(&agent, &new).await?;
    let chosen = create::place(&agent, &body, new.host.as_deref(), new.domain.as_deref(), None);
    let chosen = match chosen {
        Ok(chosen) => chosen,
        Err(error) => {
            agent.publish(Kind::Vm, id, None)?;
            return Err(error.into());
        }
    };
    let what = format!("run VM {} on host {} ({})", new.name, chosen.name, chosen.reason);
    let (job, reporter) = agent.jobs.begin(what.clone());
    let reporter = Arc::new(reporter);
    let (worker, reported) = (agent.clone(), reporter.clone());
    let work = async move {
        let outcome = create::start_at(&worker, id, 1, &chosen, &reported).await;
        // A VM that never ran leaves nothing behind.
        if outcome.is_err() && worker.book(|book| view::seen(book, id).is_none()) == Some(true) {
            worker.publish(Kind::Vm, id, None).map(|_| ())?;
        }
        outcome
    };
    Ok(job_of(&agent, what, new.name, work, reporter, job))
}

/// Runs work as a job whose result is the VM.
fn job_of(
    agent: &Arc<Agent>,
    what: String,
    name: String,
    work: impl Future<Output = Result<(), ApiError>> + Send + 'static,
    reporter: Arc<Reporter>,
    job: Job,
) -> Response {
    let agent = agent.clone();
    tokio::spawn(async move {
        let outcome = work.await.and_then(|()| {
            let info = info(&agent, &name)?;
            serde_json::to_value(info).map_err(|error| ApiError::new(ErrorCode::Failed, format!("{what}: {error}")))
        });
        reporter.end(outcome);
    });
    (StatusCode::ACCEPTED, axum::Json(job)).into_response()
}

/// `POST /v1/vms/{name}/start`
pub async fn start(State(agent): State<Arc<Agent>>, Path(name): Path<String>, request: Request<Body>) -> Result<Response, Failure> {
    let found = find(&agent, &name)?;
    let what = format!("start VM {name}");
    match found.holder {
        Some(holder) if holder != agent.key() && is_dead(&agent, &holder) => {
            if found.home != agent.key() {
                return Ok(forward::to(&agent, &found.home, request).await?.into_response());
            }
            start_elsewhere(&agent, found.id, name)
        }
        Some(holder) if holder != agent.key() => Ok(forward::to(&agent, &holder, request).await?.into_response()),
        _ => {
            let (job, reporter) = agent.jobs.begin(what.clone());
            let reporter = Arc::new(reporter);
            let (worker, reported, id) = (agent.clone(), reporter.clone(), found.id);
            let work = async move { start::start(&worker, id, 1, &reported).await };
            Ok(job_of(&agent, what, name, work, reporter, job))
        }
    }
}

fn is_dead(agent: &Agent, host: &Key) -> bool {
    agent.book(|book| book.membership(host).is_some_and(|(_, member)| member.dead.is_some())) == Some(true)
}

/// What a VM had written is lost with its host: it starts from its image, at the epoch after the one that host held.
fn start_elsewhere(agent: &Arc<Agent>, id: Id, name: String) -> Result<Response, Failure> {
    let (_, body) = start::desired(agent, id)?;
    let epoch = agent.pool(|book| view::seen(book, id).map_or(1, |seen| seen.body.epoch.saturating_add(1)))?;
    let chosen = create::place(agent, &body, None, None, None)?;
    let what = format!("start VM {name} from its image on host {}: its disk is lost with the host that was declared dead", chosen.name);
    let (job, reporter) = agent.jobs.begin(what.clone());
    let reporter = Arc::new(reporter);
    let (worker, reported) = (agent.clone(), reporter.clone());
    let work = async move { create::start_at(&worker, id, epoch, &chosen, &reported).await };
    Ok(job_of(agent, what, name, work, reporter, job))
}

/// `POST /v1/vms/{name}/stop`
pub async fn stop(State(agent): State<Arc<Agent>>, Path(name): Path<String>, request: Request<Body>) -> Result<Response, Failure> {
    let vm = match local_or_holder(&agent, &name)? {
        Ok(vm) => vm,
        Err(holder) => return Ok(forward::to(&agent, &holder, request).await?.into_response()),
    };
    stop_here(&agent, &vm).await?;
    Ok(axum::Json(info(&agent, &name)?).into_response())
}

/// Ends the VMM of a VM that is here.
pub async fn stop_here(agent: &Arc<Agent>, vm: &Arc<LocalVm>) -> Result<(), ApiError> {
    let name = vm.name();
    let busy = || ApiError::new(ErrorCode::Conflict, format!("VM {name} is being started or moved; wait until that is done"));
    let _change = vm.change.try_lock().map_err(|_| busy())?;
    match vm.kept().want {
        Want::Stopped => return Ok(()),
        Want::Arriving | Want::Gone => return Err(busy()),
        Want::Running => {}
    }
    vm.keep(|kept| kept.want = Want::Stopped).map_err(|error| crate::vm::failed(&error))?;
    let socket = vm.control();
    let told = tokio::task::spawn_blocking(move || Control::connect(&socket)?.tell(Command::Stop)).await;
    if let Err(error) = told.map_err(anyhow::Error::from).and_then(|told| told) {
        log::warn!("vm {name}: stop: {error:#}");
    }
    if agent.until(END_TIME, || vm.seen().pid == 0).await {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Failed, format!("VM {name}: its VMM did not end within {} s", END_TIME.as_secs())))
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
    if vm.kept().want != Want::Stopped || vm.seen().pid != 0 {
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
    if vm.kept().want != Want::Running {
        return Err(ApiError::new(ErrorCode::Conflict, format!("VM {name} does not run; only a running VM is moved")).into());
    }
    let chosen = create::place(&agent, &vm.kept().body, wish.host.as_deref(), wish.domain.as_deref(), Some(agent.key()))?;
    let peer = agent.peer(&chosen.key).ok_or_else(|| ApiError::not_found("host", &chosen.name, "rebec host ls"))?;
    let (job, reporter) = agent.jobs.begin(format!("move VM {name} to host {} ({})", chosen.name, chosen.reason));
    let worker = agent.clone();
    tokio::spawn(async move {
        let report = depart::depart(&worker, &vm, &peer, &wish, &reporter).await;
        let value = report.and_then(|report| {
            serde_json::to_value(report).map_err(|error| ApiError::new(ErrorCode::Failed, format!("the report of the move: {error}")))
        });
        reporter.end(value);
    });
    Ok((StatusCode::ACCEPTED, axum::Json(job)).into_response())
}
