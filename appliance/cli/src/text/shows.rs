//! What the `show` and `status` commands print: a name and a value a line.

use rebec_api::{
    host::HostInfo,
    image::{ImageInfo, Part},
    job::Job,
    lan::{LanInfo, NarrowPath},
    pool::PoolStatus,
    vm::{LeaseState, OnHostLoss, VmInfo, VmLimits},
};

use super::{
    age, count,
    lists::{host_state, parts, ports},
    report::percent,
    size,
    table::pairs,
    word,
};

/// `vm show`.
pub fn vm(vm: &VmInfo, now: u64) -> String {
    let mut lines = vec![("name", vm.name.clone()), ("state", word(&vm.state))];
    lines.extend(vm.reason.iter().map(|reason| ("", reason.clone())));
    lines.extend([
        ("host", format!("{} (domain {})", vm.host, vm.domain)),
        ("home", vm.home.clone()),
        ("epoch", vm.epoch.to_string()),
        ("image", vm.image.clone()),
        ("memory", size(vm.memory_bytes)),
        ("vcpus", vm.vcpus.to_string()),
        ("cpu", vm.cpu.clone()),
    ]);
    let placing =
        [("labels", &vm.labels), ("only on hosts with", &vm.host_labels), ("near", &vm.affinity), ("apart from", &vm.anti_affinity)];
    lines.extend(placing.into_iter().filter(|(_, words)| !words.is_empty()).map(|(name, words)| (name, words.join(", "))));
    lines.extend(limits(&vm.limits).map(|limits| ("limits", limits)));
    let disks = vm.disks.iter().enumerate();
    lines.extend(disks.map(|(index, disk)| (if index == 0 { "disks" } else { "" }, format!("{} {}", disk.name, size(disk.bytes)))));
    let nics = vm.nics.iter().enumerate();
    lines.extend(nics.map(|(index, nic)| (if index == 0 { "lans" } else { "" }, format!("{} {} {}", nic.lan, nic.address, nic.mac))));
    let loss = match vm.on_host_loss {
        OnHostLoss::Hold => "held until its host is back",
        OnHostLoss::Restart => "started again elsewhere, from its image",
    };
    lines.push(("when its host is lost", loss.to_owned()));
    lines.extend(vm.keeper.iter().map(|keeper| ("keeper", keeper.clone())));
    lines.extend(vm.lease.map(|lease| ("lease", lease_words(lease).to_owned())));
    lines.push(("age", age(vm.created, now)));
    lines.extend((vm.pid != 0).then(|| ("process", vm.pid.to_string())));
    lines.push(("id", vm.id.clone()));
    pairs(&lines)
}

/// `image show`.
pub fn image(image: &ImageInfo) -> String {
    let part = |part: &Part| format!("{} ({})", part.digest, size(part.bytes));
    let mut lines = vec![("name", image.name.clone())];
    lines.extend(image.starts.iter().map(|starts| ("starts", starts.clone())));
    lines.extend(image.kernel.iter().map(|kernel| ("kernel", part(kernel))));
    lines.extend(image.initramfs.iter().map(|initramfs| ("initramfs", part(initramfs))));
    lines.extend(image.disk.iter().map(|disk| ("disk", format!("{}, stored as {}", size(image.disk_bytes), part(disk)))));
    lines.extend(
        (!image.cmdline.is_empty()).then(|| (if image.kernel.is_some() { "cmdline" } else { "cmdline, added" }, image.cmdline.clone())),
    );
    lines.extend([("held by", image.held_by.join(", ")), ("vms", image.vms.to_string())]);
    lines.extend((!image.domains.is_empty()).then(|| ("shared with", image.domains.join(", "))));
    pairs(&lines)
}

/// What a VM may take of its host; none where nothing limits it.
pub fn limits(limits: &VmLimits) -> Option<String> {
    let VmLimits { cpu_quota_percent, cpu_weight, net_bits, disk_requests, disk_bytes, memory_bytes, memory_max_bytes } = limits;
    let words = [
        cpu_quota_percent.map(|percent| format!("{percent} % of a processor")),
        cpu_weight.map(|weight| format!("weight {weight}")),
        net_bits.map(|bits| format!("{} kbit/s a NIC and way", bits / 1000)),
        disk_requests.map(|requests| format!("{requests} requests/s a disk")),
        disk_bytes.map(|bytes| format!("{} kB/s a disk", bytes / 1000)),
        memory_bytes.map(|bytes| format!("{} MiB of memory now", bytes >> 20)),
        memory_max_bytes.map(|bytes| format!("{} MiB of memory at most", bytes >> 20)),
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    (!words.is_empty()).then(|| words.join(", "))
}

fn lease_words(lease: LeaseState) -> &'static str {
    match lease {
        LeaseState::Held => "held: the keeper answers",
        LeaseState::RanOut => "ran out: the VM stands still until the keeper answers",
    }
}

/// One sentence on where a VM is and how it is reached.
pub fn whereabouts(vm: &VmInfo) -> String {
    let addresses: Vec<String> = vm.nics.iter().map(|nic| format!("{} on {}", nic.address, nic.lan)).collect();
    let at = format!("vm {} is {} on {}", vm.name, word(&vm.state), vm.host);
    if addresses.is_empty() { at } else { format!("{at}: {}", addresses.join(", ")) }
}

/// `host show`.
pub fn host(host: &HostInfo) -> String {
    let used = |used: u64, all: u64| format!("{} of {} used", size(used), size(all));
    let mut lines = vec![
        ("name", host.name.clone()),
        ("domain", host.domain.clone()),
        ("state", host_state(host)),
        ("key", host.key.clone()),
        ("root's role", word(&host.role)),
        ("version", host.version.clone()),
        ("vms", host.no_kvm.as_ref().map_or_else(|| host.vms.to_string(), |why| format!("none can run: {why}"))),
        ("cpus", host.cpus.to_string()),
        ("memory for VMs", used(host.memory_used_bytes, host.memory_bytes)),
        ("disk", used(host.disk_used_bytes, host.disk_bytes)),
        ("state survives", if host.durable { "a reboot".to_owned() } else { "until the next reboot only".to_owned() }),
    ];
    lines.extend((!host.labels.is_empty()).then(|| ("labels", host.labels.join(", "))));
    let protocols = host.protocols.iter();
    lines.extend(protocols.map(|speaks| ("protocols", format!("hosts {}, moves {}, VMMs {}", speaks.peer, speaks.moves, speaks.control))));
    lines.extend(host.cpu.iter().flat_map(|cpu| {
        let level = cpu.level.as_deref().unwrap_or("below x86-64-v2");
        [("processor", level.to_owned()), ("its features", cpu.features.join(" "))]
    }));
    lines.extend(host.audit.iter().map(|mark| ("audit log", mark.to_string())));
    lines.extend(host.clock.iter().map(|clock| ("clock", clock.clone())));
    let addresses = host.addresses.iter().enumerate();
    lines.extend(addresses.map(|(index, address)| (if index == 0 { "addresses" } else { "" }, address.clone())));
    pairs(&lines)
}

/// `pool status`.
pub fn pool(status: &PoolStatus) -> String {
    let domain = status.domain.as_ref().map(|domain| format!(" (domain {domain})")).unwrap_or_default();
    let mut lines = vec![("host", format!("{}{domain}", status.host))];
    match &status.pool {
        Some(pool) => lines.extend([
            ("pool", pool.clone()),
            ("key", status.key.clone().unwrap_or_default()),
            ("domains", status.domains.to_string()),
            ("hosts", format!("{} known, {} answering", status.hosts, status.hosts_reachable)),
            ("vms", status.vms.to_string()),
        ]),
        None => lines.push(("pool", "none".to_owned())),
    }
    lines.push(("join", status.join.clone()));
    lines.extend(status.versions.iter().map(|versions| ("versions", versions.clone())));
    pairs(&lines)
}

/// `lan show`: the LAN, and as tables whose its addresses are and its ports.
pub fn lan(lan: &LanInfo) -> String {
    let rate = lan.port_bits.map(|bits| ("rate", format!("{} kbit/s a port and way", bits / 1000)));
    let mut lines = vec![
        ("name", lan.name.clone()),
        ("range", lan.range.clone()),
        ("vni", lan.vni.to_string()),
        ("mtu", lan.mtu.to_string()),
        ("sealed", if lan.sealed { "yes" } else { "no: everybody on the way can read and forge its frames" }.to_owned()),
        ("home", lan.home.clone()),
        ("id", lan.id.clone()),
        ("ports", count(lan.ports.len().try_into().unwrap_or(u64::MAX), "port")),
    ];
    lines.extend(rate);
    let mut text = pairs(&lines);
    if !lan.parts.is_empty() {
        text.push('\n');
        text.push_str(&parts(&lan.parts));
    }
    if !lan.ports.is_empty() {
        text.push('\n');
        text.push_str(&ports(&lan.ports));
    }
    for NarrowPath { host, bytes, needs } in &lan.narrow {
        let path = format!(
            "\nthe path from here to {host} carries packets of {bytes} bytes: those of this LAN, of up to {needs}, are cut in two on the way"
        );
        text.push_str(&path);
        text.push_str("; if they are lost there, give the route to it an MTU\n");
    }
    text
}

/// `job show`.
pub fn job(job: &Job) -> String {
    let mut lines = vec![
        ("id", job.id.clone()),
        ("what", job.what.clone()),
        ("state", word(&job.state)),
        ("phase", job.progress.phase.clone()),
        ("done", percent(&job.progress)),
    ];
    if let Some(error) = &job.error {
        lines.push(("error", error.message.clone()));
        lines.extend(error.details.iter().map(|detail| ("", detail.clone())));
    }
    pairs(&lines)
}
