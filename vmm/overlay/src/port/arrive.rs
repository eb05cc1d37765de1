//! What arrives from ports of this host, and frames that arrive as large as a guest may take them.

use std::{net::SocketAddrV4, ops::Range, time::Instant};

use rebec_offload::{Checksum, FRAME_BYTES_MAX, Offload, SegmentKind, Segmentation};

use super::{Place, Port, Ready};
use crate::{
    counters::Reason,
    fdb::Fdb,
    frame::{Ip, Tcp},
    near,
    segment::{Plan, complete},
};

impl Port {
    /// One record of a port of this host: judged as a datagram is, and handed on as it is where the guest takes that.
    pub(super) fn next_near(&mut self, now: Instant, fdb: &Fdb, source: SocketAddrV4, records: &[u8], bytes: usize) -> Option<Ready> {
        let undone = near::undone(&records[..bytes]).ok_or(Reason::WireShort);
        let admitted = undone.and_then(|undone| Ok((undone, self.admit(now, fdb, source, records, near::UNDONE_BYTES..bytes)?)));
        let planned = admitted.and_then(|(undone, (range, ethernet))| {
            let frame = &records[range.clone()];
            if frame.len() > FRAME_BYTES_MAX {
                return Err(Reason::WireOversize);
            }
            Ok((undone, near::plan(frame, &ethernet, &undone, self.config.mtu.into())?, range, ethernet))
        });
        let (undone, plan, range, ethernet) = match planned {
            Ok(planned) => planned,
            Err(reason) => {
                self.counters.drop(reason);
                return None;
            }
        };
        self.counters.near += 1;
        let frame = &records[range.clone()];
        match plan {
            None if self.accepts.checksum || undone.checksum == Checksum::InFrame => {
                Some(Ready { offload: undone, place: Place::Datagram(range) })
            }
            None => self.completed(frame, Ip::parse(frame, &ethernet)?.end.min(frame.len()), undone.checksum),
            Some(plan) => {
                // As many as the network would have brought; one is counted.
                self.talk.received(ethernet.source, 0, plan.segments() as u64 - 1);
                self.large_ready(frame, range, &undone, plan)
            }
        }
    }

    /// A large frame with a plan to cut it: whole, if the guest takes it so.
    pub(super) fn large_ready(&mut self, frame: &[u8], range: Range<usize>, undone: &Offload, plan: Plan) -> Option<Ready> {
        let takes = match undone.segmentation.map(|segmentation| segmentation.kind) {
            Some(SegmentKind::Tcp4) => self.accepts.tcp4,
            Some(SegmentKind::Tcp6) => self.accepts.tcp6,
            Some(SegmentKind::Udp) | None => false,
        };
        let Some((ip, tcp)) = plan.tcp().filter(|(_, tcp)| takes && (tcp.flags & Tcp::CWR == 0 || self.accepts.ecn)) else {
            self.cutting = Some((range, plan));
            return None;
        };
        let (checksum, kind) = self.joiner.take_apart(frame, range.start, &ip, tcp.payload);
        let ecn = tcp.flags & Tcp::CWR != 0;
        let segment_bytes = undone.segmentation.map_or(0, |segmentation| segmentation.segment_bytes);
        let segmentation = Segmentation { kind, ecn, header_bytes: tcp.payload as u16, segment_bytes };
        Some(Ready { offload: Offload { checksum, segmentation: Some(segmentation) }, place: Place::Joiner })
    }

    /// A frame whose sum is completed here, as its guest would not.
    pub(super) fn completed(&mut self, frame: &[u8], end: usize, checksum: Checksum) -> Option<Ready> {
        // The sum covers the packet and not what pads a short frame.
        let kept = self.joiner.keep(&frame[..end]);
        if complete(kept, checksum).is_err() {
            self.counters.drop(Reason::WireShort);
            return None;
        }
        Some(Ready { offload: Offload::default(), place: Place::Joiner })
    }
}
