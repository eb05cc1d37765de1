//! The form of saved state: a list of parts, each with a kind, an index and a version.
//!
//! ```text
//! saved machine = "RBS1" u32(parts) part*
//! part          = kind:u16 index:u16 version:u16 length:u32 bytes        all little endian; a kind from 0x8000 on may be left out
//! ```
//!
//! Who saves a part writes its own `saved.rs` beside the thing that runs; running types never derive `Serialize`.
//! Saved bytes are hostile until a `TryFrom` says otherwise: limits come before allocation, a part that nobody takes is an
//! error, and so is one that is taken twice. `docs/formats/saved.md` lists kinds and versions.

use serde::{Serialize, de::DeserializeOwned};

const MAGIC: [u8; 4] = *b"RBS1";
const PART_HEADER_BYTES: usize = 10;
/// Most parts of one machine: 16 vCPUs and every device leave a wide margin.
pub const PARTS_MAX: usize = 256;
/// Kinds from here on help who knows them, and are skipped by who does not: without them the machine is the same.
pub const MAY_BE_LEFT_OUT: u16 = 0x8000;
/// Largest part. XSAVE areas are the largest thing saved and stay below 16 KiB.
pub const PART_BYTES_MAX: usize = 256 * 1024;

/// What a part describes. The numbers are the wire's and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum PartKind {
    /// Registers and local APIC of one vCPU; index is the vCPU.
    Vcpu = 1,
    /// PIC and IOAPIC.
    Irqchip = 2,
    /// Programmable interval timer.
    Pit = 3,
    /// KVM clock and time stamp counter.
    Clock = 4,
    /// 16550 serial port.
    Serial = 5,
    /// ACPI power management registers.
    Power = 6,
    /// A virtio device's transport and queues; index is the slot.
    Virtio = 7,
    /// The CPU model by its name, so that a reset at another host shows the guest the same.
    CpuModel = 0x8000,
    /// What its devices may do a second.
    Limits = 0x8001,
}

impl PartKind {
    const ALL: [Self; 9] =
        [Self::Vcpu, Self::Irqchip, Self::Pit, Self::Clock, Self::Serial, Self::Power, Self::Virtio, Self::CpuModel, Self::Limits];
}

/// Why saved state was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SavedError {
    /// The bytes end too early, begin wrongly or go on after the end.
    #[error("saved state: malformed at byte {0}")]
    Malformed(usize),
    /// A limit is exceeded.
    #[error("saved state: {what} {value} exceeds the limit of {max}")]
    Limit {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: usize,
        /// The limit.
        max: usize,
    },
    /// A kind that this version does not know.
    #[error("saved state: part kind {0} is not known to this version: upgrade this host, and move the VM then")]
    UnknownKind(u16),
    /// Two parts say the same thing.
    #[error("saved state: part {kind:?} {index} is there twice")]
    Doubled {
        /// Its kind.
        kind: PartKind,
        /// Its index.
        index: u16,
    },
    /// A part that is needed is not there.
    #[error("saved state: part {kind:?} {index} is missing")]
    Missing {
        /// Its kind.
        kind: PartKind,
        /// Its index.
        index: u16,
    },
    /// A part of another version.
    #[error("saved state: part {kind:?} {index} has version {found}, this program reads {expected}: upgrade the older of both hosts")]
    Version {
        /// Its kind.
        kind: PartKind,
        /// Its index.
        index: u16,
        /// What was found.
        found: u16,
        /// What is read here.
        expected: u16,
    },
    /// A part whose content makes no sense.
    #[error("saved state: part {kind:?} {index}: {what}")]
    Invalid {
        /// Its kind.
        kind: PartKind,
        /// Its index.
        index: u16,
        /// What is wrong.
        what: String,
    },
    /// Parts are left over.
    #[error("saved state: nobody took part {kind:?} {index}")]
    Leftover {
        /// Its kind.
        kind: PartKind,
        /// Its index.
        index: u16,
    },
}

/// One saved thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it describes.
    pub kind: PartKind,
    /// Which of several.
    pub index: u16,
    /// Version of its bytes.
    pub version: u16,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Part {
    /// Encodes a saved form with postcard.
    ///
    /// # Panics
    /// Never for the forms in this repository: postcard fails only on sequences of unknown length.
    pub fn encode<T: Serialize>(kind: PartKind, index: u16, version: u16, saved: &T) -> Self {
        let bytes = postcard::to_stdvec(saved).expect("invariant: saved forms have known lengths");
        Self { kind, index, version, bytes }
    }

    /// Decodes the content, all of it, if it has the expected version.
    pub fn decode<T: DeserializeOwned>(&self, expected: u16) -> Result<T, SavedError> {
        let &Self { kind, index, version: found, .. } = self;
        if found != expected {
            return Err(SavedError::Version { kind, index, found, expected });
        }
        match postcard::take_from_bytes(&self.bytes) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(self.invalid(format!("{} bytes left over", rest.len()))),
            Err(error) => Err(self.invalid(error.to_string())),
        }
    }

    /// An error that names this part.
    pub fn invalid(&self, what: impl Into<String>) -> SavedError {
        SavedError::Invalid { kind: self.kind, index: self.index, what: what.into() }
    }
}

/// All parts of a machine. Who restores takes its own part; [`SavedMachine::finish`] refuses what nobody took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedMachine {
    parts: Vec<Part>,
}

impl SavedMachine {
    /// Adds a part while saving.
    pub fn push(&mut self, part: Part) {
        self.parts.push(part);
    }

    /// Takes a part while restoring.
    pub fn take(&mut self, kind: PartKind, index: u16) -> Result<Part, SavedError> {
        let position = self.parts.iter().position(|p| p.kind == kind && p.index == index);
        position.map(|at| self.parts.swap_remove(at)).ok_or(SavedError::Missing { kind, index })
    }

    /// Takes a part that may be missing.
    pub fn take_if_there(&mut self, kind: PartKind, index: u16) -> Option<Part> {
        self.take(kind, index).ok()
    }

    /// Ends a restore: everything must have been taken.
    pub fn finish(self) -> Result<(), SavedError> {
        match self.parts.first() {
            None => Ok(()),
            Some(&Part { kind, index, .. }) => Err(SavedError::Leftover { kind, index }),
        }
    }

    /// The bytes that travel.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend((self.parts.len() as u32).to_le_bytes());
        for part in &self.parts {
            out.extend((part.kind as u16).to_le_bytes());
            out.extend(part.index.to_le_bytes());
            out.extend(part.version.to_le_bytes());
            out.extend((part.bytes.len() as u32).to_le_bytes());
            out.extend(&part.bytes);
        }
        out
    }

    /// Reads what travelled. Never panics, never allocates more than the input's size.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SavedError> {
        let mut input = Input { bytes, at: 0 };
        if input.take(4)? != MAGIC {
            return Err(SavedError::Malformed(0));
        }
        let count = input.u32()? as usize;
        limit("part count", count, PARTS_MAX)?;
        let mut parts: Vec<Part> = Vec::with_capacity(count.min(bytes.len() / PART_HEADER_BYTES));
        for _ in 0..count {
            let Some(part) = read_part(&mut input)? else { continue };
            let (kind, index) = (part.kind, part.index);
            if parts.iter().any(|p| p.kind == kind && p.index == index) {
                return Err(SavedError::Doubled { kind, index });
            }
            parts.push(part);
        }
        if input.at != bytes.len() {
            return Err(SavedError::Malformed(input.at));
        }
        Ok(Self { parts })
    }
}

/// None for one that is not known and may be left out.
fn read_part(input: &mut Input<'_>) -> Result<Option<Part>, SavedError> {
    let number = input.u16()?;
    let index = input.u16()?;
    let version = input.u16()?;
    let length = input.u32()? as usize;
    limit("part length", length, PART_BYTES_MAX)?;
    let bytes = input.take(length)?;
    match PartKind::ALL.into_iter().find(|kind| *kind as u16 == number) {
        Some(kind) => Ok(Some(Part { kind, index, version, bytes: bytes.to_vec() })),
        None if number >= MAY_BE_LEFT_OUT => Ok(None),
        None => Err(SavedError::UnknownKind(number)),
    }
}

fn limit(what: &'static str, value: usize, max: usize) -> Result<(), SavedError> {
    if value > max { Err(SavedError::Limit { what, value, max }) } else { Ok(()) }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], SavedError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or(SavedError::Malformed(self.at))?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SavedError> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| SavedError::Malformed(at))
    }

    fn u16(&mut self) -> Result<u16, SavedError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, SavedError> {
        self.array().map(u32::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> SavedMachine {
        let mut machine = SavedMachine::default();
        machine.push(Part::encode(PartKind::Clock, 0, 1, &(5_u64, true)));
        machine.push(Part { kind: PartKind::Vcpu, index: 1, version: 2, bytes: vec![1, 2, 3] });
        machine
    }

    #[test]
    fn golden_bytes() {
        let expected = [
            b'R', b'B', b'S', b'1', 2, 0, 0, 0, // two parts
            4, 0, 0, 0, 1, 0, 2, 0, 0, 0, 5, 1, // clock 0 version 1
            1, 0, 1, 0, 2, 0, 3, 0, 0, 0, 1, 2, 3, // vcpu 1 version 2
        ];
        assert_eq!(sample().to_bytes(), expected);
        assert_eq!(SavedMachine::from_bytes(&expected), Ok(sample()));
    }

    #[test]
    fn a_part_that_is_not_known_is_skipped_only_if_it_may_be() {
        let with = |kind: u16| {
            let mut bytes = sample().to_bytes();
            bytes[4] += 1;
            bytes.extend([&kind.to_le_bytes()[..], &[0, 0, 1, 0, 2, 0, 0, 0, 9, 9]].concat());
            SavedMachine::from_bytes(&bytes)
        };
        assert_eq!(with(MAY_BE_LEFT_OUT | 5), Ok(sample()));
        assert_eq!(with(0x7fff), Err(SavedError::UnknownKind(0x7fff)));
    }

    #[test]
    fn what_nobody_takes_is_an_error() {
        let mut machine = sample();
        let clock = machine.take(PartKind::Clock, 0).unwrap();
        assert_eq!(clock.decode::<(u64, bool)>(1), Ok((5, true)));
        assert!(matches!(clock.decode::<(u64, bool)>(2), Err(SavedError::Version { found: 1, expected: 2, .. })));
        assert!(matches!(clock.decode::<u64>(1), Err(SavedError::Invalid { .. })));
        assert_eq!(machine.take(PartKind::Clock, 0), Err(SavedError::Missing { kind: PartKind::Clock, index: 0 }));
        assert_eq!(machine.finish(), Err(SavedError::Leftover { kind: PartKind::Vcpu, index: 1 }));
    }

    #[test]
    fn limits_doubles_and_tails_are_refused() {
        let mut doubled = sample();
        doubled.push(Part { kind: PartKind::Vcpu, index: 1, version: 2, bytes: vec![] });
        assert!(matches!(SavedMachine::from_bytes(&doubled.to_bytes()), Err(SavedError::Doubled { .. })));
        let mut tail = sample().to_bytes();
        tail.push(0);
        assert!(matches!(SavedMachine::from_bytes(&tail), Err(SavedError::Malformed(_))));
        assert!(matches!(SavedMachine::from_bytes(b"RBS1\xff\xff\xff\xff"), Err(SavedError::Limit { .. })));
        for cut in 0..sample().to_bytes().len() {
            assert!(SavedMachine::from_bytes(&sample().to_bytes()[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let with_magic = [&MAGIC[..], &bytes].concat();
            if let Ok(machine) = SavedMachine::from_bytes(&with_magic) {
                // What was skipped is not there any more.
                prop_assert!(machine.to_bytes() == with_magic || machine.to_bytes().len() < with_magic.len());
            }
        }
    }
}
