//! The state of one vCPU.
//!
//! ```text
//! save     MP state first (reading it may act on a pending INIT or SIPI), then registers, FPU, local APIC, MSRs, and pending
//!          events last, when nothing read after them can change them
//! restore  checks      nothing is set that this host would not have given (`confined`), and what KVM does not take ends the restoring
//!          CPUID       bounds what the rest may say
//!          TSC rate    before any counter value
//!          SREGS       brings the APIC base, without which LAPIC is not taken
//!          REGS        clears pending exceptions, so before the events
//!          XSAVE, XCRS, debug registers
//!          LAPIC       before the MSRs: a TSC deadline is taken only in the APIC's deadline mode
//!          MSRs        without the TSC and its deadline
//!          TSC         against the machine's clock, which is set already
//!          deadline    after the TSC that it is compared with
//!          MP state, events, and a note to the guest that it was stopped
//! ```

use std::ops::RangeInclusive;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use rebec_vmm_saved::{Part, PartKind};
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use super::{
    Abi, confined,
    tsc::{self, TscSample},
};
use crate::{
    Vcpu,
    error::{Error, Result},
};

const VERSION: u16 = 1;
/// KVM lists about 100 MSRs today.
const MSRS_MAX: usize = 1024;
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// Writing these has KVM write the time of day into guest memory, where a page that was verified may lie already. A guest writes
/// them itself whenever it wants to know; nobody reads them back.
const MSRS_KVM_WALL_CLOCK: [u32; 2] = [0x11, 0x4b56_4d00];
/// Hyper-V's: KVM lists them, and no guest is told that they are there (`cpuid`).
const MSRS_HYPERV: RangeInclusive<u32> = 0x4000_0000..=0x4000_0fff;
/// What KVM keeps and does not list: ranges of memory types, and banks of machine checks, of which one may be pending.
const MSRS_UNLISTED: [RangeInclusive<u32>; 5] = [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x400..=0x47f];

const APIC_IRR: usize = 0x200;
const APIC_LVT_TIMER: usize = 0x320;
const APIC_TIMER_INITIAL: usize = 0x380;
const APIC_TIMER_CURRENT: usize = 0x390;
const LVT_VECTOR: u32 = 0xff;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TIMER_MODE: u32 = 3 << 17;
const LVT_TIMER_ONE_SHOT: u32 = 0;
const LVT_TIMER_DEADLINE: u32 = 2 << 17;
/// Vectors below are the processor's own exceptions.
const VECTOR_MIN: u32 = 16;

/// A vCPU as it travels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedVcpu {
    cpuid: Vec<Abi<kvm_cpuid_entry2>>,
    mp_state: Abi<kvm_mp_state>,
    regs: Abi<kvm_regs>,
    sregs: Abi<kvm_sregs>,
    /// As KVM_GET_XSAVE2 gives it, a multiple of four bytes.
    xsave: Vec<u8>,
    xcrs: Abi<kvm_xcrs>,
    debugregs: Abi<kvm_debugregs>,
    lapic: Abi<kvm_lapic_state>,
    /// Index and value, in the order in which KVM lists them; without those that [`travels`] leaves out, and with those of [`MSRS_UNLISTED`] that
    /// are not zero.
    msrs: Vec<(u32, u64)>,
    tsc: TscSample,
    tsc_deadline: Option<u64>,
    events: Abi<kvm_vcpu_events>,
}

impl Vcpu {
    /// Says everything about this vCPU. It stands still: [`Vcpu::run`] returned.
    pub fn save(&mut self) -> Result<Part> {
        let mp_state = Abi(self.fd.get_mp_state().map_err(self.failed("read its MP state"))?);
        let cpuid = self.cpuid.clone();
        let mut saved = SavedVcpu {
            cpuid: cpuid.iter().map(|entry| Abi(*entry)).collect(),
            mp_state,
            regs: Abi(self.fd.get_regs().map_err(self.failed("read its registers"))?),
            sregs: Abi(self.fd.get_sregs().map_err(self.failed("read its system registers"))?),
            xsave: self.xsave()?.as_bytes().to_vec(),
            xcrs: Abi(self.fd.get_xcrs().map_err(self.failed("read its extended control registers"))?),
            debugregs: Abi(self.fd.get_debug_regs().map_err(self.failed("read its debug registers"))?),
            lapic: Abi(self.fd.get_lapic().map_err(self.failed("read its local APIC"))?),
            msrs: [self.readable_msrs()?, self.unlisted_msrs()?].concat(),
            tsc: self.sample_tsc()?,
            tsc_deadline: self.msr(MSR_TSC_DEADLINE)?,
            events: Abi(self.fd.get_vcpu_events().map_err(self.failed("read its pending events"))?),
        };
        repeat_expired_timer(&mut saved);
        Ok(Part::encode(PartKind::Vcpu, self.index.into(), VERSION, &saved))
    }

    /// Takes what [`Vcpu::save`] said. The vCPU has not run, and the machine's clock is restored.
    pub fn restore(&mut self, part: Part) -> Result<()> {
        let saved = SavedVcpu::from_part(&part, self.host.xsave_bytes)?;
        let cpuid: Vec<kvm_cpuid_entry2> = saved.cpuid.iter().map(|entry| entry.0).collect();
        let msrs = self.confine(&part, &saved, &cpuid)?;
        self.set_cpuid(&cpuid)?;
        self.set_tsc_rate(saved.tsc.guest_khz)?;
        self.fd.set_sregs(&saved.sregs.0).map_err(self.failed("set its system registers"))?;
        self.fd.set_regs(&saved.regs.0).map_err(self.failed("set its registers"))?;
        self.set_xsave(&saved.xsave)?;
        self.fd.set_xcrs(&saved.xcrs.0).map_err(self.failed("set its extended control registers"))?;
        self.fd.set_debug_regs(&saved.debugregs.0).map_err(self.failed("set its debug registers"))?;
        self.fd.set_lapic(&saved.lapic.0).map_err(self.failed("set its local APIC"))?;
        for (index, data) in msrs {
            self.restore_msr(&part, index, data)?;
        }
        self.continue_tsc(&part, &saved.tsc)?;
        if let Some(deadline) = saved.tsc_deadline
            && !self.set_msr(MSR_TSC_DEADLINE, deadline)?
            && deadline != 0
        {
            return Err(part.invalid("this host's KVM does not take the deadline of its timer").into());
        }
        self.fd.set_mp_state(saved.mp_state.0).map_err(self.failed("set its MP state"))?;
        self.fd.set_vcpu_events(&saved.events.0).map_err(self.failed("set its pending events"))?;
        self.note_pause()
    }

    /// The MSRs to set; an error names what this host would not have given, before anything is set.
    fn confine(&self, part: &Part, saved: &SavedVcpu, cpuid: &[kvm_cpuid_entry2]) -> Result<Vec<(u32, u64)>> {
        let mut why = confined::cpuid(cpuid, &self.cpuid);
        why.extend(confined::efer(saved.sregs.0.efer));
        let mut set = Vec::with_capacity(saved.msrs.len());
        for &(index, value) in &saved.msrs {
            let is_here = self.host.msr_indexes.contains(&index) || is_unlisted(index);
            let here = if is_here { self.msr(index)? } else { None };
            match confined::msr(index, value, here) {
                Some(reason) => why.push(reason),
                None if here.is_some() && confined::is_given(index) => set.push((index, value)),
                // It is zero, and this host has none.
                None => {}
            }
        }
        if why.is_empty() { Ok(set) } else { Err(part.invalid(format!("this host gives no guest {}", why.join(", "))).into()) }
    }

    /// Sets an MSR that this host has. One that KVM does not take, and that is not what it should be already, would change under the guest.
    fn restore_msr(&mut self, part: &Part, index: u32, data: u64) -> Result<()> {
        if !self.set_msr(index, data)? && self.msr(index)? != Some(data) {
            return Err(part.invalid(format!("this host's KVM does not take MSR {index:#x} of {data:#x}")).into());
        }
        Ok(())
    }

    /// Tells the guest, if it uses KVM's clock, that it was stopped, so that its watchdogs do not blame a CPU for the gap. To be
    /// called when a paused vCPU goes on at the same host; a restored one has been told.
    pub fn note_pause(&self) -> Result<()> {
        match self.fd.kvmclock_ctrl() {
            // The guest does not use KVM's clock (yet).
            Err(errno) if errno.errno() == libc::EINVAL => Ok(()),
            result => result.map_err(self.failed("tell it that it was stopped")),
        }
    }

    /// The MSRs that KVM lists and gives, but for those that [`travels`] leaves out.
    pub(crate) fn readable_msrs(&self) -> Result<Vec<(u32, u64)>> {
        let mut readable = Vec::with_capacity(self.host.msr_indexes.len());
        for &index in self.host.msr_indexes.iter().filter(|index| travels(**index) && confined::is_given(**index)) {
            match self.msr(index)? {
                Some(value) => readable.push((index, value)),
                None => log::warn!("vCPU {}: KVM lists MSR {index:#x} but refuses to read it; left out", self.index),
            }
        }
        Ok(readable)
    }

    fn unlisted_msrs(&self) -> Result<Vec<(u32, u64)>> {
        let mut found = Vec::new();
        for index in MSRS_UNLISTED.into_iter().flatten() {
            if !self.host.msr_indexes.contains(&index)
                && let Some(value) = self.msr(index)?.filter(|value| *value != 0)
            {
                found.push((index, value));
            }
        }
        Ok(found)
    }

    /// One MSR's value, if KVM gives it.
    pub(crate) fn msr(&self, index: u32) -> Result<Option<u64>> {
        let entry = kvm_bindings::kvm_msr_entry { index, ..Default::default() };
        let mut msrs = kvm_bindings::Msrs::from_entries(&[entry]).expect("invariant: one entry is below the limit");
        let given = self.fd.get_msrs(&mut msrs).map_err(self.failed("read an MSR"))?;
        Ok((given == 1).then(|| msrs.as_slice()[0].data))
    }

    fn sample_tsc(&self) -> Result<TscSample> {
        let guest_khz = self.fd.get_tsc_khz().map_err(self.failed("read its TSC rate"))?;
        if guest_khz == self.host.clock.host_khz
            && let Ok(offset) = tsc::offset(&self.fd)
        {
            let host = tsc::host_tsc();
            return Ok(TscSample { guest_khz, guest: host.wrapping_add(offset), host });
        }
        let before = tsc::host_tsc();
        let guest = self.msr(MSR_TSC)?.ok_or_else(|| self.failed("read its TSC")(kvm_ioctls::Error::new(libc::EINVAL)))?;
        let host = before.wrapping_add(tsc::host_tsc().wrapping_sub(before) / 2);
        Ok(TscSample { guest_khz, guest, host })
    }

    /// Has the counter tick at the guest's rate; where KVM cannot, at the host's, which the caller has found close enough. KVM
    /// without scaling would take a higher rate, and then correct the counter at every entry: no vCPU would trust it.
    fn set_tsc_rate(&self, guest_khz: u32) -> Result<()> {
        let host_khz = self.host.clock.host_khz;
        if guest_khz != host_khz && self.host.scales_tsc {
            return self.fd.set_tsc_khz(guest_khz).map_err(self.failed("set its TSC rate"));
        }
        if guest_khz != host_khz {
            log::warn!("vCPU {}: its TSC ticks at this host's {host_khz} kHz from now on, not at {guest_khz} kHz", self.index);
        }
        Ok(())
    }

    fn continue_tsc(&mut self, part: &Part, sample: &TscSample) -> Result<()> {
        let moved = self.host.clock.moved().ok_or_else(|| part.invalid("the machine's clock must be restored before its vCPUs"))?;
        let actual_khz = self.fd.get_tsc_khz().map_err(self.failed("read its TSC rate"))?;
        if actual_khz == self.host.clock.host_khz && tsc::set_offset(&self.fd, moved.offset(sample)).is_ok() {
            return Ok(());
        }
        self.set_msr(MSR_TSC, moved.guest_at(sample, tsc::host_tsc()))?;
        Ok(())
    }
}

impl SavedVcpu {
    /// Parses a part; `xsave_bytes` is the size of the area here.
    fn from_part(part: &Part, xsave_bytes: usize) -> Result<Self> {
        let saved: Self = part.decode(VERSION)?;
        let check = |holds: bool, what: String| if holds { Ok(()) } else { Err(Error::from(part.invalid(what))) };
        let (entries, msrs, area) = (saved.cpuid.len(), saved.msrs.len(), saved.xsave.len());
        check(entries <= KVM_MAX_CPUID_ENTRIES, format!("{entries} CPUID entries, at most {KVM_MAX_CPUID_ENTRIES}"))?;
        check(msrs <= MSRS_MAX, format!("{msrs} MSRs, at most {MSRS_MAX}"))?;
        check(area <= xsave_bytes && area.is_multiple_of(4), format!("an XSAVE area of {area} bytes, this host's has {xsave_bytes}"))?;
        check(saved.tsc.guest_khz > 0, "a time stamp counter of 0 kHz".to_owned())?;
        if let Some((index, _)) = saved.msrs.iter().find(|(index, _)| !travels(*index)) {
            return Err(part.invalid(format!("MSR {index:#x} does not travel among the MSRs")).into());
        }
        Ok(saved)
    }
}

/// Whether an MSR is saved among the others.
fn travels(index: u32) -> bool {
    !matches!(index, MSR_TSC | MSR_TSC_DEADLINE) && !MSRS_KVM_WALL_CLOCK.contains(&index) && !MSRS_HYPERV.contains(&index)
}

fn is_unlisted(index: u32) -> bool {
    MSRS_UNLISTED.iter().any(|range| range.contains(&index))
}

/// Has a local APIC timer that ran out tick once more. When it runs out while the vCPU stands still, KVM notes the interrupt
/// where no ioctl shows it; the guest would wait for it forever. One tick too many is nothing to a guest.
fn repeat_expired_timer(saved: &mut SavedVcpu) {
    let lapic = &mut saved.lapic.0;
    let lvt = apic_register(lapic, APIC_LVT_TIMER);
    let vector = lvt & LVT_VECTOR;
    if lvt & LVT_MASKED != 0 || vector < VECTOR_MIN {
        return;
    }
    match lvt & LVT_TIMER_MODE {
        LVT_TIMER_DEADLINE if saved.tsc_deadline == Some(0) => saved.tsc_deadline = Some(saved.tsc.guest),
        LVT_TIMER_ONE_SHOT if apic_register(lapic, APIC_TIMER_INITIAL) != 0 && apic_register(lapic, APIC_TIMER_CURRENT) == 0 => {
            // The request register is 256 bits in eight words, 16 bytes apart (Intel SDM 3A §11.8.4).
            let register = APIC_IRR + (vector / 32 * 16) as usize;
            let pending = apic_register(lapic, register) | 1 << (vector % 32);
            lapic.regs.as_mut_bytes()[register..register + 4].copy_from_slice(&pending.to_le_bytes());
        }
        _ => {}
    }
}

fn apic_register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    let bytes = &lapic.regs.as_bytes()[offset..offset + 4];
    u32::from_le_bytes(bytes.try_into().expect("invariant: the slice has four bytes"))
}

/// A vCPU of nothing but zeros.
#[cfg(any(test, fuzzing))]
fn zeros() -> SavedVcpu {
    SavedVcpu {
        cpuid: vec![],
        mp_state: Abi(kvm_mp_state::default()),
        regs: Abi(kvm_regs::default()),
        sregs: Abi(kvm_sregs::default()),
        xsave: vec![],
        xcrs: Abi(kvm_xcrs::default()),
        debugregs: Abi(kvm_debugregs::default()),
        lapic: Abi(kvm_lapic_state::default()),
        msrs: vec![],
        tsc: TscSample { guest_khz: 1, guest: 2, host: 3 },
        tsc_deadline: None,
        events: Abi(kvm_vcpu_events::default()),
    }
}

/// Decodes and checks a part, and does to it what is done between reading and setting, as far as that needs no vCPU.
#[cfg(fuzzing)]
pub(super) fn check(part: &Part, xsave_bytes: usize) -> Result<()> {
    let mut saved = SavedVcpu::from_part(part, xsave_bytes)?;
    let cpuid: Vec<kvm_cpuid_entry2> = saved.cpuid.iter().map(|entry| entry.0).collect();
    // Against a host that gives nothing: what is let in then is nothing but what promises nothing.
    if confined::cpuid(&cpuid, &[]).is_empty() {
        assert!(cpuid.iter().all(|entry| entry.function != 1 || entry.ecx & 1 << 5 == 0), "VMX was let in");
        assert!(cpuid.iter().all(|entry| entry.function != 0x8000_0001 || entry.ecx & 1 << 2 == 0), "SVM was let in");
    }
    saved.msrs.retain(|&(index, value)| confined::msr(index, value, Some(0)).is_none());
    repeat_expired_timer(&mut saved);
    Ok(())
}

/// A sound part.
#[cfg(fuzzing)]
pub(super) fn sample() -> Part {
    let saved =
        SavedVcpu { cpuid: vec![Abi(kvm_cpuid_entry2::default())], xsave: vec![0; 576], msrs: vec![(0xc000_0080, 0xd01)], ..zeros() };
    Part::encode(PartKind::Vcpu, 0, VERSION, &saved)
}

/// Compares two parts in everything but the readings of time and what follows from them.
#[cfg(test)]
pub(crate) fn assert_same_but_for_time(a: &Part, b: &Part) {
    let [mut a, mut b] = [a, b].map(|part| part.decode::<SavedVcpu>(VERSION).unwrap());
    for saved in [&mut a, &mut b] {
        saved.tsc = TscSample { guest_khz: saved.tsc.guest_khz, guest: 0, host: 0 };
    }
    assert_eq!(a, b);
}

#[cfg(test)]
mod tests {
    use rebec_vmm_saved::SavedMachine;

    use super::*;
    use crate::tests::guest::{machine, machine_over};

    fn part(saved: &SavedVcpu) -> Part {
        Part::encode(PartKind::Vcpu, 0, VERSION, saved)
    }

    #[test]
    fn golden_bytes() {
        let entry = kvm_cpuid_entry2 { function: 0x8000_0001, edx: 0xff, ..Default::default() };
        let saved = SavedVcpu {
            cpuid: vec![Abi(entry)],
            regs: Abi(kvm_regs { rip: 0x0102_0304, ..Default::default() }),
            xsave: vec![9, 8, 7, 6],
            msrs: vec![(0xc000_0080, 0xd01)],
            tsc_deadline: Some(5),
            ..zeros()
        };
        let structure = |length: &[u8], bytes: usize| [length, &vec![0; bytes]].concat();
        let mut expected = vec![1];
        expected.extend([&[40, 1, 0, 0, 0x80][..], &[0; 20], &[0xff], &[0; 15]].concat()); // CPUID: one entry
        expected.extend(structure(&[4], 4)); // MP state
        expected.extend([&[0x90, 1][..], &[0; 128], &[4, 3, 2, 1, 0, 0, 0, 0], &[0; 8]].concat()); // registers
        expected.extend(structure(&[0xb8, 2], 312)); // system registers
        expected.extend([4, 9, 8, 7, 6]); // XSAVE
        expected.extend(structure(&[0x88, 3], 392)); // XCRS
        expected.extend(structure(&[0x80, 1], 128)); // debug registers
        expected.extend(structure(&[0x80, 8], 1024)); // local APIC
        expected.extend([1, 0x80, 0x81, 0x80, 0x80, 0x0c, 0x81, 0x1a]); // one MSR
        expected.extend([1, 2, 3]); // TSC
        expected.extend([1, 5]); // its deadline
        expected.extend(structure(&[64], 64)); // events
        assert_eq!(part(&saved).bytes, expected);
        assert_eq!(SavedVcpu::from_part(&part(&saved), 4096).unwrap(), saved);
    }

    #[test]
    fn what_exceeds_a_limit_is_named() {
        let refused = |saved: SavedVcpu| SavedVcpu::from_part(&part(&saved), 4096).unwrap_err().to_string();
        let entries = vec![Abi(kvm_cpuid_entry2::default()); KVM_MAX_CPUID_ENTRIES + 1];
        assert!(refused(SavedVcpu { cpuid: entries, ..zeros() }).contains("CPUID entries"));
        assert!(refused(SavedVcpu { msrs: vec![(1, 1); MSRS_MAX + 1], ..zeros() }).contains("MSRs"));
        assert!(refused(SavedVcpu { xsave: vec![0; 4100], ..zeros() }).contains("XSAVE"));
        assert!(refused(SavedVcpu { xsave: vec![0; 5], ..zeros() }).contains("XSAVE"));
        assert!(refused(SavedVcpu { tsc: TscSample { guest_khz: 0, guest: 0, host: 0 }, ..zeros() }).contains("0 kHz"));
        assert!(refused(SavedVcpu { msrs: vec![(MSR_TSC, 1)], ..zeros() }).contains("MSR 0x10"));
    }

    fn with_timer(lvt: u32, initial: u32, current: u32) -> SavedVcpu {
        let mut saved = zeros();
        for (register, value) in [(APIC_LVT_TIMER, lvt), (APIC_TIMER_INITIAL, initial), (APIC_TIMER_CURRENT, current)] {
            saved.lapic.0.regs.as_mut_bytes()[register..register + 4].copy_from_slice(&value.to_le_bytes());
        }
        saved
    }

    #[test]
    fn a_timer_that_ran_out_ticks_once_more() {
        let mut deadline = SavedVcpu { tsc_deadline: Some(0), ..with_timer(LVT_TIMER_DEADLINE | 0xec, 0, 0) };
        repeat_expired_timer(&mut deadline);
        assert_eq!(deadline.tsc_deadline, Some(2), "the TSC's own value: due at once");
        let mut one_shot = with_timer(0xec, 100, 0);
        repeat_expired_timer(&mut one_shot);
        assert_eq!(apic_register(&one_shot.lapic.0, APIC_IRR + 0x70), 1 << (0xec % 32));
    }

    #[test]
    fn a_timer_that_runs_or_is_off_is_left_alone() {
        let running = SavedVcpu { tsc_deadline: Some(77), ..with_timer(LVT_TIMER_DEADLINE | 0xec, 0, 0) };
        let masked = with_timer(LVT_MASKED | 0xec, 100, 0);
        let counting = with_timer(0xec, 100, 50);
        let unset = with_timer(0xec, 0, 0);
        let no_vector = with_timer(0, 100, 0);
        for saved in [running, masked, counting, unset, no_vector] {
            let mut after = saved.clone();
            repeat_expired_timer(&mut after);
            assert_eq!(after, saved);
        }
    }

    /// What a source says of a vCPU of this host's, changed, and what becomes of it at a target.
    fn arrives(change: impl FnOnce(&mut SavedVcpu)) -> Result<()> {
        let (ram, source, mut vcpus) = machine(1 << 20, 1);
        let mut state = vcpus[0].save().unwrap().decode::<SavedVcpu>(VERSION).unwrap();
        change(&mut state);
        let mut saved = SavedMachine::default();
        source.save(&mut saved).unwrap();
        let (target, mut moved) = machine_over(&ram, 1);
        target.restore_clock(&mut saved).unwrap();
        moved[0].restore(part(&state))
    }

    fn leaf(saved: &mut SavedVcpu, function: u32) -> &mut kvm_cpuid_entry2 {
        saved.cpuid.iter_mut().map(|entry| &mut entry.0).find(|entry| entry.function == function).unwrap()
    }

    #[test]
    fn a_source_that_asks_for_nested_virtualisation_is_refused() {
        arrives(|_| {}).unwrap();
        for (name, change) in [
            ("vmx", (|saved| leaf(saved, 1).ecx |= 1 << 5) as fn(&mut SavedVcpu)),
            ("svm", |saved| leaf(saved, 0x8000_0001).ecx |= 1 << 2),
            ("EFER of 0x1000", |saved| saved.sregs.0.efer = 1 << 12),
            ("CPUID 40000003.0", |saved| {
                saved.cpuid.push(Abi(kvm_cpuid_entry2 { function: 0x4000_0003, eax: 1, ..Default::default() }));
            }),
            ("MSR 0x480 of 0x1", |saved| saved.msrs.push((0x480, 1))),
            ("MSR 0x12345678 of 0x1", |saved| saved.msrs.push((0x1234_5678, 1))),
        ] {
            let error = arrives(change).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("this host gives no guest"), "{name}: {error}");
        }
        arrives(|saved| saved.msrs.push((0x1234_5678, 0))).unwrap();
    }

    /// STAR's handlers are canonical addresses: KVM takes no other.
    #[test]
    fn an_msr_that_is_not_taken_is_named_and_not_lost() {
        const MSR_LSTAR: u32 = 0xc000_0082;
        let error = arrives(|saved| saved.msrs.push((MSR_LSTAR, 0x8000_0000_0000_0000))).unwrap_err().to_string();
        assert!(error.contains("does not take MSR 0xc0000082 of 0x8000000000000000"), "{error}");
    }
}
