//! Who is silent holds nobody up: hosts that are asked when this one leaves, VMMs that hang while an agent starts.

use std::{
    net::UdpSocket,
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use rebec_book::{
    Body as RecordBody, Record,
    book::Came,
    key::public,
    record::{HostBody, Kind, MemberBody, id_of_key},
};
use rebec_host::kept;

use super::*;
use crate::{
    chance::now_s,
    identity,
    vm::{Kept, Want, adopt},
};

/// A host of the bench's domain that was heard a moment ago, and does not answer any more.
fn fellow(bench: &Bench, number: u8) -> UdpSocket {
    let (agent, secret) = (&bench.agent, SigningKey::from_bytes(&[number; 32]));
    let domain = agent.identity.get(identity::Role::Domain).unwrap().unwrap();
    let (host, of) = (public(&secret), public(domain.as_signing_key()));
    let member = MemberBody { host, domain: of, name: format!("h{number}"), dead: None, role: None };
    agent.knowledge.publish_as(Kind::MEMBER, id_of_key(&host), Some(RecordBody::Member(member)), domain.as_signing_key()).unwrap();
    let ear = UdpSocket::bind("127.0.0.1:0").unwrap();
    let body = HostBody { addresses: vec![ear.local_addr().unwrap()], ..HostBody::bare(of) };
    let says = Record::sign(Kind::HOST, id_of_key(&host), now_s(), Some(&RecordBody::Host(body.into())), &secret).unwrap();
    assert_eq!(agent.knowledge.take_in(vec![says], Came::Alone).len(), 1);
    agent.peers.heard(host);
    assert!(agent.peers.answers(&host) && agent.knowledge.peer(&host).is_some_and(|peer| peer.addresses.len() == 1));
    ear
}

#[tokio::test]
async fn a_host_leaves_however_many_others_do_not_answer() {
    let bench = Bench::founded().await;
    let ears: Vec<_> = (1..=4).map(|number| fellow(&bench, number)).collect();
    pool::export_key(&bench.agent.membership).unwrap();
    pool::leave(&bench.agent.membership).await.unwrap();
    assert!(bench.agent.knowledge.read(|_| ()).is_none());
    // One after the other, the last would have counted as silent before their turn.
    for (number, ear) in ears.iter().enumerate() {
        ear.set_nonblocking(true).unwrap();
        assert!(ear.recv(&mut [0; 2048]).is_ok(), "host {number} was not asked");
    }
}

#[tokio::test]
async fn vmms_that_hang_are_waited_for_side_by_side() {
    let bench = Bench::founded().await;
    let agent = &bench.agent;
    let mut deaf = vec![];
    for number in 1..=4 {
        let id = Name([number; 16]);
        let folder = kept::folder(agent.host.state(), &id);
        std::fs::create_dir_all(&folder).unwrap();
        let vm = Kept { epoch: 1, ..Kept::new(id, agent.knowledge.key(), vm_body(&bench), vm_private(), Want::Stopped) };
        kept::write(&folder, &vm).unwrap();
        deaf.push(UnixListener::bind(folder.join("control.sock")).unwrap());
    }
    let start = Instant::now();
    adopt::all(&agent.vms).await.unwrap();
    assert_eq!(agent.vms.all().len(), 4);
    // Each is given 10 s.
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
}
