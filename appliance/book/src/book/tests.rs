//! Books of several hosts: who may write what, and that exchanges make them equal in any order.

use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use super::*;
use crate::{
    key::{Id, public},
    record::{DomainBody, ImageBody, MemberBody, PartRef, PoolBody},
    view,
};

fn secret(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn pool(version: u64) -> Signed {
    Record::sign(Kind::Pool, Name([0; 16]), version, Some(Body::Pool(PoolBody { name: format!("v{version}") })), &secret(1)).unwrap()
}

fn domain(key: &SigningKey, name: &str, by: &SigningKey) -> Signed {
    let body = DomainBody { name: name.into(), key: public(key) };
    Record::sign(Kind::Domain, id_of_key(&public(key)), 1, Some(Body::Domain(body)), by).unwrap()
}

fn member(host: &SigningKey, name: &str, by: &SigningKey) -> Signed {
    let body = MemberBody { host: public(host), name: name.into(), dead: None };
    Record::sign(Kind::Member, id_of_key(&public(host)), 1, Some(Body::Member(body)), by).unwrap()
}

fn image(number: u8, version: u64, name: &str, by: &SigningKey) -> Signed {
    let kernel = PartRef { digest: Name([7; 32]), bytes: 7 };
    let body = ImageBody { name: name.into(), kernel, initramfs: None, cmdline: String::new(), disk: None, created: 0 };
    Record::sign(Kind::Image, Name([number; 16]), version, Some(Body::Image(body)), by).unwrap()
}

/// Pool 1, domain 2, hosts 3 and 4.
fn founded() -> Book {
    let mut book = Book::new(public(&secret(1)));
    for signed in
        [pool(1), domain(&secret(2), "alpha", &secret(1)), member(&secret(3), "a1", &secret(2)), member(&secret(4), "a1", &secret(2))]
    {
        assert_eq!(book.merge(signed), Ok(true));
    }
    book
}

#[test]
fn only_who_has_the_right_is_believed() {
    let mut book = founded();
    let stranger = secret(9);
    for signed in [
        domain(&stranger, "evil", &stranger),
        domain(&stranger, "evil", &secret(2)),
        member(&stranger, "evil", &stranger),
        member(&stranger, "evil", &secret(3)),
        image(1, 1, "evil", &stranger),
        Record::sign(Kind::Pool, Name([0; 16]), 2, None, &secret(2)).unwrap(),
    ] {
        assert!(matches!(book.merge(signed), Err(Unbelievable::Writer(..))));
    }
    assert_eq!(book.merge(image(1, 1, "debian", &secret(3))), Ok(true));
}

#[test]
fn a_changed_byte_is_never_believed() {
    let signed = image(1, 1, "debian", &secret(3));
    for at in 0..signed.content.len() {
        let mut changed = signed.clone();
        changed.content[at] ^= 1;
        assert!(founded().merge(changed).is_err(), "byte {at}");
    }
    let other = Signed { signature: image(1, 2, "debian", &secret(3)).signature, ..signed };
    assert!(matches!(founded().merge(other), Err(Unbelievable::Signature(..))));
}

#[test]
fn an_old_version_does_not_come_back() {
    let mut book = founded();
    assert_eq!(book.merge(image(1, 2, "new", &secret(3))), Ok(true));
    assert_eq!(book.merge(image(1, 1, "old", &secret(3))), Ok(false));
    assert_eq!(book.merge(image(1, 2, "new", &secret(3))), Ok(false));
    let gone = Record::sign(Kind::Image, Name([1; 16]), 3, None, &secret(3)).unwrap();
    assert_eq!(book.merge(gone), Ok(true));
    assert_eq!(book.merge(image(1, 2, "new", &secret(3))), Ok(false));
    assert!(view::images(&book).is_empty());
}

#[test]
fn two_things_of_one_name_are_told_apart() {
    let mut book = founded();
    let names: Vec<_> = view::hosts(&book).into_iter().map(|host| host.name).collect();
    let expected = |number| format!("a1-{}", public(&secret(number)).short());
    assert!(names.len() == 2 && names.contains(&expected(3)) && names.contains(&expected(4)), "{names:?}");
    book.merge(image(1, 1, "debian", &secret(3))).unwrap();
    assert_eq!(view::images(&book)[0].name, "debian");
    book.merge(image(2, 1, "debian", &secret(4))).unwrap();
    assert_eq!(view::images(&book)[0].name, "debian-01010101");
}

fn exchange(a: &mut Book, b: &mut Book, bytes_max: usize) {
    for _ in 0..1000 {
        if a.hash() == b.hash() {
            return;
        }
        let (for_a, wanted) = b.compare(&a.summary().stamps, bytes_max);
        let for_b = a.pick(&wanted, bytes_max);
        for signed in for_a {
            a.merge(signed).unwrap();
        }
        for signed in for_b {
            b.merge(signed).unwrap();
        }
    }
    panic!("the books stay different");
}

proptest! {
    #[test]
    fn exchanges_make_books_equal(
        left in prop::collection::vec((0u8..6, 1u64..5, 3u8..=4), 0..30),
        right in prop::collection::vec((0u8..6, 1u64..5, 3u8..=4), 0..30),
        bytes_max in 1usize..2000,
    ) {
        let (mut a, mut b) = (founded(), Book::new(public(&secret(1))));
        for (number, version, writer) in left {
            a.merge(image(number, version, "left", &secret(writer))).unwrap();
        }
        let mut partitioned = founded();
        for (number, version, writer) in right {
            partitioned.merge(image(number, version, "right", &secret(writer))).unwrap();
        }
        exchange(&mut a, &mut b, bytes_max);
        exchange(&mut b, &mut partitioned, bytes_max);
        exchange(&mut a, &mut partitioned, bytes_max);
        prop_assert_eq!(a.summary(), partitioned.summary());
    }

    #[test]
    fn bytes_from_outside_do_not_panic(content in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut book = founded();
        let merged = book.merge(Signed { content, signature: ([0; 32], [0; 32]) });
        prop_assert!(merged.is_err());
    }
}

#[test]
fn ids_are_read_as_written() {
    let id: Id = Name([0xab; 16]);
    assert_eq!(id.to_string().parse(), Ok(id));
    assert!("xyz".parse::<Id>().is_err());
}
