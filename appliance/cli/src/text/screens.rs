//! Every screen, letter by letter.

use rebec_api::{
    ApiError, ErrorCode,
    audit::AuditRow,
    host::{HostInfo, HostRole, HostState, Processor, Protocols, RoadInfo},
    image::{ImageInfo, Part},
    job::{Job, JobProgress, JobState},
    lan::{LanInfo, NarrowPath, PortInfo, RangeInfo},
    pool::{DomainInfo, Invitation, PoolStatus},
    token::{Role, Token},
    vm::{NicInfo, OnHostLoss, VmDisk, VmInfo, VmLimits, VmState},
};
use rebec_vmm_api::{MoveReport, Outcome, UnitCounts};

use super::{lists, report, shows};

const NOW: u64 = 1_000_000;

fn vm() -> VmInfo {
    VmInfo {
        name: "web".into(),
        id: "ab".repeat(16),
        state: VmState::Running,
        reason: None,
        host: "a1".into(),
        domain: "alpha".into(),
        epoch: 3,
        image: "debian".into(),
        memory_bytes: 512 << 20,
        vcpus: 2,
        cpu: "pool".into(),
        labels: vec!["app=web".into()],
        host_labels: vec![],
        affinity: vec![],
        anti_affinity: vec!["app=web".into()],
        limits: VmLimits { cpu_quota_percent: Some(150), net_bits: Some(200_000_000), ..VmLimits::default() },
        disks: vec![VmDisk { name: "root".into(), bytes: 20 << 30 }],
        nics: vec![NicInfo { lan: "office".into(), mac: "52:54:00:00:00:01".into(), address: "10.5.0.2".parse().unwrap() }],
        home: "a1".into(),
        on_host_loss: OnHostLoss::Hold,
        keeper: None,
        lease: None,
        created: NOW - 7200,
        pid: 42,
    }
}

fn host() -> HostInfo {
    HostInfo {
        name: "a1".into(),
        domain: "alpha".into(),
        key: "cd".repeat(32),
        role: HostRole::Operator,
        state: HostState::Ready,
        silent_s: 0,
        addresses: vec!["10.0.0.1:7118".into(), "[fe80::1]:7118".into()],
        clock: Some("by 10.0.0.3, was off by less than 1ms".into()),
        no_kvm: None,
        cpus: 4,
        memory_bytes: 6 << 30,
        memory_used_bytes: 512 << 20,
        disk_bytes: 20 << 30,
        disk_used_bytes: 3 << 29,
        vms: 1,
        durable: true,
        version: "0.1.0".into(),
        labels: vec!["rack=r1".into()],
        protocols: Some(Protocols { peer: "1".into(), moves: "3-4".into(), control: "1".into() }),
        cpu: Some(Processor { level: Some("x86-64-v2".into()), features: vec!["sse4_2".into(), "popcnt".into()], set: String::new() }),
        audit: None,
        this: true,
    }
}

/// With one port.
pub fn lan() -> LanInfo {
    let port = PortInfo {
        vm: "web".into(),
        host: "a1".into(),
        mac: "52:54:00:00:00:01".into(),
        address: "10.5.0.2".parse().unwrap(),
        endpoint: String::new(),
    };
    LanInfo {
        name: "office".into(),
        id: "ef".repeat(16),
        vni: 7,
        range: "10.5.0.0/24".into(),
        mtu: 1400,
        sealed: true,
        port_bits: None,
        home: "a1".into(),
        domains: vec![],
        parts: vec![RangeInfo { host: "a1".into(), first: "10.5.0.8".parse().unwrap(), last: "10.5.0.11".parse().unwrap(), used: 1 }],
        ports: vec![port],
        narrow: vec![],
    }
}

fn job() -> Job {
    let progress = JobProgress { phase: "round 2".into(), done_bytes: 1 << 20, total_bytes: 4 << 20 };
    Job {
        id: "j1".into(),
        what: "move vm web to host b2".into(),
        state: JobState::Running,
        progress,
        error: None,
        result: None,
        interrupted: false,
    }
}

#[test]
fn vms() {
    let waiting = VmInfo { name: "database".into(), state: VmState::Waiting, nics: vec![], memory_bytes: 3 << 29, created: NOW, ..vm() };
    assert_eq!(
        lists::vms(&[vm(), waiting], NOW),
        "NAME      STATE    HOST      IMAGE   MEMORY   VCPUS  ADDRESS   AGE\n\
         web       running  alpha/a1  debian  512 MiB  2      10.5.0.2  2h\n\
         database  waiting  alpha/a1  debian  1.5 GiB  2      -         0s\n"
    );
    let waiting = VmInfo { state: VmState::Waiting, reason: Some("for host b1 to take it up".into()), pid: 0, ..vm() };
    assert_eq!(
        shows::vm(&waiting, NOW),
        "name                   web\n\
         state                  waiting\n\
         \x20                      for host b1 to take it up\n\
         host                   a1 (domain alpha)\n\
         home                   a1\n\
         epoch                  3\n\
         image                  debian\n\
         memory                 512 MiB\n\
         vcpus                  2\n\
         cpu                    pool\n\
         labels                 app=web\n\
         apart from             app=web\n\
         limits                 150 % of a processor, 200000 kbit/s a NIC and way\n\
         disks                  root 20 GiB\n\
         lans                   office 10.5.0.2 52:54:00:00:00:01\n\
         when its host is lost  held until its host is back\n\
         age                    2h\n\
         id                     abababababababababababababababab\n"
    );
    assert_eq!(shows::whereabouts(&vm()), "vm web is running on a1: 10.5.0.2 on office");
}

#[test]
fn roads_to_other_hosts() {
    let road = RoadInfo {
        host: "a2".into(),
        silent_s: 0,
        from: Some("10.0.0.1".into()),
        to: Some("10.0.0.2:7117".into()),
        rtt_us: Some(430),
        sent_packets: 120,
        lost_packets: 0,
        packet_bytes: Some(1500),
        problem: None,
    };
    let problem = Some("is it on? UDP must reach it at one of 10.0.0.3:7117".into());
    let silent =
        RoadInfo { host: "beta/b1".into(), silent_s: 70, from: None, to: None, rtt_us: None, packet_bytes: None, problem, ..road.clone() };
    assert_eq!(
        lists::roads(&[road, RoadInfo { sent_packets: 0, ..silent }]),
        "TO       STATE      WAY                        RTT     LOST      PACKET  PROBLEM\n\
         a2       answers    10.0.0.1 to 10.0.0.2:7117  0.4 ms  0 of 120  1500    -\n\
         beta/b1  silent 1m  -                          -       0 of 0    -       is it on? UDP must reach it at one of 10.0.0.3:7117\n"
    );
}

#[test]
fn hosts_and_domains() {
    let silent = HostInfo { name: "b1".into(), domain: "beta".into(), state: HostState::Silent, silent_s: 180, this: false, ..host() };
    let bare = HostInfo { name: "a2".into(), no_kvm: Some("no /dev/kvm".into()), vms: 0, this: false, ..host() };
    assert_eq!(
        lists::hosts(&[host(), silent, bare.clone()]),
        "NAME  DOMAIN  STATE          VMS  CPUS  MEMORY USED       DISK USED          VERSION\n\
         a1*   alpha   ready          1    4     512 MiB of 6 GiB  1.5 GiB of 20 GiB  0.1.0\n\
         b1    beta    silent 3m      1    4     512 MiB of 6 GiB  1.5 GiB of 20 GiB  0.1.0\n\
         a2    alpha   ready, no KVM  0    4     512 MiB of 6 GiB  1.5 GiB of 20 GiB  0.1.0\n"
    );
    assert_eq!(
        shows::host(&bare),
        format!(
            "name            a2\n\
             domain          alpha\n\
             state           ready, no KVM\n\
             key             {}\n\
             root's role     operator\n\
             version         0.1.0\n\
             vms             none can run: no /dev/kvm\n\
             cpus            4\n\
             memory for VMs  512 MiB of 6 GiB used\n\
             disk            1.5 GiB of 20 GiB used\n\
             state survives  a reboot\n\
             labels          rack=r1\n\
             protocols       hosts 1, moves 3-4, VMMs 1\n\
             processor       x86-64-v2\n\
             its features    sse4_2 popcnt\n\
             clock           by 10.0.0.3, was off by less than 1ms\n\
             addresses       10.0.0.1:7118\n\
             \x20               [fe80::1]:7118\n",
            "cd".repeat(32)
        )
    );
    let domain = DomainInfo { name: "alpha".into(), key: "ab".into(), hosts: 2, own: true };
    assert_eq!(lists::domains(&[domain]), "NAME    HOSTS  KEY\nalpha*  2      ab\n");
}

#[test]
fn the_pool_and_its_invitations() {
    let alone = PoolStatus {
        pool: None,
        key: None,
        host: "a1".into(),
        host_key: String::new(),
        domain: None,
        domains: 0,
        hosts: 0,
        hosts_reachable: 0,
        vms: 0,
        join: "belongs to no pool".into(),
        versions: None,
    };
    assert_eq!(shows::pool(&alone), "host  a1\npool  none\njoin  belongs to no pool\n");
    let member = PoolStatus {
        pool: Some("lab".into()),
        key: Some("ab".into()),
        domain: Some("alpha".into()),
        domains: 2,
        hosts: 3,
        hosts_reachable: 2,
        join: "member".into(),
        versions: Some("0.2.0 on a2; to be upgraded: 0.1.0 on a1 b1".into()),
        ..alone
    };
    assert_eq!(
        shows::pool(&member),
        "host      a1 (domain alpha)\npool      lab\nkey       ab\ndomains   2\nhosts     3 known, 2 answering\nvms       0\njoin      member\nversions  0.2.0 on a2; to be upgraded: 0.1.0 on a1 b1\n"
    );
    let open =
        |id: &str, founds: Option<&str>, expires| Invitation { id: id.into(), founds: founds.map(str::to_owned), expires, uses_left: 1 };
    assert_eq!(
        lists::invitations(&[open("i1", None, NOW + 3600), open("i2", Some("beta"), NOW)], NOW),
        "ID  ADMITS       USES LEFT  EXPIRES\ni1  hosts        1          in 1h\ni2  domain beta  1          expired\n"
    );
    let token = |name: &str, role, expires| Token { name: name.into(), created: NOW - 5, role, expires };
    let tokens = [token("laptop", Role::Admin, None), token("guest", Role::Viewer, Some(NOW + 3600)), token("old", Role::User, Some(NOW))];
    assert_eq!(
        lists::tokens(&tokens, NOW),
        "NAME    ROLE    EXPIRES  AGE\nlaptop  admin   never    5s\nguest   viewer  in 1h    5s\nold     user    expired  5s\n"
    );
}

#[test]
fn an_audit_log() {
    let row = AuditRow {
        seq: 1,
        time: 1_700_000_000,
        host: None,
        role: Some("viewer".into()),
        token: Some("eyes".into()),
        user: None,
        via: None,
        asked: "VmStop".into(),
        about: None,
        refused: Some("to stop a VM needs the role user; this is viewer".into()),
        times: Some(12),
        before: "00".repeat(32),
    };
    let id = |text: &str| Some(text.repeat(16));
    let granted =
        AuditRow { seq: 2, role: None, token: None, host: id("abcd"), about: id("07"), refused: None, times: None, ..row.clone() };
    let signed = AuditRow { seq: 4, host: None, role: Some("user".into()), user: Some("anna".into()), ..granted.clone() };
    let carried = AuditRow { seq: 5, user: Some("root@a2".into()), via: id("abcd"), ..signed.clone() };
    let shown = AuditRow { seq: 6, token: Some("eyes".into()), ..carried.clone() };
    let dropped = AuditRow { seq: 3, host: None, about: None, asked: "dropped".into(), times: Some(9), ..granted.clone() };
    assert_eq!(
        lists::audit(&[row, granted, dropped, signed, carried, shown]),
        "ROW  TIME                  WHO                                   ASKED    ABOUT     TIMES  DECIDED\n\
         1    2023-11-14T22:13:20Z  token eyes (viewer)                   VmStop   -         12     to stop a VM needs the role user; this is viewer\n\
         2    2023-11-14T22:13:20Z  host abcdabcd                         VmStop   07070707  -      granted\n\
         3    2023-11-14T22:13:20Z  -                                     dropped  -         9      -\n\
         4    2023-11-14T22:13:20Z  anna (user)                           VmStop   07070707  -      granted\n\
         5    2023-11-14T22:13:20Z  root@a2 (user) via abcdabcd           VmStop   07070707  -      granted\n\
         6    2023-11-14T22:13:20Z  token eyes of a2 (user) via abcdabcd  VmStop   07070707  -      granted\n"
    );
}

#[test]
fn images_and_lans() {
    let part = |bytes| Part { digest: "00".into(), bytes };
    let image = ImageInfo {
        name: "debian".into(),
        kernel: Some(part(8 << 20)),
        starts: None,
        initramfs: Some(part(24 << 20)),
        cmdline: String::new(),
        disk: Some(part(300 << 20)),
        disk_bytes: 2 << 30,
        held_by: vec!["a1".into(), "b1".into()],
        vms: 1,
        domains: vec![],
    };
    let bare = ImageInfo { name: "k".into(), initramfs: None, disk: None, disk_bytes: 0, held_by: vec![], vms: 0, ..image.clone() };
    assert_eq!(
        lists::images(&[image, bare]),
        "NAME    STORED   DISK   VMS  HELD BY\ndebian  332 MiB  2 GiB  1    a1,b1\nk       8 MiB    -      0    -\n"
    );
    assert_eq!(lists::lans(&[lan()]), "NAME    RANGE        VNI  MTU   PORTS  HOME\noffice  10.5.0.0/24  7    1400  1      a1\n");
    assert_eq!(
        shows::lan(&lan()),
        "name    office\nrange   10.5.0.0/24\nvni     7\nmtu     1400\nsealed  yes\nhome    a1\nid      efefefefefefefefefefefefefefefef\nports   1 port\n\n\
         ADDRESSES              OF HOST  USED\n10.5.0.8 to 10.5.0.11  a1       1 of 4\n\n\
         VM   ADDRESS   MAC                HOST  ENDPOINT\nweb  10.5.0.2  52:54:00:00:00:01  a1    -\n"
    );
    let narrow = LanInfo { narrow: vec![NarrowPath { host: "b1".into(), bytes: 1300, needs: 1496 }], ..lan() };
    let said = "the path from here to b1 carries packets of 1300 bytes: those of this LAN, of up to 1496, are cut in two on the way; if they are lost there, give the route to it an MTU\n";
    assert_eq!(shows::lan(&narrow), format!("{}\n{said}", shows::lan(&lan())));
}

#[test]
fn jobs() {
    let mut error = ApiError::new(ErrorCode::Refused, "no host has room");
    error.details = vec!["a1: full".into(), "a2: no KVM".into()];
    let failed = Job { id: "j2".into(), state: JobState::Failed, error: Some(error), progress: JobProgress::default(), ..job() };
    assert_eq!(
        lists::jobs(&[job(), failed.clone()]),
        "ID  STATE    DONE  WHAT                    HOW\n\
         j1  running  25%   move vm web to host b2  round 2\n\
         j2  failed   -     move vm web to host b2  no host has room\n"
    );
    assert_eq!(
        shows::job(&failed),
        "id     j2\nwhat   move vm web to host b2\nstate  failed\nphase  -\ndone   -\nerror  no host has room\n       a1: full\n       a2: no KVM\n"
    );
    assert_eq!(report::progress(&job().progress), "round 2: 1 MiB of 4 MiB (25%)");
    let over = JobProgress { phase: "x".into(), done_bytes: u64::MAX, total_bytes: 1 };
    assert_eq!(report::percent(&over), "100%");
}

#[test]
fn a_move() {
    let pages = UnitCounts { zero: 100_000, compressed: 31_072, unchanged: 5, ..UnitCounts::default() };
    let made = MoveReport {
        outcome: Outcome::Moved,
        reason: None,
        total_ms: 4210,
        downtime_ms: 87,
        wire_bytes: 40 << 20,
        rounds: 3,
        streams: 1,
        pages,
        clusters: UnitCounts { digest: 512, ..UnitCounts::default() },
        memory_bytes: 512 << 20,
        disk_bytes: 2 << 30,
    };
    assert_eq!(
        report::moved("web", "a1", "b1", &made),
        "vm web moved from a1 to b1\n\
         \x20 took    4.2 s, paused for 87 ms\n\
         \x20 sent    40 MiB for 512 MiB of memory and 2 GiB of disk (3 rounds, 1 stream)\n\
         \x20 memory  121 MiB compressed, 390 MiB zero, 20 KiB unchanged\n\
         \x20 disk    2 MiB already there\n"
    );
}
