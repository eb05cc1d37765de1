//! VMs that this host keeps and whose holders are silent are started elsewhere.

use std::{sync::Arc, time::Duration};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Book, Key,
    key::Id,
    record::{Assigned, SeenState},
    view,
};
use rebec_host::{failed, lock};

use super::{Orders, order, plan};
use crate::{
    keeper::Wish,
    vm::{grants, start::Order},
};

/// Between two looks for VMs whose holders are silent.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// After a start elsewhere that failed: no host had room, or the one that was chosen refused.
const RETRY: Duration = Duration::from_secs(5);
/// How long a start by a keeper is watched: a lease, its margin, and an image that must be fetched.
const START_TIME: Duration = Duration::from_secs(90);

/// Looks after the VMs that this host keeps, as long as the agent lives.
pub async fn run(orders: Arc<Orders>) {
    let mut period = tokio::time::interval(LOOK_PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        if let Err(error) = look(&orders) {
            log::error!("keeper: {error:#}");
        }
    }
}

fn look(orders: &Arc<Orders>) -> anyhow::Result<()> {
    for vm in orders.keeper.lost()? {
        if lock(&orders.starting).insert(vm) {
            let orders = orders.clone();
            tokio::spawn(async move {
                if let Err(error) = restart(&orders, vm).await {
                    log::warn!("keeper: {error}");
                    tokio::time::sleep(RETRY).await;
                }
                lock(&orders.starting).remove(&vm);
            });
        }
    }
    Ok(())
}

/// Grants a VM to a host that has room, and tells that host.
async fn restart(orders: &Arc<Orders>, vm: Id) -> Result<(), ApiError> {
    let (home, body) = orders.knowledge.desired(vm)?;
    let chosen = plan::place(orders, &body, plan::Asked { host: None, domain: plan::stays_in(&orders.knowledge, &home).as_deref() }, None)?;
    // Its holder has asked meanwhile.
    let Some(granted) = orders.keeper.grant(vm, chosen.key).map_err(|error| failed(&error))? else { return Ok(()) };
    let lost = granted.lost.map_or_else(String::new, |lost| orders.knowledge.name_of(&lost));
    let reason = format!("host {lost} was lost; started again from its disk image on host {}", chosen.name);
    log::warn!("vm {}: {reason}, at epoch {}", body.name, granted.floor);
    let reporter = orders.jobs.begin_own(format!("start VM {} on host {}, because host {lost} was lost", body.name, chosen.name));
    grants::as_keeper(&orders.knowledge, vm, Assigned { host: chosen.key, epoch: granted.floor })?;
    let order = Order { epoch: granted.floor, reason: Some(reason) };
    let outcome = order::start_at(orders, vm, order, &chosen, &reporter).await;
    reporter.end(outcome.clone().map(|()| serde_json::Value::Null));
    outcome
}

/// Who may run a VM whose host was lost is for its keeper to say, which starts it elsewhere by itself unless it was stopped.
pub async fn by_keeper(orders: &Orders, id: Id, name: &str, keeper: Key) -> Result<(), ApiError> {
    if keeper == orders.knowledge.key() {
        orders.keeper.wish(id)?;
    } else {
        let unknown = || ApiError::new(ErrorCode::Unreachable, format!("VM {name}: its keeper is not known here"));
        let peer = orders.knowledge.peer(&keeper).ok_or_else(unknown)?;
        orders.peers.mesh.ask::<_, ()>(&peer, "/internal/restarts", &Wish { vm: id }).await?;
    }
    let runs =
        |book: &Book| view::seen(book, id).is_some_and(|seen| seen.body.state == SeenState::Running && book.dead(&seen.holder).is_none());
    if orders.knowledge.until(START_TIME, || orders.knowledge.read(runs) == Some(true)).await {
        return Ok(());
    }
    let message =
        format!("VM {name}: not started within {} s; its keeper goes on trying, see `rebec vm show {name}`", START_TIME.as_secs());
    Err(ApiError::new(ErrorCode::Failed, message))
}
