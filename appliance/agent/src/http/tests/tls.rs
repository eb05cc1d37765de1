//! TLS on TCP: who is let in, who is not, and who is too slow.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, http::HeaderMap, routing::get};
use rebec_api::{
    ErrorCode,
    token::{CreatedToken, NewToken},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    super::{serve::Limits, tls},
    *,
};
use crate::{chance::now_s, tokens};

const LIMITS: Limits = Limits { connections: 8, per_address: 8, handshake: Duration::from_millis(300), head: Duration::from_millis(300) };
/// Longer than any limit, shorter than a test may hang.
const PATIENCE: Duration = Duration::from_secs(20);

async fn listen(bench: &Bench, router: Router, limits: Limits) -> SocketAddr {
    let listener = tls::listen(0).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
    let acceptor = tls::acceptor(&bench.agent).unwrap();
    tokio::spawn(tls::run(bench.agent.clone(), listener, acceptor, router, limits));
    address
}

async fn connect(address: SocketAddr, key: [u8; 32]) -> std::io::Result<TlsStream<TcpStream>> {
    let config = rebec_tls::client_of(key).unwrap();
    TlsConnector::from(Arc::new(config)).connect(rebec_tls::server_name(), TcpStream::connect(address).await?).await
}

async fn get_with(address: SocketAddr, key: [u8; 32], path: &str, authorization: Option<&str>) -> (u16, Vec<u8>) {
    let mut request = Request::get(path).header("host", "a1");
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    exchange(connect(address, key).await.unwrap(), request.body(Body::empty()).unwrap()).await.unwrap()
}

async fn post_with(address: SocketAddr, key: [u8; 32], path: &str, body: &'static str, authorization: &str) -> (u16, Vec<u8>) {
    let request = Request::post(path).header("host", "a1").header("authorization", authorization);
    let request = request.header("content-type", "application/json").body(Body::from(body)).unwrap();
    exchange(connect(address, key).await.unwrap(), request).await.unwrap()
}

async fn token(bench: &Bench) -> String {
    token_of(bench, r#"{"name":"laptop"}"#).await
}

async fn token_of(bench: &Bench, wish: &'static str) -> String {
    let (status, body) = bench.ask(bench.root(), "POST", "/v1/tokens", wish).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice::<CreatedToken>(&body).unwrap().token
}

#[tokio::test]
async fn a_token_lets_in_and_nothing_else_does() {
    let bench = Bench::founded().await;
    let (address, key) = (listen(&bench, router(bench.agent.clone()), LIMITS).await, bench.agent.knowledge.key().0);
    let token = token(&bench).await;
    let wrong = format!("Bearer rebec-token-{}", "0".repeat(64));
    for (authorization, words) in [
        (None, "no token"),
        (Some("Basic bWU6bWU="), "no token"),
        (Some(token.as_str()), "no token"),
        (Some(wrong.as_str()), "not known here"),
        (Some("Bearer x"), "not known here"),
    ] {
        for path in ["/v1/hosts", "/internal/exchange", "/internal/join", "/nothing"] {
            let (status, body) = get_with(address, key, path, authorization).await;
            let error = refusal(&body);
            assert_eq!((status, error.code), (401, ErrorCode::Unauthorized), "{authorization:?} {path}");
            assert!(error.message.contains(words) && error.message.contains("rebec token create"), "{error}");
        }
    }
    let right = format!("Bearer {token}");
    let (status, body) = get_with(address, key, "/v1/hosts", Some(&right)).await;
    assert_eq!((status, json(&body)[0]["name"].as_str()), (200, Some("a1")));
    assert_eq!(get_with(address, key, "/internal/exchange", Some(&right)).await.0, 400);
    assert_eq!(bench.ask(bench.root(), "DELETE", "/v1/tokens/laptop", "").await.0, 200);
    assert_eq!(get_with(address, key, "/v1/hosts", Some(&right)).await.0, 401);
}

#[tokio::test]
async fn a_token_lets_its_holder_do_what_its_role_may() {
    let bench = Bench::founded().await;
    let (address, key) = (listen(&bench, router(bench.agent.clone()), LIMITS).await, bench.agent.knowledge.key().0);
    let viewer = format!("Bearer {}", token_of(&bench, r#"{"name":"eyes","role":"viewer"}"#).await);
    assert_eq!(get_with(address, key, "/v1/vms", Some(&viewer)).await.0, 200);
    let (status, body) = post_with(address, key, "/v1/vms/web/stop", "{}", &viewer).await;
    let told = refusal(&body);
    let why = "to stop a VM needs the role user; this token has viewer: `rebec token create NAME --role user` makes one that may";
    assert_eq!((status, told.code, told.message.as_str()), (403, ErrorCode::Forbidden, why));
    let user = format!("Bearer {}", token_of(&bench, r#"{"name":"hands","role":"user","valid_s":3600}"#).await);
    // Granted, and there is no such VM.
    assert_eq!(post_with(address, key, "/v1/vms/web/stop", "{}", &user).await.0, 404);
    let (status, body) = get_with(address, key, "/v1/tokens", Some(&user)).await;
    assert!(status == 403 && refusal(&body).message.starts_with("to list tokens needs the role admin; this token has user"));
    let (status, body) = bench.ask(bench.root(), "POST", "/v1/tokens", r#"{"name":"x","valid_s":0}"#).await;
    assert_eq!((status, refusal(&body).code), (400, ErrorCode::BadRequest));
    assert_eq!(bench.ask(bench.root(), "POST", "/v1/tokens", r#"{"name":"x","role":"king"}"#).await.0, 400);
}

#[tokio::test]
async fn a_users_signature_lets_in_to_commands_and_to_nothing_else() {
    let bench = Bench::founded().await;
    let (address, own) = (listen(&bench, router(bench.agent.clone()), LIMITS).await, bench.agent.knowledge.key());
    let secret = ed25519_dalek::SigningKey::from_bytes(&[20; 32]);
    let user = format!(r#"{{"name":"anna","key":"{}","role":"viewer"}}"#, rebec_book::key::public(&secret));
    assert_eq!(bench.ask(bench.root(), "POST", "/v1/users", user).await.0, 200);
    let signed = |path: &str, at| {
        let warrant = rebec_book::Warrant {
            signer: rebec_book::key::public(&secret),
            at,
            method: "GET".into(),
            path: path.into(),
            body: Some(warrant::body_digest(b"")),
            until: now_s() + warrant::LIFE_S,
            nonce: Name(crate::chance::random()),
            token: None,
        };
        warrant.sign(&secret).unwrap()
    };
    for (path, warrant, expected) in [
        ("/v1/hosts", signed("/v1/hosts", own), 200),
        ("/v1/audit", signed("/v1/audit", own), 403),
        ("/v1/hosts", signed("/v1/hosts", Name([1; 32])), 401),
        ("/v1/hosts", "x".to_owned(), 401),
        ("/internal/exchange", signed("/internal/exchange", own), 401),
        ("/nothing", signed("/nothing", own), 401),
    ] {
        let request = Request::get(path).header("host", "a1").header(warrant::HEADER, warrant).body(Body::empty()).unwrap();
        let (status, body) = exchange(connect(address, own.0).await.unwrap(), request).await.unwrap();
        assert_eq!(status, expected, "{path}: {}", String::from_utf8_lossy(&body));
    }
}

#[tokio::test]
async fn a_token_that_has_ended_is_refused_by_its_name() {
    let bench = Bench::founded().await;
    let (address, key) = (listen(&bench, router(bench.agent.clone()), LIMITS).await, bench.agent.knowledge.key().0);
    let wish = NewToken { name: "guest".into(), role: Default::default(), valid_s: Some(60) };
    let made = tokens::create(&bench.agent.store, &wish, now_s() - 61).unwrap();
    let (status, body) = get_with(address, key, "/v1/hosts", Some(&format!("Bearer {}", made.token))).await;
    let told = refusal(&body);
    assert_eq!((status, told.code), (401, ErrorCode::Unauthorized));
    assert!(told.message.contains("`guest` has expired; `rebec token create NAME`"), "{told}");
}

#[tokio::test]
async fn a_token_does_not_go_on_to_other_hosts() {
    let bench = Bench::new().await;
    let seen = |headers: HeaderMap| async move { axum::Json(headers.contains_key("authorization")) };
    let address = listen(&bench, Router::new().route("/seen", get(seen)), LIMITS).await;
    let authorization = format!("Bearer {}", token(&bench).await);
    let (status, body) = get_with(address, bench.agent.knowledge.key().0, "/seen", Some(&authorization)).await;
    assert_eq!((status, json(&body)), (200, Value::Bool(false)));
}

#[tokio::test]
async fn another_key_than_the_pinned_one_is_not_spoken_to() {
    let bench = Bench::new().await;
    let address = listen(&bench, router(bench.agent.clone()), LIMITS).await;
    let mut other = bench.agent.knowledge.key().0;
    other[31] ^= 1;
    let error = connect(address, other).await.unwrap_err();
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
    connect(address, bench.agent.knowledge.key().0).await.unwrap();
}

#[tokio::test]
async fn slow_clients_are_cut_off_and_their_places_are_free_again() {
    let bench = Bench::new().await;
    let address = listen(&bench, router(bench.agent.clone()), Limits { connections: 1, ..LIMITS }).await;
    let key = bench.agent.knowledge.key().0;
    let authorization = format!("Bearer {}", token(&bench).await);
    let silent = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(stream.read(&mut [0; 64]).await.unwrap_or(0), 0);
    };
    tokio::time::timeout(PATIENCE, silent).await.unwrap();
    for head in ["", "GET /v1/pool HT", "GET /v1/pool HTTP/1.1\r\nhost: a1\r\nx: "] {
        let slow = async {
            let mut stream = connect(address, key).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = vec![];
            stream.read_to_end(&mut answer).await.map(|_| ()).unwrap_or_default();
            assert!(!answer.starts_with(b"HTTP/1.1 200"));
        };
        tokio::time::timeout(PATIENCE, slow).await.unwrap();
        assert_eq!(tokio::time::timeout(PATIENCE, get_with(address, key, "/v1/pool", Some(&authorization))).await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn who_shows_no_token_is_answered_once() {
    let bench = Bench::new().await;
    let limits = Limits { connections: 1, head: PATIENCE * 2, ..LIMITS };
    let address = listen(&bench, router(bench.agent.clone()), limits).await;
    let asks = async {
        let mut stream = connect(address, bench.agent.knowledge.key().0).await.unwrap();
        stream.write_all(b"GET /v1/pool HTTP/1.1\r\nhost: a1\r\n\r\n").await.unwrap();
        let mut answer = vec![];
        stream.read_to_end(&mut answer).await.map(|_| ()).unwrap_or_default();
        assert!(answer.starts_with(b"HTTP/1.1 401"), "{}", String::from_utf8_lossy(&answer));
    };
    tokio::time::timeout(PATIENCE, asks).await.unwrap();
}
