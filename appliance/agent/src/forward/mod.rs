//! TCP connections into guests of this host, without a gateway: the agent attaches a station of its own to the VM's LAN, known to that
//! VM's port alone, and speaks TCP to the guest from there.
//!
//! The station has the last address before those that VMs get, and a MAC of its own each time, so that taking back the one that has ended
//! does not touch the one that has just begun.

mod carry;
mod station;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    key::Id,
    record::{NicBody, SeenState},
    view,
};
use rebec_overlay::vxlan::Vni;
use rebec_vmm_api::{MacAddr, control::Command};
use tokio::{
    io::DuplexStream,
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
};

use self::{
    carry::{Carrier, NoConnection, Order},
    station::{Station, StationConfig},
};
use crate::{
    agent::{Agent, lock, random},
    vm::{LocalVm, failed},
};

/// Connections at a time: each may hold some hundred KiB.
const FORWARDS_MAX: usize = 32;
/// How long a guest may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Wishes of one VM that wait to be begun.
const ORDERS_MAX: usize = 8;
/// The station's place in the range: the last that no VM gets (`rebec_book::lan`).
const PLACE: u32 = 7;

/// All forwards of this host.
pub struct Forwards {
    places: Arc<Semaphore>,
    attached: Mutex<HashMap<Id, mpsc::Sender<Order>>>,
    /// Two stations of one VM would have one address.
    attaching: tokio::sync::Mutex<()>,
}

impl Default for Forwards {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(FORWARDS_MAX)), attached: Mutex::default(), attaching: tokio::sync::Mutex::default() }
    }
}

/// A connection into a guest, and its place among those of this host.
pub struct Forward {
    /// Its bytes.
    pub stream: DuplexStream,
    _place: OwnedSemaphorePermit,
}

/// Connects to a TCP port of a guest that runs here.
pub async fn connect(agent: &Arc<Agent>, vm: &Arc<LocalVm>, port: u16) -> Result<Forward, ApiError> {
    let name = vm.name();
    let places = agent.forwards.places.clone();
    let place = places.try_acquire_owned().map_err(|_| {
        ApiError::new(ErrorCode::Conflict, format!("this host forwards {FORWARDS_MAX} connections already, the limit; close some first"))
    })?;
    if !matches!(vm.seen().state, SeenState::Running | SeenState::Paused | SeenState::Moving) {
        return Err(ApiError::new(ErrorCode::Conflict, format!("VM {name} does not run; `rebec vm start {name}`")));
    }
    let address = vm.kept().body.nics.first().map_or(Ipv4Addr::UNSPECIFIED, |nic| nic.address);
    // A carrier that is just ending drops what it is asked: then there is another.
    for _ in 0..2 {
        let orders = attached(agent, vm).await?;
        let (answer, outcome) = oneshot::channel();
        if orders.send(Order { port, patience: CONNECT_TIME, answer }).await.is_err() {
            continue;
        }
        match outcome.await {
            Ok(Ok(stream)) => return Ok(Forward { stream, _place: place }),
            Ok(Err(NoConnection::Refused)) => {
                let message = format!("VM {name} refuses connections to its port {port} ({address}); does a program listen there?");
                return Err(ApiError::new(ErrorCode::Refused, message));
            }
            Ok(Err(NoConnection::Silent)) => {
                let patience = CONNECT_TIME.as_secs();
                let message = format!("VM {name} did not answer at port {port} of {address} for {patience} s; does it use that address?");
                return Err(ApiError::new(ErrorCode::Unreachable, message));
            }
            Err(_) => {}
        }
    }
    Err(ApiError::new(ErrorCode::Conflict, format!("VM {name} is being moved or stopped; try again")))
}

/// The carrier of a VM: the one there is, or a new one.
async fn attached(agent: &Arc<Agent>, vm: &Arc<LocalVm>) -> Result<mpsc::Sender<Order>, ApiError> {
    let _one_at_a_time = agent.forwards.attaching.lock().await;
    let known = lock(&agent.forwards.attached).get(&vm.id()).filter(|orders| !orders.is_closed()).cloned();
    match known {
        Some(orders) => Ok(orders),
        None => attach(agent, vm).await,
    }
}

/// Attaches a station to the first LAN of a VM.
async fn attach(agent: &Arc<Agent>, vm: &Arc<LocalVm>) -> Result<mpsc::Sender<Order>, ApiError> {
    let kept = vm.kept();
    let (Some(nic), Some(endpoint)) = (kept.body.nics.first(), kept.endpoints.first()) else {
        return Err(ApiError::new(ErrorCode::Conflict, format!("VM {} has no NIC; only VMs on a LAN are reached", kept.body.name)));
    };
    let config = station_of(agent, nic);
    let (carrier, orders) = prepare(&config, nic, *endpoint).await.map_err(|error| failed(&error))?;
    let local = carrier.udp.local_addr().context("forward: its endpoint").map_err(|error| failed(&error))?;
    let std::net::SocketAddr::V4(local) = local else {
        return Err(ApiError::new(ErrorCode::Failed, "forward: its endpoint is no IPv4 one"));
    };
    let station = Command::FdbAdd { mac: config.mac, endpoint: local, ip: Some(config.address) };
    vm.talk(|control| control.tell(station)).await.map_err(|error| failed(&error))?;
    lock(&agent.forwards.attached).insert(vm.id(), orders.clone());
    let (agent, vm, own) = (agent.clone(), vm.clone(), orders.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = carrier.run() => {}
            () = has_gone(&agent, &vm) => {}
        }
        {
            let mut attached = lock(&agent.forwards.attached);
            if attached.get(&vm.id()).is_some_and(|orders| orders.same_channel(&own)) {
                attached.remove(&vm.id());
            }
        }
        // A VM that has gone took its ports with it.
        if vm.seen().pid != 0
            && let Err(error) = vm.talk(move |control| control.tell(Command::FdbRemove { mac: config.mac })).await
        {
            log::debug!("vm {}: forward: {error:#}", vm.name());
        }
    });
    Ok(orders)
}

fn station_of(agent: &Agent, nic: &NicBody) -> StationConfig {
    let known = agent.book(|book| view::lans(book).into_iter().find(|lan| lan.id == nic.lan).map(|lan| lan.body.mtu));
    let network = u32::from(nic.address) & (u32::MAX << (32 - u32::from(nic.prefix.clamp(1, 32))));
    let address = Ipv4Addr::from(network + PLACE);
    let [a, b, c, d] = random();
    StationConfig {
        // Locally administered.
        mac: MacAddr([0x02, 0x54, a, b, c, d]),
        address,
        prefix: nic.prefix,
        mtu: known.flatten().unwrap_or(rebec_book::lan::MTU),
        seed: u64::from_le_bytes(random()),
    }
}

async fn prepare(config: &StationConfig, nic: &NicBody, endpoint: SocketAddrV4) -> anyhow::Result<(Carrier, mpsc::Sender<Order>)> {
    let vni = Vni::new(nic.vni).context("forward: the LAN's label")?;
    let udp = UdpSocket::bind((*endpoint.ip(), 0)).await.with_context(|| format!("forward: listen at {}", endpoint.ip()))?;
    let (orders, wishes) = mpsc::channel(ORDERS_MAX);
    let station = Station::new(Instant::now(), config);
    let guest = SocketAddrV4::new(nic.address, 0);
    Ok((Carrier::new(station, udp, vni, endpoint, guest, wishes), orders))
}

/// Until the VMM that was told of the station is not the one that runs here.
async fn has_gone(agent: &Agent, vm: &LocalVm) {
    let (mut changed, pid) = (agent.knowledge.watch(), vm.seen().pid);
    while vm.seen().pid == pid && vm.want() == crate::vm::Want::Running {
        if changed.changed().await.is_err() {
            return;
        }
    }
}
