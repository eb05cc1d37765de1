//! A host to talk to.

use std::{net::SocketAddr, time::Duration};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::Key;

/// How long a host may take to be reached.
pub(crate) const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Of the addresses that a host says it has, so many are dialled: what a host says must not have others knock at every door of a network.
const ADDRESSES_MAX: usize = 8;

/// A host to talk to.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its key.
    pub key: Key,
    /// Its name, for messages.
    pub name: String,
    /// Where it may be.
    pub addresses: Vec<SocketAddr>,
}

impl Peer {
    /// Where it is looked for.
    pub(crate) fn dialled(&self) -> &[SocketAddr] {
        &self.addresses[..self.addresses.len().min(ADDRESSES_MAX)]
    }

    /// It was not reached, and why.
    pub fn silent(&self, why: &str) -> ApiError {
        ApiError::new(ErrorCode::Unreachable, format!("host {} is not reached: {why}", self.name))
    }
}
