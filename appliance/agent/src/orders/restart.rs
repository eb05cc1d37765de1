//! VMs that this host keeps and whose holders are silent are started elsewhere.

use std::{sync::Arc, time::Duration};

use rebec_api::ApiError;
use rebec_book::{key::Id, record::Assigned};
use rebec_host::{failed, lock};

use super::{Orders, order, plan};
use crate::vm::{grants, start::Order};

/// Between two looks for VMs whose holders are silent.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// After a start elsewhere that failed: no host had room, or the one that was chosen refused.
const RETRY: Duration = Duration::from_secs(5);

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
    let chosen = plan::place(orders, &body, None, plan::stays_in(&orders.knowledge, &home).as_deref(), None)?;
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
