//! The machine's clock: KVM's clock beside the host's time of day and time stamp counter, read together.
//!
//! A move goes on with the clock where it stood, plus the real time that passed. Real time is what the two hosts' CLOCK_REALTIME
//! say: where they disagree by more than the move took, the clock stands still instead of stepping back, and where the target
//! is ahead it jumps. Whoever moves a machine compares the two and says how far the target's is ahead ([`told_by_clock_ahead`]).

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::Cap;
use rebec_vmm_saved::{Part, PartKind, SavedMachine};
use serde::{Deserialize, Serialize};

use super::tsc::{ClockMove, ClockReference, host_tsc};
use crate::{
    Machine,
    error::{self, Result},
};

const VERSION: u16 = 1;

/// The clock as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SavedClock {
    reference: ClockReference,
    /// The host's CLOCK_REALTIME at the reference, nanoseconds since 1970.
    realtime_ns: u64,
}

impl SavedClock {
    fn from_part(part: &Part) -> Result<Self> {
        let clock: Self = part.decode(VERSION)?;
        if clock.reference.host_khz == 0 {
            return Err(part.invalid("a time stamp counter of 0 kHz").into());
        }
        Ok(clock)
    }
}

/// What a machine and its vCPUs share about time.
#[derive(Debug)]
pub(crate) struct GuestClock {
    /// Rate of this host's time stamp counter, as KVM measures it.
    pub host_khz: u32,
    moved: OnceLock<ClockMove>,
}

impl GuestClock {
    /// The clock of a machine that begins here.
    pub fn new(host_khz: u32) -> Self {
        Self { host_khz, moved: OnceLock::new() }
    }

    /// How the clock came here, once it was restored.
    pub fn moved(&self) -> Option<&ClockMove> {
        self.moved.get()
    }
}

/// What was saved, as if this host's clock had been as far ahead as the target's is: the machine's clock then goes on by the time that passed and
/// nothing else. A clock that is behind is ahead by less than nothing.
pub fn told_by_clock_ahead(saved: &mut SavedMachine, ahead_ms: i64) -> Result<()> {
    let clock = SavedClock::from_part(&saved.take(PartKind::Clock, 0)?)?;
    let realtime_ns = clock.realtime_ns.saturating_add_signed(ahead_ms.saturating_mul(1_000_000));
    saved.push(Part::encode(PartKind::Clock, 0, VERSION, &SavedClock { realtime_ns, ..clock }));
    Ok(())
}

impl Machine {
    /// Adds the clock's part. The vCPUs stand still: what their guest read last is before what is saved here.
    pub(crate) fn save_clock(&self, saved: &mut SavedMachine) -> Result<()> {
        saved.push(Part::encode(PartKind::Clock, 0, VERSION, &self.read_clock()?));
        Ok(())
    }

    /// Takes the clock's part and lets the clock go on from there. Must come before the vCPUs are restored.
    pub fn restore_clock(&self, saved: &mut SavedMachine) -> Result<()> {
        let part = saved.take(PartKind::Clock, 0)?;
        let clock = SavedClock::from_part(&part)?;
        let data = if self.clock_flags() & KVM_CLOCK_REALTIME != 0 {
            let flags = KVM_CLOCK_REALTIME;
            kvm_clock_data { clock: clock.reference.kvmclock_ns, flags, realtime: clock.realtime_ns, ..Default::default() }
        } else {
            let passed_ns = realtime_ns().saturating_sub(clock.realtime_ns);
            kvm_clock_data { clock: clock.reference.kvmclock_ns.saturating_add(passed_ns), ..Default::default() }
        };
        self.vm.set_clock(&data).map_err(error::machine("set its clock"))?;
        let target = self.read_clock()?.reference;
        let moved = ClockMove { source: clock.reference, target };
        self.clock.moved.set(moved).map_err(|_| part.invalid("a machine's clock is restored once").into())
    }

    fn read_clock(&self) -> Result<SavedClock> {
        let before = host_tsc();
        let data = self.vm.get_clock().map_err(error::machine("read its clock"))?;
        let after = host_tsc();
        let between = before.wrapping_add(after.wrapping_sub(before) / 2);
        // KVM reads all three at one instant where the guest's clock runs on the counter; else they are some microseconds apart.
        let told = |flag: u32| data.flags & flag != 0;
        let host_tsc = if told(KVM_CLOCK_HOST_TSC) { data.host_tsc } else { between };
        let realtime_ns = if told(KVM_CLOCK_REALTIME) { data.realtime } else { realtime_ns() };
        let reference = ClockReference { kvmclock_ns: data.clock, host_tsc, host_khz: self.clock.host_khz };
        Ok(SavedClock { reference, realtime_ns })
    }

    /// Which `KVM_CLOCK_*` flags this KVM takes.
    fn clock_flags(&self) -> u32 {
        self.vm.check_extension_int(Cap::AdjustClock) as u32
    }
}

/// Decodes a part and carries its clock over to a made-up host, as restoring does.
#[cfg(fuzzing)]
pub(super) fn check(part: &Part) -> Result<()> {
    let source = SavedClock::from_part(part)?.reference;
    let target = ClockReference { kvmclock_ns: source.kvmclock_ns / 2, host_tsc: 1 << 40, host_khz: 2_000_000 };
    let sample = super::tsc::TscSample { guest_khz: source.host_khz, guest: source.host_tsc, host: source.kvmclock_ns };
    for target in [target, ClockReference { kvmclock_ns: u64::MAX, ..target }] {
        let moved = ClockMove { source, target };
        moved.guest_at(&sample, moved.offset(&sample));
    }
    Ok(())
}

/// A sound part.
#[cfg(fuzzing)]
pub(super) fn sample() -> Part {
    let reference = ClockReference { kvmclock_ns: 300, host_tsc: 5, host_khz: 2_000_000 };
    Part::encode(PartKind::Clock, 0, VERSION, &SavedClock { reference, realtime_ns: 1 })
}

/// CLOCK_REALTIME; a host that lives before 1970 or after 2554 is taken to live at that end.
fn realtime_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let reference = ClockReference { kvmclock_ns: 300, host_tsc: 5, host_khz: 128 };
        let part = Part::encode(PartKind::Clock, 0, VERSION, &SavedClock { reference, realtime_ns: 1 });
        assert_eq!(part.bytes, [0xac, 2, 5, 0x80, 1, 1]);
    }
}
