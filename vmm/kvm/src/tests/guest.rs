//! A guest of a few instructions: RAM with page tables that map everything for the user, a vCPU at CPL 3, and a bus that
//! records what the guest asks for.

use std::sync::{Mutex, OnceLock};

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment};
use rebec_cpu::Model;
use vm_memory::{Bytes, GuestAddress};

use crate::{Bus, Machine, Ram, Vcpu, VcpuKicker, open_kvm};

/// Where programs lie.
pub const CODE: u64 = 0x10_000;
/// The port by which a program says that it is done: the bus kicks its vCPU.
pub const DONE_PORT: u16 = 0x12;

const PML4: u64 = 0x1000;
const MAPPED_GIB: u64 = 5;
/// Behind the page tables: one of each upper level and a directory for each GiB.
pub const PAST_TABLES: u64 = PML4 + (2 + MAPPED_GIB) * 0x1000;
/// Accessed and dirty are set already, so that the processor's walks write nothing.
const ENTRY_PRESENT_WRITABLE_USER: u64 = 0x67;
const ENTRY_LARGE: u64 = 0x80;

/// Makes a machine with these many vCPUs over fresh RAM that holds page tables.
pub fn machine(bytes: u64, vcpus: u8) -> (Ram, Machine, Vec<Vcpu>) {
    let ram = Ram::new(bytes).unwrap();
    write_page_tables(&ram);
    let (machine, vcpus) = machine_over(&ram, vcpus);
    (ram, machine, vcpus)
}

/// Makes a machine over RAM that is there already.
pub fn machine_over(ram: &Ram, vcpus: u8) -> (Machine, Vec<Vcpu>) {
    machine_shown(ram, vcpus, &Model::Host)
}

/// Makes a machine whose guest is shown a CPU model.
pub fn machine_shown(ram: &Ram, vcpus: u8, model: &Model) -> (Machine, Vec<Vcpu>) {
    let mut machine = Machine::create(open_kvm().unwrap(), ram, vcpus, model).unwrap();
    let vcpus = machine.take_vcpus();
    (machine, vcpus)
}

/// Puts a program into RAM and starts a vCPU at its beginning with these registers.
pub fn start(ram: &Ram, vcpu: &mut Vcpu, program: &[u8], regs: kvm_regs) {
    ram.memory().write_slice(program, GuestAddress(CODE)).unwrap();
    // All but the first wait to be started by an interrupt that this guest has no way to send.
    vcpu.fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
    let mut sregs = vcpu.fd.get_sregs().unwrap();
    let segment = |selector: u16, type_: u8, l: u8| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: 1 - l,
        s: 1,
        l,
        g: 1,
        ..Default::default()
    };
    sregs.cs = segment(0x33, 0xb, 1);
    let data = segment(0x2b, 3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, selector: 0x40, type_: 0xb, present: 1, ..Default::default() };
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8005_0033, PML4, 0x620, 0xd01);
    vcpu.fd.set_sregs(&sregs).unwrap();
    vcpu.fd.set_regs(&kvm_regs { rip: CODE, rflags: 0x3002, ..regs }).unwrap();
}

fn write_page_tables(ram: &Ram) {
    let write = |address: u64, value: u64| ram.memory().write_obj(value, GuestAddress(address)).unwrap();
    let pdpt = PML4 + 0x1000;
    write(PML4, pdpt | ENTRY_PRESENT_WRITABLE_USER);
    for gib in 0..MAPPED_GIB {
        let directory = pdpt + 0x1000 + gib * 0x1000;
        write(pdpt + gib * 8, directory | ENTRY_PRESENT_WRITABLE_USER);
        for large in 0..512 {
            write(directory + large * 8, gib << 30 | large << 21 | ENTRY_LARGE | ENTRY_PRESENT_WRITABLE_USER);
        }
    }
}

/// What a guest asked of the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    PortRead(u16, usize),
    PortWrite(u16, Vec<u8>),
    MemoryRead(u64, usize),
    MemoryWrite(u64, Vec<u8>),
}

/// Records accesses, answers reads with bytes that count up from the port's or address's lowest byte, and kicks a vCPU that
/// says it is done.
#[derive(Default)]
pub struct Recorder {
    pub kick_when_done: OnceLock<VcpuKicker>,
    accesses: Mutex<Vec<Access>>,
}

impl Recorder {
    /// A bus that kicks this vCPU when the program is done.
    pub fn new(vcpu: &Vcpu) -> Self {
        Self { kick_when_done: OnceLock::from(vcpu.kicker()), accesses: Mutex::default() }
    }

    /// All accesses so far.
    pub fn take(&self) -> Vec<Access> {
        std::mem::take(&mut self.accesses.lock().unwrap())
    }

    fn record(&self, access: Access) {
        self.accesses.lock().unwrap().push(access);
    }
}

impl Bus for Recorder {
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.record(Access::MemoryRead(address, data.len()));
        count_up(address as u8, data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.record(Access::MemoryWrite(address, data.to_vec()));
    }

    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.record(Access::PortRead(port, data.len()));
        count_up(port as u8, data);
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        self.record(Access::PortWrite(port, data.to_vec()));
        if port == DONE_PORT
            && let Some(kicker) = self.kick_when_done.get()
        {
            kicker.kick();
        }
    }
}

fn count_up(first: u8, data: &mut [u8]) {
    for (offset, byte) in data.iter_mut().enumerate() {
        *byte = first.wrapping_add(offset as u8);
    }
}
