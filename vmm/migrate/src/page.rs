//! Per-unit work: is it zero, what is its digest, pack a batch, unpack and verify a batch. Pure functions over copied
//! bytes, run by the worker threads of the driver; the engines see only their verdicts.

use zstd::{
    bulk::Decompressor,
    stream::raw::{Encoder, InBuffer, Operation as _, OutBuffer},
};

use crate::{
    frame::{Content, Entry, FrameError, FrameHead},
    unit::{BATCH_BYTES, RUN_UNITS, UNIT_BYTES},
};

pub use crate::digest::{Digest, Inner, Key, digest, inner, wire};

/// zstd's fastest ordinary level: 1 to 15 us a page, below the 35 us that a page takes on 1 Gbit/s.
const ZSTD_LEVEL: i32 = 1;
/// A sample of a unit, spread over it, tells whether its bytes are about equally frequent: 16 pieces of 64 bytes.
const SAMPLE_PIECES: usize = 16;
const SAMPLE_PIECE_BYTES: usize = 64;
/// Bytes drawn evenly give 5,116 +- 90 as the sum of squared counts of the sample; anything that an entropy coder shortens by a twentieth is above this.
const SAMPLE_EVEN_MAX: u32 = 5_600;

/// What a worker found in one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing but zeros.
    Zero,
    /// Anything else.
    Content(Digest),
}

/// How one unit of a batch travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Not at all: the target has this version.
    Unchanged,
    /// As part of a zero range.
    Zero,
    /// As its digest: the target is believed to hold the content.
    Held(Digest),
    /// With its bytes.
    Bytes(Digest),
}

/// Whether a unit holds nothing but zeros.
pub fn is_zero(unit: &[u8]) -> bool {
    let blocks = unit.chunks_exact(64);
    let rest = blocks.remainder().iter().all(|&byte| byte == 0);
    rest && blocks.into_iter().all(|block| block.iter().fold(0, |all, &byte| all | byte) == 0)
}

/// Zero test and digest of every unit of a batch.
pub fn judge(key: &Key, units: &[u8]) -> Vec<Verdict> {
    let judge_one = |unit| if is_zero(unit) { Verdict::Zero } else { Verdict::Content(digest(key, unit)) };
    units.chunks_exact(UNIT_BYTES).map(judge_one).collect()
}

/// What packing a batch came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Units whose bytes went compressed.
    pub compressed: u64,
    /// Units whose bytes went as they are.
    pub raw: u64,
}

/// Packs batches; keeps zstd's working memory from one batch to the next.
pub struct Packer {
    zstd: Encoder<'static>,
    gathered: Vec<u8>,
    body: Vec<u8>,
}

impl Packer {
    /// A packer for one worker.
    ///
    /// # Errors
    /// When zstd cannot have its working memory.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { zstd: Encoder::new(ZSTD_LEVEL)?, gathered: Vec::with_capacity(BATCH_BYTES), body: vec![0; BATCH_BYTES] })
    }

    /// Appends one frame to `out`: the units of `numbers` whose bytes are `units`, each in the form the engine chose.
    pub fn pack(&mut self, head: FrameHead, numbers: &[u64], forms: &[Form], units: &[u8], out: &mut Vec<u8>) -> Packed {
        self.gathered.clear();
        let mut entries: Vec<Entry> = Vec::with_capacity(forms.len());
        for ((&unit, form), bytes) in numbers.iter().zip(forms).zip(units.chunks_exact(UNIT_BYTES)) {
            match *form {
                Form::Unchanged => {}
                Form::Zero => push_zero(&mut entries, unit),
                Form::Held(digest) => entries.push(Entry { unit, content: Content::Held(digest) }),
                Form::Bytes(digest) => {
                    entries.push(Entry { unit, content: Content::Bytes(digest) });
                    self.gathered.extend_from_slice(bytes);
                }
            }
        }
        let count = (self.gathered.len() / UNIT_BYTES) as u64;
        let packed = if count == 0 { None } else { self.compress() };
        match packed {
            Some(length) => {
                head.write(&entries, Some(length), &self.body[..length], out);
                Packed { compressed: count, raw: 0 }
            }
            None => {
                head.write(&entries, None, &self.gathered, out);
                Packed { compressed: 0, raw: count }
            }
        }
    }

    /// One zstd frame of what was gathered; `None` if that gains too little.
    ///
    /// A block of zstd's has one table of byte frequencies. Where units that compress lie between units that do not, one table for both
    /// fits neither, so a block ends where the kind changes.
    fn compress(&mut self) -> Option<usize> {
        // One that gains less than a sixteenth is not worth unpacking.
        let limit = self.gathered.len() - self.gathered.len() / 16;
        self.body.resize(self.body.len().max(limit), 0);
        let mut out = OutBuffer::around(&mut self.body[..limit]);
        self.zstd.reinit().ok()?;
        self.zstd.set_pledged_src_size(Some(self.gathered.len() as u64)).ok()?;
        let mut was_even = None;
        for unit in self.gathered.chunks_exact(UNIT_BYTES) {
            let is_even = is_even(unit);
            if was_even.replace(is_even).is_some_and(|was| was != is_even) && self.zstd.flush(&mut out).ok()? > 0 {
                return None;
            }
            let mut input = InBuffer::around(unit);
            while input.pos() < UNIT_BYTES {
                self.zstd.run(&mut input, &mut out).ok()?;
                // A full buffer that still has to take something was too small.
                if input.pos() < UNIT_BYTES && out.pos() == limit {
                    return None;
                }
            }
        }
        (self.zstd.finish(&mut out, true).ok()? == 0).then(|| out.pos())
    }
}

/// Whether the bytes of a unit are about equally frequent, as in what is compressed or encrypted already.
fn is_even(unit: &[u8]) -> bool {
    let mut counts = [0_u32; 256];
    for piece in unit.chunks_exact(UNIT_BYTES / SAMPLE_PIECES) {
        piece[..SAMPLE_PIECE_BYTES].iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    }
    counts.iter().map(|count| count * count).sum::<u32>() < SAMPLE_EVEN_MAX
}

fn push_zero(entries: &mut Vec<Entry>, unit: u64) {
    if let Some(Entry { unit: first, content: Content::Zero { count } }) = entries.last_mut()
        && *first + u64::from(*count) == unit
        && *first / RUN_UNITS == unit / RUN_UNITS
    {
        *count += 1;
    } else {
        entries.push(Entry { unit, content: Content::Zero { count: 1 } });
    }
}

/// Unpacks and verifies batches.
pub struct Unpacker {
    zstd: Decompressor<'static>,
}

impl Unpacker {
    /// An unpacker for one worker.
    ///
    /// # Errors
    /// When zstd cannot have its working memory.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { zstd: Decompressor::new()? })
    }

    /// The bytes of the entries that carry bytes, in their order, each verified against its digest.
    ///
    /// # Errors
    /// When the body does not unpack to exactly these units, or a unit is not what its digest names.
    pub fn unpack(&mut self, key: &Key, entries: &[Entry], compressed: bool, body: Vec<u8>) -> Result<Vec<u8>, FrameError> {
        let wanted: Vec<(u64, Digest)> = entries
            .iter()
            .filter_map(|entry| match entry.content {
                Content::Bytes(digest) => Some((entry.unit, digest)),
                Content::Zero { .. } | Content::Held(_) => None,
            })
            .collect();
        let length = wanted.len() * UNIT_BYTES;
        let units = if compressed { self.zstd.decompress(&body, length).map_err(|_| FrameError::Body)? } else { body };
        if units.len() != length {
            return Err(FrameError::Body);
        }
        for (bytes, (unit, expected)) in units.chunks_exact(UNIT_BYTES).zip(wanted) {
            if digest(key, bytes) != expected {
                return Err(FrameError::Digest(unit));
            }
        }
        Ok(units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_means_every_byte() {
        let mut unit = vec![0; UNIT_BYTES];
        assert!(is_zero(&unit));
        for at in [0, 1, 63, 64, 4095] {
            unit[at] = 1;
            assert!(!is_zero(&unit), "byte {at}");
            unit[at] = 0;
        }
    }

    #[test]
    fn a_digest_depends_on_content_and_key() {
        let (one, two) = (Key([1; 32]), Key([2; 32]));
        let unit = [7; UNIT_BYTES];
        assert_eq!(digest(&one, &unit), digest(&one, &unit));
        assert_ne!(digest(&one, &unit), digest(&two, &unit));
        assert_ne!(digest(&one, &unit), digest(&one, &[8; UNIT_BYTES]));
        // Golden: the wire's digest may never change silently.
        assert_eq!(u128::from_be_bytes(digest(&one, &unit).0), 80_560_954_298_996_295_789_639_190_767_036_204_431);
    }
}
