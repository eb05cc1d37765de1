//! The client against small servers: an agent of HTTP on a Unix socket, one behind TLS, and some that misbehave.

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use http_body_util::{Empty, StreamBody};
use hyper::{body::Frame, server::conn::http1, service::service_fn};
use rebec_api::{ErrorCode, image::Part, job::JobState, pool::PoolStatus};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
};

use super::*;
use crate::args::values::HostKey;

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A socket in a folder that goes away with it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> (Self, UnixListener) {
        let place = Self(tempfile::tempdir().unwrap());
        let listener = UnixListener::bind(place.path()).unwrap();
        (place, listener)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("agent.sock")
    }

    fn client(&self) -> Client {
        Client::new(Target::Socket(self.path()))
    }

    fn file(&self, bytes: usize) -> PathBuf {
        let path = self.0.path().join("file");
        std::fs::write(&path, vec![7; bytes]).unwrap();
        path
    }
}

/// An agent that answers every request with `answer`.
fn agent<F: Future<Output = Reply> + Send + 'static>(
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> (Place, Client) {
    let (place, listener) = Place::new();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer.clone()));
        }
    });
    let client = place.client();
    (place, client)
}

async fn serve<F: Future<Output = Reply> + Send + 'static>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: impl Fn(Request<Incoming>) -> F + Sync,
) {
    let service = service_fn(|request| {
        let answered = answer(request);
        async { Ok::<_, Infallible>(answered.await) }
    });
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await);
}

fn reply(status: u16, body: impl Into<Bytes>) -> Reply {
    Response::builder().status(status).body(Full::new(body.into()).boxed_unsync()).unwrap()
}

/// An agent that reads the head of a request, answers these bytes and hangs up.
fn bytes_and_gone(answer: &'static [u8]) -> (Place, Client) {
    let (place, listener) = Place::new();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            drop(stream.read(&mut head).await);
            drop(stream.write_all(answer).await);
        }
    });
    let client = place.client();
    (place, client)
}

#[test]
fn names_are_escaped_in_paths() {
    assert_eq!(path(&["vms", "a/b é.x", "stop"]), "/v1/vms/a%2Fb%20%C3%A9.x/stop");
    assert_eq!(path(&["vms", ".."]), "/v1/vms/%2E%2E");
    assert_eq!(path(&["vms", "a?b#c%"]), "/v1/vms/a%3Fb%23c%25");
}

#[tokio::test]
async fn answers_are_read_and_changes_carry_their_body() {
    let (_place, client) = agent(|request| async move {
        let line = format!("{} {}", request.method(), request.uri());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        match line.as_str() {
            "GET /v1/pool" => reply(
                200,
                r#"{"pool":null,"key":null,"host":"a1","domain":null,"domains":0,"hosts":0,"hosts_reachable":0,"vms":0,"join":"alone","new":1}"#,
            ),
            "POST /v1/echo" => reply(200, body),
            "POST /v1/long" => {
                reply(202, r#"{"id":"j1","what":"w","state":"running","progress":{"phase":"","done_bytes":0,"total_bytes":0}}"#)
            }
            "DELETE /v1/vms/web" => reply(204, ""),
            _ => reply(404, ""),
        }
    });
    let status: PoolStatus = client.get(&path(&["pool"])).await.unwrap();
    assert_eq!((status.host.as_str(), status.pool), ("a1", None));
    let Answer::Done(value) = client.post(&path(&["echo"]), &serde_json::json!({"a": 1})).await.unwrap() else { panic!("a job") };
    assert_eq!(value, serde_json::json!({"a": 1}));
    let Answer::Job(job) = client.post_empty(&path(&["long"])).await.unwrap() else { panic!("no job") };
    assert_eq!((job.id.as_str(), job.state), ("j1", JobState::Running));
    assert!(matches!(client.delete(&path(&["vms", "web"])).await, Ok(Answer::Done(serde_json::Value::Null))));
}

#[tokio::test]
async fn a_refusal_keeps_its_words_and_another_answer_is_named() {
    let (_place, client) = agent(|request| async move {
        match request.uri().path() {
            "/v1/refused" => reply(422, r#"{"code":"refused","message":"no host has room","details":["a1: full"]}"#),
            "/v1/page" => reply(502, "<html>"),
            _ => reply(200, "{\"half\":"),
        }
    });
    match client.get::<PoolStatus>("/v1/refused").await {
        Err(ClientError::Refused(error)) => {
            assert_eq!((error.code, error.details.as_slice()), (ErrorCode::Refused, &["a1: full".to_owned()][..]))
        }
        other => panic!("{other:?}"),
    }
    let error = client.get::<PoolStatus>("/v1/page").await.unwrap_err();
    assert!(error.to_string().contains("status 502") && !error.unreachable(), "{error}");
    let error = client.get::<PoolStatus>("/v1/half").await.unwrap_err();
    assert!(error.to_string().contains("/v1/half") && !error.unreachable(), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_cut_off() {
    let (_place, client) = agent(|_| async {
        let long = StreamBody::new(Long(0));
        Response::new(long.boxed_unsync())
    });
    let error = client.get::<PoolStatus>("/v1/pool").await.unwrap_err();
    assert!(error.to_string().contains("longer than 16 MiB"), "{error}");
}

/// Blanks, somewhat more than is read.
struct Long(usize);

impl futures_util::Stream for Long {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        const BLANKS: &[u8] = &[b' '; 65_536];
        self.0 += BLANKS.len();
        let more = self.0 < ANSWER_BYTES_MAX + (1 << 20);
        std::task::Poll::Ready(more.then(|| Ok(Frame::data(Bytes::from_static(BLANKS)))))
    }
}

#[tokio::test]
async fn nobody_there_and_cut_connections_are_told_with_what_to_do() {
    let client = Client::new(Target::Socket("/nowhere/agent.sock".into()));
    let error = client.get::<PoolStatus>("/v1/pool").await.unwrap_err();
    assert!(error.unreachable());
    for words in ["/nowhere/agent.sock", "is the agent running?", "systemctl status rebec", "--socket"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    let answers: [&[u8]; 3] = [b"", b"HTTP/1.1 200 OK\r\ncontent-le", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"pool\""];
    for answer in answers {
        let (_place, client) = bytes_and_gone(answer);
        let error = client.get::<PoolStatus>("/v1/pool").await.unwrap_err();
        assert!(error.unreachable() && error.to_string().contains("is it running?"), "{error}");
    }
    let (_place, client) = bytes_and_gone(b"220 smtp.example.org ESMTP\r\n");
    let error = client.get::<PoolStatus>("/v1/pool").await.unwrap_err();
    assert!(error.to_string().contains("agent.sock"), "{error}");
}

#[tokio::test]
async fn a_file_is_put_whole_and_its_progress_is_heard() {
    let (place, client) = agent(|request| async move {
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        let part = Part { digest: blake3::hash(&bytes).to_hex().to_string(), bytes: bytes.len().try_into().unwrap() };
        reply(200, serde_json::to_vec(&part).unwrap())
    });
    let upload = Upload::open(&place.file(3_000_001)).unwrap();
    let sent = upload.sent();
    let mut heard = Vec::new();
    let part: Part = client.put("/v1/parts", upload, |bytes| heard.push(bytes)).await.unwrap();
    assert_eq!(part.bytes, 3_000_001);
    assert_eq!(sent.digest(), Some(part.digest.as_str()));
    assert_eq!(heard.last(), Some(&3_000_001));
}

#[tokio::test]
async fn a_packed_image_is_sent_unpacked() {
    use std::io::Write as _;

    let (place, client) = agent(|request| async move {
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        let part = Part { digest: blake3::hash(&bytes).to_hex().to_string(), bytes: bytes.len().try_into().unwrap() };
        reply(200, serde_json::to_vec(&part).unwrap())
    });
    let plain = place.file(3_000_001);
    let content = std::fs::read(&plain).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    gzip.write_all(&content).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(vec![], bzip2::Compression::fast());
    bzip2.write_all(&content).unwrap();
    let mut xz = xz2::write::XzEncoder::new(vec![], 1);
    xz.write_all(&content).unwrap();
    let packed = [
        gzip.finish().unwrap(),
        bzip2.finish().unwrap(),
        xz.finish().unwrap(),
        zstd::encode_all(&content[..], 1).unwrap(),
        content.clone(),
    ];
    for packed in packed {
        let file = plain.with_extension("packed");
        std::fs::write(&file, &packed).unwrap();
        let upload = Upload::open_packed(&file).unwrap();
        let (sent, mut heard) = (upload.sent(), 0);
        let part: Part = client.put("/v1/parts", upload, |bytes| heard = bytes).await.unwrap();
        assert_eq!((part.bytes, part.digest), (content.len() as u64, blake3::hash(&content).to_hex().to_string()));
        assert_eq!((sent.bytes(), heard), (content.len() as u64, packed.len() as u64));
        // One that is cut short is an error, and not a shorter disk.
        std::fs::write(&file, &packed[..packed.len() / 2]).unwrap();
        let cut = Upload::open_packed(&file).unwrap();
        assert_eq!(client.put::<Part>("/v1/parts", cut, |_| ()).await.is_err(), packed != content);
    }
}

#[tokio::test]
async fn a_file_that_is_refused_before_its_end_tells_why() {
    let (place, client) =
        agent(|_| async { reply(413, r#"{"code":"too-large","message":"the depot of a1 has 10 MiB left, the disk has 64 MiB"}"#) });
    let upload = Upload::open(&place.file(64 << 20)).unwrap();
    let error = client.put::<Part>("/v1/parts", upload, |_| {}).await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused(error) if error.code == ErrorCode::TooLarge), "{error}");
}

#[test]
fn a_file_that_cannot_be_sent_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    for (path, words) in [(folder.path(), "not a file"), (empty.as_path(), "it is empty"), (&folder.path().join("gone"), "No such file")] {
        let error = Upload::open(path).err().unwrap().to_string();
        assert!(error.contains(words) && error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn a_request_becomes_a_stream() {
    let (_place, client) = agent(|mut request| async move {
        let asked = request.headers().get(header::UPGRADE).is_some_and(|value| value == STREAM_UPGRADE);
        if request.uri().path() != "/v1/vms/web/console" || !asked {
            return reply(409, r#"{"code":"conflict","message":"vm `web` does not run"}"#);
        }
        tokio::spawn(async move {
            let mut raw = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
            let mut heard = [0; 5];
            raw.read_exact(&mut heard).await.unwrap();
            heard.reverse();
            raw.write_all(&heard).await.unwrap();
            raw.shutdown().await.unwrap();
        });
        let headers = Response::builder().status(101).header("connection", "upgrade").header("upgrade", STREAM_UPGRADE);
        headers.body(Empty::new().boxed_unsync()).unwrap()
    });
    let mut raw = client.upgrade("/v1/vms/web/console").await.unwrap();
    raw.write_all(b"hello").await.unwrap();
    let mut heard = String::new();
    raw.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "olleh");
    let refused = client.upgrade("/v1/vms/off/console").await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused(_)), "{refused}");
}

/// Shows one certificate and signs with one key, whether or not they belong together.
#[derive(Debug)]
struct Shown(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for Shown {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// An agent behind TLS that says who asked; the key of its certificate is in the target. One that is not honest shows
/// a certificate that it has seen, and signs with a key of its own.
async fn agent_behind_tls(honest: bool) -> Target {
    let generate = || rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let (shown, own) = (generate(), generate());
    let certificate = rcgen::CertificateParams::new(vec!["other.example.org".to_owned()]).unwrap().self_signed(&shown).unwrap();
    let key = HostKey(shown.public_key_raw().try_into().unwrap());
    let secret = if honest { &shown } else { &own }.serialize_der();
    let signs = rustls::crypto::ring::sign::any_eddsa_type(&secret.into()).unwrap();
    let resolver = Shown(Arc::new(rustls::sign::CertifiedKey::new(vec![certificate.der().clone()], signs)));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                serve(stream, |request| async move {
                    let said = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes().to_vec());
                    reply(200, serde_json::to_vec(&said.map(|said| String::from_utf8(said).unwrap())).unwrap())
                })
                .await;
            });
        }
    });
    Target::Remote(Remote { authority, key, token: Some("t1".to_owned()) })
}

#[tokio::test]
async fn the_holder_of_the_named_key_is_talked_to() {
    let target = agent_behind_tls(true).await;
    let said: Option<String> = Client::new(target).get("/v1/pool").await.unwrap();
    assert_eq!(said.as_deref(), Some("Bearer t1"));
}

#[tokio::test]
async fn the_holder_of_another_key_is_not() {
    let Target::Remote(remote) = agent_behind_tls(true).await else { unreachable!() };
    let found: String = remote.key.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut key = remote.key;
    key.0[31] ^= 1;
    let client = Client::new(Target::Remote(Remote { key, ..remote }));
    let error = client.get::<Option<String>>("/v1/pool").await.unwrap_err();
    assert!(matches!(error, ClientError::OtherKey { .. }), "{error:?}");
    assert!(error.to_string().contains(&found) && error.to_string().contains("--fingerprint"), "{error}");
}

#[tokio::test]
async fn a_certificate_without_its_key_is_worth_nothing() {
    let client = Client::new(agent_behind_tls(false).await);
    let error = client.get::<Option<String>>("/v1/pool").await.unwrap_err();
    assert!(matches!(error, ClientError::OtherKey { .. }), "{error:?}");
}

#[tokio::test]
async fn a_port_without_tls_or_with_nobody_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    let plain = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        drop(stream.read(&mut [0; 512]).await);
    });
    let client = Client::new(Target::Remote(Remote { authority: authority.clone(), key: HostKey([0; 32]), token: Some("t".to_owned()) }));
    let error = client.get::<Option<String>>("/v1/pool").await.unwrap_err();
    assert!(error.unreachable() && error.to_string().contains("is it the port of a Rebec agent?"), "{error}");
    plain.await.unwrap();
    let error = client.get::<Option<String>>("/v1/pool").await.unwrap_err();
    assert!(error.unreachable() && error.to_string().contains(&authority), "{error}");
}

/// What an agent hears of a client that signs: at the socket it first asks whose socket it is.
#[tokio::test]
async fn what_a_user_asks_is_signed_for_the_host_that_is_asked() {
    let secret = SigningKey::from_bytes(&[5; 32]);
    let host = rebec_book::key::public(&SigningKey::from_bytes(&[6; 32]));
    let (_place, client) = agent(move |request| async move {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let Some(text) = parts.headers.get(warrant::HEADER) else {
            let status = serde_json::json!({
                "pool": null, "key": null, "host": "a1", "host_key": host.to_string(), "domain": null, "domains": 0, "hosts": 0,
                "hosts_reachable": 0, "vms": 0, "join": "",
            });
            return reply(200, status.to_string());
        };
        let proven = warrant::Proven::open(text.to_str().unwrap()).unwrap();
        let said = proven.warrant();
        let covers = proven.covers_body(Some(&body)).is_ok();
        let same = said.method == parts.method.as_str() && said.path == parts.uri.to_string() && said.at == host;
        reply(200, serde_json::json!([covers, same, said.nonce, said.signer]).to_string())
    });
    let client = client.signed_by(secret.clone()).await.unwrap();
    let mut nonces = vec![];
    for answer in [
        client.get::<serde_json::Value>("/v1/vms/a%20b/logs?tail=7").await.unwrap(),
        match client.post("/v1/lans", &serde_json::json!({"name": "x"})).await.unwrap() {
            Answer::Done(value) => value,
            Answer::Job(job) => panic!("{job:?}"),
        },
    ] {
        let signer = rebec_book::key::public(&secret).to_string();
        assert_eq!((&answer[0], &answer[1], answer[3].as_str()), (&true.into(), &true.into(), Some(signer.as_str())), "{answer}");
        nonces.push(answer[2].clone());
    }
    assert_ne!(nonces[0], nonces[1]);
}
