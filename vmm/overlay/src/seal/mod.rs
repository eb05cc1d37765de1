//! Seals what leaves a port and opens what comes, so that whoever is on the way can neither read nor speak.
//!
//! Each ordered pair of ports is one security association (RFC 4301): a root secret, a number ([`key::Root::spi`]) by which the receiver finds it, a
//! sequence of 64 bits and a window against replays. There is no handshake: a port that is told a peer's public key and endpoint can speak at once.
//!
//! ```text
//! batch (framed by layout) -> seal: sequence, key of its generation, encrypt in place -> Wire
//! datagram -> SPI: which peer -> window: seen? -> open in place -> where the payload lies, and whose it is -> port
//! ```
//!
//! The sequence chooses the key: each [`GENERATION`] numbers have one, derived from the root. So keys change by amount without a word, a loss or a
//! gap; by time the sender skips to the next generation. A number is used once in the life of a process, whatever is added and removed:
//! no association begins below what this port has sealed in all, and where one ended is remembered.

pub mod key;
pub mod layout;
pub mod window;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddrV4,
    ops::Range,
    time::{Duration, Instant},
};

use key::{IV_BYTES, Keys, Root, TAG_BYTES};
pub use key::{Pair, PortSecret};
use layout::CLEAR_BYTES;
use rebec_vmm_api::PortKey;
use window::Window;

use crate::{counters::Reason, fdb};

/// Datagrams that one key seals: below 2^34 blocks of AES for full ones, where the chance to tell them from noise is below 2^-60.
pub const GENERATION: u64 = 1 << 28;
/// How long one key seals.
pub const GENERATION_TIME: Duration = Duration::from_secs(3600);
/// Endpoints that a port speaks with: as many as its forwarding database holds stations.
pub const PEERS_MAX: usize = fdb::ENTRIES_MAX;
/// Peers that were removed whose last number is remembered, against replays once they are back.
const REMEMBERED_MAX: usize = 4096;

/// No room for one more peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{PEERS_MAX} ports are known, the limit: remove some first")]
pub struct Full;

/// The associations of one port.
#[derive(Debug, Default)]
pub struct Seals {
    /// Whose key is behind an endpoint.
    keys: BTreeMap<SocketAddrV4, PortKey>,
    /// One for each key, at however many endpoints it is: a port whose host's address changes is at two for a while, and no number of its key
    /// may be used twice.
    peers: BTreeMap<PortKey, Peer>,
    /// Who seals under a number. Two may by chance.
    by_spi: BTreeMap<u32, Vec<PortKey>>,
    /// Datagrams sealed so far: no association begins below.
    sealed: u64,
    remembered: VecDeque<(PortKey, u64)>,
}

#[derive(Debug)]
struct Peer {
    /// Where it is, the newest place last.
    endpoints: Vec<SocketAddrV4>,
    outgoing: Outgoing,
    incoming: Incoming,
}

#[derive(Debug)]
struct Outgoing {
    root: Root,
    /// The last number that was used.
    number: u64,
    /// Made with the first datagram: most peers of a large LAN never get one.
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    generation: u64,
    since: Instant,
    keys: Box<Keys>,
}

#[derive(Debug)]
struct Incoming {
    root: Root,
    /// Nothing at or below is taken.
    floor: u64,
    window: Option<Window>,
    /// Of the newest generation and of the one before it.
    keys: [Option<(u64, Box<Keys>)>; 2],
}

impl Seals {
    /// Takes in who is behind an endpoint, in place of who was. The same once more changes nothing.
    pub fn add(&mut self, endpoint: SocketAddrV4, key: PortKey, pair: Pair) -> Result<(), Full> {
        match self.keys.get(&endpoint) {
            Some(known) if *known == key => return Ok(()),
            Some(_) => self.remove(endpoint),
            None if self.keys.len() >= PEERS_MAX => return Err(Full),
            None => {}
        }
        self.keys.insert(endpoint, key);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.endpoints.push(endpoint);
            return Ok(());
        }
        let known = self.remembered.iter().position(|(known, _)| *known == key);
        let floor = known.and_then(|at| self.remembered.remove(at)).map_or(0, |(_, top)| top);
        self.by_spi.entry(pair.incoming.spi()).or_default().push(key);
        let outgoing = Outgoing { root: pair.outgoing, number: self.sealed, current: None };
        let incoming = Incoming { root: pair.incoming, floor, window: None, keys: [None, None] };
        self.peers.insert(key, Peer { endpoints: vec![endpoint], outgoing, incoming });
        Ok(())
    }

    /// Forgets who is behind an endpoint.
    pub fn remove(&mut self, endpoint: SocketAddrV4) {
        let Some(key) = self.keys.remove(&endpoint) else { return };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.endpoints.retain(|other| *other != endpoint);
        if !peer.endpoints.is_empty() {
            return;
        }
        let Some(peer) = self.peers.remove(&key) else { return };
        let spi = peer.incoming.root.spi();
        if let Some(keys) = self.by_spi.get_mut(&spi) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.by_spi.remove(&spi);
            }
        }
        if self.remembered.len() >= REMEMBERED_MAX {
            self.remembered.pop_front();
        }
        self.remembered.push_back((key, peer.incoming.top()));
    }

    /// Whose key is behind an endpoint.
    pub fn key_at(&self, endpoint: SocketAddrV4) -> Option<PortKey> {
        self.keys.get(&endpoint).copied()
    }

    /// Seals a run of datagrams of `stride` bytes, the last perhaps shorter, that [`layout::frame`] framed, for who is behind `to`.
    pub fn seal(&mut self, now: Instant, to: SocketAddrV4, run: &mut [u8], stride: usize) -> Result<(), Reason> {
        let peer = self.keys.get(&to).and_then(|key| self.peers.get_mut(key)).ok_or(Reason::SealNoKey)?;
        for datagram in run.chunks_mut(stride) {
            peer.outgoing.seal(now, datagram).ok_or(Reason::SealNoKey)?;
            self.sealed = self.sealed.max(peer.outgoing.number);
        }
        Ok(())
    }

    /// The datagram that carries a payload to who is behind `to`, for whoever does not write payloads in place.
    pub fn sealed(&mut self, now: Instant, to: SocketAddrV4, payload: &[u8]) -> Result<Vec<u8>, Reason> {
        let mut datagram = vec![0; layout::sealed_bytes(payload.len())];
        layout::frame(&mut datagram, payload.len()).copy_from_slice(payload);
        let bytes = datagram.len();
        self.seal(now, to, &mut datagram, bytes)?;
        Ok(datagram)
    }

    /// Opens one datagram: where its payload lies now, and whose it is, whatever address it came from.
    pub fn open(&mut self, datagram: &mut [u8]) -> Result<(Range<usize>, SocketAddrV4), Reason> {
        let head = datagram.first_chunk::<CLEAR_BYTES>().copied().ok_or(Reason::SealShort)?;
        let [a, b, c, d, e, f, g, h, iv @ ..] = head;
        let keys = self.by_spi.get(&u32::from_be_bytes([a, b, c, d])).ok_or(Reason::SealUnknown)?;
        let end = datagram.len().checked_sub(TAG_BYTES).filter(|end| *end > CLEAR_BYTES).ok_or(Reason::SealShort)?;
        let low = u32::from_be_bytes([e, f, g, h]);
        let mut why = Reason::SealUnknown;
        // A try that fails leaves other bytes than it found: the few that share a number are given a copy each.
        let original = (keys.len() > 1).then(|| datagram.to_vec());
        for (turn, key) in keys.iter().enumerate() {
            let Some(peer) = self.peers.get_mut(key) else { continue };
            if let Some(original) = original.as_ref().filter(|_| turn > 0) {
                datagram.copy_from_slice(original);
            }
            match peer.incoming.open([a, b, c, d], low, iv, &mut datagram[CLEAR_BYTES..end + TAG_BYTES]) {
                Ok(()) => {
                    let payload = layout::payload(&datagram[CLEAR_BYTES..end]).ok_or(Reason::SealLayout)?;
                    let endpoint = peer.endpoints.last().copied().ok_or(Reason::SealUnknown)?;
                    return Ok((CLEAR_BYTES + payload.start..CLEAR_BYTES + payload.end, endpoint));
                }
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }
}

/// What is authenticated and not encrypted: the number of the association and the whole sequence (RFC 4106 §5).
fn authenticated(spi: [u8; 4], number: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&spi);
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

impl Outgoing {
    /// `None` if all numbers are used up.
    fn seal(&mut self, now: Instant, datagram: &mut [u8]) -> Option<()> {
        let mut number = self.number.checked_add(1)?;
        let aged = |current: &Current| now.saturating_duration_since(current.since) >= GENERATION_TIME;
        if let Some(current) = &self.current
            && current.generation == number / GENERATION
            && aged(current)
        {
            number = (current.generation + 1).checked_mul(GENERATION)?;
        }
        let generation = number / GENERATION;
        if self.current.as_ref().is_none_or(|current| current.generation != generation) {
            self.current = Some(Current { generation, since: now, keys: Box::new(self.root.keys(generation)) });
        }
        let keys = &self.current.as_ref()?.keys;
        let (spi, iv) = (self.root.spi().to_be_bytes(), number.to_be_bytes());
        let end = datagram.len().checked_sub(TAG_BYTES)?;
        let tag = keys.seal(iv, &authenticated(spi, number), datagram.get_mut(CLEAR_BYTES..end)?)?;
        datagram[..4].copy_from_slice(&spi);
        datagram[4..8].copy_from_slice(&iv[4..]);
        datagram[8..CLEAR_BYTES].copy_from_slice(&iv);
        datagram[end..].copy_from_slice(&tag);
        self.number = number;
        Some(())
    }
}

impl Incoming {
    fn top(&self) -> u64 {
        self.window.as_ref().map_or(self.floor, Window::top)
    }

    /// Decrypts what lies between the head and the end of the tag.
    fn open(&mut self, spi: [u8; 4], low: u32, iv: [u8; IV_BYTES], bytes: &mut [u8]) -> Result<(), Reason> {
        let hint = u64::from_be_bytes(iv);
        // A port of ours says the whole number; of others the upper half is inferred.
        let number = match (hint as u32 == low, &self.window) {
            (true, _) => hint,
            (false, Some(window)) => window.infer(low),
            (false, None) => u64::from(low),
        };
        let seen = match &self.window {
            Some(window) => !window.admits(number),
            None => number <= self.floor,
        };
        if seen {
            return Err(Reason::SealReplay);
        }
        let (bytes, tag) = bytes.split_last_chunk_mut::<TAG_BYTES>().ok_or(Reason::SealShort)?;
        let generation = number / GENERATION;
        let known = self.keys.iter().flatten().find(|(known, _)| *known == generation);
        let made = known.is_none().then(|| Box::new(self.root.keys(generation)));
        let keys = made.as_ref().or(known.map(|(_, keys)| keys)).ok_or(Reason::SealForged)?;
        if !keys.open(iv, &authenticated(spi, number), bytes, *tag) {
            return Err(Reason::SealForged);
        }
        // Only what was sealed with a key makes it worth to be kept.
        if let Some(made) = made {
            let [newest, before] = &mut self.keys;
            if newest.as_ref().is_none_or(|(known, _)| *known < generation) {
                *before = newest.replace((generation, made));
            } else {
                *before = Some((generation, made));
            }
        }
        let floor = self.floor;
        self.window.get_or_insert_with(|| Window::above(floor)).take(number);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
