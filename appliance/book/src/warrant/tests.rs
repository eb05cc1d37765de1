//! What is signed is what is carried out: nothing else, nowhere else, not later.

use super::*;
use crate::{
    key::{bound_id, id_of_key},
    record::{Assigned, Body, DomainBody, HostBody, MemberBody, PoolBody, Record},
    samples::{self, key, secret},
};

const NOW: u64 = 1_800_000_000;
const POOL: u8 = 1;
const ALPHA: u8 = 2;
const HERE: u8 = 3;
const BETA: u8 = 4;
const THERE: u8 = 5;
const USER: u8 = 6;

fn warrant() -> Warrant {
    Warrant {
        signer: key(USER),
        at: key(HERE),
        method: "POST".into(),
        path: "/v1/vms/web/stop?x=1".into(),
        body: Some(body_digest(b"{}")),
        until: NOW + LIFE_S,
        nonce: Name([7; 16]),
        token: None,
    }
}

fn proven(warrant: &Warrant) -> Proven {
    Proven::open(&warrant.sign(&secret(USER)).unwrap()).unwrap()
}

#[test]
fn a_warrant_is_read_as_it_was_signed_and_no_bit_may_change() {
    let text = warrant().sign(&secret(USER)).unwrap();
    assert_eq!(Proven::open(&text).unwrap().warrant(), &warrant());
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(Proven::open(&BASE64URL_NOPAD.encode(&changed)).is_err(), "byte {at}");
    }
    for wrong in ["", "x", "\u{e9}", &text[..text.len() - 4], &"A".repeat(TEXT_BYTES_MAX + 4)] {
        assert!(Proven::open(wrong).is_err(), "{wrong:.20}");
    }
    // With another's name under it, and signed by another.
    assert_eq!(warrant().sign(&secret(HERE)), Err(BadWarrant::Malformed));
    let content = minicbor::to_vec(warrant()).unwrap();
    assert_eq!(Proven::open(&sealed(&content, &secret(HERE))), Err(BadWarrant::Signature(key(USER))));
    // A signature for another purpose is none of a command.
    let purpose = [b"rebec record v1\0", &content[..]].concat();
    let record = BASE64URL_NOPAD.encode(&[&sign(&secret(USER), &purpose)[..], &content].concat());
    assert_eq!(Proven::open(&record), Err(BadWarrant::Signature(key(USER))));
}

#[test]
fn a_warrant_is_good_at_its_place_and_in_its_time() {
    let proven = proven(&warrant());
    let signer = proven.signer(key(HERE), NOW).unwrap();
    assert_eq!((signer.key(), signer.at(), signer.at_most()), (key(USER), key(HERE), None));
    assert_eq!(proven.signer(key(THERE), NOW), Err(BadWarrant::Place));
    let at = |now: u64| proven.signer(key(HERE), now).is_ok();
    let end = NOW + LIFE_S + SKEW_S;
    assert_eq!((at(end), at(end + 1), at(NOW - SKEW_S), at(NOW - SKEW_S - 1)), (true, false, true, false));
    let forever = Warrant { until: u64::MAX, ..warrant() };
    assert!(matches!(super::Proven(forever).signer(key(HERE), NOW), Err(BadWarrant::Time { .. })));
}

#[test]
fn a_host_that_speaks_for_itself_needs_no_clock_and_nobody_speaks_for_it() {
    let by_host = Warrant { signer: key(HERE), until: 1, ..warrant() };
    let by_host = Proven::open(&by_host.sign(&secret(HERE)).unwrap()).unwrap();
    assert_eq!(by_host.signer(key(HERE), NOW).map(|signer| signer.key()), Ok(key(HERE)));
    assert_eq!(by_host.signer(key(THERE), NOW), Err(BadWarrant::Place));
    let mut replays = Replays::default();
    for _ in 0..2 {
        assert_eq!(replays.once(&by_host, NOW, 0), Ok(()));
    }
}

#[test]
fn only_a_host_signs_for_its_tokens() {
    let token = Some(TokenBound { name: "eyes".into(), role: Role::Viewer });
    let of_user = proven(&Warrant { token: token.clone(), ..warrant() });
    assert_eq!(of_user.signer(key(HERE), NOW), Err(BadWarrant::Place));
    let of_host = Warrant { token, signer: key(HERE), ..warrant() };
    let of_host = Proven::open(&of_host.sign(&secret(HERE)).unwrap()).unwrap();
    assert_eq!(of_host.signer(key(HERE), NOW).unwrap().at_most(), Some(Role::Viewer));
    let odd = Warrant { token: Some(TokenBound { name: "no name".into(), role: Role::Viewer }), ..warrant() };
    assert_eq!(Proven::open(&odd.sign(&secret(USER)).unwrap()), Err(BadWarrant::Malformed));
}

/// Two domains that each have a VM `web`.
fn book() -> (Book, [Id; 2]) {
    let mut book = Book::new(key(POOL)).of_host(key(THERE));
    let mut seq = 0;
    let mut write = |kind, id, by: u8, body: Body| {
        seq += 1;
        assert_eq!(book.merge(Record::sign(kind, id, seq, Some(&body), &secret(by)).unwrap()), Ok(true));
    };
    write(Kind::POOL, Name([0; 16]), POOL, Body::Pool(PoolBody { name: "lab".into() }));
    let mut vms = [Name([0; 16]); 2];
    for (at, (domain, host, name)) in [(ALPHA, HERE, "alpha"), (BETA, THERE, "beta")].into_iter().enumerate() {
        write(Kind::DOMAIN, id_of_key(&key(domain)), POOL, Body::Domain(DomainBody { name: name.into(), key: key(domain) }));
        let member = MemberBody { host: key(host), domain: key(domain), name: format!("h{host}"), dead: None, role: None };
        write(Kind::MEMBER, id_of_key(&key(host)), domain, Body::Member(member));
        let body = HostBody::bare(key(domain));
        write(Kind::HOST, id_of_key(&key(host)), host, Body::Host(body.into()));
        let nonce = Name([1; 16]);
        let vm = samples::vm(nonce, "web", Assigned { host: key(host), epoch: 1 });
        vms[at] = bound_id(&key(host), &nonce);
        write(Kind::VM, vms[at], host, Body::Vm(vm.into()));
    }
    (book, vms)
}

#[test]
fn a_name_means_what_it_meant_where_it_was_said() {
    let (book, [ours, theirs]) = book();
    let covers = |said: &str, method: &str, path: &str, vm: Id| {
        proven(&Warrant { path: said.into(), ..warrant() }).covers(&book, method, path, Some((Kind::VM, vm))).is_ok()
    };
    let on = |vm: Id, rest: &str| format!("/v1/vms/{}{rest}", names::by_id(&vm));
    for said in ["/v1/vms/web/stop?x=1", "/v1/vms/%77eb/stop?x=1", "/v1/vms/alpha%2Fweb/stop?x=1", &on(ours, "/stop?x=1")] {
        assert!(covers(said, "POST", &on(ours, "/stop?x=1"), ours), "{said}");
        assert!(!covers(said, "POST", &on(theirs, "/stop?x=1"), theirs), "{said} is the other's");
        assert!(!covers(said, "DELETE", &on(ours, "/stop?x=1"), ours), "{said}: another method");
        assert!(!covers(said, "POST", &on(ours, "/start?x=1"), ours), "{said}: another command");
        assert!(!covers(said, "POST", &on(ours, "/stop"), ours), "{said}: without its query");
    }
    assert!(covers("/v1/vms/beta%2Fweb", "POST", &on(theirs, ""), theirs));
    for odd in ["/v1/vms/%", "/v1/vms/%f", "/v1/vms/%zz", "/v1/vms/%ff", "/v1", "", "/v1/vms/", "/v1/vms/none"] {
        assert!(!covers(odd, "POST", &on(ours, ""), ours), "{odd}");
    }
    // About nothing, or to the host itself: the path as it stands.
    let alone = proven(&Warrant { path: "/v1/vms".into(), ..warrant() });
    assert!(alone.covers(&book, "POST", "/v1/vms", None).is_ok() && alone.covers(&book, "POST", "/v1/lans", None).is_err());
}

#[test]
fn a_body_is_the_one_that_was_signed() {
    let with = proven(&warrant());
    assert!(with.covers_body(Some(b"{}")).is_ok() && with.covers_body(Some(b"{ }")).is_err() && with.covers_body(None).is_err());
    let file = proven(&Warrant { body: None, ..warrant() });
    assert!(file.covers_body(None).is_ok() && file.covers_body(Some(b"")).is_err());
}
