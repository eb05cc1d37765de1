//! Roads between ports of one LAN on this host, so that their frames take no network: a pair of connected sockets for each two, of which either VMM
//! gets one end.
//!
//! Only what both were told by the book is connected: each has the other in its forwarding database, at the endpoint where that is. What becomes of a
//! road afterwards is the VMMs' affair: it ends with either process, and frames then take the network again. So nothing is to be taken back when a VM
//! moves, and nothing is kept over this agent's restart: it makes the roads anew, and VMMs put them in place of the old ones.

use std::{
    collections::BTreeSet,
    net::SocketAddrV4,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use anyhow::{Context, Result};
use rebec_book::key::Id;
use rebec_host::life::Life;
use rebec_vmm_api::{
    MacAddr,
    control::{Command, ControlError},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use super::{LocalVm, Vms};

/// What one end may have under way: some fifteen large frames, as it is counted.
const ROAD_BYTES: usize = 1 << 20;
/// Roads of one port: every VM of most hosts. Beyond, frames take the network.
const ROADS_MAX: usize = 128;

/// A port of a VM that runs here, as others know it, and the number of the process whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    vm: Id,
    process: u32,
    mac: MacAddr,
    endpoint: SocketAddrV4,
}

/// The roads that were made.
#[derive(Debug, Default)]
pub struct Roads(BTreeSet<(Port, Port)>);

impl Roads {
    /// Makes those that are missing; whether all are there that can be. One that a VMM refused, being of an earlier version perhaps, is not made again
    /// while both run; one that did not answer, or does not listen yet, is asked again.
    pub async fn make(&mut self, vms: &Vms) -> bool {
        let here: Vec<_> = vms.all().into_iter().filter(|vm| vm.life(Life::vmm).is_some()).collect();
        let wanted = wanted(&here);
        self.0.retain(|road| wanted.contains(road));
        // Who does not answer is waited for once, and not for each of its neighbours.
        let mut silent = BTreeSet::new();
        for road in wanted.difference(&self.0.clone()) {
            let (one, other) = road;
            if silent.contains(&one.vm) || silent.contains(&other.vm) {
                continue;
            }
            if let Err((vm, error)) = make(vms, one, other).await {
                log::debug!("a road from {} to {} within this host: {error:#}", one.mac, other.mac);
                if error.downcast_ref::<ControlError>().is_none() {
                    silent.insert(vm);
                    continue;
                }
            }
            self.0.insert(road.clone());
        }
        silent.is_empty()
    }
}

/// Each two ports that know each other, the lesser first.
fn wanted(here: &[Arc<LocalVm>]) -> BTreeSet<(Port, Port)> {
    // Every port, and where it was told that others are.
    let mut ports = vec![];
    for vm in here {
        let (kept, told) = (vm.kept(), vm.fdb(|fdb| fdb.clone()));
        let Some(process) = vm.life(Life::vmm) else { continue };
        for (nic, endpoint) in kept.body.nics.iter().zip(&kept.endpoints) {
            let mac = MacAddr(nic.mac);
            let knows: BTreeSet<_> =
                told.iter().filter(|((net, _), _)| *net == mac).map(|((_, station), at)| (*station, at.endpoint)).collect();
            ports.push((nic.lan, Port { vm: kept.id, process, mac, endpoint: *endpoint }, knows));
        }
    }
    let mut wanted = BTreeSet::new();
    for (lan, one, knows) in &ports {
        let others = ports.iter().filter(|(other_lan, other, knows_one)| {
            let is_known = |port: &Port, by: &BTreeSet<(MacAddr, SocketAddrV4)>| by.contains(&(port.mac, port.endpoint));
            lan == other_lan && one.vm < other.vm && is_known(other, knows) && is_known(one, knows_one)
        });
        wanted.extend(others.take(ROADS_MAX).map(|(_, other, _)| (one.clone(), other.clone())));
    }
    wanted
}

/// An error says at which VM.
async fn make(vms: &Vms, one: &Port, other: &Port) -> Result<(), (Id, anyhow::Error)> {
    let (end, other_end) = pair().map_err(|error| (one.vm, error))?;
    for (port, far, end) in [(one, other, end), (other, one, other_end)] {
        let command = Command::Near { net: port.mac, endpoint: far.endpoint };
        let given = match vms.get(&port.vm) {
            // Should the other one not take its end, this one finds that out by itself.
            Some(vm) => vm.talk(move |control| control.give(command, end.as_fd())).await,
            None => Err(anyhow::anyhow!("the VM is gone")),
        };
        given.map_err(|error| (port.vm, error))?;
    }
    Ok(())
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (end, other_end) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context("make a socket pair")?;
    for end in [&end, &other_end] {
        // Beyond the system's limit only for who may; up to it in any case.
        if sockopt::set_socket_send_buffer_size_force(end, ROAD_BYTES).is_err() {
            sockopt::set_socket_send_buffer_size(end, ROAD_BYTES).context("size a road's buffer")?;
        }
    }
    Ok((end, other_end))
}
