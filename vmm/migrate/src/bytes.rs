//! How every format of this crate takes fixed pieces out of bytes.

/// `N` bytes at `at`; the callers' lengths are fixed by their formats.
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("invariant: the slice has N bytes")
}
