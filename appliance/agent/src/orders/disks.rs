//! Disks of a VM beside what its image gives: how large the one on the image is, and further ones. Its home writes into its record what they are to be; the
//! host that holds it takes that over, at once or when it starts the VM again (`vm::disks`).

use std::sync::Arc;

use rebec_api::{ApiError, ErrorCode, vm::VmDisk};
use rebec_book::{
    Body, Signed,
    key::Id,
    record::{DISKS_MAX, DiskBody, Kind, ROOT_DISK, VmBody},
    view,
};
use rebec_host::lock;
use rebec_vmm_api::DiskSize;
use serde::{Deserialize, Serialize};

use super::Orders;
use crate::vm::disks::take_over;

/// Disks and NICs that a machine has room for (`rebec-vmm run`), a seed disk among them.
const DISKS_AND_NICS_MAX: usize = 15;

/// `POST /internal/disks`: from a VM's home to the host that holds it.
#[derive(Debug, Serialize, Deserialize)]
pub struct DisksOrder {
    /// The VM.
    pub vm: Id,
    /// Its record.
    pub records: Vec<Signed>,
}

/// Refuses a size that no disk has.
pub fn checked_bytes(bytes: u64) -> Result<u64, ApiError> {
    DiskSize::from_bytes(bytes).map(DiskSize::bytes).map_err(|error| ApiError::new(ErrorCode::BadRequest, error.to_string()))
}

/// As people see them.
pub fn shown(body: &VmBody) -> Vec<VmDisk> {
    let root = body.root_bytes().map(|bytes| VmDisk { name: ROOT_DISK.to_owned(), bytes });
    root.into_iter().chain(body.further_disks().map(|disk| VmDisk { name: disk.name.clone(), bytes: disk.bytes })).collect()
}

/// Makes a disk of a record larger; nothing changes where it has that size already.
pub fn resized(body: &mut VmBody, name: &str, bytes: u64) -> Result<(), ApiError> {
    let known = shown(body);
    let Some(old) = known.iter().find(|disk| disk.name == name) else {
        let names: Vec<_> = known.iter().map(|disk| disk.name.as_str()).collect();
        let has = if names.is_empty() { "no disks".to_owned() } else { format!("the disks {}", names.join(", ")) };
        return Err(ApiError::new(ErrorCode::NotFound, format!("VM {} has no disk `{name}`; it has {has}", body.name)));
    };
    if bytes < old.bytes {
        let message = format!(
            "disk `{name}` of VM {} has {} MiB: a disk does not shrink, for what lies beyond {} MiB would be lost; make a VM with a smaller one and copy",
            body.name,
            old.bytes >> 20,
            bytes >> 20
        );
        return Err(ApiError::new(ErrorCode::Refused, message));
    }
    let mut disks = body.disks.clone().unwrap_or_default();
    match disks.iter_mut().find(|disk| disk.name == name) {
        Some(disk) => disk.bytes = bytes,
        None => disks.push(DiskBody { name: name.to_owned(), bytes }),
    }
    body.set_disks(disks);
    Ok(())
}

/// Gives a record another disk.
pub fn added(body: &mut VmBody, new: &VmDisk) -> Result<(), ApiError> {
    let refuse = |code, what: String| Err(ApiError::new(code, format!("VM {}: {what}", body.name)));
    if new.name == ROOT_DISK || body.further_disks().any(|disk| disk.name == new.name) {
        return refuse(ErrorCode::Conflict, format!("it has a disk `{}` already; choose another name", new.name));
    }
    if shown(body).len() >= DISKS_MAX {
        return refuse(
            ErrorCode::Refused,
            format!("it has {DISKS_MAX} disks, and no more are possible; `rebec vm disk rm` takes one away"),
        );
    }
    if shown(body).len() + 1 + body.nics.len() >= DISKS_AND_NICS_MAX {
        return refuse(ErrorCode::Refused, format!("beside its {} NICs it has no room for another disk", body.nics.len()));
    }
    let mut disks = body.disks.clone().unwrap_or_default();
    disks.push(DiskBody { name: new.name.clone(), bytes: new.bytes });
    body.set_disks(disks);
    Ok(())
}

/// Takes a disk from a record.
pub fn removed(body: &mut VmBody, name: &str) -> Result<(), ApiError> {
    if name == ROOT_DISK || !body.further_disks().any(|disk| disk.name == name) {
        let named: Vec<_> = body.further_disks().map(|disk| disk.name.as_str()).collect();
        let has = if named.is_empty() { "none that was added".to_owned() } else { named.join(", ") };
        return Err(ApiError::new(
            ErrorCode::NotFound,
            format!("VM {} has no disk `{name}` that can be taken away; it has {has}", body.name),
        ));
    }
    let mut disks = body.disks.clone().unwrap_or_default();
    disks.retain(|disk| disk.name != name);
    body.set_disks(disks);
    Ok(())
}

/// As its home, changes the record of a VM, and has the host that holds it take it over.
pub async fn change(orders: &Arc<Orders>, id: Id, change: impl FnOnce(&mut VmBody) -> Result<(), ApiError>) -> Result<(), ApiError> {
    let name = write(orders, id, change)?;
    tell(orders, id, |error| later(&name, error)).await
}

/// As its home, changes the record of a VM; its name.
pub fn write(orders: &Arc<Orders>, id: Id, change: impl FnOnce(&mut VmBody) -> Result<(), ApiError>) -> Result<String, ApiError> {
    // Whoever assigns it writes the same record.
    let _alone = lock(&orders.grants);
    let (_, mut body) = orders.knowledge.desired(id)?;
    let old = body.clone();
    change(&mut body)?;
    let name = body.name.clone();
    if body != old {
        orders.knowledge.publish(Kind::VM, id, Some(Body::Vm(body.into())))?;
    }
    Ok(name)
}

/// Its host, if it is another, does not take over now what its record says.
pub fn later(name: &str, error: ApiError) -> ApiError {
    ApiError {
        message: format!("VM {name}: its record has it; its host takes it over at the VM's next start, now not: {}", error.message),
        ..error
    }
}

/// Has the host that holds a VM take over what its record says; `later` says what it means that another host does not.
pub async fn tell(orders: &Arc<Orders>, id: Id, later: impl Fn(ApiError) -> ApiError) -> Result<(), ApiError> {
    // One that has left may still be about here.
    let holder = orders.knowledge.pool(|book| view::seen(book, id).map(|seen| seen.holder))?;
    let Some(holder) = holder.filter(|holder| *holder != orders.knowledge.key()) else {
        return match orders.vms.get(&id) {
            Some(vm) => take_over(&orders.vms, &vm).await,
            None => Ok(()),
        };
    };
    let unknown = || later(ApiError::new(ErrorCode::Unreachable, format!("host {} is not known here", holder.short())));
    let peer = orders.knowledge.peer(&holder).ok_or_else(unknown)?;
    let order = DisksOrder { vm: id, records: orders.knowledge.records_of(id)? };
    orders.peers.mesh.ask::<_, ()>(&peer, "/internal/disks", &order).await.map_err(&later)
}

#[cfg(test)]
pub(super) mod tests {
    use rebec_book::{
        Key,
        grant::Assigned,
        key::{Digest, Name},
        record::{DiskRef, ImageBody, NicBody, PartRef},
    };

    use super::*;

    const GIB: u64 = 1 << 30;

    pub fn vm() -> VmBody {
        let part = PartRef { digest: Name([7; 32]), bytes: 7 };
        let mut image = ImageBody::bare(Name([0; 16]), "i", part);
        image.disk = Some(DiskRef { part, qcow2: true, virtual_bytes: 3 * GIB });
        VmBody {
            nonce: Name([1; 16]),
            name: "web".into(),
            assigned: Assigned { host: Key::from(Name([2; 32])), epoch: 1 },
            image_name: "i".into(),
            image,
            memory_bytes: GIB,
            vcpus: 1,
            private: Digest::from(Name([0; 32])),
            nics: vec![],
            keeper: None,
            created: 0,
            must: None,
            disks: None,
            cpu: None,
            limits: None,
            placing: None,
        }
    }

    #[test]
    fn a_disk_grows_and_does_not_shrink() {
        let mut body = vm();
        resized(&mut body, ROOT_DISK, 20 * GIB).unwrap();
        resized(&mut body, ROOT_DISK, 20 * GIB).unwrap();
        assert_eq!(shown(&body), [VmDisk { name: "root".into(), bytes: 20 * GIB }]);
        let refused = resized(&mut body, ROOT_DISK, 10 * GIB).unwrap_err();
        assert!(refused.code == ErrorCode::Refused && refused.message.contains("has 20480 MiB: a disk does not shrink"), "{refused}");
        // Nor below its image, of which its record says nothing.
        assert!(resized(&mut vm(), ROOT_DISK, GIB).unwrap_err().message.contains("has 3072 MiB"));
        assert!(resized(&mut body, "data", 10 * GIB).unwrap_err().message.contains("it has the disks root"));
        let mut bare = vm();
        bare.image.disk = None;
        assert!(resized(&mut bare, ROOT_DISK, GIB).unwrap_err().message.contains("it has no disks"));
        assert!([0, GIB + 1, 9 << 40].iter().all(|bytes| checked_bytes(*bytes).is_err()) && checked_bytes(GIB).is_ok());
    }

    #[test]
    fn disks_come_and_go_by_name() {
        let mut body = vm();
        let disk = |name: &str| VmDisk { name: name.to_owned(), bytes: GIB };
        added(&mut body, &disk("data")).unwrap();
        added(&mut body, &disk("logs")).unwrap();
        assert_eq!(shown(&body).iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["root", "data", "logs"]);
        for taken in ["root", "data"] {
            assert!(added(&mut body, &disk(taken)).unwrap_err().message.contains("choose another name"));
        }
        assert!(removed(&mut body, "root").unwrap_err().message.contains("it has data, logs"));
        removed(&mut body, "data").unwrap();
        assert!(removed(&mut body, "data").is_err());
        let mut wired = body.clone();
        let nic = NicBody {
            lan: Name([0; 16]),
            vni: 7,
            mac: [0; 6],
            address: [10, 0, 0, 8].into(),
            prefix: 24,
            sealed: None,
            mtu: None,
            trunk: None,
        };
        wired.nics = vec![nic; 8];
        let more = (0..6).map(|number| added(&mut wired, &disk(&format!("d{number}")))).filter(Result::is_ok).count();
        assert_eq!((more, shown(&wired).len() + wired.nics.len()), (4, DISKS_AND_NICS_MAX - 1), "and a seed");
        (0..6).for_each(|number| added(&mut body, &disk(&format!("d{number}"))).unwrap());
        assert_eq!(added(&mut body, &disk("more")).unwrap_err().code, ErrorCode::Refused);
    }
}
