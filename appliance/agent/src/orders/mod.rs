//! What is wanted of VMs, by whoever may say so: it is written down, a host is chosen, and that host is told.
//!
//! ```text
//! record (durable: it is wanted; addresses) -> plan (which host, which epoch) -> order (vm::start here, or the same of another host)
//!                restart (of what this host keeps), drain (of this host) -> plan
//! remove (where it is, and the record)
//! disks (the record, and the host that has it takes it over)
//! returns (addresses that nobody needs, to the homes of their LANs)
//! ```

pub mod addresses;
pub mod cpu;
pub mod disks;
pub mod drain;
pub mod limits;
pub mod order;
pub mod placing;
pub mod plan;
pub mod record;
pub mod remove;
pub mod restart;
pub mod returns;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use rebec_book::key::Id;

use crate::{jobs::Jobs, keeper::Keeper, knowledge::Knowledge, peers::Peers, store::Store, vm::Vms};

/// What orders need, and what keeps them apart.
pub struct Orders {
    knowledge: Arc<Knowledge>,
    peers: Arc<Peers>,
    keeper: Arc<Keeper>,
    store: Arc<Store>,
    vms: Arc<Vms>,
    jobs: Arc<Jobs>,
    /// Serialises what looks for a free name or address and then takes it.
    pub naming: tokio::sync::Mutex<()>,
    /// Serialises grants of ranges and of VMs, and what is taken back: each reads a record and writes the next.
    grants: Mutex<()>,
    returns: Mutex<returns::Looks>,
    /// VMs that are being started elsewhere because their hosts are lost.
    starting: Mutex<BTreeSet<Id>>,
}

impl Orders {
    /// None has been given.
    pub fn new(
        knowledge: Arc<Knowledge>,
        peers: Arc<Peers>,
        keeper: Arc<Keeper>,
        store: Arc<Store>,
        vms: Arc<Vms>,
        jobs: Arc<Jobs>,
    ) -> Arc<Self> {
        let (naming, grants, returns, starting) = Default::default();
        Arc::new(Self { knowledge, peers, keeper, store, vms, jobs, naming, grants, returns, starting })
    }
}
