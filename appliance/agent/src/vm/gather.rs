//! The parts of an image that are not here: who has them, and how they come.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rebec_api::ApiError;
use rebec_book::{
    Body, Key,
    record::{ImageBody, Kind, PartRef},
    view::{self, HostView},
};
use rebec_host::depot::{Nearness, nearest_first};

use super::Vms;
use crate::{derived, holder::Over, jobs::Reporter, mesh::Peer};

/// How long a host may take to hear who has a part.
const KNOWN_TIME: Duration = Duration::from_secs(5);

/// Gets the parts of an image that are not here, from whoever holds them; `sender` sends a VM that stands on it.
pub async fn gather(vms: &Arc<Vms>, image: &ImageBody, sender: Option<Key>, reporter: &Reporter) -> Result<(), ApiError> {
    for part in image.parts() {
        // A host that has just joined may not have heard yet who has it.
        if !vms.host.depot.has(&part.digest) {
            vms.knowledge.until(KNOWN_TIME, || !holders(vms, &part, sender).is_empty()).await;
        }
        let holders: Vec<_> = holders(vms, &part, sender).into_iter().map(|peer| Over::holder(&vms.peers, peer)).collect();
        let phase = |from: &str, done, total| reporter.progress(format!("fetching image {} from {from}", image.name), done, total);
        vms.host.depot.fetch(&part, &holders, phase).await?;
    }
    derived::ensure(vms.host.vmm(), &vms.host.depot, image, || reporter.progress(format!("reading image {}", image.name), 0, 0)).await;
    Ok(())
}

/// Hosts that hold a part and answer: own domain first, then who sends the VM that needs it, whatever it says that it holds. What another
/// domain's hosts hold is not told here: homes of images and VMs that need the part are asked.
fn holders(vms: &Vms, part: &PartRef, sender: Option<Key>) -> Vec<Peer> {
    let own = vms.knowledge.key();
    let found = vms.knowledge.read(|book| {
        let domain = book.own_domain();
        let needs = |record: &&rebec_book::Record| match &record.body {
            Some(Body::Image(image)) => image.parts().any(|one| one.digest == part.digest),
            Some(Body::Vm(vm)) => vm.image.parts().any(|one| one.digest == part.digest),
            _ => false,
        };
        let things = book.of_kind(Kind::IMAGE).chain(book.of_kind(Kind::VM));
        let homes: BTreeSet<Key> = things.filter(needs).map(|record| record.key.writer).collect();
        let holds = |host: &HostView<'_>| {
            let told = view::parts(book, &host.key).any(|digest| *digest == part.digest);
            told || Some(host.key) == sender || Some(host.domain) != domain && homes.contains(&host.key)
        };
        let hosts = view::hosts(book).into_iter().filter(|host| host.key != own && holds(host));
        let near = hosts.map(|host| match host.key {
            key if Some(host.domain) == domain => (Nearness::Own, key),
            key if Some(key) == sender => (Nearness::Sender, key),
            key => (Nearness::Other, key),
        });
        nearest_first(near.collect())
    });
    found
        .unwrap_or_default()
        .iter()
        .filter(|key| Some(**key) == sender || vms.peers.answers(key))
        .filter_map(|key| vms.knowledge.peer(key))
        .collect()
}
