//! Keeps the file that a status screen is drawn from.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rebec_api::screen::{Join, Kvm, Screen};
use tokio::sync::watch;

use crate::{bulletin::Bulletin, facts, knowledge::Knowledge, vm::Vms};

/// Addresses appear without anybody saying so.
const PERIOD: Duration = Duration::from_secs(1);

/// What a status screen shows.
#[derive(Clone)]
pub struct Shown {
    knowledge: Arc<Knowledge>,
    bulletin: Arc<Bulletin>,
    vms: Arc<Vms>,
    join: watch::Receiver<Join>,
    clock: watch::Receiver<Option<String>>,
}

impl Shown {
    /// Where it is looked up; `join` is how far this host is with its pool, `clock` how the machine's clock is kept.
    pub fn new(
        knowledge: Arc<Knowledge>,
        bulletin: Arc<Bulletin>,
        vms: Arc<Vms>,
        join: watch::Receiver<Join>,
        clock: watch::Receiver<Option<String>>,
    ) -> Self {
        Self { knowledge, bulletin, vms, join, clock }
    }
}

/// Writes the file whenever it would say something else.
pub async fn run(shown: Shown, path: PathBuf) {
    let mut last = None;
    let (mut changed, mut join) = (shown.knowledge.watch(), shown.join.clone());
    loop {
        let now = screen(&shown);
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
pub fn screen(shown: &Shown) -> Screen {
    Screen {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: shown.knowledge.own_name(),
        fingerprint: shown.knowledge.key().to_string(),
        addresses: shown.bulletin.mesh_addresses().iter().map(|address| address.ip().to_string()).collect(),
        api: shown.bulletin.api().map(|address| format!("https://{address}")),
        clock: shown.clock.borrow().clone(),
        kvm: facts::no_kvm().map_or(Kvm::Ready, |reason| Kvm::Absent { reason }),
        join: shown.join.borrow().clone(),
        vms: shown.vms.all().iter().filter(|vm| vm.seen().pid != 0).count() as u32,
    }
}

fn write(path: &std::path::Path, screen: &Screen) -> Result<()> {
    let folder = path.parent().context("the screen's file has a folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(|| format!("write in {}", folder.display()))?;
    serde_json::to_writer(&mut file, screen)?;
    file.persist(path).with_context(|| format!("write {}", path.display()))?;
    Ok(())
}
