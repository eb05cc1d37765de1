//! The task of a VM: it owns the VMM's process, does what the VM's life asks for, and tells it what comes of that. It decides nothing.

use std::{sync::Arc, time::Duration};

use rebec_book::record::Kind;
use rebec_host::{
    folders,
    life::{Ended, How, Input, Life, Output},
};
use rebec_vmm_api::control::{self, Command, ControlError};
use tokio::task::JoinHandle;

use super::{
    LocalVm, Vms, Want,
    control::Control,
    depart, grants, launch, lease, ledger, look, memory,
    process::{self, Process},
};
use crate::{facts, jobs::Reporter};

/// Between two looks at a VM.
const PERIOD: Duration = Duration::from_secs(2);

/// What the task of a VM has in its hands.
struct Hands {
    vms: Arc<Vms>,
    vm: Arc<LocalVm>,
    watched: Option<Watched>,
    /// Of the job that brings a granted right to the other side, for as long as that takes.
    bringing: Option<Arc<Reporter>>,
}

/// A VMM that is there, and whoever asks it how its VM is.
struct Watched {
    process: Process,
    looks: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.looks.abort();
    }
}

/// Begins the task of a VM, which ends when nothing of it is left; with the VMM that an earlier agent had.
pub fn spawn(vms: &Arc<Vms>, vm: &Arc<LocalVm>, process: Option<Process>) {
    let mut hands = Hands { vms: vms.clone(), vm: vm.clone(), watched: None, bringing: None };
    hands.watched = process.map(|process| hands.watch(process));
    tokio::spawn(hands.live());
}

impl Hands {
    async fn live(mut self) {
        loop {
            while let Some(work) = self.vm.next_work() {
                match work {
                    Output::StartVmm(how) => self.start(how).await,
                    Output::Remove => return remove(&self.vms, &self.vm),
                    work => self.order(work),
                }
            }
            if !self.vm.life(Life::is_granted)
                && let Some(reporter) = self.bringing.take()
            {
                reporter.end(Ok(serde_json::Value::Null));
            }
            tokio::select! {
                code = ended(&mut self.watched) => self.see_end(code),
                () = self.vm.woken() => {}
                () = until(self.vm.life(Life::next_deadline)) => self.vm.tick(),
            }
        }
    }

    fn watch(&self, process: Process) -> Watched {
        let (vms, vm) = (self.vms.clone(), self.vm.clone());
        let looks = tokio::spawn(async move {
            let mut has_come = false;
            loop {
                if let Some(memory) = look::at(&vm).await {
                    memory::seen(&vms, &vm, &memory);
                }
                until_look(&vm, &mut has_come).await;
            }
        });
        Watched { process, looks }
    }

    async fn start(&mut self, how: How) {
        let (vms, vm) = (&self.vms, &self.vm);
        let started = match how {
            How::Boot => launch::boot(vms, vm).await,
            How::Arrive => launch::wait_for(vms, vm).await,
        };
        match started {
            Ok(process) => {
                vm.learn(Input::Started);
                self.watched = Some(self.watch(process));
            }
            Err(error) => {
                log::error!("vm {}: {error:#}", vm.name());
                vm.learn(Input::NotStarted(format!("{error:#}")));
            }
        }
    }

    fn see_end(&mut self, code: Option<i32>) {
        let (vms, vm) = (&self.vms, &self.vm);
        self.watched = None;
        vms.host.limits.remove(&vm.id());
        let how = code.map_or_else(|| "while no agent was its parent".to_owned(), |code| format!("with exit code {code}"));
        let how = format!("its VMM ended {how}: {}", process::last_words(&vm.folder));
        log::info!("vm {}: {how}", vm.name());
        vm.learn(Input::Ended(Ended { code, how, right: read_ledger(vm) }));
    }

    /// What takes its time, or may be asked again meanwhile, is done beside this task.
    fn order(&mut self, work: Output) {
        let (vms, vm) = (self.vms.clone(), self.vm.clone());
        match work {
            Output::PressPower => drop(tokio::spawn(press_power(vm))),
            Output::StopVmm => drop(tokio::spawn(stop_vmm(vm))),
            Output::Kill(pid) => {
                log::warn!("vm {}: its VMM does not end and is killed", vm.name());
                if let Err(error) = process::kill(pid, &vm.folder) {
                    log::error!("vm {}: {error:#}", vm.name());
                }
                vms.host.limits.kill(&vm.id());
            }
            Output::ReadLedger => vm.learn(Input::Ledger(read_ledger(&vm))),
            Output::Bring | Output::GiveBack => {
                let reporter = self.bringing.get_or_insert_with(|| {
                    let to = vm.kept().to.map_or_else(|| "?".to_owned(), |to| vms.knowledge.name_of(&to));
                    Arc::new(vms.jobs.begin_own(format!("bring VM {} to host {to}", vm.name())))
                });
                drop(tokio::spawn(depart::bring(vms, vm, work == Output::GiveBack, reporter.clone())));
            }
            Output::AskKeeper => drop(tokio::spawn(lease::renew(vms, vm))),
            Output::Keep { .. } | Output::Say | Output::StartVmm(_) | Output::Remove => {}
        }
    }
}

async fn ended(watched: &mut Option<Watched>) -> Option<i32> {
    match watched {
        Some(watched) => watched.process.ended().await,
        None => std::future::pending().await,
    }
}

/// Until then, by the clock that lives count in.
async fn until(deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.saturating_sub(facts::boot_time())).await,
        None => std::future::pending().await,
    }
}

fn read_ledger(vm: &LocalVm) -> rebec_host::life::Ledger {
    ledger::last(&vm.folder).map_err(|error| format!("{error:#}"))
}

async fn press_power(vm: Arc<LocalVm>) {
    if let Err(error) = vm.talk(|control| control.tell(Command::PowerButton)).await {
        let why = match error.downcast_ref::<ControlError>() {
            Some(ControlError { code: control::ErrorCode::WrongState, .. }) => "its guest does not listen to its power button".to_owned(),
            _ => format!("{error:#}"),
        };
        vm.learn(Input::NotPressed(why));
    }
}

async fn stop_vmm(vm: Arc<LocalVm>) {
    if let Err(error) = vm.talk(|control| control.tell(Command::Stop)).await {
        log::warn!("vm {}: stop: {error:#}", vm.name());
    }
}

/// Waits for the next look: for a VM that arrives, until its VMM says that it has.
async fn until_look(vm: &LocalVm, has_come: &mut bool) {
    if vm.want() == Want::Arriving && !*has_come {
        match vm.talk(Control::arrival).await {
            Ok(()) => {
                *has_come = true;
                return;
            }
            Err(error) => log::debug!("vm {}: {error:#}", vm.name()),
        }
    }
    tokio::time::sleep(PERIOD).await;
}

/// Nothing of the VM stays here.
fn remove(vms: &Vms, vm: &LocalVm) {
    let id = vm.id();
    log::info!("vm {}: nothing of it stays here", vm.name());
    // One that an agent did not reach is not to run on without its folder.
    vms.host.limits.kill(&id);
    vms.host.limits.remove(&id);
    if let Err(error) = folders::remove(&vm.folder) {
        log::error!("vm {}: remove {}: {error}", vm.name(), vm.folder.display());
    }
    vms.forget(&id);
    let kept = vm.kept();
    let known = vms.knowledge.read(|book| book.get(Kind::SEEN, id, vms.knowledge.key()).is_some());
    if known == Some(true) {
        // What it granted proves where the VM is, until that is said there.
        let gave = kept.grants.iter().any(|grant| grant.by == vms.knowledge.key());
        let last = if gave {
            grants::left(&vms.knowledge, id, kept.epoch, grants::known(&vms.knowledge, id, &kept.grants))
        } else {
            vms.knowledge.publish(Kind::SEEN, id, None)
        };
        if let Err(error) = last {
            log::error!("vm {}: {error}", vm.name());
        }
    }
    vms.knowledge.touch();
}
