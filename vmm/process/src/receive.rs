//! `rebec-vmm receive`: waits for one VM, takes it in, runs it until it ends or has moved on.

use std::{
    process::ExitCode,
    sync::{Arc, mpsc::sync_channel},
};

use anyhow::{Context, Result, bail, ensure};
use rebec_cpu::Model;
use rebec_devices::Threads;
use rebec_kvm::CpuModel;
use rebec_migrate::{
    VmId,
    ledger::{self, Decision},
    message::Shape,
};
use rebec_vmm_api::MemorySize;

use crate::{
    boot_plan::BootPlan,
    cli::ReceiveOptions,
    event::{self, EVENTS_MAX, Event},
    held::Held,
    lan::Lan,
    later,
    lease::Lease,
    ledger::LedgerFile,
    limits::Limits,
    moving::{Arrived, Incoming},
    open::{self, DiskFile, Opened},
    owner::Owner,
    serial::Console,
    services::Services,
    threads::{ServiceThreads, WorkThreads},
    vm::{self, Host},
};

/// Runs the command.
pub fn run(options: &ReceiveOptions) -> Result<ExitCode> {
    let (opened, doors, given) = open::for_receive(options)?;
    let has_start = given.files.is_some() || !options.shared.disks.is_empty();
    let plan = has_start.then(|| BootPlan::new(given, &options.boot.cmdline));
    let stop = opened.seal()?;
    let (sender, events) = sync_channel(EVENTS_MAX);
    let mut ledger = LedgerFile::open(opened.ledger)?;
    let incoming = Incoming::new(doors.listener, doors.donors, Arc::new(WorkThreads)).remembering(ledger.last().copied());
    let incoming = incoming.speaking(later::moves());
    let (decision, reason) = ledger::may_run(ledger.last());
    let released = match decision {
        Decision::Run { .. } => bail!("ledger: {reason}; start it with `rebec-vmm run`"),
        Decision::Release(record) => Some(record),
        Decision::Nothing | Decision::Wait => None,
    };
    let services = Arc::new(Services::start(opened.serial, opened.control, stop, &sender)?);
    let lease = Lease::new(options.shared.lease);
    let Opened { kvm, disks, lans, .. } = opened;
    let (console, report) = (services.console.clone(), event::machine_report(sender.clone()));
    let bytes = |size: Option<MemorySize>| size.map(MemorySize::bytes);
    let order =
        Order { vm: options.vm, memory_bytes: bytes(options.memory), memory_max_bytes: bytes(options.memory_max), vcpus: options.vcpus };
    let cpu = options.shared.cpu.clone();
    let limits = options.shared.limits();
    let reception = Reception { order, cpu, kvm, disks, lans, limits: limits.clone(), console, lease: lease.clone(), report };
    let owner = Owner::of_arriving(reception.lans.clone(), services, plan, sender.clone());
    let take_in = move || {
        let arrived = match released {
            Some(record) => {
                log::warn!("ledger: {reason}; waiting for its source to connect");
                incoming.settle(record, |record| ledger.write(record)).and_then(|()| bail!("{reason}"))
            }
            None => reception.take_in(incoming, ledger),
        };
        sender.send(Event::Arrived(arrived.map(Box::new))).unwrap_or_default();
    };
    ServiceThreads.spawn("receive", Box::new(take_in)).context("start the thread that receives the VM")?;
    owner.under(lease).limited(limits, options.shared.cgroup.as_deref()).serve(&events)
}

/// What is known beforehand of the VM that comes. Who sends it says the rest, within what this host has for any VM.
struct Order {
    vm: Option<VmId>,
    memory_bytes: Option<u64>,
    /// Where memory was ordered and this was not: it stays as it is.
    memory_max_bytes: Option<u64>,
    vcpus: Option<u8>,
}

impl Order {
    fn check(&self, shape: &Shape) -> Result<()> {
        let Shape { vm, memory_bytes, vcpus, .. } = shape;
        ensure!(self.vm.is_none_or(|ordered| ordered == *vm), "VM {vm} comes, and this side waits for {}", self.vm.unwrap_or(*vm));
        let ordered = self.memory_bytes.unwrap_or(*memory_bytes);
        ensure!(ordered == *memory_bytes, "the VM has {memory_bytes} bytes of memory, this side was told --memory of {ordered} bytes");
        let (ordered, brought) = (self.memory_max_bytes, shape.memory_max_bytes);
        if ordered.is_some() || self.memory_bytes.is_some() {
            let in_words = |max: Option<u64>| max.map_or_else(|| "what it begins with".to_owned(), |max| format!("{max} bytes"));
            let (brought, ordered) = (in_words(brought), in_words(ordered));
            ensure!(brought == ordered, "the VM's memory may become {brought}, this side was told --memory-max of {ordered}");
        }
        let ordered = self.vcpus.unwrap_or(*vcpus);
        ensure!(ordered == *vcpus, "the VM has {vcpus} vCPUs, this side was told --vcpus {ordered}");
        Ok(())
    }
}

/// What this side gives to the machine that comes.
struct Reception {
    order: Order,
    /// What this side gives at most; what the VM is shown it brings along.
    cpu: Model,
    kvm: std::fs::File,
    disks: Vec<DiskFile>,
    lans: Vec<Lan>,
    limits: Limits,
    console: Arc<Console>,
    lease: Lease,
    report: vm::Report,
}

impl Reception {
    fn take_in(self, incoming: Incoming, ledger: LedgerFile) -> Result<Held> {
        let mut ledger = Some(ledger);
        let build = |shape: &Shape| self.build(shape, &mut ledger).map_err(|error| format!("{error:#}"));
        let waiting = |reason: &str| log::warn!("receive: {reason}");
        match incoming.run(build, waiting)? {
            Arrived::Running { machine, epoch } => {
                log::info!("VM {} runs here at epoch {epoch}", machine.id());
                Ok(machine)
            }
            Arrived::Ended { reason } => bail!("receive: the VM did not come: {reason}"),
        }
    }

    /// The machine of this shape, empty and still; or why this side cannot have it.
    fn build(&self, shape: &Shape, ledger: &mut Option<LedgerFile>) -> Result<Held> {
        self.check(shape)?;
        let sized = self.disks.iter().zip(&shape.disks);
        let disks = sized.map(|(file, wanted)| open_disk(file, wanted.bytes)).collect::<Result<_>>()?;
        let kvm = self.kvm.try_clone().context("duplicate the KVM descriptor")?;
        let (console, lease, report) = (self.console.clone(), self.lease.clone(), self.report.clone());
        let bases = self.disks.iter().map(|file| file.base.clone()).collect();
        let host = Host { kvm, disks, lans: self.lans.clone(), limits: self.limits.clone(), console, lease, report };
        let memory = MemorySize::from_bytes(shape.memory_bytes)?;
        let memory_max = shape.memory_max_bytes.map(MemorySize::from_bytes).transpose()?;
        let vm = vm::build(vm::MachineSize { memory, memory_max, vcpus: shape.vcpus }, &self.cpu, &host)?;
        let theirs = CpuModel::from_bytes(&shape.cpu_model)?;
        let missing = theirs.missing_on(vm.machine().cpu_model());
        ensure!(missing.is_empty(), "this host's CPU lacks what the VM may use: {}", missing.join(", "));
        let ledger = ledger.take().context("invariant: one machine is built")?;
        Ok(Held::new(vm, host, bases, shape.vm, shape.epoch, ledger))
    }

    fn check(&self, shape: &Shape) -> Result<()> {
        self.order.check(shape)?;
        let (here, there) = (self.disks.len(), shape.disks.len());
        ensure!(here == there, "the VM has {there} disks, this side was given {here} --disk");
        let (here, there) = (self.lans.len(), shape.nets.len());
        ensure!(here == there, "the VM has {there} NICs, this side was given {here} --net");
        for (file, wanted) in self.disks.iter().zip(&shape.disks) {
            let is = |read_only| if read_only { "read-only" } else { "writable" };
            let (here, there) = (is(file.read_only), is(wanted.read_only));
            ensure!(here == there, "disk {}: {here} here, {there} in the VM", file.name);
        }
        for (lan, wanted) in self.lans.iter().zip(&shape.nets) {
            let (mac, vni) = (lan.mac(), lan.vni());
            let theirs = rebec_vmm_api::MacAddr(wanted.mac);
            ensure!(mac == theirs, "net {mac}: the VM's NIC in this place has mac={theirs}");
            ensure!(vni == wanted.vni, "net {mac}: vni={vni} here, vni={} in the VM", wanted.vni);
        }
        Ok(())
    }
}

fn open_disk(file: &DiskFile, bytes: u64) -> Result<Arc<rebec_devices::disk::Disk>> {
    let disk = file.parse_or_create(bytes)?;
    // It grew where it comes from.
    if !disk.read_only() && disk.size_bytes() < bytes {
        disk.grow(bytes)?;
    }
    let here = disk.size_bytes();
    ensure!(here == bytes, "disk {}: {here} bytes here, {bytes} in the VM", file.name);
    Ok(Arc::new(disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_ordered_comes_and_nothing_else() {
        let (vm, memory_bytes, vcpus) = (VmId([1; 16]), 64 << 20, 2);
        let shape = || Shape { vm, epoch: 1, memory_bytes, vcpus, nets: vec![], disks: vec![], cpu_model: vec![], memory_max_bytes: None };
        let order = Order { vm: Some(vm), memory_bytes: Some(memory_bytes), memory_max_bytes: None, vcpus: Some(vcpus) };
        order.check(&shape()).unwrap();
        let anything = Order { vm: None, memory_bytes: None, memory_max_bytes: None, vcpus: None };
        anything.check(&Shape { memory_bytes: 1 << 40, memory_max_bytes: Some(1 << 40), ..shape() }).unwrap();
        let growing = Order { memory_max_bytes: Some(128 << 20), ..anything };
        growing.check(&Shape { memory_max_bytes: Some(128 << 20), ..shape() }).unwrap();
        let refused = growing.check(&shape()).unwrap_err().to_string();
        assert!(refused.contains("may become what it begins with, this side was told --memory-max of 134217728 bytes"), "{refused}");
        for (shape, names) in [
            (Shape { vm: VmId([2; 16]), ..shape() }, "waits for 0101"),
            (Shape { memory_bytes: 1 << 40, ..shape() }, "--memory of 67108864 bytes"),
            (Shape { vcpus: 16, ..shape() }, "--vcpus 2"),
            (
                Shape { memory_max_bytes: Some(1 << 40), ..shape() },
                "may become 1099511627776 bytes, this side was told --memory-max of what it begins with",
            ),
        ] {
            let refused = order.check(&shape).unwrap_err().to_string();
            assert!(refused.contains(names), "{refused}");
        }
    }
}
