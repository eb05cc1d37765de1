//! `vm run`: a host is chosen, and a keeper where there is to be one, and a record is written here, its home.

use std::sync::Arc;

use rebec_api::{
    ApiError, ErrorCode,
    vm::{NewVm, OnHostLoss},
};
use rebec_book::{
    Body, Key, Signed,
    key::{Id, Name, bound_id},
    record::{Assigned, ImageBody, Kind, NETWORK_CONFIG, NIC_OPTIONS, NicBody, ROOT_DISK, SEALED, VmBody, VmPrivate},
    view,
};
use rebec_host::{failed, seed};
use rebec_pool::place::{Choice, choose_keeper};
use rebec_vmm_api::MemorySize;
use serde::{Deserialize, Serialize};

use super::{
    Orders,
    addresses::nic,
    cpu, disks, limits, placing,
    plan::{Asked, place, world},
};
use crate::{
    chance::{now_s, random},
    names,
    vm::start,
};

/// LANs one VM may be on.
const LANS_MAX: usize = 8;
/// Most virtual processors.
const VCPUS_MAX: u8 = 16;

/// `POST /internal/records`: to the keeper of a VM, before others tell it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Introduction {
    /// What it needs to know the VM.
    pub records: Vec<Signed>,
    /// The VM.
    pub vm: Id,
    /// What others are not told of it.
    #[serde(with = "rebec_book::record::as_text")]
    pub private: VmPrivate,
}

/// Checks what was asked for, chooses a host for it and writes the VM's record.
pub async fn record(orders: &Arc<Orders>, new: &NewVm) -> Result<(Id, Choice), ApiError> {
    check(new)?;
    let _alone = orders.naming.lock().await;
    if names::taken(&orders.knowledge, Kind::VM, &new.name)? {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("VM `{}` exists already; choose another name, or `rebec vm rm {}`", new.name, new.name),
        ));
    }
    let (image, placing) = (image(orders, &new.image)?, placing::of(orders, new)?);
    // Before addresses are taken for it.
    let wants_seed = new.hostname.is_some() || !new.ssh_keys.is_empty() || new.user_data.is_some();
    let wishes = |nics| seed::Wishes {
        name: &new.name,
        hostname: new.hostname.as_deref(),
        keys: &new.ssh_keys,
        user_data: new.user_data.as_deref(),
        nics,
    };
    wishes(&[]).texts()?;
    let mut nics: Vec<NicBody> = vec![];
    for lan in &new.lans {
        let (name, trunk) = lan_of(lan)?;
        let nic = nic(orders, name, &nics).await?;
        nics.push(NicBody { trunk: trunk.then_some(true), ..nic });
    }
    let cmdline = match &new.cmdline {
        Some(more) => format!("{} {more}", image.cmdline).trim().to_owned(),
        None => image.cmdline.clone(),
    };
    let seed = if wants_seed { Some(wishes(&nics).texts()?) } else { None };
    let (seed, network) = seed.map_or((None, None), |texts| (Some((texts.meta, texts.user)), texts.network));
    let is_sealed = nics.iter().any(NicBody::is_sealed);
    let has_options = nics.iter().any(|nic| nic.mtu.is_some() || nic.is_trunk());
    let must = [is_sealed.then_some(SEALED), has_options.then_some(NIC_OPTIONS), network.as_ref().map(|_| NETWORK_CONFIG)];
    let must: Vec<String> = must.into_iter().flatten().map(str::to_owned).collect();
    let (nonce, private) = (Name(random()), VmPrivate { nonce: Name(random()), cmdline, seed, network });
    let mut body = VmBody {
        nonce,
        name: new.name.clone(),
        assigned: Assigned { host: orders.knowledge.key(), epoch: 1 },
        image_name: image.name.clone(),
        image,
        memory_bytes: new.memory_bytes,
        vcpus: new.vcpus,
        private: private.digest(),
        nics,
        keeper: None,
        created: now_s(),
        must: (!must.is_empty()).then_some(must),
        disks: None,
        cpu: None,
        limits: None,
        placing,
    };
    sized(orders, new, &mut body)?;
    let chosen = place(orders, &body, Asked { host: new.host.as_deref(), domain: new.domain.as_deref() }, None)?;
    if new.on_host_loss == OnHostLoss::Restart {
        body.keeper = Some(keeper(orders, &body.name, &chosen)?);
    }
    body.assigned.host = chosen.key;
    let id = bound_id(&orders.knowledge.key(), &nonce);
    orders.store.set_private(&id, &private).map_err(|error| failed(&error))?;
    orders.knowledge.publish(Kind::VM, id, Some(Body::Vm(body.clone().into())))?;
    if let Some(keeper) = body.keeper.filter(|keeper| *keeper != orders.knowledge.key())
        && let Err(error) = introduce(orders, keeper, id).await
    {
        orders.knowledge.publish(Kind::VM, id, None)?;
        return Err(error);
    }
    Ok((id, chosen))
}

/// Refuses what no VM can be.
fn check(new: &NewVm) -> Result<(), ApiError> {
    names::check("VM", &new.name)?;
    let bad = |what: String| Err(ApiError::new(ErrorCode::BadRequest, what));
    if MemorySize::from_bytes(new.memory_bytes).is_err() {
        return bad(format!("memory of {} bytes: expected whole MiB from 16 MiB to 1 TiB", new.memory_bytes));
    }
    if !(1..=VCPUS_MAX).contains(&new.vcpus) {
        return bad(format!("{} vCPUs: expected 1 to {VCPUS_MAX}", new.vcpus));
    }
    if new.lans.len() > LANS_MAX {
        return bad(format!("{} LANs: at most {LANS_MAX}", new.lans.len()));
    }
    Ok(())
}

/// A VM's record as far as its place depends on it, not written, and the LANs that it would be on: it has no addresses, seed or command line.
pub fn sketch(orders: &Orders, new: &NewVm) -> Result<(VmBody, Vec<Id>), ApiError> {
    check(new)?;
    let image = image(orders, &new.image)?;
    let lans = new.lans.iter().map(|lan| names::lan(&orders.knowledge, lan_of(lan)?.0)).collect::<Result<Vec<_>, _>>()?;
    let mut body = VmBody {
        nonce: Name([0; 16]),
        name: new.name.clone(),
        assigned: Assigned { host: orders.knowledge.key(), epoch: 1 },
        image_name: image.name.clone(),
        image,
        memory_bytes: new.memory_bytes,
        vcpus: new.vcpus,
        private: Name([0; 32]),
        nics: vec![],
        keeper: None,
        created: 0,
        must: None,
        disks: None,
        cpu: None,
        limits: None,
        placing: placing::of(orders, new)?,
    };
    sized(orders, new, &mut body)?;
    Ok((body, lans))
}

/// The CPU model, the disk and the memory that were asked for.
fn sized(orders: &Orders, new: &NewVm, body: &mut VmBody) -> Result<(), ApiError> {
    if let Some(cpu) = new.cpu.as_deref().map(|asked| cpu::model(orders, asked)).transpose()?.flatten() {
        body.set_cpu(cpu);
    }
    body.limits = limits::memory_max(new.memory_max_bytes, new.memory_bytes).map_err(|what| ApiError::new(ErrorCode::BadRequest, what))?;
    if let Some(bytes) = new.disk_bytes {
        disks::resized(body, ROOT_DISK, disks::checked_bytes(bytes)?)?;
    }
    Ok(())
}

/// Reads `office` or `office,trunk`: a LAN, and whether the guest bridges there.
pub fn lan_of(text: &str) -> Result<(&str, bool), ApiError> {
    match text.split_once(',') {
        None => Ok((text, false)),
        Some((name, "trunk")) => Ok((name, true)),
        Some((name, other)) => {
            let message = format!("LAN {name}: `{other}` is no option of a NIC; `{name},trunk` lets its guest bridge");
            Err(ApiError::new(ErrorCode::BadRequest, message))
        }
    }
}

/// The host that is to look after a VM.
fn keeper(orders: &Orders, vm: &str, runner: &Choice) -> Result<Key, ApiError> {
    let own = orders.knowledge.key();
    let keeper = orders.knowledge.pool(|book| {
        let home = book.domain_of(&own)?;
        choose_keeper(home, runner.key, world(&orders.peers, book).hosts())
    })?;
    keeper.ok_or_else(|| {
        let message = format!(
            "VM {vm}: on-host-loss restart needs a keeper, a second host of this domain that answers; add one with `rebec host invite`, or say hold"
        );
        ApiError::new(ErrorCode::Refused, message)
    })
}

/// Tells a keeper of its VM: it is asked before the news has spread.
async fn introduce(orders: &Arc<Orders>, keeper: Key, vm: Id) -> Result<(), ApiError> {
    let unknown = || ApiError::new(ErrorCode::Unreachable, format!("host {} is not known here any more; try again", keeper.short()));
    let peer = orders.knowledge.peer(&keeper).ok_or_else(unknown)?;
    orders
        .peers
        .mesh
        .ask(
            &peer,
            "/internal/records",
            &Introduction { records: orders.knowledge.records_of(vm)?, vm, private: start::private(&orders.vms, vm)? },
        )
        .await
}

fn image(orders: &Orders, name: &str) -> Result<ImageBody, ApiError> {
    let id = names::image(&orders.knowledge, name)?;
    let found = orders.knowledge.pool(|book| {
        let thing = book.thing(Kind::IMAGE, id)?;
        let Some(Body::Image(image)) = book.get(Kind::IMAGE, id, thing.home) else { return None };
        let own = book.own_domain();
        let is_shared = thing.domain == own || own.is_some_and(|own| image.domains.contains(&own));
        Some((is_shared, (**image).clone()))
    })?;
    let (is_shared, image) = found.ok_or_else(|| ApiError::not_found("image", name, "rebec image ls"))?;
    if is_shared {
        return Ok(image);
    }
    let message = format!("image {name} is another domain's, which does not share it; it is shared by `rebec image import --domain` there");
    Err(ApiError::new(ErrorCode::Forbidden, message))
}

/// The host that a VM of this home was assigned to, for an order that is taken on again; none where nothing came of the first.
pub fn begun(orders: &Orders, name: &str) -> Option<(Id, Choice)> {
    let found = orders.knowledge.read(|book| {
        let mine = view::vms(book).into_iter().find(|vm| vm.home == orders.knowledge.key() && vm.body.name == name)?;
        Some((mine.id, mine.body.assigned.host))
    });
    let (id, key) = found.flatten()?;
    Some((id, Choice { key, name: orders.knowledge.name_of(&key), reason: "chosen before".to_owned() }))
}
