//! The XSAVE area of a vCPU: KVM_GET_XSAVE2 and KVM_SET_XSAVE on a buffer of the size that KVM gives.

use kvm_bindings::{KVMIO, kvm_xsave};
use vmm_sys_util::{
    errno,
    ioctl::{ioctl_with_mut_ptr, ioctl_with_ptr},
    ioctl_ior_nr, ioctl_iow_nr,
};
use zerocopy::IntoBytes;

use crate::{Vcpu, error::Result};

ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);

impl Vcpu {
    /// The area, all of it.
    pub(crate) fn xsave(&self) -> Result<Vec<u32>> {
        let mut area = self.empty_xsave();
        // SAFETY: KVM writes as many bytes as KVM_CAP_XSAVE2 says, which is the size of the buffer; the size never grows, as
        // this process asks for no further features (arch_prctl).
        let result = unsafe { ioctl_with_mut_ptr(&self.fd, KVM_GET_XSAVE2(), area.as_mut_ptr()) };
        if result == 0 { Ok(area) } else { Err(self.failed("read its XSAVE area")(errno::Error::last())) }
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
