//! The machine that an agent runs on, as it was told to use it.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

use rebec_book::record::ADDRESSES_MAX;
use rebec_cpu::Model;

use crate::{cpu, depot::Depot, facts, limits::Limits, lock, process::Programs, underlay::Look};

/// Peers whose roads are looked for: more would agree with them.
pub const ROADS_MAX: usize = 16;

/// What the user says of the machine.
#[derive(Debug, Clone)]
pub struct Given {
    /// Everything that survives.
    pub state: PathBuf,
    /// `rebec-vmm`.
    pub vmm: PathBuf,
    /// The address that others reach it at, where it is not all that its links have.
    pub address: Option<IpAddr>,
    /// Memory that VMs may have, where it is not all but what the host keeps.
    pub memory_bytes: Option<u64>,
    /// What guests are given of its processor at most.
    pub cpu_max: Model,
}

/// Its folder, its parts, and what VMs may take of it.
pub struct Host {
    given: Given,
    /// Parts.
    pub depot: Depot,
    /// What VMMs may take.
    pub limits: Limits,
    /// Held for a look.
    underlay: Mutex<Option<Ipv4Addr>>,
    cpu: OnceLock<Option<String>>,
}

impl Host {
    /// With the parts that are there.
    pub fn new(given: Given, depot: Depot) -> Self {
        let host = Self { given, depot, limits: Limits::open(), underlay: Mutex::default(), cpu: OnceLock::new() };
        host.look_around(&[]);
        host
    }

    /// The folder of everything that survives.
    pub fn state(&self) -> &Path {
        &self.given.state
    }

    /// `rebec-vmm`.
    pub fn vmm(&self) -> &Path {
        &self.given.vmm
    }

    /// What every VMM is started with.
    pub fn programs(&self) -> Programs<'_> {
        Programs { vmm: self.vmm(), depot: &self.depot, limits: &self.limits, cpu_max: &self.given.cpu_max }
    }

    /// Memory that VMs may have, all together: as the user says, or all but what the host keeps and what disks in memory have taken.
    pub fn memory_bytes(&self) -> u64 {
        self.given.memory_bytes.unwrap_or_else(|| facts::memory_bytes(self.state()))
    }

    /// What it gives guests of its processor, as a set of features; none where no VM can run, or where that cannot be found out.
    pub fn cpu(&self) -> Option<&str> {
        // KVM may come later, as modules are loaded.
        if self.cpu.get().is_none() && facts::no_kvm().is_some() {
            return None;
        }
        let ask = || cpu::ask(self.vmm(), &self.given.cpu_max).inspect_err(|error| log::error!("what the processor has: {error:#}")).ok();
        self.cpu.get_or_init(ask).as_deref()
    }

    /// Room for its folder: all of it, and what is free.
    pub fn disk_bytes(&self) -> (u64, u64) {
        facts::disk_bytes(self.state())
    }

    /// The address that ports of LANs have: VXLAN between hosts is IPv4. As it was when it was last looked for.
    pub fn underlay(&self) -> Option<Ipv4Addr> {
        *lock(&self.underlay)
    }

    /// Looks for it again, and whether it is another now. Each peer is all the addresses that it is known by, the likeliest first; of those the first
    /// counts that there is a road to.
    pub fn look_around(&self, peers: &[Vec<Ipv4Addr>]) -> bool {
        let given = self.given.address.and_then(|address| if let IpAddr::V4(address) = address { Some(address) } else { None });
        let before = self.underlay();
        let now = given.or_else(|| {
            let own = facts::own();
            let is_own = |address: &Ipv4Addr| own.iter().any(|own| own.address == *address);
            let road = |peer: &Vec<Ipv4Addr>| peer.iter().filter(|address| !is_own(address)).find_map(|address| facts::road(*address));
            let to_peers = peers.iter().take(ROADS_MAX).filter_map(road).collect();
            Look { own, to_peers, to_world: facts::road_to_world() }.choose(before)
        });
        *lock(&self.underlay) = now;
        now != before
    }

    /// Where others reach it.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = match self.given.address {
            Some(address) => vec![address],
            None => {
                let mut all = facts::addresses();
                // What its LANs have is the likeliest to be reached.
                let underlay = self.underlay().map(IpAddr::V4);
                all.sort_by_key(|address| Some(*address) != underlay);
                all
            }
        };
        addresses.truncate(ADDRESSES_MAX);
        addresses
    }
}
