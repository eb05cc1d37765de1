//! Which road a request takes, and as whom it arrives.

use super::*;
use crate::question::request_over;

async fn ask(host: &Host, to: &Host) -> String {
    let request = Request::get("/").body(Body::empty()).unwrap();
    let answer = async { host.mesh.request_bulk(&to.peer(), request).await.unwrap().into_body().collect().await.unwrap() };
    let bytes = tokio::time::timeout(PATIENCE, answer).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Whether a host has connections over TCP to another.
fn by_tcp(host: &Host, to: &Host) -> bool {
    !host.mesh.bulk.is_unreached(&to.key())
}

#[tokio::test]
async fn bulk_takes_tcp_where_it_can_and_the_mesh_where_it_cannot() {
    let (a, b) = (Host::open("a").await, Host::open("b").await);
    b.knows(&a);
    let by = format!("b {}", a.key().0[0]);
    assert_eq!((ask(&a, &b).await, by_tcp(&a, &b)), (by.clone(), false));
    // A host that TCP did not reach is left alone for a while, then tried again.
    b.listen(&b);
    assert_eq!((ask(&a, &b).await, by_tcp(&a, &b)), (by.clone(), false));
    a.mesh.bulk.forget();
    assert_eq!((ask(&a, &b).await, by_tcp(&a, &b)), (by, true));
}

#[tokio::test]
async fn who_answers_at_the_port_with_another_key_is_given_nothing() {
    let (a, b, thief) = (Host::open("a").await, Host::open("b").await, Host::open("thief").await);
    b.listen(&thief);
    assert_eq!(ask(&a, &b).await, format!("b {}", a.key().0[0]));
}

/// A bridge for containers has the same address on every host: what answers there is somebody else, or the one that asks.
#[tokio::test]
async fn the_address_where_the_host_itself_answers_counts() {
    let (a, b, other) = (Host::open("a").await, Host::open("b").await, Host::open("other").await);
    b.knows(&a);
    b.listen(&b);
    other.listen(&other);
    let mut peer = b.peer();
    peer.addresses.insert(0, other.peer().addresses[0]);
    let request = Request::get("/").body(Body::empty()).unwrap();
    let answer = async { a.mesh.request_bulk(&peer, request).await.unwrap().into_body().collect().await.unwrap() };
    let bytes = tokio::time::timeout(PATIENCE, answer).await.unwrap().to_bytes();
    assert_eq!((bytes.to_vec(), by_tcp(&a, &b)), (format!("b {}", a.key().0[0]).into_bytes(), true));
}

#[tokio::test]
async fn a_host_does_not_dial_itself_for_another() {
    let (a, b) = (Host::open("a").await, Host::open("b").await);
    b.knows(&a);
    let mut peer = b.peer();
    peer.addresses.insert(0, a.peer().addresses[0]);
    for _ in 0..4 {
        let request = Request::get("/").body(Body::empty()).unwrap();
        let answer = tokio::time::timeout(PATIENCE, a.mesh.request(&peer, request)).await.unwrap();
        assert_eq!(answer.unwrap().status(), 200);
        a.mesh.connections_to(&b.key()).into_iter().for_each(|connection| connection.close(0_u32.into(), b"again"));
    }
    let only_own = Peer { addresses: a.peer().addresses, ..peer };
    let refused = a.mesh.request(&only_own, Request::get("/").body(Body::empty()).unwrap()).await.unwrap_err();
    assert!(refused.message.contains("not this host's own"), "{refused:?}");
}

#[tokio::test]
async fn tcp_is_for_those_who_prove_a_key() {
    let b = Host::open("b").await;
    b.listen(&b);
    let tcp = tokio::net::TcpStream::connect(b.peer().addresses[0]).await.unwrap();
    let keyless = tokio_rustls::TlsConnector::from(Arc::new(rebec_tls::client_of(b.key().0).unwrap()));
    // The refusal may come after this side's end of the handshake.
    if let Ok(stream) = keyless.connect(rebec_tls::server_name(), tcp).await {
        let request = Request::get("/").body(Body::empty()).unwrap();
        assert!(request_over(stream, &b.peer(), request).await.is_err());
    }
}

#[tokio::test]
async fn many_questions_at_once_take_one_dial() {
    let (a, b) = (Host::open("a").await, Host::open("b").await);
    b.knows(&a);
    let asked = futures_util::future::join_all((0..32).map(|_| a.post(&b, Body::empty()))).await;
    assert!(asked.iter().all(Result::is_ok), "{asked:?}");
    assert_eq!((a.mesh.connections_to(&b.key()).len(), b.mesh.connections_to(&a.key()).len()), (1, 1));
}

#[tokio::test]
async fn both_ways_go_over_the_connection_of_whoever_dialled() {
    let (a, b) = (Host::open("a").await, Host::open("b").await);
    a.knows(&b);
    b.knows(&a);
    assert_eq!(a.post(&b, Body::empty()).await.unwrap().0, 200);
    let unreachable = Peer { addresses: vec![], ..a.peer() };
    let request = Request::get("/").body(Body::empty()).unwrap();
    assert_eq!(b.mesh.request(&unreachable, request).await.unwrap().status(), 200);
}

/// Its own end is at an address that is gone: nothing would come over it any more, and nobody would say so.
#[tokio::test]
async fn a_connection_ends_with_the_address_that_it_begins_at() {
    let (a, b) = (Host::open("a").await, Host::open("b").await);
    b.knows(&a);
    assert_eq!(a.post(&b, Body::empty()).await.unwrap().0, 200);
    let before = a.mesh.connections_to(&b.key());
    a.mesh.addresses_changed(|address| address.is_loopback()).await;
    assert!(before.iter().all(|connection| connection.close_reason().is_none()) && before.len() == 1, "its address is there");
    a.mesh.addresses_changed(|_| false).await;
    assert!(before[0].close_reason().is_some() && a.mesh.connections_to(&b.key()).is_empty());
    assert_eq!(a.post(&b, Body::empty()).await.unwrap().0, 200);
    assert_eq!(a.mesh.connections_to(&b.key()).len(), 1);
}

#[tokio::test]
async fn what_a_path_carries_is_found_out() {
    let (a, b) = (Host::open("a").await, Host::open("b").await);
    b.knows(&a);
    assert_eq!((a.post(&b, Body::empty()).await.unwrap().0, a.mesh.path_bytes(&b.key()).is_none_or(|bytes| bytes == 1500)), (200, true));
    let found = async {
        while a.mesh.path_bytes(&b.key()) != Some(1500) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap();
}

#[test]
fn of_many_addresses_a_few_are_dialled() {
    let addresses: Vec<_> = (1..=8000).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect();
    let peer = Peer { key: Name([1; 32]), name: "other".into(), addresses };
    assert_eq!(peer.dialled().len(), 8);
    assert_eq!(Peer { addresses: vec![], ..peer }.dialled().len(), 0);
}
