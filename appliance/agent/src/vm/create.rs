//! `vm run`: a host is chosen, and a keeper where there is to be one; a record is written here, its home; that host starts the VM.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use rebec_api::{
    ApiError, ErrorCode,
    vm::{NewVm, OnHostLoss},
};
use rebec_book::{
    Body, Key, Signed,
    authority::Granted,
    key::{Id, Name, bound_id},
    lan,
    record::{Assigned, ImageBody, Kind, LanBody, NETWORK_CONFIG, NicBody, ROOT_DISK, RangeLease, SeenState, VmBody, VmPrivate},
    view,
};
use rebec_pool::place::{Candidate, Choice, Want, choose, choose_keeper};
use rebec_vmm_api::MemorySize;
use serde::{Deserialize, Serialize};

use super::{Kept, depart, disks, failed, seed, start};
use crate::{
    agent::{Agent, lock, now_s, random},
    exchange,
    http::names,
    jobs::Reporter,
};

/// LANs one VM may be on.
const LANS_MAX: usize = 8;
/// Epochs that one move may take.
const MOVE_EPOCHS: u64 = 2;
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

/// `POST /internal/leases`: addresses of a LAN for the asking host.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeaseQuestion {
    /// The LAN.
    pub lan: Id,
}

/// Checks what was asked for, chooses a host for it and writes the VM's record.
pub async fn record(agent: &Arc<Agent>, new: &NewVm) -> Result<(Id, Choice), ApiError> {
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
    let _alone = agent.naming.lock().await;
    if names::taken(agent, Kind::VM, &new.name)? {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("VM `{}` exists already; choose another name, or `rebec vm rm {}`", new.name, new.name),
        ));
    }
    let image = image(agent, &new.image)?;
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
    for name in &new.lans {
        nics.push(nic(agent, name, &nics).await?);
    }
    let cmdline = match &new.cmdline {
        Some(more) => format!("{} {more}", image.cmdline).trim().to_owned(),
        None => image.cmdline.clone(),
    };
    let seed = if wants_seed { Some(wishes(&nics).texts()?) } else { None };
    let (seed, network) = seed.map_or((None, None), |texts| (Some((texts.meta, texts.user)), texts.network));
    let must = network.as_ref().map(|_| vec![NETWORK_CONFIG.to_owned()]);
    let (nonce, private) = (Name(random()), VmPrivate { nonce: Name(random()), cmdline, seed, network });
    let mut body = VmBody {
        nonce,
        name: new.name.clone(),
        assigned: Assigned { host: agent.key(), epoch: 1 },
        image_name: image.name.clone(),
        image,
        memory_bytes: new.memory_bytes,
        vcpus: new.vcpus,
        private: private.digest(),
        nics,
        keeper: None,
        created: now_s(),
        must,
        disks: None,
    };
    if let Some(bytes) = new.disk_bytes {
        disks::resized(&mut body, ROOT_DISK, disks::checked_bytes(bytes)?)?;
    }
    let chosen = place(agent, &body, new.host.as_deref(), new.domain.as_deref(), None)?;
    if new.on_host_loss == OnHostLoss::Restart {
        body.keeper = Some(keeper(agent, &body.name, &chosen)?);
    }
    body.assigned.host = chosen.key;
    let id = bound_id(&agent.key(), &nonce);
    agent.store.set_private(&id, &private).map_err(|error| failed(&error))?;
    agent.publish(Kind::VM, id, Some(Body::Vm(body.clone().into())))?;
    if let Some(keeper) = body.keeper.filter(|keeper| *keeper != agent.key())
        && let Err(error) = introduce(agent, keeper, id).await
    {
        agent.publish(Kind::VM, id, None)?;
        return Err(error);
    }
    Ok((id, chosen))
}

/// The host that is to look after a VM.
fn keeper(agent: &Agent, vm: &str, runner: &Choice) -> Result<Key, ApiError> {
    let own = agent.key();
    let (candidates, home) = agent.pool(|book| (candidates(agent, book), book.domain_of(&own)))?;
    home.and_then(|home| choose_keeper(home, runner.key, &candidates)).ok_or_else(|| {
        let message = format!(
            "VM {vm}: on-host-loss restart needs a keeper, a second host of this domain that answers; add one with `rebec host invite`, or say hold"
        );
        ApiError::new(ErrorCode::Refused, message)
    })
}

/// Tells a keeper of its VM: it is asked before the news has spread.
async fn introduce(agent: &Arc<Agent>, keeper: Key, vm: Id) -> Result<(), ApiError> {
    let unknown = || ApiError::new(ErrorCode::Unreachable, format!("host {} is not known here any more; try again", keeper.short()));
    let peer = agent.peer(&keeper).ok_or_else(unknown)?;
    agent
        .mesh
        .ask(&peer, "/internal/records", &Introduction { records: start::records(agent, vm)?, vm, private: start::private(agent, vm)? })
        .await
}

fn image(agent: &Agent, name: &str) -> Result<ImageBody, ApiError> {
    let id = names::image(agent, name)?;
    let found = agent.pool(|book| {
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

/// A NIC on a LAN, with an address of those that this host may give out.
async fn nic(agent: &Arc<Agent>, name: &str, others: &[NicBody]) -> Result<NicBody, ApiError> {
    let id = names::lan(agent, name)?;
    let home = agent.pool(|book| book.thing(Kind::LAN, id).map(|thing| thing.home))?;
    let home = home.ok_or_else(|| ApiError::not_found("LAN", name, "rebec lan ls"))?;
    for _ in 0..2 {
        let (body, used) = agent.pool(|book| (lan_body(book.get(Kind::LAN, id, home)), used_addresses(book, id)))?;
        let body = body.ok_or_else(|| ApiError::not_found("LAN", name, "rebec lan ls"))?;
        let mut used = used;
        used.extend(others.iter().filter(|nic| nic.lan == id).map(|nic| nic.address));
        if let Some(address) = lan::free_address(&body, agent.key(), &used) {
            // LANs may have the same range, and a VM no MAC twice.
            let same = others.iter().filter(|nic| nic.address == address).count();
            return Ok(NicBody { lan: id, vni: body.vni, mac: lan::mac_of(address, same as u8), address, prefix: body.prefix });
        }
        lease(agent, id, home).await?;
    }
    Err(ApiError::new(ErrorCode::Refused, format!("LAN {name}: no address is free; make a LAN with a larger --range")))
}

fn lan_body(body: Option<&Body>) -> Option<LanBody> {
    if let Some(Body::Lan(lan)) = body { Some((**lan).clone()) } else { None }
}

fn used_addresses(book: &rebec_book::Book, lan: Id) -> BTreeSet<Ipv4Addr> {
    // Only those that this host gave out can be in question.
    let own = book.on_lan(lan).filter(|record| Some(record.key.writer) == book.own());
    let bodies = own.filter_map(|record| if let Some(Body::Vm(vm)) = &record.body { Some(vm) } else { None });
    bodies.flat_map(|vm| vm.nics.iter().filter(|nic| nic.lan == lan).map(|nic| nic.address)).collect()
}

/// Gets addresses of a LAN from its home.
async fn lease(agent: &Arc<Agent>, lan: Id, home: Key) -> Result<(), ApiError> {
    if home == agent.key() {
        return hand_out(agent, lan, home);
    }
    let peer =
        agent.peer(&home).ok_or_else(|| ApiError::new(ErrorCode::Unreachable, "the LAN's home host is not known here yet; try again"))?;
    let records: Vec<Signed> = agent.mesh.ask(&peer, "/internal/leases", &LeaseQuestion { lan }).await?;
    exchange::learn(agent, records);
    Ok(())
}

/// Gives the host that asked a part of the range of a LAN that is at home here.
pub fn grant(agent: &Agent, granted: Granted) -> Result<(), ApiError> {
    match (granted.about(), granted.host()) {
        (Some(lan), Some(host)) => hand_out(agent, lan, host),
        _ => Err(ApiError::new(ErrorCode::Forbidden, "no addresses were granted")),
    }
}

fn hand_out(agent: &Agent, id: Id, host: Key) -> Result<(), ApiError> {
    let _alone = lock(&agent.grants);
    let body = agent.pool(|book| lan_body(book.get(Kind::LAN, id, agent.key())))?;
    let mut body = body.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("LAN {} is not at home here", id.short())))?;
    let lease: RangeLease = lan::next_lease(&body, host).ok_or_else(|| {
        ApiError::new(ErrorCode::Refused, format!("LAN {}: all addresses are handed out; make a LAN with a larger --range", body.name))
    })?;
    body.leases.push(lease);
    agent.publish(Kind::LAN, id, Some(Body::Lan(body.into())))
}

/// Chooses a host for a VM; `moving` is what this host keeps of one that leaves it.
pub fn place(agent: &Agent, body: &VmBody, host: Option<&str>, domain: Option<&str>, moving: Option<&Kept>) -> Result<Choice, ApiError> {
    let host = host.map(|name| names::host(agent, name)).transpose()?;
    let domain = domain.map(|name| names::domain(agent, name)).transpose()?;
    let own = agent.key();
    let (candidates, home_domain, donors) = agent.pool(|book| {
        let donors = moving.map(|moving| donors(book, moving)).unwrap_or_default();
        (candidates(agent, book), book.domain_of(&own), donors)
    })?;
    let want = Want {
        memory_bytes: body.memory_bytes,
        disk_bytes: start::disk_bytes(body),
        lans: !body.nics.is_empty(),
        host,
        domain,
        leaves: moving.map(|_| own),
        parts: body.image.parts().map(|part| part.digest).collect(),
        home_domain,
        donors,
    };
    choose(&want, &candidates).map_err(|details| {
        let message = format!("VM {} fits on no host that is in question", body.name);
        ApiError { code: ErrorCode::Refused, message, details }
    })
}

/// The domain that a VM stays in where nobody says otherwise: its home's, if that is this host's own.
pub fn stays_in(agent: &Agent, home: &Key) -> Option<String> {
    let own =
        |book: &rebec_book::Book| book.own_domain().filter(|own| book.domain_of(home) == Some(*own)).map(|own| book.domain_name(&own));
    agent.book(own).flatten()
}

/// Hosts of running VMs of the same home and image, which lend to a VM that arrives beside them.
fn donors(book: &rebec_book::Book, moving: &Kept) -> Vec<Key> {
    let vms = view::vms(book);
    let alike = vms.iter().filter(|vm| vm.home == moving.home && vm.id != moving.id && vm.body.image == moving.body.image);
    let seen = alike.filter_map(|vm| view::seen(book, vm.id)).filter(|seen| seen.body.state == SeenState::Running);
    seen.map(|seen| seen.holder).collect()
}

/// Every host of the pool, as far as placing goes.
fn candidates(agent: &Agent, book: &rebec_book::Book) -> Vec<Candidate> {
    let (loads, own) = (view::loads(book), book.own_domain());
    let hosts = view::hosts(book).into_iter().filter(|host| host.member.dead.is_none());
    let candidates = hosts.map(|host| {
        let (body, vitals) = (host.body, agent.exchange.vitals(&host.key));
        let load = loads.get(&host.key).copied().unwrap_or_default();
        let memory_used_bytes = if own == Some(host.domain) { load.memory_bytes } else { load.with(&vitals).memory_bytes };
        let parts = view::parts(book, &host.key).copied().collect();
        Candidate {
            key: host.key,
            name: host.name,
            domain: host.domain,
            answers: agent.answers(&host.key),
            draining: body.draining,
            durable: body.durable,
            no_kvm: body.no_kvm.clone(),
            underlay: body.underlay.is_some(),
            memory_free_bytes: body.memory_bytes.saturating_sub(memory_used_bytes),
            disk_free_bytes: body.disk_bytes.saturating_sub(u64::from(vitals.disk_used_mib) << 20),
            parts,
        }
    });
    candidates.collect()
}

/// Has the chosen host start a VM that this host has the record of, in which it is assigned to that host.
pub async fn start_at(agent: &Arc<Agent>, id: Id, order: Order, chosen: &Choice, reporter: &Reporter) -> Result<(), ApiError> {
    if chosen.key == agent.key() {
        return start::start(agent, id, order, reporter).await;
    }
    let peer = agent.peer(&chosen.key).ok_or_else(|| ApiError::not_found("host", &chosen.name, "rebec host ls"))?;
    let Order { epoch, reason } = order;
    let (records, private) = (start::records(agent, id)?, start::private(agent, id)?);
    let order = StartOrder { vm: id, epoch, reason, records, private, order: Some(Name(random())) };
    let seen = depart::order(agent, &peer, "/internal/starts", &order, reporter).await?;
    // The chosen host's word on how the VM is comes with its answer, so that whoever asks next is not told less.
    if let Ok(records) = serde_json::from_value(seen) {
        exchange::learn(agent, records);
    }
    Ok(())
}

/// The host that a VM of this home was assigned to, for an order that is taken on again; none where nothing came of the first.
pub fn begun(agent: &Agent, name: &str) -> Option<(Id, Choice)> {
    let found = agent.book(|book| {
        let mine = view::vms(book).into_iter().find(|vm| vm.home == agent.key() && vm.body.name == name)?;
        Some((mine.id, mine.body.assigned.host))
    });
    let (id, key) = found.flatten()?;
    Some((id, Choice { key, name: agent.name_of(&key), reason: "chosen before".to_owned() }))
}

/// As a VM's home, assigns it anew: to a host and an epoch that nobody else's claim comes near. Only if it is still where the asker found it: of
/// several who ask at the same time one assigns it.
pub fn assign(agent: &Agent, id: Id, found: Assigned, host: Key) -> Result<u64, ApiError> {
    let _alone = lock(&agent.grants);
    let (_, mut body) = start::desired(agent, id)?;
    if agent.pool(|book| view::holder(book, id))?.is_some_and(|at| at.epoch != found.epoch) {
        let message = format!("VM {} is being started already; `rebec vm show {}`", body.name, body.name);
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    let reached = agent.pool(|book| {
        let at = view::holder(book, id).map_or(0, |at| at.epoch);
        // An unproved claim counts as far as one move, or one that was taken back, could have led.
        let claimed = view::claims(book, id).map(|(_, seen)| seen.epoch).filter(|epoch| *epoch <= at.saturating_add(MOVE_EPOCHS));
        claimed.fold(at, u64::max)
    })?;
    body.assigned = Assigned { host, epoch: reached.saturating_add(1) };
    let epoch = body.assigned.epoch;
    agent.publish(Kind::VM, id, Some(Body::Vm(body.into())))?;
    Ok(epoch)
}

/// How a VM is to begin where it was never before.
pub struct Order {
    /// Its ownership counter.
    pub epoch: u64,
    /// Why, where that is not plain.
    pub reason: Option<String>,
}

impl Order {
    /// Its first start.
    pub const FIRST: Self = Self { epoch: 1, reason: None };
}

/// `POST /internal/starts`: a job.
#[derive(Debug, Serialize, Deserialize)]
pub struct StartOrder {
    /// The VM.
    pub vm: Id,
    /// Its ownership counter, where it was never there.
    pub epoch: u64,
    /// Why it is started there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Records it needs here.
    pub records: Vec<Signed>,
    /// What others are not told of it.
    #[serde(with = "rebec_book::record::as_text")]
    pub private: VmPrivate,
    /// The order's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Id>,
}
