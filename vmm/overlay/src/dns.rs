//! Names of a LAN (RFC 1034, RFC 1035), answered at the port: `web.office.rebec`, and what an address of the LAN is called.
//!
//! ```text
//! id:2 flags:2 questions:2 answers:2 authorities:2 more:2 | labels (length:1 bytes ...) 0 type:2 class:2 | records (name type:2 class:2 ttl:4 length:2 bytes)
//! ```
//! | question | answer |
//! |---|---|
//! | a name of the zone that a station has, A | its addresses |
//! | such a name, another type; the zone itself | nothing of that kind |
//! | another name of the zone; an address of the LAN's network that nobody has | there is no such name |
//! | an address that a station has, PTR | its name |
//! | anything else | refused: nothing here leads out of the LAN |
//!
//! Nothing is remembered, and an answer counts for seconds: a VM that comes is known as soon as the port is told.

use std::net::Ipv4Addr;

use rebec_vmm_api::DhcpLease;

use crate::{config::Zone, fdb::Fdb};

/// Where questions go.
pub const PORT: u16 = 53;
/// How long an answer counts, and how long that there is none.
const SECONDS: u32 = 5;
/// Longest answer without a word about more (RFC 1035 §2.3.4).
const MESSAGE_BYTES_MAX: usize = 512;
const HEADER_BYTES: usize = 12;
const NAME_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: usize = 63;

const FLAG_RESPONSE: u8 = 0x80;
const FLAG_AUTHORITY: u8 = 0x04;
const FLAG_CUT: u8 = 0x02;
const FLAG_WANTS_RECURSION: u8 = 0x01;

mod kind {
    pub(super) const A: u16 = 1;
    pub(super) const SOA: u16 = 6;
    pub(super) const PTR: u16 = 12;
    pub(super) const ANY: u16 = 255;
}

const CLASS_INTERNET: u16 = 1;
const CLASS_ANY: u16 = 255;

/// A message that is no question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// What is known at a port.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// What names end with, and this guest's own.
    pub zone: &'a Zone,
    /// This guest's address, and its network.
    pub lease: &'a DhcpLease,
    /// The others.
    pub fdb: &'a Fdb,
}

/// The outcome of a question (RFC 1035 §4.1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Addresses(Vec<Ipv4Addr>),
    Name(String),
    Start,
    Nothing,
    NoSuchName,
    Refused,
    NotKnown,
}

/// Answers one message: an answer to whoever sent it.
pub fn answer(names: &Names<'_>, message: &[u8]) -> Result<Vec<u8>, Malformed> {
    let question = Question::parse(message).ok_or(Malformed)?;
    let found = if question.operation == 0 { names.find(&question) } else { Found::NotKnown };
    Ok(write(names, &question, &found))
}

struct Question<'a> {
    header: &'a [u8; HEADER_BYTES],
    operation: u8,
    /// The name, type and class as they came.
    bytes: &'a [u8],
    /// The name in small letters, its labels with points between.
    name: String,
    kind: u16,
    class: u16,
}

impl<'a> Question<'a> {
    fn parse(message: &'a [u8]) -> Option<Self> {
        let (header, rest) = message.split_first_chunk::<HEADER_BYTES>()?;
        // A question, one of them; what may stand behind it (EDNS, RFC 6891) changes nothing.
        if header[2] & FLAG_RESPONSE != 0 || header[4..6] != [0, 1] {
            return None;
        }
        let (mut name, mut at) = (String::new(), 0);
        loop {
            let length = usize::from(*rest.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            // A pointer would be to what stands before: nothing does.
            if length > LABEL_BYTES_MAX || at + length >= NAME_BYTES_MAX {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            // What no station is called is left to be found by nobody.
            let letter = |byte: &u8| if byte.is_ascii_graphic() && *byte != b'.' { byte.to_ascii_lowercase() as char } else { ' ' };
            name.extend(rest.get(at..at + length)?.iter().map(letter));
            at += length;
        }
        let (bytes, _more) = rest.split_at_checked(at + 4)?;
        let [a, b, c, d] = *bytes[at..].first_chunk::<4>()?;
        let (kind, class) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Some(Self { header, operation: header[2] >> 3 & 0xf, bytes, name, kind, class })
    }
}

impl Names<'_> {
    fn find(&self, question: &Question<'_>) -> Found {
        if ![CLASS_INTERNET, CLASS_ANY].contains(&question.class) {
            return Found::Refused;
        }
        if let Some(reversed) = question.name.strip_suffix(".in-addr.arpa") {
            return self.find_address(reversed, question.kind);
        }
        let Some(label) = question.name.strip_suffix(&*self.zone.domain) else { return Found::Refused };
        match (label, label.strip_suffix('.')) {
            ("", _) if question.kind == kind::SOA => Found::Start,
            ("", _) => Found::Nothing,
            (_, Some(label)) => self.find_label(label, question.kind),
            // It only ends with the same letters.
            _ => Found::Refused,
        }
    }

    fn find_label(&self, label: &str, kind: u16) -> Found {
        let own = (self.zone.label.as_deref() == Some(label)).then(|| self.lease.address());
        let addresses: Vec<_> = own.into_iter().chain(self.fdb.addresses_of(label)).collect();
        match kind {
            _ if addresses.is_empty() => Found::NoSuchName,
            kind::A | kind::ANY => Found::Addresses(addresses),
            _ => Found::Nothing,
        }
    }

    fn find_address(&self, reversed: &str, kind: u16) -> Found {
        let mut numbers = [0; 4];
        let mut labels = reversed.split('.');
        for number in numbers.iter_mut().rev() {
            let label = labels.next().filter(|label| label.len() == 1 || !label.starts_with('0'));
            match label.and_then(|label| label.bytes().all(|byte| byte.is_ascii_digit()).then(|| label.parse().ok())?) {
                Some(parsed) => *number = parsed,
                None => return Found::Refused,
            }
        }
        let address = Ipv4Addr::from(numbers);
        let mask = self.lease.mask();
        if labels.next().is_some() || address & mask != self.lease.address() & mask {
            return Found::Refused;
        }
        let is_own = address == self.lease.address();
        let label =
            if is_own { self.zone.label.as_deref() } else { self.fdb.station_with(address).and_then(|station| self.fdb.label(station)) };
        match label {
            None => Found::NoSuchName,
            Some(label) if [kind::PTR, kind::ANY].contains(&kind) => Found::Name(format!("{label}.{}", self.zone.domain)),
            Some(_) => Found::Nothing,
        }
    }
}

fn write(names: &Names<'_>, question: &Question<'_>, found: &Found) -> Vec<u8> {
    let code = match found {
        Found::NoSuchName => 3,
        Found::NotKnown => 4,
        Found::Refused => 5,
        _ => 0,
    };
    let authority = if code < 4 { FLAG_AUTHORITY } else { 0 };
    let flags = FLAG_RESPONSE | question.header[2] & (0x78 | FLAG_WANTS_RECURSION) | authority;
    let mut message = [&question.header[..2], &[flags, code, 0, 1, 0, 0, 0, 0, 0, 0], question.bytes].concat();
    // The name of the question, which stands right behind the header.
    let asked = [0xc0, HEADER_BYTES as u8];
    let (mut answers, mut authorities) = (0_u16, 0_u16);
    match found {
        Found::Addresses(addresses) => {
            for address in addresses {
                if message.len() + 16 > MESSAGE_BYTES_MAX {
                    message[2] |= FLAG_CUT;
                    break;
                }
                put(&mut message, &asked, kind::A, &address.octets());
                answers += 1;
            }
        }
        Found::Name(name) => {
            put(&mut message, &asked, kind::PTR, &labels(name));
            answers = 1;
        }
        Found::Start => {
            put(&mut message, &asked, kind::SOA, &start(names.zone));
            answers = 1;
        }
        // How long it counts that there is none (RFC 2308 §5).
        Found::Nothing | Found::NoSuchName => {
            put(&mut message, &labels(&names.zone.domain), kind::SOA, &start(names.zone));
            authorities = 1;
        }
        Found::Refused | Found::NotKnown => {}
    }
    message[6..8].copy_from_slice(&answers.to_be_bytes());
    message[8..10].copy_from_slice(&authorities.to_be_bytes());
    message
}

fn put(message: &mut Vec<u8>, name: &[u8], kind: u16, value: &[u8]) {
    message.extend(name);
    message.extend([kind, CLASS_INTERNET].map(u16::to_be_bytes).concat());
    message.extend(SECONDS.to_be_bytes());
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
}

/// A name as it is written: of labels that are known to be short enough.
pub fn labels(name: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    bytes.push(0);
    bytes
}

/// What begins a zone: who has it, whom to write to, its number, and five times.
fn start(zone: &Zone) -> Vec<u8> {
    let who = labels(&zone.domain);
    [&who[..], &labels(&format!("nobody.{}", zone.domain)), &[1, 3600, 600, 86_400, SECONDS].map(u32::to_be_bytes).concat()].concat()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use proptest::prelude::*;

    use super::*;
    use crate::frame::samples::*;

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 7, 0, last)
    }

    fn question(name: &str, kind: u16) -> Vec<u8> {
        [&[0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &labels(name), &kind.to_be_bytes(), &[0, 1]].concat()
    }

    /// `web` is this guest at .5, `Db` another at .9.
    fn ask(message: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut fdb = Fdb::default();
        let endpoint = |last| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, last), 4789);
        fdb.add(endpoint(1), THEIRS, endpoint(2)).unwrap();
        fdb.add_address(THEIRS, ip(9)).unwrap();
        fdb.add_label(THEIRS, "Db");
        let zone = Zone { domain: "office.rebec".into(), label: Some("web".into()) };
        let lease = DhcpLease::new(ip(5), 24, None, Some(ip(2))).unwrap();
        answer(&Names { zone: &zone, lease: &lease, fdb: &fdb }, message)
    }

    /// Code, answers, authorities, and the last bytes.
    fn outcome(name: &str, kind: u16) -> (u8, u8, u8, Vec<u8>) {
        let answer = ask(&question(name, kind)).unwrap();
        assert_eq!((&answer[..2], answer[2] & 0x81), (&[0xab, 0xcd][..], 0x81));
        (answer[3], answer[7], answer[9], answer[answer.len() - 4..].to_vec())
    }

    #[test]
    fn golden_bytes_of_an_address() {
        let expected =
            "abcd 8500 0001 0001 0000 0000 02 4462 06 6f6666696365 05 7265626563 00 0001 0001 c00c 0001 0001 00000005 0004 0a070009";
        let answer = ask(&question("Db.office.rebec", kind::A)).unwrap();
        let hex: String = answer.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected.replace(' ', ""));
    }

    #[test]
    fn each_question_has_its_answer() {
        const AAAA: u16 = 28;
        let seconds = 5_u32.to_be_bytes().to_vec();
        assert_eq!(outcome("WEB.Office.rebec", kind::A), (0, 1, 0, ip(5).octets().to_vec()));
        assert_eq!(outcome("db.office.rebec", kind::ANY), (0, 1, 0, ip(9).octets().to_vec()));
        assert_eq!(outcome("db.office.rebec", AAAA), (0, 0, 1, seconds.clone()));
        assert_eq!(outcome("office.rebec", kind::A), (0, 0, 1, seconds.clone()));
        assert_eq!(outcome("office.rebec", kind::SOA), (0, 1, 0, seconds.clone()));
        assert_eq!(outcome("gone.office.rebec", kind::A), (3, 0, 1, seconds.clone()));
        assert_eq!(outcome("a.web.office.rebec", kind::A), (3, 0, 1, seconds.clone()));
        for elsewhere in
            ["backoffice.rebec", "rebec", "example.org", "web", "1.0.0.127.in-addr.arpa", "7.10.in-addr.arpa", "x.0.7.10.in-addr.arpa"]
        {
            let answer = ask(&question(elsewhere, kind::A)).unwrap();
            assert_eq!((answer[2], answer[3], answer[7], answer[9]), (0x81, 5, 0, 0), "{elsewhere}");
        }
        let named = ask(&question("9.0.7.10.in-addr.arpa", kind::PTR)).unwrap();
        assert!(named.ends_with(&labels("db.office.rebec")) && named[3] == 0 && named[7] == 1);
        assert!(ask(&question("5.0.7.10.in-addr.arpa", kind::PTR)).unwrap().ends_with(&labels("web.office.rebec")));
        assert_eq!(outcome("8.0.7.10.in-addr.arpa", kind::PTR), (3, 0, 1, seconds.clone()));
        assert_eq!(outcome("9.0.7.10.in-addr.arpa", kind::A), (0, 0, 1, seconds));
        for odd in ["9.0.0.7.10.in-addr.arpa", "09.0.7.10.in-addr.arpa", "300.0.7.10.in-addr.arpa", "+9.0.7.10.in-addr.arpa"] {
            assert_eq!(ask(&question(odd, kind::PTR)).unwrap()[3], 5, "{odd}");
        }
    }

    #[test]
    fn what_is_no_question_has_no_answer() {
        let whole = question("db.office.rebec", kind::A);
        for end in 0..whole.len() {
            assert_eq!(ask(&whole[..end]), Err(Malformed), "{end}");
        }
        let changed = |at: usize, value: u8| {
            let mut message = whole.clone();
            message[at] = value;
            ask(&message)
        };
        assert_eq!((changed(2, 0x81), changed(5, 2), changed(5, 0), changed(12, 0xc0), changed(12, 64)), {
            (Err(Malformed), Err(Malformed), Err(Malformed), Err(Malformed), Err(Malformed))
        });
        // An update, another class.
        assert_eq!(changed(2, 0x28).unwrap()[3], 4);
        assert_eq!(changed(whole.len() - 1, 3).unwrap()[3], 5);
        let long = question(&["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join("."), kind::A);
        assert_eq!(ask(&long), Err(Malformed));
        // EDNS behind it.
        let more = [&whole[..], &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(ask(&more).unwrap()[7], 1);
    }

    #[test]
    fn more_than_fits_is_said_to_be_more() {
        let mut fdb = Fdb::default();
        let endpoint = |last| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, last), 4789);
        for last in 10..100 {
            let station = rebec_vmm_api::MacAddr([2, 0, 0, 0, 0, last]);
            fdb.add(endpoint(1), station, endpoint(2)).unwrap();
            fdb.add_address(station, ip(last)).unwrap();
            fdb.add_label(station, "many");
        }
        let zone = Zone { domain: "office.rebec".into(), label: None };
        let lease = DhcpLease::new(ip(5), 24, None, Some(ip(2))).unwrap();
        let answer = answer(&Names { zone: &zone, lease: &lease, fdb: &fdb }, &question("many.office.rebec", kind::A)).unwrap();
        assert!(answer.len() <= MESSAGE_BYTES_MAX && answer[2] & FLAG_CUT != 0 && answer[7] > 20);
    }

    proptest! {
        #[test]
        fn hostile_questions_do_no_harm(mut message in prop::collection::vec(any::<u8>(), 0..300), sound in any::<bool>()) {
            if sound && message.len() > 12 {
                message[2..6].copy_from_slice(&[1, 0, 0, 1]);
            }
            if let Ok(answer) = ask(&message) {
                prop_assert!(answer.len() <= MESSAGE_BYTES_MAX + 100 && answer[..2] == message[..2]);
            }
        }
    }
}
