//! Addresses of LANs: given out here, as far as a LAN's home has let this host have some.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    Body, Key, Signed,
    authority::Granted,
    key::Id,
    lan,
    record::{Kind, LanBody, NicBody, RangeLease},
};
use rebec_host::lock;
use serde::{Deserialize, Serialize};

use super::{Orders, returns};
use crate::{chance::random, names};

/// `POST /internal/leases`: addresses of a LAN for the asking host.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeaseQuestion {
    /// The LAN.
    pub lan: Id,
}

/// A NIC on a LAN, with an address of those that this host may give out.
pub async fn nic(orders: &Arc<Orders>, name: &str, others: &[NicBody]) -> Result<NicBody, ApiError> {
    let id = names::lan(&orders.knowledge, name)?;
    let home = orders.knowledge.pool(|book| book.thing(Kind::LAN, id).map(|thing| thing.home))?;
    let home = home.ok_or_else(|| ApiError::not_found("LAN", name, "rebec lan ls"))?;
    for _ in 0..2 {
        let (body, used) = orders.knowledge.pool(|book| (lan_body(book.get(Kind::LAN, id, home)), used_addresses(book, id)))?;
        let body = body.ok_or_else(|| ApiError::not_found("LAN", name, "rebec lan ls"))?;
        let body = returns::usable(orders, id, body)?;
        let mut used = used;
        used.extend(others.iter().filter(|nic| nic.lan == id).map(|nic| nic.address));
        if let Some(address) = lan::free_address(&body, orders.knowledge.key(), &used) {
            // LANs may have the same range, and a VM no MAC twice.
            let same = others.iter().filter(|nic| nic.address == address).count();
            let mac = lan::mac_of(address, same as u8);
            let mtu = Some(body.mtu).filter(|mtu| *mtu != lan::MTU);
            return Ok(NicBody { lan: id, vni: body.vni, mac, address, prefix: body.prefix, sealed: body.sealed, mtu, trunk: None });
        }
        lease(orders, id, home).await?;
    }
    Err(ApiError::new(ErrorCode::Refused, format!("LAN {name}: no address is free; make a LAN with a larger --range")))
}

/// A LAN's record.
pub fn lan_body(body: Option<&Body>) -> Option<LanBody> {
    if let Some(Body::Lan(lan)) = body { Some((**lan).clone()) } else { None }
}

fn used_addresses(book: &rebec_book::Book, lan: Id) -> BTreeSet<Ipv4Addr> {
    // Only those that this host gave out can be in question.
    book.own().map(|own| returns::used(book, lan, own).collect()).unwrap_or_default()
}

/// Gets addresses of a LAN from its home.
async fn lease(orders: &Arc<Orders>, lan: Id, home: Key) -> Result<(), ApiError> {
    if home == orders.knowledge.key() {
        return hand_out(orders, lan, home);
    }
    let peer = orders
        .knowledge
        .peer(&home)
        .ok_or_else(|| ApiError::new(ErrorCode::Unreachable, "the LAN's home host is not known here yet; try again"))?;
    let records: Vec<Signed> = orders.peers.mesh.ask(&peer, "/internal/leases", &LeaseQuestion { lan }).await?;
    orders.peers.learn(records);
    Ok(())
}

/// Gives the host that asked a part of the range of a LAN that is at home here.
pub fn grant(orders: &Orders, granted: Granted) -> Result<(), ApiError> {
    match (granted.about(), granted.host()) {
        (Some(lan), Some(host)) => hand_out(orders, lan, host),
        _ => Err(ApiError::new(ErrorCode::Forbidden, "no addresses were granted")),
    }
}

/// Changes the record of a LAN that is at home here; parts of its range are handed out and taken back meanwhile.
pub fn edit(orders: &Orders, id: Id, change: impl FnOnce(&mut LanBody)) -> Result<(), ApiError> {
    let _alone = lock(&orders.grants);
    let body = orders.knowledge.pool(|book| lan_body(book.get(Kind::LAN, id, orders.knowledge.key())))?;
    let mut body = body.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("LAN {} is not at home here", id.short())))?;
    change(&mut body);
    orders.knowledge.publish(Kind::LAN, id, Some(Body::Lan(body.into())))
}

fn hand_out(orders: &Orders, id: Id, host: Key) -> Result<(), ApiError> {
    let _alone = lock(&orders.grants);
    let body = orders.knowledge.pool(|book| lan_body(book.get(Kind::LAN, id, orders.knowledge.key())))?;
    let mut body = body.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("LAN {} is not at home here", id.short())))?;
    let lease: RangeLease = lan::next_lease(&body, host, u64::from_be_bytes(random())).ok_or_else(|| {
        ApiError::new(ErrorCode::Refused, format!("LAN {}: all addresses are handed out; make a LAN with a larger --range", body.name))
    })?;
    body.leases.push(lease);
    orders.knowledge.publish(Kind::LAN, id, Some(Body::Lan(body.into())))
}
