//! `rebec vm move`: begins the move, shows how far it is, and reports what it cost.

use rebec_api::vm::MoveVm;
use rebec_vmm_api::{MoveReport, Outcome};
use serde_json::Value;

use super::{
    session::Session,
    vm::{get, unless_waiting, waiting},
};
use crate::{args::MoveOptions, client::path, failure::Failure, text::report};

/// Carries out a move.
pub async fn run(session: &Session, options: &MoveOptions) -> Result<(), Failure> {
    let name = &options.name;
    let before = get(session, name).await?;
    let Some(value) = unless_waiting(session, name, begin(session, options).await).await? else { return Ok(()) };
    let outcome = value.get("outcome").cloned().map(serde_json::from_value::<Outcome>);
    if session.json {
        session.show(&value, |_| String::new())?;
    }
    let reason = || value.get("reason").and_then(Value::as_str).unwrap_or("the agent gave no reason").to_owned();
    match outcome {
        Some(Ok(Outcome::Waiting)) => return Err(Failure::Waiting(waiting(&get(session, name).await?))),
        Some(Ok(Outcome::Failed)) => return Err(Failure::Here(format!("vm `{name}` stays on {}: {}", before.host, reason()))),
        _ if session.json => return Ok(()),
        _ => {}
    }
    let after = get(session, name).await?;
    match serde_json::from_value::<MoveReport>(value) {
        Ok(made) => session.print(&report::moved(name, &before.host, &after.host, &made)),
        Err(_) => session.print(&format!("vm {name} moved from {} to {}\n", before.host, after.host)),
    }
}

async fn begin(session: &Session, options: &MoveOptions) -> Result<Option<Value>, Failure> {
    let request = MoveVm {
        host: options.to.clone(),
        domain: options.domain.clone(),
        streams: options.streams,
        downtime_ms_max: options.downtime_max_ms,
        bandwidth_mbit_max: options.bandwidth_max_mbit,
    };
    let answer = session.client.post(&path(&["vms", &options.name, "move"]), &request).await?;
    session.settle_unless(answer, options.patience).await
}
