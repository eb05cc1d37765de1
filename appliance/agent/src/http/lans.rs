//! `/v1/lans`.

use std::sync::Arc;

use axum::extract::{Path, State};
use rebec_api::{
    ApiError, ErrorCode,
    lan::{LanInfo, NewLan},
};
use rebec_book::{
    Body,
    key::Name,
    lan,
    record::{Kind, LanBody},
    view,
};

use super::{
    answer::{Answer, Failure, Json},
    names, shown,
};
use crate::agent::{Agent, now_s, random};

/// `GET /v1/lans`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<LanInfo>> {
    Ok(axum::Json(agent.pool(shown::lans)?))
}

/// `GET /v1/lans/{name}`
pub async fn show(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Answer<LanInfo> {
    find(&agent, &name).map(axum::Json)
}

fn find(agent: &Agent, name: &str) -> Result<LanInfo, Failure> {
    let found = agent.pool(|book| shown::lans(book).into_iter().find(|lan| lan.name == name))?;
    Ok(found.ok_or_else(|| ApiError::not_found("LAN", name, "rebec lan ls"))?)
}

/// `POST /v1/lans`
pub async fn create(State(agent): State<Arc<Agent>>, Json(new): Json<NewLan>) -> Answer<LanInfo> {
    names::check("LAN", &new.name)?;
    let _alone = agent.naming.lock().await;
    let taken: Vec<_> =
        agent.pool(|book| view::lans(book).iter().map(|lan| (lan.name.clone(), lan.body.network, lan.body.prefix)).collect())?;
    if taken.iter().any(|(name, ..)| *name == new.name) {
        return Err(ApiError::new(ErrorCode::Conflict, format!("LAN `{}` exists already; choose another name", new.name)).into());
    }
    let (network, prefix) = match &new.range {
        Some(text) => lan::parse_range(text).map_err(|error| ApiError::new(ErrorCode::BadRequest, error.to_string()))?,
        None => {
            let ranges: Vec<_> = taken.iter().map(|(_, network, prefix)| (*network, *prefix)).collect();
            lan::free_range(&ranges, u16::from_be_bytes(random()))
        }
    };
    let [_, a, b, c] = random();
    let mut body = LanBody {
        name: new.name.clone(),
        // A label of two LANs by chance does no harm: each port has its own socket.
        vni: u32::from_be_bytes([0, a, b, c]).max(1),
        network,
        prefix,
        mtu: lan::MTU,
        leases: vec![],
        created: now_s(),
    };
    body.leases.extend(lan::next_lease(&body, agent.key()));
    agent.publish(Kind::Lan, Name(random()), Some(Body::Lan(body)))?;
    find(&agent, &new.name).map(axum::Json)
}

/// `DELETE /v1/lans/{name}`
pub async fn remove(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Result<(), Failure> {
    let found = agent.pool(|book| {
        let lan = view::lans(book).into_iter().find(|lan| lan.name == name)?;
        let user = view::vms(book).into_iter().find(|vm| vm.body.nics.iter().any(|nic| nic.lan == lan.id)).map(|vm| vm.name);
        Some((lan.id, lan.home, user))
    })?;
    let (id, home, user) = found.ok_or_else(|| ApiError::not_found("LAN", &name, "rebec lan ls"))?;
    if let Some(vm) = user {
        return Err(ApiError::new(ErrorCode::Conflict, format!("LAN {name}: VM {vm} is on it; remove that first")).into());
    }
    if home != agent.key() {
        let host = agent.name_of(&home);
        return Err(ApiError::new(ErrorCode::Forbidden, format!("LAN {name} was created on host {host}; remove it there")).into());
    }
    agent.publish(Kind::Lan, id, None)?;
    Ok(())
}
