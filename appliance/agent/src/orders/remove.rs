//! A VM goes: what is of it where it is, and its record.

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Key,
    key::{Id, Name},
    record::Kind,
};
use serde::{Deserialize, Serialize};

use super::Orders;
use crate::{chance::random, errand, jobs::Reporter, vm::stop};

/// `POST /internal/removals`
#[derive(Debug, Serialize, Deserialize)]
pub struct Removal {
    /// The VM.
    pub vm: Id,
    /// The order's name; none of an older host's, which waits until it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Id>,
}

/// Removes a stopped VM of this home; `holder` is the host that has something of it, if there is one. What a host has that was declared dead goes by
/// itself. Done again, it does what is left to do.
pub async fn everywhere(orders: &Orders, id: Id, name: &str, holder: Option<Key>, reporter: &Reporter) -> Result<(), ApiError> {
    match holder {
        Some(own) if own == orders.knowledge.key() => stop::remove(&orders.vms, id).await?,
        Some(other) if !orders.knowledge.is_dead(&other) => {
            let peer = orders.knowledge.peer(&other);
            let peer = peer.ok_or_else(|| ApiError::new(ErrorCode::Unreachable, format!("VM {name}: its host is not known here")))?;
            let removal = Removal { vm: id, order: Some(Name(random())) };
            errand::order(&orders.peers, &peer, "/internal/removals", &removal, reporter).await?;
        }
        _ => {}
    }
    orders.knowledge.publish(Kind::VM, id, None)
}
