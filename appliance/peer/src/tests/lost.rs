//! Connections that were lost without a word: the other side was killed, and is back.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use tokio::runtime::Runtime;

use super::*;

/// Connections end by themselves after 8 s.
const SOON: Duration = Duration::from_secs(5);

/// Answers at `/`, counts at `/command` and says nothing there.
fn counting(commands: &Arc<AtomicUsize>) -> Router {
    let commands = commands.clone();
    let command = move || {
        commands.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<String>()
    };
    Router::new().route("/", post(|| async { "7" })).route("/command", post(command))
}

/// A host in a runtime of its own, which ends as a process that is killed does: nothing is said to anybody.
fn mortal(secret: &SecretKey, port: u16, commands: &Arc<AtomicUsize>, member: Key) -> (Runtime, Peer) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (secret, router) = (secret.clone(), counting(commands));
    let host = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(Host::serving(secret, port, router))).join().unwrap());
    lock(&host.members).insert(member);
    (runtime, host.peer())
}

fn kill(runtime: Runtime) {
    std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE)).join().unwrap();
}

async fn ask(a: &Host, peer: &Peer) -> Result<u64, ApiError> {
    tokio::time::timeout(PATIENCE, a.mesh.ask(peer, "/", &())).await.unwrap()
}

fn command() -> Request<Body> {
    Request::post("/command").body(Body::from("{}")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_killed_and_is_back_is_asked_anew() {
    let (a, secret) = (Host::open("a").await, SecretKey::generate());
    let [before, after] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let (runtime, peer) = mortal(&secret, 0, &before, a.key());
    let port = peer.addresses[0].port();
    assert_eq!(ask(&a, &peer).await.unwrap(), 7);

    kill(runtime);
    let (runtime, _) = mortal(&secret, port, &after, a.key());
    let start = Instant::now();
    assert_eq!(ask(&a, &peer).await.unwrap(), 7);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());

    // Of a command, too, that nobody has heard.
    kill(runtime);
    let (runtime, _) = mortal(&secret, port, &after, a.key());
    let mesh = a.mesh.clone();
    let to = peer.clone();
    let commanding = tokio::spawn(async move { mesh.request(&to, command()).await.map(drop) });
    let heard = async {
        while after.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, heard).await.unwrap();

    // One that was heard is not given a second time: nobody knows what became of it.
    kill(runtime);
    let (runtime, _) = mortal(&secret, port, &after, a.key());
    let error = tokio::time::timeout(PATIENCE, commanding).await.unwrap().unwrap().unwrap_err();
    assert_eq!((error.code, after.load(Ordering::Relaxed)), (rebec_api::ErrorCode::Unreachable, 1), "{error}");
    assert_eq!(before.load(Ordering::Relaxed), 0);
    kill(runtime);
}

#[tokio::test]
async fn a_host_that_does_not_come_back_is_not_reached() {
    let (a, secret) = (Host::open("a").await, SecretKey::generate());
    let (runtime, peer) = mortal(&secret, 0, &Arc::default(), a.key());
    assert_eq!(ask(&a, &peer).await.unwrap(), 7);
    kill(runtime);
    assert_eq!(ask(&a, &peer).await.unwrap_err().code, rebec_api::ErrorCode::Unreachable);
}
