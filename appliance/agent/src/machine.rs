//! The machine's links and clock, where the agent is told to keep them: on the appliance. A host with a system of its own keeps its own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use rebec_host::lock;
use rebec_links::{
    Addressing, LinkState, Policy, Progress, Vlan,
    time::{self, clock::SystemClock},
};
use tokio::sync::watch;

use crate::{bulletin::Bulletin, knowledge::Knowledge};

/// Where the appliance's resolver looks.
const RESOLV_CONF: &str = "/run/resolv.conf";

/// How the machine's clock is kept, in words; none where that is not the agent's.
pub type Clock = watch::Sender<Option<String>>;

/// Keeps what the agent is told to.
pub fn keep(
    links: Option<(Addressing, Vec<Vlan>)>,
    given: Option<Vec<IpAddr>>,
    knowledge: &Arc<Knowledge>,
    bulletin: &Arc<Bulletin>,
    clock: &Clock,
) {
    let servers = given.iter().flatten().map(|address| SocketAddr::new(*address, time::PORT)).collect();
    let (named, servers) = watch::channel(servers);
    if let Some(wanted) = links {
        // Servers that the user names are asked in place of those that DHCP names.
        let named = given.as_ref().is_some_and(Vec::is_empty).then_some(named);
        tokio::spawn(bring_up_links(knowledge.clone(), bulletin.clone(), wanted, named));
    }
    if given.is_some() {
        tokio::spawn(keep_time(clock.clone(), servers));
    }
}

async fn bring_up_links(
    knowledge: Arc<Knowledge>,
    bulletin: Arc<Bulletin>,
    (addressing, vlans): (Addressing, Vec<Vlan>),
    named: Option<watch::Sender<Vec<SocketAddr>>>,
) {
    let policy = Policy { addressing, vlans, hostname: Some(knowledge.own_name()), resolv_conf: RESOLV_CONF.into(), only: None };
    let servers = Mutex::new(TimeServers::default());
    let tell = |state| {
        log::info!("link {state}");
        if let Some(named) = &named {
            let now = lock(&servers).after(state);
            named.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
        }
        bulletin.publish();
        knowledge.touch();
    };
    if let Err(error) = rebec_links::bring_up(policy, tell).await {
        log::error!("links: {error}");
    }
}

async fn keep_time(clock: Clock, servers: watch::Receiver<Vec<SocketAddr>>) {
    let tell = |state: time::TimeState| {
        let now = Some(state.to_string());
        if clock.send_replace(now.clone()) != now {
            log::info!("clock: {state}");
        }
    };
    time::keep_time(SystemClock, servers, tell).await;
}

/// Time servers that DHCP named, by link.
#[derive(Default)]
struct TimeServers(BTreeMap<String, Vec<Ipv4Addr>>);

impl TimeServers {
    /// All of them, now that a link is so.
    fn after(&mut self, link: LinkState) -> Vec<SocketAddr> {
        match link.progress {
            Progress::Ready { time_servers, .. } => {
                self.0.insert(link.interface, time_servers);
            }
            Progress::NoCarrier | Progress::Failed(_) => {
                self.0.remove(&link.interface);
            }
            Progress::Asking | Progress::Ipv6(_) => {}
        }
        let mut servers: Vec<_> = self.0.values().flatten().map(|address| SocketAddr::from((*address, time::PORT))).collect();
        // Two links may lead to one server.
        servers.sort();
        servers.dedup();
        servers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_servers_are_those_of_the_links_that_are_up() {
        let mut servers = TimeServers::default();
        let mut after = |interface: &str, progress| {
            let servers = servers.after(LinkState { interface: interface.to_owned(), progress });
            servers.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let ready = |last: &[u8]| Progress::Ready {
            address: (Ipv4Addr::LOCALHOST, 8),
            gateway: None,
            time_servers: last.iter().map(|last| Ipv4Addr::new(10, 0, 0, *last)).collect(),
        };
        assert_eq!(after("eth0", ready(&[1, 2])), ["10.0.0.1:123", "10.0.0.2:123"]);
        assert_eq!(after("eth1", ready(&[3, 2])), ["10.0.0.1:123", "10.0.0.2:123", "10.0.0.3:123"]);
        assert_eq!(after("eth0", Progress::Ipv6(vec![])).len(), 3);
        assert_eq!(after("eth0", Progress::NoCarrier), ["10.0.0.2:123", "10.0.0.3:123"]);
        assert_eq!(after("eth1", Progress::Failed("the lease ended".to_owned())), [""; 0]);
    }
}
