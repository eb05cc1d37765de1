//! A VM arrives from another host: its parts are gathered, an empty layer made, a VMM started that waits; then each stream of
//! the move is joined to it. Whether it runs here is decided by the two VMMs and their ledgers alone.

use std::{
    os::unix::net::UnixStream,
    sync::Arc,
    time::{Duration, Instant},
};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Signed,
    authority::{Granted, Question},
    key::Id,
    record::{SeenState, VmPrivate},
};
use rebec_migrate::ledger::Right;
use rebec_pool::lease::Stance;
use rebec_vmm_api::control::Command;
use serde::{Deserialize, Serialize};

use super::{
    Kept, LocalVm, Want,
    control::Control,
    failed, launch, lease, ledger,
    process::{Beginning, Process},
    sockets, start, watch,
};
use crate::{
    agent::{Agent, lock},
    facts,
    jobs::Reporter,
};

/// How long a VM that comes back waits for its old VMM, which forwards late frames for a few seconds.
const LEFT_TIME: Duration = Duration::from_secs(30);
/// VMs of this host that are asked for content.
const DONORS_MAX: usize = 4;
/// An offer of which nothing comes for so long is void: its room is others'.
const OFFER_TIME: Duration = Duration::from_secs(15);
/// Between two looks whether it has come to that.
const OFFER_LOOK: Duration = Duration::from_secs(3);

/// `POST /internal/arrivals`: a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Offer {
    /// The VM.
    pub vm: Id,
    /// Its ownership counter at the host that sends it.
    pub epoch: u64,
    /// Records it needs here.
    pub records: Vec<Signed>,
    /// What others are not told of it.
    #[serde(with = "rebec_book::record::as_text")]
    pub private: VmPrivate,
    /// The order's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Id>,
}

/// How far a VM that arrives has come, as far as this agent sees.
#[derive(Debug, Default)]
pub struct Arrival {
    /// Streams that are open.
    streams: u32,
    /// When it was offered, or the last stream ended.
    silent_since: Option<Instant>,
}

impl Arrival {
    fn offered(&mut self) {
        self.silent_since = Some(Instant::now());
    }

    /// Whether who offered it has sent nothing for too long.
    pub fn is_stale(&self) -> bool {
        self.streams == 0 && self.silent_since.is_some_and(|since| since.elapsed() > OFFER_TIME)
    }
}

/// Makes ready for a VM whose holder sends it, as the question said that was granted.
pub async fn prepare(agent: &Arc<Agent>, granted: Granted, reporter: &Reporter) -> Result<(), ApiError> {
    let (Some(from), Question::Arrive(id, epoch)) = (granted.host(), *granted.question()) else {
        return Err(ApiError::new(ErrorCode::Forbidden, "no arrival was granted"));
    };
    let (home, body) = start::desired(agent, id)?;
    start::require_known(agent, &body)?;
    let (name, epoch) = (body.name.clone(), epoch.saturating_add(1));
    start::gather(agent, &body.image, Some(from), reporter).await?;
    let gone = || agent.local_vm(&id).is_none_or(|vm| vm.want() != Want::Gone);
    if !gone() {
        reporter.progress("waiting until what it left here has gone", 0, 0);
        agent.until(LEFT_TIME, gone).await;
    }
    let kept = Kept { from: Some(from), epoch, ..Kept::new(id, home, body.clone(), start::private(agent, id)?, Want::Arriving) };
    let leased_until = lease::require(agent, &kept, Stance::Arrives).await?;
    let _admission = agent.admission.lock().await;
    if let Some(vm) = agent.local_vm(&id) {
        return match vm.want() {
            // An earlier attempt: its VMM still waits and takes the next.
            Want::Arriving => {
                vm.keep(|kept| (kept.from, kept.epoch) = (Some(from), epoch)).map_err(|error| failed(&error))?;
                lock(&vm.arrival).offered();
                vm.leased_until(leased_until);
                lease::tell(&vm).await;
                Ok(())
            }
            Want::Running | Want::Stopped | Want::Gone => {
                Err(ApiError::new(ErrorCode::Conflict, format!("host {} still has VM {name}; try again in a moment", agent.own_name())))
            }
        };
    }
    start::require_room(agent, &body)?;
    let vm = start::place_here(agent, kept)?;
    lock(&vm.arrival).offered();
    vm.leased_until(leased_until);
    match wait_for(agent, &vm).await {
        Ok(process) => {
            watch::spawn(agent, &vm, process);
            tokio::spawn(expire(agent.clone(), vm));
            Ok(())
        }
        Err(error) => {
            watch::remove(agent, &vm);
            Err(failed(&error))
        }
    }
}

/// Ends the wait for a VM that was offered and does not come. One that is prepared has a right to hear what became of it, and is kept.
async fn expire(agent: Arc<Agent>, vm: Arc<LocalVm>) {
    while vm.want() == Want::Arriving {
        tokio::time::sleep(OFFER_LOOK).await;
        // Whoever offers it anew meanwhile either is heard before, or waits until this one has gone.
        let _admission = agent.admission.lock().await;
        let is_prepared = !matches!(ledger::last(&vm.folder), Ok(None | Some(Right::Released)));
        if vm.want() != Want::Arriving || is_prepared || !lock(&vm.arrival).is_stale() {
            continue;
        }
        log::warn!("vm {}: it was offered and does not come: its room is given back", vm.name());
        let ended = match vm.keep(|kept| kept.want = Want::Gone) {
            Ok(()) => vm.talk(|control| control.tell(Command::Stop)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            log::warn!("vm {}: {error:#}", vm.name());
        }
    }
}

/// Starts a VMM that waits for the VM; one whose ledger says that it was prepared before tells the source that it is released.
pub async fn wait_for(agent: &Arc<Agent>, vm: &Arc<LocalVm>) -> anyhow::Result<Process> {
    let kept = vm.kept();
    start::make_disks(agent, &vm.folder, &kept)?;
    let ports = sockets::bind(agent.underlay(), kept.body.nics.len())?;
    vm.keep(|kept| {
        kept.endpoints = sockets::endpoints(&ports);
        kept.boot = facts::boot_id();
    })?;
    let how = Beginning::Arrive { at: sockets::listen(&vm.folder)?, donors: donors(agent, &kept).await };
    launch::start(agent, vm, how, ports).await
}

/// Connections to running VMs of the same home host: their content is within the same trust.
async fn donors(agent: &Agent, arriving: &Kept) -> Vec<UnixStream> {
    let others = agent.local_vms().into_iter().filter(|vm| {
        let kept = vm.kept();
        kept.id != arriving.id && kept.home == arriving.home && kept.want == Want::Running && vm.seen().state == SeenState::Running
    });
    let mut donors = vec![];
    for vm in others.take(DONORS_MAX) {
        match vm.turn(Control::donate).await {
            Ok(donor) => donors.push(donor),
            Err(error) => log::info!("vm {}: it lends nothing to {}: {error:#}", vm.name(), arriving.body.name),
        }
    }
    donors
}

/// One stream of a move, as long as it is held.
pub struct Open(Arc<LocalVm>);

impl Drop for Open {
    fn drop(&mut self) {
        let mut arrival = lock(&self.0.arrival);
        arrival.streams -= 1;
        arrival.offered();
    }
}

/// A connection to the VMM that waits, for one stream of the move; for the host that sends the VM, and nobody else.
pub async fn connect(agent: &Agent, id: Id, granted: Granted) -> Result<(tokio::net::UnixStream, Open), ApiError> {
    let vm = agent.local_vm(&id);
    let vm = vm.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("VM {} does not arrive here", id.short())))?;
    if vm.kept().from.is_none() || vm.kept().from != granted.host() {
        return Err(ApiError::new(ErrorCode::Forbidden, format!("VM {} does not arrive here from the asking host", vm.name())));
    }
    let stream = tokio::net::UnixStream::connect(sockets::arrival(&vm.folder)).await;
    let stream = stream.map_err(|error| ApiError::new(ErrorCode::Unreachable, format!("VM {}: its waiting VMM: {error}", vm.name())))?;
    lock(&vm.arrival).streams += 1;
    Ok((stream, Open(vm)))
}
