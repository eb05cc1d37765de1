//! All that a host gives guests of its processor, as a compact set, and its text:
//!
//! ```text
//! MAKER:PHYSICAL.VIRTUAL:WORD.WORD...:PART=BYTES@OFFSET,...        words in hexadecimal, in the order of the table of names
//! AuthenticAMD:48.48:80082201.78bfbff:2=256@576
//! ```
//! Words that are zero at the end are left out, and so are those of rows that a later version knows and this one does not: such a feature is none here.

use std::{fmt, str::FromStr};

use crate::{
    XSAVE_LEAF,
    compare::{absent, other_vendor, short_addresses},
    entry::{Entry, register, vendor, vendor_text},
    names::{EAX, ECX, EDX, FEATURES, ROWS},
    xsave::{FIRST_PART, PARTS_MAX, Part, parts},
};

/// Longest text of a set.
const TEXT_BYTES_MAX: usize = 2048;
/// Words of a set that is read: some more than there are today.
const WORDS_MAX: usize = 64;
const ADDRESS_LEAF: u32 = 0x8000_0008;

/// Bits that tell of the machine that a guest has and not of its processor: several CPUs to a package, by Intel's and by AMD's word.
pub(crate) const OF_THE_MACHINE: [(u32, usize, u32); 2] = [(1, EDX, 1 << 28), (0x8000_0001, ECX, 1 << 1)];

/// A text that is no set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no set of CPU features, as `rebec-vmm cpu` writes it")]
pub struct FeaturesError(String);

/// A set of features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    vendor: [u8; 12],
    /// Bits of physical and of virtual addresses.
    address_bits: [u8; 2],
    words: [u32; ROWS],
    parts: Vec<Part>,
}

impl Features {
    /// What these entries promise.
    pub fn of(entries: &[Entry]) -> Self {
        let mut words = [0; ROWS];
        for (word, row) in words.iter_mut().zip(&FEATURES) {
            let machine = OF_THE_MACHINE.iter().find(|(leaf, register, _)| (row.leaf, row.subleaf, row.register) == (*leaf, 0, *register));
            *word = register(entries, row.leaf, row.subleaf, row.register) & !row.ignored & !machine.map_or(0, |(_, _, bits)| *bits);
        }
        let sizes = register(entries, ADDRESS_LEAF, 0, EAX);
        let mut features = Self {
            vendor: vendor(entries),
            address_bits: [sizes as u8, (sizes >> 8) as u8].map(|bits| bits.min(64)),
            words,
            parts: parts(entries),
        };
        features.drop_placeless();
        features
    }

    /// What a guest that has these features would miss at `host`, in words.
    pub fn missing_on(&self, host: &Self) -> Vec<String> {
        let vendor = other_vendor(self.vendor, host.vendor);
        let bits = (0..ROWS).flat_map(|row| absent(row, self.words[row], host.words[row]));
        let moved = self.parts.iter().filter(|part| host.parts.iter().any(|other| other.number == part.number && other != *part));
        let moved = moved.map(|part| format!("XSAVE part {} at {} (this host has it elsewhere)", part.number, part.offset));
        vendor.into_iter().chain(bits).chain(moved).chain(short_addresses([self.address_bits, host.address_bits])).collect()
    }

    /// What several hosts have in common; none where there is no host.
    ///
    /// # Errors
    /// When their processors have different makers: the names of the first two that differ.
    pub fn common<'a>(hosts: impl IntoIterator<Item = (&'a str, &'a Self)>) -> Result<Option<Self>, String> {
        let mut hosts = hosts.into_iter();
        let Some((first, features)) = hosts.next() else { return Ok(None) };
        let mut common = features.clone();
        for (name, other) in hosts {
            if let Some(what) = other_vendor(other.vendor, common.vendor) {
                return Err(format!("host {name} has {what}, as {first} has it: no CPU model suits both; name hosts of one maker"));
            }
            common.words.iter_mut().zip(other.words).for_each(|(word, theirs)| *word &= theirs);
            common.address_bits = [0, 1].map(|at| common.address_bits[at].min(other.address_bits[at]));
            common.parts.retain(|part| other.parts.contains(part));
            common.drop_placeless();
        }
        Ok(Some(common))
    }

    /// The names of all that is in the set, without their kinds.
    pub fn names(&self) -> Vec<String> {
        let bits = (0..ROWS).flat_map(|row| absent(row, self.words[row], 0));
        bits.map(|name| name.split_once("feature ").map_or(name.clone(), |(_, name)| name.to_owned())).collect()
    }

    pub(crate) fn word(&self, row: usize) -> u32 {
        self.words[row]
    }

    pub(crate) fn address_bits(&self) -> [u8; 2] {
        self.address_bits
    }

    pub(crate) fn has_part(&self, part: &Part) -> bool {
        self.parts.contains(part)
    }

    /// Of what is kept in the XSAVE area, only that is a feature which has a place there, the same in all that is compared.
    fn drop_placeless(&mut self) {
        for (register, subleaf) in [(EAX, 0), (ECX, 1)] {
            let Some(row) = FEATURES.iter().position(|row| (row.leaf, row.subleaf, row.register) == (XSAVE_LEAF, subleaf, register)) else {
                continue;
            };
            let legacy = if subleaf == 0 { (1 << FIRST_PART) - 1 } else { 0 };
            let placed = self.parts.iter().fold(legacy, |placed, part| placed | 1_u32.checked_shl(part.number).unwrap_or(0));
            self.words[row] &= placed;
        }
    }
}

impl fmt::Display for Features {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [physical, virtual_] = self.address_bits;
        write!(formatter, "{}:{physical}.{virtual_}:", vendor_text(self.vendor))?;
        let used = self.words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        let words: Vec<String> = self.words[..used].iter().map(|word| format!("{word:x}")).collect();
        let place = |part: &Part| {
            let kind = if part.kind == 0 { String::new() } else { format!("/{:x}", part.kind) };
            format!("{}={}@{}{kind}", part.number, part.bytes, part.offset)
        };
        write!(formatter, "{}:{}", words.join("."), self.parts.iter().map(place).collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Features {
    type Err = FeaturesError;

    fn from_str(text: &str) -> Result<Self, FeaturesError> {
        let wrong = || FeaturesError(text.chars().filter(|letter| !letter.is_control()).take(64).collect());
        if text.len() > TEXT_BYTES_MAX {
            return Err(wrong());
        }
        let mut fields = text.split(':');
        let mut field = || fields.next().ok_or_else(wrong);
        let (maker, sizes, hex, places) = (field()?, field()?, field()?, field()?);
        let vendor = maker
            .as_bytes()
            .try_into()
            .ok()
            .filter(|letters: &[u8; 12]| letters.iter().all(|letter| matches!(letter, b' ' | b'!') || letter.is_ascii_alphanumeric()));
        let (physical, virtual_) = sizes.split_once('.').ok_or_else(wrong)?;
        let size = |text: &str| text.parse::<u8>().ok().filter(|bits| *bits <= 64).ok_or_else(wrong);
        let mut words = [0; ROWS];
        for (at, word) in hex.split('.').filter(|word| !word.is_empty()).enumerate() {
            let value = u32::from_str_radix(word, 16).ok().filter(|_| at < WORDS_MAX && !word.starts_with('+')).ok_or_else(wrong)?;
            if let Some(place) = words.get_mut(at) {
                *place = value;
            }
        }
        let parts =
            places.split(',').filter(|part| !part.is_empty()).map(|text| part(text).ok_or_else(wrong)).collect::<Result<Vec<_>, _>>()?;
        let sound = parts.windows(2).all(|pair| pair[0].number < pair[1].number) && parts.len() <= PARTS_MAX && fields.next().is_none();
        let mut features = Self { vendor: vendor.ok_or_else(wrong)?, address_bits: [size(physical)?, size(virtual_)?], words, parts };
        features.drop_placeless();
        if sound { Ok(features) } else { Err(wrong()) }
    }
}

fn part(text: &str) -> Option<Part> {
    let (number, place) = text.split_once('=')?;
    let (place, kind) = place.split_once('/').unwrap_or((place, "0"));
    let (bytes, offset) = place.split_once('@')?;
    let number = number.parse().ok().filter(|number| (FIRST_PART..32).contains(number))?;
    Some(Part { number, bytes: bytes.parse().ok()?, offset: offset.parse().ok()?, kind: u32::from_str_radix(kind, 16).ok()? })
}
