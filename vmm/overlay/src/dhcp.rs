//! DHCP for IPv4 (RFC 2131, RFC 2132) as far as one port needs it: one client, one address, always the same answer.
//!
//! The port is given what its guest is to be told, so nothing is allocated and nothing remembered: any question can be answered at any
//! time, by the port from which the guest has moved away and by the one to which it has moved.
//!
//! ```text
//! op:1 htype:1 hlen:1 hops:1 | xid:4 | secs:2 flags:2 | ciaddr:4 yiaddr:4 siaddr:4 giaddr:4 | chaddr:16 | sname:64 | file:128
//! 63 82 53 63 | options: code:1 length:1 bytes ... | 255
//! ```

use std::net::Ipv4Addr;

use rebec_vmm_api::{DhcpLease, MacAddr};

pub use crate::reply::{SERVER, SERVER_MAC};
use crate::{config::PortConfig, dns::labels, reply::udp4};

/// Where clients ask.
pub const SERVER_PORT: u16 = 67;
/// Where they listen.
pub const CLIENT_PORT: u16 = 68;
/// How long an answer counts. The address is the NIC's for life: a day makes a guest ask often enough to hear of a new name server.
pub const LEASE_SECONDS: u32 = 86_400;
const HEADER_BYTES: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Shortest message that old clients take (RFC 1542 §2.1).
const MESSAGE_BYTES_MIN: usize = 300;
/// Longest message read: what one packet of a LAN holds.
const MESSAGE_BYTES_MAX: usize = 1500;
const FLAG_BROADCAST: u8 = 0x80;

mod option {
    pub(super) const PAD: u8 = 0;
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const DOMAIN: u8 = 15;
    pub(super) const MTU: u8 = 26;
    pub(super) const ADDRESS: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const KIND: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const CLIENT: u8 = 61;
    pub(super) const SEARCH: u8 = 119;
    pub(super) const END: u8 = 255;
}

mod kind {
    pub(super) const DISCOVER: u8 = 1;
    pub(super) const OFFER: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const DECLINE: u8 = 4;
    pub(super) const ACK: u8 = 5;
    pub(super) const NAK: u8 = 6;
    pub(super) const RELEASE: u8 = 7;
    pub(super) const INFORM: u8 = 8;
}

/// A message that no client of this NIC sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// The address that answers: the gateway's, if there is one, so that a guest can reach it when it renews.
pub fn server_of(lease: &DhcpLease) -> Ipv4Addr {
    lease.gateway().unwrap_or(SERVER)
}

/// Answers one message of the NIC's client: a whole frame, or `None` where a server says nothing.
pub fn answer(config: &PortConfig, lease: &DhcpLease, message: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let question = Question::parse(config.mac, message).ok_or(Malformed)?;
    let server = server_of(lease);
    let answer = |kind| Ok(Some(write_frame(config, lease, &question, kind)));
    match question.kind {
        kind::DISCOVER => answer(kind::OFFER),
        // It took another server's offer.
        kind::REQUEST if question.server.is_some_and(|chosen| chosen != server) => Ok(None),
        kind::REQUEST => match question.wanted() {
            Some(address) => answer(if address == lease.address() { kind::ACK } else { kind::NAK }),
            None => Err(Malformed),
        },
        kind::INFORM if question.has_address() => answer(kind::ACK),
        kind::DECLINE | kind::RELEASE => Ok(None),
        _ => Err(Malformed),
    }
}

/// What is read of a client's message.
#[derive(Debug)]
struct Question<'a> {
    header: &'a [u8; HEADER_BYTES],
    kind: u8,
    /// The address it has.
    current: Ipv4Addr,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client: Option<&'a [u8]>,
}

impl<'a> Question<'a> {
    fn parse(mac: MacAddr, message: &'a [u8]) -> Option<Self> {
        let (header, rest) = message.split_first_chunk::<HEADER_BYTES>()?;
        let options = rest.strip_prefix(&COOKIE)?;
        let sound = message.len() <= MESSAGE_BYTES_MAX && header[..3] == [1, 1, 6] && header[24..28] == [0; 4] && header[28..34] == mac.0;
        if !sound {
            return None;
        }
        let mut question = Self { header, kind: 0, current: ipv4(&header[12..])?, requested: None, server: None, client: None };
        question.read_options(options)?;
        Some(question)
    }

    /// The first word counts where an option is given twice.
    fn read_options(&mut self, mut rest: &'a [u8]) -> Option<()> {
        // Some clients leave the end out.
        while let Some((&code, after)) = rest.split_first() {
            if code == option::PAD {
                rest = after;
                continue;
            }
            if code == option::END {
                break;
            }
            let (&length, after) = after.split_first()?;
            let (value, after) = after.split_at_checked(length.into())?;
            match code {
                option::KIND if self.kind == 0 => self.kind = *value.first()?,
                option::ADDRESS if self.requested.is_none() => self.requested = Some(ipv4(value)?),
                option::SERVER if self.server.is_none() => self.server = Some(ipv4(value)?),
                option::CLIENT if self.client.is_none() && !value.is_empty() => self.client = Some(value),
                _ => {}
            }
            rest = after;
        }
        Some(())
    }

    fn has_address(&self) -> bool {
        !self.current.is_unspecified()
    }

    fn wanted(&self) -> Option<Ipv4Addr> {
        self.requested.or(self.has_address().then_some(self.current))
    }

    /// Where the answer goes (RFC 2131 §4.1): to an address the client has, to one that it will have, or to all.
    fn reply_to(&self, lease: &DhcpLease, kind: u8) -> Ipv4Addr {
        match kind {
            kind::NAK => Ipv4Addr::BROADCAST,
            _ if self.has_address() => self.current,
            _ if self.header[10] & FLAG_BROADCAST != 0 => Ipv4Addr::BROADCAST,
            _ => lease.address(),
        }
    }
}

fn write_frame(config: &PortConfig, lease: &DhcpLease, question: &Question<'_>, kind: u8) -> Vec<u8> {
    let to = question.reply_to(lease, kind);
    let station = if to.is_broadcast() { MacAddr::BROADCAST } else { config.mac };
    udp4(station, (server_of(lease), SERVER_PORT), (to, CLIENT_PORT), &write_message(config, lease, question, kind))
}

fn write_message(config: &PortConfig, lease: &DhcpLease, question: &Question<'_>, kind: u8) -> Vec<u8> {
    let (refused, informed) = (kind == kind::NAK, question.kind == kind::INFORM);
    // Transaction, flags, relay and hardware address are the client's.
    let mut message = question.header.to_vec();
    message[0] = 2;
    message[3] = 0;
    message[8..10].fill(0);
    if kind != kind::ACK {
        message[12..16].fill(0);
    }
    let given = if refused || informed { Ipv4Addr::UNSPECIFIED } else { lease.address() };
    message[16..20].copy_from_slice(&given.octets());
    message[20..24].fill(0);
    message[44..].fill(0);
    message.extend(COOKIE);

    let domain = config.zone.as_ref().map(|zone| &*zone.domain);
    let mut put = |code: u8, value: &[u8]| {
        message.extend([code, value.len() as u8]);
        message.extend(value);
    };
    put(option::KIND, &[kind]);
    put(option::SERVER, &server_of(lease).octets());
    if !refused {
        if !informed {
            put(option::LEASE_TIME, &LEASE_SECONDS.to_be_bytes());
        }
        put(option::MASK, &lease.mask().octets());
        if let Some(gateway) = lease.gateway() {
            put(option::ROUTER, &gateway.octets());
        }
        if let Some(dns) = lease.dns() {
            put(option::DNS, &dns.octets());
        }
        if let Some(domain) = domain {
            put(option::DOMAIN, domain.as_bytes());
        }
        put(option::MTU, &config.mtu.to_be_bytes());
    }
    // RFC 6842: whoever shares a hardware address tells by it which answer is its own.
    if let Some(client) = question.client {
        put(option::CLIENT, client);
    }
    // RFC 3397: where names are looked for that are given without an end.
    if let Some(domain) = domain.filter(|_| !refused) {
        put(option::SEARCH, &labels(domain));
    }
    message.push(option::END);
    message.resize(message.len().max(MESSAGE_BYTES_MIN), option::PAD);
    message
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    bytes.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}
