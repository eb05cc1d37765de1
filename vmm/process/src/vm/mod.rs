//! The machine: RAM, KVM, devices and vCPU threads put together, and the few things that can be done to all of it.
//!
//! ```text
//! build -> boot or restore -> resume <-> pause -> save
//! pause:  vCPUs first, then queues         resume: clock, queues, then vCPUs
//! ```
//! It does not know why it is paused or moved: `owner` and `moving` do.

mod build;
mod bus;
mod memory;
mod vcpus;

use std::{cell::RefCell, ops::Range, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use rebec_bits::BitSet;
use rebec_boot::{BootConfig, Content, KernelImage};
use rebec_cpu::{Model, ModelError};
use rebec_devices::{disk::Disk, net::NetCounters, power::PowerEvent, virtio::PciTransport};
use rebec_kvm::{Machine, Populated, Ram};
use rebec_vmm_api::control::MemoryStatus;
use rebec_vmm_saved::{Part, PartKind, SavedMachine};

use bus::Buses;
use memory::Memory;
use vcpus::VcpuThreads;

pub use build::{Host, MachineSize, build};
pub use vcpus::VcpuEvent;

use crate::{lan::Lan, limits::Limits, meters::Meters};

/// What a machine says of itself, and what its owner decides about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest turned itself off or asked for a reset.
    Power(PowerEvent),
    /// A vCPU cannot go on.
    Vcpu(VcpuEvent),
}

/// Where it says so. Called by vCPU threads: it never waits.
pub type Report = Arc<dyn Fn(MachineEvent) + Send + Sync>;

/// Of the part that says a model's name.
const CPU_MODEL_VERSION: u16 = 1;

/// A machine, whole.
pub struct Vm {
    size: MachineSize,
    cpu: RefCell<Model>,
    ram: Ram,
    machine: Machine,
    vcpus: VcpuThreads,
    buses: Arc<Buses>,
    disks: Vec<Arc<Disk>>,
    lans: Vec<Lan>,
    limits: Limits,
    cards: Vec<Arc<NetCounters>>,
    /// Of a VM whose memory changes while it runs, with the slot of the first of its devices.
    memory: Option<(Memory, usize)>,
}

impl Vm {
    pub fn size(&self) -> MachineSize {
        self.size
    }

    /// What its guest is shown of a processor, here and wherever it goes.
    pub fn cpu(&self) -> Model {
        self.cpu.borrow().clone()
    }

    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    pub fn lans(&self) -> &[Lan] {
        &self.lans
    }

    /// What is counted in it.
    pub fn meters(&self) -> Meters {
        Meters { exits: self.vcpus.exits(), cards: self.cards.clone() }
    }

    /// Puts a kernel into empty RAM and the first vCPU at its entry.
    pub fn boot(&self, kernel: &KernelImage, initramfs: Option<&Content>, cmdline: &str) -> Result<()> {
        let config = BootConfig { kernel, initramfs, cmdline, vcpus: self.size.vcpus };
        let entry = rebec_boot::load(self.ram.memory(), self.ram.boot_bytes(), &config)?;
        Ok(self.vcpus.enter_pvh(entry.rip, entry.start_info)?)
    }

    /// Stops everything; returns the instant at which the last vCPU stood still.
    pub fn pause(&self) -> Result<Instant> {
        let stopped = self.vcpus.park()?;
        self.buses.slots.iter().for_each(PciTransport::pause);
        Ok(stopped)
    }

    /// Presses the guest's power button; false if the guest does not listen to it.
    pub fn press_power_button(&self) -> bool {
        self.buses.power.press_button()
    }

    /// Makes a disk larger, and tells the guest. Partitions and file systems on it are the guest's.
    pub fn grow_disk(&self, index: usize, bytes: u64) -> Result<()> {
        let disk = self.disks.get(index).with_context(|| format!("disk {index}: the VM has {}", self.disks.len()))?;
        disk.grow(bytes)?;
        // Disks have the first slots.
        if let Some(slot) = self.buses.slots.get(index) {
            slot.reconfigure();
        }
        Ok(())
    }

    /// Has the guest take in memory or give some back, so that it has so much; how far it came says [`Vm::memory_status`].
    pub fn ask_memory(&self, bytes: u64) -> Result<()> {
        let (memory, first) = self.memory.as_ref().context("its memory stays as it is: start the VM with --memory-max")?;
        memory.ask(bytes)?;
        self.buses.slots[*first..].iter().for_each(PciTransport::reconfigure);
        Ok(())
    }

    /// What it was asked to have.
    pub fn memory_asked(&self) -> Option<u64> {
        self.memory.as_ref().map(|(memory, _)| memory.asked_bytes())
    }

    /// How its memory stands, if that changes while it runs.
    pub fn memory_status(&self) -> Option<MemoryStatus> {
        self.memory.as_ref().map(|(memory, _)| memory.status())
    }

    /// Takes pages that the guest does not have out of a set: whatever was written there, it is nothing of the VM.
    pub fn leave_out_absent(&self, pages: &mut BitSet) {
        if let Some((memory, _)) = &self.memory {
            memory.absent().into_iter().for_each(|range| pages.remove_range(range));
        }
    }

    /// Holds the vCPUs back for a share of the time, in percent; 0 is full speed.
    pub fn throttle(&self, percent: u32) {
        self.vcpus.throttle(percent);
    }

    /// How memory is mapped ahead for a machine that has not run.
    pub fn populator(&self) -> Option<impl FnMut(Range<u64>) -> Option<Populated> + Send + use<>> {
        self.vcpus.populator()
    }

    /// Lets a machine run (on) that stands still.
    pub fn resume(&self) -> Result<()> {
        self.buses.slots.iter().for_each(PciTransport::resume);
        Ok(self.vcpus.run()?)
    }

    /// Says everything that is not RAM or disk. The machine must stand still.
    pub fn save(&self) -> Result<SavedMachine> {
        let mut saved = SavedMachine::default();
        self.vcpus.save(&mut saved)?;
        self.machine.save(&mut saved).context("save the machine")?;
        saved.push(self.buses.serial.save());
        saved.push(self.buses.power.save());
        saved.push(self.limits.save());
        saved.push(Part::encode(PartKind::CpuModel, 0, CPU_MODEL_VERSION, &self.cpu().to_string()));
        for (slot, device) in (0..).zip(&self.buses.slots) {
            saved.push(device.save(slot));
        }
        Ok(saved)
    }

    /// Takes what [`Vm::save`] said, into a machine like it that has not run. RAM and disks may still be arriving.
    ///
    /// The order is KVM's, after what memory there is: the clock, by which the vCPUs set their counters; the vCPUs; the controllers, which at once deliver to
    /// them what waits; then devices, which raise again what may have been on its way.
    pub fn restore(&self, mut saved: SavedMachine) -> Result<()> {
        // What memory the guest has: vCPUs, rings and interrupts may lie there.
        if let Some((_, first)) = self.memory {
            self.restore_slots(&mut saved, first..self.buses.slots.len())?;
        }
        self.machine.restore_clock(&mut saved).context("restore the clock")?;
        let vcpus = (0..u16::from(self.size.vcpus)).map(|index| saved.take(PartKind::Vcpu, index)).collect::<Result<_, _>>()?;
        self.vcpus.restore(vcpus)?;
        self.machine.restore_chips(&mut saved).context("restore the interrupt controllers")?;
        self.buses.serial.restore(&saved.take(PartKind::Serial, 0)?)?;
        let asked = self.buses.power.restore(&saved.take(PartKind::Power, 0)?)?;
        self.restore_slots(&mut saved, 0..self.memory.as_ref().map_or(self.buses.slots.len(), |(_, first)| *first))?;
        if let Some(part) = saved.take_if_there(PartKind::Limits, 0) {
            self.limits.restore(&part)?;
        }
        if let Some(part) = saved.take_if_there(PartKind::CpuModel, 0) {
            let cpu: Model =
                part.decode::<String>(CPU_MODEL_VERSION)?.parse().map_err(|error: ModelError| part.invalid(error.to_string()))?;
            self.cpu.replace(cpu);
        }
        saved.finish()?;
        // Its source may have been too late to act on it.
        if let Some(asked) = asked {
            (self.buses.report)(MachineEvent::Power(asked));
        }
        Ok(())
    }

    fn restore_slots(&self, saved: &mut SavedMachine, slots: Range<usize>) -> Result<()> {
        for slot in slots {
            self.buses.slots[slot].restore(&saved.take(PartKind::Virtio, slot as u16)?)?;
        }
        Ok(())
    }
}
