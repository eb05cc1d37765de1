//! The XSAVE area of a vCPU: KVM_GET_XSAVE2 and KVM_SET_XSAVE on a buffer of the size that KVM gives.

use kvm_bindings::{KVMIO, kvm_cpuid_entry2, kvm_xsave};
use vmm_sys_util::{
    errno,
    ioctl::{ioctl_with_mut_ptr, ioctl_with_ptr},
    ioctl_ior_nr, ioctl_iow_nr,
};
use zerocopy::IntoBytes;

use crate::{Vcpu, error::Result};

/// Which parts of the area are in use, in its header (Intel SDM 1 §13.4.2), in words of four bytes.
const HEADER_IN_USE: usize = 512 / 4;
/// x87 and SSE, which every guest has.
const LEGACY: u64 = 3;

/// The parts that a guest with this CPUID can have anything in.
fn parts(cpuid: &[kvm_cpuid_entry2]) -> u64 {
    let entry = |subleaf| cpuid.iter().find(move |entry| (entry.function, entry.index) == (0xd, subleaf));
    let xcr0 = entry(0).map_or(0, |entry| u64::from(entry.eax) | u64::from(entry.edx) << 32);
    LEGACY | xcr0 | entry(1).map_or(0, |entry| u64::from(entry.ecx))
}

/// The area without these parts: older kernels say that PKRU is in use whether the guest has it or not, and a host without would take none of it.
fn without(mut area: Vec<u32>, parts: u64) -> Vec<u32> {
    if let Some([low, high]) = area.get_mut(HEADER_IN_USE..HEADER_IN_USE + 2) {
        (*low, *high) = (*low & !(parts as u32), *high & !((parts >> 32) as u32));
    }
    area
}

ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);

impl Vcpu {
    /// The area, but for parts that its guest has not.
    pub(crate) fn xsave(&self) -> Result<Vec<u32>> {
        let mut area = self.empty_xsave();
        // SAFETY: KVM writes as many bytes as KVM_CAP_XSAVE2 says, which is the size of the buffer; the size never grows, as
        // this process asks for no further features (arch_prctl).
        let result = unsafe { ioctl_with_mut_ptr(&self.fd, KVM_GET_XSAVE2(), area.as_mut_ptr()) };
        if result == 0 { Ok(without(area, !parts(&self.cpuid))) } else { Err(self.failed("read its XSAVE area")(errno::Error::last())) }
    }

    /// Sets the area to these bytes, which are at most as many as it has, and zeros.
    pub(crate) fn set_xsave(&self, bytes: &[u8]) -> Result<()> {
        let mut area = self.empty_xsave();
        let known = bytes.len().min(area.as_bytes().len());
        area.as_mut_bytes()[..known].copy_from_slice(&bytes[..known]);
        // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 says, which is the size of the buffer (see `xsave`).
        let result = unsafe { ioctl_with_ptr(&self.fd, KVM_SET_XSAVE(), area.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(self.failed("set its XSAVE area")(errno::Error::last())) }
    }

    fn empty_xsave(&self) -> Vec<u32> {
        vec![0; self.host.xsave_bytes.div_ceil(size_of::<u32>())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_guest_may_have_is_in_use() {
        let leaf = |index, eax, ecx| kvm_cpuid_entry2 { function: 0xd, index, eax, ecx, ..Default::default() };
        assert_eq!(parts(&[]), 3);
        let guest = parts(&[leaf(0, 7, 0), leaf(1, 0xf, 1 << 8)]);
        assert_eq!(guest, 0x107);
        let mut area = vec![0; 1024];
        area[HEADER_IN_USE] = 0x2e7;
        area[HEADER_IN_USE + 1] = 1;
        let area = without(area, !guest);
        assert_eq!(area[HEADER_IN_USE..HEADER_IN_USE + 2], [0x007, 0]);
        assert_eq!(without(vec![7; 4], !guest), [7; 4]);
    }
}
