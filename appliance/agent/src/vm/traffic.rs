//! Whom the VMs of this host talk to: asked of their VMMs every ten seconds.

use std::{sync::Arc, time::Instant};

use rebec_host::{control::Control, life::Life, traffic::PERIOD};

use super::Vms;

/// Looks, until the agent ends.
pub async fn run(vms: Arc<Vms>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        for vm in vms.all() {
            if vm.life(Life::vmm).is_none() || vm.kept().body.nics.is_empty() {
                continue;
            }
            match vm.talk(Control::traffic).await {
                Ok(talk) => vm.traffic(|traffic| traffic.look(Instant::now(), &talk)),
                // One of an earlier version does not count.
                Err(error) => log::debug!("vm {}: whom it talks to: {error:#}", vm.name()),
            }
        }
    }
}
