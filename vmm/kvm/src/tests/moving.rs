//! Saving on one machine and going on with another over the same RAM.

use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MP_STATE_UNINITIALIZED, kvm_regs};
use proptest::prelude::*;
use rebec_vmm_saved::{Part, PartKind, SavedMachine};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::guest::{Access, DONE_PORT, Recorder, machine, machine_over, start};
use crate::{Machine, Ram, Vcpu, VcpuExit, saved::tsc};

const RAM_BYTES: u64 = 16 << 20;
const FAILED_PORT: u16 = 0x13;

/// Reads the TSC for ever, keeps the last value in rbx, counts in rcx, and says so if a value is smaller than the last.
const MONOTONIC: [u8; 22] = [
    0x0f, 0x31, // rdtsc
    0x48, 0xc1, 0xe2, 0x20, // shl rdx, 32
    0x48, 0x09, 0xd0, // or rax, rdx
    0x48, 0x39, 0xd8, // cmp rax, rbx
    0x72, 0x08, // jb failed
    0x48, 0x89, 0xc3, // mov rbx, rax
    0x48, 0xff, 0xc1, // inc rcx
    0xeb, 0xea, // jmp back
];

fn save(machine: &Machine, vcpus: &mut [Vcpu]) -> SavedMachine {
    let mut saved = SavedMachine::default();
    for vcpu in vcpus {
        saved.push(vcpu.save().unwrap());
    }
    machine.save(&mut saved).unwrap();
    // As it travels.
    SavedMachine::from_bytes(&saved.to_bytes()).unwrap()
}

fn restore(machine: &Machine, vcpus: &mut [Vcpu], mut saved: SavedMachine) {
    machine.restore_clock(&mut saved).unwrap();
    for vcpu in vcpus {
        vcpu.restore(saved.take(PartKind::Vcpu, vcpu.index().into()).unwrap()).unwrap();
    }
    machine.restore_chips(&mut saved).unwrap();
    saved.finish().unwrap();
}

fn move_to_new_machine(ram: &Ram, machine: &Machine, vcpus: &mut [Vcpu]) -> (Machine, Vec<Vcpu>) {
    let saved = save(machine, vcpus);
    let (target, mut moved) = machine_over(ram, vcpus.len() as u8);
    restore(&target, &mut moved, saved);
    (target, moved)
}

fn run_for(mut vcpu: Vcpu, time: Duration) -> (Vcpu, Vec<Access>) {
    let kicker = vcpu.kicker();
    let runner = std::thread::spawn(move || {
        let bus = Recorder::default();
        assert_eq!(vcpu.run(&bus).unwrap(), VcpuExit::Interrupted);
        (vcpu, bus.take())
    });
    std::thread::sleep(time);
    kicker.kick();
    runner.join().unwrap()
}

#[test]
fn a_guest_goes_on_with_its_registers_and_a_tsc_that_never_steps_back() {
    let (ram, mut source, mut vcpus) = machine(RAM_BYTES, 1);
    let program = [&MONOTONIC[..], &[0xe6, FAILED_PORT as u8, 0xeb, 0xfe]].concat();
    start(&ram, &mut vcpus[0], &program, kvm_regs { r15: 0x1234_5678_9abc_def0, ..Default::default() });
    let mut last = vcpus[0].fd.get_regs().unwrap();
    let mut vcpu = vcpus.remove(0);
    for hop in 0..4 {
        let accesses;
        (vcpu, accesses) = run_for(vcpu, Duration::from_millis(30));
        let regs = vcpu.fd.get_regs().unwrap();
        assert_eq!(accesses, [], "the TSC stepped back after hop {hop}");
        assert!(regs.rcx > last.rcx + 100 && regs.rbx > last.rbx, "hop {hop}: it ran on");
        assert_eq!(regs.r15, 0x1234_5678_9abc_def0);
        last = regs;
        let mut standing = [vcpu];
        let (target, mut moved) = move_to_new_machine(&ram, &source, &mut standing);
        assert_eq!(moved[0].fd.get_regs().unwrap(), regs);
        assert_eq!(moved[0].fd.get_sregs().unwrap(), standing[0].fd.get_sregs().unwrap());
        vcpu = moved.remove(0);
        source = target;
    }
}

/// The target's clock cannot be another than this host's here: instead, one that is not an hour off is said to be.
#[test]
fn what_is_said_of_the_targets_clock_is_what_the_machines_clock_goes_on_by() {
    const HOUR_NS: u64 = 3600 * 1_000_000_000;
    let (ram, source, mut vcpus) = machine(RAM_BYTES, 1);
    start(&ram, &mut vcpus[0], &[0xeb, 0xfe], kvm_regs::default());
    let goes_on_by = |ahead_ms: i64, vcpus: &mut [Vcpu]| {
        let mut saved = save(&source, vcpus);
        let before = source.vm.get_clock().unwrap().clock;
        crate::told_by_clock_ahead(&mut saved, ahead_ms).unwrap();
        let (target, mut moved) = machine_over(&ram, 1);
        restore(&target, &mut moved, SavedMachine::from_bytes(&saved.to_bytes()).unwrap());
        target.vm.get_clock().unwrap().clock.saturating_sub(before)
    };
    let passed = goes_on_by(0, &mut vcpus);
    assert!(passed < HOUR_NS / 2, "{passed}");
    assert!(goes_on_by(-3_600_000, &mut vcpus).abs_diff(HOUR_NS) < HOUR_NS / 2);
    assert!(goes_on_by(3_600_000, &mut vcpus) < HOUR_NS / 2);
}

#[test]
fn everything_saved_is_saved_again_by_the_target() {
    let (ram, source, mut vcpus) = machine(RAM_BYTES, 2);
    let program = [0x66, 0x48, 0x0f, 0x6e, 0xc0, 0xe6, 0x12, 0xeb, 0xfe]; // movq xmm0, rax; out 0x12, al; jmp $
    start(&ram, &mut vcpus[0], &program, kvm_regs { rax: 0x1122_3344_5566_7788, ..Default::default() });
    let bus = Recorder::new(&vcpus[0]);
    assert_eq!(vcpus[0].run(&bus).unwrap(), VcpuExit::Interrupted);
    let first = save(&source, &mut vcpus);
    let (target, mut moved) = machine_over(&ram, 2);
    restore(&target, &mut moved, first.clone());
    assert_eq!(moved[1].fd.get_mp_state().unwrap().mp_state, KVM_MP_STATE_UNINITIALIZED);
    let (mut first, mut second) = (first, save(&target, &mut moved));
    for index in 0..2 {
        let (a, b) = (first.take(PartKind::Vcpu, index).unwrap(), second.take(PartKind::Vcpu, index).unwrap());
        crate::saved::vcpu::assert_same_but_for_time(&a, &b);
    }
    assert_eq!(first.take(PartKind::Irqchip, 0), second.take(PartKind::Irqchip, 0));

    let program = [0x66, 0x48, 0x0f, 0x7e, 0xc3, 0xe6, 0x12, 0xeb, 0xfe]; // movq rbx, xmm0; out 0x12, al; jmp $
    let regs = moved[0].fd.get_regs().unwrap();
    start(&ram, &mut moved[0], &program, regs);
    let bus = Recorder::new(&moved[0]);
    assert_eq!(moved[0].run(&bus).unwrap(), VcpuExit::Interrupted);
    assert_eq!(moved[0].fd.get_regs().unwrap().rbx, 0x1122_3344_5566_7788);
}

#[test]
fn an_access_that_was_served_is_not_made_again() {
    let (ram, source, mut vcpus) = machine(RAM_BYTES, 1);
    // in eax, 0x20; out 0x12, al (kicks); mov ebx, eax; out 0x14, al; out 0x12, al; jmp $
    let program = [0xe5, 0x20, 0xe6, 0x12, 0x89, 0xc3, 0xe6, 0x14, 0xe6, 0x12, 0xeb, 0xfe];
    start(&ram, &mut vcpus[0], &program, kvm_regs::default());
    let bus = Recorder::new(&vcpus[0]);
    assert_eq!(vcpus[0].run(&bus).unwrap(), VcpuExit::Interrupted);
    assert_eq!(bus.take(), [Access::PortRead(0x20, 4), Access::PortWrite(DONE_PORT, vec![0x20])]);
    let (_target, mut moved) = move_to_new_machine(&ram, &source, &mut vcpus);
    let bus = Recorder::new(&moved[0]);
    assert_eq!(moved[0].run(&bus).unwrap(), VcpuExit::Interrupted);
    assert_eq!(bus.take(), [Access::PortWrite(0x14, vec![0x20]), Access::PortWrite(DONE_PORT, vec![0x20])]);
    assert_eq!(moved[0].fd.get_regs().unwrap().rbx, 0x2322_2120);
}

#[test]
fn clocks_go_on_by_the_real_time_that_passed() {
    let (ram, source, mut vcpus) = machine(RAM_BYTES, 2);
    let before = Instant::now();
    let saved = save(&source, &mut vcpus);
    let clock_before = source.vm.get_clock().unwrap().clock;
    let counters: Vec<u64> = vcpus.iter().map(guest_tsc).collect();
    let away = Duration::from_millis(120);
    std::thread::sleep(away);
    let (target, mut moved) = machine_over(&ram, 2);
    restore(&target, &mut moved, saved);
    let passed = Duration::from_nanos(target.vm.get_clock().unwrap().clock - clock_before);
    let ticks: Vec<u64> = moved.iter().zip(&counters).map(|(vcpu, then)| guest_tsc(vcpu) - then).collect();
    let at_most = before.elapsed() + Duration::from_millis(5);
    assert!(passed >= away && passed <= at_most, "the clock went on by {passed:?} in at most {at_most:?}");
    for ticks in ticks {
        let passed = Duration::from_nanos(ticks * 1_000_000 / u64::from(target.clock.host_khz));
        assert!(passed >= away && passed <= at_most, "a TSC went on by {passed:?} in at most {at_most:?}");
    }
    // A KVM that runs guests natively without hardware (PVM) shows them the host's counter and keeps every offset at zero; what
    // offset is asked for is tested in `saved::tsc`.
    assert_eq!(tsc::offset(&moved[0].fd), tsc::offset(&moved[1].fd), "all vCPUs have one time");
}

fn guest_tsc(vcpu: &Vcpu) -> u64 {
    tsc::host_tsc().wrapping_add(tsc::offset(&vcpu.fd).unwrap())
}

#[test]
fn an_interrupt_that_waits_in_the_chips_waits_there_after_the_move() {
    let (ram, source, mut vcpus) = machine(RAM_BYTES, 1);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    source.irq(5, &event).unwrap();
    event.write(1).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while super::running::pic_requests(&source) & 1 << 5 == 0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    let (target, _moved) = move_to_new_machine(&ram, &source, &mut vcpus);
    assert_eq!(super::running::pic_requests(&target) & 1 << 5, 1 << 5);
}

#[test]
fn the_order_of_restoring_is_kept_and_parts_are_taken_once() {
    let (ram, source, mut vcpus) = machine(RAM_BYTES, 1);
    let mut saved = save(&source, &mut vcpus);
    let (target, mut moved) = machine_over(&ram, 1);
    let part = saved.take(PartKind::Vcpu, 0).unwrap();
    let error = moved[0].restore(part.clone()).unwrap_err();
    assert!(error.to_string().contains("clock must be restored before"), "{error}");
    target.restore_clock(&mut saved).unwrap();
    moved[0].restore(part).unwrap();
    target.restore_chips(&mut saved).unwrap();
    assert!(target.restore_chips(&mut saved).is_err());
    assert!(target.restore_clock(&mut saved).is_err());
}

#[test]
fn this_host_can_run_what_it_runs() {
    let (_ram, one, _vcpus) = machine(RAM_BYTES, 1);
    let (_ram, other, _vcpus) = machine(RAM_BYTES, 2);
    let travelled = crate::CpuModel::from_bytes(&one.cpu_model().to_bytes()).unwrap();
    assert_eq!(&travelled, one.cpu_model());
    assert_eq!(travelled.missing_on(one.cpu_model()), Vec::<String>::new());
    // Another count of vCPUs changes topology bits, which are no promise; the machine's shape is compared elsewhere.
    assert_eq!(travelled.missing_on(other.cpu_model()), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn hostile_parts_are_refused_or_taken_but_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20), cut in any::<Option<prop::sample::Index>>()) {
        let (ram, source, mut vcpus) = machine(RAM_BYTES, 1);
        let mut saved = save(&source, &mut vcpus);
        let (target, mut moved) = machine_over(&ram, 1);
        let spoil = |part: Part| {
            let mut bytes = part.bytes;
            for (index, byte) in &changes {
                let at = index.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Some(cut) = &cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            Part { bytes, ..part }
        };
        let part = saved.take(PartKind::Vcpu, 0).unwrap();
        let chips = spoil(saved.take(PartKind::Irqchip, 0).unwrap());
        let pit = spoil(saved.take(PartKind::Pit, 0).unwrap());
        target.restore_clock(&mut saved).unwrap();
        let whole = cut.is_none();
        prop_assert!(moved[0].restore(spoil(part)).is_err() || whole);
        saved.push(chips);
        saved.push(pit);
        prop_assert!(target.restore_chips(&mut saved).is_err() || whole);
    }
}
