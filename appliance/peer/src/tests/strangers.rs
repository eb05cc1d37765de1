//! What those may take who are no members.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use http_body_util::StreamBody;
use hyper::body::Frame;

use super::*;
use crate::{
    door::{STRANGER_TIME, STRANGERS_MAX, STREAMS_PER_MEMBER},
    question::request_over,
};

const PIECE_BYTES: usize = 4 << 10;

/// A body of so many pieces, of unknown length, and how many have left.
fn stream(pieces: usize) -> (Body, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let pieces = futures_util::stream::iter((0..pieces).map(move |_| {
        count.fetch_add(PIECE_BYTES, Ordering::Relaxed);
        Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[b' '; PIECE_BYTES])))
    }));
    (Body::new(StreamBody::new(pieces)), sent)
}

/// A body that begins and does not go on.
fn stalled() -> Body {
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"{")))]);
    Body::new(StreamBody::new(futures_util::StreamExt::chain(first, futures_util::stream::pending())))
}

/// Waits until something holds.
async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test]
async fn a_long_body_is_refused_before_it_is_read() {
    let (b, a) = (Host::open("b").await, Host::open("a").await);
    let (status, body) = a.post(&b, Body::from(vec![b' '; 1 << 20])).await.unwrap();
    assert_eq!(status, 413, "{body}");
    assert!(serde_json::from_str::<ApiError>(&body).unwrap().message.contains("64 KiB"), "{body}");
    // Whose length nobody said; what has left is in buffers of the sender for the most part.
    let (body, sent) = stream(1024);
    let (status, body) = a.post(&b, body).await.unwrap();
    assert_eq!(status, 413, "{body}");
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < 1 << 20, "{sent} bytes left");
    assert_eq!(a.post(&b, Body::from(vec![b' '; 64 << 10])).await.unwrap(), (200, (64 << 10).to_string()));
    // A member's are the router's to refuse.
    b.knows(&a);
    assert_eq!(a.post(&b, Body::from(vec![b' '; 1 << 20])).await.unwrap(), (200, (1 << 20).to_string()));
}

#[tokio::test]
async fn a_stranger_asks_one_thing_at_a_time() {
    let (b, a) = (Host::open("b").await, Host::open("a").await);
    assert_eq!(a.post(&b, Body::empty()).await.unwrap().0, 200);
    let first = tokio::spawn({
        let (mesh, peer) = (a.mesh.clone(), b.peer());
        async move { mesh.request(&peer, Request::post("/length").body(stalled()).unwrap()).await.map(|answer| answer.status()) }
    });
    // The second has not been begun when the first is refused for its slowness, and is answered then.
    let second = a.post(&b, Body::empty());
    tokio::pin!(second);
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut second).await.is_err());
    assert!(!first.is_finished());
    assert_eq!(second.await.unwrap().0, 200);
    assert_eq!(first.await.unwrap().unwrap(), 400);
}

#[tokio::test]
async fn one_stranger_too_many_is_refused_and_members_are_served() {
    let (b, member) = (Host::open("b").await, Host::open("member").await);
    b.knows(&member);
    let strangers = join_all((0..STRANGERS_MAX).map(|_| Host::open("stranger"))).await;
    for stranger in &strangers {
        assert_eq!(stranger.post(&b, Body::empty()).await.unwrap().0, 200);
    }
    let late = Host::open("late").await;
    let error = late.post(&b, Body::empty()).await.unwrap_err();
    assert!(error.message.contains("no members"), "{error}");
    // Nor by the other road.
    b.listen(&b);
    let request = Request::get("/").body(Body::empty()).unwrap();
    assert!(late.mesh.request_bulk(&b.peer(), request).await.is_err());
    assert_eq!(member.post(&b, Body::from(vec![b' '; 1 << 20])).await.unwrap().0, 200);
    // One who becomes a member gives its place to the next.
    b.knows(&strangers[0]);
    assert_eq!(strangers[0].post(&b, Body::empty()).await.unwrap().0, 200);
    assert_eq!(late.post(&b, Body::empty()).await.unwrap().0, 200);
    assert!(b.door.stranger().is_none());
}

#[tokio::test]
async fn a_member_asks_much_at_once_and_one_that_left_does_not() {
    let (b, a) = (Host::open("b").await, Host::open("a").await);
    b.knows(&a);
    let asked = join_all((0..64).map(|_| a.post(&b, Body::from(vec![b' '; 128 << 10])))).await;
    assert!(asked.iter().all(|answer| answer.as_ref().is_ok_and(|(status, _)| *status == 200)));
    let mut all = vec![];
    until(|| {
        all.extend(std::iter::from_fn(|| b.door.stream(a.key())));
        all.len() == STREAMS_PER_MEMBER as usize
    })
    .await;
    assert!(a.post(&b, Body::empty()).await.is_err());
    drop(all);
    assert_eq!(a.post(&b, Body::empty()).await.unwrap().0, 200);
    lock(&b.members).clear();
    assert_eq!(a.post(&b, Body::from(vec![b' '; 128 << 10])).await.unwrap().0, 413);
    assert_eq!(a.post(&b, Body::empty()).await.unwrap().0, 200);
}

#[tokio::test]
async fn over_tcp_a_stranger_asks_once() {
    let (b, a) = (Host::open("b").await, Host::open("a").await);
    b.listen(&b);
    let stream = a.mesh.bulk.connect(&b.peer()).await.unwrap();
    let long = Request::post("/length").body(Body::from(vec![b' '; 1 << 20])).unwrap();
    assert_eq!(request_over(stream, &b.peer(), long).await.unwrap().status(), 413);
    let stream = a.mesh.bulk.connect(&b.peer()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    let ended = tokio::spawn(connection);
    let question = || Request::get("/").header("host", "rebec").body(Body::empty()).unwrap();
    assert_eq!(sender.send_request(question()).await.unwrap().status(), 200);
    tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap();
    assert!(sender.send_request(question()).await.is_err());
    until(|| (0..STRANGERS_MAX).map(|_| b.door.stranger()).collect::<Vec<_>>().iter().all(Option::is_some)).await;
}

#[tokio::test]
async fn a_stranger_that_asks_all_the_time_is_sent_away_too() {
    let (b, a) = (Host::open("b").await, Host::open("a").await);
    assert_eq!(a.post(&b, Body::empty()).await.unwrap().0, 200);
    let connection = a.mesh.connections_to(&b.key()).remove(0);
    let asks = async {
        while connection.close_reason().is_none() {
            // The last one fails where it is underway at the end.
            a.post(&b, Body::empty()).await.map(|_| ()).unwrap_or_default();
        }
    };
    tokio::time::timeout(STRANGER_TIME + PATIENCE, asks).await.unwrap();
    let reason = connection.close_reason().unwrap().to_string();
    assert!(reason.contains("some seconds"), "{reason}");
}

#[tokio::test]
async fn a_stranger_that_says_nothing_is_sent_away() {
    let (b, a) = (Host::open("b").await, Host::open("a").await);
    assert_eq!(a.post(&b, Body::empty()).await.unwrap().0, 200);
    assert_eq!(b.mesh.connections_to(&a.key()).len(), 1);
    tokio::time::sleep(STRANGER_TIME).await;
    until(|| b.mesh.connections_to(&a.key()).is_empty()).await;
}
