//! Requests of a driver of virtio-mem and their answers, as bytes (virtio 1.3 §5.15.6).
//!
//! ```text
//! request = type:u16 0:u48 address:u64 blocks:u16 0:u48        read by the device; without a place for those that have none
//! answer  = type:u16 0:u48 state:u16                           written by it
//! ```

use crate::{
    GuestRam,
    virtio::{chain::Chain, ring::Broken},
};

const REQUEST_BYTES: usize = 24;
const ANSWER_BYTES: usize = 10;

/// What a driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Plug { address: u64, blocks: u16 },
    Unplug { address: u64, blocks: u16 },
    UnplugAll,
    State { address: u64, blocks: u16 },
    Unknown,
}

/// What comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// More than was asked of the guest.
    Refused,
    /// The host cannot, now.
    Busy,
    /// It makes no sense.
    Error,
    Plugged,
    Unplugged,
    Mixed,
}

impl Request {
    /// Reads a request; an error, where a chain has no room for one.
    pub(super) fn read(chain: &Chain, ram: &GuestRam) -> Result<Self, Broken> {
        let mut bytes = [0; REQUEST_BYTES];
        let read = chain.reader(ram).read(&mut bytes);
        if read < 2 || chain.writer(ram).left() < ANSWER_BYTES as u64 {
            return Err(Broken::Request("a request of a memory device has no room for its type or its answer"));
        }
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8; REQUEST_BYTES]) -> Self {
        let [kind_low, kind_high, _, _, _, _, _, _, address @ .., low, high, _, _, _, _, _, _] = *bytes;
        let (address, blocks) = (u64::from_le_bytes(address), u16::from_le_bytes([low, high]));
        match u16::from_le_bytes([kind_low, kind_high]) {
            0 => Self::Plug { address, blocks },
            1 => Self::Unplug { address, blocks },
            2 => Self::UnplugAll,
            3 => Self::State { address, blocks },
            _ => Self::Unknown,
        }
    }
}

impl Outcome {
    pub(super) fn to_bytes(self) -> [u8; ANSWER_BYTES] {
        let (kind, state) = match self {
            Self::Done | Self::Plugged => (0, 0),
            Self::Unplugged => (0, 1),
            Self::Mixed => (0, 2),
            Self::Refused => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
        };
        [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_byte_by_byte() {
        let with = |kind: u8| {
            let mut bytes = [0; REQUEST_BYTES];
            (bytes[0], bytes[8], bytes[12], bytes[16], bytes[17]) = (kind, 0x20, 1, 0x40, 2);
            Request::parse(&bytes)
        };
        let (address, blocks) = (0x1_0000_0020, 0x240);
        assert_eq!(with(0), Request::Plug { address, blocks });
        assert_eq!(with(1), Request::Unplug { address, blocks });
        assert_eq!(with(2), Request::UnplugAll);
        assert_eq!(with(3), Request::State { address, blocks });
        assert_eq!(with(4), Request::Unknown);
        assert_eq!(Outcome::Mixed.to_bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(Outcome::Error.to_bytes(), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
