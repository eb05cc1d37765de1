//! The form of a device's own part within the saved transport: `version:u16` little endian, then postcard.

use rebec_vmm_saved::{Part, PartKind};
use serde::{Serialize, de::DeserializeOwned};

pub(crate) fn encode<T: Serialize>(version: u16, saved: &T) -> Vec<u8> {
    [version.to_le_bytes().as_slice(), &Part::encode(PartKind::Virtio, 0, version, saved).bytes].concat()
}

pub(crate) fn decode<T: DeserializeOwned>(version: u16, bytes: &[u8]) -> Result<T, String> {
    let Some((found, bytes)) = bytes.split_first_chunk() else { return Err("its device part is cut short".to_owned()) };
    let part = Part { kind: PartKind::Virtio, index: 0, version: u16::from_le_bytes(*found), bytes: bytes.to_vec() };
    part.decode(version).map_err(|error| error.to_string())
}
