//! Starts the VMM of a VM of this host with what the pool knows of its neighbours and its lease: from its kernel, or to wait for what arrives.

use std::{
    collections::BTreeMap,
    net::{SocketAddrV4, UdpSocket},
    os::unix::net::UnixStream,
    sync::Arc,
};

use anyhow::Result;
use rebec_book::{
    record::{NicBody, SeenState},
    view,
};
use rebec_host::{
    disks,
    process::{self, Beginning, Machine, Process, STATIONS_MAX},
};

use super::{Kept, LocalVm, Vms, Want, control::Control, lease, ledger, memory, ports, sockets};
use crate::facts;

/// VMs of this host that are asked for content.
const DONORS_MAX: usize = 4;

/// Where each NIC is reached, and its socket.
type Ports = Vec<(SocketAddrV4, UdpSocket)>;

fn endpoints(ports: &Ports) -> Vec<SocketAddrV4> {
    ports.iter().map(|(endpoint, _)| *endpoint).collect()
}

/// Starts the VMM of a VM whose folder is ready, with a socket for each of its NICs, and waits until it answers; it knows its neighbours
/// and its lease then.
pub async fn start(vms: &Vms, vm: &LocalVm, how: Beginning, ports: Ports) -> Result<Process> {
    let kept = vm.kept();
    let stations = ports::neighbours(&vms.knowledge, &kept.body, &kept.endpoints);
    let domains = ports::domains(&vms.knowledge, &kept.body);
    let (id, body, private) = (kept.id, &kept.body, &kept.private);
    let machine = Machine { id, folder: &vm.folder, body, private, ports, stations: &stations, domains };
    let process = process::start(&vms.host.programs(), machine, how).await?;
    lease::tell(vm).await;
    vm.console.started();
    vm.fdb(|fdb| *fdb = stations.into_iter().take(STATIONS_MAX).collect());
    vm.keys_told(ports::Told::clear);
    vm.rates_told(BTreeMap::clear);
    if kept.body.nics.iter().any(NicBody::is_sealed) {
        vm.ports_have(&vm.talk(|control| control.status()).await?);
        ports::tell(vm).await?;
    }
    Ok(process)
}

/// What is kept of a VM here has the disks and limits of its record.
pub fn refresh(vms: &Vms, vm: &LocalVm) -> Result<()> {
    let id = vm.id();
    let body = vms.knowledge.read(|book| view::vm(book, id).map(|vm| vm.body.clone())).flatten();
    let kept = vm.kept().body;
    match body {
        Some(body) if body.disks != kept.disks || body.limits != kept.limits => {
            vm.keep(|kept| (kept.body.disks, kept.body.must, kept.body.limits) = (body.disks, body.must, body.limits))
        }
        _ => Ok(()),
    }
}

/// Makes the disks that are missing, and starts the VMM from its kernel.
pub async fn boot(vms: &Arc<Vms>, vm: &Arc<LocalVm>) -> Result<Process> {
    refresh(vms, vm)?;
    let kept = vm.kept();
    disks::make(&vms.host.depot, &vm.folder, &kept)?;
    let ports = sockets::bind(vms.host.underlay(), kept.body.nics.len())?;
    vm.keep(|kept| {
        kept.boot = facts::boot_id();
        kept.endpoints = endpoints(&ports);
    })?;
    ledger::begin(&vm.folder, &kept.id, kept.epoch)?;
    let process = start(vms, vm, Beginning::Boot, ports).await?;
    // It begins with less; what its record says comes on top. A guest that is asked again by the next change of its record is no reason to end it.
    if let Err(error) = memory::ask(vms, vm).await {
        log::warn!("vm {}: {error:#}", vm.name());
    }
    Ok(process)
}

/// Starts a VMM that waits for the VM; one whose ledger says that it was prepared before tells the source that it is released.
pub async fn wait_for(vms: &Arc<Vms>, vm: &Arc<LocalVm>) -> Result<Process> {
    let kept = vm.kept();
    disks::make(&vms.host.depot, &vm.folder, &kept)?;
    let ports = sockets::bind(vms.host.underlay(), kept.body.nics.len())?;
    vm.keep(|kept| {
        kept.endpoints = endpoints(&ports);
        kept.boot = facts::boot_id();
    })?;
    let how = Beginning::Arrive { at: sockets::listen(&vm.folder)?, donors: donors(vms, &kept).await };
    start(vms, vm, how, ports).await
}

/// Connections to running VMs of the same home host: their content is within the same trust.
async fn donors(vms: &Vms, arriving: &Kept) -> Vec<UnixStream> {
    let others = vms.all().into_iter().filter(|vm| {
        let kept = vm.kept();
        kept.id != arriving.id && kept.home == arriving.home && kept.want == Want::Running && vm.seen().state == SeenState::Running
    });
    let mut donors = vec![];
    for vm in others.take(DONORS_MAX) {
        match vm.turn(Control::donate).await {
            Ok(donor) => donors.push(donor),
            Err(error) => log::info!("vm {}: it lends nothing to {}: {error:#}", vm.name(), arriving.body.name),
        }
    }
    donors
}
