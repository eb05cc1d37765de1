//! Two ends in one process: which road a request takes, and as whom it arrives.

use axum::{Extension, Router, routing::get};

use super::*;

/// How long a test may hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers with the road, and the first byte of the asker's key.
fn router(road: &'static str) -> Router {
    let say = move |Extension(key): Extension<Key>| async move { format!("{road} {}", key.0[0]) };
    Router::new().route("/", get(say))
}

/// An end of the mesh that answers what comes over it.
async fn open() -> (Arc<Mesh>, Peer) {
    let mesh = Arc::new(Mesh::open(SecretKey::generate(), 0).await.unwrap());
    let serve: Serve = Arc::new(|key, stream| {
        tokio::spawn(serve::connection(stream, router("mesh"), key, serve::LIMITS.head));
    });
    let accepting = mesh.clone();
    tokio::spawn(async move { accepting.accept(serve).await });
    let key = Name(*mesh.endpoint.id().as_bytes());
    let addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, mesh.port()))];
    (mesh, Peer { key, name: "other".into(), addresses })
}

async fn listen(mesh: &Mesh) {
    let listener = bulk::listen(mesh.port()).unwrap();
    tokio::spawn(serve::agents(listener, mesh.bulk.acceptor().unwrap(), router("tcp"), |key| key));
}

async fn ask(mesh: &Mesh, peer: &Peer) -> String {
    let request = Request::get("/").body(Body::empty()).unwrap();
    let answer = async { mesh.request_bulk(peer, request).await.unwrap().into_body().collect().await.unwrap() };
    let bytes = tokio::time::timeout(PATIENCE, answer).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn bulk_takes_tcp_where_it_can_and_the_mesh_where_it_cannot() {
    let ((a, as_a), (b, as_b)) = (open().await, open().await);
    let by = as_a.key.0[0];
    assert_eq!(ask(&a, &as_b).await, format!("mesh {by}"));
    // A host that TCP did not reach is left alone for a while, then tried again.
    listen(&b).await;
    assert_eq!(ask(&a, &as_b).await, format!("mesh {by}"));
    a.bulk.forget();
    assert_eq!(ask(&a, &as_b).await, format!("tcp {by}"));
}

#[tokio::test]
async fn who_answers_at_the_port_with_another_key_is_given_nothing() {
    let ((a, as_a), (b, as_b)) = (open().await, open().await);
    let (thief, _) = open().await;
    let listener = bulk::listen(b.port()).unwrap();
    tokio::spawn(serve::agents(listener, thief.bulk.acceptor().unwrap(), router("thief"), |key| key));
    assert_eq!(ask(&a, &as_b).await, format!("mesh {}", as_a.key.0[0]));
}

#[tokio::test]
async fn tcp_is_for_those_who_prove_a_key() {
    let (b, as_b) = open().await;
    listen(&b).await;
    let tcp = tokio::net::TcpStream::connect(as_b.addresses[0]).await.unwrap();
    let keyless = tokio_rustls::TlsConnector::from(Arc::new(rebec_tls::client_of(as_b.key.0).unwrap()));
    // The refusal may come after this side's end of the handshake.
    if let Ok(stream) = keyless.connect(rebec_tls::server_name(), tcp).await {
        let request = Request::get("/").body(Body::empty()).unwrap();
        assert!(request_over(stream, &as_b, request).await.is_err());
    }
}
