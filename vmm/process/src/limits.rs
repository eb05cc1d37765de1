//! What the VM's devices may do a second. It is said by the command line, comes with the VM, and is changed over the control socket; the devices look at it as
//! they work.

use std::sync::Arc;

use rebec_devices::limit::{PerSecond, Rate};
use rebec_vmm_api::control::DeviceLimits;
use rebec_vmm_saved::{Part, PartKind, SavedError};

/// Of the saved part.
const VERSION: u16 = 1;
const BITS: u64 = 8;

/// Of all NICs and disks, each of which may do as much.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    net: Arc<Rate>,
    disk: Arc<Rate>,
    /// Said on the side where the VM arrives: what it brings along counts no more.
    is_said_here: bool,
}

impl Limits {
    /// As the command line says.
    pub fn new(said: DeviceLimits) -> Self {
        let limits = Self { is_said_here: said != DeviceLimits::default(), ..Self::default() };
        limits.change(said);
        limits
    }

    /// Of each NIC, each way.
    pub fn net(&self) -> &Arc<Rate> {
        &self.net
    }

    /// Of each disk.
    pub fn disk(&self) -> &Arc<Rate> {
        &self.disk
    }

    /// From now on; what is not said stays.
    pub fn change(&self, to: DeviceLimits) {
        let (net, disk) = (self.net.get(), self.disk.get());
        // A limit of a few bits is no unlimited one.
        let bytes = to.net_bits.map(|bits| bits.div_ceil(BITS));
        self.net.set(PerSecond { bytes: bytes.unwrap_or(net.bytes), ..net });
        self.disk.set(PerSecond { requests: to.disk_requests.unwrap_or(disk.requests), bytes: to.disk_bytes.unwrap_or(disk.bytes) });
    }

    /// As they are; none where nothing is limited.
    pub fn shown(&self) -> Option<DeviceLimits> {
        let (net, disk) = (self.net.get(), self.disk.get());
        let said = |value: u64| Some(value).filter(|value| *value > 0);
        let shown = DeviceLimits {
            net_bits: said(net.bytes.saturating_mul(BITS)),
            disk_requests: said(disk.requests),
            disk_bytes: said(disk.bytes),
        };
        (shown != DeviceLimits::default()).then_some(shown)
    }

    /// As they travel with the VM.
    pub fn save(&self) -> Part {
        let (net, disk) = (self.net.get(), self.disk.get());
        Part::encode(PartKind::Limits, 0, VERSION, &(net.bytes, disk.requests, disk.bytes))
    }

    /// Takes what came with the VM.
    pub fn restore(&self, part: &Part) -> Result<(), SavedError> {
        let (net, requests, bytes) = part.decode(VERSION)?;
        if !self.is_said_here {
            self.net.set(PerSecond { requests: 0, bytes: net });
            self.disk.set(PerSecond { requests, bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays_and_none_is_no_limit() {
        let limits = Limits::default();
        assert_eq!(limits.shown(), None);
        limits.change(DeviceLimits { net_bits: Some(200_000_000), ..DeviceLimits::default() });
        limits.change(DeviceLimits { disk_requests: Some(5000), ..DeviceLimits::default() });
        let expected = DeviceLimits { net_bits: Some(200_000_000), disk_requests: Some(5000), disk_bytes: None };
        assert_eq!(limits.shown(), Some(expected));
        limits.change(DeviceLimits { net_bits: Some(0), ..DeviceLimits::default() });
        assert_eq!(limits.shown(), Some(DeviceLimits { net_bits: None, ..expected }));
        limits.change(DeviceLimits { net_bits: Some(u64::MAX), ..DeviceLimits::default() });
        assert!(limits.shown().is_some_and(|shown| shown.net_bits.is_some()));
    }

    #[test]
    fn limits_come_along_unless_the_other_side_says_its_own() {
        let limits = Limits::new(DeviceLimits { net_bits: Some(8000), disk_requests: Some(300), disk_bytes: Some(5) });
        let part = limits.save();
        assert_eq!(part.bytes, [0xe8, 7, 0xac, 2, 5]);
        let there = Limits::default();
        there.restore(&part).unwrap();
        assert_eq!(there.shown(), limits.shown());
        let own = DeviceLimits { disk_requests: Some(1), ..DeviceLimits::default() };
        let there = Limits::new(own);
        there.restore(&part).unwrap();
        assert_eq!(there.shown(), Some(own));
        assert!(there.restore(&Part { bytes: vec![1], ..part }).is_err());
    }
}
