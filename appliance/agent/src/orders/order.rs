//! The chosen host is told to start a VM.

use std::sync::Arc;

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Signed,
    key::{Id, Name},
    record::{Kind, VmPrivate},
    view,
};
use rebec_pool::place::Choice;
use serde::{Deserialize, Serialize};

use super::Orders;
use crate::{
    chance::random,
    errand,
    jobs::Reporter,
    vm::start::{self, Order},
};

/// `POST /internal/starts`: a job.
#[derive(Debug, Serialize, Deserialize)]
pub struct StartOrder {
    /// The VM.
    pub vm: Id,
    /// Its ownership counter, where it was never there.
    pub epoch: u64,
    /// Why it is started there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Records it needs here.
    pub records: Vec<Signed>,
    /// What others are not told of it.
    #[serde(with = "rebec_book::record::as_text")]
    pub private: VmPrivate,
    /// The order's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Id>,
}

/// Has the chosen host start a VM that this host has the record of, in which it is assigned to that host.
pub async fn start_at(orders: &Arc<Orders>, id: Id, order: Order, chosen: &Choice, reporter: &Reporter) -> Result<(), ApiError> {
    if chosen.key == orders.knowledge.key() {
        return start::start(&orders.vms, id, order, reporter).await;
    }
    let peer = orders.knowledge.peer(&chosen.key).ok_or_else(|| ApiError::not_found("host", &chosen.name, "rebec host ls"))?;
    let Order { epoch, reason } = order;
    let (records, private) = (orders.knowledge.records_of(id)?, start::private(&orders.vms, id)?);
    let order = StartOrder { vm: id, epoch, reason, records, private, order: Some(Name(random())) };
    let seen = errand::order(&orders.peers, &peer, "/internal/starts", &order, reporter).await?;
    // The chosen host's word on how the VM is comes with its answer, so that whoever asks next is not told less.
    if let Ok(records) = serde_json::from_value(seen) {
        orders.peers.learn(records);
    }
    Ok(())
}

/// The first start of a VM that was just recorded. One that never ran leaves nothing behind: its record is withdrawn.
pub async fn first(orders: &Arc<Orders>, id: Id, chosen: &Choice, reporter: &Reporter) -> Result<(), ApiError> {
    let outcome = start_at(orders, id, Order::FIRST, chosen, reporter).await;
    // One whose host did not answer may run, and one that another order is about as well.
    if let Err(error) = &outcome
        && !matches!(error.code, ErrorCode::Unreachable | ErrorCode::Conflict)
        && orders.knowledge.read(|book| view::seen(book, id).is_none()) == Some(true)
    {
        orders.knowledge.publish(Kind::VM, id, None)?;
    }
    outcome
}
