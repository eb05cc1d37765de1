//! Names made of bits: keys, ids, digests. Written as hexadecimal digits.

use std::{fmt, str::FromStr};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// `N` bytes that name something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<const N: usize>(pub [u8; N]);

/// An Ed25519 public key: the identity of a pool, a domain, a host.
pub type Key = Name<32>;
/// BLAKE3 of a part's content.
pub type Digest = Name<32>;
/// 128 bits that name a LAN, an image, a VM, or what else a record is about.
pub type Id = Name<16>;
/// The random bits that a writer makes an [`Id`] of.
pub type Nonce = Name<16>;

/// A text that is not a name of this length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {digits} hexadecimal digits")]
pub struct NotAName {
    text: String,
    digits: usize,
}

impl<const N: usize> Name<N> {
    /// The first digits, enough to tell hosts apart on a screen.
    pub fn short(&self) -> String {
        HEXLOWER.encode(&self.0[..4])
    }
}

impl<const N: usize> fmt::Display for Name<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl<const N: usize> fmt::Debug for Name<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl<const N: usize> FromStr for Name<N> {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| NotAName { text: text.to_owned(), digits: 2 * N })
    }
}

/// Digits where people read, bytes where they do not.
impl<const N: usize> Serialize for Name<N> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_bytes(&self.0) }
    }
}

impl<'de, const N: usize> Deserialize<'de> for Name<N> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
            return text.parse().map_err(serde::de::Error::custom);
        }
        let bytes = <&[u8]>::deserialize(deserializer)?;
        bytes.try_into().map(Self).map_err(|_| serde::de::Error::invalid_length(bytes.len(), &"as many bytes as the name has"))
    }
}

/// Bytes in a record.
impl<C, const N: usize> minicbor::Encode<C> for Name<N> {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.bytes(&self.0)?.ok()
    }
}

impl<'b, C, const N: usize> minicbor::Decode<'b, C> for Name<N> {
    fn decode(decoder: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let bytes = decoder.bytes()?;
        bytes.try_into().map(Self).map_err(|_| minicbor::decode::Error::message("a name of another length"))
    }
}

/// The id of what a writer makes: bound to it, so that nobody else's record can have it.
pub fn bound_id(writer: &Key, nonce: &Nonce) -> Id {
    let mut hasher = blake3::Hasher::new_derive_key("rebec id bound to its writer v1");
    hasher.update(&writer.0).update(&nonce.0);
    first_half(*hasher.finalize().as_bytes())
}

/// The id of a record about a key: its first half.
pub fn id_of_key(key: &Key) -> Id {
    first_half(key.0)
}

fn first_half(bytes: [u8; 32]) -> Id {
    let mut half = [0; 16];
    half.copy_from_slice(&bytes[..16]);
    Name(half)
}

/// The public half of a secret key.
pub fn public(secret: &SigningKey) -> Key {
    Name(secret.verifying_key().to_bytes())
}

/// Signs with a secret key.
pub fn sign(secret: &SigningKey, bytes: &[u8]) -> [u8; 64] {
    secret.sign(bytes).to_bytes()
}

/// Whether something can be signed with this key.
pub fn is_key(key: &Key) -> bool {
    VerifyingKey::from_bytes(&key.0).is_ok_and(|key| !key.is_weak())
}

/// Whether `signature` is that of `key` over `bytes`. Weak keys sign nothing.
pub fn has_signed(key: &Key, bytes: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(&key.0).is_ok_and(|key| key.verify_strict(bytes, &Signature::from_bytes(signature)).is_ok())
}
