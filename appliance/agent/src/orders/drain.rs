//! A host is emptied.

use rebec_api::{ApiError, ErrorCode, vm::MoveVm};
use rebec_vmm_api::Outcome;

use super::{Orders, plan};
use crate::{
    jobs::Reporter,
    vm::{Want, depart},
};

/// Moves every running VM away; those that find no place stay and are named.
pub async fn empty(orders: &Orders, reporter: &Reporter) -> Result<(), ApiError> {
    let mut details = vec![];
    for vm in orders.vms.all() {
        let kept = vm.kept();
        if kept.want != Want::Running {
            continue;
        }
        let moved = async {
            let domain = plan::stays_in(&orders.knowledge, &kept.home);
            let moving = plan::Moving::of(orders, &kept).await;
            let chosen = plan::place(orders, &kept.body, None, domain.as_deref(), Some(&moving))?;
            let peer = orders.knowledge.peer(&chosen.key).ok_or_else(|| ApiError::not_found("host", &chosen.name, "rebec host ls"))?;
            depart::depart(&orders.vms, &vm, &peer, &MoveVm::default(), reporter).await
        };
        match moved.await {
            Ok(report) if report.outcome == Outcome::Moved => {}
            Ok(report) => details.push(format!("{}: {}", kept.body.name, report.reason.unwrap_or_default())),
            Err(error) if error.details.is_empty() => details.push(format!("{}: {error}", kept.body.name)),
            Err(error) => details.push(format!("{}: {error} ({})", kept.body.name, error.details.join("; "))),
        }
    }
    if details.is_empty() {
        return Ok(());
    }
    let message = format!("{} VMs stay on host {}, which takes no others", details.len(), orders.knowledge.own_name());
    Err(ApiError { code: ErrorCode::Refused, message, details })
}
