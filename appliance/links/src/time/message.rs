//! NTP's messages (RFC 5905 §7.3) as far as a simple client needs them (RFC 4330). Pure: bytes and values.
//!
//! ```text
//!  0  leap:2 version:3 mode:3 | stratum | poll | precision
//!  4  root delay                 8  root dispersion         12  reference id, or the code of a kiss
//! 16  reference time            24  originate time          32  receive time      40  transmit time
//! ```
//! A question's transmit time is a random number: the server sends it back as originate time, so only who saw the question can answer it, and
//! nobody learns what this host's clock says. Times wrap every 136 years and are taken for those since `FLOOR_S`, whatever the own clock says.

use std::time::Duration;

/// Nanoseconds since 1970, or between two times.
pub type Nanos = i128;

/// Length of a message without extensions.
pub const BYTES: usize = 48;
/// The start of 2025: no server's time is earlier.
const FLOOR_S: u64 = 1_735_689_600;
/// From 1900, where NTP's seconds begin, to 1970.
const ERA_S: u64 = 2_208_988_800;
const VERSION: u8 = 4;
const MODE_CLIENT: u8 = 3;
const MODE_SERVER: u8 = 4;
const LEAP_UNKNOWN: u8 = 3;
const STRATUM_MAX: u8 = 15;
/// A server that is so far from where time comes from does not know it.
const ROOT_DISTANCE_MAX: Duration = Duration::from_secs(5);

/// A question and when its answer came, by the own clock.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Its transmit time.
    pub cookie: [u8; 8],
    /// When it was sent.
    pub sent: Nanos,
    /// How long its answer took.
    pub took: Duration,
}

/// What an answer says about the own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// What must be added to it.
    pub offset: Nanos,
    /// How long question and answer were under way: half of it is how wrong the offset may be.
    pub delay: Duration,
}

/// Why an answer says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It answers another question, or none.
    #[error("what it answered was not asked")]
    NotOurs,
    /// A kiss of death: DENY or RSTR (RFC 5905 §7.4).
    #[error("it wants no questions from this host")]
    Denied,
    /// A kiss of death: RATE.
    #[error("it wants fewer questions")]
    TooOften,
    /// The server does not know the time itself.
    #[error("it does not know the time itself")]
    Unsynchronised,
    /// Its times contradict each other.
    #[error("its times contradict each other")]
    Nonsense,
}

/// The question.
pub fn question(cookie: [u8; 8]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[0] = VERSION << 3 | MODE_CLIENT;
    bytes[40..].copy_from_slice(&cookie);
    bytes
}

/// What a datagram answers to it.
pub fn hear(bytes: &[u8], asked: &Asked) -> Result<Sample, Refusal> {
    let message: &[u8; BYTES] = bytes.first_chunk().ok_or(Refusal::NotOurs)?;
    let word = |at: usize| u32::from_be_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
    let (leap, version, mode, stratum) = (message[0] >> 6, message[0] >> 3 & 7, message[0] & 7, message[1]);
    if mode != MODE_SERVER || version != VERSION || message[24..32] != asked.cookie {
        return Err(Refusal::NotOurs);
    }
    match (stratum, &message[12..16]) {
        (0, b"DENY" | b"RSTR") => return Err(Refusal::Denied),
        (0, b"RATE") => return Err(Refusal::TooOften),
        _ => {}
    }
    let distance = short(word(4)) / 2 + short(word(8));
    if leap == LEAP_UNKNOWN || !(1..=STRATUM_MAX).contains(&stratum) || distance > ROOT_DISTANCE_MAX {
        return Err(Refusal::Unsynchronised);
    }
    let [received, sent] = [32, 40].map(|at| (word(at) != 0).then(|| time(word(at), word(at + 4))));
    let (Some(received), Some(sent)) = (received, sent) else { return Err(Refusal::Nonsense) };
    let held = u64::try_from(sent - received).map(Duration::from_nanos).map_err(|_| Refusal::Nonsense)?;
    let delay = asked.took.checked_sub(held).ok_or(Refusal::Nonsense)?;
    let arrived = asked.sent + nanos(asked.took);
    Ok(Sample { offset: (received - asked.sent + sent - arrived) / 2, delay })
}

/// A duration in nanoseconds.
pub fn nanos(duration: Duration) -> Nanos {
    duration.as_nanos().cast_signed()
}

/// How long that is, whichever way.
pub fn length(nanos: Nanos) -> Duration {
    Duration::from_nanos(u64::try_from(nanos.unsigned_abs()).unwrap_or(u64::MAX))
}

/// A time of 32 bits of seconds and 32 of their fraction.
fn time(seconds: u32, fraction: u32) -> Nanos {
    let since_floor = seconds.wrapping_sub((FLOOR_S + ERA_S) as u32);
    let nanos = (u64::from(fraction) * 1_000_000_000) >> 32;
    (Nanos::from(FLOOR_S) + Nanos::from(since_floor)) * 1_000_000_000 + Nanos::from(nanos)
}

/// A duration of 16 bits of seconds and 16 of their fraction.
fn short(word: u32) -> Duration {
    Duration::from_nanos((u64::from(word) * 1_000_000_000) >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Nanos = 1_000_000_000;
    /// The middle of 2026.
    const NOW_S: u64 = 1_782_000_000;

    fn asked(sent: Nanos, took_ms: u64) -> Asked {
        Asked { cookie: *b"abcdefgh", sent, took: Duration::from_millis(took_ms) }
    }

    /// The answer of a good server that heard the question at one time and answered at another, in milliseconds from `NOW_S`.
    fn answer(received_ms: u64, sent_ms: u64) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..2].copy_from_slice(&[VERSION << 3 | MODE_SERVER, 2]);
        bytes[24..32].copy_from_slice(b"abcdefgh");
        for (at, ms) in [(32, received_ms), (40, sent_ms)] {
            let seconds = (NOW_S + ERA_S + ms / 1000) as u32;
            bytes[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
            let fraction = ((ms % 1000) << 32).div_ceil(1000) as u32;
            bytes[at + 4..at + 8].copy_from_slice(&fraction.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn offset_and_delay_are_those_of_rfc_4330() {
        let sent = Nanos::from(NOW_S) * S;
        // 100 ms there, 50 ms held, 100 ms back; the own clock is 3 s behind.
        let sample = hear(&answer(3100, 3150), &asked(sent, 250)).unwrap();
        assert_eq!((sample.offset / 1000, sample.delay.as_millis()), (3_000_000, 200));
        // Ahead by 2 s: the server heard the question before it was sent.
        let sample = hear(&answer(0, 0), &asked(sent + 2 * S, 10)).unwrap();
        assert_eq!(sample.offset, -2 * S - 5_000_000);
    }

    #[test]
    fn a_clock_that_begins_in_1970_or_goes_on_past_2036_is_set_right() {
        let sample = hear(&answer(0, 0), &asked(0, 0)).unwrap();
        assert_eq!(sample.offset, Nanos::from(NOW_S) * S);
        // The seconds have wrapped: 2036-02-07 and a little.
        let mut bytes = answer(0, 0);
        for at in [32, 40] {
            bytes[at..at + 4].copy_from_slice(&7u32.to_be_bytes());
        }
        let sample = hear(&bytes, &asked(0, 0)).unwrap();
        assert_eq!(sample.offset, Nanos::from((1u64 << 32) - ERA_S + 7) * S);
    }

    #[test]
    fn what_no_good_server_says_is_refused() {
        let asked = asked(Nanos::from(NOW_S) * S, 20);
        let changed = |at: usize, with: &[u8]| {
            let mut bytes = answer(5, 10);
            bytes[at..at + with.len()].copy_from_slice(with);
            hear(&bytes, &asked)
        };
        assert!(changed(0, &[]).is_ok());
        let leap = LEAP_UNKNOWN << 6 | VERSION << 3 | MODE_SERVER;
        let cases: [(&str, usize, &[u8], Refusal); 13] = [
            ("a question", 0, &[VERSION << 3 | MODE_CLIENT], Refusal::NotOurs),
            ("a broadcast", 0, &[VERSION << 3 | 5], Refusal::NotOurs),
            ("another version", 0, &[3 << 3 | MODE_SERVER], Refusal::NotOurs),
            ("another question's", 24, b"abcdefgx", Refusal::NotOurs),
            ("nobody's", 24, &[0; 8], Refusal::NotOurs),
            ("not synchronised", 0, &[leap], Refusal::Unsynchronised),
            ("no stratum", 1, &[0], Refusal::Unsynchronised),
            ("stratum 16", 1, &[16], Refusal::Unsynchronised),
            ("stratum 255", 1, &[255], Refusal::Unsynchronised),
            ("far from its source", 8, &[0, 6], Refusal::Unsynchronised),
            ("far and wide", 4, &[255; 8], Refusal::Unsynchronised),
            ("no transmit time", 40, &[0; 8], Refusal::Nonsense),
            ("sent before it was received", 32, &[0xff; 8], Refusal::Nonsense),
        ];
        for (what, at, with, refusal) in cases {
            assert_eq!(changed(at, with), Err(refusal), "{what}");
        }
        // Held for longer than question and answer took.
        assert_eq!(hear(&answer(0, 21), &asked), Err(Refusal::Nonsense));
        for (code, refusal) in [(b"DENY", Refusal::Denied), (b"RSTR", Refusal::Denied), (b"RATE", Refusal::TooOften)] {
            let mut bytes = answer(0, 0);
            bytes[..2].copy_from_slice(&[leap, 0]);
            bytes[12..16].copy_from_slice(code);
            assert_eq!(hear(&bytes, &asked), Err(refusal));
            // A kiss that somebody else blows.
            bytes[24] ^= 1;
            assert_eq!(hear(&bytes, &asked), Err(Refusal::NotOurs));
            // The code is a reference where it is not a kiss.
            let mut bytes = answer(0, 0);
            bytes[12..16].copy_from_slice(code);
            assert!(hear(&bytes, &asked).is_ok());
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        let whole = answer(5, 10);
        for length in 0..BYTES {
            assert_eq!(hear(&whole[..length], &asked(0, 20)), Err(Refusal::NotOurs));
        }
        for _ in 0..20_000 {
            let mut bytes = whole;
            for at in (0..BYTES).filter(|at| !(24..32).contains(at)) {
                bytes[at] = if random() < 128 { random() } else { bytes[at] };
            }
            for sent in [Nanos::from(i64::MIN), 0, Nanos::from(i64::MAX)] {
                let took = Duration::from_secs(u64::from(random()));
                if let Ok(sample) = hear(&bytes, &Asked { took, ..asked(sent, 0) }) {
                    assert!(sample.delay <= took);
                }
            }
        }
    }
}
