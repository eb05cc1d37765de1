//! TCP connections into guests of this host, for whoever may make them: what `rebec_host` needs to know of a VM for that.

use std::sync::Arc;

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{record::SeenState, view};
use rebec_host::forward::{Forward, Forwards, Guest};
use rebec_vmm_api::PortKey;

use crate::{
    chance::random,
    knowledge::Knowledge,
    vm::{LocalVm, Want},
};

/// Connects to a TCP port of a guest that runs here.
pub async fn connect(forwards: &Forwards, knowledge: &Arc<Knowledge>, vm: &Arc<LocalVm>, port: u16) -> Result<Forward, ApiError> {
    forwards.connect(|| guest(knowledge, vm), port).await
}

fn guest(knowledge: &Arc<Knowledge>, vm: &Arc<LocalVm>) -> Result<Guest, ApiError> {
    let kept = vm.kept();
    let name = kept.body.name;
    if !matches!(vm.seen().state, SeenState::Running | SeenState::Paused | SeenState::Moving) {
        return Err(ApiError::new(ErrorCode::Conflict, format!("VM {name} does not run; `rebec vm start {name}`")));
    }
    let nic = kept.body.nics.first().zip(kept.endpoints.first()).map(|(nic, endpoint)| (nic.clone(), *endpoint));
    let key = vm.port_keys().first().copied().flatten().map(|key| PortKey(key.0));
    let mtu = |lan| knowledge.read(|book| view::lans(book).into_iter().find(|known| known.id == lan).map(|known| known.body.mtu)).flatten();
    let mtu = nic.as_ref().and_then(|(nic, _)| mtu(nic.lan)).unwrap_or(rebec_book::lan::MTU);
    let gone = Box::pin(has_gone(knowledge.clone(), vm.clone()));
    Ok(Guest { id: kept.id, name, nic, key, mtu, control: vm.control(), gone, random: random(), secret: random() })
}

/// Until the VMM that was told of the station is not the one that runs here.
async fn has_gone(knowledge: Arc<Knowledge>, vm: Arc<LocalVm>) {
    let (mut changed, pid) = (knowledge.watch(), vm.seen().pid);
    while vm.seen().pid == pid && vm.want() == Want::Running {
        if changed.changed().await.is_err() {
            return;
        }
    }
}
