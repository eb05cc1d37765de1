//! A host is emptied.

use rebec_api::{ApiError, ErrorCode, vm::MoveVm};
use rebec_pool::place::{Basis, Choice, Step};
use rebec_vmm_api::Outcome;

use super::{Orders, plan};
use crate::{
    chance::now_s,
    jobs::Reporter,
    vm::{Kept, Want, depart},
};

/// Moves every running VM away, by one plan for all; those that find no place stay and are named. None goes into another domain: whose home is here
/// stays in its domain, and whose is not goes only where a contract lets it.
pub async fn empty(orders: &Orders, reporter: &Reporter) -> Result<(), ApiError> {
    let mut details = vec![];
    let kept: Vec<Kept> = orders.vms.all().into_iter().map(|vm| vm.kept()).filter(|kept| kept.want == Want::Running).collect();
    let mut moving = vec![];
    for kept in &kept {
        moving.push(plan::Moving::of(orders, kept).await);
    }
    let planned = plan::leaving(orders, &moving)?;
    for refusal in planned.refusals {
        details.push(format!("{}: no host in question takes it ({})", kept[refusal.want].body.name, refusal.why.join("; ")));
    }
    for step in planned.steps {
        let Step { want, choice, stands_on } = step;
        match go(orders, &kept[want], &moving[want], choice, stands_on, reporter).await {
            Ok(None) => {}
            Ok(Some(why)) => details.push(format!("{}: {why}", kept[want].body.name)),
            Err(error) if error.details.is_empty() => details.push(format!("{}: {error}", kept[want].body.name)),
            Err(error) => details.push(format!("{}: {error} ({})", kept[want].body.name, error.details.join("; "))),
        }
    }
    if details.is_empty() {
        return Ok(());
    }
    let message = format!("{} VMs stay on host {}, which takes no others", details.len(), orders.knowledge.own_name());
    Err(ApiError { code: ErrorCode::Refused, message, details })
}

/// Why it stays, if it does.
async fn go(
    orders: &Orders,
    kept: &Kept,
    moving: &plan::Moving<'_>,
    planned: Choice,
    stands_on: Basis,
    reporter: &Reporter,
) -> Result<Option<String>, ApiError> {
    let Some(vm) = orders.vms.get(&kept.id) else { return Ok(None) };
    // What the plan stood on may be otherwise by now: then this VM's place is looked for anew.
    let chosen = match orders.knowledge.pool(|book| stands_on.holds(book, now_s()))? {
        Ok(()) => planned,
        Err(why) => {
            log::info!("vm {}: {why}", kept.body.name);
            let domain = plan::stays_in(&orders.knowledge, &kept.home);
            plan::place(orders, &kept.body, plan::Asked { host: None, domain: domain.as_deref() }, Some(moving))?
        }
    };
    let peer = orders.knowledge.peer(&chosen.key).ok_or_else(|| ApiError::not_found("host", &chosen.name, "rebec host ls"))?;
    let report = depart::depart(&orders.vms, &vm, &peer, &MoveVm::default(), reporter).await?;
    Ok((report.outcome != Outcome::Moved).then(|| report.reason.unwrap_or_default()))
}
