//! Every question of every asker, against the tables of `docs/formats/authority.md`.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;

use super::*;
use crate::{
    grant::Grant,
    key::{Name, bound_id, id_of_key, public},
    record::{Assigned, DomainBody, HostBody, ImageBody, LanBody, MemberBody, PartRef, PoolBody, Record, SeenBody, SeenState, VmBody},
};

const TABLES: &str = include_str!("../../../../docs/formats/authority.md");
const PART: Digest = Name([7; 32]);

// Who is who: a host that is asked, one of its domain, two domains more, and a host that died.
const POOL: u8 = 1;
const ALPHA: u8 = 2;
const ASKED: u8 = 3;
const FELLOW: u8 = 4;
const DEAD: u8 = 5;
const BETA: u8 = 6;
const HOLDER: u8 = 7;
const GAMMA: u8 = 8;
const FOREIGN: u8 = 9;
const CLAIMED: u8 = 10;
const STRANGER: u8 = 11;

fn secret(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn key(number: u8) -> Key {
    public(&secret(number))
}

fn nonce(number: u8) -> Name<16> {
    Name([number; 16])
}

/// A VM that is at home at `home`.
fn vm_id(number: u8, home: u8) -> Id {
    bound_id(&key(home), &nonce(number))
}

struct Writer(BTreeMap<u8, u64>, Book);

impl Writer {
    fn write(&mut self, kind: Kind, id: Id, by: u8, body: Body) {
        let seq = self.0.entry(by).or_default();
        *seq += 1;
        let signed = Record::sign(kind, id, *seq, Some(&body), &secret(by)).unwrap();
        assert_eq!(self.1.merge(signed), Ok(true), "{body:?}");
    }

    fn domain(&mut self, number: u8, name: &str) {
        self.write(Kind::DOMAIN, id_of_key(&key(number)), POOL, Body::Domain(DomainBody { name: name.into(), key: key(number) }));
    }

    fn member(&mut self, host: u8, domain: u8, dead: Option<&str>) {
        let body = MemberBody { host: key(host), domain: key(domain), name: format!("h{host}"), dead: dead.map(str::to_owned) };
        self.write(Kind::MEMBER, id_of_key(&key(host)), domain, Body::Member(body));
    }

    fn host(&mut self, host: u8, domain: u8) {
        self.member(host, domain, None);
        let body = HostBody {
            domain: key(domain),
            addresses: vec![],
            underlay: None,
            api: None,
            no_kvm: None,
            cpus: 1,
            memory_bytes: 0,
            disk_bytes: 0,
            draining: false,
            durable: true,
            version: "1".into(),
            audit: None,
        };
        self.write(Kind::HOST, id_of_key(&key(host)), host, Body::Host(body.into()));
    }

    fn vm(&mut self, number: u8, home: u8, assigned: u8, keeper: Option<u8>) -> Id {
        let kernel = PartRef { digest: if number == 9 { Name([9; 32]) } else { PART }, bytes: 7 };
        let image = ImageBody {
            nonce: nonce(0),
            name: "i".into(),
            kernel,
            initramfs: None,
            cmdline: String::new(),
            disk: None,
            created: 0,
            domains: vec![],
        };
        let body = VmBody {
            nonce: nonce(number),
            name: format!("vm{number}"),
            assigned: Assigned { host: key(assigned), epoch: 1 },
            image_name: "i".into(),
            image,
            memory_bytes: 0,
            vcpus: 1,
            private: Name([0; 32]),
            nics: vec![],
            keeper: keeper.map(key),
            created: 0,
        };
        self.write(Kind::VM, vm_id(number, home), home, Body::Vm(body.into()));
        vm_id(number, home)
    }
}

/// The book of the host that is asked. VM 1 is at home there and was granted to a host of beta; VM 2 is kept there, and its host died;
/// VM 3 is the fellow's, assigned to the host that is asked.
fn book() -> Book {
    let mut writer = Writer(BTreeMap::new(), Book::new(key(POOL)).of_host(key(ASKED)));
    writer.write(Kind::POOL, Name([0; 16]), POOL, Body::Pool(PoolBody { name: "lab".into() }));
    for (domain, name) in [(ALPHA, "alpha"), (BETA, "beta"), (GAMMA, "gamma")] {
        writer.domain(domain, name);
    }
    for (host, domain) in [(ASKED, ALPHA), (FELLOW, ALPHA), (DEAD, ALPHA), (HOLDER, BETA), (FOREIGN, GAMMA)] {
        writer.host(host, domain);
    }
    writer.member(DEAD, ALPHA, Some("burnt"));
    writer.member(CLAIMED, ALPHA, None);
    let lent = writer.vm(1, ASKED, ASKED, None);
    writer.vm(2, FELLOW, DEAD, Some(ASKED));
    writer.vm(3, FELLOW, ASKED, None);
    let grants = vec![Grant::sign(&lent, key(HOLDER), 2, &secret(ASKED))];
    let seen = SeenBody { epoch: 2, state: SeenState::Running, reason: None, endpoints: vec![], memory_bytes: 0, pid: 0, grants, to: None };
    writer.write(Kind::SEEN, lent, HOLDER, Body::Seen(seen.into()));
    let lan = LanBody {
        nonce: nonce(1),
        name: "office".into(),
        vni: 7,
        network: [10, 7, 0, 0].into(),
        prefix: 24,
        mtu: 1400,
        leases: vec![],
        created: 0,
        domains: vec![],
    };
    writer.write(Kind::LAN, bound_id(&key(ASKED), &nonce(1)), ASKED, Body::Lan(lan.into()));
    writer.1
}

/// The rows of the table that begins with a header, as cells.
fn rows(header: &str) -> Vec<Vec<String>> {
    let table = TABLES.lines().skip_while(|line| !line.starts_with(&format!("| {header} |"))).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let all: Vec<_> = table.map(cells).collect();
    assert!(all.len() > 2, "no table of {header}");
    [vec![all[0].clone()], all[2..].to_vec()].concat()
}

/// A question of that name as the table means it, and the host that its proof names.
fn question(name: &str) -> (Question, u8) {
    let lan = bound_id(&key(ASKED), &nonce(1));
    match name {
        "Join" => (Question::Join, STRANGER),
        "Exchange" => (Question::Exchange, FOREIGN),
        "Leave" => (Question::Leave, FELLOW),
        "Addresses" => (Question::Addresses(lan), FELLOW),
        "Promise" => (Question::Promise(vm_id(2, FELLOW)), FELLOW),
        "Restart" => (Question::Restart(vm_id(2, FELLOW)), FELLOW),
        "Start" => (Question::Start(vm_id(3, FELLOW), 1), FELLOW),
        "Remove" => (Question::Remove(vm_id(3, FELLOW)), FELLOW),
        "Arrive" => (Question::Arrive(vm_id(1, ASKED), 2), HOLDER),
        "Stream" => (Question::Stream(vm_id(1, ASKED)), HOLDER),
        "Job" => (Question::Job, HOLDER),
        "Part" => (Question::Part(PART), HOLDER),
        other => panic!("the table has a question {other} that there is not"),
    }
}

/// Every question has its row here: a new one does not compile without it.
fn name_of(question: Question) -> Option<&'static str> {
    Some(match question {
        Question::Join => "Join",
        Question::Exchange => "Exchange",
        Question::Leave => "Leave",
        Question::Addresses(_) => "Addresses",
        Question::Promise(_) => "Promise",
        Question::Restart(_) => "Restart",
        Question::Start(..) => "Start",
        Question::Remove(_) => "Remove",
        Question::Arrive(..) => "Arrive",
        Question::Stream(_) => "Stream",
        Question::Job => "Job",
        Question::Part(_) => "Part",
        Question::Command(..) => return None,
    })
}

#[test]
fn every_question_of_every_asker_is_as_the_table_says() {
    let book = book();
    let table = rows("question");
    assert_eq!(table.len() - 1, 12, "a question has no row, or two");
    for row in &table[1..] {
        let (asked, party) = question(&row[0]);
        assert_eq!(name_of(asked), Some(row[0].as_str()));
        for (asker, cell) in table[0].iter().zip(row).skip(3) {
            // A fellow that is party to nothing: the one that a claim about another VM makes.
            let caller = match asker.as_str() {
                "nobody" => Asker::Nobody,
                "stranger" => Asker::Host(key(STRANGER)),
                "claimed" => Asker::Host(key(CLAIMED)),
                "foreign" => Asker::Host(key(FOREIGN)),
                "lent" => Asker::Host(key(HOLDER)),
                "own" => Asker::Host(key(if party == FELLOW { ASKED } else { FELLOW })),
                "party" => Asker::Host(key(party)),
                "dead" => Asker::Host(key(DEAD)),
                other => panic!("the table has an asker {other} that there is not"),
            };
            // The holder is a party itself where a question is about the VM that it holds.
            let expected = match asker.as_str() {
                "lent" if party == HOLDER => &row[table[0].iter().position(|name| name == "party").unwrap()],
                _ => cell,
            };
            let answer = may(Some(&book), key(ASKED), caller, asked);
            assert_eq!(answer.is_ok(), expected == "yes", "{}: {asker}: {answer:?}", row[0]);
            if asker == "dead" {
                assert!(answer.unwrap_err().proof.is_some(), "{}: who is dead is not told", row[0]);
            }
        }
        for role in Role::ALL {
            assert!(may(Some(&book), key(ASKED), Asker::User(role), asked).is_err(), "{}: a user", row[0]);
        }
        assert!(may(None, key(ASKED), Asker::Host(key(FELLOW)), asked).is_err(), "{}: without a pool", row[0]);
    }
}

#[test]
fn every_command_has_its_role_and_its_reach() {
    let book = book();
    let table = rows("command");
    let named: Vec<String> = table[1..].iter().map(|row| row[0].clone()).collect();
    assert_eq!(named, Command::ALL.iter().map(|command| format!("{command:?}")).collect::<Vec<_>>());
    for (row, command) in table[1..].iter().zip(Command::ALL) {
        for role in Role::ALL {
            let answer = may(Some(&book), key(ASKED), Asker::User(role), Question::Command(*command, None));
            assert_eq!(answer.is_ok(), role.to_string() == row[1] || role >= command.role(), "{}: {role}", row[0]);
        }
        assert_eq!(command.role().to_string(), row[1], "{}", row[0]);
        // VM 3 is at home in alpha, VM 9 in gamma.
        let by = |host: u8, about: Option<(Kind, Id)>| {
            may(Some(&book), key(ASKED), Asker::Host(key(host)), Question::Command(*command, about)).is_ok()
        };
        let vm = Some((Kind::VM, vm_id(3, FELLOW)));
        let allowed = (by(FELLOW, vm), by(FOREIGN, vm), by(STRANGER, vm), by(CLAIMED, vm), by(DEAD, vm));
        let expected = match row[2].as_str() {
            "here" => (false, false, false, false, false),
            "domain" | "home" => (true, false, false, false, false),
            "job" => (true, true, false, false, false),
            other => panic!("{}: {other}", row[0]),
        };
        assert_eq!(allowed, expected, "{}", row[0]);
        assert!(may(Some(&book), key(ASKED), Asker::Nobody, Question::Command(*command, vm)).is_err(), "{}", row[0]);
    }
}

#[test]
fn a_vm_is_its_home_domains_wherever_it_runs() {
    let mut writer = Writer(BTreeMap::new(), book());
    writer.0.extend([(FOREIGN, 1)]);
    let vm = writer.vm(9, FOREIGN, ASKED, None);
    let by = |host: u8, command| may(Some(&writer.1), key(ASKED), Asker::Host(key(host)), Question::Command(command, Some((Kind::VM, vm))));
    assert!(by(FOREIGN, Command::VmStop).is_ok() && by(HOLDER, Command::VmStop).is_err());
    // That a domain says so of a VM of its own gives it no part of another's; that another's VM is there does.
    let part = |host: u8, digest| may(Some(&writer.1), key(ASKED), Asker::Host(key(host)), Question::Part(digest)).is_ok();
    assert_eq!((part(FOREIGN, Name([9; 32])), part(HOLDER, PART), part(FOREIGN, PART)), (false, true, false));
}

#[test]
fn proofs_are_of_that_vm_that_host_and_that_epoch() {
    let book = book();
    let ask = |host: u8, question| may(Some(&book), key(ASKED), Asker::Host(key(host)), question).is_ok();
    assert!(ask(HOLDER, Question::Arrive(vm_id(1, ASKED), 2)));
    for wrong in [Question::Arrive(vm_id(1, ASKED), 1), Question::Arrive(vm_id(1, ASKED), u64::MAX), Question::Arrive(vm_id(3, FELLOW), 1)]
    {
        assert!(!ask(HOLDER, wrong), "{wrong:?}");
    }
    for wrong in [Question::Start(vm_id(3, FELLOW), 2), Question::Start(vm_id(1, ASKED), 1), Question::Start(vm_id(2, FELLOW), 1)] {
        assert!(!ask(FELLOW, wrong), "{wrong:?}");
    }
    assert!(!ask(FELLOW, Question::Remove(vm_id(1, ASKED))) && !ask(FELLOW, Question::Addresses(Name([3; 16]))));
}
