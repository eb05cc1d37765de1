//! The old place of a guest that moved: for some seconds it sends on what still arrives for it.
//!
//! What its sender had no right to say goes nowhere: the new place believes whatever the old one sends on. Who sent it has an old forwarding database; the control plane is telling it. A datagram goes on as it came, byte for byte; on a sealed LAN it was
//! opened here, and is sealed anew for the new place. It never goes
//! back to the endpoint it came from: two old places that point at each other (a guest that moved there and back) end the loop at once. The
//! endpoint and not the machine is compared, because the guest may move to where its correspondent lives.

use std::{net::SocketAddrV4, time::Instant};

use rebec_offload::FRAME_BYTES_MAX;

use crate::{
    batch::{Batch, RUN_BYTES_MAX, Wire},
    config::PortConfig,
    counters::{Counters, Reason},
    fdb::Fdb,
    frame::Ethernet,
    guard,
    inbound::Inbound,
    near,
    seal::{Seals, layout::OVERHEAD_BYTES_MAX},
    segment::complete,
    vxlan::{self, NotVxlan},
};

/// Forwards for one guest until its deadline.
#[derive(Debug)]
pub struct Relay {
    config: PortConfig,
    to: SocketAddrV4,
    until: Instant,
    batch: Batch,
    counters: Counters,
}

impl Relay {
    /// Forwards what is for `mac`, or for everyone, to `to`.
    pub fn new(config: &PortConfig, to: SocketAddrV4, until: Instant) -> Self {
        Self { config: config.clone(), to, until, batch: Batch::new(config.sealed), counters: Counters::default() }
    }

    /// Opens what one receive call of a sealed port brought, into `inbound`.
    pub fn open(&mut self, seals: &mut Seals, run: &mut [u8], stride: usize, inbound: &mut Inbound) {
        inbound.open(seals, run, stride, &mut self.counters);
    }

    /// Takes the datagrams of one receive call, which are what `inbound` was made of. They are on the wire when this returns.
    pub fn handle(&mut self, now: Instant, fdb: &Fdb, inbound: &mut Inbound, datagrams: &[u8], wire: &mut impl Wire) {
        if let Some((bytes, source)) = inbound.take_near() {
            self.counters.rx_datagrams += 1;
            match self.relay_near(now, fdb, source, &datagrams[..bytes], wire) {
                Ok(()) => self.counters.relayed += 1,
                Err(reason) => self.counters.drop(reason),
            }
        }
        while let Some((range, source)) = inbound.peek() {
            inbound.skip();
            let datagram = &datagrams[range];
            self.counters.rx_datagrams += 1;
            let fits = datagram.len() + OVERHEAD_BYTES_MAX <= RUN_BYTES_MAX;
            let admitted = self.admit(now, fdb, source, datagram).and(if fits { Ok(()) } else { Err(Reason::WireOversize) });
            match admitted {
                Ok(()) => {
                    self.batch.payload(&[self.to], datagram.len(), wire).copy_from_slice(datagram);
                    self.counters.relayed += 1;
                }
                Err(reason) => self.counters.drop(reason),
            }
        }
        self.batch.flush(wire);
        self.counters.tx_datagrams = self.batch.sent();
    }

    /// A record of a port of this host goes on over the network: cut and summed, as that wants it.
    fn relay_near(&mut self, now: Instant, fdb: &Fdb, source: SocketAddrV4, record: &[u8], wire: &mut impl Wire) -> Result<(), Reason> {
        let undone = near::undone(record).ok_or(Reason::WireShort)?;
        let datagram = &record[near::UNDONE_BYTES..];
        self.admit(now, fdb, source, datagram)?;
        let frame = datagram.get(vxlan::HEADER_BYTES..).ok_or(Reason::WireShort)?;
        let ethernet = Ethernet::parse(frame).ok_or(Reason::WireShort)?;
        if frame.len() > FRAME_BYTES_MAX {
            return Err(Reason::WireOversize);
        }
        let header = self.config.vni.header();
        let Some(mut plan) = near::plan(frame, &ethernet, &undone, self.config.mtu.into())? else {
            let payload = self.batch.payload(&[self.to], datagram.len(), wire);
            payload.copy_from_slice(datagram);
            return complete(&mut payload[vxlan::HEADER_BYTES..], undone.checksum);
        };
        while let Some(bytes) = plan.next_bytes() {
            let payload = self.batch.payload(&[self.to], vxlan::HEADER_BYTES + bytes, wire);
            payload[..vxlan::HEADER_BYTES].copy_from_slice(&header);
            plan.write_next(frame, &mut payload[vxlan::HEADER_BYTES..]);
        }
        Ok(())
    }

    fn admit(&self, now: Instant, fdb: &Fdb, source: SocketAddrV4, datagram: &[u8]) -> Result<(), Reason> {
        let (vni, frame) = vxlan::open(datagram).map_err(Reason::from)?;
        if vni != self.config.vni {
            return Err(Reason::WireOtherLan);
        }
        let ethernet = Ethernet::parse(frame).ok_or(Reason::WireShort)?;
        if ethernet.destination != self.config.mac && !ethernet.destination.is_multicast() {
            return Err(Reason::WireOtherStation);
        }
        // The guest itself, speaking to everyone from its new place: it has no use for its own voice.
        if ethernet.source == self.config.mac {
            return Err(Reason::WireOwnSource);
        }
        // Without seals an earlier place of the guest is nobody that could be known.
        if self.config.sealed {
            guard::arriving(&self.config, fdb, source, frame, &ethernet)?;
        }
        if now >= self.until {
            return Err(Reason::RelayOver);
        }
        if source == self.to {
            return Err(Reason::RelayLoop);
        }
        Ok(())
    }

    /// When forwarding ends.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// What was forwarded and what was not.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl From<NotVxlan> for Reason {
    fn from(why: NotVxlan) -> Self {
        match why {
            NotVxlan::Short => Self::WireShort,
            NotVxlan::NoVni => Self::WireNoVni,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use rebec_vmm_api::MacAddr;

    use super::*;
    use crate::{
        batch::tests::Sent,
        frame::{IPV4, samples::*},
        vxlan::Vni,
    };

    const NEW: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 4789);
    const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 4790);

    fn config() -> PortConfig {
        PortConfig::plain(Vni::new(5).unwrap(), MINE, 1400)
    }

    fn handle(relay: &mut Relay, now: Instant, source: SocketAddrV4, run: &[u8], stride: usize, sent: &mut Sent) {
        relay.handle(now, &Fdb::default(), &mut Inbound::new(source, run.len(), stride), run, sent);
    }

    fn datagram(vni: u32, to: MacAddr, from: MacAddr, bytes: usize) -> Vec<u8> {
        [&Vni::new(vni).unwrap().header()[..], &ethernet(to, from, IPV4, &vec![7; bytes])].concat()
    }

    #[test]
    fn what_is_for_the_guest_follows_it_until_the_deadline() {
        let start = Instant::now();
        let mut relay = Relay::new(&config(), NEW, start + Duration::from_secs(5));
        let run = [datagram(5, MINE, THEIRS, 100), datagram(5, MINE, THEIRS, 100), datagram(5, MacAddr::BROADCAST, THEIRS, 40)].concat();
        let mut sent = Sent::default();
        handle(&mut relay, start, PEER, &run, 122, &mut sent);
        assert_eq!(sent.0, [(NEW, 122, run.clone())]);
        handle(&mut relay, start + Duration::from_secs(5), PEER, &run, 122, &mut sent);
        assert_eq!((sent.0.len(), relay.counters().of(Reason::RelayOver), relay.counters().relayed), (1, 3, 3));
    }

    #[test]
    fn nothing_else_is_sent_on() {
        let start = Instant::now();
        let mut relay = Relay::new(&config(), NEW, start + Duration::from_secs(5));
        let mut sent = Sent::default();
        let good = datagram(5, MINE, THEIRS, 100);
        for (source, datagram, reason) in [
            (NEW, good.clone(), Reason::RelayLoop),
            (PEER, datagram(6, MINE, THEIRS, 100), Reason::WireOtherLan),
            (PEER, datagram(5, THEIRS, THEIRS, 100), Reason::WireOtherStation),
            (PEER, datagram(5, MacAddr::BROADCAST, MINE, 100), Reason::WireOwnSource),
            (PEER, good[..21].to_vec(), Reason::WireShort),
            (PEER, good[..7].to_vec(), Reason::WireShort),
            (PEER, [&[0; 8][..], &good[8..]].concat(), Reason::WireNoVni),
        ] {
            let before = relay.counters().of(reason);
            handle(&mut relay, start, source, &datagram, datagram.len(), &mut sent);
            assert_eq!(relay.counters().of(reason), before + 1, "{}", reason.name());
        }
        handle(&mut relay, start, PEER, &[], 0, &mut sent);
        assert!(sent.0.is_empty());
    }
}
