//! Tickets: the one text that a joining host needs. It names the pool by its key and the issuer by its key and addresses, and
//! carries a random secret; who issued it keeps only the secret's hash. Nothing in it is worth more than its uses and expiry.
//!
//! ```text
//! rebec1 + base32( postcard{ pool, issuer, addresses, secret, expires } + first 4 bytes of their BLAKE3 )
//! ```

use std::{fmt, net::SocketAddr, str::FromStr};

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};

use crate::key::{Digest, Key, Name};

/// What every ticket begins with.
const PREFIX: &str = "rebec1";
/// Longest text that is looked at: sixteen addresses fit.
const TEXT_BYTES_MAX: usize = 2048;
/// Most addresses of an issuer.
pub const ADDRESSES_MAX: usize = 16;

/// An invitation as its holder has it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The pool to join.
    pub pool: Key,
    /// The host that lets in.
    pub issuer: Key,
    /// Where it may be reached.
    pub addresses: Vec<SocketAddr>,
    /// What proves the invitation.
    pub secret: [u8; 16],
    /// When it ends, in seconds since 1970. For the holder's information: the issuer's own clock decides.
    pub expires: u64,
}

/// A text that is not a ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTicket {
    /// It is something else.
    #[error("this is not a ticket: tickets begin with `{PREFIX}`; copy the whole line that `rebec host invite` printed")]
    NotATicket,
    /// It was one.
    #[error("the ticket is damaged: a character is missing or wrong; copy it again, or ask for a new one with `rebec host invite`")]
    Damaged,
}

impl Ticket {
    /// What the issuer keeps of the secret.
    pub fn hash(secret: &[u8; 16]) -> Digest {
        Name(blake3::derive_key("rebec ticket secret v1", secret))
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..4]);
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

/// The secret stays out of logs.
impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("pool", &self.pool).field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl FromStr for Ticket {
    type Err = BadTicket;

    fn from_str(text: &str) -> Result<Self, BadTicket> {
        // A ticket that was copied from a narrow window comes with line breaks.
        let text: String = text.chars().filter(|c| !c.is_whitespace()).take(TEXT_BYTES_MAX + 1).collect();
        let body = text.get(..PREFIX.len()).filter(|start| start.eq_ignore_ascii_case(PREFIX)).map(|_| &text[PREFIX.len()..]);
        let body = body.ok_or(BadTicket::NotATicket)?;
        if text.len() > TEXT_BYTES_MAX {
            return Err(BadTicket::Damaged);
        }
        let bytes = BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(|_| BadTicket::Damaged)?;
        let (content, check) = bytes.split_last_chunk::<4>().ok_or(BadTicket::Damaged)?;
        if blake3::hash(content).as_bytes()[..4] != check[..] {
            return Err(BadTicket::Damaged);
        }
        let ticket: Self = postcard::from_bytes(content).map_err(|_| BadTicket::Damaged)?;
        if ticket.addresses.len() > ADDRESSES_MAX { Err(BadTicket::Damaged) } else { Ok(ticket) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        let addresses = vec!["10.0.0.1:7116".parse().unwrap(), "[fe80::1]:7116".parse().unwrap()];
        Ticket { pool: Name([1; 32]), issuer: Name([2; 32]), addresses, secret: [3; 16], expires: 4 }
    }

    #[test]
    fn a_ticket_is_read_as_written_also_in_capitals_and_broken_lines() {
        let text = ticket().to_string();
        assert_eq!(text.parse(), Ok(ticket()));
        let broken: String = text.to_uppercase().chars().enumerate().flat_map(|(n, c)| [if n % 40 == 0 { '\n' } else { ' ' }, c]).collect();
        assert_eq!(broken.parse(), Ok(ticket()));
    }

    #[test]
    fn a_ticket_with_any_character_wrong_or_missing_is_damaged() {
        let text = ticket().to_string();
        for at in PREFIX.len()..text.len() {
            let cut = text[..at].parse::<Ticket>();
            assert_eq!(cut, Err(BadTicket::Damaged), "cut at {at}");
            let other = if &text[at..=at] == "a" { "b" } else { "a" };
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]).parse::<Ticket>();
            assert_eq!(changed, Err(BadTicket::Damaged), "changed at {at}");
        }
    }

    #[test]
    fn other_texts_are_not_tickets() {
        for text in ["", "rebec", "hello", "rebec2abc", "ärebec1"] {
            assert_eq!(text.parse::<Ticket>(), Err(BadTicket::NotATicket), "{text}");
        }
        assert_eq!(format!("rebec1{}", "a".repeat(1 << 20)).parse::<Ticket>(), Err(BadTicket::Damaged));
    }

    #[test]
    fn the_secret_is_not_in_a_log() {
        assert!(!format!("{:?}", ticket()).contains("secret"));
    }
}
