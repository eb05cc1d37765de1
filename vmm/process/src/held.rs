//! A VM together with the right to run it: what the owner holds, lends to a move, and gets back. `moving` sees it as a
//! [`MovingMachine`].

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddrV4,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use rebec_bits::BitSet;
use rebec_cpu::Model;
use rebec_devices::disk::Disk;
use rebec_kvm::Ram;
use rebec_migrate::{
    Record, VmId,
    message::{DiskShape, NetShape, Shape},
};
use rebec_vmm_api::{
    MemorySize,
    control::{CpuStatus, Status, VmState},
};
use rebec_vmm_saved::SavedMachine;

use crate::{
    boot_plan::BootPlan,
    lan::{Lan, told},
    later,
    ledger::LedgerFile,
    moving::{BaseDigests, MovingMachine, Populate},
    vm::{self, Host, MachineSize, Vm},
};

/// A VM, what it is built from here, and the durable word on who may run it. One thread has it at a time.
pub struct Held {
    pub vm: Vm,
    host: Host,
    /// Kept digests of what each disk stands on, for a move.
    bases: Vec<Option<Arc<BaseDigests>>>,
    id: VmId,
    epoch: Cell<u64>,
    ledger: RefCell<LedgerFile>,
}

impl Held {
    /// Takes a machine that was built from `host`.
    pub fn new(vm: Vm, host: Host, bases: Vec<Option<Arc<BaseDigests>>>, id: VmId, epoch: u64, ledger: LedgerFile) -> Self {
        Self { vm, host, bases, id, epoch: Cell::new(epoch), ledger: RefCell::new(ledger) }
    }

    pub fn id(&self) -> VmId {
        self.id
    }

    pub fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// How it is, as far as the machine and the right to run it tell.
    pub fn status(&self, state: VmState, lans: &[Lan]) -> Status {
        let size = self.vm.size();
        Status {
            state,
            epoch: self.epoch(),
            vm: self.id().to_string(),
            memory_bytes: size.memory.bytes(),
            vcpus: size.vcpus,
            disk_bytes: self.vm.disks().iter().map(|disk| disk.size_bytes()).collect(),
            nets: told::net_status(lans),
            ledger: self.has_durable_ledger(),
            lease_ms: None,
            limits: None,
            cgroup: None,
            memory: self.vm.memory_status().map(Box::new),
            cpu: Some(CpuStatus { model: self.vm.cpu().to_string(), features: self.vm.machine().cpu_model().features().to_string() }),
        }
    }

    pub fn has_durable_ledger(&self) -> bool {
        self.ledger.borrow().is_durable()
    }

    /// After a guest reset: the same machine, new, booted by the same plan.
    pub fn start_again(&mut self, plan: &BootPlan) -> Result<()> {
        self.vm.pause()?;
        let memory = self.vm.memory_asked();
        self.vm = vm::build(self.vm.size(), &self.vm.cpu(), &self.host)?;
        if let Some(memory) = memory {
            self.vm.ask_memory(memory)?;
        }
        plan.boot(&self.vm)?;
        self.vm.resume()
    }

    /// What the target has to build.
    pub fn move_shape(&self) -> Shape {
        let size = self.vm.size();
        Shape {
            vm: self.id,
            epoch: self.epoch(),
            memory_bytes: size.memory.bytes(),
            vcpus: size.vcpus,
            nets: self.vm.lans().iter().map(|lan| NetShape { mac: lan.mac().0, vni: lan.vni() }).collect(),
            disks: self.vm.disks().iter().zip(&self.bases).map(disk_shape).collect(),
            cpu_model: self.vm.machine().cpu_model().to_bytes(),
            memory_max_bytes: size.memory_max.map(MemorySize::bytes),
        }
    }
}

fn disk_shape((disk, base): (&Arc<Disk>, &Option<Arc<BaseDigests>>)) -> DiskShape {
    DiskShape { bytes: disk.size_bytes(), read_only: disk.read_only(), base: base.as_ref().map(|base| base.name()) }
}

/// A machine that may be started from its kernel and disks, and what it is started from.
pub struct ColdStart {
    pub size: MachineSize,
    pub cpu: Model,
    pub host: Host,
    pub bases: Vec<Option<Arc<BaseDigests>>>,
    pub plan: BootPlan,
}

impl ColdStart {
    /// Builds the machine and lets it run, as the VM that `record` is about, at this epoch.
    pub fn start(self, vm: VmId, epoch: u64, ledger: LedgerFile) -> Result<(Held, BootPlan)> {
        let machine = vm::build(self.size, &self.cpu, &self.host)?;
        self.plan.boot(&machine)?;
        machine.resume()?;
        Ok((Held::new(machine, self.host, self.bases, vm, epoch, ledger), self.plan))
    }
}

impl MovingMachine for Held {
    fn ram(&self) -> &Ram {
        self.vm.ram()
    }

    fn disks(&self) -> &[Arc<Disk>] {
        self.vm.disks()
    }

    fn bases(&self) -> &[Option<Arc<BaseDigests>>] {
        &self.bases
    }

    fn ports(&self) -> Vec<SocketAddrV4> {
        self.vm.lans().iter().map(Lan::local).collect()
    }

    fn dirty_log_start(&self) -> Result<()> {
        Ok(self.vm.machine().dirty_log_start()?)
    }

    fn dirty_log_take(&self, pages: &mut BitSet) -> Result<()> {
        self.vm.machine().dirty_log_take(pages)?;
        self.vm.ram().take_device_dirty(pages);
        self.vm.leave_out_absent(pages);
        Ok(())
    }

    fn dirty_log_stop(&self) -> Result<()> {
        Ok(self.vm.machine().dirty_log_stop()?)
    }

    fn throttle(&self, percent: u8) {
        self.vm.throttle(u32::from(percent));
    }

    fn pause(&self) -> Result<Instant> {
        self.vm.pause()
    }

    fn resume(&self, epoch: u64) -> Result<()> {
        self.epoch.set(epoch);
        self.vm.resume()
    }

    /// There is one version: each part has the form of it. A later program writes the parts of the version that it is asked for.
    fn save(&self, version: u16) -> Result<Vec<u8>> {
        Ok(later::saved(version, self.vm.save()?.to_bytes()))
    }

    fn restore(&self, saved: &[u8]) -> Result<()> {
        self.vm.restore(SavedMachine::from_bytes(&later::understood(saved)).context("read what the source saved")?)
    }

    fn populator(&self) -> Option<Populate> {
        self.vm.populator().map(|populate| Box::new(populate) as _)
    }

    fn write_ledger(&self, record: Record) -> io::Result<()> {
        self.ledger.borrow_mut().write(record)
    }
}
