//! Hosts of the pool as holders of parts: how the depot asks them.

use std::sync::Arc;

use anyhow::{Result, bail};
use axum::{
    body::Body,
    http::{Request, header},
};
use futures_util::{StreamExt, future::BoxFuture};
use rebec_book::{Key, record::PartRef};
use rebec_host::depot::{Holder, Pieces};

use crate::{mesh::Peer, peers::Peers};

/// A host that is asked over the mesh.
pub struct Over {
    peers: Arc<Peers>,
    peer: Peer,
}

impl Over {
    /// A holder for the depot.
    pub fn holder(peers: &Arc<Peers>, peer: Peer) -> Arc<dyn Holder> {
        Arc::new(Self { peers: peers.clone(), peer })
    }
}

impl Holder for Over {
    fn key(&self) -> Key {
        self.peer.key
    }

    fn name(&self) -> &str {
        &self.peer.name
    }

    fn read<'a>(&'a self, part: &'a PartRef, from: u64) -> BoxFuture<'a, Result<Pieces>> {
        Box::pin(async move {
            let request = Request::get(format!("/internal/parts/{}", part.digest)).header(header::RANGE, format!("bytes={from}-"));
            let response = self.peers.mesh.request_bulk(&self.peer, request.body(Body::empty())?).await?;
            if !response.status().is_success() {
                bail!("HTTP status {}", response.status());
            }
            let pieces = response.into_body().into_data_stream();
            Ok(pieces.map(|piece| Ok(piece?)).boxed())
        })
    }
}
