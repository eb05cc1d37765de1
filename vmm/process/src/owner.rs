//! The thread that owns the VM: it hears events and decides what the VM does next. What takes time is lent out with the VM.
//!
//! ```text
//! Unsettled: the move of an earlier process is open; `migrate` asks its target --released--> Here    --runs there--> the end
//! Arriving --arrived--> Here(running <-> paused) --migrate--> Moving ---moved----> Gone: forwards frames, then the end
//!    |                   ^  ^                                  |  |
//!    '--refused: the end |  '------------ failed --------------'  '--- Here(waiting) --migrate--> Moving
//!                        '-- guest reset, or triple fault of a guest that resets by one: built and booted again
//! guest power-off, stop, triple fault of any other: the end; so is SIGTERM, once the guest has answered its power button. During a move they call it off first.
//! ```

use std::{
    os::fd::OwnedFd,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{Receiver, SendError, SyncSender},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rebec_devices::power::PowerEvent;
use rebec_migrate::Record;
use rebec_overlay::{FarPort, FdbError};
use rebec_vmm_api::{
    MacAddr, Peer,
    control::{Answer, Capture, Command, ControlError, ErrorCode, MigrateOptions, ResponseBody, Status, VmState},
    dns_name,
    metrics::Family,
    report::Outcome,
};

use crate::{
    boot_plan::BootPlan,
    control::{ControlRequest, Reply},
    departure::{self, Departed, Departure},
    event::Event,
    held::Held,
    lan::{Lan, PeerKeyError, Tap, told},
    lease::Lease,
    lending::Lending,
    limits::Limits,
    meters::{self, Meters},
    moving::{Canceller, Outgoing, Settled},
    services::Services,
    unsettled::{self, Asked, Question, Unsettled},
    vm::{MachineEvent, VcpuEvent},
};

/// Callers that wait for a VM's arrival: not all connections, so that others are heard.
const EXPECTING_MAX: usize = 4;

/// Owns the VM.
pub struct Owner {
    place: Place,
    /// What to say while the VM is lent out or not there yet.
    last: Status,
    /// What was counted of it while it was here.
    counted: Meters,
    lans: Vec<Lan>,
    services: Arc<Services>,
    /// Missing when the VM arrived from elsewhere without a disk, and its user named no kernel for it here.
    plan: Option<BootPlan>,
    lending: Lending,
    lease: Lease,
    limits: Limits,
    cgroup: Option<String>,
    /// Who wants to hear of the VM's arrival.
    expecting: Vec<Reply>,
    events: SyncSender<Event>,
}

/// Where the VM is, as far as this process knows.
enum Place {
    Arriving {
        /// What the guest had asked for before it was saved, or asks for in its first instants here.
        pending: Option<Event>,
    },
    Here(Box<Held>, Stand),
    /// The move's thread has it.
    Moving {
        canceller: Canceller,
        /// What came meanwhile and is decided once the VM is back.
        pending: Option<Event>,
    },
    /// It was granted away before this process began.
    Unsettled(Box<Unsettled>),
    /// Its target is being asked.
    Asking,
    Gone,
}

/// What the VM does here.
enum Stand {
    Running,
    Paused,
    /// Its right to run was granted to the target of a move.
    Waiting(Box<Wait>),
}

/// A move whose target has not said whether it runs the VM.
struct Wait {
    outgoing: Box<Outgoing>,
    /// What the guest asked for last. It is decided should the VM come back; the target has it from the guest's saved state.
    pending: Option<Event>,
}

/// What an event leads to.
enum Next {
    Go,
    End(ExitCode),
}

impl Owner {
    /// Takes a VM that runs.
    pub fn of_running(held: Held, lans: Vec<Lan>, services: Arc<Services>, plan: BootPlan, events: SyncSender<Event>) -> Self {
        let place = Place::Here(Box::new(held), Stand::Running);
        Self { plan: Some(plan), ..Self::of_nothing(place, VmState::Running, lans, services, events) }
    }

    /// Waits for a VM that a thread takes in; it comes as [`Event::Arrived`].
    pub fn of_arriving(lans: Vec<Lan>, services: Arc<Services>, plan: Option<BootPlan>, events: SyncSender<Event>) -> Self {
        Self { plan, ..Self::of_nothing(Place::Arriving { pending: None }, VmState::Incoming, lans, services, events) }
    }

    /// Waits for a user to connect it with the target of a move that an earlier process left open.
    pub fn of_unsettled(unsettled: Box<Unsettled>, lans: Vec<Lan>, services: Arc<Services>, events: SyncSender<Event>) -> Self {
        let Record { vm, epoch, .. } = *unsettled.record();
        let mut owner = Self::of_nothing(Place::Unsettled(unsettled), VmState::Waiting, lans, services, events);
        owner.last = Status { vm: vm.to_string(), epoch, ledger: true, ..owner.last };
        owner
    }

    fn of_nothing(place: Place, state: VmState, lans: Vec<Lan>, services: Arc<Services>, events: SyncSender<Event>) -> Self {
        let (vm, disk_bytes, nets) = (String::new(), vec![], told::net_status(&lans));
        let last = Status {
            state,
            epoch: 0,
            vm,
            memory_bytes: 0,
            vcpus: 0,
            disk_bytes,
            nets,
            ledger: false,
            lease_ms: None,
            cpu: None,
            limits: None,
            cgroup: None,
            memory: None,
        };
        let (lending, lease, expecting) = (Lending::default(), Lease::new(false), vec![]);
        let (limits, cgroup) = (Limits::default(), None);
        let counted = Meters::default();
        Self { place, last, counted, lans, services, plan: None, lending, lease, limits, cgroup, expecting, events }
    }

    /// The VM runs only while this lasts.
    pub fn under(self, lease: Lease) -> Self {
        Self { lease, ..self }
    }

    /// Its devices do no more than this, and its process entered this control group.
    pub fn limited(self, limits: Limits, cgroup: Option<&Path>) -> Self {
        Self { limits, cgroup: cgroup.map(|cgroup| cgroup.display().to_string()), ..self }
    }

    /// Decides until the VM has ended here.
    pub fn serve(mut self, events: &Receiver<Event>) -> Result<ExitCode> {
        let ended = self.decide(events);
        // No request of the guest's is left half done, and what it said last is heard, however it ended.
        let paused = match &self.place {
            Place::Here(held, _) => held.vm.pause().map(drop),
            _ => Ok(()),
        };
        self.expecting.clear();
        self.services.finish();
        paused.and(ended)
    }

    /// How a thread that was lent something says that it is done. The owner is gone only when the process is ending.
    fn hear<T: 'static>(&self, event: fn(T) -> Event) -> impl FnOnce(T) + Send + use<T> {
        let events = self.events.clone();
        move |word| events.send(event(word)).unwrap_or_default()
    }

    fn decide(&mut self, events: &Receiver<Event>) -> Result<ExitCode> {
        loop {
            let event = events.recv().context("invariant: this thread keeps a sender")?;
            if let Next::End(code) = self.handle(event)? {
                return Ok(code);
            }
        }
    }

    fn handle(&mut self, event: Event) -> Result<Next> {
        match event {
            Event::Control(request) => Ok(self.answer(request)),
            Event::Arrived(arrived) => self.arrived(arrived?),
            Event::Departed(departed) => self.departed(*departed),
            Event::Asked(asked) => self.asked(*asked),
            Event::ForwardingEnded => Ok(Next::End(ExitCode::SUCCESS)),
            event => self.end_or_restart(event),
        }
    }

    fn arrived(&mut self, held: Box<Held>) -> Result<Next> {
        let pending = match std::mem::replace(&mut self.place, Place::Here(held, Stand::Running)) {
            Place::Arriving { pending } => pending,
            _ => None,
        };
        let status = self.status();
        self.expecting.drain(..).for_each(|reply| reply.send(ResponseBody::Ok(Answer::Status(status.clone()))));
        pending.map_or(Ok(Next::Go), |event| self.end_or_restart(event))
    }

    /// What the guest or the user asks for that ends this machine. A move is called off first, and it is decided when the VM is back.
    fn end_or_restart(&mut self, event: Event) -> Result<Next> {
        let is_of_guest = matches!(event, Event::Machine(_));
        match &mut self.place {
            Place::Moving { canceller, pending } => {
                canceller.cancel();
                pending.get_or_insert(event);
                return Ok(Next::Go);
            }
            Place::Arriving { pending } if is_of_guest => {
                pending.get_or_insert(event);
                return Ok(Next::Go);
            }
            // Whoever may run the VM decides, and that may be the target: nothing is ended or started here on the guest's behalf.
            Place::Here(_, Stand::Waiting(wait)) if is_of_guest => {
                wait.pending.get_or_insert(event);
                return Ok(Next::Go);
            }
            _ => {}
        }
        match event {
            Event::Machine(MachineEvent::Power(PowerEvent::Reset)) => self.restart().map(|()| Next::Go),
            Event::Machine(MachineEvent::Vcpu(VcpuEvent::TripleFault { .. })) if self.resets_by_triple_fault() => {
                self.restart().map(|()| Next::Go)
            }
            Event::Machine(MachineEvent::Vcpu(VcpuEvent::TripleFault { index, place })) => {
                bail!(
                    "vCPU {index}: triple fault ({place}): the guest has no way on; its kernel's last words are on the serial port. One that resets \
                     this way says so by reboot=t on its kernel's command line"
                )
            }
            Event::Machine(MachineEvent::Vcpu(VcpuEvent::Failed { index, reason })) => bail!("vCPU {index}: {reason}"),
            Event::PowerButton if self.press_power_button().is_ok() => Ok(Next::Go),
            _ => Ok(Next::End(ExitCode::SUCCESS)),
        }
    }

    /// Whether this is how the guest resets its machine, and no crash.
    fn resets_by_triple_fault(&self) -> bool {
        match (&self.plan, &self.place) {
            (Some(plan), Place::Here(held, _)) => plan.resets_by_triple_fault(&held.vm),
            _ => false,
        }
    }

    fn restart(&mut self) -> Result<()> {
        let Some(plan) = &self.plan else {
            bail!(
                "the guest asked for a reset, and `receive` was given neither --kernel nor --disk to start again from: start it with `rebec-vmm run`"
            );
        };
        if let Place::Here(held, stand) = &mut self.place {
            held.start_again(plan)?;
            *stand = Stand::Running;
        }
        Ok(())
    }

    fn departed(&mut self, departed: Departed) -> Result<Next> {
        let Departed { held, outgoing, report, reply } = departed;
        let pending = match std::mem::replace(&mut self.place, Place::Gone) {
            Place::Moving { pending, .. } => pending,
            _ => None,
        };
        let outcome = report.as_ref().map(|report| report.outcome);
        match outcome {
            Ok(Outcome::Moved) => {
                self.last = held.status(VmState::Moved, &self.lans);
                departure::forward(held, &self.lans, outgoing.target_ports(), self.hear(|()| Event::ForwardingEnded))?;
            }
            Ok(Outcome::Waiting) => self.place = Place::Here(held, Stand::waiting(outgoing)),
            // A move that was refused before it began may be a wait that goes on.
            Err(_) if outgoing.is_waiting() => self.place = Place::Here(held, Stand::waiting(outgoing)),
            Ok(Outcome::Failed) | Err(_) => self.place = Place::Here(held, Stand::Running),
        }
        reply.send(match report {
            Ok(report) => ResponseBody::Ok(Answer::Moved(report)),
            Err(error) => ResponseBody::Error(failed(format!("{error:#}"))),
        });
        match (pending, &self.place) {
            (Some(event), Place::Here(..)) => self.end_or_restart(event),
            _ => Ok(Next::Go),
        }
    }

    fn asked(&mut self, asked: Asked) -> Result<Next> {
        let Asked { unsettled, settled, reply } = asked;
        let (body, next) = match settled {
            Ok(Settled::Moved(report)) => {
                self.place = Place::Gone;
                self.last.state = VmState::Moved;
                (ResponseBody::Ok(Answer::Moved(report)), Next::End(ExitCode::SUCCESS))
            }
            Ok(Settled::Mine { epoch, report }) => {
                let (held, plan) = unsettled.start(epoch)?;
                self.plan = Some(plan);
                self.place = Place::Here(Box::new(held), Stand::Running);
                (ResponseBody::Ok(Answer::Moved(report)), Next::Go)
            }
            Ok(Settled::Waiting(report)) => {
                self.place = Place::Unsettled(unsettled);
                (ResponseBody::Ok(Answer::Moved(report)), Next::Go)
            }
            Err(error) => {
                self.place = Place::Unsettled(unsettled);
                (ResponseBody::Error(failed(format!("{error:#}"))), Next::Go)
            }
        };
        reply.send(body);
        Ok(next)
    }

    fn answer(&mut self, request: ControlRequest) -> Next {
        let ControlRequest { command, descriptors, reply } = request;
        let answer = match command {
            Command::Arrival if matches!(self.place, Place::Arriving { .. }) => {
                self.expect(reply);
                return Next::Go;
            }
            Command::Status | Command::Arrival => Ok(Answer::Status(self.status())),
            Command::Pause => self.pause(),
            Command::Resume => self.resume(),
            Command::ResizeDisk { disk, bytes } => self.resize_disk(disk, bytes),
            Command::FdbAdd { net, mac, endpoint, ip, name } => {
                let peer = Peer { mac, endpoint, ip, name: name.as_deref().and_then(dns_name) };
                self.edit_fdb(net, |lan| lan.fdb_add(&peer))
            }
            Command::FdbRemove { net, mac } => self.edit_fdb(net, |lan| lan.fdb_remove(mac)),
            Command::PeerKey { net, endpoint, key, station, trunk, takes_partial } => {
                self.edit_keys(net, |lan| lan.peer_key_add(endpoint, key, FarPort { station, trunk, takes_partial }))
            }
            Command::Near { net, endpoint } => self.edit_port(net, descriptors, |lan, socket| Ok(lan.road_add(endpoint, socket)?)),
            Command::LanRate { net, bits } => self.edit_fdb(Some(net), |lan| {
                lan.limit(bits);
                Ok(())
            }),
            Command::Capture(capture) => self.edit_port(capture.net, descriptors, |lan, socket| {
                let until = Instant::now() + Duration::from_secs(capture.seconds.min(Capture::SECONDS_MAX).into());
                lan.tap(Tap::begin(socket, &capture.name, &capture.filter, capture.bytes_max, until)?)?;
                Ok(())
            }),
            Command::Talk => Ok(Answer::Talk(told::net_talk(&self.lans))),
            Command::Metrics => Ok(Answer::Metrics(self.metrics())),
            Command::PeerKeyRemove { net, endpoint } => self.edit_keys(net, |lan| lan.peer_key_remove(endpoint)),
            Command::Underlay { address } => {
                let told = self.lans.iter().try_for_each(|lan| lan.leave_from(address));
                told.map(|()| Answer::Done).map_err(|error| failed(error.to_string()))
            }
            Command::Limits(limits) => {
                self.limits.change(limits);
                Ok(Answer::Done)
            }
            Command::Memory { bytes } => self.ask_memory(bytes),
            Command::PowerButton => self.press_power_button(),
            Command::Cancel => self.cancel(),
            Command::Lease { until_ms } => self.extend(until_ms),
            Command::Migrate(options) => {
                self.migrate(options, descriptors, reply);
                return Next::Go;
            }
            Command::Donate => {
                self.donate(reply);
                return Next::Go;
            }
            Command::Stop => {
                reply.send(ResponseBody::Ok(Answer::Done));
                return self.end_or_restart(Event::Terminate).unwrap_or(Next::Go);
            }
        };
        reply.send(answer.map_or_else(ResponseBody::Error, ResponseBody::Ok));
        Next::Go
    }

    fn expect(&mut self, reply: Reply) {
        if self.expecting.len() == EXPECTING_MAX {
            // It may be one that has left, and its connection is needed.
            let error = ControlError { code: ErrorCode::Busy, message: "arrival: too many others wait for it".into() };
            self.expecting.remove(0).send(ResponseBody::Error(error));
        }
        self.expecting.push(reply);
    }

    fn edit_fdb(&self, net: Option<MacAddr>, edit: impl FnMut(&Lan) -> Result<(), FdbError>) -> Result<Answer, ControlError> {
        if let Some(net) = net.filter(|net| self.lans.iter().all(|lan| lan.mac() != *net)) {
            return Err(failed(format!("net {net}: this VM has none")));
        }
        let mut lans = self.lans.iter().filter(|lan| net.is_none_or(|net| lan.mac() == net));
        lans.try_for_each(edit).map(|()| Answer::Done).map_err(|error| failed(error.to_string()))
    }

    fn edit_keys(&self, net: MacAddr, edit: impl FnOnce(&Lan) -> Result<(), PeerKeyError>) -> Result<Answer, ControlError> {
        let lan = self.lans.iter().find(|lan| lan.mac() == net).ok_or_else(|| failed(format!("net {net}: this VM has none")))?;
        edit(lan).map(|()| Answer::Done).map_err(|error| failed(format!("net {net}: {error}")))
    }

    /// Gives a port what came with a request.
    fn edit_port(
        &self,
        net: MacAddr,
        descriptors: Vec<OwnedFd>,
        edit: impl FnOnce(&Lan, OwnedFd) -> Result<()>,
    ) -> Result<Answer, ControlError> {
        let lan = self.lans.iter().find(|lan| lan.mac() == net).ok_or_else(|| failed(format!("net {net}: this VM has none")))?;
        let socket = descriptors.into_iter().next().ok_or_else(|| failed(format!("net {net}: no socket came with the request")))?;
        edit(lan, socket).map(|()| Answer::Done).map_err(|error| failed(format!("net {net}: {error:#}")))
    }

    fn pause(&mut self) -> Result<Answer, ControlError> {
        match &mut self.place {
            Place::Here(held, stand @ Stand::Running) => {
                held.vm.pause().map_err(|error| failed(format!("{error:#}")))?;
                *stand = Stand::Paused;
                Ok(Answer::Done)
            }
            _ => Err(self.wrong_state("pause", "it does not run")),
        }
    }

    fn resume(&mut self) -> Result<Answer, ControlError> {
        match &mut self.place {
            Place::Here(held, stand @ Stand::Paused) => {
                held.vm.resume().map_err(|error| failed(format!("{error:#}")))?;
                *stand = Stand::Running;
                Ok(Answer::Done)
            }
            _ => Err(self.wrong_state("resume", "it was not paused by request")),
        }
    }

    fn resize_disk(&self, disk: u8, bytes: u64) -> Result<Answer, ControlError> {
        match &self.place {
            Place::Here(held, Stand::Running | Stand::Paused) => {
                held.vm.grow_disk(disk.into(), bytes).map(|()| Answer::Done).map_err(|error| failed(format!("resize-disk: {error:#}")))
            }
            _ => Err(self.wrong_state("resize-disk", "a disk grows while its VM is here and does not move")),
        }
    }

    fn ask_memory(&self, bytes: u64) -> Result<Answer, ControlError> {
        match &self.place {
            Place::Here(held, Stand::Running | Stand::Paused) => {
                held.vm.ask_memory(bytes).map(|()| Answer::Done).map_err(|error| failed(format!("memory: {error:#}")))
            }
            _ => Err(self.wrong_state("memory", "it changes while its VM is here and does not move")),
        }
    }

    fn press_power_button(&self) -> Result<Answer, ControlError> {
        match &self.place {
            Place::Here(held, Stand::Running) if held.vm.press_power_button() => Ok(Answer::Done),
            Place::Here(_, Stand::Running) => Err(self.wrong_state("power-button", "its guest does not listen to its power button")),
            _ => Err(self.wrong_state("power-button", "it does not run")),
        }
    }

    fn extend(&self, until_ms: u64) -> Result<Answer, ControlError> {
        self.lease.extend(until_ms).map(|()| Answer::Done).map_err(|why| self.wrong_state("lease", &why))
    }

    fn cancel(&self) -> Result<Answer, ControlError> {
        match &self.place {
            Place::Moving { canceller, .. } => {
                canceller.cancel();
                Ok(Answer::Done)
            }
            _ => Err(self.wrong_state("cancel", "no move is under way")),
        }
    }

    /// Lends the VM to a move's thread; the answer comes when that is over.
    fn migrate(&mut self, options: MigrateOptions, connections: Vec<OwnedFd>, reply: Reply) {
        if matches!(self.place, Place::Unsettled(_)) {
            return self.ask(connections, reply);
        }
        let is_free = matches!(self.place, Place::Here(_, Stand::Running | Stand::Waiting(_)));
        if !is_free {
            let code = if matches!(self.place, Place::Moving { .. }) { ErrorCode::Busy } else { ErrorCode::WrongState };
            let error = ControlError { code, ..self.wrong_state("migrate", "only a running VM moves") };
            return reply.send(ResponseBody::Error(error));
        }
        match self.prepare_move(options) {
            Ok((thread, outgoing)) => self.lend(&thread, outgoing, connections, reply),
            Err(error) => reply.send(ResponseBody::Error(failed(format!("migrate: {error:#}")))),
        }
    }

    /// The thread that will move it, and a new move unless one is waiting to go on.
    fn prepare_move(&self, options: MigrateOptions) -> Result<(SyncSender<Departure>, Option<Box<Outgoing>>)> {
        let outgoing = match &self.place {
            Place::Here(held, Stand::Running) => Some(departure::outgoing(held, options)?),
            _ => None,
        };
        Ok((departure::thread(self.hear(Event::Departed))?, outgoing))
    }

    fn lend(&mut self, thread: &SyncSender<Departure>, new: Option<Box<Outgoing>>, connections: Vec<OwnedFd>, reply: Reply) {
        (self.last, self.counted) = (self.status(), self.meters());
        let (held, outgoing, pending) = match (std::mem::replace(&mut self.place, Place::Gone), new) {
            (Place::Here(held, Stand::Waiting(wait)), _) => (held, wait.outgoing, wait.pending),
            (Place::Here(held, _), Some(outgoing)) => (held, outgoing, None),
            (place, _) => {
                self.place = place;
                return;
            }
        };
        let canceller = outgoing.canceller();
        match thread.send(Departure { held, outgoing, connections, reply }) {
            Ok(()) => self.place = Place::Moving { canceller, pending },
            // Its thread waits for nothing else, so it is there; should it not be, the VM stays.
            Err(SendError(Departure { held, .. })) => self.place = Place::Here(held, Stand::Running),
        }
    }

    /// Asks the target of a move that an earlier process left open.
    fn ask(&mut self, connections: Vec<OwnedFd>, reply: Reply) {
        let thread = match unsettled::thread(self.hear(Event::Asked)) {
            Ok(thread) => thread,
            Err(error) => return reply.send(ResponseBody::Error(failed(format!("migrate: {error:#}")))),
        };
        if let Place::Unsettled(unsettled) = std::mem::replace(&mut self.place, Place::Asking)
            && let Err(SendError(Question { unsettled, .. })) = thread.send(Question { unsettled, connections, reply })
        {
            self.place = Place::Unsettled(unsettled);
        }
    }

    fn donate(&self, reply: Reply) {
        match &self.place {
            Place::Here(held, _) => self.lending.start(held.vm.ram().clone(), reply),
            _ => reply.send(ResponseBody::Error(self.wrong_state("donate", "only a VM that stays here lends its content"))),
        }
    }

    fn meters(&self) -> Meters {
        match &self.place {
            Place::Here(held, _) => held.vm.meters(),
            _ => self.counted.clone(),
        }
    }

    fn metrics(&self) -> Vec<Family> {
        meters::families(&self.status(), &self.meters(), &self.lans)
    }

    fn status(&self) -> Status {
        let status = match &self.place {
            Place::Here(held, stand) => held.status(stand.state(), &self.lans),
            Place::Arriving { .. } | Place::Gone | Place::Unsettled(_) | Place::Asking => {
                Status { nets: told::net_status(&self.lans), ..self.last.clone() }
            }
            Place::Moving { .. } => Status { state: VmState::Moving, nets: told::net_status(&self.lans), ..self.last.clone() },
        };
        Status { lease_ms: self.lease.left_ms(), limits: self.limits.shown(), cgroup: self.cgroup.clone(), ..status }
    }

    fn wrong_state(&self, what: &str, why: &str) -> ControlError {
        let message = format!("{what}: {why}; see `ctl status`");
        ControlError { code: ErrorCode::WrongState, message }
    }
}

impl Stand {
    fn waiting(outgoing: Box<Outgoing>) -> Self {
        Self::Waiting(Box::new(Wait { outgoing, pending: None }))
    }

    fn state(&self) -> VmState {
        match self {
            Self::Running => VmState::Running,
            Self::Paused => VmState::Paused,
            Self::Waiting(_) => VmState::Waiting,
        }
    }
}

fn failed(message: String) -> ControlError {
    ControlError { code: ErrorCode::Failed, message }
}
