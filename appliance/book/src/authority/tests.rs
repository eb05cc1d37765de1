//! Every question of every asker, against the tables of `docs/formats/authority.md`.

use std::collections::BTreeMap;

use super::*;
use crate::{
    grant::Grant,
    key::{Name, bound_id, id_of_key},
    record::{Assigned, DomainBody, HostBody, LanBody, MemberBody, PartRef, PoolBody, Record, SeenBody, UserBody},
    samples::{self, key, secret},
    warrant::{LIFE_S, Proven, TokenBound, Warrant},
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
// Users: of alpha, of alpha until a time that is over, of gamma and of alpha by its leave, of gamma alone, of nobody.
const USER: u8 = 20;
const ENDED: u8 = 21;
const GUEST: u8 = 22;
const THEIRS: u8 = 23;
const UNKNOWN: u8 = 24;

/// The time, in seconds since 1970.
const NOW: u64 = 1_800_000_000;

fn nonce(number: u8) -> Name<16> {
    Name([number; 16])
}

/// A VM that is at home at `home`.
fn vm_id(number: u8, home: u8) -> Id {
    bound_id(&key(home), &nonce(number))
}

struct Writer(BTreeMap<u8, u64>, Book, Role);

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
        let (name, role) = (format!("h{host}"), Some(self.2));
        let body = MemberBody { host: key(host), domain: key(domain), name, dead: dead.map(str::to_owned), role };
        self.write(Kind::MEMBER, id_of_key(&key(host)), domain, Body::Member(body));
    }

    fn user(&mut self, user: u8, domain: u8, until: Option<u64>) {
        let body = UserBody { key: key(user), domain: key(domain), name: format!("u{user}"), role: self.2, until };
        self.write(Kind::USER, id_of_key(&key(user)), domain, Body::User(body));
    }

    fn host(&mut self, host: u8, domain: u8) {
        self.member(host, domain, None);
        let body = HostBody::bare(key(domain));
        self.write(Kind::HOST, id_of_key(&key(host)), host, Body::Host(body.into()));
    }

    fn vm(&mut self, number: u8, home: u8, assigned: u8, keeper: Option<u8>) -> Id {
        let mut body = samples::vm(nonce(number), &format!("vm{number}"), Assigned { host: key(assigned), epoch: 1 });
        body.image.kernel = Some(PartRef { digest: if number == 9 { Name([9; 32]) } else { PART }, bytes: 7 });
        body.keeper = keeper.map(key);
        self.write(Kind::VM, vm_id(number, home), home, Body::Vm(body.into()));
        vm_id(number, home)
    }
}

/// The book of the host that is asked. VM 1 is at home there and was granted to a host of beta; VM 2 is kept there, and its host died;
/// VM 3 is the fellow's, assigned to the host that is asked; VM 9 is at home in gamma. Who has a role anywhere has this one.
fn book_of(role: Role) -> Book {
    let mut writer = Writer(BTreeMap::new(), Book::new(key(POOL)).of_host(key(ASKED)), role);
    writer.write(Kind::POOL, Name([0; 16]), POOL, Body::Pool(PoolBody { name: "lab".into() }));
    for (domain, name) in [(ALPHA, "alpha"), (BETA, "beta"), (GAMMA, "gamma")] {
        writer.domain(domain, name);
    }
    for (host, domain) in [(ASKED, ALPHA), (FELLOW, ALPHA), (DEAD, ALPHA), (HOLDER, BETA), (FOREIGN, GAMMA)] {
        writer.host(host, domain);
    }
    writer.member(DEAD, ALPHA, Some("burnt"));
    for (user, domain, until) in
        [(USER, ALPHA, Some(NOW + 1)), (ENDED, ALPHA, Some(NOW)), (GUEST, GAMMA, None), (GUEST, ALPHA, None), (THEIRS, GAMMA, None)]
    {
        writer.user(user, domain, until);
    }
    writer.member(CLAIMED, ALPHA, None);
    let lent = writer.vm(1, ASKED, ASKED, None);
    writer.vm(2, FELLOW, DEAD, Some(ASKED));
    writer.vm(3, FELLOW, ASKED, None);
    writer.vm(9, FOREIGN, ASKED, None);
    let grants = vec![Grant::sign(&lent, key(HOLDER), 2, &secret(ASKED))];
    let seen = SeenBody { epoch: 2, memory_bytes: 0, pid: 0, grants, ..samples::seen() };
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
        sealed: None,
        port_bits: None,
    };
    writer.write(Kind::LAN, bound_id(&key(ASKED), &nonce(1)), ASKED, Body::Lan(lan.into()));
    writer.1
}

fn book() -> Book {
    book_of(Role::Operator)
}

/// Who signs at a host: a user, or that host for root there, or for a token of a role.
fn signer(by: u8, at: u8, token: Option<Role>) -> Signer {
    let token = token.map(|role| TokenBound { name: "eyes".into(), role });
    let (method, path) = ("GET".to_owned(), "/v1/vms".to_owned());
    let warrant = Warrant { signer: key(by), at: key(at), method, path, body: None, until: NOW + LIFE_S, nonce: nonce(1), token };
    Proven::open(&warrant.sign(&secret(by)).unwrap()).unwrap().signer(key(at), NOW).unwrap()
}

fn gives(book: &Book, signer: Signer, command: Command, about: Option<(Kind, Id)>) -> Result<Granted, Refused> {
    may(Some(book), key(ASKED), NOW, Asker::Signer(signer), Question::Command(command, about))
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
        "Return" => (Question::Return(lan), FELLOW),
        "Promise" => (Question::Promise(vm_id(2, FELLOW)), FELLOW),
        "Restart" => (Question::Restart(vm_id(2, FELLOW)), FELLOW),
        "Start" => (Question::Start(vm_id(3, FELLOW), 1), FELLOW),
        "Remove" => (Question::Remove(vm_id(3, FELLOW)), FELLOW),
        "Disks" => (Question::Disks(vm_id(3, FELLOW)), FELLOW),
        "Arrive" => (Question::Arrive(vm_id(1, ASKED), 2), HOLDER),
        "Stream" => (Question::Stream(vm_id(1, ASKED)), HOLDER),
        "Job" => (Question::Job, HOLDER),
        "Part" => (Question::Part(PART), HOLDER),
        "Lend" => (Question::Lend, HOLDER),
        "Contract" => (Question::Contract(Name([8; 16])), HOLDER),
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
        Question::Return(_) => "Return",
        Question::Promise(_) => "Promise",
        Question::Restart(_) => "Restart",
        Question::Start(..) => "Start",
        Question::Remove(_) => "Remove",
        Question::Disks(_) => "Disks",
        Question::Arrive(..) => "Arrive",
        Question::Stream(_) => "Stream",
        Question::Job => "Job",
        Question::Part(_) => "Part",
        Question::Lend => "Lend",
        Question::Contract(_) => "Contract",
        Question::Command(..) => return None,
    })
}

#[test]
fn every_question_of_every_asker_is_as_the_table_says() {
    let book = book();
    let table = rows("question");
    assert_eq!(table.len() - 1, 16, "a question has no row, or two");
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
            let answer = may(Some(&book), key(ASKED), NOW, caller, asked);
            assert_eq!(answer.is_ok(), expected == "yes", "{}: {asker}: {answer:?}", row[0]);
            if asker == "dead" {
                assert!(answer.unwrap_err().proof.is_some(), "{}: who is dead is not told", row[0]);
            }
        }
        for role in Role::ALL {
            let user = Asker::Signer(signer(USER, ASKED, None));
            assert!(may(Some(&book_of(role)), key(ASKED), NOW, user, asked).is_err(), "{}: a user", row[0]);
        }
        assert!(may(None, key(ASKED), NOW, Asker::Host(key(FELLOW)), asked).is_err(), "{}: without a pool", row[0]);
    }
}

#[test]
fn every_command_has_its_role_and_its_reach() {
    let table = rows("command");
    let named: Vec<String> = table[1..].iter().map(|row| row[0].clone()).collect();
    assert_eq!(named, Command::ALL.iter().map(|command| format!("{command:?}")).collect::<Vec<_>>());
    let root = Asker::Signer(Signer::root(key(ASKED)));
    for (row, command) in table[1..].iter().zip(Command::ALL) {
        assert_eq!(command.role().to_string(), row[1], "{}", row[0]);
        let is_own = match row[4].as_str() {
            "own" => true,
            "" => false,
            other => panic!("{}: {other}", row[0]),
        };
        for role in Role::ALL {
            let book = book_of(role);
            let answer = may(Some(&book), key(ASKED), NOW, root, Question::Command(*command, None));
            assert_eq!(answer.is_ok(), is_own || role >= command.role(), "{}: root with {role}", row[0]);
            // A token is worth what it says and what its host may, whichever is less.
            for at_most in Role::ALL {
                let here = gives(&book, Signer::token(key(ASKED), at_most), *command, None);
                assert_eq!(here.is_ok(), role.min(at_most) >= command.role(), "{}: {at_most} at a host with {role}", row[0]);
            }
            let without = may(None, key(ASKED), NOW, Asker::Signer(Signer::token(key(ASKED), role)), Question::Command(*command, None));
            assert_eq!(without.is_ok(), role >= command.role(), "{}: {role} without a pool", row[0]);
        }
        // Root at another host is no more than its domain lets it be, and is not heard at all about what is said to a host itself.
        let through = gives(&book_of(Role::Admin), signer(FELLOW, FELLOW, None), *command, None);
        assert_eq!(through.is_ok(), row[2] != "here", "{}: {through:?}", row[0]);
        let vm = Some((Kind::VM, vm_id(3, FELLOW)));
        for silent in [Asker::Nobody, Asker::Host(key(FELLOW)), Asker::Host(key(ASKED)), Asker::Host(key(DEAD))] {
            let answer = may(Some(&book_of(Role::Admin)), key(ASKED), NOW, silent, Question::Command(*command, vm));
            assert!(answer.is_err(), "{}: {silent:?} without a signature", row[0]);
        }
    }
}

#[test]
fn every_signer_of_every_role_may_what_the_table_says() {
    let table = rows("signer");
    let reaches = [Reach::Here, Reach::Domain, Reach::Home, Reach::Job];
    let known = ["root", "token", "user", "ended", "guest", "theirs", "their root", "dead", "unknown"];
    assert_eq!(table[1..].iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), known);
    for row in &table[1..] {
        // Who signs where, to this host itself and to another; the VM is at home in gamma if the signer has to do with that.
        let (here, there, vm) = match row[0].as_str() {
            "root" | "token" => ((ASKED, ASKED), (FELLOW, FELLOW), vm_id(3, FELLOW)),
            "user" => ((USER, ASKED), (USER, FELLOW), vm_id(3, FELLOW)),
            "ended" => ((ENDED, ASKED), (ENDED, FELLOW), vm_id(3, FELLOW)),
            "guest" => ((GUEST, ASKED), (GUEST, FOREIGN), vm_id(3, FELLOW)),
            "theirs" => ((THEIRS, ASKED), (THEIRS, FOREIGN), vm_id(9, FOREIGN)),
            "their root" => ((FOREIGN, ASKED), (FOREIGN, FOREIGN), vm_id(9, FOREIGN)),
            "dead" => ((DEAD, ASKED), (DEAD, DEAD), vm_id(3, FELLOW)),
            _ => ((UNKNOWN, ASKED), (UNKNOWN, FELLOW), vm_id(3, FELLOW)),
        };
        for (role, command) in Role::ALL.into_iter().flat_map(|role| Command::ALL.iter().map(move |command| (role, *command))) {
            let book = book_of(role);
            let token = (row[0] == "token").then_some(Role::User);
            let least = token.map_or(role, |token| role.min(token));
            for (at, reach) in reaches.iter().enumerate() {
                if *reach != command.reach() {
                    continue;
                }
                let (by, host) = if *reach == Reach::Here { here } else { there };
                let answer = gives(&book, signer(by, host, token), command, Some((Kind::VM, vm)));
                let is_own = command.is_own() && row[0] == "root" && host == ASKED;
                let expected = is_own || row[at + 1] == "yes" && least >= command.role();
                assert_eq!(answer.is_ok(), expected, "{} with {role}: {command:?}: {answer:?}", row[0]);
            }
        }
    }
}

#[test]
fn a_vm_is_its_home_domains_wherever_it_runs() {
    let book = book();
    let by = |by: u8, at: u8, vm: Id| gives(&book, signer(by, at, None), Command::VmStop, Some((Kind::VM, vm))).is_ok();
    let (theirs, ours) = (vm_id(9, FOREIGN), vm_id(3, FELLOW));
    assert!(by(THEIRS, FOREIGN, theirs) && by(THEIRS, ASKED, theirs) && by(FOREIGN, FOREIGN, theirs) && by(USER, FELLOW, theirs));
    assert!(!by(THEIRS, FOREIGN, ours) && !by(FOREIGN, FOREIGN, ours) && !by(HOLDER, HOLDER, theirs));
    // Through a host that is no member nothing comes.
    assert!(!by(USER, STRANGER, ours) && !by(USER, CLAIMED, ours) && !by(USER, DEAD, ours));
    // That a domain says so of a VM of its own gives it no part of another's; that another's VM is there does.
    let part = |host: u8, digest| may(Some(&book), key(ASKED), NOW, Asker::Host(key(host)), Question::Part(digest)).is_ok();
    assert_eq!((part(FOREIGN, Name([9; 32])), part(HOLDER, PART), part(FOREIGN, PART)), (false, true, false));
}

#[test]
fn a_refusal_says_what_is_needed_and_what_gives_it() {
    let book = book_of(Role::Viewer);
    let said = |signer| gives(&book, signer, Command::VmStop, None).unwrap_err().to_string();
    let begins = "to stop a VM needs the role user; ";
    let gives = ", where domain alpha's key is, gives it";
    let root = format!("{begins}root@h4 has viewer: `rebec host set-role h4 user`{gives}");
    assert_eq!(said(signer(FELLOW, FELLOW, None)), root);
    let anna = format!("rebec user add u20 --key {} --role user", key(USER));
    assert_eq!(said(signer(USER, FELLOW, None)), format!("{begins}u20 has viewer: `{anna}`{gives}"));
    assert!(said(signer(ENDED, ASKED, None)).contains("the role of u21 has ended: `rebec user add u21 --key"));
    let nobody = format!("{begins}domain alpha gave none to key {0}: `rebec user add NAME --key {0} --role user`{gives}", key(UNKNOWN));
    assert_eq!(said(signer(UNKNOWN, ASKED, None)), nobody);
    assert!(said(signer(FOREIGN, FOREIGN, None)).contains("gave none to gamma/root@h9: `rebec user add NAME --key"));
    let book = book_of(Role::Admin);
    let token = super::tests::gives(&book, Signer::token(key(ASKED), Role::Viewer), Command::VmStop, None);
    let makes = format!("{begins}this token has viewer: `rebec token create NAME --role user` makes one that may");
    assert_eq!(token.unwrap_err().to_string(), makes);
}

#[test]
fn proofs_are_of_that_vm_that_host_and_that_epoch() {
    let book = book();
    let ask = |host: u8, question| may(Some(&book), key(ASKED), NOW, Asker::Host(key(host)), question).is_ok();
    assert!(ask(HOLDER, Question::Arrive(vm_id(1, ASKED), 2)));
    for wrong in [Question::Arrive(vm_id(1, ASKED), 1), Question::Arrive(vm_id(1, ASKED), u64::MAX), Question::Arrive(vm_id(3, FELLOW), 1)]
    {
        assert!(!ask(HOLDER, wrong), "{wrong:?}");
    }
    for wrong in [Question::Start(vm_id(3, FELLOW), 2), Question::Start(vm_id(1, ASKED), 1), Question::Start(vm_id(2, FELLOW), 1)] {
        assert!(!ask(FELLOW, wrong), "{wrong:?}");
    }
    assert!(!ask(FELLOW, Question::Disks(vm_id(1, ASKED))));
    assert!(!ask(FELLOW, Question::Remove(vm_id(1, ASKED))) && !ask(FELLOW, Question::Addresses(Name([3; 16]))));
    assert!(!ask(FELLOW, Question::Return(Name([3; 16]))));
}
