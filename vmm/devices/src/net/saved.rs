//! The saved form of a card beside its queues: what its driver has seen of it, and what its port knows of the guest.

use serde::{Deserialize, Serialize};

use crate::virtio::saved;

const VERSION: u16 = 1;
/// Most bytes of a port's own state.
const PORT_BYTES_MAX: usize = 64 * 1024;

/// What travels with a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedNet {
    pub(super) mac: [u8; 6],
    pub(super) mtu: u16,
    pub(super) port: Vec<u8>,
}

impl SavedNet {
    pub(super) fn encode(&self) -> Vec<u8> {
        saved::encode(VERSION, self)
    }

    /// Reads a part and holds it against the card that is here. The port's bytes are still the port's to check.
    pub(super) fn decode(bytes: &[u8], mac: [u8; 6], mtu: u16) -> Result<Self, String> {
        let saved: Self = saved::decode(VERSION, bytes)?;
        if saved.mac != mac {
            return Err(format!("its card has the address {}, the one here has {}", text(saved.mac), text(mac)));
        }
        if saved.mtu != mtu {
            return Err(format!("its card has MTU {}, the one here has {mtu}", saved.mtu));
        }
        if saved.port.len() > PORT_BYTES_MAX {
            return Err(format!("{} bytes of port state; at most {PORT_BYTES_MAX} are read", saved.port.len()));
        }
        Ok(saved)
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

    #[test]
    fn golden_bytes() {
        let saved = SavedNet { mac: MAC, mtu: 1400, port: vec![7, 8] };
        let expected = [1, 0, 0x52, 0x54, 0, 0, 0, 1, 0xf8, 0x0a, 2, 7, 8];
        assert_eq!(saved.encode(), expected);
        assert_eq!(SavedNet::decode(&expected, MAC, 1400), Ok(saved));
    }

    #[test]
    fn another_card_and_cut_bytes_are_refused() {
        let bytes = SavedNet { mac: MAC, mtu: 1400, port: vec![7, 8] }.encode();
        assert!(SavedNet::decode(&bytes, [0x52, 0x54, 0, 0, 0, 2], 1400).unwrap_err().contains("52:54:00:00:00:02"));
        assert!(SavedNet::decode(&bytes, MAC, 1500).unwrap_err().contains("MTU 1400"));
        for cut in 0..bytes.len() {
            assert!(SavedNet::decode(&bytes[..cut], MAC, 1400).is_err(), "cut at {cut}");
        }
        let large = SavedNet { mac: MAC, mtu: 1400, port: vec![0; PORT_BYTES_MAX + 1] }.encode();
        assert!(SavedNet::decode(&large, MAC, 1400).is_err());
    }
}
