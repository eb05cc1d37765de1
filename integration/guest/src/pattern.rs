//! What bytes the guest puts where: pure functions of a seed and a position, so that every byte can be checked without a copy of it.
//!
//! The lab compiles this same file, to check on the host what a guest wrote to a disk or sent over a connection.

/// 8-byte words in a page.
pub const PAGE_WORDS: usize = 512;
/// A page of memory, as the guest handles it.
pub type Page = [u64; PAGE_WORDS];

/// Bytes of the stream that connections carry before it repeats; TCP sequence numbers tell the repeats apart.
pub const STREAM_BYTES: usize = 1 << 20;

/// What a page holds before anything dirties it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Zeros.
    Zero,
    /// Nothing a compressor gains from.
    Random,
    /// About as compressible as prose: zstd-1 halves it or better.
    Text,
    /// Pages of the two kinds above in turn, the same in every VM with the seed.
    Shared,
}

/// Scrambles 64 bits (the finisher of splitmix64).
pub const fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Fills a page with the content that belongs at `index`.
pub fn fill(kind: Kind, seed: u64, index: u64, page: &mut Page) {
    let state = mix(seed.wrapping_mul(GOLDEN) ^ mix(index));
    match kind {
        Kind::Zero => page.fill(0),
        Kind::Random => random(state, page),
        Kind::Text => text(state, page),
        Kind::Shared if index.is_multiple_of(2) => text(state, page),
        Kind::Shared => random(state, page),
    }
}

/// Fills with incompressible words.
pub fn random(state: u64, words: &mut [u64]) {
    let mut counter = state;
    for word in words {
        counter = counter.wrapping_add(GOLDEN);
        *word = mix(counter);
    }
}

/// Four letters each; two make a word of text.
const SYLLABLES: [[u8; 64]; 4] = [
    *b"the and ing ion of tin ato bed tis tfor thatwithtionare ent some",
    *b"her ter ableas hhis hat thiscon all ver rom be aon mmen but not ",
    *b"you pro statwas had by tcompper hat.lectone timehereup, out if a",
    *b"ll just It ian aso more aredatedy from they would never,1984s.  ",
];

fn text(state: u64, page: &mut Page) {
    let mut counter = state;
    // One scramble serves five words of twelve bits.
    for words in page.chunks_mut(5) {
        counter = counter.wrapping_add(GOLDEN);
        let mut bits = mix(counter);
        for word in words {
            *word = u64::from(syllable(bits)) | u64::from(syllable(bits >> 6)) << 32;
            bits >>= 12;
        }
    }
}

fn syllable(bits: u64) -> u32 {
    let (row, at) = ((bits >> 4) as usize & 3, (bits as usize & 15) * 4);
    let row = &SYLLABLES[row];
    u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
}

/// Applies write number `version` (from 1) of a page that is dirtied `granule` words at a time. The slots are visited in an order in which any
/// run of as many versions as there are slots visits each once: what a page holds now depends on its version alone.
pub fn dirty(seed: u64, index: u64, version: u32, granule: usize, page: &mut Page) {
    let slot = version.wrapping_mul(0x9e37_79b1) as usize % (PAGE_WORDS / granule);
    let state = mix(seed ^ mix(index.wrapping_mul(GOLDEN) ^ u64::from(version)));
    random(state, &mut page[slot * granule..(slot + 1) * granule]);
}

/// What a page holds after `version` writes.
pub fn expected(kind: Kind, seed: u64, index: u64, version: u32, granule: usize, page: &mut Page) {
    let slots = (PAGE_WORDS / granule) as u32;
    if version < slots {
        fill(kind, seed, index, page);
    }
    for version in version.saturating_sub(slots).wrapping_add(1)..=version {
        dirty(seed, index, version, granule, page);
    }
}

/// The first word of a disk block that the guest wrote.
pub const BLOCK_MAGIC: u64 = u64::from_le_bytes(*b"rebecblk");

/// A self-describing disk block: its magic, its own number, which write of it this is, then words that follow from these.
pub fn block(seed: u64, number: u64, generation: u64, block: &mut Page) {
    [block[0], block[1], block[2], block[3]] = [BLOCK_MAGIC, number, generation, seed];
    random(mix(seed ^ mix(number ^ mix(generation))), &mut block[4..]);
}

/// The bytes that connections carry, [`STREAM_BYTES`] before they repeat.
pub fn stream(seed: u64, words: &mut [u64]) {
    random(mix(seed ^ GOLDEN), words);
}
