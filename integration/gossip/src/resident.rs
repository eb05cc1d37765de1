//! One book alone in a process: what it takes in memory, and how fast it is read as the API reads it.
//!
//! ```text
//! parent  --records, each behind its length-->  child: builds the book, reads it  --one line of JSON-->  parent
//! ```
//! The child has nothing else, so what its resident memory grows by is the book's; what building left unused counts too.

use std::{
    collections::BTreeMap,
    io::{BufReader, BufWriter, Read, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rebec_api::vm::{NicInfo, OnHostLoss, VmInfo, VmState};
use rebec_book::{
    Body, Book, Key, Signed,
    book::Came,
    key::Id,
    names,
    record::{Kind, VmBody},
    view,
};
use serde::{Deserialize, Serialize};

/// What the child found.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Found {
    /// In the book.
    pub records: usize,
    /// VMs in it.
    pub vms: usize,
    /// What the book takes.
    pub book_bytes: u64,
    /// What the process takes with it.
    pub process_bytes: u64,
    /// One VM by its name.
    pub show: Duration,
    /// All VMs.
    pub list: Duration,
    /// The list as JSON, as the agent writes it.
    pub json: Duration,
    /// The list read from that, as the command does.
    pub parse: Duration,
    /// To take in one record whose signature was looked at.
    pub restore: Duration,
}

/// Measures a book of these records, as the host reads it.
pub fn measure<'a>(pool: Key, own: Key, records: impl Iterator<Item = &'a Signed>) -> Result<Found> {
    let program = std::env::current_exe().context("find this program")?;
    let mut child = Command::new(program)
        .args(["sim", "--resident"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start a process for one book")?;
    let mut input = BufWriter::new(child.stdin.take().context("speak to that process")?);
    input.write_all(&pool.0)?;
    input.write_all(&own.0)?;
    for signed in records {
        let bytes = signed.to_bytes();
        input.write_all(&(bytes.len() as u32).to_be_bytes())?;
        input.write_all(&bytes)?;
    }
    input.into_inner().context("speak to that process")?;
    let output = child.wait_with_output().context("hear of that process")?;
    ensure!(output.status.success(), "the process for one book failed: {}", output.status);
    serde_json::from_slice(&output.stdout).context("read what that process found")
}

/// The child.
pub fn serve() -> Result<()> {
    let mut input = BufReader::new(std::io::stdin().lock());
    let mut key = || -> Result<Key> {
        let mut bytes = [0; 32];
        input.read_exact(&mut bytes)?;
        Ok(rebec_book::key::Name(bytes))
    };
    let mut book = Book::new(key()?).of_host(key()?);
    let before = resident_bytes()?;
    let mut length = [0; 4];
    let mut restore = Duration::ZERO;
    while input.read_exact(&mut length).is_ok() {
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        input.read_exact(&mut bytes)?;
        let signed = Signed::from_bytes(&bytes)?;
        let begun = Instant::now();
        book.restore(signed, Came::InTurn)?;
        restore += begun.elapsed();
    }
    let process_bytes = resident_bytes()?;
    let vms = view::vms(&book);
    let name = vms.get(vms.len() / 2).map(|vm| vm.name.clone()).unwrap_or_default();
    let count = vms.len();
    drop(vms);
    let show = best_of(5, || show(&book, &name));
    let all = list(&book);
    let json = best_of(3, || serde_json::to_vec(&all));
    let bytes = serde_json::to_vec(&all)?;
    drop(all);
    let parse = best_of(3, || serde_json::from_slice::<Vec<VmInfo>>(&bytes).map(|all| all.len()));
    let list = best_of(3, || list(&book));
    let records = book.len();
    let found = Found {
        records,
        vms: count,
        book_bytes: process_bytes.saturating_sub(before),
        process_bytes,
        show,
        list,
        json,
        parse,
        restore: restore / records.max(1) as u32,
    };
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

fn best_of<T>(times: u32, run: impl Fn() -> T) -> Duration {
    let once = || {
        let begun = Instant::now();
        drop(run());
        begun.elapsed()
    };
    (0..times).map(|_| once()).min().unwrap_or_default()
}

fn resident_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc/self/status has no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is no number")?;
    Ok(kib << 10)
}

/// As the agent answers `vm show`.
fn show(book: &Book, name: &str) -> String {
    let names::Meant::One(id) = names::find(book, Kind::VM, name) else { return String::new() };
    let named = |key: &Key| view::host(book, key).map(|host| host.name).unwrap_or_default();
    let domain = |key: Key| book.domain_name(&key);
    let lan = |id: Id| {
        let thing = book.thing(Kind::LAN, id)?;
        let Some(Body::Lan(lan)) = book.get(Kind::LAN, id, thing.home) else { return None };
        Some(book.shown(Kind::LAN, &lan.name, &thing))
    };
    view::vm(book, id).map(|vm| serde_json::to_string(&info(book, vm, &named, &domain, &lan)).unwrap_or_default()).unwrap_or_default()
}

/// As the agent answers `vm ls`: names are looked up once.
fn list(book: &Book) -> Vec<VmInfo> {
    let hosts: BTreeMap<Key, String> = view::hosts(book).into_iter().map(|host| (host.key, host.name)).collect();
    let domains: BTreeMap<Key, String> = view::domains(book).into_iter().map(|domain| (domain.body.key, domain.name)).collect();
    let lans: BTreeMap<Id, String> = view::lans(book).into_iter().map(|lan| (lan.id, lan.name)).collect();
    let named = |key: &Key| hosts.get(key).cloned().unwrap_or_default();
    let domain = |key: Key| domains.get(&key).cloned().unwrap_or_default();
    let lan = |id: Id| lans.get(&id).cloned();
    view::vms(book).into_iter().map(|vm| info(book, vm, &named, &domain, &lan)).collect()
}

fn info(
    book: &Book,
    vm: view::Named<'_, VmBody>,
    named: &impl Fn(&Key) -> String,
    domain: &impl Fn(Key) -> String,
    lan: &impl Fn(Id) -> Option<String>,
) -> VmInfo {
    let seen = view::seen(book, vm.id);
    let holder = seen.map_or(vm.home, |seen| seen.holder);
    let nic = |nic: &rebec_book::record::NicBody| NicInfo {
        lan: lan(nic.lan).unwrap_or_default(),
        mac: rebec_vmm_api::MacAddr(nic.mac).to_string(),
        address: nic.address,
    };
    VmInfo {
        id: vm.id.to_string(),
        state: VmState::Running,
        reason: seen.and_then(|seen| seen.body.reason.clone()),
        host: named(&holder),
        domain: book.domain_of(&holder).map(domain).unwrap_or_default(),
        epoch: seen.map_or(0, |seen| seen.body.epoch),
        image: vm.body.image_name.clone(),
        memory_bytes: vm.body.memory_bytes,
        cpu: "host".into(),
        limits: rebec_api::vm::VmLimits::default(),
        vcpus: vm.body.vcpus,
        labels: vec![],
        host_labels: vec![],
        affinity: vec![],
        anti_affinity: vec![],
        disks: vec![],
        nics: vm.body.nics.iter().map(nic).collect(),
        home: named(&vm.home),
        on_host_loss: if vm.body.keeper.is_some() { OnHostLoss::Restart } else { OnHostLoss::Hold },
        keeper: vm.body.keeper.as_ref().map(named),
        lease: None,
        created: vm.body.created,
        pid: seen.map_or(0, |seen| seen.body.pid),
        name: vm.name,
    }
}
