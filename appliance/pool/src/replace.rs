//! A host without a state disk starts again with another key: it takes the place of the silent one that it was. Pure.
//!
//! Which machine a host is it says itself, and that gives no right. What counts is the domain's: whoever holds its root key let both in by tickets,
//! remembers which machine the first said it was, and declares it dead only where nobody has heard it since the second came. A host whose
//! state survives reboots keeps its key, and is never replaced so.

use std::time::Duration;

use rebec_book::{
    Book,
    key::{Digest, Key},
    record::Kind,
    view,
};
use serde::{Deserialize, Serialize};

/// So long nobody has heard a host that is replaced.
pub const SILENT_FOR: Duration = Duration::from_secs(15);
/// So long after the second came the first may still be heard, or be thought to be: after that they are two.
pub const WAIT: Duration = Duration::from_secs(120);
/// So long a host that was replaced is remembered as dead, at least: it is told so if it comes.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// A host without a state disk, as whoever let it in remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Which machine it said it was.
    pub machine: Digest,
    /// The name that it asked for.
    pub name: String,
    /// Its key.
    pub host: Key,
    /// The host that it may have been.
    pub was: Option<Key>,
    /// Whether another has taken its place.
    pub replaced: bool,
}

/// A host comes that says it is this machine; returns what is to be remembered of it.
pub fn bind(known: &[Bound], machine: Digest, name: &str, host: Key) -> Bound {
    let is_it = |bound: &&Bound| bound.machine == machine && bound.name == name && bound.host != host && !bound.replaced;
    let was = known.iter().rev().find(is_it).map(|bound| bound.host);
    Bound { machine, name: name.to_owned(), host, was, replaced: false }
}

/// What is to become of the host that another may have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is declared dead, and the other has its place.
    Replace,
    /// That is not known yet.
    Wait,
    /// They are two, or there is nothing to be done.
    Never(&'static str),
}

/// Judges whether a host of a domain has taken the place of another. `silence` is for how long nobody has heard that one; none where it answers.
pub fn judge(book: &Book, domain: &Key, was: &Key, is: &Key, silence: Option<Duration>, answers: bool) -> Verdict {
    let Some((first, before)) = book.membership(was) else { return Verdict::Never("the first has left") };
    let Some((second, now)) = book.membership(is) else { return Verdict::Wait };
    let keeps_state = |host: &Key| book.host(host).is_none_or(|body| body.durable);
    match () {
        () if first != *domain || second != *domain => Verdict::Never("they are not of one domain"),
        () if before.dead.is_some() || now.dead.is_some() => Verdict::Never("one of them was declared dead"),
        () if before.name != now.name => Verdict::Never("they have two names"),
        () if keeps_state(was) || keeps_state(is) => Verdict::Never("the state of one of them survives a reboot"),
        () if answers && silence.is_some_and(|silence| silence >= SILENT_FOR) => Verdict::Replace,
        () => Verdict::Wait,
    }
}

/// Whether nothing that lives stands on a host that is dead: what it wrote may go.
pub fn is_over(book: &Book, host: &Key) -> bool {
    let lives = |key: &Key| key != host && book.is_member(key) && book.dead(key).is_none();
    let needs = |vm: &view::Named<'_, _>| {
        let holder = view::holder(book, vm.id).map(|at| at.host);
        let is_elsewhere = || holder.as_ref().is_some_and(lives) || view::keeper(book, vm.id).as_ref().is_some_and(lives);
        vm.home == *host && is_elsewhere() || holder == Some(*host) && lives(&vm.home)
    };
    let is_used = |lan| book.on_lan(lan).any(|record| lives(&record.key.writer));
    let lans = book.of_kind(Kind::LAN).filter(|record| record.key.writer == *host && record.body.is_some());
    !view::vms(book).iter().any(needs) && !lans.map(|record| record.key.id).any(is_used)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use rebec_book::{
        Body, Record,
        key::{Name, id_of_key, public},
        record::{DomainBody, HostBody, MemberBody, PoolBody},
    };

    use super::*;

    const POOL: u8 = 1;
    const ALPHA: u8 = 2;
    const BETA: u8 = 3;
    const WAS: u8 = 4;
    const IS: u8 = 5;
    const EVIL: u8 = 6;

    fn secret(number: u8) -> SigningKey {
        SigningKey::from_bytes(&[number; 32])
    }

    fn key(number: u8) -> Key {
        public(&secret(number))
    }

    struct Writer(Book, u64);

    impl Writer {
        fn write(&mut self, kind: Kind, of: u8, by: u8, body: Body) -> bool {
            self.1 += 1;
            let id = if kind == Kind::POOL { Name([0; 16]) } else { id_of_key(&key(of)) };
            self.0.merge(Record::sign(kind, id, self.1, Some(&body), &secret(by)).unwrap()).is_ok()
        }

        fn member(&mut self, host: u8, domain: u8, by: u8, name: &str, dead: Option<&str>) -> bool {
            let dead = dead.map(str::to_owned);
            let body = MemberBody { host: key(host), domain: key(domain), name: name.to_owned(), dead, role: None };
            self.write(Kind::MEMBER, host, by, Body::Member(body))
        }

        fn host(&mut self, host: u8, domain: u8, durable: bool) {
            let body = HostBody { durable, ..HostBody::bare(key(domain)) };
            assert!(self.write(Kind::HOST, host, host, Body::Host(body.into())));
        }
    }

    fn pool() -> Writer {
        let mut writer = Writer(Book::new(key(POOL)).of_host(key(WAS)), 0);
        assert!(writer.write(Kind::POOL, POOL, POOL, Body::Pool(PoolBody { name: "lab".into() })));
        for (domain, name) in [(ALPHA, "alpha"), (BETA, "beta")] {
            assert!(writer.write(Kind::DOMAIN, domain, POOL, Body::Domain(DomainBody { name: name.into(), key: key(domain) })));
        }
        for host in [WAS, IS] {
            assert!(writer.member(host, ALPHA, ALPHA, "a2", None));
            writer.host(host, ALPHA, false);
        }
        writer
    }

    const SILENT: Option<Duration> = Some(SILENT_FOR);

    fn judged(writer: &Writer, silence: Option<Duration>, answers: bool) -> Verdict {
        judge(&writer.0, &key(ALPHA), &key(WAS), &key(IS), silence, answers)
    }

    #[test]
    fn a_machine_that_starts_again_takes_the_place_of_its_silent_former_self() {
        let writer = pool();
        assert_eq!(judged(&writer, SILENT, true), Verdict::Replace);
        let first = bind(&[], Name([7; 32]), "a2", key(WAS));
        assert_eq!(first.was, None);
        let known = [first];
        assert_eq!(bind(&known, Name([7; 32]), "a2", key(IS)).was, Some(key(WAS)));
        // Another machine, another name, and who asks a second time.
        for (machine, name, host) in [(8, "a2", IS), (7, "a3", IS), (7, "a2", WAS)] {
            assert_eq!(bind(&known, Name([machine; 32]), name, key(host)).was, None);
        }
    }

    #[test]
    fn a_host_that_is_heard_is_never_replaced_whoever_says_it_is_that_machine() {
        let writer = pool();
        for silence in [None, Some(Duration::ZERO), Some(SILENT_FOR - Duration::from_millis(1))] {
            assert_eq!(judged(&writer, silence, true), Verdict::Wait, "{silence:?}");
        }
        // Who came and went says nothing about the other.
        assert_eq!(judged(&writer, SILENT, false), Verdict::Wait);
    }

    #[test]
    fn only_hosts_of_one_domain_and_name_without_state_are_one_machine() {
        let never = |change: &dyn Fn(&mut Writer)| {
            let mut writer = pool();
            change(&mut writer);
            matches!(judged(&writer, SILENT, true), Verdict::Never(_))
        };
        for durable in [WAS, IS] {
            assert!(never(&|writer| writer.host(durable, ALPHA, true)));
        }
        assert!(never(&|writer| assert!(writer.member(IS, ALPHA, ALPHA, "a3", None))));
        assert!(never(&|writer| assert!(writer.member(WAS, ALPHA, ALPHA, "a2", Some("burnt")))));
        // Another domain lets in whom it likes: no host of this one is replaced by it.
        let elsewhere = |writer: &mut Writer| {
            assert!(writer.member(IS, BETA, BETA, "a2", None));
            writer.host(IS, BETA, false);
        };
        assert!(never(&elsewhere));
        let mut writer = pool();
        elsewhere(&mut writer);
        assert!(matches!(judge(&writer.0, &key(BETA), &key(WAS), &key(IS), SILENT, true), Verdict::Never(_)));
    }

    /// The verdict alone does nothing: who is dead is a record, and only the domain's key writes it.
    #[test]
    fn no_member_and_no_other_domain_declares_a_host_dead() {
        let mut writer = pool();
        assert!(writer.member(EVIL, BETA, BETA, "a2", None));
        writer.host(EVIL, BETA, false);
        for by in [IS, EVIL, BETA, POOL] {
            writer.member(WAS, ALPHA, by, "a2", Some("replaced"));
            assert_eq!(writer.0.dead(&key(WAS)), None, "by {by}");
        }
        writer.member(WAS, BETA, BETA, "a2", Some("replaced"));
        assert_eq!(writer.0.dead(&key(WAS)), None);
        // Its own domain does, and the other has the plain name.
        let name = |writer: &Writer, host| view::host(&writer.0, &key(host)).unwrap().name;
        assert!(name(&writer, IS).starts_with("a2~") && name(&writer, WAS).starts_with("a2~"));
        assert!(writer.member(WAS, ALPHA, ALPHA, "a2", Some("replaced")));
        assert_eq!((name(&writer, IS).as_str(), name(&writer, WAS).starts_with("a2~")), ("a2", true));
        let meant = rebec_book::names::find(&writer.0, Kind::MEMBER, "a2");
        assert_eq!(meant, rebec_book::names::Meant::One(id_of_key(&key(IS))));
        assert!(is_over(&writer.0, &key(WAS)));
    }
}
