//! Starts the VMM of a VM of this host with what the pool knows of its neighbours and its lease.

use std::net::UdpSocket;

use anyhow::Result;
use rebec_host::process::{self, Beginning, Machine, Process, STATIONS_MAX};

use super::{LocalVm, Vms, lease, ports};

/// Starts the VMM of a VM whose folder is ready, with a socket for each of its NICs, and waits until it answers; it knows its neighbours
/// and its lease then.
pub async fn start(vms: &Vms, vm: &LocalVm, how: Beginning, ports: Vec<UdpSocket>) -> Result<Process> {
    let kept = vm.kept();
    let stations = ports::neighbours(&vms.knowledge, &kept.body);
    let ports = kept.endpoints.iter().copied().zip(ports).collect();
    let machine = Machine { id: kept.id, folder: &vm.folder, body: &kept.body, private: &kept.private, ports, stations: &stations };
    let process = process::start(&vms.host.programs(), machine, how).await?;
    lease::tell(vm).await;
    vm.console.started();
    vm.fdb(|fdb| *fdb = stations.into_iter().take(STATIONS_MAX).collect());
    Ok(process)
}
