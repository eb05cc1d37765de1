//! `rebec vm run|ls|show|stop|start|rm`.

use rebec_api::{
    host::HostVerdict,
    vm::{NewVm, ResizeDisk, SetVm, StopVm, VmDisk, VmInfo, VmState},
};
use rebec_vmm_api::{DiskSize, MemorySize, PerSecond};
use serde_json::Value;

use super::session::{Session, now, parse};
use crate::{
    args::{
        DiskCommand, RunOptions, SetOptions, VmCommand,
        values::{ssh_keys, user_data},
    },
    client::path,
    failure::Failure,
    text::{lists, shows, size},
};

/// `rebec vm ...`, but for what has a file of its own.
pub async fn run(session: &Session, command: VmCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        VmCommand::Run(options) => create(session, *options).await,
        VmCommand::Ls => {
            let vms: Vec<VmInfo> = client.get(&path(&["vms"])).await?;
            session.list(&vms, "no VMs; `rebec vm run NAME --image IMAGE` starts one", |vms| lists::vms(vms, now()))
        }
        VmCommand::Show { name } => session.show(&get(session, &name).await?, |vm| shows::vm(vm, now())),
        VmCommand::Start { name, patience } => {
            let answer = client.post_empty(&path(&["vms", &name, "start"])).await;
            let started = match answer {
                Ok(answer) => session.settle_unless(answer, patience).await,
                Err(error) => Err(error.into()),
            };
            match unless_waiting(session, &name, started).await? {
                Some(value) => arrived(session, &name, value).await,
                None => Ok(()),
            }
        }
        VmCommand::Stop { name, timeout, patience } => {
            let stopped = match client.post(&path(&["vms", &name, "stop"]), &StopVm { timeout_s: timeout }).await {
                Ok(answer) => session.settle_unless(answer, patience).await,
                Err(error) => Err(error.into()),
            };
            match unless_waiting(session, &name, stopped).await? {
                Some(value) => session.tell(&parse(value)?, ended),
                None => Ok(()),
            }
        }
        VmCommand::Rm { name } => {
            session.finish(client.delete(&path(&["vms", &name])).await?, &format!("vm {name} is removed, and its disk")).await
        }
        VmCommand::Set(SetOptions { name, limits }) => {
            let rate = |rate: Option<PerSecond>| rate.map(|rate| rate.0);
            let wish = SetVm {
                cpu_quota_percent: limits.cpu_quota.map(|quota| quota.0),
                cpu_weight: limits.cpu_weight,
                net_bits: rate(limits.net),
                disk_requests: rate(limits.disk_iops),
                disk_bytes: rate(limits.disk_bytes),
                memory_bytes: limits.memory.map(MemorySize::bytes),
            };
            let vm: VmInfo = parse(session.settle(client.post(&path(&["vms", &name, "set"]), &wish).await?).await?)?;
            session.tell(&vm, |vm| {
                let limits = shows::limits(&vm.limits).unwrap_or_else(|| "nothing but its size limits it".to_owned());
                format!("vm {}: {limits}", vm.name)
            })
        }
        VmCommand::ResizeDisk { name, size, disk } => {
            let wish = ResizeDisk { bytes: size.bytes(), disk: disk.clone() };
            let vm: VmInfo = parse(session.settle(client.post(&path(&["vms", &name, "resize-disk"]), &wish).await?).await?)?;
            session.tell(&vm, |vm| resized(vm, disk.as_deref()))
        }
        VmCommand::Disk(DiskCommand::Add { vm, name, size }) => {
            let new = VmDisk { name: name.clone(), bytes: size.bytes() };
            let vm: VmInfo = parse(session.settle(client.post(&path(&["vms", &vm, "disks"]), &new).await?).await?)?;
            session.tell(&vm, |vm| format!("vm {0} has the disk {name} from its next start; `rebec vm start {0}`", vm.name))
        }
        VmCommand::Disk(DiskCommand::Rm { vm, name }) => {
            let vm: VmInfo = parse(session.settle(client.delete(&path(&["vms", &vm, "disks", &name])).await?).await?)?;
            session.tell(&vm, |vm| format!("disk {name} of vm {} is removed", vm.name))
        }
        VmCommand::Console { .. } | VmCommand::Logs { .. } | VmCommand::Move(_) | VmCommand::Forward { .. } => Ok(()),
    }
}

/// The VM as the agent knows it.
pub async fn get(session: &Session, name: &str) -> Result<VmInfo, Failure> {
    Ok(session.client.get(&path(&["vms", name])).await?)
}

async fn create(session: &Session, options: RunOptions) -> Result<(), Failure> {
    let mut keys = Vec::new();
    for value in &options.ssh_keys {
        keys.extend(ssh_keys(value).map_err(Failure::Usage)?);
    }
    let request = NewVm {
        name: options.name.clone(),
        image: options.image,
        memory_bytes: options.memory.bytes(),
        memory_max_bytes: options.memory_max.map(MemorySize::bytes),
        vcpus: options.vcpus,
        lans: options.lans,
        host: options.host,
        domain: options.domain,
        disk_bytes: options.disk_size.map(DiskSize::bytes),
        cmdline: options.cmdline,
        hostname: options.hostname,
        ssh_keys: keys,
        user_data: options.user_data.as_deref().map(user_data).transpose().map_err(Failure::Usage)?,
        on_host_loss: options.on_host_loss.into(),
        cpu: Some(options.cpu).filter(|cpu| cpu != "host"),
        labels: options.labels,
        host_labels: options.host_labels,
        affinity: options.affinity,
        anti_affinity: options.anti_affinity,
    };
    if options.explain {
        let verdicts: Vec<HostVerdict> = parse(session.settle(session.client.post(&path(&["explain"]), &request).await?).await?)?;
        return session.list(&verdicts, "no host is in question; `rebec host ls` lists those there are", lists::verdicts);
    }
    let answer = session.client.post(&path(&["vms"]), &request).await?;
    match session.settle_unless(answer, options.patience).await? {
        Some(value) => arrived(session, &options.name, value).await,
        None => Ok(()),
    }
}

/// Says where a VM is that was started.
async fn arrived(session: &Session, name: &str, made: Value) -> Result<(), Failure> {
    // What the job says was true when its work ended; the VM is asked for as it is.
    let vm = match get(session, name).await {
        Ok(vm) => vm,
        Err(failure) if made.is_null() => return Err(failure),
        Err(_) => parse(made)?,
    };
    session.tell(&vm, shows::whereabouts)
}

/// How large a disk is now.
fn resized(vm: &VmInfo, disk: Option<&str>) -> String {
    let found = vm.disks.iter().find(|found| disk.is_none_or(|disk| found.name == disk));
    let now = found.map(|disk| format!("disk {} has {}", disk.name, size(disk.bytes))).unwrap_or_default();
    format!("vm {}: {now}; partitions and file systems on it are the guest's to grow (cloud images do so when they start)", vm.name)
}

/// How a VM ended.
fn ended(vm: &VmInfo) -> String {
    let how = vm.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    format!("vm {0} is stopped{how}; `rebec vm start {0}` starts it from its disk", vm.name)
}

/// A refusal because the VM's ownership waits is told apart from other failures, with for whom it waits.
pub async fn unless_waiting<T>(session: &Session, name: &str, outcome: Result<T, Failure>) -> Result<T, Failure> {
    let Err(failure) = outcome else { return outcome };
    if matches!(failure, Failure::LeftAlone(_) | Failure::Output(_)) {
        return Err(failure);
    }
    match get(session, name).await {
        Ok(vm) if vm.state == VmState::Waiting => Err(Failure::Waiting(waiting(&vm))),
        _ => Err(failure),
    }
}

/// For whom a VM waits.
pub fn waiting(vm: &VmInfo) -> String {
    let why = vm.reason.as_deref().unwrap_or("for the other side of its move");
    format!("vm `{}` waits: {why}; it runs on by itself once that side answers, and `rebec vm show {}` says how it is", vm.name, vm.name)
}
