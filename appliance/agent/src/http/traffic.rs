//! `/v1/vms/{name}/traffic`: answered by the host that has the VM.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, State},
    http::Request,
    response::{IntoResponse, Response},
};
use rebec_api::lan::{Flow, VmTraffic};
use rebec_book::authority::Granted;
use rebec_host::traffic::HALF_LIFE;
use rebec_vmm_api::MacAddr;

use super::{answer::Failure, streams, vms};
use crate::agent::Agent;

/// `GET /v1/vms/{name}/traffic`
pub async fn show(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let vm = match vms::local_or_holder(&agent, &granted)? {
        Ok(vm) => vm,
        Err(holder) => return streams::elsewhere(&agent, &holder, &granted, request).await,
    };
    let flows = vm.traffic(|traffic| traffic.flows().map(|(nic, flow)| flow_of(nic, flow)).collect());
    Ok(axum::Json(VmTraffic { vm: vm.name(), half_life_s: HALF_LIFE.as_secs(), flows }).into_response())
}

fn flow_of(nic: MacAddr, flow: &rebec_host::traffic::Flow) -> Flow {
    let counted = flow.counted;
    Flow {
        nic: nic.to_string(),
        station: counted.mac.to_string(),
        tx_bytes_per_s: flow.tx_rate.round() as u64,
        rx_bytes_per_s: flow.rx_rate.round() as u64,
        tx_bytes: counted.tx_bytes,
        tx_packets: counted.tx_packets,
        rx_bytes: counted.rx_bytes,
        rx_packets: counted.rx_packets,
    }
}
