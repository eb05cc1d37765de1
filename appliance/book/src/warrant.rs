//! Warrants: a command with the signature of who gives it. A warrant travels with its command through any host, and whoever carries the
//! command out judges by it; a host on the way can hold it back, and neither make one up nor use one for something else, twice, or late.
//!
//! ```text
//! content   CBOR [ signer, at, method, path and query, BLAKE3 of the body or null, until, nonce, token or null ]
//! signed    "rebec command v1\0" ++ content
//! text      base64url( signature ++ content )                   header `rebec-warrant` of the request
//! ```
//! `at` is the host that the signer asked: names in the path are meant as that host's domain means them, and the command comes from that
//! host or not at all. Root at a host's socket, and who shows it a token, is signed for by the host's own key.

mod replays;

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::SigningKey;
use minicbor::{Decode, Encode};

pub use self::replays::Replays;
use crate::{
    book::Book,
    key::{Digest, Id, Key, Name, Nonce, has_signed, public, sign},
    kind::Kind,
    names::{self, Meant, is_name},
    role::Role,
};

/// The header of a request that carries its warrant.
pub const HEADER: &str = "rebec-warrant";
/// For how long a warrant is good, by its signer's clock.
pub const LIFE_S: u64 = 60;
/// How far the clocks of a signer and of the host that judges may be apart.
pub const SKEW_S: u64 = 300;
/// Longest text of one: a path of a name and some words fits many times.
const TEXT_BYTES_MAX: usize = 8 << 10;
/// What is signed begins with this, so that no signature for another purpose is one of a command.
const PURPOSE: &[u8] = b"rebec command v1\0";

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Warrant {
    /// Who gives the command: a user's key, or a host's.
    #[n(0)]
    pub signer: Key,
    /// The host that was asked.
    #[n(1)]
    pub at: Key,
    /// HTTP method.
    #[n(2)]
    pub method: String,
    /// Path and query, as they were sent to that host.
    #[n(3)]
    pub path: String,
    /// BLAKE3 of the request's body; none where that is a file, whose content the answer names.
    #[n(4)]
    pub body: Option<Digest>,
    /// Good until then, in seconds since 1970.
    #[n(5)]
    pub until: u64,
    /// Makes it one of its kind.
    #[n(6)]
    pub nonce: Nonce,
    /// Where a host signs for who showed it a token: which.
    #[n(7)]
    pub token: Option<TokenBound>,
}

/// A token that a host was shown.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TokenBound {
    /// Its name.
    #[n(0)]
    pub name: String,
    /// What it lets its holder do, if the host may as much.
    #[n(1)]
    pub role: Role,
}

/// Why a warrant is none, or is not good for what it came with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadWarrant {
    /// It cannot be read.
    #[error("the command's warrant cannot be read: is the client of another version?")]
    Malformed,
    /// Its signature is not its signer's.
    #[error("the command's signature is not that of key {0}")]
    Signature(Key),
    /// It was said to another host than the one it comes from.
    #[error("the command was given to another host than the one it comes from")]
    Place,
    /// Its time is over, or is not yet.
    #[error(
        "the command was signed for a time until {until}, and this host's clock says {now} (seconds since 1970): is one of the two clocks wrong, or was the command held back? give it again"
    )]
    Time {
        /// Its end.
        until: u64,
        /// The time here.
        now: u64,
    },
    /// It is another command.
    #[error("the command is not the one that was signed")]
    Other,
    /// It has come before.
    #[error("the command was carried out already: a signature is good for once; give it again")]
    Again,
    /// The agent that would know whether it has come before has been started since.
    #[error("the command was given before this agent started; give it again")]
    Before,
    /// Its signer gave too many to remember.
    #[error("key {0} has given more commands in the last minutes than this host remembers; wait a little")]
    TooMany(Key),
}

/// A warrant that its signer signed. Only [`Proven::open`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven(Warrant);

/// Who gives a command, and where. Only a warrant that was proved makes one, and what a host says of who is at its own socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signer {
    key: Key,
    at: Key,
    at_most: Option<Role>,
}

impl Signer {
    /// Root at the socket of a host, to that host itself.
    pub fn root(own: Key) -> Self {
        Self { key: own, at: own, at_most: None }
    }

    /// Who showed a token to a host, to that host itself.
    pub fn token(own: Key, role: Role) -> Self {
        Self { key: own, at: own, at_most: Some(role) }
    }

    /// The key that stands for it: a user's, or the host's.
    pub fn key(&self) -> Key {
        self.key
    }

    /// The host that was asked.
    pub fn at(&self) -> Key {
        self.at
    }

    /// What a token lets its holder do.
    pub fn at_most(&self) -> Option<Role> {
        self.at_most
    }
}

impl Warrant {
    /// What is signed.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn content(&self) -> Result<Vec<u8>, BadWarrant> {
        minicbor::to_vec(self).map_err(|_| BadWarrant::Malformed)
    }

    /// Signs it as text.
    ///
    /// # Errors
    /// Where it is longer than any may be, or the key is not its signer's.
    pub fn sign(&self, secret: &SigningKey) -> Result<String, BadWarrant> {
        let text = sealed(&self.content()?, secret);
        if text.len() > TEXT_BYTES_MAX || self.signer != public(secret) { Err(BadWarrant::Malformed) } else { Ok(text) }
    }
}

impl Proven {
    /// Reads what [`Warrant::sign`] wrote, and proves it.
    ///
    /// # Errors
    /// Where it is none, or not signed by its signer.
    pub fn open(text: &str) -> Result<Self, BadWarrant> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(BadWarrant::Malformed);
        }
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| BadWarrant::Malformed)?;
        let (signature, content) = bytes.split_first_chunk().ok_or(BadWarrant::Malformed)?;
        let warrant: Warrant = minicbor::decode(content).map_err(|_| BadWarrant::Malformed)?;
        if warrant.token.as_ref().is_some_and(|token| !is_name(&token.name)) {
            return Err(BadWarrant::Malformed);
        }
        let is_signed = has_signed(&warrant.signer, &purposed(content), signature);
        if is_signed { Ok(Self(warrant)) } else { Err(BadWarrant::Signature(warrant.signer)) }
    }

    /// What was signed.
    pub fn warrant(&self) -> &Warrant {
        &self.0
    }

    /// Whether the host that was asked signed it, for root at its socket or for a token. It is good only over that host's own connection:
    /// nobody else can bring it, early, late or again.
    pub fn is_of_asked(&self) -> bool {
        self.0.signer == self.0.at
    }

    /// Who gives the command, if it comes from where it was given, in its time.
    ///
    /// # Errors
    /// Where it does not.
    pub fn signer(&self, from: Key, now_s: u64) -> Result<Signer, BadWarrant> {
        let Warrant { signer, at, until, ref token, .. } = self.0;
        // A host signs for tokens of its own, at its own place.
        if at != from || token.is_some() && signer != at {
            return Err(BadWarrant::Place);
        }
        // A host that speaks for itself, over its own connection, says it now, whatever its clock says.
        let is_late = now_s > until.saturating_add(SKEW_S) || until > now_s.saturating_add(LIFE_S + SKEW_S);
        if is_late && !self.is_of_asked() {
            return Err(BadWarrant::Time { until, now: now_s });
        }
        Ok(Signer { key: signer, at, at_most: token.as_ref().map(|token| token.role) })
    }

    /// Whether a request is the one that was signed. A host that sends it on puts the id of what it is about in place of the name: that
    /// must be what the name means where it was said.
    ///
    /// # Errors
    /// Where it is another.
    pub fn covers(&self, book: &Book, method: &str, path: &str, about: Option<(Kind, Id)>) -> Result<(), BadWarrant> {
        let other = Err(BadWarrant::Other);
        if self.0.method != method {
            return other;
        }
        let Some((kind, id)) = about else { return if self.0.path == path { Ok(()) } else { other } };
        let (signed, asked) = (split(&self.0.path), split(path));
        let (Some((before, name, after)), Some((asked_before, _, asked_after))) = (signed, asked) else { return other };
        let meant = decoded(name).map(|name| names::find_for(book, book.domain_of(&self.0.at), kind, &name));
        if before == asked_before && after == asked_after && meant == Some(Meant::One(id)) { Ok(()) } else { other }
    }

    /// Whether a body is the one that was signed. A file's is not: `is_file` says that there may be one.
    ///
    /// # Errors
    /// Where it is another.
    pub fn covers_body(&self, body: Option<&[u8]>) -> Result<(), BadWarrant> {
        let is_signed = match (body, self.0.body) {
            (Some(body), Some(digest)) => *blake3::hash(body).as_bytes() == digest.0,
            (None, None) => true,
            _ => false,
        };
        if is_signed { Ok(()) } else { Err(BadWarrant::Other) }
    }
}

/// Bytes signed as a command, whatever they are.
pub fn sealed(content: &[u8], secret: &SigningKey) -> String {
    BASE64URL_NOPAD.encode(&[&sign(secret, &purposed(content))[..], content].concat())
}

/// The hash of a body, as it is signed.
pub fn body_digest(body: &[u8]) -> Digest {
    Name(*blake3::hash(body).as_bytes())
}

fn purposed(content: &[u8]) -> Vec<u8> {
    [PURPOSE, content].concat()
}

/// `/v1/vms/NAME/...`: what is before the name, the name, and what follows it.
fn split(path: &str) -> Option<(&str, &str, &str)> {
    let start = path.match_indices('/').nth(2)?.0 + 1;
    let end = path[start..].find(['/', '?']).map_or(path.len(), |length| start + length);
    Some((&path[..start], &path[start..end], &path[end..]))
}

/// A name as a path writes it.
fn decoded(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                let digit = |at: usize| char::from(digits[at]).to_digit(16);
                u8::try_from(digit(0)? << 4 | digit(1)?).ok()?
            }
            other => *other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
