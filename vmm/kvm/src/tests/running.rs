//! Running: accesses, kicks, events, and the ways in which a guest ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvm_bindings::kvm_regs;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::guest::{Access, CODE, DONE_PORT, Recorder, machine, start};
use crate::{Error, Machine, Ram, VcpuExit, open_kvm};

const MMIO: u64 = 0xd000_0000;
const RAM_BYTES: u64 = 16 << 20;
/// Far longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn ports_and_device_memory_reach_the_bus() {
    let (ram, _machine, mut vcpus) = machine(RAM_BYTES, 1);
    let program = [
        0xb0, 0x41, // mov al, 0x41
        0xe6, 0x10, // out 0x10, al
        0xe5, 0x11, // in eax, 0x11
        0x89, 0x07, // mov [rdi], eax
        0x48, 0x8b, 0x5f, 0x08, // mov rbx, [rdi + 8]
        0xe6, 0x12, // out 0x12, al
        0xeb, 0xfe, // jmp $
    ];
    start(&ram, &mut vcpus[0], &program, kvm_regs { rdi: MMIO, ..Default::default() });
    let bus = Recorder::new(&vcpus[0]);
    assert_eq!(vcpus[0].run(&bus).unwrap(), VcpuExit::Interrupted);
    assert_eq!(
        bus.take(),
        [
            Access::PortWrite(0x10, vec![0x41]),
            Access::PortRead(0x11, 4),
            Access::MemoryWrite(MMIO, vec![0x11, 0x12, 0x13, 0x14]),
            Access::MemoryRead(MMIO + 8, 8),
            Access::PortWrite(DONE_PORT, vec![0x11]),
        ]
    );
    let regs = vcpus[0].fd.get_regs().unwrap();
    assert_eq!((regs.rax, regs.rbx), (0x1413_1211, 0x0f0e_0d0c_0b0a_0908));
}

#[test]
fn string_output_reaches_the_bus_element_by_element() {
    let (ram, _machine, mut vcpus) = machine(RAM_BYTES, 1);
    // At CPL 0, as the local KVM refuses string output at CPL 3.
    vcpus[0].enter_pvh(CODE as u32, 0).unwrap();
    let program = [
        0xbe, 0x00, 0x10, 0x01, 0x00, // mov esi, CODE + 0x1000
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb9, 0x03, 0x00, 0x00, 0x00, // mov ecx, 3
        0xf3, 0x66, 0x6f, // rep outsw
        0xe6, 0x12, 0xeb, 0xfe, // out 0x12, al; jmp $
    ];
    ram.memory().write_slice(&program, GuestAddress(CODE)).unwrap();
    ram.memory().write_slice(b"\x01\x02\x03\x04\x05\x06", GuestAddress(CODE + 0x1000)).unwrap();
    let bus = Recorder::new(&vcpus[0]);
    assert_eq!(vcpus[0].run(&bus).unwrap(), VcpuExit::Interrupted);
    let words = [[1, 2], [3, 4], [5, 6]].map(|word| Access::PortWrite(0x3f8, word.to_vec()));
    assert_eq!(bus.take()[..3], words);
}

#[test]
fn a_kick_before_the_run_ends_it_before_one_instruction() {
    let (ram, _machine, mut vcpus) = machine(RAM_BYTES, 1);
    start(&ram, &mut vcpus[0], &[0xeb, 0xfe], kvm_regs::default());
    vcpus[0].kicker().kick();
    vcpus[0].kicker().kick();
    assert_eq!(vcpus[0].run(&Recorder::default()).unwrap(), VcpuExit::Interrupted);
    assert_eq!(vcpus[0].fd.get_regs().unwrap().rip, CODE);
}

#[test]
fn no_kick_is_lost_whenever_it_comes() {
    kick_often(&[0xeb, 0xfe]); // jmp $: only the signal gets it out
    kick_often(&[0xe6, 0x10, 0xeb, 0xfc]); // out 0x10, al; jmp back: in and out all the time
}

fn kick_often(program: &[u8]) {
    let (ram, _machine, mut vcpus) = machine(RAM_BYTES, 1);
    start(&ram, &mut vcpus[0], program, kvm_regs::default());
    let kicker = vcpus[0].kicker();
    let mut vcpu = vcpus.remove(0);
    let (interrupted, seen) = std::sync::mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let runner = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(vcpu.run(&Recorder::default()).unwrap(), VcpuExit::Interrupted);
                interrupted.send(()).unwrap();
            }
        }
    });
    // One kick, one report: the next kick comes at any point of the runner's loop, from inside the guest to before the entry.
    for round in 0..2000 {
        kicker.kick();
        seen.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("kick {round} was lost"));
    }
    stop.store(true, Ordering::SeqCst);
    kicker.kick();
    runner.join().unwrap();
    kicker.kick();
}

#[test]
fn two_vcpus_run_at_the_same_time() {
    let (ram, _machine, vcpus) = machine(RAM_BYTES, 2);
    // Each adds to its own counter, then waits until the other one's is there: xchg [rdi], al; pause; cmp [rsi], 0; je; out; jmp $
    let program = [0x86, 0x07, 0xf3, 0x90, 0x80, 0x3e, 0x00, 0x74, 0xf9, 0xe6, 0x12, 0xeb, 0xfe];
    let flag = CODE + 0x1000;
    let runners: Vec<_> = vcpus
        .into_iter()
        .zip([(flag, flag + 64), (flag + 64, flag)])
        .map(|(mut vcpu, (rdi, rsi))| {
            start(&ram, &mut vcpu, &program, kvm_regs { rax: 1, rdi, rsi, ..Default::default() });
            std::thread::spawn(move || {
                let bus = Recorder::new(&vcpu);
                vcpu.run(&bus).unwrap()
            })
        })
        .collect();
    for runner in runners {
        assert_eq!(runner.join().unwrap(), VcpuExit::Interrupted);
    }
}

#[test]
fn a_triple_fault_is_reported() {
    let (ram, _machine, mut vcpus) = machine(RAM_BYTES, 1);
    start(&ram, &mut vcpus[0], &[0x0f, 0x0b], kvm_regs::default()); // ud2 without an interrupt table
    assert_eq!(vcpus[0].run(&Recorder::default()).unwrap(), VcpuExit::Shutdown);
    let state = vcpus[0].last_state();
    assert!(state.starts_with("rip 0x") || state.contains("not known"), "{state}");
}

#[test]
fn a_watched_address_takes_every_write_until_it_is_forgotten() {
    let (ram, machine, mut vcpus) = machine(RAM_BYTES, 1);
    let (wires, event) = (machine.wires(), EventFd::new(EFD_NONBLOCK).unwrap());
    wires.watch(MMIO + 0x50, &event).unwrap();
    assert!(wires.watch(MMIO + 0x50, &event).is_err(), "registered twice");
    let program = [
        0x89, 0x07, // mov [rdi], eax
        0x66, 0x89, 0x07, // mov [rdi], ax
        0x89, 0x47, 0x04, // mov [rdi + 4], eax
        0xe6, 0x12, 0xeb, 0xfe, // out 0x12, al; jmp $
    ];
    let regs = kvm_regs { rdi: MMIO + 0x50, rax: 7, ..Default::default() };
    start(&ram, &mut vcpus[0], &program, regs);
    let bus = Recorder::new(&vcpus[0]);
    assert_eq!(vcpus[0].run(&bus).unwrap(), VcpuExit::Interrupted);
    let (beside, done) = (Access::MemoryWrite(MMIO + 0x54, vec![7, 0, 0, 0]), Access::PortWrite(DONE_PORT, vec![7]));
    assert_eq!(bus.take(), [beside.clone(), done.clone()]);
    assert_eq!(event.read().unwrap(), 2);

    wires.forget(MMIO + 0x50, &event).unwrap();
    assert!(wires.forget(MMIO + 0x50, &event).is_err(), "forgotten twice");
    start(&ram, &mut vcpus[0], &program, regs);
    assert_eq!(vcpus[0].run(&bus).unwrap(), VcpuExit::Interrupted);
    let writes = [Access::MemoryWrite(MMIO + 0x50, vec![7, 0, 0, 0]), Access::MemoryWrite(MMIO + 0x50, vec![7, 0])];
    assert_eq!(bus.take(), [&writes[..], &[beside, done]].concat());
    assert!(event.read().is_err());
}

#[test]
fn a_message_waits_in_the_local_apic_that_it_names() {
    const SPURIOUS: usize = 0xf0;
    const REQUESTS: usize = 0x200;
    let (_ram, machine, vcpus) = machine(RAM_BYTES, 2);
    for vcpu in &vcpus {
        let mut apic = vcpu.fd.get_lapic().unwrap();
        // Bit 8 switches it on.
        apic.regs[SPURIOUS + 1] = 1;
        vcpu.fd.set_lapic(&apic).unwrap();
    }
    // Destination 1, vector 0x41, fixed, edge.
    machine.wires().message(0xfee0_1000, 0x41).unwrap();
    let requests = |vcpu: &crate::Vcpu| vcpu.fd.get_lapic().unwrap().regs[REQUESTS + 0x10 * (0x41 / 32)];
    assert_eq!((requests(&vcpus[0]), requests(&vcpus[1])), (0, 1 << (0x41 % 32)));
}

#[test]
fn an_irqfd_reaches_the_interrupt_chip() {
    let (_ram, machine, _vcpus) = machine(RAM_BYTES, 1);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    machine.irq(5, &event).unwrap();
    assert!(machine.irq(5, &event).is_err(), "registered twice");
    event.write(1).unwrap();
    // The PIC latches an edge in its request register even while the line is masked.
    let deadline = Instant::now() + DEADLINE;
    while pic_requests(&machine) & 1 << 5 == 0 {
        assert!(Instant::now() < deadline, "the edge never arrived");
        std::thread::yield_now();
    }
}

pub fn pic_requests(machine: &Machine) -> u8 {
    let mut chip = kvm_bindings::kvm_irqchip { chip_id: kvm_bindings::KVM_IRQCHIP_PIC_MASTER, ..Default::default() };
    machine.vm.get_irqchip(&mut chip).unwrap();
    // SAFETY: the chip that was asked for is a PIC, so this member of the union is the one written.
    unsafe { chip.chip.pic.irr }
}

#[test]
fn the_first_vcpu_enters_by_pvh_and_the_others_wait() {
    let (ram, _machine, mut vcpus) = machine(RAM_BYTES, 2);
    ram.memory().write_slice(&[0x89, 0xd8, 0xe6, 0x12, 0xeb, 0xfe], GuestAddress(CODE)).unwrap(); // mov eax, ebx; out 0x12, al; jmp $
    for vcpu in &mut vcpus {
        vcpu.enter_pvh(CODE as u32, 0x7b).unwrap();
    }
    let bus = Recorder::new(&vcpus[0]);
    assert_eq!(vcpus[0].run(&bus).unwrap(), VcpuExit::Interrupted);
    assert_eq!(bus.take(), [Access::PortWrite(DONE_PORT, vec![0x7b])]);
    let kicker = vcpus[1].kicker();
    let waiting = std::thread::spawn(move || {
        let bus = Recorder::default();
        (vcpus[1].run(&bus).unwrap(), bus.take())
    });
    kicker.kick();
    assert_eq!(waiting.join().unwrap(), (VcpuExit::Interrupted, vec![]));
}

#[test]
fn vcpu_counts_out_of_range_are_refused() {
    let ram = Ram::new(RAM_BYTES).unwrap();
    for count in [0, 17, 255] {
        let error = Machine::create(open_kvm().unwrap(), &ram, count, &rebec_cpu::Model::Host).unwrap_err();
        assert!(matches!(error, Error::VcpuCount { .. }), "{error}");
    }
}

#[test]
fn sixteen_vcpus_can_be_had() {
    let (_ram, _machine, vcpus) = machine(RAM_BYTES, 16);
    for (index, vcpu) in vcpus.iter().enumerate() {
        let cpuid = vcpu.fd.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
        let leaf1 = cpuid.as_slice().iter().find(|e| e.function == 1).unwrap();
        assert_eq!(leaf1.ebx >> 24, index as u32);
    }
}
