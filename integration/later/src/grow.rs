//! What a later version writes, byte by byte: it cannot use this version's types.

use rebec_book::Body;

/// CBOR's null.
const NULL: u8 = 0xf6;
/// The place of [`rebec_book::record::VmBody::must`].
const MUST: usize = 11;
/// Beyond every field that this version knows.
const BEYOND: usize = 30;
/// CBOR of what stands there.
const ADDED: &[u8] = b"\x6bsaid later!";

/// The part that may be left out, and the one that may not: kind, index, version, length, bytes.
const OPTIONAL: &[u8] = b"\x84\x83\0\0\x01\0\x05\0\0\0maybe";
const NEEDED: &[u8] = b"\x84\x03\0\0\x01\0\x04\0\0\0must";

/// The body of a record with more fields; of a VM whose name says so, with what must be known.
pub fn body(body: &Body, bytes: Vec<u8>) -> Vec<u8> {
    let Some((&head, fields)) = bytes.split_first() else { return bytes };
    let (count, fields) = match (head, fields.split_first()) {
        (0x80..=0x97, _) => (usize::from(head - 0x80), fields),
        (0x98, Some((count, fields))) => (usize::from(*count), fields),
        // No array: nothing of this version's.
        _ => return bytes,
    };
    let mut grown = vec![0x98, BEYOND as u8 + 1];
    grown.extend_from_slice(fields);
    for place in count..BEYOND {
        match body {
            Body::Vm(vm) if place == MUST && vm.name.starts_with("needs") => grown.extend_from_slice(b"\x81\x65later"),
            _ => grown.push(NULL),
        }
    }
    grown.extend_from_slice(ADDED);
    grown
}

/// What is saved of a machine for a target of this version of the move protocol.
pub fn saved(version: u16, mut saved: Vec<u8>) -> Vec<u8> {
    let more: &[&[u8]] = if version > 4 { &[OPTIONAL, NEEDED] } else { &[OPTIONAL] };
    // "RBS1", then how many parts there are.
    if let Some(count) = saved.get_mut(4) {
        *count += more.len() as u8;
    }
    saved.extend(more.concat());
    saved
}

/// What this version understands of it: what stands at its end is taken off again.
pub fn understood(saved: &[u8]) -> Vec<u8> {
    let mut understood = saved.to_vec();
    for part in [NEEDED, OPTIONAL] {
        if understood.ends_with(part) {
            understood.truncate(understood.len() - part.len());
            if let Some(count) = understood.get_mut(4) {
                *count -= 1;
            }
        }
    }
    understood
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_taken_out() {
        let machine = b"RBS1\x02\0\0\0whatever".to_vec();
        assert_eq!(saved(4, machine.clone()).len(), machine.len() + OPTIONAL.len());
        for version in [4, 5] {
            assert_eq!(understood(&saved(version, machine.clone())), machine);
        }
        assert_eq!(understood(&machine), machine);
    }
}
