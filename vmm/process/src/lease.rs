//! The lease of a VM that its keeper may start elsewhere (docs/formats/lease.md): its vCPUs enter the guest only while it lasts, whatever else
//! goes on here, so that a VMM whose agent is dead or whose host is cut off stands still in time.
//!
//! ```text
//! control socket --extend--> [until] <--holds?-- each vCPU, before it enters the guest
//!                               ^--holds?-- the thread `lease`, which kicks the vCPUs out when it has ended
//! ```
//! An end is an instant of CLOCK_BOOTTIME, which counts the time a machine sleeps, is the same for the agent, and makes a line that was read
//! late harmless. Devices are left alone: what a guest had asked of them before ends in milliseconds.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rebec_devices::Threads;
use rebec_kvm::VcpuKicker;
use rustix::time::{ClockId, clock_gettime};

use crate::threads::ServiceThreads;

/// Between two looks of the thread that kicks: how late a machine that slept, or a lease that is shorter than this, may be noticed. The keeper's
/// margin is above it.
const LOOK_PERIOD: Duration = Duration::from_millis(250);
/// Between two looks of a vCPU that may not run.
pub const STILL_PERIOD: Duration = Duration::from_millis(10);
/// No lease ends later than this from now: a caller with another clock or unit in mind is refused.
const AHEAD_MAX: Duration = Duration::from_secs(3600);

/// Whether the VM may run. Clones are the same lease.
#[derive(Clone)]
pub struct Lease(Option<Arc<AtomicU64>>);

impl Lease {
    /// The lease of `--lease`: it has to be extended first. Without that option the VM needs none.
    pub fn new(needed: bool) -> Self {
        Self(needed.then(Arc::default))
    }

    /// Whether vCPUs may enter the guest now.
    pub fn holds(&self) -> bool {
        self.left_ms() != Some(0)
    }

    /// How long it still lasts; none where the VM needs none.
    pub fn left_ms(&self) -> Option<u64> {
        self.0.as_ref().map(|until| until.load(Ordering::Relaxed).saturating_sub(now_ms()))
    }

    /// Makes it last until an instant; one that is earlier than the end it has changes nothing.
    pub fn extend(&self, until_ms: u64) -> Result<(), String> {
        let until = self.0.as_ref().ok_or("the VM was started without --lease and needs none")?;
        let latest = now_ms().saturating_add(AHEAD_MAX.as_millis().try_into().unwrap_or(u64::MAX));
        if until_ms > latest {
            return Err(format!("{until_ms} ms is more than {} s ahead on CLOCK_BOOTTIME", AHEAD_MAX.as_secs()));
        }
        until.fetch_max(until_ms, Ordering::Relaxed);
        Ok(())
    }

    /// Starts the thread that gets vCPUs out of the guest when the lease has ended, as long as `machine` lives.
    pub fn enforce<T: Send + Sync + 'static>(&self, machine: Weak<T>, kickers: Vec<VcpuKicker>) -> io::Result<()> {
        if self.0.is_none() {
            return Ok(());
        }
        let lease = self.clone();
        let body = move || {
            while machine.strong_count() > 0 {
                if !lease.holds() {
                    kickers.iter().for_each(VcpuKicker::kick);
                }
                let left = lease.left_ms().filter(|left| *left > 0).map_or(LOOK_PERIOD, Duration::from_millis);
                std::thread::sleep(left.min(LOOK_PERIOD));
            }
        };
        ServiceThreads.spawn("lease", Box::new(body)).map(drop)
    }
}

/// Now, on the clock that leases are told in.
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds * 1000 + nanoseconds / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_holds_until_its_end_and_is_never_shortened() {
        let lease = Lease::new(true);
        assert_eq!((lease.holds(), lease.left_ms()), (false, Some(0)));
        lease.extend(now_ms() + 60_000).unwrap();
        lease.extend(now_ms() + 1).unwrap();
        assert!(lease.clone().holds() && lease.left_ms().unwrap() > 50_000);
        // A line that was read long after it was sent names an instant that is over.
        let late = Lease::new(true);
        late.extend(now_ms().saturating_sub(1)).unwrap();
        assert!(!late.holds());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(Lease::new(false).holds());
        assert!(Lease::new(false).extend(now_ms()).unwrap_err().contains("--lease"));
        assert!(Lease::new(true).extend(u64::MAX).unwrap_err().contains("ahead"));
    }
}
