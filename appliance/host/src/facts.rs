//! What this host is: processors, memory, room, and whether KVM works.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    thread::available_parallelism,
    time::Duration,
};

use nix::{ifaddrs::InterfaceAddress, net::if_::InterfaceFlags};
use rustix::time::{ClockId, clock_gettime};

use crate::underlay::Own;

/// Any port does (RFC 863).
const DISCARD_PORT: u16 = 9;
/// Memory that is left to the host itself.
const HOST_MEMORY_BYTES: u64 = 256 << 20;
/// What is told of memory that files have taken.
const MEMORY_STEP_BYTES: u64 = 64 << 20;

/// Why no VM can run here; none where they can.
pub fn no_kvm() -> Option<String> {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => None,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some("/dev/kvm is missing: enable virtualisation (AMD-V or VT-x) in the firmware setup".into())
        }
        Err(error) => Some(format!("/dev/kvm cannot be opened: {error}")),
    }
}

/// Processors.
pub fn cpus() -> u32 {
    available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// Memory for VMs: all but what the host keeps, and what lies in it of a state folder that is in memory itself.
pub fn memory_bytes(state: &Path) -> u64 {
    meminfo("MemTotal:").saturating_sub(HOST_MEMORY_BYTES).saturating_sub(in_memory_bytes(state))
}

/// What is in a folder that lies in memory, in steps, so that not every block written is news.
fn in_memory_bytes(folder: &Path) -> u64 {
    if !is_in_memory(folder) {
        return 0;
    }
    rustix::fs::statvfs(folder).map_or(0, |stat| ((stat.f_blocks - stat.f_bfree) * stat.f_frsize).next_multiple_of(MEMORY_STEP_BYTES))
}

/// Whether what is written to a folder stays in memory.
pub fn is_in_memory(folder: &Path) -> bool {
    /// Kinds of file systems that are memory (statfs(2)).
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    rustix::fs::statfs(folder).is_ok_and(|fs| [TMPFS, RAMFS].contains(&fs.f_type))
}

fn meminfo(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

/// Room on the file system of a folder: all of it, and what is free. Of one in memory no more is free than memory is.
pub fn disk_bytes(folder: &Path) -> (u64, u64) {
    let (all, free) = rustix::fs::statvfs(folder).map_or((0, 0), |stat| (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize));
    let memory = is_in_memory(folder).then(|| meminfo("MemAvailable:").saturating_sub(HOST_MEMORY_BYTES / 2));
    (all, memory.map_or(free, |memory| free.min(memory)))
}

/// Time since the machine started, also while it slept (CLOCK_BOOTTIME).
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The name a host takes when it is given none.
pub fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name: String = name.split('.').next().unwrap_or_default().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    if name.is_empty() { "host".into() } else { name.to_ascii_lowercase() }
}

/// This host's addresses that others may reach, IPv4 first, each kind in the order of the links.
pub fn addresses() -> Vec<IpAddr> {
    let mut addresses: Vec<_> = links().into_iter().map(|(address, _)| address).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

/// Its IPv4 addresses.
pub fn own() -> Vec<Own> {
    let v4 = links().into_iter().filter_map(|(address, name)| if let IpAddr::V4(address) = address { Some((address, name)) } else { None });
    let is_bridge = |name: &str| Path::new("/sys/class/net").join(name).join("bridge").exists();
    v4.map(|(address, name)| Own { address, is_bridge: is_bridge(&name) }).collect()
}

/// Every address of a link that is up and has a carrier, and the link's name.
fn links() -> Vec<(IpAddr, String)> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return vec![] };
    let usable = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
    let up = all.filter(|interface| interface.flags.contains(usable));
    up.filter_map(|interface| Some((reachable(&interface)?, interface.interface_name))).collect()
}

/// Where the kernel would have what goes to an address leave from; none where it knows no road. Nothing is sent.
pub fn road(to: Ipv4Addr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((to, DISCARD_PORT)).ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V4(from) if from.ip() != &to => Some(*from.ip()),
        _ => None,
    }
}

/// Where what goes to anywhere leaves from: towards an address that is nobody's (RFC 5737).
pub fn road_to_world() -> Option<Ipv4Addr> {
    road(Ipv4Addr::new(192, 0, 2, 1))
}

fn reachable(interface: &InterfaceAddress) -> Option<IpAddr> {
    let address = interface.address?;
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip()).filter(|v4| !v4.is_loopback() && !v4.is_link_local());
    let v6 = address.as_sockaddr_in6().map(|v6| v6.ip()).filter(|v6| !v6.is_loopback() && !v6.is_unicast_link_local());
    v4.map(IpAddr::from).or(v6.map(IpAddr::from))
}

/// What the machine is called by its firmware, or else by its system: the same after a reboot, as far as anybody can rely on that.
pub fn machine_id() -> Option<String> {
    let read = |path: &str| fs::read_to_string(path).ok().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
    read("/sys/class/dmi/id/product_uuid").or_else(|| read("/etc/machine-id"))
}

/// A boot of this machine: state of an earlier one is not running now.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_memory_is_no_memory_for_vms() {
        let in_memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let on_disk = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(is_in_memory(in_memory.path()) && !is_in_memory(on_disk) && !is_in_memory(Path::new("/nowhere")));
        // Others write there too: what is there counts whosever it is.
        let written = 2 * MEMORY_STEP_BYTES;
        fs::write(in_memory.path().join("disk"), vec![1; usize::try_from(written).unwrap()]).unwrap();
        assert!(memory_bytes(in_memory.path()) + written <= memory_bytes(on_disk));
        let (all, free) = disk_bytes(in_memory.path());
        assert!(free <= meminfo("MemTotal:") - HOST_MEMORY_BYTES / 2 && free < all, "{free} of {all}");
    }
}
