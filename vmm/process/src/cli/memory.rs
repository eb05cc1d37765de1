//! What a command line may say of memory that changes while the VM runs.

use rebec_layout::room_bytes;
use rebec_vmm_api::MemorySize;

/// Slots of the devices by which memory comes and goes.
const MEMORY_DEVICES: usize = 2;

/// With so many disks and NICs, in a machine that has so many slots for them and the devices of its memory.
pub(super) fn check(memory: MemorySize, max: MemorySize, devices: usize, slots: usize) -> Result<(), String> {
    let (memory, max) = (memory.bytes(), max.bytes());
    if max < memory {
        return Err(format!("--memory-max of {} MiB is less than --memory of {} MiB", max >> 20, memory >> 20));
    }
    if memory + room_bytes(memory, max) > MemorySize::MAX_BYTES {
        return Err(format!("--memory-max of {} MiB: in pieces of 128 MiB beyond --memory this is more than 1T", max >> 20));
    }
    let room = slots - MEMORY_DEVICES;
    if devices > room {
        return Err(format!("{devices} disks and nets: a machine with --memory-max has room for {room}; leave some out"));
    }
    Ok(())
}
