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
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{key::Id, record::NicBody};
use rebec_overlay::{seal::PortSecret, vxlan::Vni};
use rebec_vmm_api::{MacAddr, PortKey, control::Command};
use tokio::{
    io::DuplexStream,
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
};

use self::{
    carry::{Carrier, NoConnection, Order},
    station::{Station, StationConfig},
};
use crate::{control::Control, failed, lock};

/// Connections at a time: each may hold some hundred KiB.
const FORWARDS_MAX: usize = 32;
/// How long a guest may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Wishes of one VM that wait to be begun.
const ORDERS_MAX: usize = 8;
/// The station's place in the range: the last that no VM gets (`rebec_book::lan`).
const PLACE: u32 = 7;

/// All forwards of this host.
#[derive(Clone)]
pub struct Forwards(Arc<Attached>);

struct Attached {
    places: Arc<Semaphore>,
    carriers: Mutex<HashMap<Id, mpsc::Sender<Order>>>,
    /// Two stations of one VM would have one address.
    attaching: tokio::sync::Mutex<()>,
}

/// A guest that runs here.
pub struct Guest {
    /// Its VM.
    pub id: Id,
    /// The VM's name, for messages.
    pub name: String,
    /// Its first NIC, and where that is; none where it has none.
    pub nic: Option<(NicBody, SocketAddrV4)>,
    /// The public key of that NIC's port, if it seals.
    pub key: Option<PortKey>,
    /// Largest IP packet of that NIC's LAN.
    pub mtu: u16,
    /// The VMM's control socket.
    pub control: PathBuf,
    /// Resolves when the VMM is not the one that runs now.
    pub gone: BoxFuture<'static, ()>,
    /// Random bits for the station's MAC, its sequence numbers and ports.
    pub random: [u8; 12],
    /// Random bits that nobody else has, for the station's own key.
    pub secret: [u8; 32],
}

/// A connection into a guest, and its place among those of this host.
pub struct Forward {
    /// Its bytes.
    pub stream: DuplexStream,
    _place: OwnedSemaphorePermit,
}

impl Default for Forwards {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(FORWARDS_MAX));
        Self(Arc::new(Attached { places, carriers: Mutex::default(), attaching: tokio::sync::Mutex::default() }))
    }
}

impl Forwards {
    /// A place for one connection.
    fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.0.places.clone().try_acquire_owned().map_err(|_| {
            let message = format!("this host forwards {FORWARDS_MAX} connections already, the limit; close some first");
            ApiError::new(ErrorCode::Conflict, message)
        })
    }

    /// Connects to a TCP port of a guest; asks who it is again where it moved meanwhile.
    pub async fn connect(&self, guest: impl Fn() -> Result<Guest, ApiError>, port: u16) -> Result<Forward, ApiError> {
        let place = self.place()?;
        let mut name = String::new();
        // A carrier that is just ending drops what it is asked: then there is another.
        for _ in 0..2 {
            let guest = guest()?;
            name.clone_from(&guest.name);
            let address = guest.nic.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |(nic, _)| nic.address);
            let orders = self.attached(guest).await?;
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
                    let message =
                        format!("VM {name} did not answer at port {port} of {address} for {patience} s; does it use that address?");
                    return Err(ApiError::new(ErrorCode::Unreachable, message));
                }
                Err(_) => {}
            }
        }
        Err(ApiError::new(ErrorCode::Conflict, format!("VM {name} is being moved or stopped; try again")))
    }

    /// The carrier of a VM: the one there is, or a new one.
    async fn attached(&self, guest: Guest) -> Result<mpsc::Sender<Order>, ApiError> {
        let _one_at_a_time = self.0.attaching.lock().await;
        let known = lock(&self.0.carriers).get(&guest.id).filter(|orders| !orders.is_closed()).cloned();
        match known {
            Some(orders) => Ok(orders),
            None => self.attach(guest).await,
        }
    }

    /// Attaches a station to the first LAN of a VM.
    async fn attach(&self, guest: Guest) -> Result<mpsc::Sender<Order>, ApiError> {
        let Some((nic, endpoint)) = &guest.nic else {
            return Err(ApiError::new(ErrorCode::Conflict, format!("VM {} has no NIC; only VMs on a LAN are reached", guest.name)));
        };
        let config = station_of(nic, guest.mtu, guest.random);
        let (mut carrier, orders) = prepare(&config, nic, *endpoint).await.map_err(|error| failed(&error))?;
        let local = carrier.udp.local_addr().context("forward: its endpoint").map_err(|error| failed(&error))?;
        let std::net::SocketAddr::V4(local) = local else {
            return Err(ApiError::new(ErrorCode::Failed, "forward: its endpoint is no IPv4 one"));
        };
        let net = MacAddr(nic.mac);
        let is_sealed = guest.key.is_some();
        if let Some(theirs) = guest.key {
            let own = carrier.seal(PortSecret::new(guest.secret), theirs).map_err(|error| failed(&error))?;
            let key = Command::PeerKey { net, endpoint: local, key: own, station: Some(config.mac), trunk: false, takes_partial: false };
            tell(&guest.control, key).await.map_err(|error| failed(&error))?;
        }
        let station = Command::FdbAdd { net: Some(net), mac: config.mac, endpoint: local, ip: Some(config.address), name: None };
        tell(&guest.control, station).await.map_err(|error| failed(&error))?;
        lock(&self.0.carriers).insert(guest.id, orders.clone());
        let (forwards, own) = (self.clone(), orders.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = carrier.run() => {}
                () = guest.gone => {}
            }
            {
                let mut carriers = lock(&forwards.0.carriers);
                if carriers.get(&guest.id).is_some_and(|orders| orders.same_channel(&own)) {
                    carriers.remove(&guest.id);
                }
            }
            // A VM that has gone took its ports with it, and does not answer.
            let gone = is_sealed.then_some(Command::PeerKeyRemove { net, endpoint: local });
            for command in [Command::FdbRemove { net: Some(net), mac: config.mac }].into_iter().chain(gone) {
                if let Err(error) = tell(&guest.control, command).await {
                    log::debug!("vm {}: forward: {error:#}", guest.name);
                }
            }
        });
        Ok(orders)
    }
}

async fn tell(control: &Path, command: Command) -> anyhow::Result<()> {
    let control = control.to_owned();
    tokio::task::spawn_blocking(move || Control::connect(&control)?.tell(command)).await?
}

fn station_of(nic: &NicBody, mtu: u16, random: [u8; 12]) -> StationConfig {
    let network = u32::from(nic.address) & (u32::MAX << (32 - u32::from(nic.prefix.clamp(1, 32))));
    let address = Ipv4Addr::from(network + PLACE);
    let [a, b, c, d, seed @ ..] = random;
    // Locally administered.
    StationConfig { mac: MacAddr([0x02, 0x54, a, b, c, d]), address, prefix: nic.prefix, mtu, seed: u64::from_le_bytes(seed) }
}

async fn prepare(config: &StationConfig, nic: &NicBody, endpoint: SocketAddrV4) -> anyhow::Result<(Carrier, mpsc::Sender<Order>)> {
    let vni = Vni::new(nic.vni).context("forward: the LAN's label")?;
    let udp = UdpSocket::bind((*endpoint.ip(), 0)).await.with_context(|| format!("forward: listen at {}", endpoint.ip()))?;
    let (orders, wishes) = mpsc::channel(ORDERS_MAX);
    let station = Station::new(Instant::now(), config);
    let guest = SocketAddrV4::new(nic.address, 0);
    Ok((Carrier::new(station, udp, vni, endpoint, guest, wishes), orders))
}
