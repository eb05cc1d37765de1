//! The dirty log: exactly the pages that the guest wrote, in both slots, none lost while it runs.
//!
//! KVM also calls a page dirty when a mere read makes it map the page for writing, so each test lets the guest fetch its code
//! once before it counts. With nested paging a processor walks the guest's page tables as if it wrote them: they do not count.

use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use rebec_bits::BitSet;
use rebec_layout::PAGE_BYTES;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{PAST_TABLES, Recorder, machine, start};
use crate::{Ram, Vcpu, VcpuExit};

/// Reaches over the hole, and not by a multiple of 64 pages.
const RAM_BYTES: u64 = (3 << 30) + (5 << 20) + 0x3000;
const HIGH: u64 = 4 << 30;

/// Writes a byte to `rcx` pages from `rdi` on, `rsi` bytes apart.
const WRITER: [u8; 14] = [
    0x88, 0x0f, // mov [rdi], cl
    0x48, 0x01, 0xf7, // add rdi, rsi
    0x48, 0xff, 0xc9, // dec rcx
    0x75, 0xf6, // jnz back
    0xe6, 0x12, 0xeb, 0xfe, // out 0x12, al; jmp $
];

fn write_pages(ram: &Ram, vcpu: &mut Vcpu, address: u64, stride: u64, count: u64) {
    start(ram, vcpu, &WRITER, kvm_regs { rdi: address, rsi: stride, rcx: count, ..Default::default() });
    let bus = Recorder::new(vcpu);
    assert_eq!(vcpu.run(&bus).unwrap(), VcpuExit::Interrupted);
}

fn past_tables(dirty: &BitSet) -> Vec<u64> {
    dirty.iter().filter(|page| *page >= PAST_TABLES / PAGE_BYTES).collect()
}

#[test]
fn the_log_holds_exactly_what_was_written() {
    let (ram, machine, mut vcpus) = machine(RAM_BYTES, 1);
    let mut dirty = BitSet::new(ram.pages());
    machine.dirty_log_start().unwrap();
    write_pages(&ram, &mut vcpus[0], 0x20_0000, 0x1000, 1);
    machine.dirty_log_take(&mut dirty).unwrap();
    assert_eq!(dirty.len(), ram.pages(), "everything is new at first");

    for (address, stride, count) in
        [(0x20_0000, 0x3000, 40), (3 << 29, 0x1000, 300), (HIGH, 0x1000, 5), (HIGH + (5 << 20) + 0x2000, 0x1000, 1)]
    {
        write_pages(&ram, &mut vcpus[0], address, stride, count);
        dirty.clear();
        machine.dirty_log_take(&mut dirty).unwrap();
        let written: Vec<u64> = (0..count).map(|n| ram.page_of(GuestAddress(address + n * stride)).unwrap()).collect();
        assert_eq!(past_tables(&dirty), written);
        dirty.clear();
        machine.dirty_log_take(&mut dirty).unwrap();
        assert!(dirty.is_empty(), "taken once");
    }
}

#[test]
fn a_page_written_again_is_there_again_and_a_stop_ends_the_log() {
    let (ram, machine, mut vcpus) = machine(16 << 20, 1);
    let mut dirty = BitSet::new(ram.pages());
    machine.dirty_log_start().unwrap();
    write_pages(&ram, &mut vcpus[0], 0x20_1000, 0, 1);
    machine.dirty_log_take(&mut dirty).unwrap();
    for _ in 0..3 {
        write_pages(&ram, &mut vcpus[0], 0x20_0000, 0, 2);
        dirty.clear();
        machine.dirty_log_take(&mut dirty).unwrap();
        assert_eq!(past_tables(&dirty), [0x200]);
    }
    machine.dirty_log_stop().unwrap();
    assert!(machine.dirty_log_take(&mut dirty).is_err());
    machine.dirty_log_start().unwrap();
    machine.dirty_log_take(&mut dirty).unwrap();
    assert_eq!(dirty.len(), ram.pages(), "a new log begins with everything");
}

#[test]
fn copies_made_after_the_log_is_taken_miss_no_write() {
    let (ram, machine, mut vcpus) = machine(16 << 20, 1);
    // Writes a count, ever growing, to 64 pages in turn: mov [rdi + rsi], rcx; inc rcx; add rsi, 0x1000; and rsi, 0x3f000; jmp back
    let program = [
        0x48, 0x89, 0x0c, 0x37, 0x48, 0xff, 0xc1, 0x48, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, 0x48, 0x81, 0xe6, 0x00, 0xf0, 0x03, 0x00, 0xeb,
        0xe9,
    ];
    let base = 0x20_0000;
    start(&ram, &mut vcpus[0], &program, kvm_regs { rdi: base, ..Default::default() });
    let mut vcpu = vcpus.remove(0);
    let kicker = vcpu.kicker();
    let mut dirty = BitSet::new(ram.pages());
    machine.dirty_log_start().unwrap();
    machine.dirty_log_take(&mut dirty).unwrap();
    let runner = std::thread::spawn(move || vcpu.run(&Recorder::default()).unwrap());

    let mut copy = vec![0_u64; 64];
    let round = |copy: &mut Vec<u64>| {
        let mut dirty = BitSet::new(ram.pages());
        machine.dirty_log_take(&mut dirty).unwrap();
        for page in dirty.iter().filter(|page| *page >= base / 4096) {
            let slot = (page - base / 4096) as usize;
            copy[slot] = ram.memory().read_obj(GuestAddress(page * 4096)).unwrap();
        }
    };
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        round(&mut copy);
    }
    kicker.kick();
    assert_eq!(runner.join().unwrap(), VcpuExit::Interrupted);
    round(&mut copy);
    for (slot, copied) in copy.iter().enumerate() {
        let actual: u64 = ram.memory().read_obj(GuestAddress(base + slot as u64 * 4096)).unwrap();
        assert_eq!(*copied, actual, "page {slot}");
        assert_ne!(actual, 0);
    }
}
