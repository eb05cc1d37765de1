//! `rebec-vmm run`: boots a VM from files and runs it until it ends or has moved away.

use std::{
    process::ExitCode,
    sync::{Arc, mpsc::sync_channel},
};

use anyhow::{Context, Result, bail};
use rebec_boot::{Content, KernelImage};
use rebec_migrate::ledger::{self, Decision, MoveId, Record, Right, VmId};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::{
    cli::RunOptions,
    event::EVENTS_MAX,
    held::Held,
    lease::Lease,
    ledger::Ledger,
    open::{self, BootFiles},
    owner::Owner,
    services::Services,
    unsettled::Unsettled,
    vm::{self, Host, Shape, Vm},
};

/// How the machine starts, and starts again after a guest reset.
pub struct BootPlan {
    files: BootFiles,
    cmdline: String,
}

impl BootPlan {
    /// A plan from open files.
    pub fn new(files: BootFiles, cmdline: &str) -> Self {
        Self { files, cmdline: cmdline.to_owned() }
    }

    /// Loads the kernel into a machine that has not run. The kernel's image is dropped afterwards: it is as large as the
    /// rest of this process many times over.
    pub fn boot(&self, vm: &Vm) -> Result<()> {
        let BootFiles { kernel, initramfs } = &self.files;
        let image = KernelImage::from_file(&kernel.file).with_context(|| format!("kernel {}", kernel.path.display()))?;
        let open = |named: &open::Named| Content::from_file(&named.file).with_context(|| format!("initramfs {}", named.path.display()));
        let initramfs = initramfs.as_ref().map(open).transpose()?;
        vm.boot(&image, initramfs.as_ref(), &self.cmdline).with_context(|| format!("boot {}", kernel.path.display()))
    }
}

/// A machine that may be started from its kernel and disks, and what it is started from.
pub struct ColdStart {
    shape: Shape,
    host: Host,
    plan: BootPlan,
}

impl ColdStart {
    /// Builds the machine and lets it run, as the VM that `record` is about, at this epoch.
    pub fn start(self, vm: VmId, epoch: u64, ledger: Ledger) -> Result<(Held, BootPlan)> {
        let machine = vm::build(self.shape, &self.host)?;
        self.plan.boot(&machine)?;
        machine.resume()?;
        Ok((Held::new(machine, self.host, vm, epoch, ledger), self.plan))
    }
}

/// Runs the command.
pub fn run(options: &RunOptions) -> Result<ExitCode> {
    let (opened, files) = open::for_run(options)?;
    let stop = opened.seal()?;
    let (sender, events) = sync_channel(EVENTS_MAX);
    let mut ledger = Ledger::open(opened.ledger)?;
    let word = last_word(&mut ledger)?;
    let disks = opened.disks.iter().map(|disk| disk.parse().map(Arc::new)).collect::<Result<_>>()?;
    let bases = opened.disks.iter().map(|file| file.base.clone()).collect();
    let services = Arc::new(Services::start(opened.serial, opened.control, stop, &sender)?);
    let lans = opened.lans;
    let lease = Lease::new(options.shared.lease);
    let host = Host {
        kvm: opened.kvm,
        disks,
        bases,
        lans: lans.clone(),
        services: services.clone(),
        lease: lease.clone(),
        events: sender.clone(),
    };
    let plan = BootPlan::new(files, &options.boot.cmdline);
    let cold = ColdStart { shape: Shape { memory: options.memory, vcpus: options.vcpus }, host, plan };
    let owner = match word {
        Word::Mine(record) => {
            let (held, plan) = cold.start(record.vm, record.epoch, ledger)?;
            Owner::of_running(held, lans, services, plan, sender)
        }
        Word::Granted(record) => Owner::of_unsettled(Unsettled::new(record, ledger, cold), lans, services, sender),
    };
    owner.under(lease).serve(&events)
}

/// What the ledger says about starting the VM here.
enum Word {
    Mine(Record),
    /// It was granted away and the other side has not been heard since.
    Granted(Record),
}

/// Makes sure that this process may run the VM, durably if there is a ledger file.
fn last_word(ledger: &mut Ledger) -> Result<Word> {
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
