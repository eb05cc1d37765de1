//! Room for VMs on this host: what they are promised, what is left, and the place that one takes.

use std::sync::Arc;

use anyhow::Result;
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{key::Nonce, record::VmBody};
use rebec_host::{disks, kept};

use super::{Kept, LocalVm, Vms, Want, failed, memory, watch};
use crate::facts;

/// What the disks of other VMs of this host are promised beyond what they take already.
fn growing_bytes(vms: &Vms, but: &Nonce) -> u64 {
    let others = vms.all().into_iter().filter(|vm| vm.kept().body.nonce != *but);
    let growing = others.map(|vm| {
        let body = vm.kept().body;
        disks::promised_bytes(&body).saturating_sub(disks::taken_bytes(&vm.folder, &body).unwrap_or(0))
    });
    growing.fold(0, u64::saturating_add)
}

/// Memory that VMs of this host have been promised.
pub fn promised_bytes(vms: &Vms) -> u64 {
    let promised = vms.all().into_iter().filter(|vm| vm.want() != Want::Stopped || vm.seen().pid != 0);
    promised.map(|vm| memory::counted_bytes(&vm)).fold(0, u64::saturating_add)
}

/// Refuses more memory for a VM of this host, if there is no room for it. Under the admission lock.
pub fn require_more(vms: &Vms, vm: &LocalVm, body: &VmBody) -> Result<(), ApiError> {
    let is_promised = vm.want() != Want::Stopped || vm.seen().pid != 0;
    let more = if is_promised { body.granted_bytes().saturating_sub(memory::counted_bytes(vm)) } else { 0 };
    let free = vms.host.memory_bytes().saturating_sub(promised_bytes(vms));
    if free < more {
        let what = format!("host {}: memory: {} MiB free, {} MiB more wanted", vms.knowledge.own_name(), free >> 20, more >> 20);
        return Err(ApiError::new(ErrorCode::Refused, what));
    }
    Ok(())
}

/// Refuses what this host has no room for, with the figures. Under the admission lock.
pub fn require(vms: &Vms, body: &VmBody) -> Result<(), ApiError> {
    let refuse = |what: String| Err(ApiError::new(ErrorCode::Refused, format!("host {}: {what}", vms.knowledge.own_name())));
    if let Some(why) = facts::no_kvm() {
        return refuse(format!("cannot run VMs: {why}"));
    }
    let free = vms.host.memory_bytes().saturating_sub(promised_bytes(vms));
    let wanted = body.granted_bytes();
    if free < wanted {
        return refuse(format!("memory: {} MiB free, {} MiB wanted", free >> 20, wanted >> 20));
    }
    require_disks(vms, body)
}

/// Refuses disks that this host has no room for, with the figures.
pub fn require_disks(vms: &Vms, body: &VmBody) -> Result<(), ApiError> {
    let refuse = |what: String| Err(ApiError::new(ErrorCode::Refused, format!("host {}: {what}", vms.knowledge.own_name())));
    let (_, room) = vms.host.disk_bytes();
    let (wanted, promised) = (disks::promised_bytes(body), growing_bytes(vms, &body.nonce));
    if room.saturating_sub(promised) < wanted {
        let already = if promised > 0 { format!(", {} MiB of them promised to disks of other VMs", promised >> 20) } else { String::new() };
        return refuse(format!("disk: {} MiB free{already}, {} MiB wanted", room >> 20, wanted >> 20));
    }
    Ok(())
}

/// Its folder, its place among the VMs of this host, and its task; what is there already stays. Under the admission lock.
pub fn take(vms: &Arc<Vms>, kept: Kept) -> Result<Arc<LocalVm>, ApiError> {
    if let Some(vm) = vms.get(&kept.id) {
        return Ok(vm);
    }
    let folder = kept::folder(vms.host.state(), &kept.id);
    let make = || -> Result<()> {
        kept::make_folder(&folder)?;
        kept::write(&folder, &kept)
    };
    make().map_err(|error| failed(&error))?;
    let vm = Arc::new(LocalVm::new(vms.knowledge.clone(), folder, kept));
    vms.insert(vm.clone());
    watch::spawn(vms, &vm, None);
    Ok(vm)
}
