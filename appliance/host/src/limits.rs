//! What a VMM may take, whatever its guest makes of it: a control group (version 2) of its own, which it enters before it opens anything and
//! cannot leave once it is sealed.
//!
//! ```text
//! /sys/fs/cgroup/rebec/ID     memory.max, memory.oom.group, pids.max, cpu.weight, cpu.max
//! ```
//! Beside the agent's own group, not in it: a service manager that stops the agent finds nothing else there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rebec_book::{key::Id, record::LimitsBody};
use rebec_vmm_api::{CPU_WEIGHT_MAX, CpuQuota};

use crate::facts;

/// Where the kernel shows control groups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// The group of all VMs.
const GROUP: &str = "rebec";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Beside guest memory: the VMM, buffers of a move, and what the kernel keeps of the disk for it. Of that it takes back what it needs, unless the disk
/// lies in memory itself ([`InMemory`]).
const MEMORY_BESIDE_BYTES: u64 = 128 << 20;
/// The kernel's tables of guest memory take less than this part of it.
const TABLES_PART: u64 = 16;
/// Threads beside one for each vCPU: devices, streams of a move, control.
const THREADS_BESIDE: u64 = 128;
/// Share of the processors for each vCPU, against all others that want them.
const WEIGHT: u64 = 100;

/// What of a VM's disks may lie in memory: all of it where the state folder does. A file system in memory charges what is written to whoever writes it,
/// and nothing of that can be taken back: without this, a guest that fills its disk would be ended for it. How much all of them take is limited by
/// the file system's own size, before which they stand still ([`crate::growth`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InMemory(u64);

impl InMemory {
    /// Of disks that take so much at most, with their tables, in a folder.
    pub fn of(folder: &Path, disks_bytes: u64) -> Self {
        Self(if facts::is_in_memory(folder) { disks_bytes.saturating_add(disks_bytes / TABLES_PART) } else { 0 })
    }
}

/// Groups of this host's VMs; none where the kernel or the system offers none.
pub struct Limits {
    group: Option<PathBuf>,
}

impl Limits {
    /// Makes the group of all VMs. A host without is told of once.
    pub fn open() -> Self {
        match divide(Path::new(CGROUPS)) {
            Ok(group) => {
                sweep(&group);
                Self { group: Some(group) }
            }
            Err(error) => {
                log::warn!("VMs run without limits of memory, processors and processes: {error:#}");
                Self { group: None }
            }
        }
    }

    /// Makes the group of a VM, with its limits; `disks` is what its layers may come to take.
    pub fn make(&self, id: &Id, guest_bytes: u64, vcpus: u8, disks: InMemory, limits: &LimitsBody) -> Result<Option<PathBuf>> {
        let Some(all) = &self.group else { return Ok(None) };
        let group = all.join(id.to_string());
        let set = |name: &str, value: u64| write(&group.join(name), &value.to_string());
        match fs::create_dir(&group) {
            // An earlier VMM's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.with_context(|| format!("create {}", group.display()))?,
        }
        set("memory.max", memory_bytes(guest_bytes).saturating_add(disks.0))?;
        set("memory.oom.group", 1)?;
        set("pids.max", THREADS_BESIDE + u64::from(vcpus))?;
        processors(&group, vcpus, limits)?;
        Ok(Some(group))
    }

    /// Changes how much memory the guest of a VM that runs may have: before it is given more, after it has given some back.
    pub fn hold_memory(&self, id: &Id, guest_bytes: u64, disks: InMemory) -> Result<()> {
        let Some(all) = &self.group else { return Ok(()) };
        write(&all.join(id.to_string()).join("memory.max"), &memory_bytes(guest_bytes).saturating_add(disks.0).to_string())
    }

    /// Changes what a VM that runs may have of the processors.
    pub fn change(&self, id: &Id, vcpus: u8, limits: &LimitsBody) -> Result<()> {
        match &self.group {
            Some(all) => processors(&all.join(id.to_string()), vcpus, limits),
            None if limits.cpu_quota_percent.is_none() && limits.cpu_weight.is_none() => Ok(()),
            None => bail!("this host has no control groups (version 2), which quota and weight of processors need"),
        }
    }

    /// The group of a VM; none where this host has no groups.
    pub fn group(&self, id: &Id) -> Option<PathBuf> {
        self.group.as_ref().map(|all| all.join(id.to_string()))
    }

    /// Kills all that is in the group of a VM.
    pub fn kill(&self, id: &Id) {
        if let Some(all) = &self.group
            && let Err(error) = fs::write(all.join(id.to_string()).join("cgroup.kill"), "1")
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("kill the control group of VM {}: {error}", id.short());
        }
    }

    /// Removes the group of a VM that has ended. One whose last process is still on its way out stays for the VM's next start, or the
    /// agent's.
    pub fn remove(&self, id: &Id) {
        if let Some(all) = &self.group
            && let Err(error) = fs::remove_dir(all.join(id.to_string()))
            && error.kind() != io::ErrorKind::NotFound
        {
            log::debug!("the control group of VM {}: {error}", id.short());
        }
    }
}

fn processors(group: &Path, vcpus: u8, limits: &LimitsBody) -> Result<()> {
    let weight = limits.cpu_weight.map_or(WEIGHT * u64::from(vcpus), u64::from);
    write(&group.join("cpu.weight"), &weight.clamp(1, CPU_WEIGHT_MAX.into()).to_string())?;
    write(&group.join("cpu.max"), &CpuQuota(limits.cpu_quota_percent.unwrap_or_default()).cpu_max())
}

/// Removes groups that nothing is in: those of VMs that ended while no agent watched.
fn sweep(all: &Path) {
    for group in fs::read_dir(all).into_iter().flatten().flatten() {
        // What is in use, and what is no group, the kernel refuses.
        fs::remove_dir(group.path()).ok();
    }
}

fn memory_bytes(guest_bytes: u64) -> u64 {
    guest_bytes.saturating_add(guest_bytes / TABLES_PART).saturating_add(MEMORY_BESIDE_BYTES)
}

/// Makes the group of all VMs below `root`, which hands the controllers on.
fn divide(root: &Path) -> Result<PathBuf> {
    let offered = fs::read_to_string(root.join("cgroup.controllers"));
    let offered = offered.with_context(|| format!("no control groups (version 2) at {}", root.display()))?;
    if let Some(absent) = CONTROLLERS.iter().find(|name| !offered.split_whitespace().any(|one| one == **name)) {
        bail!("{}: the kernel offers no controller `{absent}`", root.display());
    }
    let all = root.join(GROUP);
    fs::create_dir_all(&all).with_context(|| format!("create {}", all.display()))?;
    let wanted = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
    for group in [root, &all] {
        write(&group.join("cgroup.subtree_control"), &wanted)?;
    }
    Ok(all)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {text} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_controllers_is_told_apart() {
        let root = tempfile::tempdir().unwrap();
        assert!(divide(root.path()).unwrap_err().to_string().contains("no control groups"));
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io pids\n").unwrap();
        assert!(divide(root.path()).unwrap_err().to_string().contains("`memory`"));
        fs::write(root.path().join("cgroup.controllers"), "cpu io memory pids\n").unwrap();
        let all = divide(root.path()).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap(), "+cpu +memory +pids");
        assert_eq!(all, root.path().join("rebec"));
    }

    #[test]
    fn a_disk_that_lies_in_memory_counts_beside_the_guests() {
        let in_memory = tempfile::tempdir_in("/dev/shm").unwrap();
        assert_eq!(InMemory::of(in_memory.path(), 16 << 20), InMemory(17 << 20));
        assert_eq!(InMemory::of(in_memory.path(), u64::MAX), InMemory(u64::MAX));
        assert_eq!(InMemory::of(Path::new(env!("CARGO_MANIFEST_DIR")), 16 << 20), InMemory(0));
        // Where the controller is there, the group has room for both.
        let all = tempfile::tempdir().unwrap();
        let limits = Limits { group: Some(all.path().to_owned()) };
        let group = all.path().join(rebec_book::key::Name([1; 16]).to_string());
        fs::create_dir(&group).unwrap();
        limits.make(&rebec_book::key::Name([1; 16]), 64 << 20, 1, InMemory(17 << 20), &LimitsBody::default()).unwrap();
        let set: u64 = fs::read_to_string(group.join("memory.max")).unwrap().parse().unwrap();
        assert_eq!(set, memory_bytes(64 << 20) + (17 << 20));
        limits.hold_memory(&rebec_book::key::Name([1; 16]), 128 << 20, InMemory(17 << 20)).unwrap();
        let set: u64 = fs::read_to_string(group.join("memory.max")).unwrap().parse().unwrap();
        assert_eq!(set, memory_bytes(128 << 20) + (17 << 20));
    }

    #[test]
    fn processors_are_given_and_taken_while_a_vm_runs() {
        let root = tempfile::tempdir().unwrap();
        let (limits, id) = (Limits { group: Some(root.path().to_owned()) }, Id::from(rebec_book::key::Name([7; 16])));
        let group = limits.make(&id, 1 << 30, 2, InMemory(0), &LimitsBody::default()).unwrap().unwrap();
        let said = |name: &str| fs::read_to_string(group.join(name)).unwrap();
        assert_eq!((said("cpu.weight"), said("cpu.max")), ("200".to_owned(), "max 100000".to_owned()));
        let some = LimitsBody { cpu_quota_percent: Some(150), cpu_weight: Some(30), ..LimitsBody::default() };
        limits.change(&id, 2, &some).unwrap();
        assert_eq!((said("cpu.weight"), said("cpu.max")), ("30".to_owned(), "150000 100000".to_owned()));
        let none = Limits { group: None };
        none.change(&id, 2, &LimitsBody { net_bits: Some(1), ..LimitsBody::default() }).unwrap();
        assert!(none.change(&id, 2, &some).unwrap_err().to_string().contains("no control groups (version 2)"));
    }

    #[test]
    fn no_size_of_memory_overflows() {
        assert_eq!(memory_bytes(64 << 20), (64 << 20) + (4 << 20) + (128 << 20));
        assert_eq!(memory_bytes(u64::MAX), u64::MAX);
    }
}
