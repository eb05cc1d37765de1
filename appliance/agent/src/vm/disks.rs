//! As the holder of a VM, takes over which disks its record gives it and how large they are (`orders::disks`), and what it may take of this host
//! (`orders::limits`).
//!
//! ```text
//! home    record: disks ──► holder: vm.json ──► VMM that runs: resize-disk;  not running: files that no record names go
//!                                          └──► next start: missing disks are made, smaller ones grow
//! ```

use rebec_api::{ApiError, ErrorCode};
use rebec_book::record::VmBody;
use rebec_host::{disks, life::Life};
use rebec_vmm_api::control::{Command, DeviceLimits};

use super::{LocalVm, Vms, failed, launch, memory, room};

/// Has the VM that runs take no more of this host than its record says.
async fn limit(vms: &Vms, vm: &LocalVm, body: &VmBody) -> Result<(), ApiError> {
    let limits = body.limits.clone().unwrap_or_default();
    let devices = DeviceLimits {
        net_bits: Some(limits.net_bits.unwrap_or_default()),
        disk_requests: Some(limits.disk_requests.unwrap_or_default()),
        disk_bytes: Some(limits.disk_bytes.unwrap_or_default()),
    };
    let failed = |error: anyhow::Error| {
        let message = format!("VM {}: {error:#}; its record has the limits, and its next start takes what it can of them", vm.name());
        ApiError::new(ErrorCode::Failed, message)
    };
    // One of a version before has no limits to change, and need not be told that there are none.
    let wants = [limits.net_bits, limits.disk_requests, limits.disk_bytes].iter().any(Option::is_some);
    if wants || vm.talk(|control| Ok(control.status()?.limits)).await.map_err(failed)?.is_some() {
        vm.talk(move |control| control.tell(Command::Limits(devices))).await.map_err(failed)?;
    }
    vms.host.limits.change(&vm.id(), body.vcpus, &limits).map_err(failed)
}

/// Takes over what its record says of its disks, and of what it may take of its host.
pub async fn take_over(vms: &Vms, vm: &LocalVm) -> Result<(), ApiError> {
    let (_, body) = vms.knowledge.desired(vm.id())?;
    room::require_disks(vms, &body)?;
    {
        let _admission = vms.admission.lock().await;
        room::require_more(vms, vm, &body)?;
        launch::refresh(vms, vm).map_err(|error| failed(&error))?;
    }
    if vm.life(Life::vmm).is_none() {
        return disks::sweep(&vm.folder, &vm.kept().body).map_err(|error| failed(&error));
    }
    let body = vm.kept().body;
    limit(vms, vm, &body).await?;
    memory::ask(vms, vm).await.map_err(|error| {
        let message = format!("VM {}: {error:#}; its record has its memory: say it again, or start it anew", vm.name());
        ApiError::new(ErrorCode::Failed, message)
    })?;
    let has_seed = vm.kept().private.seed.is_some();
    let root = body.root_bytes().map(|bytes| (0, bytes));
    let first = usize::from(root.is_some()) + usize::from(has_seed);
    let further = body.further_disks().enumerate().map(|(at, disk)| (first + at, disk.bytes));
    let wanted: Vec<(usize, u64)> = root.into_iter().chain(further).collect();
    let grow = vm.talk(move |control| {
        let has = control.status()?.disk_bytes;
        // One that was added since its start comes with the next one.
        let smaller = wanted.into_iter().filter(|(at, bytes)| has.get(*at).is_some_and(|has| has < bytes));
        for (at, bytes) in smaller {
            control.tell(Command::ResizeDisk { disk: at as u8, bytes })?;
        }
        Ok(())
    });
    grow.await.map_err(|error| {
        ApiError::new(ErrorCode::Failed, format!("VM {}: {error:#}; its record has the size: say it again, or start it anew", vm.name()))
    })
}
