//! Records as this version writes them, byte by byte (`golden/v1.txt`): later versions go on reading these, and pools are upgraded host by
//! host. A line is `name hexadecimal digits`; a line that is there is never changed.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use rebec_book::{
    Body, Grant, Key, Record, Role, Signed, Warrant,
    contract::{Contract, Reclaim, Said, Terms, What},
    gossip::message::{Answer, Beats, Offer, Parcel, Question, Vitals},
    key::{Digest, Id, Name, bound_id, id_of_key, public},
    record::{
        Assigned, AuditHead, BrokerBody, DISKS, DiskBody, DiskRef, DomainBody, FloorBody, HelperBody, HostBody, ImageBody, Kind,
        LABELS_MAX, LanBody, MemberBody, NicBody, PartRef, Partner, PartsBody, PlacingBody, PoolBody, ROOT_DISK, RangeLease, SeenBody,
        SeenState, Speaks, UserBody, VmBody, VmPrivate,
    },
    warrant::{Proven, TokenBound, body_digest},
};

const KEPT: &str = include_str!("golden/v1.txt");

fn secret(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn key(number: u8) -> Key {
    public(&secret(number))
}

fn part(number: u8) -> PartRef {
    PartRef { digest: Name([number; 32]), bytes: u64::from(number) << 20 }
}

fn image() -> ImageBody {
    ImageBody {
        nonce: Name([1; 16]),
        name: "debian".into(),
        kernel: Some(part(1)),
        initramfs: Some(part(2)),
        cmdline: "console=ttyS0".into(),
        disk: Some(DiskRef { part: part(3), qcow2: true, virtual_bytes: 4 << 30 }),
        created: 1_800_000_000,
        domains: vec![key(5)],
        starts: None,
    }
}

fn private() -> VmPrivate {
    VmPrivate { nonce: Name([9; 16]), cmdline: "console=ttyS0 quiet".into(), seed: Some(("meta".into(), "user".into())), network: None }
}

fn vm() -> VmBody {
    let nic = NicBody {
        lan: Name([2; 16]),
        vni: 7,
        mac: [0x52, 0x54, 10, 7, 0, 8],
        address: [10, 7, 0, 8].into(),
        prefix: 24,
        sealed: None,
        mtu: None,
        trunk: None,
    };
    VmBody {
        nonce: Name([3; 16]),
        name: "web".into(),
        assigned: Assigned { host: key(4), epoch: 1 },
        image_name: "debian".into(),
        image: image(),
        memory_bytes: 1 << 30,
        vcpus: 2,
        private: private().digest(),
        nics: vec![nic],
        keeper: Some(key(4)),
        created: 1_800_000_001,
        must: None,
        disks: None,
        cpu: None,
        limits: None,
        placing: None,
    }
}

fn host() -> HostBody {
    HostBody {
        domain: key(2),
        addresses: vec!["10.0.0.1:7116".parse().expect("an address"), "[2001:db8::1]:7116".parse().expect("an address")],
        underlay: Some([10, 0, 0, 1].into()),
        api: Some("10.0.0.1:7117".parse().expect("an address")),
        no_kvm: None,
        cpus: 4,
        memory_bytes: 8 << 30,
        disk_bytes: 1 << 40,
        draining: false,
        durable: true,
        version: "0.1.0".into(),
        audit: Some(AuditHead { seq: 3, hash: Name([4; 32]) }),
        speaks: None,
        cpu: None,
        labels: None,
    }
}

fn broker() -> BrokerBody {
    let reclaim = vec![Reclaim::Migrate, Reclaim::Wait];
    BrokerBody { domain: key(2), host: key(3), by_contract: true, machines: 2, price_milli: 20, reclaim }
}

/// Signed by both, called back and given back.
fn contract() -> Contract {
    let mut contract = Contract::draft(Terms {
        nonce: Name([1; 16]),
        lender: key(2),
        borrower: key(5),
        host: key(3),
        vcpus: 4,
        memory_bytes: 8 << 30,
        disk_bytes: 1 << 40,
        price_milli: 20,
        from: 1_800_000_000,
        until: Some(1_800_086_400),
        notice_s: 600,
        reclaim: Reclaim::Migrate,
        lans: vec![Name([2; 16])],
        vms: vec![],
        answer_by: 1_800_000_060,
    });
    for domain in [2, 5] {
        contract.sign(&secret(domain));
    }
    contract.say(Said::new(What::Recalled, 1_800_003_600, "n = 1 (line 3: lending.share = 50%)", 0), &secret(2));
    contract.say(Said::new(What::Ended, 1_800_003_660, "called back", 7), &secret(5));
    contract
}

fn command() -> Warrant {
    Warrant {
        signer: key(4),
        at: key(4),
        method: "POST".into(),
        path: "/v1/vms/web/stop".into(),
        body: Some(body_digest(b"{}")),
        until: 1_800_000_060,
        nonce: Name([8; 16]),
        token: Some(TokenBound { name: "eyes".into(), role: Role::Viewer }),
    }
}

/// One of each kind, by its writer.
fn records() -> Vec<(&'static str, Signed)> {
    let sign =
        |kind, id: Id, body: Body, by: u8| Record::sign(kind, id, 7, Some(&body), &secret(by)).expect("a record of this size is signed");
    let lan = LanBody {
        nonce: Name([2; 16]),
        name: "office".into(),
        vni: 7,
        network: [10, 7, 0, 0].into(),
        prefix: 24,
        mtu: 1400,
        leases: vec![RangeLease { host: key(3), first: [10, 7, 0, 8].into(), count: 16, tag: None }],
        created: 1_800_000_002,
        domains: vec![],
        sealed: None,
        port_bits: None,
    };
    let tagged = LanBody { leases: lan.leases.iter().map(|lease| RangeLease { tag: Some(7), ..lease.clone() }).collect(), ..lan.clone() };
    let vm_id = bound_id(&key(3), &Name([3; 16]));
    let seen = SeenBody {
        epoch: 2,
        state: SeenState::Running,
        reason: Some("it moved".into()),
        endpoints: vec!["10.0.0.4:4789".parse().expect("an address")],
        memory_bytes: 1 << 30,
        pid: 42,
        grants: vec![Grant::sign(&vm_id, key(4), 2, &secret(3))],
        to: Some(key(6)),
        keys: None,
        ahead: None,
    };
    let speaks = Speaks { peer: (1, 1), moves: (3, 3), control: (1, 1) };
    let member = MemberBody { host: key(3), domain: key(2), name: "a1".into(), dead: Some("burnt".into()), role: None };
    let root = MemberBody { host: key(4), domain: key(2), name: "a2".into(), dead: None, role: Some(Role::Operator) };
    let user = UserBody { key: key(7), domain: key(2), name: "anna".into(), role: Role::User, until: Some(1_900_000_000) };
    vec![
        ("floor", sign(Kind::FLOOR, Name([0; 16]), Body::Floor(FloorBody { floor: 6 }), 3)),
        ("pool", sign(Kind::POOL, id_of_key(&key(1)), Body::Pool(PoolBody { name: "lab".into() }), 1)),
        ("domain", sign(Kind::DOMAIN, id_of_key(&key(2)), Body::Domain(DomainBody { name: "alpha".into(), key: key(2) }), 1)),
        ("member", sign(Kind::MEMBER, id_of_key(&key(3)), Body::Member(member), 2)),
        ("root", sign(Kind::MEMBER, id_of_key(&key(4)), Body::Member(root), 2)),
        ("user", sign(Kind::USER, id_of_key(&key(7)), Body::User(user), 2)),
        ("helper", sign(Kind::HELPER, id_of_key(&key(3)), Body::Helper(HelperBody { key: key(3) }), 2)),
        ("broker", sign(Kind::BROKER, id_of_key(&key(2)), Body::Broker(broker()), 2)),
        ("contract", sign(Kind::CONTRACT, contract().id(), Body::Contract(contract().into()), 3)),
        ("host", sign(Kind::HOST, id_of_key(&key(3)), Body::Host(host().into()), 3)),
        ("parts", sign(Kind::PARTS, Name([0; 16]), Body::Parts(PartsBody { digests: vec![Name([1; 32]), Name([2; 32])] }), 3)),
        ("lan", sign(Kind::LAN, bound_id(&key(3), &Name([2; 16])), Body::Lan(lan.into()), 3)),
        ("image", sign(Kind::IMAGE, bound_id(&key(3), &Name([1; 16])), Body::Image(image().into()), 3)),
        ("vm", sign(Kind::VM, vm_id, Body::Vm(vm().into()), 3)),
        ("seen", sign(Kind::SEEN, vm_id, Body::Seen(seen.into()), 4)),
        ("host-speaks", sign(Kind::HOST, id_of_key(&key(3)), Body::Host(HostBody { speaks: Some(speaks), ..host() }.into()), 3)),
        ("vm-must", sign(Kind::VM, vm_id, Body::Vm(VmBody { must: Some(vec!["firmware".into()]), ..vm() }.into()), 3)),
        ("lan-tagged", sign(Kind::LAN, bound_id(&key(3), &Name([2; 16])), Body::Lan(tagged.into()), 3)),
        ("gone", Record::sign(Kind::VM, vm_id, 8, None, &secret(3)).expect("a record of this size is signed")),
    ]
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Messages of the gossip, each with what it may carry.
fn messages() -> [(&'static str, Vec<u8>); 2] {
    let vitals = Vitals { for_s: 3, disk_used_mib: 1024, memory_used_mib: 64, vms: 2 };
    let beats = Beats { own: 9, others: vec![], vitals: Some(vitals) };
    let offers = vec![Offer { writer: Name([1; 8]), seq: 7 }];
    let parcel = Parcel::alone(records().into_iter().take(2).map(|(_, signed)| signed).collect());
    [
        ("gossip-round", Question::Round { salt: 1, groups: vec![], beats, offers }.to_bytes()),
        ("gossip-records", Answer::Records(parcel).to_bytes()),
    ]
}

fn kept() -> BTreeMap<&'static str, &'static str> {
    KEPT.lines().filter_map(|line| line.split_once(' ')).collect()
}

#[test]
fn records_are_written_as_they_always_were() {
    let kept = kept();
    let mut lines: Vec<(&str, String)> = records().iter().map(|(name, signed)| (*name, digits(&signed.to_bytes()))).collect();
    lines.push(("private", digits(&private().digest().0)));
    lines.push(("command", digits(command().sign(&secret(4)).expect("a command of this size is signed").as_bytes())));
    lines.extend(messages().map(|(name, bytes)| (name, digits(&bytes))));
    for (name, now) in &lines {
        assert_eq!(kept.get(name).copied(), Some(now.as_str()), "{name}: other bytes than were kept");
    }
    assert_eq!(kept.len(), lines.len(), "something is kept that is not written any more");
}

#[test]
fn records_that_were_kept_are_read_and_understood() {
    let kept = kept();
    for (name, signed) in records() {
        let bytes: Vec<u8> = (0..kept[name].len() / 2).map(|at| u8::from_str_radix(&kept[name][2 * at..2 * at + 2], 16).unwrap()).collect();
        let read = Signed::from_bytes(&bytes).unwrap().open().unwrap();
        assert_eq!(read, signed.open().unwrap(), "{name}");
        assert_ne!(read.body, Some(Body::Unknown), "{name}");
    }
}

#[test]
fn a_command_that_was_kept_is_read_and_proved() {
    let digits = kept()["command"];
    let text: Vec<u8> = (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect();
    let proven = Proven::open(std::str::from_utf8(&text).unwrap()).unwrap();
    assert_eq!(proven.warrant(), &command());
}

/// What a later version adds to a body is skipped, and the rest is read.
#[test]
fn a_field_that_is_not_known_is_skipped() {
    let content = (
        minicbor::bytes::ByteVec::from(key(1).0.to_vec()),
        9u64,
        Kind::POOL.0,
        minicbor::bytes::ByteVec::from(id_of_key(&key(1)).0.to_vec()),
        minicbor::bytes::ByteVec::from(minicbor::to_vec(("lab", "a motto", 7u8)).unwrap()),
    );
    let later = Signed::of(minicbor::to_vec(content).unwrap(), &secret(1));
    assert_eq!(later.open().unwrap().body, Some(Body::Pool(PoolBody { name: "lab".into() })));
    let _: Digest = private().digest();
}

/// A VM that needs what its reader does not know is read as far as it goes, and says so.
#[test]
fn what_a_vm_must_have_known_is_named() {
    let of = |must: &[&str]| VmBody { must: Some(must.iter().map(|word| (*word).to_owned()).collect()), ..vm() };
    assert_eq!((vm().not_known(), of(&[]).not_known(), of(&["firmware"]).not_known()), (None, None, Some("firmware")));
    let read = |body: VmBody| {
        let id = bound_id(&key(3), &body.nonce);
        Record::sign(Kind::VM, id, 7, Some(&Body::Vm(body.into())), &secret(3)).unwrap().open().unwrap().body
    };
    assert!(matches!(read(of(&["firmware"])), Some(Body::Vm(body)) if body.must.is_some()));
    for unsound in [vec!["a word"; 1], vec!["w"; 9], vec![""; 1]] {
        assert_eq!(read(of(&unsound)), Some(Body::Unknown), "{unsound:?}");
    }
}

#[test]
fn disks_of_a_vm_are_read_and_have_limits() {
    let disk = |name: &str, bytes| DiskBody { name: name.to_owned(), bytes };
    let mut body = vm();
    assert_eq!((body.root_bytes(), body.further_disks().count()), (Some(4 << 30), 0));
    body.set_disks(vec![disk(ROOT_DISK, 20 << 30), disk("data", 1 << 30)]);
    assert_eq!((body.root_bytes(), body.further_disks().count(), body.not_known()), (Some(20 << 30), 1, None));
    assert_eq!(body.must, Some(vec![DISKS.to_owned()]));
    let read = |disks: Vec<DiskBody>| {
        let mut body = vm();
        body.set_disks(disks);
        let id = bound_id(&key(3), &body.nonce);
        Record::sign(Kind::VM, id, 7, Some(&Body::Vm(body.into())), &secret(3)).unwrap().open().unwrap().body
    };
    assert!(matches!(read(body.disks.clone().unwrap()), Some(Body::Vm(found)) if *found == body));
    for unsound in [vec![disk("../x", 1)], vec![disk("d", u64::MAX)], vec![disk("d", 1); 9]] {
        assert_eq!(read(unsound.clone()), Some(Body::Unknown), "{unsound:?}");
    }
    body.set_disks(vec![]);
    assert_eq!(body, vm());
}

/// A VM without wishes is written as it always was (`vm` of the bytes that are kept); with them it is read, within limits.
#[test]
fn where_a_vm_wants_to_be_is_read_and_has_limits() {
    let read = |placing: &PlacingBody| {
        let body = VmBody { placing: Some(Box::new(placing.clone())), ..vm() };
        let id = bound_id(&key(3), &body.nonce);
        Record::sign(Kind::VM, id, 7, Some(&Body::Vm(body.into())), &secret(3)).unwrap().open().unwrap().body
    };
    let labels = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let (near, apart) = (vec![Partner::vm(Name([5; 16]))], vec![Partner::label("app=db")]);
    let placing = PlacingBody { labels: labels(&["app=db"]), hosts: labels(&["rack=r1", "disk=nvme"]), near, apart };
    assert!(matches!(read(&placing), Some(Body::Vm(body)) if body.placing.as_deref() == Some(&placing)));
    let both = Partner { vm: Some(Name([5; 16])), label: Some("app=db".into()) };
    for unsound in [
        PlacingBody { labels: labels(&["app"]), ..placing.clone() },
        PlacingBody { hosts: labels(&["a=b"; LABELS_MAX + 1]), ..placing.clone() },
        PlacingBody { near: vec![both], ..placing.clone() },
        PlacingBody { apart: vec![Partner { vm: None, label: None }], ..placing.clone() },
    ] {
        assert_eq!(read(&unsound), Some(Body::Unknown), "{unsound:?}");
    }
    let labelled = |texts: &[&str]| {
        let body = HostBody { labels: Some(labels(texts)), ..host() };
        Record::sign(Kind::HOST, id_of_key(&key(3)), 7, Some(&Body::Host(body.into())), &secret(3)).unwrap().open().unwrap().body
    };
    assert!(matches!(labelled(&["rack=r1"]), Some(Body::Host(body)) if body.labels() == ["rack=r1"]));
    assert_eq!(labelled(&["rack r1"]), Some(Body::Unknown));
}

#[test]
fn messages_that_were_kept_are_read() {
    let kept = kept();
    let bytes = |name: &str| -> Vec<u8> {
        (0..kept[name].len() / 2).map(|at| u8::from_str_radix(&kept[name][2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    let [(round, _), (told, _)] = messages();
    assert_eq!(Question::from_bytes(&bytes(round)).unwrap().to_bytes(), bytes(round));
    assert_eq!(Answer::from_bytes(&bytes(told)).unwrap().to_bytes(), bytes(told));
}
