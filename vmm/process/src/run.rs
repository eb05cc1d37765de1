//! `rebec-vmm run`: boots a VM from files and runs it until it ends or has moved away.

use std::{
    process::ExitCode,
    sync::{Arc, mpsc::sync_channel},
};

use anyhow::{Context, Result, bail};
use rebec_migrate::ledger::{self, Decision, MoveId, Record, Right, VmId};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::{
    boot_plan::BootPlan,
    cli::RunOptions,
    event::{self, EVENTS_MAX},
    held::ColdStart,
    lease::Lease,
    ledger::LedgerFile,
    open,
    owner::Owner,
    services::Services,
    unsettled::Unsettled,
    vm::{Host, MachineSize},
};

/// Runs the command.
pub fn run(options: &RunOptions) -> Result<ExitCode> {
    let (opened, given) = open::for_run(options)?;
    let stop = opened.seal()?;
    let (sender, events) = sync_channel(EVENTS_MAX);
    let mut ledger = LedgerFile::open(opened.ledger)?;
    let word = last_word(&mut ledger)?;
    let disks = opened.disks.iter().map(|disk| disk.parse().map(Arc::new)).collect::<Result<_>>()?;
    let bases = opened.disks.iter().map(|file| file.base.clone()).collect();
    let services = Arc::new(Services::start(opened.serial, opened.control, stop, &sender)?);
    let lans = opened.lans;
    let lease = Lease::new(options.shared.lease);
    let (console, report) = (services.console.clone(), event::machine_report(sender.clone()));
    let limits = options.shared.limits();
    let host = Host { kvm: opened.kvm, disks, lans: lans.clone(), limits: limits.clone(), console, lease: lease.clone(), report };
    let plan = BootPlan::new(given, &options.boot.cmdline);
    let cold = ColdStart {
        size: MachineSize { memory: options.memory, memory_max: options.memory_max, vcpus: options.vcpus },
        cpu: options.shared.cpu.clone(),
        host,
        bases,
        plan,
    };
    let owner = match word {
        Word::Mine(record) => {
            let (held, plan) = cold.start(record.vm, record.epoch, ledger)?;
            Owner::of_running(held, lans, services, plan, sender)
        }
        Word::Granted(record) => Owner::of_unsettled(Unsettled::new(record, ledger, cold), lans, services, sender),
    };
    owner.under(lease).limited(limits, options.shared.cgroup.as_deref()).serve(&events)
}

/// What the ledger says about starting the VM here.
enum Word {
    Mine(Record),
    /// It was granted away and the other side has not been heard since.
    Granted(Record),
}

/// Makes sure that this process may run the VM, durably if there is a ledger file.
fn last_word(ledger: &mut LedgerFile) -> Result<Word> {
    let (decision, reason) = ledger::may_run(ledger.last());
    match (decision, ledger.last()) {
        (Decision::Run { .. }, Some(last)) => Ok(Word::Mine(*last)),
        (Decision::Wait, Some(last)) => {
            log::warn!("ledger: {reason}");
            Ok(Word::Granted(*last))
        }
        (Decision::Nothing, None) => {
            let first = Record { right: Right::Holding, vm: new_vm_id()?, epoch: 1, move_id: MoveId::NONE };
            ledger.write(first).context("ledger: write that the VM is held here")?;
            Ok(Word::Mine(first))
        }
        _ => bail!("ledger: {reason}; this VM may not be started here"),
    }
}

fn new_vm_id() -> Result<VmId> {
    let mut id = [0; 16];
    getrandom(&mut id, GetRandomFlags::empty()).context("make the VM's identity")?;
    Ok(VmId(id))
}
