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
    ledger::Ledger,
    open::{self, BootFiles},
    owner::Owner,
    services::Services,
    vm::{self, Host, Shape, Vm},
};

/// How the machine starts, and starts again after a guest reset.
pub struct BootPlan {
    files: BootFiles,
    cmdline: String,
}

impl BootPlan {
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

/// Runs the command.
pub fn run(options: &RunOptions) -> Result<ExitCode> {
    let (opened, files) = open::for_run(options)?;
    let stop = opened.seal()?;
    let (sender, events) = sync_channel(EVENTS_MAX);
    let mut ledger = Ledger::open(opened.ledger)?;
    let record = take_hold(&mut ledger)?;
    let disks = opened.disks.iter().map(|disk| disk.parse().map(Arc::new)).collect::<Result<_>>()?;
    let services = Arc::new(Services::start(opened.serial, opened.control, stop, &sender)?);
    let lans = opened.lans;
    let host = Host { kvm: opened.kvm, disks, lans: lans.clone(), services: services.clone(), events: sender.clone() };
    let vm = vm::build(Shape { memory: options.memory, vcpus: options.vcpus }, &host)?;
    let plan = BootPlan { files, cmdline: options.cmdline.clone() };
    plan.boot(&vm)?;
    vm.resume()?;
    let held = Held::new(vm, host, record.vm, record.epoch, ledger);
    Owner::of_running(held, lans, services, Some(plan), sender).serve(&events)
}

/// Makes sure that this process may run the VM, durably if there is a ledger file.
fn take_hold(ledger: &mut Ledger) -> Result<Record> {
    let (decision, reason) = ledger::may_run(ledger.last());
    match (decision, ledger.last()) {
        (Decision::Run { .. }, Some(last)) => Ok(*last),
        (Decision::Nothing, None) => {
            let first = Record { right: Right::Holding, vm: new_vm_id()?, epoch: 1, move_id: MoveId::NONE };
            ledger.write(first).context("ledger: write that the VM is held here")?;
            Ok(first)
        }
        _ => bail!("ledger: {reason}; this VM may not be started here"),
    }
}

fn new_vm_id() -> Result<VmId> {
    let mut id = [0; 16];
    getrandom(&mut id, GetRandomFlags::empty()).context("make the VM's identity")?;
    Ok(VmId(id))
}
