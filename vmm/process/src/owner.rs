//! The thread that owns the VM: it hears events and decides what the VM does next. Whatever takes time is lent out.
//!
//! ```text
//!                 .-- pause --.                migrate
//!   [running] ----'           '--> [paused]   [running] ------> [moving] --moved--> forward frames, end
//!       ^  ^------ resume ----------'              ^               |
//!       |                                          '---- failed ---'
//!   guest reset: built and booted again       guest power-off, stop, SIGTERM, triple fault: the end
//! ```

use std::{process::ExitCode, sync::mpsc::Receiver};

use anyhow::{Context, Result, bail};
use rebec_devices::power::PowerEvent;
use rebec_migrate::ledger::Record;
use rebec_vmm_api::control::{Answer, Command, ControlError, ErrorCode, NetStatus, ResponseBody, Status, VmState};

use crate::{
    control::ControlRequest,
    event::Event,
    ledger::Ledger,
    run::BootPlan,
    vm::{self, Host, VcpuEvent, Vm},
};

/// Owns the VM.
pub struct Owner {
    vm: Vm,
    host: Host,
    ledger: Ledger,
    held: Record,
    /// Missing when the VM arrived from elsewhere.
    plan: Option<BootPlan>,
    state: VmState,
}

/// What an event leads to.
enum Next {
    Go,
    End(ExitCode),
}

impl Owner {
    /// Takes a VM that runs.
    pub fn new(vm: Vm, host: Host, ledger: Ledger, held: Record, plan: Option<BootPlan>) -> Self {
        Self { vm, host, ledger, held, plan, state: VmState::Running }
    }

    /// Decides until the VM has ended here.
    pub fn serve(mut self, events: &Receiver<Event>) -> Result<ExitCode> {
        let ended = self.decide(events);
        // No request of the guest's is left half done, and what it said last is heard, however it ended.
        let paused = self.vm.pause();
        self.host.services.finish();
        paused.and(ended)
    }

    fn decide(&mut self, events: &Receiver<Event>) -> Result<ExitCode> {
        loop {
            let event = events.recv().context("invariant: the host keeps a sender")?;
            if let Next::End(code) = self.handle(event)? {
                return Ok(code);
            }
        }
    }

    fn handle(&mut self, event: Event) -> Result<Next> {
        match event {
            Event::Control(request) => Ok(self.answer(request)),
            Event::Power(PowerEvent::Off) | Event::Terminate => Ok(Next::End(ExitCode::SUCCESS)),
            Event::Power(PowerEvent::Reset) => self.restart().map(|()| Next::Go),
            Event::Vcpu(VcpuEvent::TripleFault { index }) => {
                bail!("vCPU {index}: triple fault: the guest has no way on; its kernel's last messages are on the serial port")
            }
            Event::Vcpu(VcpuEvent::Failed { index, reason }) => bail!("vCPU {index}: {reason}"),
        }
    }

    fn answer(&mut self, request: ControlRequest) -> Next {
        let ControlRequest { command, reply, .. } = request;
        let (answer, next) = match command {
            Command::Status => (Ok(Answer::Status(self.status())), Next::Go),
            Command::Pause => (self.pause(), Next::Go),
            Command::Resume => (self.resume(), Next::Go),
            Command::Stop => (Ok(Answer::Done), Next::End(ExitCode::SUCCESS)),
            Command::FdbAdd { mac, endpoint } => {
                let added = self.vm.lans().iter().try_for_each(|lan| lan.fdb_add(mac, endpoint));
                (added.map(|()| Answer::Done).map_err(|error| failed(error.to_string())), Next::Go)
            }
            Command::Cancel => (Err(wrong_state("no move is under way")), Next::Go),
            Command::Migrate(_) | Command::Donate => (Err(failed("not here".into())), Next::Go),
        };
        reply.send(answer.map_or_else(ResponseBody::Error, ResponseBody::Ok));
        next
    }

    fn pause(&mut self) -> Result<Answer, ControlError> {
        if self.state != VmState::Running {
            return Err(wrong_state("the VM does not run; see its status"));
        }
        self.vm.pause().map_err(|error| failed(format!("{error:#}")))?;
        self.state = VmState::Paused;
        Ok(Answer::Done)
    }

    fn resume(&mut self) -> Result<Answer, ControlError> {
        if self.state != VmState::Paused {
            return Err(wrong_state("the VM is not paused; see its status"));
        }
        self.vm.resume().map_err(|error| failed(format!("{error:#}")))?;
        self.state = VmState::Running;
        Ok(Answer::Done)
    }

    /// A guest reset: a new machine from the same parts, booted from the same files.
    fn restart(&mut self) -> Result<()> {
        let Some(plan) = &self.plan else {
            bail!("the guest asked for a reset; this process received the VM and holds no kernel: start it with `rebec-vmm run`");
        };
        self.vm.pause()?;
        self.vm = vm::build(self.vm.shape(), &self.host)?;
        plan.boot(&self.vm)?;
        self.vm.resume()?;
        self.state = VmState::Running;
        Ok(())
    }

    fn status(&self) -> Status {
        let shape = self.vm.shape();
        Status {
            state: self.state,
            epoch: self.held.epoch,
            vm: self.held.vm.to_string(),
            memory_bytes: shape.memory.bytes(),
            vcpus: shape.vcpus,
            disk_bytes: self.vm.disks().iter().map(|disk| disk.size_bytes()).collect(),
            nets: self.vm.lans().iter().map(net_status).collect(),
        }
    }
}

fn net_status(lan: &crate::lan::Lan) -> NetStatus {
    let counters = lan.counters();
    NetStatus {
        mac: lan.mac(),
        vni: lan.vni(),
        tx_frames: counters.tx_frames,
        rx_frames: counters.rx_frames,
        dropped: counters.dropped.iter().sum(),
    }
}

fn wrong_state(message: &str) -> ControlError {
    ControlError { code: ErrorCode::WrongState, message: message.into() }
}

fn failed(message: String) -> ControlError {
    ControlError { code: ErrorCode::Failed, message }
}
