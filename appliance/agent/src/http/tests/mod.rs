//! The API as its callers meet it: an agent in a temporary folder, asked over connections in memory and over TLS.

mod arrivals;
mod audit;
mod bodies;
mod bundle;
mod leases;
mod listed;
mod openapi;
mod power;
mod returns;
mod silent;
mod tls;
mod versions;
mod warrants;

use std::sync::Arc;

use axum::{body::Body, http::Request};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use rebec_api::{ApiError, pool::InitPool};
use rebec_book::{
    authority::Role,
    key::{Id, Name, Nonce, bound_id},
    record::{Assigned, ImageBody, PartRef, VmBody, VmPrivate},
    warrant::{self, Signer},
};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Caller, router, serve};
use crate::{agent::Agent, depot::Depot, identity::Identity, mesh::Mesh, options::Options, pool, store::Store};

/// An agent without VMs, and what it keeps.
pub struct Bench {
    _folder: tempfile::TempDir,
    pub agent: Arc<Agent>,
}

impl Bench {
    /// An agent that belongs to no pool.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().to_path_buf();
        let options = Options {
            socket: state.join("agent.sock"),
            port: 0,
            api_port: 0,
            vmm: "rebec-vmm".into(),
            name: Some("a1".into()),
            address: Some([127, 0, 0, 1].into()),
            memory_bytes: None,
            cpu_max: rebec_cpu::Model::Host,
            durable: true,
            screen: None,
            links: None,
            vlans: vec![],
            time: None,
            ticket: None,
            later: None,
            state: state.clone(),
        };
        let identity = Identity::open(&state).unwrap();
        let mesh = Mesh::open(identity.host().clone(), 0).await.unwrap();
        let (store, depot) = (Store::open(&state).unwrap(), Depot::open(&state).unwrap());
        Self { _folder: folder, agent: Agent::new(options, identity, store, mesh, depot).unwrap() }
    }

    /// One that founded a pool.
    pub async fn founded() -> Self {
        let bench = Self::new().await;
        pool::init(&bench.agent.membership, &InitPool { name: "lab".into(), domain: "alpha".into() }).unwrap();
        bench
    }

    /// Root at its socket.
    pub fn root(&self) -> Caller {
        Caller::Signer(Signer::root(self.agent.knowledge.key()))
    }

    /// Who showed it a token.
    pub fn holder(&self, role: Role) -> Caller {
        Caller::Signer(Signer::token(self.agent.knowledge.key(), role))
    }

    /// Asks as somebody whom a listener has let in.
    pub async fn ask(&self, caller: Caller, method: &str, path: &str, body: impl Into<Body>) -> (u16, Vec<u8>) {
        self.ask_with(caller, method, path, body, None).await
    }

    /// The same with a warrant.
    pub async fn ask_with(&self, caller: Caller, method: &str, path: &str, body: impl Into<Body>, warrant: Option<&str>) -> (u16, Vec<u8>) {
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(serve::connection(far, router(self.agent.clone()), caller, serve::LIMITS.head));
        let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json").header("host", "a1");
        if let Some(warrant) = warrant {
            request = request.header(warrant::HEADER, warrant);
        }
        exchange(near, request.body(body.into()).unwrap()).await.unwrap()
    }
}

/// One request and its whole answer.
pub async fn exchange(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, request: Request<Body>) -> hyper::Result<(u16, Vec<u8>)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    Ok((status, response.into_body().collect().await?.to_bytes().to_vec()))
}

/// An answer that is a refusal, which is one line.
pub fn refusal(body: &[u8]) -> ApiError {
    let error: ApiError = serde_json::from_slice(body).unwrap();
    assert!(!error.message.contains('\n') && !error.message.is_empty(), "{error}");
    error
}

pub fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

/// Of which the bench's ids are made.
const NONCE: Nonce = Name([9; 16]);

/// The id of the VM that is at home on a bench.
pub fn vm_id(bench: &Bench) -> Id {
    bound_id(&bench.agent.knowledge.key(), &NONCE)
}

/// A VM's record, with secrets in it.
pub fn vm_body(bench: &Bench) -> VmBody {
    let kernel = PartRef { digest: Name([5; 32]), bytes: 7 };
    let cmdline = "console=ttyS0 password=hunter2".to_owned();
    let image = ImageBody {
        nonce: NONCE,
        name: "debian".into(),
        kernel: Some(kernel),
        initramfs: None,
        cmdline,
        disk: None,
        created: 0,
        domains: vec![],
        starts: None,
    };
    VmBody {
        nonce: NONCE,
        name: "web".into(),
        assigned: Assigned { host: bench.agent.knowledge.key(), epoch: 1 },
        image_name: "debian".into(),
        image,
        memory_bytes: 64 << 20,
        vcpus: 1,
        private: vm_private().digest(),
        nics: vec![],
        keeper: None,
        created: 0,
        must: None,
        disks: None,
        cpu: None,
        limits: None,
        placing: None,
    }
}

/// What of it others are not told.
pub fn vm_private() -> VmPrivate {
    let seed = Some(("meta".into(), "ssh_authorized_keys: hunter2".into()));
    VmPrivate { nonce: NONCE, cmdline: "password=hunter2".into(), seed, network: None }
}
