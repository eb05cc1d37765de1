//! The machine that an agent runs on, as it was told to use it.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use rebec_book::record::ADDRESSES_MAX;
use rebec_cpu::Model;

use crate::{cpu, depot::Depot, facts, limits::Limits, process::Programs};

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
    cpu: OnceLock<Option<String>>,
}

impl Host {
    /// With the parts that are there.
    pub fn new(given: Given, depot: Depot) -> Self {
        Self { given, depot, limits: Limits::open(), cpu: OnceLock::new() }
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

    /// Memory that VMs may have, all together.
    pub fn memory_bytes(&self) -> u64 {
        self.given.memory_bytes.unwrap_or_else(facts::memory_bytes)
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

    /// The address that ports of LANs have: VXLAN between hosts is IPv4.
    pub fn underlay(&self) -> Option<Ipv4Addr> {
        let v4 = |address| if let IpAddr::V4(address) = address { Some(address) } else { None };
        self.given.address.and_then(v4).or_else(|| facts::addresses().into_iter().find_map(v4))
    }

    /// Where others reach it.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = match self.given.address {
            Some(address) => vec![address],
            None => facts::addresses(),
        };
        addresses.truncate(ADDRESSES_MAX);
        addresses
    }
}
