//! `/v1/lans`.

use std::sync::Arc;

use axum::extract::{Extension, State};
use rebec_api::{
    ApiError, ErrorCode,
    lan::{LanInfo, NarrowPath, NewLan, SetLan},
};
use rebec_book::{
    Body,
    authority::Granted,
    key::{Id, Name, bound_id},
    lan,
    record::{Kind, LanBody},
    view,
};

use super::{
    answer::{Answer, Failure, Json},
    shown,
};
use crate::{
    agent::Agent,
    chance::{now_s, random},
    names,
    orders::addresses,
    vm::paths,
};

/// `GET /v1/lans`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<LanInfo>> {
    Ok(axum::Json(agent.knowledge.pool(shown::lans)?))
}

/// `GET /v1/lans/{name}`
pub async fn show(State(agent): State<Arc<Agent>>, Extension(granted): Extension<Granted>) -> Answer<LanInfo> {
    let id = granted.about().ok_or_else(gone)?;
    let mut lan = find(&agent, id)?;
    let narrow = paths::narrow(&agent.knowledge, &agent.peers, id).into_iter();
    let path = |path: paths::Narrow| NarrowPath { host: agent.knowledge.name_of(&path.host), bytes: path.bytes, needs: path.needs };
    lan.narrow = narrow.map(path).collect();
    Ok(axum::Json(lan))
}

fn find(agent: &Agent, id: Id) -> Result<LanInfo, ApiError> {
    let found = agent.knowledge.pool(|book| shown::lans(book).into_iter().find(|lan| lan.id == id.to_string()))?;
    found.ok_or_else(gone)
}

fn gone() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "the LAN is gone; `rebec lan ls` lists those there are")
}

/// `POST /v1/lans`
pub async fn create(State(agent): State<Arc<Agent>>, Json(new): Json<NewLan>) -> Answer<LanInfo> {
    names::check("LAN", &new.name)?;
    let _alone = agent.orders.naming.lock().await;
    if names::taken(&agent.knowledge, Kind::LAN, &new.name)? {
        return Err(ApiError::new(ErrorCode::Conflict, format!("LAN `{}` exists already; choose another name", new.name)).into());
    }
    let (network, prefix) = match &new.range {
        Some(text) => lan::parse_range(text).map_err(|error| ApiError::new(ErrorCode::BadRequest, error.to_string()))?,
        None => {
            let ranges: Vec<_> =
                agent.knowledge.pool(|book| view::lans(book).iter().map(|lan| (lan.body.network, lan.body.prefix)).collect())?;
            lan::free_range(&ranges, u16::from_be_bytes(random()))
        }
    };
    let mtu = new.mtu.unwrap_or(lan::MTU);
    if !(lan::MTU_MIN..=lan::MTU_MAX).contains(&mtu) {
        let message = format!(
            "MTU {mtu}: expected {} to {}; a packet is {} bytes longer on the way",
            lan::MTU_MIN,
            lan::MTU_MAX,
            lan::WAY_SEALED_BYTES
        );
        return Err(ApiError::new(ErrorCode::BadRequest, message).into());
    }
    let domains = new.domains.iter().map(|name| names::domain(&agent.knowledge, name)).collect::<Result<Vec<_>, _>>()?;
    let [_, a, b, c] = random();
    let nonce = Name(random());
    let mut body = LanBody {
        nonce,
        name: new.name.clone(),
        // A label of two LANs by chance does no harm: each port has its own socket.
        vni: u32::from_be_bytes([0, a, b, c]).max(1),
        network,
        prefix,
        mtu,
        leases: vec![],
        created: now_s(),
        domains,
        sealed: Some(!new.unsealed),
        port_bits: None,
    };
    body.leases.extend(lan::next_lease(&body, agent.knowledge.key(), u64::from_be_bytes(random())));
    let id = bound_id(&agent.knowledge.key(), &nonce);
    agent.knowledge.publish(Kind::LAN, id, Some(Body::Lan(body.into())))?;
    Ok(axum::Json(find(&agent, id)?))
}

/// `POST /v1/lans/{name}/set`
pub async fn set(State(agent): State<Arc<Agent>>, Extension(granted): Extension<Granted>, Json(wish): Json<SetLan>) -> Answer<LanInfo> {
    let id = granted.about().ok_or_else(gone)?;
    let home = agent.knowledge.pool(|book| book.thing(Kind::LAN, id).map(|thing| thing.home))?.ok_or_else(gone)?;
    if home != agent.knowledge.key() {
        let host = agent.knowledge.name_of(&home);
        return Err(ApiError::new(ErrorCode::Forbidden, format!("this LAN was created on host {host}; change it there")).into());
    }
    addresses::edit(&agent.orders, id, |body| {
        if let Some(bits) = wish.port_bits {
            body.port_bits = Some(bits).filter(|bits| *bits > 0);
        }
    })?;
    Ok(axum::Json(find(&agent, id)?))
}

/// `DELETE /v1/lans/{name}`
pub async fn remove(State(agent): State<Arc<Agent>>, Extension(granted): Extension<Granted>) -> Result<(), Failure> {
    let id = granted.about().ok_or_else(gone)?;
    let found = agent.knowledge.pool(|book| {
        let home = book.thing(Kind::LAN, id)?.home;
        Some((home, book.on_lan(id).find_map(|record| view::vm(book, record.key.id)).map(|vm| vm.name)))
    })?;
    let (home, user) = found.ok_or_else(gone)?;
    if let Some(vm) = user {
        return Err(ApiError::new(ErrorCode::Conflict, format!("VM {vm} is on this LAN; remove that first")).into());
    }
    if home != agent.knowledge.key() {
        let host = agent.knowledge.name_of(&home);
        return Err(ApiError::new(ErrorCode::Forbidden, format!("this LAN was created on host {host}; remove it there")).into());
    }
    agent.knowledge.publish(Kind::LAN, id, None)?;
    Ok(())
}
