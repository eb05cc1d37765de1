//! Memory of a VM that changes while it runs, as its host counts it and holds it to.
//!
//! ```text
//! more    room? ──► promised, its control group may take it ──► VMM: asks its guest
//! less    VMM: asks its guest ──► what it has given back is promised no more, and its control group may not take it
//! ```
//! What its guest does not give back stays promised: it is said, and not waited for.

use anyhow::Result;
use rebec_host::process;
use rebec_vmm_api::control::{Command, MemoryStatus};

use super::{LocalVm, Vms};

/// What this host has promised a VM that is here, and its guest has not given back.
pub fn counted_bytes(vm: &LocalVm) -> u64 {
    vm.kept().body.granted_bytes().max(vm.seen().memory_bytes)
}

/// Takes in what its VMM says of it.
pub fn seen(vms: &Vms, vm: &LocalVm, memory: &MemoryStatus) {
    let counted = vm.kept().body.granted_bytes().max(memory.taken_bytes);
    if vm.counts(counted) {
        if let Err(error) = hold(vms, vm, counted) {
            log::warn!("vm {}: {error:#}", vm.name());
        }
        vm.say();
    }
}

/// Has its guest have what its record says.
pub async fn ask(vms: &Vms, vm: &LocalVm) -> Result<()> {
    let body = vm.kept().body;
    if body.memory_max_bytes().is_none() {
        return Ok(());
    }
    let counted = counted_bytes(vm);
    hold(vms, vm, counted)?;
    if vm.counts(counted) {
        vm.say();
    }
    let bytes = body.granted_bytes();
    vm.talk(move |control| control.tell(Command::Memory { bytes })).await
}

fn hold(vms: &Vms, vm: &LocalVm, bytes: u64) -> Result<()> {
    let in_memory = process::in_memory(&vm.folder, &vm.kept().body);
    vms.host.limits.hold_memory(&vm.id(), bytes, in_memory)
}
