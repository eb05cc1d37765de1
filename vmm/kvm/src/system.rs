//! The KVM of this host: what it must be able to do, asked once before a machine is made.

use std::{fs::File, io, os::fd::IntoRawFd};

use kvm_bindings::{KVM_API_VERSION, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_cpuid_entry2, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VmFd};
use rebec_cpu::{Entry, Features};
use rebec_layout::VCPUS_MAX;

use crate::{
    cpuid,
    error::{self, Error, Result},
};

/// Size of `struct kvm_xsave` before it could grow, which KVM never goes below.
const XSAVE_BYTES_MIN: usize = 4096;

/// Without these there is no machine. Names are KVM's, so that a user can search for them.
const NEEDED: [(Cap, &str); 19] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::DestroyMemoryRegionWorks, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave2, "KVM_CAP_XSAVE2"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];
/// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`, which kvm-ioctls has no name for.
const CAP_MANUAL_DIRTY_LOG: u32 = kvm_bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
/// Both flags: without "initially set" the start of a log write-protects all memory at once.
const MANUAL_DIRTY_LOG_FLAGS: u32 = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;

/// Opens `/dev/kvm`. Call it before sealing; [`crate::Machine::create`] takes the descriptor after the last fork.
pub fn open_kvm() -> Result<File> {
    File::options().read(true).write(true).open("/dev/kvm").map_err(|source| {
        let advice = match source.kind() {
            io::ErrorKind::NotFound => "this host has no KVM: load kvm_amd or kvm_intel, or turn virtualisation on in its firmware",
            io::ErrorKind::PermissionDenied => "not permitted: run as root or as a member of the group kvm",
            _ => "it does not answer",
        };
        Error::Open { advice, source }
    })
}

/// What this host would show a guest of its processor: the CPUID of a machine with one vCPU, on the KVM that the descriptor is of.
pub fn host_cpuid(kvm: File) -> Result<Vec<Entry>> {
    System::check(kvm)?.table()
}

/// A KVM that has all that a machine needs.
#[derive(Debug)]
pub(crate) struct System {
    pub kvm: Kvm,
}

impl System {
    /// Checks what the descriptor's KVM can do.
    pub fn check(kvm: File) -> Result<Self> {
        let kvm = kvm_from(kvm);
        let found = kvm.get_api_version();
        if u32::try_from(found) != Ok(KVM_API_VERSION) {
            return Err(Error::ApiVersion { found, needed: KVM_API_VERSION });
        }
        let dirty_log_flags = kvm.check_extension_raw(CAP_MANUAL_DIRTY_LOG.into()) as u32;
        check_capabilities(|cap| kvm.check_extension(cap), dirty_log_flags)?;
        Ok(Self { kvm })
    }

    /// Most vCPUs of one machine here.
    pub fn vcpus_max(&self) -> usize {
        self.kvm.get_max_vcpus().min(VCPUS_MAX.into())
    }

    /// The CPUID entries that this host's KVM can give to a guest.
    pub fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>> {
        let cpuid = self.kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
        Ok(cpuid.map_err(error::machine("ask which CPUID it supports"))?.as_slice().to_vec())
    }

    /// What besides these decides about a guest's CPUID here.
    pub fn cpuid_options(&self, vcpus: u8) -> cpuid::Options {
        cpuid::Options { vcpus, tsc_deadline: self.has_tsc_deadline(), invariant_tsc: self.can_scale_tsc() }
    }

    /// What this host gives guests of its processor.
    pub fn features(&self) -> Result<Features> {
        Ok(Features::of(&self.table()?))
    }

    /// The CPUID of a guest with one vCPU.
    pub fn table(&self) -> Result<Vec<Entry>> {
        let cpuid = cpuid::synthesise(&self.supported_cpuid()?, self.cpuid_options(1), 0);
        Ok(cpuid.iter().map(cpuid::entry).collect())
    }

    /// The MSRs that KVM says belong to a vCPU's state.
    pub fn msr_indexes(&self) -> Result<Vec<u32>> {
        let list = self.kvm.get_msr_index_list();
        Ok(list.map_err(error::machine("ask which MSRs it keeps"))?.as_slice().to_vec())
    }

    /// Size of a vCPU's XSAVE area. It grows only by arch_prctl, which this program never calls.
    pub fn xsave_bytes(&self) -> usize {
        usize::try_from(self.kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(XSAVE_BYTES_MIN)
    }

    /// Whether the guest's APIC timer may be programmed by TSC deadline.
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// Whether memory can be mapped before the guest touches it.
    pub fn can_pre_fault(&self) -> bool {
        self.kvm.check_extension_raw(kvm_bindings::KVM_CAP_PRE_FAULT_MEMORY.into()) > 0
    }

    /// Whether a guest's TSC may tick at another rate than the host's.
    pub fn can_scale_tsc(&self) -> bool {
        self.kvm.check_extension(Cap::TscControl)
    }
}

/// Chooses manual protection of the dirty log, which is possible only before the first one is started.
pub(crate) fn enable_manual_dirty_log(vm: &VmFd) -> Result<()> {
    let cap = kvm_enable_cap { cap: CAP_MANUAL_DIRTY_LOG, args: [MANUAL_DIRTY_LOG_FLAGS.into(), 0, 0, 0], ..Default::default() };
    vm.enable_cap(&cap).map_err(error::machine("choose manual protection of the dirty log"))
}

/// Takes the PMU from a machine's vCPUs, where this KVM can: what its CPUID does not show a guest could still program, and it would not travel.
/// Only before the first vCPU is there.
pub(crate) fn disable_pmu(kvm: &Kvm, vm: &VmFd) -> Result<()> {
    let can = kvm.check_extension_raw(kvm_bindings::KVM_CAP_PMU_CAPABILITY.into()) as u32 & kvm_bindings::KVM_PMU_CAP_DISABLE != 0;
    if !can {
        return Ok(());
    }
    let args = [kvm_bindings::KVM_PMU_CAP_DISABLE.into(), 0, 0, 0];
    let cap = kvm_enable_cap { cap: kvm_bindings::KVM_CAP_PMU_CAPABILITY, args, ..Default::default() };
    vm.enable_cap(&cap).map_err(error::machine("take the PMU away"))
}

fn check_capabilities(has: impl Fn(Cap) -> bool, dirty_log_flags: u32) -> Result<()> {
    let mut missing: Vec<&str> = NEEDED.iter().filter(|(cap, _)| !has(*cap)).map(|(_, name)| *name).collect();
    if dirty_log_flags & MANUAL_DIRTY_LOG_FLAGS != MANUAL_DIRTY_LOG_FLAGS {
        missing.push("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
    }
    if missing.is_empty() { Ok(()) } else { Err(Error::Capabilities { missing: missing.join(", ") }) }
}

fn kvm_from(file: File) -> Kvm {
    use std::os::fd::FromRawFd;
    // SAFETY: `into_raw_fd` gives the only ownership of an open descriptor to the `Kvm`. Whether it is KVM's is asked right after.
    unsafe { Kvm::from_raw_fd(file.into_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_will_do() {
        let system = System::check(open_kvm().unwrap()).unwrap();
        assert!(system.vcpus_max() >= 2);
        assert!(!system.supported_cpuid().unwrap().is_empty());
        assert!(!system.msr_indexes().unwrap().is_empty());
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert!(check_capabilities(|_| true, MANUAL_DIRTY_LOG_FLAGS).is_ok());
        let error = check_capabilities(|cap| cap != Cap::Irqfd, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE).unwrap_err();
        let expected = "this host's KVM lacks KVM_CAP_IRQFD, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: a newer kernel is needed";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_descriptor_of_something_else_is_named() {
        let error = System::check(File::open("/dev/null").unwrap()).unwrap_err();
        assert!(matches!(error, Error::ApiVersion { .. }), "{error:?}");
        assert!(error.to_string().contains("/dev/kvm"), "{error}");
    }
}
