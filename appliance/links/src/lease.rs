//! DHCP's messages (RFC 2131, RFC 2132) as far as a client needs them. Pure: bytes and values.

use std::{net::Ipv4Addr, time::Duration};

use dhcproto::{
    Decodable as _, Decoder, Encodable as _, Encoder,
    v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode},
};

/// Bounds of a lease: below, a client does nothing but renew; above, nothing changes.
const LEASE_SECONDS: std::ops::RangeInclusive<u32> = 60..=(30 * 24 * 3600);
const NAME_SERVERS_MAX: usize = 3;
const TIME_SERVERS_MAX: usize = 4;
/// Routes of one lease: as many as fit into its option.
const ROUTES_MAX: usize = 64;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// The interface's address.
    pub mac: [u8; 6],
    /// Name of this exchange.
    pub transaction: u32,
    /// The host's name.
    pub hostname: Option<&'a str>,
}

/// An address for some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub length: u8,
    /// The first router.
    pub gateway: Option<Ipv4Addr>,
    /// Networks and the routers to them (RFC 3442); zeros where they are on the link. If there are any, the router above does not count.
    pub routes: Vec<((Ipv4Addr, u8), Ipv4Addr)>,
    /// Name servers.
    pub name_servers: Vec<Ipv4Addr>,
    /// Time servers (RFC 2132 §8.3).
    pub time_servers: Vec<Ipv4Addr>,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// When the server is asked to renew it, when any server is, and when it ends; since it was asked for.
    pub times: [Duration; 3],
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// An offer.
    Offer(Lease),
    /// It is ours.
    Given(Lease),
    /// It is not.
    Refused,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Question<'a> {
    /// Who has an address?
    Discover,
    /// The one that was offered.
    Request(&'a Lease),
    /// The one we have, again.
    Renew(&'a Lease),
    /// The one we had before the link was gone: is this still its network? (RFC 2131 §4.3.2, INIT-REBOOT.)
    Again(&'a Lease),
}

impl Client<'_> {
    /// The message to send.
    pub fn ask(&self, question: Question<'_>) -> Vec<u8> {
        let mut message = Message::default();
        message.set_xid(self.transaction).set_chaddr(&self.mac);
        let kind = if let Question::Discover = question { MessageType::Discover } else { MessageType::Request };
        match question {
            Question::Renew(lease) => {
                message.set_ciaddr(lease.address);
            }
            // Without an address only broadcasts arrive (RFC 2131 §4.1).
            _ => {
                message.set_flags(Flags::default().set_broadcast());
            }
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        if let Question::Request(lease) = question {
            options.insert(DhcpOption::RequestedIpAddress(lease.address));
            options.insert(DhcpOption::ServerIdentifier(lease.server));
        }
        if let Question::Again(lease) = question {
            options.insert(DhcpOption::RequestedIpAddress(lease.address));
        }
        // Routes before routers (RFC 3442).
        let wanted = vec![
            OptionCode::SubnetMask,
            OptionCode::ClasslessStaticRoute,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::NtpServers,
        ];
        options.insert(DhcpOption::ParameterRequestList(wanted));
        if let Some(name) = self.hostname {
            options.insert(DhcpOption::Hostname(name.to_owned()));
        }
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).expect("invariant: a message of known options always encodes");
        bytes
    }

    /// What a datagram says to us; none if it is not for us or makes no sense.
    pub fn hear(&self, bytes: &[u8]) -> Option<Answer> {
        let message = Message::decode(&mut Decoder::new(bytes)).ok()?;
        let ours =
            message.opcode() == Opcode::BootReply && message.xid() == self.transaction && message.chaddr().get(..6) == Some(&self.mac);
        if !ours {
            return None;
        }
        match message.opts().msg_type()? {
            MessageType::Offer => lease(&message).map(Answer::Offer),
            MessageType::Ack => lease(&message).map(Answer::Given),
            MessageType::Nak => Some(Answer::Refused),
            _ => None,
        }
    }
}

fn lease(message: &Message) -> Option<Lease> {
    let get = |code| message.opts().get(code);
    let address = message.yiaddr();
    let usable = !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast() && !address.is_loopback();
    let Some(DhcpOption::ServerIdentifier(server)) = get(OptionCode::ServerIdentifier) else { return None };
    let Some(DhcpOption::AddressLeaseTime(seconds)) = get(OptionCode::AddressLeaseTime) else { return None };
    let length = match get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => {
            let bits = u32::from(*mask);
            // A mask with holes is no mask.
            (bits.leading_ones() + bits.trailing_zeros() == 32).then_some(bits.leading_ones())?
        }
        _ => 24,
    };
    let gateway = match get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers.first().copied(),
        _ => None,
    };
    let routes = match get(OptionCode::ClasslessStaticRoute) {
        Some(DhcpOption::ClasslessStaticRoute(routes)) => {
            routes.iter().map(|(net, gateway)| ((net.addr(), net.prefix_len()), *gateway)).take(ROUTES_MAX).collect()
        }
        _ => Vec::new(),
    };
    let name_servers = match get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => servers.iter().copied().take(NAME_SERVERS_MAX).collect(),
        _ => Vec::new(),
    };
    let time_servers = match get(OptionCode::NtpServers) {
        Some(DhcpOption::NtpServers(servers)) => servers.iter().copied().take(TIME_SERVERS_MAX).collect(),
        _ => Vec::new(),
    };
    let end = Duration::from_secs(u64::from((*seconds).clamp(*LEASE_SECONDS.start(), *LEASE_SECONDS.end())));
    let length = u8::try_from(length).ok()?;
    // T1 and T2 as RFC 2131 §4.4.5 has them by default.
    let times = [end / 2, end / 8 * 7, end];
    usable.then_some(Lease { address, length, gateway, routes, name_servers, time_servers, server: *server, times })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Client<'_> = Client { mac: [2, 0, 0, 0, 0, 1], transaction: 7, hostname: Some("spare-1") };

    fn answer(change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::default();
        message.set_opcode(Opcode::BootReply).set_xid(7).set_chaddr(&CLIENT.mac).set_yiaddr([10, 0, 0, 9]);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(MessageType::Ack));
        options.insert(DhcpOption::ServerIdentifier([10, 0, 0, 1].into()));
        options.insert(DhcpOption::AddressLeaseTime(3600));
        options.insert(DhcpOption::SubnetMask([255, 255, 252, 0].into()));
        change(&mut message);
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        bytes
    }

    #[test]
    fn a_given_lease_is_understood() {
        let servers: Vec<Ipv4Addr> = (1..=9).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
        let bytes = answer(|message| {
            message.opts_mut().insert(DhcpOption::NtpServers(servers.clone()));
        });
        let Some(Answer::Given(lease)) = CLIENT.hear(&bytes) else { panic!("no lease") };
        assert_eq!(lease.time_servers, servers[..TIME_SERVERS_MAX]);
        assert_eq!((lease.address, lease.length, lease.gateway), ([10, 0, 0, 9].into(), 22, None));
        assert_eq!(lease.times.map(|time| time.as_secs()), [1800, 3150, 3600]);
    }

    #[test]
    fn routes_stand_in_place_of_the_router() {
        let net = |text: &str| text.parse().unwrap();
        let bytes = answer(|message| {
            let routes = vec![
                (net("10.20.0.0/16"), [10, 0, 0, 7].into()),
                (net("192.168.9.0/24"), [0, 0, 0, 0].into()),
                (net("0.0.0.0/0"), [10, 9, 9, 9].into()),
            ];
            message.opts_mut().insert(DhcpOption::ClasslessStaticRoute(routes));
            message.opts_mut().insert(DhcpOption::Router(vec![[10, 0, 0, 1].into()]));
        });
        let Some(Answer::Given(lease)) = CLIENT.hear(&bytes) else { panic!("no lease") };
        let wiring = crate::wiring::Wiring::of_lease(&lease);
        assert_eq!((wiring.address, wiring.gateway()), (([10, 0, 0, 9].into(), 22), Some([10, 9, 9, 9].into())));
        let roads: Vec<_> = wiring.roads.iter().map(|road| (road.to.1, road.gateway.is_some(), road.is_on_link)).collect();
        assert_eq!(roads, [(24, false, false), (16, true, false), (0, true, true)]);

        let bytes = answer(|message| drop(message.opts_mut().insert(DhcpOption::Router(vec![[10, 0, 0, 1].into()]))));
        let Some(Answer::Given(lease)) = CLIENT.hear(&bytes) else { panic!("no lease") };
        assert_eq!(crate::wiring::Wiring::of_lease(&lease).gateway(), Some([10, 0, 0, 1].into()));
    }

    #[test]
    fn what_is_not_for_us_or_makes_no_sense_is_passed_over() {
        type Change = fn(&mut Message);
        let changes: [Change; 5] = [
            |message| {
                message.set_xid(8);
            },
            |message| {
                message.set_chaddr(&[2, 0, 0, 0, 0, 2]);
            },
            |message| {
                message.set_yiaddr([0, 0, 0, 0]);
            },
            |message| {
                message.opts_mut().insert(DhcpOption::SubnetMask([255, 0, 255, 0].into()));
            },
            |message| {
                message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
            },
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert_eq!(CLIENT.hear(&answer(change)), None, "{number}");
        }
        let whole = answer(|_| {});
        for length in 0..whole.len().min(240) {
            assert_eq!(CLIENT.hear(&whole[..length]), None);
        }
        assert_eq!(
            CLIENT.hear(&answer(|message| {
                message.opts_mut().insert(DhcpOption::MessageType(MessageType::Nak));
            })),
            Some(Answer::Refused)
        );
    }
}
