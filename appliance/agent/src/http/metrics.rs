//! `GET /v1/metrics`: what this host, its agent and its VMs count, for Prometheus.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Result;
use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt as _, stream};
use rebec_host::{control::Control, meters};
use rebec_vmm_api::metrics::{self, Family};
use serde::Serialize;

use super::{answer::Failure, shown};
use crate::{
    agent::Agent,
    facts, stall,
    vm::{LocalVm, room},
};

/// A VMM that has not answered by then is left out: the numbers of all others do not wait for one that hangs.
const PATIENCE: Duration = Duration::from_secs(2);
/// VMMs that are asked at a time.
const ASKED_AT_ONCE: usize = 16;

/// `GET /v1/metrics`
pub async fn show(State(agent): State<Arc<Agent>>) -> Result<Response, Failure> {
    let vms = agent.vms.all();
    let asked: Vec<_> = stream::iter(vms).map(|vm| of_vm(agent.clone(), vm)).buffered(ASKED_AT_ONCE).collect().await;
    let own = stall::may(|| [of_agent(&agent), of_host(&agent), of_pool(&agent)]);
    let families = metrics::join(own.into_iter().chain(asked).flatten());
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::text(&families)).into_response())
}

/// The names that Prometheus' own clients give a process.
fn of_agent(agent: &Agent) -> Vec<Family> {
    let audit = agent.audit.told().map_or(0, |head| head.seq);
    let mut families = vec![
        Family::gauge("rebec_build_info", "1 for the version that the agent is of.").with(&[("version", env!("CARGO_PKG_VERSION"))], 1.0),
        Family::gauge("process_open_fds", "Descriptors that the agent has open.").with(&[], meters::open_descriptors() as f64),
        Family::counter("rebec_audit_rows_total", "Rows of the audit log that others were told of.").with(&[], audit as f64),
        tally("rebec_jobs", "Jobs that this host remembers, by their state.", agent.jobs.all().iter().map(|job| word(&job.state))),
    ];
    if let Some(taken) = meters::taken(std::process::id()) {
        families.push(Family::counter("process_cpu_seconds_total", "Processor time that the agent has taken.").with(&[], taken.cpu_s));
        let resident = Family::gauge("process_resident_memory_bytes", "Memory of the agent that is in RAM.");
        families.push(resident.with(&[], taken.resident_bytes as f64));
    }
    families
}

fn of_host(agent: &Agent) -> Vec<Family> {
    let gauge = |name: &str, help: &str, value: u64| Family::gauge(name, help).with(&[], value as f64);
    let (disk, disk_free) = agent.host.disk_bytes();
    let states = agent.vms.all().into_iter().map(|vm| word(&shown::state_of(vm.seen().state)));
    vec![
        gauge("rebec_host_cpus", "Processors of the machine.", facts::cpus().into()),
        gauge("rebec_host_memory_bytes", "Memory that VMs may have, all together.", agent.host.memory_bytes()),
        gauge("rebec_host_memory_promised_bytes", "Memory that VMs of this host have been promised.", room::promised_bytes(&agent.vms)),
        gauge("rebec_host_disk_bytes", "Size of the file system that the agent's folder is on.", disk),
        gauge("rebec_host_disk_free_bytes", "What is free of it.", disk_free),
        gauge("rebec_host_kvm", "1 where VMs can run, 0 where KVM is missing.", facts::no_kvm().is_none().into()),
        tally("rebec_vms", "VMs of this host, by their state.", states),
        meters::machine_pressure(),
    ]
}

fn of_pool(agent: &Agent) -> Vec<Family> {
    let records = agent.knowledge.read(|book| book.len());
    let Some(records) = records else { return vec![] };
    let answers = |host: &rebec_book::Key| if agent.peers.answers(host) { "answering" } else { "silent" };
    let peers = agent.knowledge.peers();
    vec![
        Family::gauge("rebec_book_records", "Records of the pool that this host knows.").with(&[], records as f64),
        tally("rebec_pool_hosts", "Other hosts of the pool that this host knows.", peers.iter().map(|peer| answers(&peer.key).to_owned())),
    ]
}

/// What the VMM says, and what the kernel says of it; none of a VM that does not run.
async fn of_vm(agent: Arc<Agent>, vm: Arc<LocalVm>) -> Vec<Family> {
    let pid = vm.seen().pid;
    if pid == 0 {
        return vec![];
    }
    let mut families = match tokio::time::timeout(PATIENCE, vm.talk(Control::metrics)).await {
        Ok(Ok(families)) => families,
        // One of an earlier version does not count.
        Ok(Err(error)) => {
            log::debug!("vm {}: what it counts: {error:#}", vm.name());
            vec![]
        }
        Err(_) => vec![],
    };
    families.extend(stall::may(|| of_process(&agent, &vm, pid)));
    let (name, id) = (vm.name(), vm.id().to_string());
    families.into_iter().map(|family| family.belongs(&[("vm", &name), ("id", &id)])).collect()
}

fn of_process(agent: &Agent, vm: &LocalVm, pid: u32) -> Vec<Family> {
    let mut families = vec![];
    if let Some(taken) = meters::taken(pid) {
        let cpu = Family::counter("rebec_vm_cpu_seconds_total", "Processor time that the VM's process has taken, its guest's among it.");
        let resident = Family::gauge("rebec_vm_resident_memory_bytes", "Memory of the VM's process that is in RAM, its guest's among it.");
        families.extend([cpu.with(&[], taken.cpu_s), resident.with(&[], taken.resident_bytes as f64)]);
    }
    families.extend(agent.host.programs().limits.group(&vm.id()).map(|group| meters::of_group(&group)).unwrap_or_default());
    families
}

/// How many there are of each.
fn tally(name: &str, help: &str, of: impl Iterator<Item = String>) -> Family {
    let mut counts = BTreeMap::<String, u64>::new();
    of.for_each(|state| *counts.entry(state).or_default() += 1);
    let family = Family::gauge(name, help);
    counts.iter().fold(family, |family, (state, count)| family.with(&[("state", state)], *count as f64))
}

/// What a state is called where it is written.
fn word(state: &impl Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_else(|| "other".to_owned())
}
