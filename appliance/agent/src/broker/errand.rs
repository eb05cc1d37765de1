//! Commands that a broker gives about VMs on machines of others, and on its own: with this host's signature, as root here would, and judged there by the
//! same rule (docs/formats/authority.md).

use axum::{
    body::Body,
    http::{HeaderValue, Request, header},
};
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Key, Warrant,
    key::{Id, Name},
    names,
    warrant::{self, body_digest},
};
use serde::Serialize;

use super::Broker;
use crate::{
    chance::{now_s, random},
    mesh::read_answer,
};

impl Broker {
    /// Gives a command about a VM to the host that has it. What is begun there goes on by itself.
    pub(super) async fn command(&self, host: Key, vm: Id, what: &str, body: &impl Serialize) -> Result<(), ApiError> {
        let unknown = || ApiError::new(ErrorCode::Unreachable, format!("host {} is not known here yet", host.short()));
        let peer = self.knowledge.peer(&host).ok_or_else(unknown)?;
        let bad = |what: String| ApiError::new(ErrorCode::Failed, what);
        let bytes = serde_json::to_vec(body).map_err(|error| bad(error.to_string()))?;
        let path = format!("/v1/vms/{}/{what}", names::by_id(&vm));
        let key = self.knowledge.key();
        let (method, until, nonce) = ("POST".to_owned(), now_s() + warrant::LIFE_S, Name(random()));
        let warrant =
            Warrant { signer: key, at: key, method, path: path.clone(), body: Some(body_digest(&bytes)), until, nonce, token: None };
        let text = warrant.sign(self.identity.host().as_signing_key()).ok().and_then(|text| HeaderValue::try_from(text).ok());
        let text = text.ok_or_else(|| bad("a command that cannot be signed".into()))?;
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json").header(warrant::HEADER, text);
        let request = request.body(Body::from(bytes)).map_err(|error| bad(error.to_string()))?;
        let response = self.peers.mesh.request(&peer, request).await?;
        let _: serde_json::Value = read_answer(&peer, response).await?;
        Ok(())
    }
}
