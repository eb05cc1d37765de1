//! One vCPU: entering the guest and serving what takes it out again. Its thread owns it; others only kick.
//!
//! ```text
//! run() --> KVM_RUN --> port or memory access: asked of the bus, then in again
//!                   --> kicked: Interrupted       (what was served last is complete in the registers)
//!                   --> triple fault, system event, error: returned, the guest cannot go on
//! ```

use std::sync::Arc;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
    kvm_regs, kvm_sregs,
};
use kvm_ioctls::{VcpuExit as Exit, VcpuFd};
use rebec_cpu::Features;

use crate::{
    Ram, cpuid, entry,
    error::{self, Error, Result},
    exits::{ExitReason, Exits},
    kick::{self, KickState, VcpuKicker},
    run_page::RunPage,
    saved::{MSR_ARCH_CAPABILITIES, clock::GuestClock},
};

/// CPUID 7.0 EDX: there is an MSR that says to what the processor is immune.
const LEAF7_EDX_ARCH_CAPABILITIES: u32 = 1 << 29;

/// Who answers the guest's accesses to addresses that are not RAM and to ports. Called on vCPU threads, several at a time.
pub trait Bus: Sync {
    /// Reads device memory; all of `data` must be set (all ones where nobody answers).
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// Writes device memory.
    fn mmio_write(&self, address: u64, data: &[u8]);
    /// Reads a port, 1, 2 or 4 bytes; all of `data` must be set (all ones where nobody answers).
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// Writes a port, 1, 2 or 4 bytes.
    fn pio_write(&self, port: u16, data: &[u8]);
}

/// Why a vCPU left the guest for good or for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VcpuExit {
    /// It was kicked; its state is complete and may be saved.
    Interrupted,
    /// Triple fault: the guest has no way on.
    Shutdown,
    /// KVM reports an event of the whole machine by its `KVM_SYSTEM_EVENT_*` number.
    SystemEvent {
        /// The number.
        kind: u32,
    },
}

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) index: u8,
    pub(crate) host: HostParts,
    run_page: RunPage,
    pub(crate) kicks: Arc<KickState>,
    /// What its guest is told of the processor, as KVM was: a KVM whose guests ask the processor itself tells of that one.
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
    exits: Arc<Exits>,
}

/// What all vCPUs of a machine have in common.
#[derive(Debug, Clone)]
pub(crate) struct HostParts {
    /// Size of a vCPU's run pages.
    pub run_bytes: usize,
    /// Size of its XSAVE area.
    pub xsave_bytes: usize,
    /// Whether a TSC can tick at another rate than the host's.
    pub scales_tsc: bool,
    /// Whether memory can be mapped before the guest touches it.
    pub pre_faults: bool,
    /// The MSRs that KVM keeps.
    pub msr_indexes: Arc<[u32]>,
    /// The machine's clock.
    pub clock: Arc<GuestClock>,
    /// KVM writes guest memory through the mapping, which so must outlive the vCPU.
    pub ram: Ram,
}

impl Vcpu {
    /// Takes a fresh vCPU and gives it its CPUID and what firmware would have set.
    pub(crate) fn new(fd: VcpuFd, index: u8, host: HostParts, cpuid: &[kvm_cpuid_entry2]) -> Result<Self> {
        let map = || RunPage::map(&fd, host.run_bytes).map_err(|errno| kvm_ioctls::Error::new(errno.raw_os_error()));
        let run_page = map().map_err(error::vcpu(index, "map its run pages"))?;
        let kicks = Arc::new(KickState::new(map().map_err(error::vcpu(index, "map its run pages"))?));
        let mut vcpu = Self { fd, index, host, run_page, kicks, cpuid: vec![], exits: Arc::default() };
        vcpu.set_cpuid(cpuid)?;
        vcpu.wire_local_apic()?;
        vcpu.set_boot_msrs()?;
        Ok(vcpu)
    }

    /// Which of the machine's vCPUs this is; its APIC id too.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Makes the vCPU ready to boot: the first enters a kernel by PVH, the others wait to be started by it.
    pub fn enter_pvh(&mut self, rip: u32, start_info: u32) -> Result<()> {
        if self.index > 0 {
            return self.fd.set_mp_state(entry::waiting()).map_err(self.failed("make it wait to be started"));
        }
        let mut sregs = self.fd.get_sregs().map_err(self.failed("read its system registers"))?;
        entry::pvh_sregs(&mut sregs);
        self.fd.set_sregs(&sregs).map_err(self.failed("set its system registers"))?;
        self.fd.set_regs(&entry::pvh_regs(rip, start_info)).map_err(self.failed("set its registers"))
    }

    /// Runs the guest on this thread until something other than an access must be dealt with.
    pub fn run(&mut self, bus: &dyn Bus) -> Result<VcpuExit> {
        let kicks = self.kicks.clone();
        let _entered = kicks.enter();
        loop {
            let exit = self.fd.run();
            self.exits.count(match exit {
                Ok(Exit::IoIn(..) | Exit::IoOut(..)) => ExitReason::Port,
                Ok(Exit::MmioRead(..) | Exit::MmioWrite(..)) => ExitReason::Memory,
                Err(errno) if errno.errno() == libc::EINTR => ExitReason::Kick,
                _ => ExitReason::Other,
            });
            match exit {
                Ok(Exit::IoIn(..) | Exit::IoOut(..)) => {
                    if let Err(what) = self.run_page.serve_io(bus) {
                        return Err(self.stopped(what));
                    }
                }
                Ok(Exit::MmioRead(address, data)) => bus.mmio_read(address, data),
                Ok(Exit::MmioWrite(address, data)) => bus.mmio_write(address, data),
                Ok(Exit::Shutdown) => return Ok(VcpuExit::Shutdown),
                Ok(Exit::SystemEvent(kind, _)) => return Ok(VcpuExit::SystemEvent { kind }),
                Ok(Exit::InternalError) => return Err(self.internal_error()),
                Ok(Exit::FailEntry(reason, cpu)) => {
                    return Err(self.stopped(format!("the processor refused to enter the guest, reason {reason:#x} on CPU {cpu}")));
                }
                Ok(Exit::Intr) => {}
                Ok(other) => {
                    let what = format!("KVM returned {other:?}, which this machine never asks for");
                    return Err(self.stopped(what));
                }
                // A kick, or another signal: one comes when the machine is put to sleep, and whether the vCPU may go on is then asked anew.
                Err(errno) if errno.errno() == libc::EINTR => {
                    self.kicks.take();
                    return Ok(VcpuExit::Interrupted);
                }
                // A vCPU that waited to be started was woken.
                Err(errno) if errno.errno() == libc::EAGAIN => {
                    if self.kicks.take() {
                        return Ok(VcpuExit::Interrupted);
                    }
                }
                Err(errno) if errno.errno() == libc::EFAULT && !self.host.ram.room().is_empty() => {
                    return Err(self.stopped("its guest went to memory that it has not taken in, or KVM cannot reach its RAM".into()));
                }
                Err(source) => return Err(Error::Vcpu { index: self.index, operation: "run", source }),
            }
        }
    }

    /// Where the guest stood when it faulted for good, for a report in one line.
    pub fn last_state(&self) -> String {
        let state = self.fd.get_regs().and_then(|regs| Ok((regs, self.fd.get_sregs()?)));
        state.map_or_else(|error| format!("KVM does not give its registers: {error}"), |(regs, sregs)| describe(&regs, &sregs))
    }

    /// Its counters; they stay when it has gone.
    pub fn exits(&self) -> Arc<Exits> {
        self.exits.clone()
    }

    /// A handle by which other threads get this vCPU out of the guest.
    pub fn kicker(&self) -> VcpuKicker {
        kick::kicker(&self.kicks)
    }

    /// Names the operation of a failed call.
    pub(crate) fn failed(&self, operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error + use<> {
        error::vcpu(self.index, operation)
    }

    pub(crate) fn set_cpuid(&mut self, entries: &[kvm_cpuid_entry2]) -> Result<()> {
        let too_many = |_| kvm_ioctls::Error::new(libc::E2BIG);
        let cpuid = kvm_bindings::CpuId::from_entries(entries).map_err(too_many).map_err(self.failed("set its CPUID"))?;
        self.fd.set_cpuid2(&cpuid).map_err(self.failed("set its CPUID"))?;
        self.cpuid = entries.to_vec();
        Ok(())
    }

    fn wire_local_apic(&mut self) -> Result<()> {
        let mut apic = self.fd.get_lapic().map_err(self.failed("read its local APIC"))?;
        entry::wire_local_apic(&mut apic);
        self.fd.set_lapic(&apic).map_err(self.failed("set its local APIC"))
    }

    fn set_boot_msrs(&mut self) -> Result<()> {
        for msr in entry::boot_msrs() {
            self.set_msr(msr.index, msr.data)?;
        }
        self.hide_capabilities()
    }

    /// Of a guest that is not told of its processor's immunities, none are kept: it would not go to a host that has fewer.
    fn hide_capabilities(&mut self) -> Result<()> {
        let is_told =
            self.cpuid.iter().any(|entry| (entry.function, entry.index) == (7, 0) && entry.edx & LEAF7_EDX_ARCH_CAPABILITIES != 0);
        if !is_told && self.msr(MSR_ARCH_CAPABILITIES)?.is_some_and(|value| value != 0) {
            self.set_msr(MSR_ARCH_CAPABILITIES, 0)?;
        }
        Ok(())
    }

    /// What its guest sees of the processor and was not to see, in words; nothing, where KVM does as it is told.
    pub(crate) fn seen_beyond(&self) -> Result<Vec<String>> {
        let seen = self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(self.failed("read its CPUID"))?;
        let entries = |all: &[kvm_cpuid_entry2]| all.iter().map(cpuid::entry).collect::<Vec<_>>();
        Ok(Features::of(&entries(seen.as_slice())).missing_on(&Features::of(&entries(&self.cpuid))))
    }

    /// Sets one MSR; whether KVM took it. A refusal is logged: the local KVM, for one, does not have them all.
    pub(crate) fn set_msr(&mut self, index: u32, data: u64) -> Result<bool> {
        let entry = kvm_bindings::kvm_msr_entry { index, data, ..Default::default() };
        let msrs = kvm_bindings::Msrs::from_entries(&[entry]).expect("invariant: one entry is below the limit");
        let taken = self.fd.set_msrs(&msrs).map_err(self.failed("set an MSR"))?;
        if taken == 0 {
            log::warn!("vCPU {}: KVM refuses to set MSR {index:#x} to {data:#x}; left as it is", self.index);
        }
        Ok(taken == 1)
    }

    fn internal_error(&mut self) -> Error {
        let (suberror, data) = self.run_page.internal_error();
        let name = match suberror {
            KVM_INTERNAL_ERROR_EMULATION => "it could not emulate an instruction",
            KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions that cannot happen together",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "an access that cannot be emulated while an event is delivered",
            _ => "of a kind that is new to this program",
        };
        self.stopped(format!("KVM's internal error {suberror}: {name}; data {data:x?}"))
    }

    fn stopped(&self, what: String) -> Error {
        // Where KVM does not even give the registers, the report says so by a rip of all ones.
        let rip = self.fd.get_regs().map_or(u64::MAX, |regs| regs.rip);
        Error::Stopped { index: self.index, rip, what }
    }
}

/// KVM for AMD puts a vCPU that shut down into its reset state, since the processor leaves no other that is defined.
fn describe(regs: &kvm_regs, sregs: &kvm_sregs) -> String {
    const RESET_RIP: u64 = 0xfff0;
    if regs.rip == RESET_RIP && sregs.cr3 == 0 && sregs.cr2 == 0 {
        return "where is not known, as this processor's KVM forgets the registers".into();
    }
    let kvm_sregs { cr0, cr2, cr3, cr4, efer, .. } = sregs;
    format!("rip {:#x} rsp {:#x} cr0 {cr0:#x} cr2 {cr2:#x} cr3 {cr3:#x} cr4 {cr4:#x} efer {efer:#x}", regs.rip, regs.rsp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_fault_is_said() {
        let regs = kvm_regs { rip: 0xfff0, ..Default::default() };
        assert!(describe(&regs, &kvm_sregs::default()).contains("not known"));
        let regs = kvm_regs { rip: 0xffff_ffff_8100_0000, rsp: 0x10, ..Default::default() };
        let sregs = kvm_sregs { cr2: 0x20, cr3: 0x3000, ..Default::default() };
        assert_eq!(describe(&regs, &sregs), "rip 0xffffffff81000000 rsp 0x10 cr0 0x0 cr2 0x20 cr3 0x3000 cr4 0x0 efer 0x0");
    }
}
