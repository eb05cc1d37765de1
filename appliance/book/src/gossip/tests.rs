//! Engines that talk over a network that loses, delays and doubles, with silent hosts and one that lies, from a printed seed.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::SigningKey;

use super::{message::Beats, *};
use crate::{
    Body, Record,
    book::ShortMark,
    key::{Id, Name, bound_id, id_of_key, public},
    record::{DomainBody, HostBody, ImageBody, Kind, MemberBody, PoolBody},
    samples,
};

const STEP: Duration = Duration::from_millis(40);
const TIMEOUT: Duration = Duration::from_secs(3);

fn secret(number: u32) -> SigningKey {
    SigningKey::from_bytes(blake3::hash(&number.to_be_bytes()).as_bytes())
}

fn key(number: u32) -> Key {
    public(&secret(number))
}

fn sign(kind: Kind, id: Id, seq: u64, body: &Body, by: u32) -> Signed {
    Record::sign(kind, id, seq, Some(body), &secret(by)).unwrap()
}

fn image(number: u32, seq: u64, by: u32) -> Signed {
    let nonce = Name(u128::from(number).to_be_bytes());
    let body = ImageBody { domains: (10_000..10_004).map(key).collect(), ..samples::image(nonce, &format!("i{number}")) };
    sign(Kind::IMAGE, bound_id(&key(by), &nonce), seq, &Body::Image(body.into()), by)
}

fn member(host: u32, domain: u32, seq: u64, dead: Option<&str>) -> Signed {
    let body = MemberBody { host: key(host), domain: key(domain), name: format!("h{host}"), dead: dead.map(str::to_owned), role: None };
    sign(Kind::MEMBER, id_of_key(&key(host)), seq, &Body::Member(body), domain)
}

/// Pool 0, domains from 10,000, hosts from 1 in turn in each.
fn founded(hosts: u32, domains: u32) -> Book {
    let mut book = Book::new(key(0));
    let mut put = |signed| assert_eq!(book.merge(signed), Ok(true));
    put(sign(Kind::POOL, Name([0; 16]), 1, &Body::Pool(PoolBody { name: "pool".into() }), 0));
    for domain in 0..domains {
        let body = DomainBody { name: format!("d{domain}"), key: key(10_000 + domain) };
        put(sign(Kind::DOMAIN, id_of_key(&body.key), u64::from(domain) + 2, &Body::Domain(body), 0));
    }
    for host in 1..=hosts {
        let domain = 10_000 + host % domains;
        put(member(host, domain, u64::from(host), None));
        let body = HostBody::bare(key(domain));
        put(sign(Kind::HOST, id_of_key(&key(host)), 1, &Body::Host(body.into()), host));
    }
    book
}

struct Host {
    book: Book,
    engine: Engine,
    is_silent: bool,
}

enum Flight {
    Question(u64, Key, Question),
    Answer(u64, Key, Answer),
    Lost(u64, Key),
}

/// Messages on their way, and which questions wait.
struct Net {
    now: Duration,
    hosts: BTreeMap<Key, Host>,
    flights: BTreeMap<(Duration, u64), (Key, Flight)>,
    waiting: BTreeSet<u64>,
    count: u64,
    chance: Chance,
    /// Of a hundred messages.
    lost: usize,
    liar: Option<Key>,
}

impl Net {
    fn new(book: &Book, hosts: u32, seed: u64, lost: usize) -> Self {
        eprintln!("seed {seed}");
        let host = |number| {
            let engine = Engine::new(key(number), 1_000_000, seed ^ u64::from(number));
            (key(number), Host { book: book.clone().of_host(key(number)), engine, is_silent: false })
        };
        let (hosts, chance) = ((1..=hosts).map(host).collect(), Chance::new(seed));
        let (flights, waiting) = Default::default();
        Self { now: Duration::ZERO, hosts, flights, waiting, count: 0, chance, lost, liar: None }
    }

    fn send(&mut self, to: Key, flight: Flight, after: Duration) {
        self.count += 1;
        self.flights.insert((self.now + after, self.count), (to, flight));
    }

    /// Some come late, some twice, some not at all.
    fn carry(&mut self, to: Key, flight: impl Fn() -> Flight) {
        for _ in 0..1 + usize::from(self.chance.once_in(20)) {
            let delay = if self.chance.once_in(10) { 800 } else { 80 };
            let delay = Duration::from_millis(self.chance.below(delay) as u64 + 1);
            if self.chance.below(100) >= self.lost {
                self.send(to, flight(), delay);
            }
        }
    }

    fn drain(&mut self, own: Key) {
        while let Some(output) = self.hosts.get_mut(&own).and_then(|host| host.engine.poll_output()) {
            match output {
                Output::Ask { to, question } => {
                    let question = Question::from_bytes(&question.to_bytes()).unwrap();
                    self.count += 1;
                    let number = self.count;
                    self.waiting.insert(number);
                    self.send(own, Flight::Lost(number, to), TIMEOUT);
                    self.carry(to, || Flight::Question(number, own, question.clone()));
                }
                Output::TakeIn(records, came) => {
                    let Some(host) = self.hosts.get_mut(&own) else { continue };
                    let proved = records.into_iter().filter(|signed| signed.open().is_ok());
                    let new: Vec<Signed> = proved.filter(|signed| host.book.restore(signed.clone(), came) == Ok(true)).collect();
                    host.engine.handle(self.now, &host.book, Input::Learnt(new, came));
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += STEP;
            while let Some(entry) = self.flights.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (to, flight) = entry.remove();
                self.arrive(to, flight);
            }
            for key in self.hosts.keys().copied().collect::<Vec<_>>() {
                let Some(host) = self.hosts.get_mut(&key).filter(|host| !host.is_silent) else { continue };
                if host.engine.next_deadline() <= self.now {
                    host.engine.tick(self.now, &host.book);
                }
                self.drain(key);
            }
        }
    }

    fn arrive(&mut self, to: Key, flight: Flight) {
        let is_liar = self.liar == Some(to);
        let Some(host) = self.hosts.get_mut(&to).filter(|host| !host.is_silent) else { return };
        match flight {
            Flight::Question(number, from, question) => {
                let answer = host.engine.answer(self.now, &host.book, from, question);
                let answer = if is_liar { lie(&host.book, &mut self.chance) } else { answer };
                let answer = Answer::from_bytes(&answer.to_bytes()).unwrap();
                self.carry(from, || Flight::Answer(number, to, answer.clone()));
            }
            Flight::Answer(number, from, answer) if self.waiting.remove(&number) => {
                host.engine.handle(self.now, &host.book, Input::Answered { from, answer });
            }
            Flight::Lost(number, from) if self.waiting.remove(&number) => {
                host.engine.handle(self.now, &host.book, Input::Failed { from });
            }
            Flight::Answer(..) | Flight::Lost(..) => {}
        }
        self.drain(to);
    }

    fn write(&mut self, by: u32, number: u32) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&key(by)) else { return };
        let signed = image(number, host.book.head(&key(by)) + 1, by);
        assert_eq!(host.book.restore(signed.clone(), Came::InTurn), Ok(true));
        host.engine.handle(now, &host.book, Input::Wrote(vec![signed]));
        self.drain(key(by));
    }

    fn living(&self) -> impl Iterator<Item = (&Key, &Host)> {
        self.hosts.iter().filter(|(key, host)| !host.is_silent && self.liar != Some(**key))
    }

    fn are_equal(&self) -> bool {
        let mut digests = self.living().map(|(_, host)| host.book.groups(0, &whole(&host.book)));
        let first = digests.next();
        digests.all(|other| Some(other) == first)
    }
}

/// As hosts of one domain compare their books.
fn whole(book: &Book) -> Lens {
    book.lens(book.own_domain())
}

/// Marks that promise and hide, offers of nothing, beats of the dead, records that nobody signed.
fn lie(book: &Book, chance: &mut Chance) -> Answer {
    let groups = book.groups(0, &whole(book)).into_iter();
    let writers: Vec<Tag> = groups.flat_map(|mark| book.marks_in(mark.group, &whole(book))).map(|mark| mark.writer).collect();
    let writer = writers[chance.below(writers.len())];
    let forged = image(1, 99, 2).forged();
    let marks = vec![ShortMark { writer, head: chance.any(), mark: chance.any() }];
    match chance.below(4) {
        0 => Answer::Records(Parcel { in_turn: vec![forged], alone: vec![] }),
        1 => Answer::Wants(vec![Offer { writer, seq: chance.any() }]),
        2 => Answer::Taken,
        _ => Answer::Round {
            marks: vec![Marks { group: tag_of(&key(10_000)), marks }],
            beats: Beats {
                own: u64::MAX,
                others: writers
                    .iter()
                    .map(|writer| message::Beat { host: *writer, beside: 0, age: 0, vitals: None })
                    .take(BEATS_MAX)
                    .collect(),
                vitals: None,
            },
            offers: vec![Offer { writer, seq: chance.any() }],
            wants: vec![Offer { writer, seq: 1 }],
        },
    }
}

#[test]
fn a_record_is_everywhere_soon_and_books_become_equal() {
    let book = founded(60, 4);
    for seed in 0..3 {
        let mut net = Net::new(&book, 60, seed, 3);
        net.liar = Some(key(60));
        for silent in 1..=12 {
            net.hosts.get_mut(&key(silent * 4)).unwrap().is_silent = true;
        }
        net.run(Duration::from_secs(10));
        for number in 0..10 {
            net.write(1 + number * 2, number);
        }
        net.run(Duration::from_secs(5));
        let knows = |host: &Host| (0..10).filter(|number| host.book.head(&key(1 + number * 2)) >= 2).count();
        let known: usize = net.living().map(|(_, host)| knows(host)).sum();
        assert!(known * 100 >= net.living().count() * 10 * 95, "{known}");
        net.run(Duration::from_secs(40));
        assert!(net.are_equal());
        assert!(net.living().all(|(_, host)| host.book.len() == book.len() + 10));
    }
}

#[test]
fn who_is_silent_is_known_and_who_is_there_stays_known() {
    let book = founded(60, 4);
    let mut net = Net::new(&book, 60, 7, 0);
    net.run(Duration::from_secs(30));
    let silent = |net: &Net, of: u32| net.living().filter(|(_, host)| host.engine.silence(net.now, &key(of)).is_some()).count();
    assert_eq!((1..=60).map(|host| silent(&net, host)).sum::<usize>(), 60, "but oneself");
    net.hosts.get_mut(&key(4)).unwrap().is_silent = true;
    net.run(Duration::from_secs(11));
    let domain = book.domain_of(&key(4));
    let is_fellow = |other: &Key| book.domain_of(other) == domain;
    assert!(net.living().all(|(other, host)| !is_fellow(other) || host.engine.silence(net.now, &key(4)).is_some()));
    net.run(Duration::from_secs(20));
    assert_eq!(silent(&net, 4), 59);
    net.hosts.get_mut(&key(4)).unwrap().is_silent = false;
    net.run(Duration::from_secs(30));
    assert_eq!(silent(&net, 4), 1);
}

/// A stranger cannot keep a dead host alive, nor make one that lives look dead.
#[test]
fn beats_of_another_domain_are_not_believed() {
    let book = founded(60, 4);
    let mut members = Members::new(key(1), 5);
    members.refresh(Duration::ZERO, &book);
    let says = |of, number: i64| Beats {
        own: 100,
        others: vec![message::Beat { host: tag_of(&key(of)), beside: number - 100, age: 0, vitals: None }],
        vitals: None,
    };
    members.take_beats(PERIOD, &key(2), &says(5, 9));
    members.take_beats(PERIOD, &key(2), &says(6, 9));
    assert_eq!(members.silence(PERIOD, &key(5)), Some(PERIOD));
    assert_eq!(members.silence(PERIOD, &key(6)), None);
    // What a host says of itself goes before what its fellows say, and they cannot carry it away.
    members.take_beats(PERIOD, &key(6), &Beats { own: 3, others: vec![], vitals: None });
    members.take_beats(PERIOD * 2, &key(2), &says(6, i64::MAX));
    members.take_beats(PERIOD * 40, &key(10), &says(6, 4));
    assert_eq!(members.silence(PERIOD * 40, &key(6)), None);
    // Nor by a little, again and again.
    members.take_beats(PERIOD * 41, &key(2), &says(6, 60));
    members.take_beats(PERIOD * 70, &key(10), &says(6, 50));
    assert_eq!(members.silence(PERIOD * 70, &key(6)), None);
    // Of who has not spoken yet the liar may be heard first.
    members.take_beats(PERIOD, &key(2), &says(14, i64::MAX));
    members.take_beats(PERIOD * 20, &key(10), &says(14, 20));
    assert_eq!(members.silence(PERIOD * 20, &key(14)), None);
}

/// How hosts are travels with their beats: the later word counts, and a host's own before all.
#[test]
fn room_and_load_are_known_without_a_record() {
    let book = founded(60, 4);
    let mut net = Net::new(&book, 60, 5, 0);
    let feels = |disk_used_mib| Vitals { disk_used_mib, vms: 3, ..Vitals::default() };
    let know = |net: &Net, wanted: Vitals, own: bool| {
        let domain = book.domain_of(&key(4));
        let others = net.living().filter(|(other, _)| (book.domain_of(other) == domain) == own);
        others.filter(|(_, host)| host.engine.vitals(&key(4)) == Some(wanted)).count()
    };
    for (disk_used_mib, time) in [(5, 30), (6, 30)] {
        let now = net.now;
        net.hosts.get_mut(&key(4)).unwrap().engine.feel(now, feels(disk_used_mib));
        net.run(Duration::from_secs(10));
        assert_eq!(know(&net, feels(disk_used_mib), true), 15);
        net.run(Duration::from_secs(time));
        assert_eq!(know(&net, feels(disk_used_mib), false), 45);
    }
    let mut members = Members::new(key(1), 5);
    members.refresh(Duration::ZERO, &book);
    let says = |by: u32, of: u32, number: i64, vitals| {
        let beat = message::Beat { host: tag_of(&key(of)), beside: number - 100, age: 0, vitals: Some(vitals) };
        (key(by), Beats { own: 100, others: vec![beat], vitals: None })
    };
    let now = PERIOD;
    for (by, beats) in [says(6, 10, 20, feels(1)), says(14, 10, 19, feels(2)), says(3, 10, 30, feels(3))] {
        members.take_beats(now, &by, &beats);
    }
    assert_eq!(members.vitals(&key(10)), Some(feels(1)));
    members.take_beats(now, &key(10), &Beats { own: 3, others: vec![], vitals: Some(feels(4)) });
    assert_eq!(members.vitals(&key(10)), Some(feels(4)));
}

#[test]
fn in_a_large_pool_a_small_domain_waits_no_longer() {
    let book = founded(300, 20);
    let mut members = Members::new(key(1), 5);
    members.refresh(Duration::ZERO, &book);
    members.take_beats(PERIOD, &key(21), &Beats { own: 9, others: vec![], vitals: None });
    assert_eq!(members.silence(PERIOD + SILENT_AFTER, &key(21)), None);
    assert!(members.silence(PERIOD * 2 + SILENT_AFTER, &key(21)).is_some());
}

#[test]
fn in_a_small_pool_news_is_everywhere_at_once() {
    let book = founded(12, 3);
    let mut net = Net::new(&book, 12, 3, 0);
    net.run(Duration::from_secs(4));
    net.write(1, 1);
    net.run(Duration::from_secs(1));
    assert!(net.are_equal());
    // One that was away knows it two seconds after it came back, and nobody else notices more than that.
    net.hosts.get_mut(&key(5)).unwrap().is_silent = true;
    net.run(Duration::from_secs(10));
    assert!(net.living().all(|(_, host)| host.engine.silence(net.now, &key(5)).is_some()));
    net.write(1, 2);
    net.hosts.get_mut(&key(5)).unwrap().is_silent = false;
    net.run(Duration::from_secs(4));
    assert!(net.are_equal() && net.living().all(|(own, host)| *own == key(5) || host.engine.silence(net.now, &key(5)).is_none()));
}

#[test]
fn who_was_declared_dead_is_told_before_anything_else() {
    let mut book = founded(20, 2);
    book.merge(member(3, 10_001, 90, Some("lost"))).unwrap();
    let mut engine = Engine::new(key(1), 1, 1);
    let answer = engine.answer(Duration::ZERO, &book, key(3), Question::Offers(vec![]));
    let Answer::Dead(proof) = answer else { panic!("{answer:?}") };
    assert_eq!(proof, member(3, 10_001, 90, Some("lost")));
}

#[test]
fn a_flood_is_passed_on_slowly_and_holds_up_nobody() {
    let book = founded(40, 2);
    let mut net = Net::new(&book, 40, 11, 0);
    net.run(Duration::from_secs(5));
    for number in 0..240 {
        net.write(1, number);
    }
    net.write(2, 5000);
    net.run(Duration::from_secs(4));
    let knows = net.living().filter(|(_, host)| host.book.head(&key(2)) >= 2).count();
    assert_eq!(knows, 40);
    let heads = |net: &Net| net.living().map(|(_, host)| host.book.head(&key(1))).collect::<Vec<_>>();
    let early = heads(&net);
    net.run(Duration::from_secs(60));
    assert!(net.are_equal(), "{early:?} {:?}", heads(&net));
}

#[test]
fn equal_books_say_little() {
    let book = founded(60, 4);
    let mut engine = Engine::new(key(1), 1_800_000_000, 1);
    engine.tick(PERIOD, &book);
    let Some(Output::Ask { question, .. }) = engine.poll_output() else { panic!("nobody is asked") };
    assert!(question.to_bytes().len() < 200, "{}", question.to_bytes().len());
}
