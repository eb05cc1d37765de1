//! The network between the hosts: how late a message is, whether it comes, and what it takes on the wire. Each domain is a site.

use std::{collections::BTreeMap, time::Duration};

use rebec_book::gossip::chance::Chance;

/// What goes along with every message: UDP, QUIC, a stream, the head of HTTP.
pub const HEAD_BYTES: usize = 150;
/// A new connection, in either direction: QUIC's handshake with keys for certificates (padded to 1,200, RFC 9000 §14.1).
pub const HANDSHAKE_BYTES: usize = 2_500;
/// A try of a host that is not there: three first packets.
pub const TRY_BYTES: usize = 3_600;
/// A connection without a message for this long is made anew.
const IDLE: Duration = Duration::from_secs(30);
/// When a question counts as not answered.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// Within a site, and between two, one way.
const NEAR_US: u64 = 500;
const FAR_US: [u64; 2] = [5_000, 80_000];
/// Of a thousand messages so many are sent again, and come so much later than a round trip.
const RESENT: usize = 10;
const RESENT_AFTER: Duration = Duration::from_millis(25);
/// Of ten thousand questions so many are never answered.
const LOST: usize = 10;

/// All ways.
pub struct Network {
    chance: Chance,
    far: BTreeMap<(usize, usize), u64>,
    talked: BTreeMap<(u32, u32), Duration>,
}

/// How a message fares.
pub struct Fate {
    /// None where it does not come.
    pub after: Option<Duration>,
    /// What a new connection took of either side.
    pub handshake_bytes: usize,
}

impl Network {
    /// Between so many sites.
    pub fn new(sites: usize, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let pairs = (0..sites).flat_map(|low| (low + 1..sites).map(move |high| (low, high)));
        let far = pairs.map(|pair| (pair, FAR_US[0] + chance.below((FAR_US[1] - FAR_US[0]) as usize) as u64)).collect();
        Self { chance, far, talked: BTreeMap::new() }
    }

    /// Sends a message between two hosts, whose sites are given.
    pub fn send(&mut self, now: Duration, from: (u32, usize), to: (u32, usize)) -> Fate {
        let sites = (from.1.min(to.1), from.1.max(to.1));
        let way = Duration::from_micros(self.far.get(&sites).copied().unwrap_or(NEAR_US));
        let jitter = Duration::from_micros(self.chance.below(1_000) as u64);
        let pair = (from.0.min(to.0), from.0.max(to.0));
        let is_open = self.talked.insert(pair, now).is_some_and(|last| now.saturating_sub(last) < IDLE);
        let mut after = way + jitter + if is_open { Duration::ZERO } else { way * 2 };
        if self.chance.below(1_000) < RESENT {
            after += way * 2 + RESENT_AFTER;
        }
        let is_lost = self.chance.below(10_000) < LOST;
        Fate { after: (!is_lost).then_some(after), handshake_bytes: if is_open { 0 } else { HANDSHAKE_BYTES } }
    }
}
