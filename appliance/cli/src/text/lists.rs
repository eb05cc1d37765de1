//! The tables of the `ls` commands.

use rebec_api::{
    audit::AuditRow,
    host::{HostInfo, HostState, HostVerdict, RoadInfo},
    image::ImageInfo,
    job::Job,
    lan::{LanInfo, PortInfo, RangeInfo},
    pool::{DomainInfo, Invitation},
    token::Token,
    user::User,
    vm::VmInfo,
};

use super::{age, report::percent, size, span, table::table, until, utc, word};

/// `vm ls`.
pub fn vms(vms: &[VmInfo], now: u64) -> String {
    let row = |vm: &VmInfo| {
        let addresses: Vec<String> = vm.nics.iter().map(|nic| nic.address.to_string()).collect();
        // A host of another domain has that in its name.
        let at = if vm.host.contains('/') { vm.host.clone() } else { format!("{}/{}", vm.domain, vm.host) };
        let memory = size(vm.memory_bytes);
        let state = word(&vm.state);
        [vm.name.clone(), state, at, vm.image.clone(), memory, vm.vcpus.to_string(), addresses.join(","), age(vm.created, now)]
    };
    table(["NAME", "STATE", "HOST", "IMAGE", "MEMORY", "VCPUS", "ADDRESS", "AGE"], &rows(vms, row))
}

/// `vm run --explain`: the host that would be taken first.
pub fn verdicts(verdicts: &[HostVerdict]) -> String {
    let row = |verdict: &HostVerdict| {
        let takes = match (verdict.chosen, verdict.takes) {
            (true, _) => "goes there",
            (false, true) => "could",
            (false, false) => "no",
        };
        [verdict.host.clone(), verdict.domain.clone(), takes.to_owned(), verdict.why.clone()]
    };
    table(["HOST", "DOMAIN", "VM", "BECAUSE"], &rows(verdicts, row))
}

/// `host ls`. A star marks the host that answered.
pub fn hosts(hosts: &[HostInfo]) -> String {
    let row = |host: &HostInfo| {
        let name = format!("{}{}", host.name, if host.this { "*" } else { "" });
        let used = |used: u64, all: u64| format!("{} of {}", size(used), size(all));
        let memory = used(host.memory_used_bytes, host.memory_bytes);
        let disk = used(host.disk_used_bytes, host.disk_bytes);
        [name, host.domain.clone(), host_state(host), host.vms.to_string(), host.cpus.to_string(), memory, disk, host.version.clone()]
    };
    table(["NAME", "DOMAIN", "STATE", "VMS", "CPUS", "MEMORY USED", "DISK USED", "VERSION"], &rows(hosts, row))
}

/// `host roads`.
pub fn roads(roads: &[RoadInfo]) -> String {
    let dash = || "-".to_owned();
    let row = |road: &RoadInfo| {
        let state = if road.silent_s > 0 { format!("silent {}", span(road.silent_s)) } else { "answers".to_owned() };
        let from = road.from.clone().map_or_else(String::new, |from| format!("{from} to "));
        let way = road.to.as_ref().map_or_else(dash, |to| format!("{from}{to}"));
        let rtt = road.rtt_us.map_or_else(dash, |us| format!("{:.1} ms", us as f64 / 1000.0));
        let lost = format!("{} of {}", road.lost_packets, road.sent_packets);
        let packet = road.packet_bytes.map_or_else(dash, |bytes| bytes.to_string());
        [road.host.clone(), state, way, rtt, lost, packet, road.problem.clone().unwrap_or_default()]
    };
    table(["TO", "STATE", "WAY", "RTT", "LOST", "PACKET", "PROBLEM"], &rows(roads, row))
}

/// A host's state, with how long it has been silent or why it runs no VMs.
pub fn host_state(host: &HostInfo) -> String {
    match host.state {
        HostState::Silent => format!("silent {}", span(host.silent_s)),
        HostState::Ready if host.no_kvm.is_some() => "ready, no KVM".to_owned(),
        state => word(&state),
    }
}

/// `domain ls`. A star marks the domain of the host that answered.
pub fn domains(domains: &[DomainInfo]) -> String {
    let row = |domain: &DomainInfo| {
        let name = format!("{}{}", domain.name, if domain.own { "*" } else { "" });
        [name, domain.hosts.to_string(), domain.key.clone()]
    };
    table(["NAME", "HOSTS", "KEY"], &rows(domains, row))
}

/// `invitation ls`.
pub fn invitations(invitations: &[Invitation], now: u64) -> String {
    let row = |open: &Invitation| {
        let admits = open.founds.as_ref().map_or_else(|| "hosts".to_owned(), |domain| format!("domain {domain}"));
        [open.id.clone(), admits, open.uses_left.to_string(), until(open.expires, now)]
    };
    table(["ID", "ADMITS", "USES LEFT", "EXPIRES"], &rows(invitations, row))
}

/// `image ls`.
pub fn images(images: &[ImageInfo]) -> String {
    let row = |image: &ImageInfo| {
        let parts = [image.kernel.as_ref(), image.initramfs.as_ref(), image.disk.as_ref()];
        let stored: u64 = parts.into_iter().flatten().map(|part| part.bytes).fold(0, u64::saturating_add);
        let disk = image.disk.as_ref().map(|_| size(image.disk_bytes)).unwrap_or_default();
        [image.name.clone(), size(stored), disk, image.vms.to_string(), image.held_by.join(",")]
    };
    table(["NAME", "STORED", "DISK", "VMS", "HELD BY"], &rows(images, row))
}

/// `lan ls`.
pub fn lans(lans: &[LanInfo]) -> String {
    let row = |lan: &LanInfo| {
        let ports = lan.ports.len().to_string();
        [lan.name.clone(), lan.range.clone(), lan.vni.to_string(), lan.mtu.to_string(), ports, lan.home.clone()]
    };
    table(["NAME", "RANGE", "VNI", "MTU", "PORTS", "HOME"], &rows(lans, row))
}

/// The parts of `lan show`.
pub fn parts(parts: &[RangeInfo]) -> String {
    let all = |part: &RangeInfo| u64::from(u32::from(part.last)) + 1 - u64::from(u32::from(part.first));
    let row = |part: &RangeInfo| [format!("{} to {}", part.first, part.last), part.host.clone(), format!("{} of {}", part.used, all(part))];
    table(["ADDRESSES", "OF HOST", "USED"], &rows(parts, row))
}

/// The ports of `lan show`.
pub fn ports(ports: &[PortInfo]) -> String {
    let row = |port: &PortInfo| [port.vm.clone(), port.address.to_string(), port.mac.clone(), port.host.clone(), port.endpoint.clone()];
    table(["VM", "ADDRESS", "MAC", "HOST", "ENDPOINT"], &rows(ports, row))
}

/// `job ls`.
pub fn jobs(jobs: &[Job]) -> String {
    let row = |job: &Job| {
        let how = job.error.as_ref().map_or_else(|| job.progress.phase.clone(), |error| error.message.clone());
        [job.id.clone(), word(&job.state), percent(&job.progress), job.what.clone(), how]
    };
    table(["ID", "STATE", "DONE", "WHAT", "HOW"], &rows(jobs, row))
}

/// `token ls`.
pub fn tokens(tokens: &[Token], now: u64) -> String {
    let row = |token: &Token| {
        let expires = token.expires.map_or_else(|| "never".to_owned(), |expires| until(expires, now));
        [token.name.clone(), word(&token.role), expires, age(token.created, now)]
    };
    table(["NAME", "ROLE", "EXPIRES", "AGE"], &rows(tokens, row))
}

/// `user ls`.
pub fn users(users: &[User], now: u64) -> String {
    let row = |user: &User| {
        let expires = user.expires.map_or_else(|| "never".to_owned(), |expires| until(expires, now));
        [user.name.clone(), word(&user.role), expires, user.key.clone()]
    };
    table(["NAME", "ROLE", "EXPIRES", "KEY"], &rows(users, row))
}

/// `audit`.
pub fn audit(rows_of: &[AuditRow]) -> String {
    let row = |row: &AuditRow| {
        let who = who(row);
        let about = row.about.as_ref().map(|id| id.chars().take(8).collect()).unwrap_or_default();
        let decided = row.refused.clone().unwrap_or_else(|| if row.asked == "dropped" { String::new() } else { "granted".to_owned() });
        let times = row.times.map(|times| times.to_string()).unwrap_or_default();
        [row.seq.to_string(), utc(row.time), who, row.asked.clone(), about, times, decided]
    };
    table(["ROW", "TIME", "WHO", "ASKED", "ABOUT", "TIMES", "DECIDED"], &rows(rows_of, row))
}

/// Who asked: `anna (user)`, `root@a1 (admin)`, `token eyes (viewer)`, a host by the first digits of its key; and through which host.
fn who(row: &AuditRow) -> String {
    let short = |key: &String| key.chars().take(8).collect::<String>();
    if let Some(host) = &row.host {
        return format!("host {}", short(host));
    }
    let token = row.token.as_ref().map(|token| format!("token {token}"));
    let at = row.user.as_ref().map(|user| user.trim_start_matches("root@"));
    let name = match (token, at) {
        (Some(token), Some(at)) => Some(format!("{token} of {at}")),
        (token, _) => token.or_else(|| row.user.clone()),
    };
    let role = row.role.as_ref().map(|role| format!("({role})"));
    let via = row.via.as_ref().map(|via| format!("via {}", short(via)));
    [name, role, via].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn rows<T, const COLUMNS: usize>(things: &[T], row: impl Fn(&T) -> [String; COLUMNS]) -> Vec<[String; COLUMNS]> {
    things.iter().map(row).collect()
}
