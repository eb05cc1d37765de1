//! Numbers of protocols: what a side speaks is a range of them, and two sides use the greatest that both have. `docs/formats/compatibility.md`
//! says what may differ from one number to the next.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The numbers of a protocol that one side speaks: its newest, and those before it that it has not given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest.
    pub lowest: u16,
    /// The newest.
    pub highest: u16,
}

impl Versions {
    /// From one to another.
    pub const fn new(lowest: u16, highest: u16) -> Self {
        Self { lowest, highest }
    }

    /// One alone.
    pub const fn only(version: u16) -> Self {
        Self::new(version, version)
    }

    /// The greatest that both sides speak.
    pub fn common(self, other: Self) -> Option<u16> {
        let version = self.highest.min(other.highest);
        (version >= self.lowest.max(other.lowest)).then_some(version)
    }

    /// How old this side is beside another: what is less is to be upgraded.
    pub fn age(self, other: Self) -> Ordering {
        self.highest.cmp(&other.highest)
    }

    /// Whether there are any in it.
    pub fn is_sound(self) -> bool {
        self.lowest <= self.highest
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lowest == self.highest { write!(f, "{}", self.highest) } else { write!(f, "{}-{}", self.lowest, self.highest) }
    }
}

/// A text that is no range of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a range of versions, as in 1-2")]
pub struct NoVersions;

impl FromStr for Versions {
    type Err = NoVersions;

    fn from_str(text: &str) -> Result<Self, NoVersions> {
        let (lowest, highest) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u16>().map_err(|_| NoVersions);
        Some(Self::new(number(lowest)?, number(highest)?)).filter(|versions| versions.is_sound()).ok_or(NoVersions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sides_use_the_greatest_number_that_both_have() {
        let common = |a: &str, b: &str| a.parse::<Versions>().unwrap().common(b.parse().unwrap());
        assert_eq!(common("1", "1"), Some(1));
        assert_eq!(common("1-2", "2-3"), Some(2));
        assert_eq!(common("2-3", "1-2"), Some(2));
        assert_eq!(common("1-2", "1-2"), Some(2));
        assert_eq!(common("1", "2-3"), None);
        assert_eq!(common("3-4", "1-2"), None);
        assert_eq!(Versions::only(1).age(Versions::new(1, 2)), Ordering::Less);
    }

    #[test]
    fn texts() {
        for text in ["1", "1-2", "65535"] {
            assert_eq!(text.parse::<Versions>().unwrap().to_string(), text);
        }
        for text in ["", "-", "1-", "2-1", "-1", "1-2-3", "65536", "x"] {
            assert_eq!(text.parse::<Versions>(), Err(NoVersions), "{text}");
        }
    }
}
