//! Names of contents: the inner digest, which is kept, and the wire digest, which travels.
//!
//! ```text
//! inner digest d = BLAKE3(unit), 32 bytes, never sent
//! wire digest    = first 16 bytes of BLAKE3 keyed by the move's key over d
//! ```

use crate::bytes::array;

/// Key of the wire digests of one move: a digest means nothing outside it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// A wire digest: names the content of one unit within one move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 16]);

/// The inner digest of a unit: the same in every move, so it may be kept. It never travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner(pub [u8; 32]);

/// The inner digest of a unit.
pub fn inner(unit: &[u8]) -> Inner {
    Inner(*blake3::hash(unit).as_bytes())
}

/// The wire digest of a unit with this inner digest.
pub fn wire(key: &Key, inner: &Inner) -> Digest {
    Digest(array(blake3::keyed_hash(&key.0, &inner.0).as_bytes(), 0))
}

/// The wire digest of a unit.
pub fn digest(key: &Key, unit: &[u8]) -> Digest {
    wire(key, &inner(unit))
}
