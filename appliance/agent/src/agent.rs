//! The agent of a host: a struct of handles, which start-up makes and routes take apart. Nobody else names it.

use std::sync::Arc;

use anyhow::Result;
use rebec_host::{Host, forward::Forwards, host};

use crate::{
    audit::Audit,
    broker::Broker,
    bulletin::{self, Bulletin},
    depot::Depot,
    identity::Identity,
    jobs::Jobs,
    keeper::Keeper,
    knowledge::Knowledge,
    machine::Clock,
    mesh::Mesh,
    options::Options,
    orders::Orders,
    peers::Peers,
    pool::Membership,
    screen::Shown,
    store::Store,
    vm::Vms,
    warrants::Warrants,
};

/// What an agent knows and owns, each part a handle of its own. What is made later uses what is made earlier.
pub struct Agent {
    /// Keys.
    pub identity: Arc<Identity>,
    /// What survives.
    pub store: Arc<Store>,
    /// What was decided.
    pub audit: Arc<Audit>,
    /// Signed commands that came.
    pub warrants: Warrants,
    /// Long work.
    pub jobs: Arc<Jobs>,
    /// This machine: its folder, its parts, what VMs may take of it.
    pub host: Arc<Host>,
    /// Connections into guests.
    pub forwards: Forwards,
    /// Of the pool.
    pub knowledge: Arc<Knowledge>,
    /// Other hosts.
    pub peers: Arc<Peers>,
    /// Promises about VMs that this host keeps.
    pub keeper: Arc<Keeper>,
    /// VMs that are here.
    pub vms: Arc<Vms>,
    /// What is wanted of VMs.
    pub orders: Arc<Orders>,
    /// What this host tells of itself.
    pub bulletin: Arc<Bulletin>,
    /// What its domain lends and borrows.
    pub broker: Arc<Broker>,
    /// How it stands with its pool.
    pub membership: Arc<Membership>,
    /// How the machine's clock is kept.
    pub clock: Clock,
    /// What its status screen shows.
    pub screen: Shown,
}

impl Agent {
    /// Takes everything that was opened.
    pub fn new(options: Options, identity: Identity, store: Store, mesh: Mesh, depot: Depot) -> Result<Arc<Self>> {
        let Options { state, vmm, address, memory_bytes, cpu_max, name, later, api_port, durable, .. } = options;
        let (identity, store) = (Arc::new(identity), Arc::new(store));
        let audit = Arc::new(Audit::open(&state)?);
        let jobs = Arc::new(Jobs::open(identity.key(), store.clone())?);
        let host = Arc::new(Host::new(host::Given { state, vmm, address, memory_bytes, cpu_max }, depot));
        let secret = identity.host().as_signing_key().clone();
        let knowledge = Arc::new(Knowledge::open(secret, name, store.clone(), later)?);
        let peers = Arc::new(Peers::new(knowledge.clone(), mesh));
        let keeper = Arc::new(Keeper::new(knowledge.clone(), store.clone()));
        let vms = Vms::new(host.clone(), knowledge.clone(), peers.clone(), keeper.clone(), store.clone(), jobs.clone());
        let orders = Orders::new(knowledge.clone(), peers.clone(), keeper.clone(), store.clone(), vms.clone(), jobs.clone());
        let broker = Broker::new(identity.clone(), knowledge.clone(), peers.clone(), vms.clone(), store.clone(), audit.clone());
        let told = bulletin::Given { api_port, durable, later };
        let bulletin = Bulletin::new(told, knowledge.clone(), peers.clone(), host.clone(), vms.clone(), store.clone(), audit.clone());
        let bulletin = Arc::new(bulletin);
        let membership = Membership::new(identity.clone(), knowledge.clone(), peers.clone(), store.clone(), vms.clone(), bulletin.clone());
        let clock = Clock::new(None);
        let screen = Shown::new(knowledge.clone(), bulletin.clone(), vms.clone(), membership.watch(), clock.subscribe());
        Ok(Arc::new(Self {
            identity,
            store,
            audit,
            warrants: Warrants::default(),
            jobs,
            host,
            forwards: Forwards::default(),
            knowledge,
            peers,
            keeper,
            vms,
            orders,
            bulletin,
            broker,
            membership: Arc::new(membership),
            clock,
            screen,
        }))
    }
}
