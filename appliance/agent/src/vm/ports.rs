//! Where the other stations of a VM's LANs are: told to its VMM whenever the book says so.

use std::{
    collections::BTreeMap,
    net::SocketAddrV4,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use rebec_book::{
    Body, Book, Key, lan,
    record::{Kind, NicBody, SeenBody, VmBody},
    view,
};
use rebec_host::life::Life;
pub use rebec_host::process::{Place, Stations};
use rebec_vmm_api::{
    MacAddr, PortKey,
    control::{Command, ControlError},
    dns_name,
};

use super::{LocalVm, Vms, roads::Roads};
use crate::knowledge::Knowledge;

/// Changes of the book that come this close together are carried out as one.
const SETTLE: Duration = Duration::from_millis(5);
/// How long a key is kept that nobody has any more.
const KEY_LINGER: Duration = Duration::from_secs(10);
/// A VMM that was not told is told again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// A port on a LAN of a VM, the VM's own ones too.
struct Port<'a> {
    /// The VM's NIC on that LAN.
    own: &'a NicBody,
    /// The port's NIC.
    nic: &'a NicBody,
    /// Which of its VM's NICs that is.
    index: usize,
    /// What the host says that holds its VM.
    seen: &'a SeenBody,
    /// What its VM is called.
    name: &'a str,
}

/// The ports of all LANs that a VM is on, as far as each LAN admits them.
fn ports<'a>(book: &'a Book, body: &'a VmBody) -> Vec<Port<'a>> {
    let mut ports = vec![];
    for own in &body.nics {
        let home = book.thing(Kind::LAN, own.lan).map(|thing| thing.home);
        let Some(Body::Lan(range)) = home.and_then(|home| book.get(Kind::LAN, own.lan, home)) else { continue };
        for record in book.on_lan(own.lan) {
            let (Some(Body::Vm(vm)), Some(seen)) = (&record.body, view::seen(book, record.key.id)) else { continue };
            let nics = vm.nics.iter().enumerate().filter(|(_, nic)| nic.lan == own.lan && lan::admits(range, &record.key.writer, nic));
            ports.extend(nics.map(|(index, nic)| Port { own, nic, index, seen: seen.body, name: &vm.name }));
        }
    }
    ports
}

/// The stations of all LANs that a VM is on, but for its own, and where they are; `own` is where its own ports are.
pub fn neighbours(knowledge: &Knowledge, body: &VmBody, own: &[SocketAddrV4]) -> Stations {
    knowledge.read(|book| stations(&ports(book, body), body, own)).unwrap_or_default()
}

/// Who says to be where a port of this VM is has an address that is no road to here, and is not there.
fn stations(ports: &[Port<'_>], body: &VmBody, own: &[SocketAddrV4]) -> Stations {
    let is_own = |port: &Port<'_>| body.nics.iter().any(|own| own.lan == port.nic.lan && own.mac == port.nic.mac);
    let others = ports.iter().filter(|port| !is_own(port));
    let placed = others.filter_map(|port| {
        let endpoint = *port.seen.endpoints.get(port.index).filter(|endpoint| !own.contains(endpoint))?;
        let place = Place { endpoint, address: port.nic.address, name: dns_name(port.name) };
        Some(((MacAddr(port.own.mac), MacAddr(port.nic.mac)), place))
    });
    placed.collect()
}

/// What names of each of a VM's LANs end with, where that can be asked for.
pub fn domains(knowledge: &Knowledge, body: &VmBody) -> Vec<Option<String>> {
    let lans = knowledge.read(|book| view::lans(book).into_iter().map(|lan| (lan.id, lan.body.name.clone())).collect::<BTreeMap<_, _>>());
    let lans = lans.unwrap_or_default();
    body.nics.iter().map(|nic| lans.get(&nic.lan).and_then(|name| dns_name(&format!("{name}.rebec")))).collect()
}

/// A port of another place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FarPort {
    /// Its key.
    key: PortKey,
    /// Whose port it is.
    station: MacAddr,
    /// Whether its guest bridges.
    trunk: bool,
}

/// Which port is behind an endpoint, for the NIC of this MAC.
pub type Keys = BTreeMap<(MacAddr, SocketAddrV4), FarPort>;

/// The keys that a VMM was told, and since when each of them is not asked for any more.
pub type Told = BTreeMap<(MacAddr, SocketAddrV4), (FarPort, Option<Instant>)>;

/// The keys of all ports that a VM's sealed ports hear: where the stations of its LANs are and will be, and where the VM itself is and will be.
/// Only the word of who holds a VM counts. A port does not hear itself, wherever others are told that it is.
fn keys(ports: &[Port<'_>], own_endpoints: &[SocketAddrV4], own_keys: &[Option<Key>]) -> Keys {
    let sealed = ports.iter().filter(|port| port.own.is_sealed());
    let keys = sealed.flat_map(|Port { own, nic, index, seen, .. }| {
        let key = seen.keys.as_ref().and_then(|keys| keys.get(*index).copied().flatten());
        let here = seen.endpoints.get(*index).copied().zip(key);
        let ahead = seen.ahead.as_ref().and_then(|ahead| ahead.get(*index)).and_then(|port| Some((port.endpoint, port.key?)));
        let places =
            here.into_iter().chain(ahead).filter(|(endpoint, key)| !own_endpoints.contains(endpoint) && !own_keys.contains(&Some(*key)));
        let far = |key: Key| FarPort { key: PortKey(key.0), station: MacAddr(nic.mac), trunk: nic.is_trunk() };
        places.map(move |(endpoint, key)| ((MacAddr(own.mac), endpoint), far(key)))
    });
    keys.collect()
}

/// Keeps every VMM of this host informed.
pub async fn run(vms: Arc<Vms>) {
    let (mut changed, mut roads) = (vms.knowledge.watch(), Roads::default());
    loop {
        tokio::time::sleep(SETTLE).await;
        changed.mark_unchanged();
        let mut all_told = true;
        for vm in vms.all() {
            // One that arrives is told as well: it knows everybody by the time that it runs.
            if vm.life(Life::vmm).is_none() {
                continue;
            }
            if let Err(error) = tell(&vm).await {
                all_told = false;
                log::debug!("vm {}: forwarding entries: {error:#}", vm.name());
            }
        }
        all_told &= roads.make(&vms).await;
        if all_told {
            if changed.changed().await.is_err() {
                return;
            }
        } else {
            // Woken by the next change, or to try again.
            if let Ok(Err(_)) = tokio::time::timeout(RETRY, changed.changed()).await {
                return;
            }
        }
    }
}

/// Tells one VMM what it does not know yet.
pub async fn tell(vm: &LocalVm) -> Result<()> {
    let (kept, own_keys) = (vm.kept(), vm.port_keys());
    let wanted = vm.knowledge.read(|book| {
        let ports = ports(book, &kept.body);
        (stations(&ports, &kept.body, &kept.endpoints), keys(&ports, &kept.endpoints, &own_keys))
    });
    let (wanted, keys) = wanted.unwrap_or_default();
    tell_keys(vm, keys).await?;
    tell_rates(vm, &kept.body).await;
    let told = vm.fdb(|fdb| fdb.clone());
    let news = wanted.iter().filter(|(mac, place)| told.get(mac) != Some(place));
    let news = news.map(|((net, mac), place)| {
        let Place { endpoint, address, name } = place.clone();
        Command::FdbAdd { net: Some(*net), mac: *mac, endpoint, ip: Some(address), name }
    });
    let gone = told.keys().filter(|mac| !wanted.contains_key(mac)).map(|(net, mac)| Command::FdbRemove { net: Some(*net), mac: *mac });
    let commands: Vec<_> = news.chain(gone).collect();
    if commands.is_empty() {
        return Ok(());
    }
    vm.talk(move |control| commands.into_iter().try_for_each(|command| control.tell(command))).await?;
    vm.fdb(|fdb| *fdb = wanted);
    Ok(())
}

/// What each LAN lets through. A VMM of an earlier version lets everything through, and is not asked again.
async fn tell_rates(vm: &LocalVm, body: &VmBody) {
    let wanted = vm.knowledge.read(|book| {
        let bits = |lan| {
            let home = book.thing(Kind::LAN, lan)?.home;
            if let Some(Body::Lan(body)) = book.get(Kind::LAN, lan, home) { body.port_bits } else { None }
        };
        body.nics.iter().map(|nic| (MacAddr(nic.mac), bits(nic.lan).unwrap_or_default())).collect::<Vec<_>>()
    });
    for (net, bits) in wanted.unwrap_or_default() {
        if vm.rates_told(|told| told.get(&net).copied()) == Some(bits) {
            continue;
        }
        if let Err(error) = vm.talk(move |control| control.tell(Command::LanRate { net, bits })).await {
            log::debug!("vm {}: what its LAN lets through: {error:#}", vm.name());
            // One that did not answer is told again.
            if error.downcast_ref::<ControlError>().is_none() {
                continue;
            }
        }
        vm.rates_told(|told| told.insert(net, bits));
    }
}

/// Keys go before the entries that need them, and stay for a while after: late frames come from where a VM was.
async fn tell_keys(vm: &LocalVm, wanted: Keys) -> Result<()> {
    let now = Instant::now();
    let commands = vm.keys_told(|told| {
        for (place, (_, unwanted)) in told.iter_mut() {
            *unwanted = if wanted.contains_key(place) { None } else { unwanted.or(Some(now)) };
        }
        let news = wanted.iter().filter(|(place, key)| told.get(*place).is_none_or(|(known, _)| known != *key));
        let news = news.map(|((net, endpoint), FarPort { key, station, trunk })| Command::PeerKey {
            net: *net,
            endpoint: *endpoint,
            key: *key,
            station: Some(*station),
            trunk: *trunk,
            // Every port that seals does.
            takes_partial: true,
        });
        let is_over = |since: &Option<Instant>| since.is_some_and(|since| now.duration_since(since) >= KEY_LINGER);
        let gone = told.iter().filter(|(_, (_, since))| is_over(since));
        let gone = gone.map(|((net, endpoint), _)| Command::PeerKeyRemove { net: *net, endpoint: *endpoint });
        news.chain(gone).collect::<Vec<_>>()
    });
    if commands.is_empty() {
        return Ok(());
    }
    let told = commands.clone();
    vm.talk(move |control| commands.into_iter().try_for_each(|command| control.tell(command))).await?;
    vm.keys_told(|known| {
        for command in told {
            match command {
                Command::PeerKey { net, endpoint, key, station: Some(station), trunk, .. } => {
                    known.insert((net, endpoint), (FarPort { key, station, trunk }, None));
                }
                Command::PeerKeyRemove { net, endpoint } => drop(known.remove(&(net, endpoint))),
                _ => {}
            }
        }
    });
    Ok(())
}
