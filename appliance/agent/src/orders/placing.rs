//! Where a VM wants to be and with whom: what a user says by names becomes what its record says, and back.

use rebec_api::{ApiError, ErrorCode, vm::NewVm};
use rebec_book::{
    Book,
    key::Id,
    record::{Kind, LABELS_MAX, Partner, PlacingBody, VmBody, is_label},
    view,
};

use super::Orders;
use crate::names;

/// What a new VM's record says of it; none where its user said nothing.
pub fn of(orders: &Orders, new: &NewVm) -> Result<Option<Box<PlacingBody>>, ApiError> {
    let partner = |text: &String| {
        if text.contains('=') {
            return check(text).map(|()| Partner::label(text));
        }
        names::find(&orders.knowledge, Kind::VM, text).map(Partner::vm)
    };
    let partners = |texts: &[String]| texts.iter().map(partner).collect::<Result<Vec<_>, _>>();
    new.labels.iter().chain(&new.host_labels).try_for_each(|label| check(label))?;
    for (what, texts) in
        [("labels", &new.labels), ("host labels", &new.host_labels), ("affinities", &new.affinity), ("anti-affinities", &new.anti_affinity)]
    {
        if texts.len() > LABELS_MAX {
            return Err(ApiError::new(ErrorCode::BadRequest, format!("{} {what}: at most {LABELS_MAX}", texts.len())));
        }
    }
    let placing = PlacingBody {
        labels: new.labels.clone(),
        hosts: new.host_labels.clone(),
        near: partners(&new.affinity)?,
        apart: partners(&new.anti_affinity)?,
    };
    Ok((placing != PlacingBody::default()).then(|| placing.into()))
}

/// Refuses what is no label.
pub fn check(label: &str) -> Result<(), ApiError> {
    if is_label(label) {
        return Ok(());
    }
    let shown: String = label.chars().take(80).collect();
    Err(ApiError::new(ErrorCode::BadRequest, format!("label {shown:?}: expected NAME=VALUE, each of letters, digits, `-`, `_` and `.`")))
}

/// As people read it: labels, labels of its host, who must be there, who may not.
pub fn shown(book: &Book, body: &VmBody) -> [Vec<String>; 4] {
    let Some(placing) = &body.placing else { return Default::default() };
    let vm_name = |vm: Id| view::vm(book, vm).map_or_else(|| vm.short(), |vm| vm.name);
    let partner = |partner: &Partner| partner.vm.map(vm_name).or_else(|| partner.label.clone()).unwrap_or_default();
    let partners = |all: &[Partner]| all.iter().map(partner).collect::<Vec<_>>();
    [placing.labels.clone(), placing.hosts.clone(), partners(&placing.near), partners(&placing.apart)]
}
