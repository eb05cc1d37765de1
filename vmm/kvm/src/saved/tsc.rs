//! A vCPU's time stamp counter against its host's: reading it, setting it, and the arithmetic of moving it.
//!
//! ```text
//! source:  guest counter g at host counter h     (one sample a vCPU)
//!          clock reference: kvmclock k0 at host counter h0
//!          at the reference the guest's counter was  g0 = g + (h0 - h) * guest_khz / host_khz
//! target:  clock reference: kvmclock k1 at host counter h1, k1 - k0 the time that passed
//!          at that reference the guest's counter is  g1 = g0 + (k1 - k0) * guest_khz
//!          and later, at host counter h2,            g2 = g1 + (h2 - h1) * guest_khz / host_khz
//! ```
//! Where both tick alike KVM keeps a plain offset (`KVM_VCPU_TSC_OFFSET`, Documentation/virt/kvm/devices/vcpu.rst), samples are
//! exact, and vCPUs that had one offset have one offset again. Where KVM scales, the counter is read and written as an MSR, and
//! KVM makes writes that come close together equal.

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::{errno, ioctl::ioctl_with_ref, ioctl_iow_nr};

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// A vCPU's counter and its host's, read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TscSample {
    /// Rate of the guest's counter.
    pub guest_khz: u32,
    /// Its value.
    pub guest: u64,
    /// The host's counter then.
    pub host: u64,
}

/// The machine's clock at one moment on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClockReference {
    /// KVM's clock, in nanoseconds.
    pub kvmclock_ns: u64,
    /// The host's counter then.
    pub host_tsc: u64,
    /// Its rate.
    pub host_khz: u32,
}

/// How a machine's clock went on at this host: what vCPUs set their counters by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClockMove {
    pub source: ClockReference,
    pub target: ClockReference,
}

impl ClockMove {
    /// The guest's counter at the target's reference.
    pub fn guest_at_target(&self, sample: &TscSample) -> u64 {
        let to_reference = scale(self.source.host_tsc.wrapping_sub(sample.host) as i64, sample.guest_khz, self.source.host_khz);
        // KVM's clock never steps back over a move; that two readings of it should is ruled out here once more.
        let passed_ns = self.target.kvmclock_ns.saturating_sub(self.source.kvmclock_ns);
        let passed = u128::from(passed_ns) * u128::from(sample.guest_khz) / 1_000_000;
        sample.guest.wrapping_add_signed(to_reference).wrapping_add(passed as u64)
    }

    /// What to add to the target's counter to get the guest's, where both tick alike.
    pub fn offset(&self, sample: &TscSample) -> u64 {
        self.guest_at_target(sample).wrapping_sub(self.target.host_tsc)
    }

    /// The guest's counter when the target's counter is `host_tsc`.
    pub fn guest_at(&self, sample: &TscSample, host_tsc: u64) -> u64 {
        let since = scale(host_tsc.wrapping_sub(self.target.host_tsc) as i64, sample.guest_khz, self.target.host_khz);
        self.guest_at_target(sample).wrapping_add_signed(since)
    }
}

/// A difference of one counter as a difference of another; counters and rates are 64 and 32 bits, so this cannot overflow.
fn scale(difference: i64, to_khz: u32, from_khz: u32) -> i64 {
    (i128::from(difference) * i128::from(to_khz) / i128::from(from_khz.max(1))) as i64
}

/// This CPU's time stamp counter.
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and reading it touches nothing.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The offset that KVM adds to the host's counter, where KVM has one to give.
pub(crate) fn offset(vcpu: &VcpuFd) -> Result<u64, errno::Error> {
    let mut offset = 0_u64;
    let request = attribute(&raw mut offset);
    // SAFETY: KVM writes eight bytes to the address in the request, which is that of a live u64.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &request) };
    if result == 0 { Ok(offset) } else { Err(errno::Error::last()) }
}

/// Sets that offset.
pub(crate) fn set_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<(), errno::Error> {
    let request = attribute(&raw mut offset);
    // SAFETY: KVM reads eight bytes at the address in the request, which is that of a live u64.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &request) };
    if result == 0 { Ok(()) } else { Err(errno::Error::last()) }
}

fn attribute(value: *mut u64) -> kvm_device_attr {
    kvm_device_attr { group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr: value as u64, flags: 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KHZ: u32 = 2_400_000;

    fn reference(kvmclock_ns: u64, host_tsc: u64) -> ClockReference {
        ClockReference { kvmclock_ns, host_tsc, host_khz: KHZ }
    }

    #[test]
    fn the_counter_goes_on_by_the_time_that_passed() {
        let moved = ClockMove { source: reference(1_000_000_000, 50_000), target: reference(1_500_000_000, 9_000_000_000_000) };
        // Sampled 10,000 ticks before the reference; half a second passed; read 24,000 ticks after the target's reference.
        let sample = TscSample { guest_khz: KHZ, guest: 7_000, host: 40_000 };
        assert_eq!(moved.guest_at_target(&sample), 7_000 + 10_000 + 1_200_000_000);
        assert_eq!(moved.offset(&sample), (7_000_u64 + 10_000 + 1_200_000_000).wrapping_sub(9_000_000_000_000));
        assert_eq!(moved.guest_at(&sample, 9_000_000_024_000), 17_000 + 1_200_000_000 + 24_000);
    }

    #[test]
    fn another_rate_is_scaled() {
        let target = ClockReference { host_khz: 1_200_000, ..reference(1_500_000_000, 0) };
        let moved = ClockMove { source: reference(1_000_000_000, 0), target };
        let sample = TscSample { guest_khz: KHZ, guest: 5, host: 0 };
        assert_eq!(moved.guest_at(&sample, 1_200), 5 + 1_200_000_000 + 2_400);
    }

    #[test]
    fn a_clock_that_seems_to_step_back_stands_still() {
        let moved = ClockMove { source: reference(1_000, 0), target: reference(900, 0) };
        assert_eq!(moved.guest_at_target(&TscSample { guest_khz: KHZ, guest: 5, host: 0 }), 5);
    }

    proptest! {
        #[test]
        fn no_numbers_panic_and_equal_offsets_stay_equal(k in any::<[u64; 6]>(), khz in any::<[u32; 3]>(), later in any::<u32>()) {
            let source = ClockReference { kvmclock_ns: k[0], host_tsc: k[1], host_khz: khz[0] };
            let target = ClockReference { kvmclock_ns: k[2], host_tsc: k[3], host_khz: khz[1] };
            let moved = ClockMove { source, target };
            moved.guest_at(&TscSample { guest_khz: khz[2], guest: k[4], host: k[5] }, k[0]);
            let same = ClockMove { source: ClockReference { host_khz: KHZ, ..source }, target };
            let first = TscSample { guest_khz: KHZ, guest: k[4], host: k[5] };
            let second = TscSample { guest: k[4].wrapping_add(later.into()), host: k[5].wrapping_add(later.into()), ..first };
            // Samples exactly half the counter's range from the reference have two nearest ones; real ones are close to it.
            prop_assume!(k[1].wrapping_sub(k[5]) as i64 >= i64::MIN + i64::from(later));
            prop_assert_eq!(same.offset(&first), same.offset(&second));
        }
    }
}
