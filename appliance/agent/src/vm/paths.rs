//! Paths to other hosts that carry less than the packets of the LANs that go over them: said in `rebec lan show` and in the log. The mesh has found out
//! what a path carries (`rebec_peer::Mesh::path_bytes`); nothing is decided here, for packets leave without DF and are cut on their way.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rebec_book::{
    Body, Book, Key,
    key::Id,
    lan,
    record::{Kind, LanBody},
    view,
};

use super::Vms;
use crate::{knowledge::Knowledge, peers::Peers};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(10);

/// A path from this host that is narrower than a LAN's packets on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narrow {
    /// The host at its other end.
    pub host: Key,
    /// The largest packet that comes through.
    pub bytes: u16,
    /// The largest of the LAN.
    pub needs: u16,
}

/// Those that a LAN's frames from here take.
pub fn narrow(knowledge: &Knowledge, peers: &Peers, lan: Id) -> Vec<Narrow> {
    let found = knowledge.read(|book| {
        let Some(Body::Lan(body)) = book.thing(Kind::LAN, lan).and_then(|thing| book.get(Kind::LAN, lan, thing.home)) else {
            return vec![];
        };
        of(body, &holders(book, lan), knowledge.key(), |host| peers.mesh.path_bytes(host))
    });
    found.unwrap_or_default()
}

/// The hosts that have ports of a LAN.
fn holders(book: &Book, lan: Id) -> BTreeSet<Key> {
    let seen = book.on_lan(lan).filter_map(|record| view::seen(book, record.key.id));
    seen.filter(|seen| !seen.body.endpoints.is_empty()).map(|seen| seen.holder).collect()
}

fn of(body: &LanBody, holders: &BTreeSet<Key>, own: Key, carries: impl Fn(&Key) -> Option<u16>) -> Vec<Narrow> {
    // What a path carries is looked for up to the MTU of Ethernet.
    let needs = lan::way_bytes(body.mtu, body.sealed == Some(true)).min(lan::WAY_BYTES_KNOWN);
    let others = holders.iter().filter(|host| holders.contains(&own) && **host != own);
    let all = others.filter_map(|host| Some(Narrow { host: *host, bytes: carries(host)?, needs }));
    all.filter(|path| path.bytes < needs).collect()
}

/// Says once of each that it is narrow, until the agent ends.
pub async fn run(vms: Arc<Vms>) {
    let mut told = BTreeMap::new();
    loop {
        tokio::time::sleep(PERIOD).await;
        let lans: BTreeSet<Id> = vms.all().iter().flat_map(|vm| vm.kept().body.nics.into_iter().map(|nic| nic.lan)).collect();
        let now: BTreeMap<(Id, Key), Narrow> = lans
            .into_iter()
            .flat_map(|lan| narrow(&vms.knowledge, &vms.peers, lan).into_iter().map(move |path| ((lan, path.host), path)))
            .collect();
        for ((lan, host), path) in now.iter().filter(|(at, path)| told.get(*at) != Some(*path)) {
            let name = vms.knowledge.read(|book| view::lans(book).into_iter().find(|one| one.id == *lan).map(|one| one.name)).flatten();
            let (name, host) = (name.unwrap_or_else(|| lan.short()), vms.knowledge.name_of(host));
            log::warn!(
                "the path to {host} carries packets of {} bytes: those of LAN {name}, of up to {}, are cut in two on the way, which is slower; if they are lost there, give the route to it an MTU",
                path.bytes,
                path.needs
            );
        }
        told = now;
    }
}

#[cfg(test)]
mod tests {
    use rebec_book::key::Name;

    use super::*;

    const OWN: Key = Name([1; 32]);
    const NEAR: Key = Name([2; 32]);
    const FAR: Key = Name([3; 32]);

    fn lan(mtu: u16, sealed: bool) -> LanBody {
        LanBody {
            nonce: Name([0; 16]),
            name: "office".into(),
            vni: 1,
            network: [10, 0, 0, 0].into(),
            prefix: 24,
            mtu,
            leases: vec![],
            created: 0,
            domains: vec![],
            sealed: Some(sealed),
            port_bits: None,
        }
    }

    #[test]
    fn a_path_that_cuts_is_named_and_no_other() {
        let carries = |host: &Key| if *host == NEAR { Some(1500) } else { Some(1460) };
        let all = BTreeSet::from([OWN, NEAR, FAR]);
        assert_eq!(of(&lan(1400, true), &all, OWN, carries), [Narrow { host: FAR, bytes: 1460, needs: 1496 }]);
        assert_eq!(of(&lan(1400, false), &all, OWN, carries), []);
        assert_eq!(of(&lan(1280, true), &all, OWN, carries), []);
        assert_eq!(of(&lan(8900, true), &all, OWN, carries), [Narrow { host: FAR, bytes: 1460, needs: 1500 }]);
        assert_eq!(of(&lan(1400, true), &all, OWN, |_| None), []);
        assert_eq!(of(&lan(1400, true), &BTreeSet::from([NEAR, FAR]), OWN, carries), [], "no frame of it leaves from here");
    }
}
