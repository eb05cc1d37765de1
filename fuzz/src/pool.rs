//! What hosts of a pool send each other, what a person types to join one, and what else an agent reads that others may have written.
//!
//! ```text
//! input = choice:u8 rest        0 a ticket's text; 1 a message of the gossip; 2 a command, signed; 3 the audit log of a host, line by line;
//!                               4 a time server's answer; 5 what a VM starts with;
//!                               else records: (writer:u8 length:u16 content)*, signed by a key that the pool knows or not
//! ```
//! Files of crates that would bring a whole agent along are compiled here.

use ed25519_dalek::SigningKey;
use rebec_book::{
    Body, Book, Key, Record, Role, Signed, Ticket, Warrant,
    book::{Came, Tag, tag_of},
    gossip::message::{Answer, Beats, Offer, Parcel, Question, Vitals},
    key::{Name, public},
    lan, names,
    record::{DomainBody, Kind, MemberBody, PoolBody, Unbelievable, VmPrivate, id_of_key},
    view,
    warrant::{self, Proven, TokenBound},
};

use crate::input::Input;

#[path = "../../appliance/agent/src/audit/row.rs"]
#[allow(dead_code, reason = "an agent uses all of it")]
mod row;
#[path = "../../appliance/links/src/time/message.rs"]
#[allow(dead_code, reason = "an agent uses all of it")]
mod time;

/// Records taken from one input: what one message of an exchange may hold is a matter of bytes, not of this target.
const RECORDS_MAX: usize = 16;
/// Exchanges after which two books are equal.
const EXCHANGES: u64 = 4;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() {
        0 => ticket(&String::from_utf8_lossy(input.rest())),
        1 => message(input.rest()),
        2 => command(input.rest()),
        3 => audit(input.rest()),
        4 => time_answer(input.rest()),
        5 => private(input.rest()),
        _ => records(input),
    }
}

fn ticket(text: &str) {
    let Ok(ticket) = text.parse::<Ticket>() else { return };
    assert_eq!(ticket.to_string().parse(), Ok(ticket), "a ticket is read as written");
}

/// What is read as a message is one: it is said again in other words at most.
fn message(bytes: &[u8]) {
    if let Ok(question) = Question::from_bytes(bytes) {
        assert_eq!(Question::from_bytes(&question.to_bytes()), Ok(question));
    }
    if let Ok(answer) = Answer::from_bytes(bytes) {
        assert_eq!(Answer::from_bytes(&answer.to_bytes()), Ok(answer));
    }
}

/// A log is right as far as each of its rows follows the one before, and a row that is written follows any.
fn audit(bytes: &[u8]) {
    let lines = || bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let followed = lines().try_fold(row::Head::NONE, |head, line| head.follow(line).map(|(_, next)| next));
    assert_eq!(row::verify(row::Head::NONE, lines(), &[]), followed);
    let Some(row) = lines().find_map(|line| serde_json::from_slice::<row::Row>(line).ok()) else { return };
    let head = row::Head { seq: row.seq / 2, hash: row.before };
    let (line, after) = head.next(row.time, row.entry.clone());
    let (read, next) = head.follow(line.as_bytes()).expect("what was written is read");
    assert!(read.entry == row.entry && next == after && !line.contains('\n'), "{line}");
}

/// The question of which an answer is heard.
const ASKED: time::Asked = time::Asked { cookie: [7; 8], sent: 1_800_000_000_000_000_000, took: std::time::Duration::from_millis(20) };

fn time_answer(bytes: &[u8]) {
    if let Ok(sample) = time::hear(bytes, &ASKED) {
        assert!(sample.delay <= ASKED.took, "an answer that took longer than it took");
    }
}

fn private(bytes: &[u8]) {
    if let Ok(private) = minicbor::decode::<VmPrivate>(bytes) {
        let again = minicbor::to_vec(&private).expect("what was read is written");
        assert_eq!(minicbor::decode(&again).ok().as_ref(), Some(&private));
        private.is_sound();
    }
}

/// A command whose signature is right is looked at.
fn command(content: &[u8]) {
    let Ok(proven) = Proven::open(&warrant::sealed(content, &secret(1))) else { return };
    let again = proven.warrant().sign(&secret(1)).and_then(|text| Proven::open(&text));
    assert_eq!(again.as_ref(), Ok(&proven), "a command is read as it was signed");
    let book = founded();
    let warrant = proven.warrant();
    let path = warrant.path.clone();
    assert!(proven.covers(&book, &warrant.method, &path, None).is_ok(), "what was signed is what was signed");
    // There is no VM: no name means one.
    assert!(proven.covers(&book, &warrant.method, &path, Some((Kind::VM, Name([0; 16])))).is_err(), "a name means what there is not");
    if let Ok(signer) = proven.signer(warrant.at, warrant.until) {
        assert_eq!((signer.key(), signer.at()), (warrant.signer, warrant.at), "who signed gives the command");
    }
}

/// Records whose signature is right get as far as their content lets them.
fn records(mut input: Input<'_>) {
    let mut book = founded();
    let mut others = founded();
    for _ in 0..RECORDS_MAX {
        if input.is_empty() {
            break;
        }
        let secret = secret(input.u8() % 4);
        let signed = Signed::of(input.piece(), &secret);
        if book.merge(signed.clone()) == Ok(true) {
            assert_eq!(book.merge(signed), Ok(false), "a record is new once");
        }
    }
    look(&book);
    for round in 0..EXCHANGES {
        tell(&mut book, &others, round);
        tell(&mut others, &book, round);
    }
    assert!(book.all().eq(others.all()), "exchanges make books equal");
}

fn tell(to: &mut Book, from: &Book, chance: u64) {
    let mut groups: Vec<Tag> = from.groups(0, &from.lens(None)).into_iter().map(|mark| mark.group).collect();
    // The keys' first: others are judged by them.
    groups.sort_by_key(|group| *group != tag_of(&from.pool()));
    for group in groups {
        let (in_turn, alone) = from.above_in(group, &to.marks_in(group, &to.lens(None)), &from.lens(None), usize::MAX, chance, |_, _| true);
        for signed in in_turn.into_iter().chain(alone) {
            // Whose right was taken back meanwhile is refused where that is known; that goes the other way.
            let taken = to.restore(signed, Came::InTurn);
            assert!(matches!(taken, Ok(_) | Err(Unbelievable::Writer(..))), "one book believes what another does not: {taken:?}");
        }
    }
}

/// Every way in which a book is read.
fn look(book: &Book) {
    view::pool_name(book);
    view::domains(book);
    view::hosts(book);
    view::images(book);
    for vm in view::vms(book) {
        view::seen(book, vm.id);
        names::find(book, Kind::VM, &vm.name);
    }
    view::loads(book);
    for one in view::lans(book) {
        lan::next_lease(one.body, one.home, 0);
    }
}

fn secret(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

/// Pool 0, its domain 1, that domain's host 2. Key 3 is a stranger's.
fn founded() -> Book {
    let key = |number| public(&secret(number));
    let mut book = Book::new(key(0));
    for signed in beginning(key) {
        assert_eq!(book.merge(signed), Ok(true));
    }
    book
}

fn beginning(key: impl Fn(u8) -> Key) -> [Signed; 3] {
    let record =
        |kind, id, seq, body: Body, by| Record::sign(kind, id, seq, Some(&body), &secret(by)).expect("a record of this size is signed");
    [
        record(Kind::POOL, Name([0; 16]), 1, Body::Pool(PoolBody { name: "lab".into() }), 0),
        record(Kind::DOMAIN, id_of_key(&key(1)), 2, Body::Domain(DomainBody { name: "alpha".into(), key: key(1) }), 0),
        record(
            Kind::MEMBER,
            id_of_key(&key(2)),
            1,
            Body::Member(MemberBody { host: key(2), domain: key(1), name: "a1".into(), dead: None, role: None }),
            1,
        ),
    ]
}

/// Rows of an audit log, a time server's answer, and what a VM starts with.
fn of_an_agent() -> [Vec<u8>; 3] {
    let entries = [row::Entry::shut_out(Some("eyes"), "no such token"), row::Entry::dropped(7)];
    let (mut head, mut log) = (row::Head::NONE, vec![3]);
    for entry in entries {
        let (line, next) = head.next(1_782_000_000, entry);
        log.extend([line.as_bytes(), b"\n"].concat());
        head = next;
    }
    // Leap 0, version 4, mode 4, stratum 2; then the cookie and two times of 2027.
    let mut answer = [0; time::BYTES];
    answer[..2].copy_from_slice(&[0x24, 2]);
    answer[24..32].copy_from_slice(&ASKED.cookie);
    let seconds = (1_800_000_000u64 + 2_208_988_800) as u32;
    for at in [32, 40] {
        answer[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
    }
    let private = VmPrivate { nonce: Name([9; 16]), cmdline: "quiet".into(), seed: Some(("meta".into(), "user".into())), network: None };
    let private = minicbor::to_vec(&private).expect("what a VM starts with is written");
    [log, [&[4], &answer[..]].concat(), [&[5], &private[..]].concat()]
}

/// A ticket, the records of a pool's beginning, a command, and what an agent reads of others.
pub fn seeds() -> Vec<Vec<u8>> {
    let addresses = vec!["10.0.0.1:7116".parse().expect("an address")];
    let ticket = Ticket { pool: Name([1; 32]), issuer: Name([2; 32]), addresses, secret: [3; 16], expires: 4 };
    let mut records = vec![9];
    for (writer, signed) in [0, 0, 1].into_iter().zip(beginning(|number| public(&secret(number)))) {
        records.push(writer);
        records.extend((signed.content().len() as u16).to_le_bytes());
        records.extend(signed.content());
    }
    let offers = vec![Offer { writer: Name([1; 8]), seq: 7 }];
    let beats = Beats { own: 9, others: vec![], vitals: Some(Vitals::default()) };
    let parcel = Parcel::alone(beginning(|number| public(&secret(number))).to_vec());
    let messages = [Question::Round { salt: 1, groups: vec![], beats, offers }.to_bytes(), Answer::Records(parcel).to_bytes()];
    let said = Warrant {
        signer: public(&secret(1)),
        at: Name([2; 32]),
        method: "POST".into(),
        path: "/v1/vms/alpha%2Fweb/stop?x".into(),
        body: Some(Name([3; 32])),
        until: 4,
        nonce: Name([5; 16]),
        token: Some(TokenBound { name: "eyes".into(), role: Role::Viewer }),
    };
    let said = said.content().expect("a command of this size is signed");
    let others = messages.map(|bytes| [&[1], &bytes[..]].concat());
    [vec![[&[0], ticket.to_string().as_bytes()].concat(), records, [&[2], &said[..]].concat()], others.to_vec(), of_an_agent().to_vec()]
        .concat()
}
