//! Keeps the file that a status screen is drawn from.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rebec_api::screen::{Kvm, Screen};

use crate::{agent::Agent, facts, http::tls};

/// Addresses appear without anybody saying so.
const PERIOD: Duration = Duration::from_secs(1);

/// Writes the file whenever it would say something else.
pub async fn run(agent: Arc<Agent>, path: PathBuf) {
    let mut last = None;
    let (mut changed, mut join) = (agent.knowledge.watch(), agent.join.subscribe());
    loop {
        let now = screen(&agent);
        if last.as_ref() != Some(&now) {
            if let Err(error) = write(&path, &now) {
                log::error!("status screen: {error:#}");
            }
            last = Some(now);
        }
        tokio::select! {
            _ = changed.changed() => {}
            _ = join.changed() => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// What it would say.
pub fn screen(agent: &Agent) -> Screen {
    Screen {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: agent.own_name(),
        fingerprint: agent.key().to_string(),
        addresses: agent.mesh_addresses().iter().map(|address| address.ip().to_string()).collect(),
        api: tls::address(agent).map(|address| format!("https://{address}")),
        clock: agent.clock.borrow().clone(),
        kvm: facts::no_kvm().map_or(Kvm::Ready, |reason| Kvm::Absent { reason }),
        join: agent.join.borrow().clone(),
        vms: agent.local_vms().iter().filter(|vm| vm.seen().pid != 0).count() as u32,
    }
}

fn write(path: &std::path::Path, screen: &Screen) -> Result<()> {
    let folder = path.parent().context("the screen's file has a folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(|| format!("write in {}", folder.display()))?;
    serde_json::to_writer(&mut file, screen)?;
    file.persist(path).with_context(|| format!("write {}", path.display()))?;
    Ok(())
}
