//! Saved state as a peer sends it: the machine's list of parts, and every part of it that is understood without KVM.
//!
//! ```text
//! input = choice:u8 rest        0 a saved machine; 1 a CPU model; 2.. the bytes of one part: serial port, power, block, rng and network
//!                               device, vCPU, irqchip, PIT, clock
//! ```

use std::{io, sync::Arc};

use rebec_devices::{GuestRam, PlainThreads, power::PowerPorts, rng::RngDevice, serial::SerialPort, virtio::VirtioDevice};
use rebec_kvm::CpuModel;
use rebec_vmm_saved::{Part, PartKind, SavedMachine};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    input::Input,
    rings::{block_device, net_device},
};

/// Version of every part there is today.
const VERSION: u16 = 1;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let bytes = input.rest();
    match choice {
        0 => machine(bytes),
        1 => cpu_model(bytes),
        2 => part(PartKind::Serial, 0, bytes),
        3 => part(PartKind::Power, 0, bytes),
        4..=6 => part(PartKind::Virtio, u16::from(choice) - 4, bytes),
        7 => part(PartKind::Vcpu, 0, bytes),
        8 => part(PartKind::Irqchip, 0, bytes),
        9 => part(PartKind::Pit, 0, bytes),
        _ => part(PartKind::Clock, 0, bytes),
    }
}

fn machine(bytes: &[u8]) {
    let Ok(machine) = SavedMachine::from_bytes(bytes) else { return };
    // Parts that are not known and may be left out are not there any more.
    let known = machine.to_bytes();
    assert!(known == bytes || known.len() < bytes.len() && SavedMachine::from_bytes(&known).as_ref() == Ok(&machine));
    let mut rest = machine;
    for kind in [PartKind::Serial, PartKind::Power, PartKind::Virtio, PartKind::Vcpu, PartKind::Irqchip, PartKind::Pit, PartKind::Clock] {
        for index in 0..3 {
            if let Ok(part) = rest.take(kind, index) {
                restore(&part);
                assert!(rest.take(kind, index).is_err(), "a part is taken once");
            }
        }
    }
    let left = rest != SavedMachine::default();
    assert_eq!(rest.finish().is_err(), left);
}

fn cpu_model(bytes: &[u8]) {
    let Ok(model) = CpuModel::from_bytes(bytes) else { return };
    assert_eq!(CpuModel::from_bytes(&model.to_bytes()).expect("what was written is read"), model);
    assert_eq!(model.missing_on(&model), Vec::<String>::new(), "a guest may stay where it is");
}

fn part(kind: PartKind, index: u16, bytes: &[u8]) {
    restore(&Part { kind, index, version: VERSION, bytes: bytes.to_vec() });
}

/// Restores a part into what it belongs to. What was taken says the same when it is saved, and that is taken too.
fn restore(part: &Part) {
    match part.kind {
        PartKind::Serial => {
            let fresh = || SerialPort::new(Box::new(io::sink()), irq());
            let port = fresh();
            if port.restore(part).is_ok() {
                let saved = port.save();
                fresh().restore(&saved).expect("what was saved is taken back");
                for offset in 0..8 {
                    port.read(offset, &mut [0; 2]);
                    port.write(offset, &[0x5a]);
                }
                port.push_input(b"input");
            }
        }
        PartKind::Power => {
            let ports = PowerPorts::new(irq());
            if ports.restore(part).is_ok() {
                let saved = ports.save();
                PowerPorts::new(irq()).restore(&saved).expect("what was saved is taken back");
            }
        }
        PartKind::Virtio => virtio(part),
        PartKind::CpuModel => {
            if let Some(model) = part.decode::<String>(VERSION).ok().and_then(|name| name.parse::<rebec_cpu::Model>().ok()) {
                assert_eq!(model.to_string().parse(), Ok(model), "what a model is called is the model");
            }
        }
        PartKind::Limits => {
            part.decode::<(u64, u64, u64)>(VERSION).ok();
        }
        PartKind::Vcpu | PartKind::Irqchip | PartKind::Pit | PartKind::Clock => {
            #[cfg(fuzzing)]
            rebec_kvm::check_part(part).ok();
        }
    }
}

fn virtio(part: &Part) {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory for a guest");
    let fresh = || {
        let device: Box<dyn VirtioDevice> = match part.index % 3 {
            0 => block_device(false),
            1 => Box::new(RngDevice::new(io::repeat(0x5a))),
            _ => net_device().0,
        };
        crate::rings::function(device, &ram, Arc::new(PlainThreads))
    };
    let transport = fresh();
    if transport.restore(part).is_err() {
        return;
    }
    let saved = transport.save(part.index);
    let other = fresh();
    other.restore(&saved).expect("what was saved is taken back");
    assert_eq!(other.save(part.index), saved);
    // Rings of zeros offer nothing, so the threads start and stop.
    other.resume();
    other.pause();
    other.write(0x14, &[0]);
}

fn irq() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("a descriptor")
}

/// A whole machine, and each part by itself.
pub fn seeds() -> Vec<Vec<u8>> {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory for a guest");
    let device = |device: Box<dyn VirtioDevice>, slot: u16| {
        let transport = crate::rings::function(device, &ram, Arc::new(PlainThreads));
        crate::rings::start(&transport);
        transport.save(slot)
    };
    let serial = SerialPort::new(Box::new(io::sink()), irq());
    serial.push_input(b"some input");
    let mut parts = vec![
        serial.save(),
        PowerPorts::new(irq()).save(),
        device(block_device(false), 0),
        device(Box::new(RngDevice::new(io::repeat(1))), 1),
        device(net_device().0, 2),
    ];
    parts.extend(kvm_parts());
    let mut seeds: Vec<Vec<u8>> = (2_u8..).zip(&parts).map(|(choice, part)| [&[choice][..], &part.bytes].concat()).collect();
    let mut machine = SavedMachine::default();
    parts.into_iter().for_each(|part| machine.push(part));
    seeds.push([&[0][..], &machine.to_bytes()].concat());
    // Version, one CPUID entry, two MSRs, a rate: the golden bytes of rebec-kvm.
    let model = [1, 1, 0, 0, 0xd, 0xc1, 0xea, 0xd1, 0xc3, 6, 0xe3, 0x82, 0xb5, 0xa2, 4, 0xe5, 0xdc, 0xd1, 0xcb, 6];
    seeds.push([&[1][..], &model, &[2, 0x10, 0x83, 0x82, 0x80, 0x80, 0x0c, 0x80, 0xbe, 0x92, 1, 0]].concat());
    seeds
}

/// What only KVM saves, made up; without `--cfg fuzzing` rebec-kvm has no door for it.
fn kvm_parts() -> Vec<Part> {
    #[cfg(fuzzing)]
    return rebec_kvm::part_samples();
    #[cfg(not(fuzzing))]
    Vec::new()
}
