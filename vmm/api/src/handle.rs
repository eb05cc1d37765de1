//! How a file or a socket of the host is named: by its path, or as one of the descriptors that were handed over.

use std::{
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Descriptors that can be handed over at a start: as many as the kernel passes in one message.
pub const HANDED_MAX: usize = 253;

const PREFIX: &str = "fd:";

/// A file or a socket. `fd:N` is the Nth descriptor, from 0, of those that whoever started the process sent over its standard input
/// (`docs/formats/descriptors.md`); anything else is a path. A file that is called so is `./fd:N`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Handle {
    /// To be opened.
    Path(PathBuf),
    /// Open already.
    Descriptor(usize),
}

impl Handle {
    /// Where it is, unless it is open already.
    pub fn path(&self) -> Option<&Path> {
        if let Self::Path(path) = self { Some(path) } else { None }
    }
}

impl FromStr for Handle {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let number = text.strip_prefix(PREFIX).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let number = number.and_then(|digits| digits.parse().ok()).filter(|number| *number < HANDED_MAX);
        Ok(number.map_or_else(|| Self::Path(text.into()), Self::Descriptor))
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Descriptor(number) => write!(f, "{PREFIX}{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_descriptor_and_all_else_a_path() {
        for (text, number) in [("fd:0", 0), ("fd:252", 252)] {
            assert_eq!(text.parse(), Ok(Handle::Descriptor(number)));
            assert_eq!(Handle::Descriptor(number).to_string(), text);
        }
        for text in ["fd:", "fd:253", "fd:-1", "fd:+1", "fd:1x", "./fd:1", "fd", "disk.qcow2"] {
            assert_eq!(text.parse(), Ok(Handle::Path(text.into())), "{text}");
        }
    }
}
