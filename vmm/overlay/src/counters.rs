//! What a port counts: what passed, and what did not, by reason.

/// Why a frame, datagram or copy went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Reason {
    /// From the guest: shorter than an Ethernet header.
    GuestShort,
    /// From the guest: larger than the MTU, and not to be cut.
    GuestOversize,
    /// From the guest: its source is not the NIC's address, so answers could not reach it.
    GuestSource,
    /// From the guest: the offload header does not fit the frame.
    GuestOffload,
    /// From the guest: nobody else is known on the LAN.
    NoPeer,
    /// From the guest: copies of a flooded frame beyond the limit of endpoints.
    FloodCut,
    /// From the guest: more segments than one frame may become.
    GuestSegments,
    /// From the guest: a DHCP message to this port that makes no sense.
    GuestDhcp,
    /// From the guest: a question to this port while it does not take the answers to earlier ones.
    AnswersFull,
    /// To the network: datagrams that the driver could not send (no room, no route). Counted by the driver.
    SendRefused,
    /// From the network: too short for a VXLAN and an Ethernet header.
    WireShort,
    /// From the network: no VNI in the header.
    WireNoVni,
    /// From the network: another LAN's.
    WireOtherLan,
    /// From the network: for a station that is not here (a flood of an unknown address, or an old entry).
    WireOtherStation,
    /// From the network: carries our own address as its source: a loop, or an impostor.
    WireOwnSource,
    /// From the network: larger than the MTU, and of no kind that can be cut.
    WireOversize,
    /// From the network, at the old place: the time to forward is over.
    RelayOver,
    /// From the network, at the old place: it came from where it would go.
    RelayLoop,
    /// An address was not learnt, because the table is full.
    LearnFull,
    /// To the network: nobody's key is known at the endpoint.
    SealNoKey,
    /// From the network: too short to be sealed.
    SealShort,
    /// From the network: sealed by nobody who is known, or not at all.
    SealUnknown,
    /// From the network: the tag is wrong.
    SealForged,
    /// From the network: seen before, or too old to tell.
    SealReplay,
    /// From the network: sealed by a peer, and no VXLAN in it.
    SealLayout,
    /// From the guest: it speaks with an address that another station has, or the port itself.
    GuestAddress,
    /// From the guest: it calls itself the router of all, or redirects others.
    GuestRouter,
    /// From the guest: a question for names that makes no sense.
    GuestDns,
    /// From the guest: more broadcasts than it may make others hear.
    StormBroadcast,
    /// From the guest: more multicasts than that.
    StormMulticast,
    /// From the guest: more frames than that for stations that nobody knows.
    StormUnknown,
    /// From the network: from a station that the sender does not have, or from a machine that nobody told of.
    WireSource,
    /// From the network: with an address that another station has, or as a router.
    WireAddress,
    /// From a port of this host: what it left undone does not fit the frame.
    WireOffload,
}

impl Reason {
    /// All of them, in the order of [`Counters::dropped`].
    pub const ALL: [Self; 34] = [
        Self::GuestShort,
        Self::GuestOversize,
        Self::GuestSource,
        Self::GuestOffload,
        Self::NoPeer,
        Self::FloodCut,
        Self::GuestSegments,
        Self::GuestDhcp,
        Self::AnswersFull,
        Self::SendRefused,
        Self::WireShort,
        Self::WireNoVni,
        Self::WireOtherLan,
        Self::WireOtherStation,
        Self::WireOwnSource,
        Self::WireOversize,
        Self::RelayOver,
        Self::RelayLoop,
        Self::LearnFull,
        Self::SealNoKey,
        Self::SealShort,
        Self::SealUnknown,
        Self::SealForged,
        Self::SealReplay,
        Self::SealLayout,
        Self::GuestAddress,
        Self::GuestRouter,
        Self::GuestDns,
        Self::StormBroadcast,
        Self::StormMulticast,
        Self::StormUnknown,
        Self::WireSource,
        Self::WireAddress,
        Self::WireOffload,
    ];

    /// One word for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::GuestShort => "guest_short",
            Self::GuestOversize => "guest_oversize",
            Self::GuestSource => "guest_source",
            Self::GuestOffload => "guest_offload",
            Self::NoPeer => "no_peer",
            Self::FloodCut => "flood_cut",
            Self::GuestSegments => "guest_segments",
            Self::GuestDhcp => "guest_dhcp",
            Self::AnswersFull => "answers_full",
            Self::SendRefused => "send_refused",
            Self::WireShort => "wire_short",
            Self::WireNoVni => "wire_no_vni",
            Self::WireOtherLan => "wire_other_lan",
            Self::WireOtherStation => "wire_other_station",
            Self::WireOwnSource => "wire_own_source",
            Self::WireOversize => "wire_oversize",
            Self::RelayOver => "relay_over",
            Self::RelayLoop => "relay_loop",
            Self::LearnFull => "learn_full",
            Self::SealNoKey => "seal_no_key",
            Self::SealShort => "seal_short",
            Self::SealUnknown => "seal_unknown",
            Self::SealForged => "seal_forged",
            Self::SealReplay => "seal_replay",
            Self::SealLayout => "seal_layout",
            Self::GuestAddress => "guest_address",
            Self::GuestRouter => "guest_router",
            Self::GuestDns => "guest_dns",
            Self::StormBroadcast => "storm_broadcast",
            Self::StormMulticast => "storm_multicast",
            Self::StormUnknown => "storm_unknown",
            Self::WireSource => "wire_source",
            Self::WireAddress => "wire_address",
            Self::WireOffload => "wire_offload",
        }
    }
}

/// One port's counters. Frames are the guest's, a large one counted once; datagrams are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Frames taken from the guest and sent, or answered here.
    pub tx_frames: u64,
    /// Datagrams they became, copies included.
    pub tx_datagrams: u64,
    /// Frames handed to the guest.
    pub rx_frames: u64,
    /// Datagrams received, whatever became of them.
    pub rx_datagrams: u64,
    /// Datagrams forwarded to where the guest is now.
    pub relayed: u64,
    /// Frames flooded, because their destination is a group or not known.
    pub flooded: u64,
    /// Frames that ended here: DHCP, and ARP for what is known.
    pub answered: u64,
    /// Frames to and from ports of this host that crossed no network.
    pub near: u64,
    /// Copies of multicasts that were not sent, as nobody there asked for the group.
    pub spared: u64,
    /// Drops, indexed by [`Reason`].
    pub dropped: [u64; Reason::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        let dropped = [0; Reason::ALL.len()];
        Self {
            tx_frames: 0,
            tx_datagrams: 0,
            rx_frames: 0,
            rx_datagrams: 0,
            relayed: 0,
            flooded: 0,
            answered: 0,
            near: 0,
            spared: 0,
            dropped,
        }
    }
}

impl Counters {
    /// Counts one drop.
    pub fn drop(&mut self, reason: Reason) {
        self.drop_many(reason, 1);
    }

    /// Counts several drops.
    pub fn drop_many(&mut self, reason: Reason, count: u64) {
        self.dropped[reason as usize] += count;
    }

    /// Drops of one kind.
    pub fn of(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Drops of all kinds. `LearnFull` and `WireOtherStation` are no loss of the guest's and are left out.
    pub fn lost(&self) -> u64 {
        self.dropped.iter().sum::<u64>() - self.of(Reason::LearnFull) - self.of(Reason::WireOtherStation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_the_order() {
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{}", reason.name());
        }
    }
}
