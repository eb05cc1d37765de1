//! What the book tells those who ask about hosts and VMs, and who may ask what.

use std::time::Duration;

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Book, Key, Signed,
    authority::{self, Asker, Granted, Question, Refused},
    key::Id,
    record::{Kind, RecordKey, VmBody},
    view,
};

use super::{Knowledge, NO_POOL};
use crate::{chance::now_s, facts, later, mesh::Peer};

/// Records that are sent along with a VM.
const RECORDS_BYTES_MAX: usize = 1 << 20;

impl Knowledge {
    /// This host's key.
    pub fn key(&self) -> Key {
        self.own
    }

    /// The name this host has or would take.
    pub fn own_name(&self) -> String {
        let known = self.read(|book| book.claims(&self.own).next().map(|(_, member)| member.name.clone())).flatten();
        known.or_else(|| self.name.clone()).unwrap_or_else(facts::hostname)
    }

    /// Version of Rebec that this host is of.
    pub fn rebec(&self) -> &'static str {
        later::rebec(self.later)
    }

    /// Reads the book, or says that there is none.
    pub fn pool<T>(&self, read: impl FnOnce(&Book) -> T) -> Result<T, ApiError> {
        self.read(read).ok_or_else(|| ApiError::new(ErrorCode::Conflict, NO_POOL))
    }

    /// Whether somebody may ask something here.
    pub fn may(&self, asker: Asker, question: Question) -> Result<Granted, Refused> {
        self.look(|book| authority::may(book, self.own, now_s(), asker, question))
    }

    /// Waits until something holds, as far as this host knows; not longer than `patience`.
    pub async fn until(&self, patience: Duration, holds: impl Fn() -> bool) -> bool {
        let mut changed = self.watch();
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
        let peers = self.read(|book| {
            let others = view::hosts(book).into_iter().filter(|host| host.key != self.own && host.member.dead.is_none());
            others.map(|host| peer_of(&host)).collect()
        });
        peers.unwrap_or_default()
    }

    /// One host of the pool.
    pub fn peer(&self, key: &Key) -> Option<Peer> {
        self.read(|book| view::host(book, key).map(|host| peer_of(&host))).flatten()
    }

    /// The name of a host, as people know it.
    pub fn name_of(&self, key: &Key) -> String {
        self.peer(key).map_or_else(|| key.short(), |peer| peer.name)
    }

    /// Whether a host was declared dead.
    pub fn is_dead(&self, host: &Key) -> bool {
        self.read(|book| book.dead(host).is_some()) == Some(true)
    }

    /// The desired record of a VM.
    pub fn desired(&self, id: Id) -> Result<(Key, VmBody), ApiError> {
        let found = self.pool(|book| view::vm(book, id).map(|vm| (vm.home, vm.body.clone())))?;
        found.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("VM {} has no record here yet; try again", id.short())))
    }

    /// The records that another host needs to have a VM: its own, what is said of it, and its LANs'.
    pub fn records_of(&self, id: Id) -> Result<Vec<Signed>, ApiError> {
        self.pool(|book| {
            let lans: Vec<Id> = view::vm_body(book, id).map(|body| body.nics.iter().map(|nic| nic.lan).collect()).unwrap_or_default();
            let needed = |key: &RecordKey| match key.kind {
                Kind::VM | Kind::SEEN => key.id == id,
                Kind::LAN => lans.contains(&key.id),
                _ => false,
            };
            book.select(needed, RECORDS_BYTES_MAX)
        })
    }
}

fn peer_of(host: &view::HostView<'_>) -> Peer {
    Peer { key: host.key, name: host.name.clone(), addresses: host.body.addresses.clone() }
}
