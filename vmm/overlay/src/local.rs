//! What a port answers itself, so that it never becomes a flood: its guest's DHCP and questions for names, and where stations are that the control
//! plane knows.
//!
//! ```text
//! DHCP        untagged IPv4 UDP to port 67, to all or to the answering station     answered or dropped, if the port has a lease to tell
//! DNS         untagged IPv4 UDP to port 53 of the lease's name server              answered or dropped, if the port has a zone
//! ARP         untagged request to all for an address in the database               answered in the name of the station that has it
//! discovery   untagged, to a group, for an address made of a MAC in the database   likewise; to all routers, if the LAN has an IPv6 prefix
//! ```
//! An ARP request to one station alone asks whether that one still lives: it goes there.

use std::net::Ipv4Addr;

use rebec_vmm_api::{DhcpLease, MacAddr};

use crate::{
    config::PortConfig,
    counters::Reason,
    dhcp, discovery, dns,
    fdb::Fdb,
    frame::{ARP, ETHERNET_BYTES, Ethernet, Ip, UDP, UDP_BYTES, Version, word},
    reply::udp4,
};

/// What becomes of a frame of the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Local {
    /// It is for the LAN.
    Pass,
    /// It ends here, with this frame for the guest.
    Answer(Vec<u8>),
    /// It ends here; nothing is to be said.
    Silence,
    /// It ends here: it is for the port, and makes no sense.
    Malformed(Reason),
}

/// Looks at a frame of the guest, whose source is known to be the NIC's.
pub fn look(config: &PortConfig, fdb: &Fdb, frame: &[u8], ethernet: &Ethernet) -> Local {
    // Tags are the guests' own affair.
    if ethernet.network != ETHERNET_BYTES {
        return Local::Pass;
    }
    if ethernet.ethertype == ARP {
        return look_at_arp(config, fdb, frame, ethernet).map_or(Local::Pass, Local::Answer);
    }
    let ip = Ip::parse(frame, ethernet);
    if let Some(ip) = ip.filter(|ip| ip.version == Version::V6) {
        return discovery::look(config, fdb, frame, ethernet, &ip).map_or(Local::Pass, Local::Answer);
    }
    let Some(lease) = &config.lease else { return Local::Pass };
    match ip {
        Some(ip) if is_dhcp(lease, frame, ethernet, &ip) => look_at_dhcp(config, lease, frame, &ip),
        Some(ip) if is_dns(config, lease, frame, ethernet, &ip) => look_at_dns(config, lease, fdb, frame, &ip),
        // Nothing else is spoken there.
        _ if ethernet.destination == dhcp::SERVER_MAC => Local::Silence,
        _ => Local::Pass,
    }
}

fn is_dns(config: &PortConfig, lease: &DhcpLease, frame: &[u8], ethernet: &Ethernet, ip: &Ip) -> bool {
    let to = ipv4_at(frame, ip.network + 16);
    let ours = ethernet.destination == dhcp::SERVER_MAC && config.zone.is_some() && lease.dns() == to && to.is_some();
    ours && ip.plain && ip.protocol == UDP && word(frame, ip.transport + 2) == Some(dns::PORT)
}

fn look_at_dns(config: &PortConfig, lease: &DhcpLease, fdb: &Fdb, frame: &[u8], ip: &Ip) -> Local {
    let (Some(zone), Some(source), Some(server)) = (&config.zone, ipv4_at(frame, ip.network + 12), lease.dns()) else {
        return Local::Silence;
    };
    let port = word(frame, ip.transport).unwrap_or_default();
    let question = payload(frame, ip).ok_or(dns::Malformed);
    match question.and_then(|message| dns::answer(&dns::Names { zone, lease, fdb }, message)) {
        Ok(answer) => Local::Answer(udp4(config.mac, (server, dns::PORT), (source, port), &answer)),
        Err(dns::Malformed) => Local::Malformed(Reason::GuestDns),
    }
}

/// What a UDP datagram says, by its own length.
fn payload<'a>(frame: &'a [u8], ip: &Ip) -> Option<&'a [u8]> {
    let bytes = word(frame, ip.transport + 4)?;
    frame.get(ip.transport..ip.transport + usize::from(bytes))?.get(UDP_BYTES..)
}

fn ipv4_at(frame: &[u8], at: usize) -> Option<Ipv4Addr> {
    frame.get(at..)?.first_chunk::<4>().map(|address| Ipv4Addr::from(*address))
}

fn is_dhcp(lease: &DhcpLease, frame: &[u8], ethernet: &Ethernet, ip: &Ip) -> bool {
    let header = &frame[ip.network..ip.transport];
    let first_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
    let to = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    let ours = ethernet.destination.is_multicast() || ethernet.destination == dhcp::SERVER_MAC || to == dhcp::server_of(lease);
    ip.protocol == UDP && first_fragment && ours && word(frame, ip.transport + 2) == Some(dhcp::SERVER_PORT)
}

/// The UDP checksum is not looked at: the guest may have left it to be completed, and no wire was crossed.
fn look_at_dhcp(config: &PortConfig, lease: &DhcpLease, frame: &[u8], ip: &Ip) -> Local {
    let message = payload(frame, ip).filter(|_| ip.plain);
    match message.ok_or(dhcp::Malformed).and_then(|message| dhcp::answer(config, lease, message)) {
        Ok(Some(answer)) => Local::Answer(answer),
        Ok(None) => Local::Silence,
        Err(dhcp::Malformed) => Local::Malformed(Reason::GuestDhcp),
    }
}

fn look_at_arp(config: &PortConfig, fdb: &Fdb, frame: &[u8], ethernet: &Ethernet) -> Option<Vec<u8>> {
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    const REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];
    let packet: &[u8; 28] = frame[ETHERNET_BYTES..].first_chunk()?;
    if packet[..8] != REQUEST || packet[8..14] != config.mac.0 || !ethernet.destination.is_multicast() {
        return None;
    }
    let wanted = Ipv4Addr::new(packet[24], packet[25], packet[26], packet[27]);
    let station = station_at(config, fdb, wanted).filter(|station| *station != config.mac)?;
    let ethernet = [&config.mac.0[..], &station.0, &ARP.to_be_bytes()].concat();
    Some([&ethernet[..], &REPLY, &station.0, &wanted.octets(), &config.mac.0, &packet[14..18]].concat())
}

fn station_at(config: &PortConfig, fdb: &Fdb, address: Ipv4Addr) -> Option<MacAddr> {
    let without_gateway = config.lease.is_some_and(|lease| lease.gateway().is_none());
    let names = config.zone.as_ref().and(config.lease).and_then(|lease| lease.dns());
    if (without_gateway && address == dhcp::SERVER) || names == Some(address) {
        return Some(dhcp::SERVER_MAC);
    }
    fdb.station_with(address)
}
