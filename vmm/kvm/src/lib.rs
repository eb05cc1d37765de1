//! KVM and the memory mapped into it: the one crate of the VMM with `unsafe`, behind a safe border. It models no device, opens
//! nothing but `/dev/kvm`, starts no thread and decides nothing.
//!
//! ```text
//! before sealing   open_kvm() -> File                                    clear errors: no KVM, not permitted
//!                  host_cpuid(kvm) -> Vec<Entry>                         what a guest could be shown here
//!                  close_inherited()                                     what came over exec by mistake
//!                  fork_single_threaded() -> ForkOutcome                 refuses if there are more threads
//! RAM              Ram::new(bytes); clones share it; memory() for devices, memfd(), pages(), page_address(n), page_of(address),
//!                  read_page, write_page, populated(), walk(), discard(range), take_device_dirty(&mut BitSet)
//!                  Ram::with_room(bytes, room): room(), reach(addresses, allowed), held_bytes()
//! machine          Machine::create(kvm, &ram, vcpus, &model)             after the last fork
//!                  irq, wires, take_vcpus, cpu_model() -> &CpuModel
//!                  dirty_log_start, dirty_log_take(&mut BitSet), dirty_log_stop
//! vCPU             enter_pvh(rip, start_info) on every vCPU, then run(&bus) -> VcpuExit on its thread
//!                  kicker().kick() from anywhere: the present or next run() returns Interrupted, none is lost
//!                  populate(pages) -> Populated before the machine runs: maps memory that is there already; a kick ends it
//!                  note_pause() on every vCPU before it goes on after a pause
//! saving           all vCPUs stand still (run() returned): Vcpu::save() -> Part of each, then Machine::save(&mut saved)
//! restoring        Machine::restore_clock(&mut saved), then Vcpu::restore(part) of each, then Machine::restore_chips(&mut saved)
//! disks            DiskRing::new(files) before sealing, then read, write, sync_data side by side: a ring that does nothing else
//! listing          requests::{KVM_RUN, VCPU, MACHINE, ..}                all ioctls that this crate makes on KVM's descriptors
//! comparing        CpuModel::{to_bytes, from_bytes}, source.missing_on(&target) -> Vec<String>
//! ```
//!
//! The page's journey begins here: the dirty log and the devices' marks are merged into one [`rebec_bits::BitSet`], then pages are copied.
//! Memory under a machine lives as long as any of its parts: machine and vCPUs hold a clone of [`Ram`].
#![expect(unsafe_code, reason = "this crate is the one home of unsafe code in the VMM; each block says why it holds")]

mod cpu_model;
mod cpuid;
mod dirty_log;
mod disk_ring;
mod entry;
mod error;
mod exits;
mod fork;
mod inherited;
mod kick;
mod machine;
mod populate;
mod ram;
pub mod requests;
mod run_page;
mod saved;
mod system;
mod vcpu;
mod view;
mod wires;
mod xsave;

#[cfg(test)]
mod tests;

pub use self::{
    cpu_model::CpuModel,
    disk_ring::{DISK_RING_REQUESTS_MAX, DiskRing},
    error::{Error, Result},
    exits::{ExitReason, Exits},
    fork::{ForkOutcome, fork_single_threaded},
    inherited::close_inherited,
    kick::{VcpuKicker, kick_signal},
    machine::Machine,
    populate::Populated,
    ram::{GuestRam, PopulatedWalk, Ram},
    saved::clock::told_by_clock_ahead,
    system::{host_cpuid, open_kvm},
    vcpu::{Bus, Vcpu, VcpuExit},
    wires::Wires,
};
#[cfg(fuzzing)]
pub use saved::fuzzing::{check_part, part_samples};
