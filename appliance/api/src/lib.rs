//! What a host's agent and those around it say to each other: the HTTP API's types, and the file a status screen is drawn from.
//!
//! Words only: nothing here opens, runs or decides. The API is HTTP/1.1 with JSON bodies, on the agent's Unix socket and on
//! TCP with TLS 1.3; agents speak the same HTTP to each other over the mesh. A request that takes long answers with a
//! [`job::Job`], whose events are a stream of server-sent events. `GET /v1/openapi.json` is the prose of the same contract.

pub mod audit;
pub mod error;
pub mod host;
pub mod image;
pub mod job;
pub mod lan;
pub mod pool;
pub mod screen;
pub mod token;
pub mod trade;
pub mod user;
pub mod vm;

pub use error::{ApiError, ErrorCode};

/// Where an agent listens on its own host when nobody says otherwise.
pub const SOCKET: &str = "/run/rebec/agent.sock";
/// The TCP port of the API when nobody says otherwise.
pub const API_PORT: u16 = 7117;
