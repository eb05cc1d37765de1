//! Books of several hosts: who may write what, who belongs to whom, and that exchanges make books equal in any order.

use proptest::prelude::*;

use super::*;
use crate::{
    key::bound_id,
    record::{Assigned, BYTES_MAX, DomainBody, FloorBody, HostBody, MemberBody, PoolBody, SeenBody},
    samples::{self, key, secret},
    view,
};

fn pool(seq: u64) -> Signed {
    Record::sign(Kind::POOL, Name([0; 16]), seq, Some(&Body::Pool(PoolBody { name: format!("v{seq}") })), &secret(1)).unwrap()
}

fn domain(seq: u64, number: u8, name: &str, by: u8) -> Signed {
    let body = Body::Domain(DomainBody { name: name.into(), key: key(number) });
    Record::sign(Kind::DOMAIN, id_of_key(&key(number)), seq, Some(&body), &secret(by)).unwrap()
}

fn member(seq: u64, host: u8, name: &str, by: u8) -> Signed {
    let body = Body::Member(MemberBody { host: key(host), domain: key(by), name: name.into(), dead: None, role: None });
    Record::sign(Kind::MEMBER, id_of_key(&key(host)), seq, Some(&body), &secret(by)).unwrap()
}

fn says(seq: u64, host: u8, domain: u8) -> Signed {
    let body = HostBody::bare(key(domain));
    Record::sign(Kind::HOST, id_of_key(&key(host)), seq, Some(&Body::Host(body.into())), &secret(host)).unwrap()
}

fn image_id(number: u8, by: u8) -> Id {
    bound_id(&key(by), &Name([number; 16]))
}

fn image(number: u8, seq: u64, name: &str, by: u8) -> Signed {
    let body = samples::image(Name([number; 16]), name);
    Record::sign(Kind::IMAGE, image_id(number, by), seq, Some(&Body::Image(body.into())), &secret(by)).unwrap()
}

/// Pool 1, domain 2 with hosts 3 and 4, domain 5 with host 6.
fn founded() -> Book {
    let mut book = Book::new(key(1)).of_host(key(3));
    let records = [
        pool(1),
        domain(2, 2, "alpha", 1),
        domain(3, 5, "beta", 1),
        member(1, 3, "a1", 2),
        member(2, 4, "a2", 2),
        member(1, 6, "b1", 5),
        says(1, 3, 2),
        says(1, 4, 2),
        says(1, 6, 5),
    ];
    for signed in records {
        assert_eq!(book.merge(signed), Ok(true));
    }
    book
}

fn hosts(book: &Book) -> Vec<String> {
    view::hosts(book).into_iter().map(|host| host.name).collect()
}

fn images(book: &Book) -> Vec<String> {
    view::images(book).into_iter().map(|image| image.name).collect()
}

#[test]
fn who_is_no_member_has_no_log() {
    let mut book = founded();
    for signed in [domain(1, 9, "evil", 9), member(1, 9, "evil", 9), image(1, 1, "evil", 9), says(1, 9, 2)] {
        assert!(matches!(book.merge(signed), Err(Unbelievable::Writer(..))));
    }
    assert_eq!(book.merge(image(1, 2, "debian", 3)), Ok(true));
    assert_eq!(images(&book), ["debian"]);
}

#[test]
fn what_a_writer_has_no_right_to_is_kept_and_counts_for_nothing() {
    let mut book = founded();
    // A host names a domain, lets a host in, speaks for another, and takes another's id.
    let twin = {
        let body = samples::image(Name([1; 16]), "aaa");
        Record::sign(Kind::IMAGE, image_id(1, 3), 9, Some(&Body::Image(body.into())), &secret(6)).unwrap()
    };
    book.merge(image(1, 2, "debian", 3)).unwrap();
    let before = (hosts(&book), images(&book), view::domains(&book).len(), view::pool_name(&book).map(str::to_owned));
    for signed in [domain(5, 9, "evil", 6), member(6, 9, "evil", 6), twin, pool(7)] {
        book.merge(signed).unwrap();
    }
    let own_pool = Record::sign(Kind::POOL, Name([0; 16]), 8, None, &secret(6)).unwrap();
    book.merge(own_pool).unwrap();
    let host = Body::Host(HostBody::bare(key(2)).into());
    book.merge(Record::sign(Kind::HOST, id_of_key(&key(4)), 10, Some(&host), &secret(6)).unwrap()).unwrap();
    assert_eq!(book.get(Kind::HOST, id_of_key(&key(4)), key(6)), Some(&Body::Unknown));
    let after = (hosts(&book), images(&book), view::domains(&book).len(), Some("v1".to_owned()));
    assert_eq!((before.0, before.1, before.2), (after.0, after.1, after.2));
    assert!(!book.is_member(&key(9)) && matches!(book.merge(image(2, 1, "x", 9)), Err(Unbelievable::Writer(..))));
    assert_eq!(book.thing(Kind::IMAGE, image_id(1, 3)).map(|thing| thing.home), Some(key(3)));
}

#[test]
fn a_host_belongs_where_it_says_and_is_let_in() {
    let mut book = founded();
    let died = MemberBody { host: key(4), domain: key(5), name: "mine".into(), dead: Some("gone".into()), role: None };
    let claim = Record::sign(Kind::MEMBER, id_of_key(&key(4)), 2, Some(&Body::Member(died)), &secret(5)).unwrap();
    assert_eq!(book.merge(claim), Ok(true));
    assert_eq!((book.domain_of(&key(4)), book.dead(&key(4))), (Some(key(2)), None));
    assert_eq!(hosts(&book), ["a1", "a2", "beta/b1"]);
    // Its own word alone is not enough either.
    book.merge(says(2, 6, 2)).unwrap();
    assert_eq!(book.domain_of(&key(6)), None);
}

#[test]
fn a_helper_lets_hosts_in_until_the_domain_takes_that_back() {
    let mut book = founded();
    let by_helper = |seq| {
        let body = MemberBody { host: key(8), domain: key(2), name: "a3".into(), dead: None, role: None };
        Record::sign(Kind::MEMBER, id_of_key(&key(8)), seq, Some(&Body::Member(body)), &secret(4)).unwrap()
    };
    book.merge(by_helper(2)).unwrap();
    assert!(matches!(book.merge(says(1, 8, 2)), Err(Unbelievable::Writer(..))));
    let helper = Body::Helper(crate::record::HelperBody { key: key(4) });
    book.merge(Record::sign(Kind::HELPER, id_of_key(&key(4)), 3, Some(&helper), &secret(2)).unwrap()).unwrap();
    assert_eq!(book.merge(says(1, 8, 2)), Ok(true));
    assert_eq!(hosts(&book), ["a1", "a2", "a3", "beta/b1"]);
    book.merge(Record::sign(Kind::HELPER, id_of_key(&key(4)), 4, None, &secret(2)).unwrap()).unwrap();
    assert_eq!((hosts(&book).len(), book.head(&key(8))), (3, 0));
}

#[test]
fn a_changed_byte_is_never_believed() {
    let bytes = image(1, 2, "debian", 3).to_bytes();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(founded().merge(Signed::from_bytes(&changed).unwrap()).is_err(), "byte {at}");
    }
}

#[test]
fn an_old_record_does_not_come_back() {
    let mut book = founded();
    assert_eq!(book.merge(image(1, 3, "new", 3)), Ok(true));
    assert_eq!(book.merge(image(1, 2, "old", 3)), Ok(false));
    assert_eq!(book.merge(image(1, 3, "new", 3)), Ok(false));
    assert_eq!(book.merge(Record::sign(Kind::IMAGE, image_id(1, 3), 4, None, &secret(3)).unwrap()), Ok(true));
    assert_eq!(book.merge(image(1, 3, "new", 3)), Ok(false));
    assert!(images(&book).is_empty() && book.gone(&key(3)) == 1);
    // A floor takes with it what is gone, and what anybody still has from before.
    let floor = Body::Floor(FloorBody { floor: 4 });
    book.merge(says(5, 3, 2)).unwrap();
    book.merge(Record::sign(Kind::FLOOR, Name([0; 16]), 6, Some(&floor), &secret(3)).unwrap()).unwrap();
    assert_eq!((book.gone(&key(3)), book.merge(image(1, 3, "new", 3)), hosts(&book).len()), (0, Ok(false), 3));
}

#[test]
fn who_leaves_takes_its_log_along_and_may_come_back() {
    let mut book = founded();
    book.merge(image(1, 2, "debian", 4)).unwrap();
    let gone = Record::sign(Kind::MEMBER, id_of_key(&key(4)), 3, None, &secret(2)).unwrap();
    book.merge(gone).unwrap();
    assert_eq!((hosts(&book).len(), images(&book).len(), book.head(&key(4))), (2, 0, 0));
    assert!(matches!(book.merge(says(9, 4, 2)), Err(Unbelievable::Writer(..))));
    book.merge(member(4, 4, "a2", 2)).unwrap();
    assert_eq!((book.merge(says(9, 4, 2)), hosts(&book).len()), (Ok(true), 3));
}

#[test]
fn names_are_a_domains_own() {
    let mut book = founded();
    book.merge(image(1, 2, "debian", 3)).unwrap();
    book.merge(image(1, 2, "debian", 6)).unwrap();
    assert_eq!(images(&book), ["beta/debian", "debian"]);
    let meant = |book: &Book, text: &str| crate::names::find(book, Kind::IMAGE, text);
    use crate::names::Meant;
    assert_eq!(meant(&book, "debian"), Meant::One(image_id(1, 3)));
    assert_eq!(meant(&book, "beta/debian"), Meant::One(image_id(1, 6)));
    assert_eq!(meant(&book, &format!("~{}", image_id(1, 6))), Meant::One(image_id(1, 6)));
    book.merge(image(2, 2, "debian", 4)).unwrap();
    let Meant::Several(both) = meant(&book, "debian") else { panic!("two of one name are one") };
    assert!(both.iter().all(|name| meant(&book, name) != Meant::Nothing && name.starts_with("debian~")), "{both:?}");
    assert_eq!(
        meant(&book, &both[0]),
        Meant::One(if both[0].ends_with(&image_id(1, 3).short()) { image_id(1, 3) } else { image_id(2, 4) })
    );
    for text in ["", "~", "~zz", "/", "gamma/debian", "debian~", "%64ebian"] {
        assert!(!matches!(meant(&book, text), Meant::One(_)), "{text}");
    }
}

#[test]
fn what_this_version_does_not_know_is_kept_and_passed_on() {
    let mut book = founded();
    let content = minicbor::to_vec((minicbor::bytes::ByteVec::from(key(3).0.to_vec()), 2u64, 999u16)).unwrap();
    assert!(book.merge(Signed::of(content, &secret(3))).is_err());
    let later = Record::sign(Kind(999), Name([1; 16]), 2, Some(&Body::Pool(PoolBody { name: "x".into() })), &secret(3)).unwrap();
    assert_eq!(book.merge(later.clone()), Ok(true));
    assert!(all_of(&book).contains(&later));
}

#[test]
fn a_writer_has_so_much_room_and_no_more() {
    let mut book = founded();
    let mut taken = 0;
    for number in 0..HOST_QUOTA.records as u64 + 10 {
        let tomb = Record::sign(Kind::SEEN, Name(u128::from(number).to_be_bytes()), number + 2, None, &secret(6)).unwrap();
        taken += usize::from(book.restore(tomb, Came::InTurn) == Ok(true));
    }
    // Its host record is one of them.
    assert_eq!(taken, HOST_QUOTA.records - 1);
    let group = book.group_of_log(&key(6)).unwrap();
    assert!(book.marks_in(group, &book.lens(book.own_domain())).iter().all(|mark| mark.writer != tag_of(&key(6))), "it is asked for again");
    assert_eq!(book.merge(image(1, 2, "debian", 3)), Ok(true));
}

#[test]
fn a_vm_takes_room_once_however_many_write_of_it() {
    let mut book = founded();
    let (nonce, id) = (Name([1; 16]), image_id(1, 3));
    let vm = samples::vm(nonce, "web", Assigned { host: key(3), epoch: 1 });
    let seen = SeenBody { memory_bytes: 7, ..samples::seen() };
    book.merge(Record::sign(Kind::VM, id, 2, Some(&Body::Vm(vm.clone().into())), &secret(3)).unwrap()).unwrap();
    book.merge(Record::sign(Kind::SEEN, id, 3, Some(&Body::Seen(seen.into())), &secret(3)).unwrap()).unwrap();
    book.merge(Record::sign(Kind::VM, id, 2, Some(&Body::Vm(vm.into())), &secret(6)).unwrap()).unwrap();
    assert_eq!(view::loads(&book)[&key(3)], view::Load { vms: 1, memory_bytes: 7 });
}

#[test]
fn all_hosts_of_a_domain_together_have_so_much_room() {
    let mut book = founded();
    let hosts: Vec<u8> = (100..130).collect();
    for (number, host) in (10..).zip(&hosts) {
        book.merge(member(number, *host, &format!("h{host}"), 5)).unwrap();
        book.merge(says(1, *host, 5)).unwrap();
    }
    let (body, mut taken, mut refused) = (vec![0; BYTES_MAX - 1024], 0, None);
    // Each stays below what one host may have.
    for (host, number) in hosts.iter().flat_map(|host| (0..60u64).map(move |number| (*host, number))) {
        let signed = Record::sign_bytes(Kind(999), Name(u128::from(number).to_be_bytes()), number + 2, Some(&body), &secret(host)).unwrap();
        let bytes = signed.bytes();
        match book.restore(signed, Came::InTurn) {
            Ok(_) => taken += bytes,
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let all = DOMAIN_QUOTA.bytes;
    assert!((all - BYTES_MAX..=all).contains(&taken), "{taken}");
    assert!(matches!(refused, Some(Unbelievable::Quota(_, _, _, bytes)) if bytes == all), "{refused:?}");
    // Another domain has its own.
    assert_eq!(book.merge(image(1, 2, "debian", 3)), Ok(true));
}

/// What one book lacks of another, the keys first.
fn lacking(of: &Book, from: &Book, bytes_max: usize, chance: u64) -> Vec<Signed> {
    let mut groups: Vec<Tag> = from.groups(0, &from.lens(from.own_domain())).into_iter().map(|mark| mark.group).collect();
    groups.sort_by_key(|group| *group != tag_of(&from.pool()));
    let above = groups.into_iter().map(|group| {
        from.above_in(group, &of.marks_in(group, &of.lens(of.own_domain())), &from.lens(from.own_domain()), bytes_max, chance, |_, _| true)
    });
    above.flat_map(|(in_turn, alone)| [in_turn, alone].concat()).collect()
}

fn all_of(book: &Book) -> Vec<Signed> {
    lacking(&Book::new(book.pool()), book, 1 << 20, 0)
}

/// What comes before that which allows it comes again.
fn take(book: &mut Book, signed: Signed) {
    let taken = book.restore(signed, Came::InTurn);
    assert!(matches!(taken, Ok(_) | Err(Unbelievable::Writer(..))), "{taken:?}");
}

fn exchange(a: &mut Book, b: &mut Book, bytes_max: usize) {
    for round in 0..4000 {
        if a.groups(0, &a.lens(a.own_domain())) == b.groups(0, &b.lens(b.own_domain())) {
            return;
        }
        for signed in lacking(a, b, bytes_max, round) {
            take(a, signed);
        }
        for signed in lacking(b, a, bytes_max, round) {
            take(b, signed);
        }
    }
    panic!("the books stay different");
}

proptest! {
    #[test]
    fn exchanges_make_books_equal(
        left in prop::collection::vec((0u8..6, 2u64..9, 3u8..=4), 0..30),
        right in prop::collection::vec((0u8..6, 2u64..9, 3u8..=4), 0..30),
        bytes_max in 1usize..2000,
    ) {
        // Two hosts that used numbers twice, and a host that knows nothing yet.
        let (mut a, mut b) = (founded(), Book::new(key(1)));
        for (number, seq, writer) in left {
            a.merge(image(number, seq, "left", writer)).unwrap();
        }
        let mut partitioned = founded();
        for (number, seq, writer) in right {
            partitioned.merge(image(number, seq, "right", writer)).unwrap();
        }
        exchange(&mut a, &mut b, bytes_max);
        exchange(&mut b, &mut partitioned, bytes_max);
        exchange(&mut a, &mut partitioned, bytes_max);
        prop_assert_eq!(a.all().collect::<Vec<_>>(), partitioned.all().collect::<Vec<_>>());
    }

    #[test]
    fn bytes_from_outside_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(signed) = Signed::from_bytes(&bytes) {
            prop_assert!(founded().merge(signed).is_err());
        }
    }
}

/// What somebody held back is found out, once both sides are equally far.
#[test]
fn a_record_that_was_held_back_comes_in_the_end() {
    let (mut honest, mut cheated) = (founded(), founded());
    for (number, seq) in [(1, 2), (2, 3), (3, 4)] {
        honest.restore(image(number, seq, "x", 3), Came::InTurn).unwrap();
    }
    cheated.restore(image(1, 2, "x", 3), Came::InTurn).unwrap();
    cheated.restore(image(3, 4, "x", 3), Came::InTurn).unwrap();
    assert_eq!((honest.head(&key(3)), cheated.head(&key(3))), (4, 4));
    let group = honest.group_of_log(&key(3)).unwrap();
    assert!(cheated.is_behind_in(&honest.marks_in(group, &honest.lens(honest.own_domain())), &cheated.lens(cheated.own_domain())));
    exchange(&mut honest, &mut cheated, 1 << 20);
    assert_eq!(images(&cheated).len(), 3);
}

#[test]
fn ids_are_read_as_written() {
    let id: Id = Name([0xab; 16]);
    assert_eq!(id.to_string().parse(), Ok(id));
    assert!("xyz".parse::<Id>().is_err());
}
