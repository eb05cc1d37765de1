//! The public key of a LAN port, as control messages carry it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An X25519 public key (RFC 7748), written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortKey(pub [u8; 32]);

/// Text that is not a port's key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("port key `{0}`: expected 64 hexadecimal digits, as `ctl SOCKET status` shows them")]
pub struct InvalidPortKey(String);

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PortKey {
    type Err = InvalidPortKey;

    fn from_str(text: &str) -> Result<Self, InvalidPortKey> {
        let invalid = || InvalidPortKey(text.chars().take(80).collect());
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let mut key = [0; 32];
        for (at, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| invalid())?;
        }
        Ok(Self(key))
    }
}

impl TryFrom<String> for PortKey {
    type Error = InvalidPortKey;

    fn try_from(text: String) -> Result<Self, InvalidPortKey> {
        text.parse()
    }
}

impl From<PortKey> for String {
    fn from(key: PortKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written() {
        let key = PortKey(std::array::from_fn(|at| at as u8 * 8));
        assert_eq!(key.to_string().parse(), Ok(key));
        for wrong in ["", "00", &"g".repeat(64), &"é".repeat(32), &"0".repeat(66)] {
            assert!(wrong.parse::<PortKey>().is_err(), "{wrong}");
        }
    }
}
