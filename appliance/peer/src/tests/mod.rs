//! Two ends and more in one process.

mod handshakes;
mod lost;
mod roads;
mod strangers;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Extension, Router, body::Body, body::Bytes, http::Request, routing::get, routing::post};
use http_body_util::BodyExt as _;
use iroh::SecretKey;
use rebec_api::ApiError;
use rebec_book::{Key, key::Name};

use crate::{Door, Mesh, Peer, bulk, lock};

/// How long a test may hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// A host with a door, and who is a member to it.
struct Host {
    mesh: Arc<Mesh>,
    door: Door,
    members: Arc<Mutex<BTreeSet<Key>>>,
}

impl Host {
    /// One that knows nobody. Its answers begin with `name`.
    async fn open(name: &'static str) -> Self {
        Self::serving(SecretKey::generate(), 0, router(name)).await
    }

    /// One with a key, a port and answers.
    async fn serving(secret: SecretKey, port: u16, router: Router) -> Self {
        let mesh = Arc::new(Mesh::open(secret, port).await.unwrap());
        let members = Arc::new(Mutex::new(BTreeSet::new()));
        let asked = members.clone();
        let door = Door::new(router, |key| key, move |key| lock(&asked).contains(key));
        let (accepting, at) = (mesh.clone(), door.clone());
        tokio::spawn(async move { accepting.accept(at).await });
        Self { mesh, door, members }
    }

    /// Takes bulk too, with the key of `holder`.
    fn listen(&self, holder: &Self) {
        let listener = bulk::listen(self.mesh.port()).unwrap();
        tokio::spawn(bulk::serve(listener, holder.mesh.bulk.acceptor().unwrap(), holder.door.clone()));
    }

    fn key(&self) -> Key {
        Name(*self.mesh.endpoint.id().as_bytes())
    }

    fn knows(&self, other: &Self) {
        lock(&self.members).insert(other.key());
    }

    /// As others find it.
    fn peer(&self) -> Peer {
        let addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, self.mesh.port()))];
        Peer { key: self.key(), name: "other".into(), addresses }
    }

    /// Posts a body, to be told its length.
    async fn post(&self, to: &Self, body: Body) -> Result<(u16, String), ApiError> {
        let request = Request::post("/length").body(body).unwrap();
        let answer = async {
            let response = self.mesh.request(&to.peer(), request).await?;
            let status = response.status().as_u16();
            let body =
                response.into_body().collect().await.map_err(|error| ApiError::new(rebec_api::ErrorCode::Failed, error.to_string()))?;
            Ok((status, String::from_utf8(body.to_bytes().to_vec()).unwrap()))
        };
        tokio::time::timeout(PATIENCE, answer).await.unwrap()
    }
}

fn router(name: &'static str) -> Router {
    // The first byte of the asker's key.
    let who = move |Extension(key): Extension<Key>| async move { format!("{name} {}", key.0[0]) };
    let length = |body: Bytes| async move { body.len().to_string() };
    Router::new().route("/", get(who)).route("/length", post(length))
}
