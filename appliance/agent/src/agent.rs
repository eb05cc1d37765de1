//! What an agent knows and owns, shared by everything it does.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use anyhow::Result;
use rebec_api::{ApiError, ErrorCode, screen::Join};
use rebec_book::{
    Body, Book, Key,
    authority::{self, Asker, Granted, Question, Refused},
    key::Id,
    record::{ADDRESSES_MAX, Kind},
    view,
};
use rebec_host::{forward::Forwards, limits::Limits};
use rebec_vmm_api::Versions;
use tokio::sync::watch;

pub use crate::chance::{now_s, random};
use crate::{
    audit::Audit,
    depot::Depot,
    exchange::{self, Exchange},
    http::warrants::Warrants,
    identity::Identity,
    jobs::Jobs,
    knowledge::{Knowledge, NO_POOL},
    mesh::{Mesh, Peer},
    run::Options,
    store::Store,
    vm::{LocalVm, keeper::Keeper},
};
pub use rebec_host::lock;

/// So long after its start an agent may not have heard yet who answers.
const HEARD_TIME: Duration = Duration::from_secs(10);

/// The agent of a host.
pub struct Agent {
    /// When it was started.
    begun: Instant,
    /// Given by the user.
    pub options: Options,
    /// Keys.
    pub identity: Identity,
    /// What survives.
    pub store: Arc<Store>,
    /// What was decided.
    pub audit: Audit,
    /// Signed commands that came.
    pub warrants: Warrants,
    /// Of the pool.
    pub knowledge: Knowledge,
    /// Other agents.
    pub mesh: Mesh,
    /// What this host and they tell each other, and who is there.
    pub exchange: Exchange,
    /// Long work.
    pub jobs: Jobs,
    /// Parts.
    pub depot: Depot,
    /// What VMMs may take.
    pub limits: Limits,
    /// Connections into guests.
    pub forwards: Forwards,
    /// Promises about VMs that this host keeps.
    pub keeper: Keeper,
    /// VMs that are here.
    pub vms: Mutex<BTreeMap<Id, Arc<LocalVm>>>,
    /// Serialises what checks the room of this host and then takes it.
    pub admission: tokio::sync::Mutex<()>,
    /// Serialises what looks for a free name or address and then takes it.
    pub naming: tokio::sync::Mutex<()>,
    /// Serialises grants of ranges: each reads a LAN's record and writes the next.
    pub grants: Mutex<()>,
    /// How far this host is with its pool.
    pub join: watch::Sender<Join>,
    /// How the machine's clock is kept, in words; none where that is not the agent's.
    pub clock: watch::Sender<Option<String>>,
    own: Weak<Self>,
}

impl Agent {
    /// Takes everything that was opened.
    pub fn new(options: Options, identity: Identity, store: Store, mesh: Mesh, depot: Depot) -> Result<Arc<Self>> {
        let store = Arc::new(store);
        let audit = Audit::open(&options.state)?;
        let knowledge = Knowledge::open(identity.key(), store.clone(), options.later)?;
        let jobs = Jobs::open(identity.key(), store.clone())?;
        Ok(Arc::new_cyclic(|own| Self {
            begun: Instant::now(),
            options,
            identity,
            store,
            audit,
            warrants: Warrants::default(),
            knowledge,
            mesh,
            exchange: Exchange::default(),
            jobs,
            depot,
            limits: Limits::open(),
            forwards: Forwards::default(),
            keeper: Keeper::new(),
            vms: Mutex::default(),
            admission: tokio::sync::Mutex::default(),
            naming: tokio::sync::Mutex::default(),
            grants: Mutex::default(),
            join: watch::Sender::new(Join::Alone),
            clock: watch::Sender::new(None),
            own: own.clone(),
        }))
    }

    /// This host's key.
    pub fn key(&self) -> Key {
        self.identity.key()
    }

    /// Reads the book; none where this host belongs to no pool. The book is locked meanwhile: `read` asks the agent nothing
    /// that reads the book too.
    pub fn book<T>(&self, read: impl FnOnce(&Book) -> T) -> Option<T> {
        self.knowledge.read(read)
    }

    /// Reads the book, or says that there is none.
    pub fn pool<T>(&self, read: impl FnOnce(&Book) -> T) -> Result<T, ApiError> {
        self.book(read).ok_or_else(|| ApiError::new(ErrorCode::Conflict, NO_POOL))
    }

    /// Whether somebody may ask something here.
    pub fn may(&self, asker: Asker, question: Question) -> Result<Granted, Refused> {
        self.knowledge.look(|book| authority::may(book, self.key(), now_s(), asker, question))
    }

    /// Forgets the pool.
    pub fn forget_pool(&self) -> Result<()> {
        self.knowledge.forget()?;
        self.exchange.forget();
        self.identity.forget()?;
        self.join.send_replace(Join::Alone);
        Ok(())
    }

    /// Writes one of this host's own records and tells everybody.
    pub fn publish(&self, kind: Kind, id: Id, body: Option<Body>) -> Result<(), ApiError> {
        self.publish_as(kind, id, body, self.identity.host().as_signing_key())
    }

    /// The same with any key that this host holds.
    pub fn publish_as(&self, kind: Kind, id: Id, body: Option<Body>, secret: &ed25519_dalek::SigningKey) -> Result<(), ApiError> {
        let written = self.knowledge.write(kind, id, body, secret);
        let records = written.map_err(|error| ApiError::new(ErrorCode::Failed, format!("{error:#}")))?;
        if let Some(own) = self.own.upgrade() {
            exchange::wrote(&own, records);
        }
        Ok(())
    }

    /// The same of a body that this version does not understand.
    pub fn publish_bytes(&self, kind: Kind, id: Id, body: &[u8]) -> Result<()> {
        let records = self.knowledge.write_bytes(kind, id, body, self.identity.host().as_signing_key())?;
        if let Some(own) = self.own.upgrade() {
            exchange::wrote(&own, records);
        }
        Ok(())
    }

    /// Version of Rebec that this host is of.
    pub fn rebec(&self) -> &'static str {
        self.options.later.map_or(env!("CARGO_PKG_VERSION"), |later| later.rebec)
    }

    /// What it speaks in moves: its VMMs are of its own version.
    pub fn moves(&self) -> Versions {
        self.options.later.map_or(rebec_migrate::frame::VERSIONS, |later| later.moves)
    }

    /// Wakes those who wait for a change of what this host knows or has.
    pub fn touch(&self) {
        self.knowledge.touch();
    }

    /// Waits until something holds, as far as this host knows; not longer than `patience`.
    pub async fn until(&self, patience: Duration, holds: impl Fn() -> bool) -> bool {
        let mut changed = self.knowledge.watch();
        let wait = async {
            while !holds() {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(patience, wait).await.is_ok()
    }

    /// The other hosts of the pool.
    pub fn peers(&self) -> Vec<Peer> {
        let own = self.key();
        let peers = self.book(|book| {
            let others = view::hosts(book).into_iter().filter(|host| host.key != own && host.member.dead.is_none());
            others.map(|host| peer_of(&host)).collect()
        });
        peers.unwrap_or_default()
    }

    /// One host of the pool.
    pub fn peer(&self, key: &Key) -> Option<Peer> {
        self.book(|book| view::host(book, key).map(|host| peer_of(&host))).flatten()
    }

    /// The name of a host, as people know it.
    pub fn name_of(&self, key: &Key) -> String {
        self.peer(key).map_or_else(|| key.short(), |peer| peer.name)
    }

    /// Whether a host answers.
    pub fn answers(&self, key: &Key) -> bool {
        *key == self.key() || self.silence(key).is_none()
    }

    /// Waits until something holds that may only not hold yet because this agent has just started and has heard nobody.
    pub async fn once_heard(&self, holds: impl Fn() -> bool) {
        self.until(HEARD_TIME.saturating_sub(self.begun.elapsed()), holds).await;
    }

    /// For how long a host has not been heard; none where it answers.
    pub fn silence(&self, key: &Key) -> Option<Duration> {
        self.exchange.silence(key)
    }

    /// A VM that is here.
    pub fn local_vm(&self, id: &Id) -> Option<Arc<LocalVm>> {
        lock(&self.vms).get(id).cloned()
    }

    /// All VMs that are here.
    pub fn local_vms(&self) -> Vec<Arc<LocalVm>> {
        lock(&self.vms).values().cloned().collect()
    }

    /// Memory that VMs of this host may have, all together.
    pub fn memory_bytes(&self) -> u64 {
        self.options.memory_bytes.unwrap_or_else(crate::facts::memory_bytes)
    }

    /// The address that this host's ports have: VXLAN between hosts is IPv4.
    pub fn underlay(&self) -> Option<Ipv4Addr> {
        let v4 = |address| if let IpAddr::V4(address) = address { Some(address) } else { None };
        self.options.address.and_then(v4).or_else(|| crate::facts::addresses().into_iter().find_map(v4))
    }

    /// Where the mesh endpoint is reached.
    pub fn mesh_addresses(&self) -> Vec<SocketAddr> {
        let port = self.mesh.port();
        let mut addresses = match self.options.address {
            Some(address) => vec![address],
            None => crate::facts::addresses(),
        };
        addresses.truncate(ADDRESSES_MAX);
        addresses.into_iter().map(|address| SocketAddr::from((address, port))).collect()
    }

    /// The name this host has or would take.
    pub fn own_name(&self) -> String {
        let known = self.book(|book| book.claims(&self.key()).next().map(|(_, member)| member.name.clone())).flatten();
        known.or_else(|| self.options.name.clone()).unwrap_or_else(crate::facts::hostname)
    }
}

fn peer_of(host: &view::HostView<'_>) -> Peer {
    Peer { key: host.key, name: host.name.clone(), addresses: host.body.addresses.clone() }
}
