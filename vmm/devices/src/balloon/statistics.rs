//! What a guest says of its memory (virtio 1.3 §5.5.6.3): numbers by tag, of which a few are kept. Nothing of it is proved.
//!
//! ```text
//! entry = tag:u16 value:u64        packed, in any order; bytes, or a count
//! ```

/// What the guest said last, in bytes; none, where it did not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestMemory {
    /// All that it has.
    pub total: Option<u64>,
    /// Of that, what nobody uses.
    pub free: Option<u64>,
    /// What could be had without swapping.
    pub available: Option<u64>,
    /// What its caches of files hold.
    pub caches: Option<u64>,
    /// Page faults that needed its disk, since it began.
    pub major_faults: Option<u64>,
    /// What it has read back from swap since it began.
    pub swapped_in: Option<u64>,
}

/// Most bytes of entries that are read: what Linux sends is a tenth of it.
pub(super) const BYTES_MAX: usize = 2560;
const ENTRY_BYTES: usize = 10;

/// Reads entries; tags that are not known are passed over.
pub(super) fn read(bytes: &[u8]) -> GuestMemory {
    let mut guest = GuestMemory::default();
    for entry in bytes.chunks_exact(ENTRY_BYTES) {
        let [low, high, value @ ..] = entry else { continue };
        let Ok(value) = <[u8; 8]>::try_from(value) else { continue };
        let field = match u16::from_le_bytes([*low, *high]) {
            0 => &mut guest.swapped_in,
            2 => &mut guest.major_faults,
            4 => &mut guest.free,
            5 => &mut guest.total,
            6 => &mut guest.available,
            7 => &mut guest.caches,
            _ => continue,
        };
        *field = Some(u64::from_le_bytes(value));
    }
    guest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_tags_are_kept_and_the_rest_passed_over() {
        let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        let bytes = [entry(4, 7), entry(900, 1), entry(5, u64::MAX), entry(4, 8), vec![6, 0, 1]].concat();
        assert_eq!(read(&bytes), GuestMemory { free: Some(8), total: Some(u64::MAX), ..GuestMemory::default() });
        assert_eq!(read(&[]), GuestMemory::default());
    }
}
