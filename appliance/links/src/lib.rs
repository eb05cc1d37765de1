//! Brings up a host's network links for the agent, every physical interface up, addresses by DHCPv4 or as told, and keeps its clock right.
//!
//! ```text
//! policy   what is wanted: `--ip ADDRESS/LENGTH[,GATEWAY][@LINK]`, or DHCP; `--vlan NUMBER[@LINK]`
//! lease    DHCP's messages (RFC 2131), pure
//! wiring   the address and the roads of one interface, pure
//! dhcp     getting and keeping a lease on one interface
//! kernel   interfaces, addresses and routes by rtnetlink
//! changes  when links, addresses and routes change, whoever changes them
//! time     the clock, by time servers that DHCP or the user names
//! ```
//! IPv6 addresses come by router advertisements, which the kernel handles itself once it is told to; they are watched and told, and no link
//! waits for one kind of address to use the other. Name servers go into a file that `/etc/resolv.conf` leads to. Nothing here decides what
//! an address is used for.

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};

mod policy;

mod lease;

mod wiring;

mod dhcp;

mod kernel;

mod changes;

pub mod time;

pub use changes::Changes;

pub use policy::{Addressing, PolicyError, Static, Vlan, VlanError};

use dhcp::Held;
use kernel::{Interface, Kernel};
use wiring::Wiring;

/// How often new interfaces and lost carriers are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// The first pause of one that waits for a carrier, which comes a moment after an interface is switched on; each is twice the one before, up to
/// [`LOOK`].
const LOOK_FIRST: Duration = Duration::from_millis(20);
/// Pause before an interface that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Routes of later interfaces count less.
const METRIC: u32 = 100;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How addresses are found.
    pub addressing: Addressing,
    /// VLANs that links carry: such a link is addressed on them alone.
    pub vlans: Vec<Vlan>,
    /// The name that DHCP servers are told.
    pub hostname: Option<String>,
    /// Where name servers are written, in the form of resolv.conf(5).
    pub resolv_conf: PathBuf,
    /// The interfaces to bring up; none means all physical ones.
    pub only: Option<Vec<String>>,
}

/// How a link is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkState {
    /// The interface.
    pub interface: String,
    /// What it is at.
    pub progress: Progress,
}

/// How far a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is plugged in, or the other end is off.
    NoCarrier,
    /// It asks for an address.
    Asking,
    /// It has one.
    Ready {
        /// Address and prefix length.
        address: (Ipv4Addr, u8),
        /// Where the rest of the world is.
        gateway: Option<Ipv4Addr>,
        /// Who knows the time, as the DHCP server says.
        time_servers: Vec<Ipv4Addr>,
    },
    /// Its IPv6 addresses and prefix lengths are others than before.
    Ipv6(Vec<(Ipv6Addr, u8)>),
    /// It could not be brought up and is tried again; the text says why and what to do.
    Failed(String),
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.interface)?;
        match &self.progress {
            Progress::NoCarrier => f.write_str("no carrier; is its cable plugged in?"),
            Progress::Asking => f.write_str("asks for an address by DHCP"),
            Progress::Ready { address: (address, length), gateway, .. } => {
                write!(f, "{address}/{length}")?;
                gateway.map_or(Ok(()), |gateway| write!(f, ", gateway {gateway}"))
            }
            Progress::Ipv6(addresses) if addresses.is_empty() => f.write_str("no IPv6 address any more"),
            Progress::Ipv6(addresses) => {
                let written: Vec<_> = addresses.iter().map(|(address, length)| format!("{address}/{length}")).collect();
                f.write_str(&written.join(", "))
            }
            Progress::Failed(why) => f.write_str(why),
        }
    }
}

/// Why nothing can be brought up at all.
#[derive(Debug, thiserror::Error)]
pub enum LinksError {
    /// The kernel does not talk to us.
    #[error("open rtnetlink; is this a Linux host with networking?")]
    Open(#[source] std::io::Error),
    /// Interfaces cannot be listed.
    #[error("list network interfaces; run as root")]
    List(#[source] rtnetlink::Error),
}

/// Name servers by interface, as they are in the file. Locked for no longer than a look at it.
#[derive(Default)]
struct NameServers(Mutex<BTreeMap<String, Vec<Ipv4Addr>>>);

impl NameServers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Ipv4Addr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings up links and keeps them up, for as long as it is polled; `tell` hears of every change. Ends only if it cannot work at all.
/// Can be spawned if `tell` can be shared between threads.
pub async fn bring_up(policy: Policy, tell: impl Fn(LinkState)) -> Result<(), LinksError> {
    let kernel = Kernel::open().map_err(LinksError::Open)?;
    kernel.find_narrow_paths();
    let names = NameServers::default();
    // A fixed address is one link's: the first with a carrier has it, and the next when that one loses its own.
    let fixed = tokio::sync::Mutex::new(());
    let mut known: Vec<u32> = Vec::new();
    let mut links = FuturesUnordered::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {
                let present = kernel.interfaces().await.map_err(LinksError::List)?;
                let vlans = present.iter().filter(|link| is_wanted(&policy, link)).flat_map(|link| {
                    policy.vlans.iter().filter(|vlan| vlan.is_on(&link.name)).map(|vlan| vlan.name_on(&link.name))
                });
                let vlans: Vec<String> = vlans.collect();
                for interface in present {
                    let is_vlan = vlans.contains(&interface.name);
                    if !known.contains(&interface.index) && (is_wanted(&policy, &interface) || is_vlan) {
                        known.push(interface.index);
                        // What is a VLAN itself carries none.
                        let carried = if is_vlan { vec![] } else { policy.vlans.iter().filter(|vlan| vlan.is_on(&interface.name)).collect() };
                        links.push(keep_up(&kernel, &policy, &names, &fixed, interface, carried, &tell));
                    }
                }
            }
            Some(index) = links.next(), if !links.is_empty() => known.retain(|known| *known != index),
        }
    }
}

fn is_wanted(policy: &Policy, interface: &Interface) -> bool {
    match &policy.only {
        Some(names) => names.contains(&interface.name),
        None => interface.name == "lo" || PathBuf::from("/sys/class/net").join(&interface.name).join("device").exists(),
    }
}

/// Keeps one interface up until it is gone; returns its index.
async fn keep_up(
    kernel: &Kernel,
    policy: &Policy,
    names: &NameServers,
    fixed: &tokio::sync::Mutex<()>,
    interface: Interface,
    carried: Vec<&Vlan>,
    tell: &impl Fn(LinkState),
) -> u32 {
    let say = |progress| tell(LinkState { interface: interface.name.clone(), progress });
    kernel.heed_carrier(&interface.name);
    if carried.is_empty() {
        kernel.hear_routers(&interface.name);
    }
    if let Err(error) = kernel.up(interface.index).await {
        say(Progress::Failed(format!("{} cannot be switched on: {error}; check its driver", interface.name)));
        tokio::time::sleep(AGAIN).await;
        return interface.index;
    }
    if interface.name == "lo" {
        return std::future::pending().await;
    }
    if !carried.is_empty() {
        return carry(kernel, &interface, &carried, &say).await;
    }
    let metric = METRIC + interface.index;
    let (mut pause, mut told_no_carrier) = (LOOK_FIRST, false);
    // A network without IPv4 stays so: that DHCP is asked in vain is told once.
    let (mut failure, mut ipv6) = (None, Vec::new());
    let mut held: Option<Held> = None;
    loop {
        match kernel.interface(interface.index).await {
            None => return interface.index,
            Some(now) if !now.carrier => {
                if !told_no_carrier && pause == LOOK {
                    say(Progress::NoCarrier);
                    told_no_carrier = true;
                }
                failure = None;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK);
                continue;
            }
            Some(_) => (pause, told_no_carrier) = (LOOK_FIRST, false),
        }
        let served = async {
            match &policy.addressing {
                Addressing::Static(wanted) => {
                    if wanted.link.as_ref().is_some_and(|link| *link != interface.name) {
                        return std::future::pending().await;
                    }
                    let _alone = fixed.lock().await;
                    let wiring = Wiring::of_static(wanted);
                    kernel.set(interface.index, None, &wiring, metric).await.map_err(|error| error.to_string())?;
                    say(Progress::Ready { address: wiring.address, gateway: wanted.gateway, time_servers: Vec::new() });
                    carrier_lost(kernel, interface.index).await;
                    kernel.remove(interface.index, &wiring).await;
                    Ok(())
                }
                Addressing::Dhcp => {
                    if failure.is_none() {
                        say(Progress::Asking);
                    }
                    let host = dhcp::Host { kernel, interface: &interface, metric, hostname: policy.hostname.as_deref() };
                    host.keep_lease(&mut held, |lease| {
                        names.lock().insert(interface.name.clone(), lease.map(|lease| lease.name_servers.clone()).unwrap_or_default());
                        write_names(policy, names);
                        if let Some(lease) = lease {
                            let time_servers = lease.time_servers.clone();
                            let wiring = Wiring::of_lease(lease);
                            say(Progress::Ready { address: wiring.address, gateway: wiring.gateway(), time_servers });
                        }
                    })
                    .await
                }
            }
        };
        tokio::select! {
            ended = served => if let Err(why) = ended {
                if failure.as_ref() != Some(&why) {
                    say(Progress::Failed(format!("{}: {why}", interface.name)));
                    failure = Some(why);
                }
                tokio::time::sleep(AGAIN).await;
            },
            () = watch_ipv6(kernel, interface.index, &mut ipv6, &say) => {}
            // A fixed address is given back first.
            () = carrier_lost(kernel, interface.index), if policy.addressing == Addressing::Dhcp => {}
        }
    }
}

/// Keeps the interfaces of a link's VLANs there, which are addressed as links of their own; returns its index when it is gone.
async fn carry(kernel: &Kernel, link: &Interface, vlans: &[&Vlan], say: &impl Fn(Progress)) -> u32 {
    let mut told = false;
    while kernel.interface(link.index).await.is_some() {
        for vlan in vlans {
            if let Err(error) = kernel.add_vlan(link.index, &vlan.name_on(&link.name), vlan.id).await
                && !std::mem::replace(&mut told, true)
            {
                say(Progress::Failed(format!("{}: VLAN {} cannot be made: {error}; does its driver know VLANs?", link.name, vlan.id)));
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
    link.index
}

/// Tells of IPv6 addresses whenever they change; never ends.
async fn watch_ipv6(kernel: &Kernel, index: u32, known: &mut Vec<(Ipv6Addr, u8)>, say: &impl Fn(Progress)) {
    loop {
        if let Ok(now) = kernel.ipv6(index).await
            && now != *known
        {
            known.clone_from(&now);
            say(Progress::Ipv6(now));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn carrier_lost(kernel: &Kernel, index: u32) {
    while kernel.interface(index).await.is_some_and(|interface| interface.carrier) {
        tokio::time::sleep(LOOK).await;
    }
}

fn write_names(policy: &Policy, names: &NameServers) {
    // Three is what resolvers read (resolv.conf(5), MAXNS).
    let servers: Vec<Ipv4Addr> = names.lock().values().flatten().copied().take(3).collect();
    let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let fresh = policy.resolv_conf.with_extension("new");
    // Without the file there are no names; peers are reached by address.
    std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &policy.resolv_conf)).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_can_be_spawned() {
        fn spawnable(_: impl Future<Output = Result<(), LinksError>> + Send) {}
        let policy = Policy { addressing: Addressing::Dhcp, vlans: vec![], hostname: None, resolv_conf: PathBuf::new(), only: None };
        spawnable(bring_up(policy, |_| ()));
    }

    #[test]
    fn links_are_told_in_words() {
        let told = |progress| LinkState { interface: "eth0".to_owned(), progress }.to_string();
        let ready = |gateway| Progress::Ready { address: (Ipv4Addr::new(10, 0, 0, 2), 24), gateway, time_servers: vec![] };
        assert_eq!(told(ready(None)), "eth0: 10.0.0.2/24");
        assert_eq!(told(ready(Some(Ipv4Addr::new(10, 0, 0, 1)))), "eth0: 10.0.0.2/24, gateway 10.0.0.1");
        assert_eq!(told(Progress::Ipv6(vec![(Ipv6Addr::LOCALHOST, 64)])), "eth0: ::1/64");
        assert_eq!(told(Progress::NoCarrier), "eth0: no carrier; is its cable plugged in?");
        assert_eq!(told(Progress::Failed("no answer".to_owned())), "eth0: no answer");
    }
}
