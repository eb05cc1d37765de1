//! Keeps the disk of this host in order: logs of VMMs are cut, parts that nothing needs go, and room is kept for records.

use std::{sync::Arc, time::Duration};

use rebec_host::{reserve::Reserve, said};

use crate::{agent::Agent, http::images};

/// Between two looks at the logs of VMMs, which a VMM that was taken over may fill.
const PERIOD: Duration = Duration::from_secs(2);
/// Looks between two sweeps of the depot.
const LOOKS_PER_SWEEP: u32 = 300;

/// Until the agent ends.
pub async fn run(agent: Arc<Agent>) {
    let mut looks = 0;
    loop {
        let (worker, is_sweep) = (agent.clone(), looks % LOOKS_PER_SWEEP == 0);
        let work = move || {
            cut_logs(&worker);
            Reserve::of(&worker.options.state).fill();
            if is_sweep {
                sweep(&worker);
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(work).await {
            log::error!("upkeep: {error}");
        }
        looks = looks.wrapping_add(1);
        tokio::time::sleep(PERIOD).await;
    }
}

fn cut_logs(agent: &Agent) {
    for vm in agent.local_vms() {
        if let Err(error) = said::bound(&vm.folder.join("vmm.log")) {
            log::debug!("vm {}: cut vmm.log: {error}", vm.name());
        }
    }
}

/// A host that belongs to no pool does not know what it will need.
fn sweep(agent: &Agent) {
    let Some(mut needed) = agent.book(images::needed) else { return };
    let here = agent.local_vms();
    needed.extend(here.iter().flat_map(|vm| vm.kept().body.image.parts().map(|part| part.digest).collect::<Vec<_>>()));
    agent.depot.sweep(&needed);
}
