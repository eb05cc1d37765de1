//! How a machine is put together from what this host gives it: devices into slots, events into KVM.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use rebec_cpu::Model;
use rebec_devices::{
    Threads,
    block::BlockDevice,
    disk::Disk,
    net::{NetCounters, NetDevice},
    power::PowerPorts,
    rng::RngDevice,
    serial::SerialPort,
    virtio::{
        PciTransport, VirtioDevice,
        pci::{BAR_BYTES, PciHost},
    },
};
use rebec_kvm::{Machine, Ram, Wires};
use rebec_vmm_api::MemorySize;
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    Report, Vm,
    bus::Buses,
    memory::{self, Memory},
    vcpus::VcpuThreads,
};
use crate::{
    lan::Lan,
    lease::Lease,
    limits::Limits,
    serial::Console,
    threads::{RequestedThreads, WorkThreads},
};

/// What stays the same wherever the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineSize {
    pub memory: MemorySize,
    /// Most that it may become while it runs; none, where it stays as it is.
    pub memory_max: Option<MemorySize>,
    pub vcpus: u8,
}

/// What this host gives to a machine. A machine can be built from it again, after a guest reset.
pub struct Host {
    pub kvm: File,
    pub disks: Vec<Arc<Disk>>,
    pub lans: Vec<Lan>,
    pub limits: Limits,
    pub console: Arc<Console>,
    pub lease: Lease,
    pub report: Report,
}

/// Builds a machine that stands still, with empty RAM; its guest is shown this CPU model.
pub fn build(size: MachineSize, cpu: &Model, host: &Host) -> Result<Vm> {
    let ram = memory::ram(size.memory, size.memory_max)?;
    let kvm = host.kvm.try_clone().context("duplicate the KVM descriptor")?;
    let mut machine = Machine::create(kvm, &ram, size.vcpus, cpu)?;
    let threads: Arc<dyn Threads> = Arc::new(RequestedThreads::start().context("start the thread that makes devices' threads")?);
    let memory = size.memory_max.map(|max| Memory::new(&ram, max.bytes()));
    let mut cards = Vec::new();
    let mut devices = devices(host, &mut cards)?;
    let first_of_memory = devices.len();
    devices.extend(memory.iter().flat_map(Memory::devices));
    ensure!(devices.len() <= rebec_layout::SLOTS, "{} devices: a machine has room for {}", devices.len(), rebec_layout::SLOTS);
    let blocks = memory.as_ref().and_then(Memory::blocks);
    let mut slots = Vec::new();
    for device in devices {
        let function = plug(slots.len(), device, &machine, &ram, &threads)?;
        slots.push(match &blocks {
            Some(blocks) => function.within(blocks.clone()),
            None => function,
        });
    }
    let serial = SerialPort::new(Box::new(host.console.output()), line(&machine, rebec_layout::COM1_GSI)?).telling(host.console.waker());
    let power = PowerPorts::new(line(&machine, rebec_layout::SCI_GSI)?);
    let report = first_word(&host.report);
    let buses = Arc::new(Buses { slots, serial, power, report: report.clone() });
    connect_input(host, &buses);
    let vcpus = VcpuThreads::start(machine.take_vcpus(), &buses, &WorkThreads, &report, &host.lease)?;
    Ok(Vm {
        size,
        cpu: RefCell::new(cpu.clone()),
        ram,
        machine,
        vcpus,
        buses,
        disks: host.disks.clone(),
        lans: host.lans.clone(),
        limits: host.limits.clone(),
        cards,
        memory: memory.map(|memory| (memory, first_of_memory)),
    })
}

/// A machine ends or restarts once. What its guest asks for first counts, and all else it says is not heard: sixteen vCPUs that ask without an end
/// would fill the queue that its users' requests wait in, and what they asked of this machine would be done to the one after it.
fn first_word(report: &Report) -> Report {
    let (said, report) = (AtomicBool::new(false), report.clone());
    Arc::new(move |event| {
        if !said.swap(true, Ordering::AcqRel) {
            report(event);
        }
    })
}

/// The devices in the order of their slots: disks, NICs, entropy. Those of memory that comes and goes follow. What NICs count is in `cards` too.
fn devices(host: &Host, cards: &mut Vec<Arc<NetCounters>>) -> Result<Vec<Box<dyn VirtioDevice>>> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in &host.disks {
        devices.push(Box::new(BlockDevice::new(disk.clone()).limited(host.limits.disk())));
    }
    for lan in &host.lans {
        let port = lan.port().with_context(|| format!("net {}: attach its port", lan.mac()))?;
        let card = NetDevice::new(lan.mac().0, lan.mtu(), Box::new(port)).limited([host.limits.net(), lan.rate()]);
        cards.push(card.counters());
        devices.push(Box::new(card));
    }
    devices.push(Box::new(RngDevice::new(HostEntropy)));
    Ok(devices)
}

/// BARs do not overlap when the machine starts.
const _: () = assert!(rebec_layout::BAR_STRIDE >= BAR_BYTES);

fn plug(slot: usize, device: Box<dyn VirtioDevice>, machine: &Machine, ram: &Ram, threads: &Arc<dyn Threads>) -> Result<PciTransport> {
    let host = Arc::new(PciWires(machine.wires()));
    PciTransport::new(device, ram.memory().clone(), host, rebec_layout::slot_bar(slot), threads.clone())
        .with_context(|| format!("device in slot {slot}: connect it"))
}

/// The machine as its PCI functions see it.
#[derive(Debug)]
struct PciWires(Wires);

impl PciHost for PciWires {
    fn interrupt(&self, address: u64, data: u32) {
        // The guest wrote the message: one that KVM does not take is its own affair.
        if let Err(error) = self.0.message(address, data) {
            log::debug!("{error}: {data:#x} to {address:#x}");
        }
    }

    fn watch(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        self.0.watch(address, kick).map_err(io::Error::other)
    }

    fn forget(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        self.0.forget(address, kick).map_err(io::Error::other)
    }
}

/// What raises an interrupt for a moment.
fn line(machine: &Machine, gsi: u32) -> Result<EventFd> {
    let event = EventFd::new(EFD_NONBLOCK).with_context(|| format!("interrupt {gsi}: make its event"))?;
    machine.irq(gsi, &event)?;
    Ok(event)
}

/// Input goes to the machine that is there: the one before it is gone when this one is built after a guest reset.
fn connect_input(host: &Host, buses: &Arc<Buses>) {
    let buses = Arc::downgrade(buses);
    host.console.set_sink(move |bytes| buses.upgrade().map_or(bytes.len(), |buses| buses.serial.push_input(bytes)));
}

/// The host kernel's random numbers, by system call: needs no path.
struct HostEntropy;

impl Read for HostEntropy {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(getrandom(buffer, GetRandomFlags::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use rebec_devices::power::PowerEvent;

    use super::*;
    use crate::vm::MachineEvent;

    #[test]
    fn what_a_machine_says_first_is_heard_and_nothing_after_it() {
        let (say, heard) = sync_channel(64);
        let report: Report = Arc::new(move |event| say.try_send(event).unwrap());
        let (machine, next) = (first_word(&report), first_word(&report));
        (0..1000).for_each(|_| machine(MachineEvent::Power(PowerEvent::Reset)));
        machine(MachineEvent::Power(PowerEvent::Off));
        next(MachineEvent::Power(PowerEvent::Off));
        let all: Vec<MachineEvent> = heard.try_iter().collect();
        assert_eq!(all, [MachineEvent::Power(PowerEvent::Reset), MachineEvent::Power(PowerEvent::Off)]);
    }
}
