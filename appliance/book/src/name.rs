//! What may be a name.

/// Longest name of anything.
pub const NAME_BYTES_MAX: usize = 63;

/// Whether a text can be typed, shown and looked up again.
pub fn is_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first && name.len() <= NAME_BYTES_MAX && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
