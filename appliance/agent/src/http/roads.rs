//! `/v1/hosts/{name}/roads`: answered by the host that it is about, which alone knows how it reaches the others.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, State},
    http::Request,
    response::{IntoResponse, Response},
};
use rebec_api::host::RoadInfo;
use rebec_book::{authority::Granted, record::id_of_key};
use rebec_peer::{Peer, RoadLook};

use super::{answer::Failure, forward, hosts};
use crate::agent::Agent;

/// Of a hundred packets so many may be lost without a word about it.
const LOST_PERCENT_MAX: u64 = 2;
/// Fewer packets than this say nothing about losses.
const PACKETS_MIN: u64 = 100;
/// What every link of Ethernet carries.
const PACKET_BYTES: u16 = 1500;

/// `GET /v1/hosts/{name}/roads`
pub async fn show(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let host = hosts::key(&agent, &granted)?;
    if host != agent.knowledge.key() {
        return Ok(forward::about(&agent, &host, id_of_key(&host), request).await?.into_response());
    }
    let mut roads: Vec<RoadInfo> = agent.knowledge.peers().iter().map(|peer| road(&agent, peer)).collect();
    roads.sort_by(|one, other| one.host.cmp(&other.host));
    Ok(axum::Json(roads).into_response())
}

fn road(agent: &Agent, peer: &Peer) -> RoadInfo {
    let silence = agent.peers.silence(&peer.key);
    let look = agent.peers.mesh.road(&peer.key);
    RoadInfo {
        host: agent.knowledge.name_of(&peer.key),
        silent_s: silence.map_or(0, |silence| silence.as_secs()),
        from: look.as_ref().and_then(|look| look.from).map(|from| from.to_canonical().to_string()),
        to: look.as_ref().map(|look| look.to.to_string()),
        rtt_us: look.as_ref().map(|look| u64::try_from(look.rtt.as_micros()).unwrap_or(u64::MAX)),
        sent_packets: look.as_ref().map_or(0, |look| look.sent),
        lost_packets: look.as_ref().map_or(0, |look| look.lost),
        packet_bytes: look.as_ref().and_then(|look| look.bytes),
        problem: problem(silence.is_some(), look.as_ref(), peer),
    }
}

/// The worst that there is to say, and what helps.
fn problem(is_silent: bool, look: Option<&RoadLook>, peer: &Peer) -> Option<String> {
    if is_silent {
        let known: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
        return Some(match known.is_empty() {
            true => "it has told no address: see there that its agent runs and has one".to_owned(),
            false => format!("is it on? UDP must reach it at one of {}", known.join(", ")),
        });
    }
    let look = look?;
    let lost = look.lost.saturating_mul(100) / look.sent.max(1);
    if look.sent >= PACKETS_MIN && lost > LOST_PERCENT_MAX {
        return Some(format!("{lost} of 100 packets are lost: see the links on the way"));
    }
    let bytes = look.bytes.filter(|bytes| *bytes < PACKET_BYTES)?;
    Some(format!("carries {bytes} of {PACKET_BYTES} bytes: what is larger is cut on the way"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rebec_book::key::Name;

    use super::*;

    #[test]
    fn the_worst_is_said_and_what_helps() {
        let peer = Peer { key: Name([1; 32]), name: "b1".into(), addresses: vec!["192.0.2.7:7117".parse().unwrap()] };
        let well = RoadLook {
            from: None,
            to: "192.0.2.7:7117".parse().unwrap(),
            rtt: Duration::from_millis(1),
            sent: 1000,
            lost: 20,
            bytes: Some(1500),
        };
        let told = |look: &RoadLook| problem(false, Some(look), &peer).unwrap_or_default();
        assert_eq!(told(&well), "");
        assert_eq!(told(&RoadLook { bytes: None, ..well.clone() }), "");
        assert_eq!(told(&RoadLook { bytes: Some(1300), ..well.clone() }), "carries 1300 of 1500 bytes: what is larger is cut on the way");
        assert_eq!(told(&RoadLook { lost: 31, ..well.clone() }), "3 of 100 packets are lost: see the links on the way");
        assert_eq!(told(&RoadLook { sent: 50, lost: 20, ..well.clone() }), "", "too few to tell");
        assert_eq!(problem(false, None, &peer), None);
        let silent = problem(true, Some(&well), &peer).unwrap();
        assert_eq!(silent, "is it on? UDP must reach it at one of 192.0.2.7:7117");
        let nowhere = problem(true, None, &Peer { addresses: vec![], ..peer.clone() }).unwrap();
        assert!(nowhere.contains("told no address"), "{nowhere}");
    }
}
