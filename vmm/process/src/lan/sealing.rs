//! The keys of a port that seals: made with it, shared by its queue thread, its forwarder and the control thread, and gone with the process.

use std::{
    io,
    net::SocketAddrV4,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use rebec_overlay::{
    FdbError, Seals, Wire,
    seal::{Full, PortSecret},
    vxlan::Vni,
};
use rebec_vmm_api::PortKey;
use rustix::rand::{GetRandomFlags, getrandom};

use super::{roads::Exits, socket::Sender};

/// Why a peer's key was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum PeerKeyError {
    /// There is nothing to open with.
    #[error("this port does not seal; give its --net seal=on")]
    Unsealed,
    /// A point of small order, or this port's own.
    #[error("{0} is not the key of another port; give what `ctl status` shows there")]
    Key(PortKey),
    /// The table is at its limit.
    #[error(transparent)]
    Full(#[from] Full),
    /// Likewise, of what is known beside keys.
    #[error(transparent)]
    Fdb(#[from] FdbError),
}

/// A port's own secret and what it shares with others.
#[derive(Debug)]
pub struct Sealing {
    vni: Vni,
    secret: PortSecret,
    key: PortKey,
    /// Locked once a run of datagrams by the thread that owns the queues, and for moments by the control thread.
    seals: Mutex<Seals>,
}

impl Sealing {
    /// With a key pair that nobody had before.
    pub fn new(vni: Vni) -> io::Result<Self> {
        let mut random = [0; 32];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let secret = PortSecret::new(random);
        Ok(Self { vni, key: secret.public(), secret, seals: Mutex::default() })
    }

    /// What others are told.
    pub fn key(&self) -> PortKey {
        self.key
    }

    /// Takes in whose key is behind an endpoint.
    pub fn add(&self, endpoint: SocketAddrV4, key: PortKey) -> Result<(), PeerKeyError> {
        // Some 50 us, before the lock is taken.
        let pair = self.secret.pair(&key, self.vni).ok_or(PeerKeyError::Key(key))?;
        Ok(self.seals().add(endpoint, key, pair)?)
    }

    /// Forgets whose key is behind an endpoint.
    pub fn remove(&self, endpoint: SocketAddrV4) {
        self.seals().remove(endpoint);
    }

    /// The associations.
    pub fn seals(&self) -> MutexGuard<'_, Seals> {
        self.seals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a port's runs go: sealed first, where the port seals.
#[derive(Debug)]
pub struct Outlet {
    sender: Sender,
    exits: Exits,
    sealing: Option<Arc<Sealing>>,
    now: Instant,
    without_key: u64,
}

impl Outlet {
    /// To the network, and to ports of this host.
    pub fn new(sender: Sender, exits: Exits, sealing: Option<Arc<Sealing>>) -> Self {
        Self { sender, exits, sealing, now: Instant::now(), without_key: 0 }
    }

    /// The associations, where the port seals.
    pub fn seals(&self) -> Option<MutexGuard<'_, Seals>> {
        self.sealing.as_ref().map(|sealing| sealing.seals())
    }

    /// Tells the time: keys grow old in an hour, so not every run asks the clock.
    pub fn tell(&mut self, now: Instant) {
        self.now = now;
    }

    /// Datagrams and records that the kernel did not take.
    pub fn lost(&self) -> u64 {
        self.sender.lost() + self.exits.lost()
    }

    /// Datagrams for whom no key is known.
    pub fn without_key(&self) -> u64 {
        self.without_key
    }
}

impl Wire for Outlet {
    fn send(&mut self, to: SocketAddrV4, datagrams: &mut [u8], stride: usize) {
        if let Some(sealing) = &self.sealing
            && sealing.seals().seal(self.now, to, datagrams, stride).is_err()
        {
            self.without_key += datagrams.len().div_ceil(stride) as u64;
            return;
        }
        self.sender.send(to, datagrams, stride);
    }

    fn is_near(&mut self, to: SocketAddrV4) -> bool {
        self.exits.has(to)
    }

    fn send_near(&mut self, to: SocketAddrV4, head: &[u8], frame: &[u8]) -> bool {
        self.exits.send(to, head, frame)
    }
}
