//! Records: what the hosts of a pool tell each other. Each has one writer, who signs it and numbers all that it writes.
//!
//! ```text
//! pool key    --signs-->  Pool, Domain         a domain's name and root key
//! domain key  --signs-->  Member               a host's key and name in that domain
//!                         Helper               a key that lets hosts in for the domain
//!                         User                 a user's key and role in that domain
//! host key    --signs-->  Host                 what it is and where, and the domain that it says it belongs to
//!                         Parts                what is in its depot
//!                         Lan, Image           at their home host
//!                         Vm                   as it should be: at its home host
//!                         Seen                 as it is: at the host that holds its epoch
//! any         --signs-->  Floor                all that it wrote up to a number is void
//!
//! signed bytes = CBOR [ writer, seq, kind, id, body or null ]       what a body holds: body.rs
//! ```

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::SigningKey;
use minicbor::{Decode, Encode, bytes::ByteSlice};
use serde::{Deserialize, Serialize};

use crate::key::{Id, Key, has_signed, public, sign};
pub use crate::key::{bound_id, id_of_key};
pub use crate::{
    body::*,
    kind::{Kind, RecordKey},
};

/// Longest signed content.
pub const BYTES_MAX: usize = 64 * 1024;
/// What is signed begins with this, so that no signature for another purpose is one of a record.
const PURPOSE: &[u8] = b"rebec record v1\0";
/// Bytes of a signature.
const SIGNATURE_BYTES: usize = 64;

/// A record's content.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its name.
    pub key: RecordKey,
    /// Its number among all that its writer wrote: of two about one thing the later counts.
    pub seq: u64,
    /// What it says; none when the thing is gone.
    pub body: Option<Body>,
}

/// The signed bytes.
#[derive(Encode, Decode)]
struct Content<'b> {
    #[n(0)]
    writer: Key,
    #[n(1)]
    seq: u64,
    #[n(2)]
    kind: u16,
    #[n(3)]
    id: Id,
    #[b(4)]
    body: Option<&'b ByteSlice>,
}

/// A record with its writer's signature: what is stored and sent. Whoever holds one may pass it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    content: Box<[u8]>,
    signature: [u8; SIGNATURE_BYTES],
}

/// Why a record was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unbelievable {
    /// It cannot be read.
    #[error("bytes that are no record")]
    Malformed,
    /// It is longer than any may be.
    #[error("a record of {0} bytes: at most {BYTES_MAX}")]
    TooLong(usize),
    /// Its signature is not its writer's.
    #[error("{0:?} by {1:?}: the signature is wrong")]
    Signature(Kind, Key),
    /// Its writer may not write in this pool.
    #[error("{0:?} by {1:?}: the writer has no right to it in this pool")]
    Writer(Kind, Key),
    /// Its writer has written more than one may.
    #[error("{0:?} by {1:?}: the writer has used up its room of {2} records and {3} bytes")]
    Quota(Kind, Key, usize, usize),
}

impl Record {
    /// Signs it; the writer is whoever signs.
    pub fn sign(kind: Kind, id: Id, seq: u64, body: Option<&Body>, secret: &SigningKey) -> Result<Signed, Unbelievable> {
        let body = body.map(|body| body.to_bytes().ok_or(Unbelievable::Malformed)).transpose()?;
        Self::sign_bytes(kind, id, seq, body.as_deref(), secret)
    }

    /// The same of a body that is written already, maybe by a version that says more.
    pub fn sign_bytes(kind: Kind, id: Id, seq: u64, body: Option<&[u8]>, secret: &SigningKey) -> Result<Signed, Unbelievable> {
        let content = Content { writer: public(secret), seq, kind: kind.0, id, body: body.map(Into::into) };
        let content = minicbor::to_vec(&content).map_err(|_| Unbelievable::Malformed)?;
        if content.len() > BYTES_MAX {
            return Err(Unbelievable::TooLong(content.len()));
        }
        Ok(Signed::of(content, secret))
    }
}

fn purposed(content: &[u8]) -> Vec<u8> {
    [PURPOSE, content].concat()
}

impl Signed {
    /// Bytes signed as a record's content, whatever they are.
    pub fn of(content: impl Into<Box<[u8]>>, secret: &SigningKey) -> Self {
        let content = content.into();
        let signature = sign(secret, &purposed(&content));
        Self { content, signature }
    }

    /// The same content under bytes that are nobody's signature.
    pub fn forged(&self) -> Self {
        Self { content: self.content.clone(), signature: [7; SIGNATURE_BYTES] }
    }

    /// Its content.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// The record, if its writer signed it.
    pub fn open(&self) -> Result<Record, Unbelievable> {
        let record = self.read()?;
        self.prove(&record)?;
        Ok(record)
    }

    /// Whether the writer of the record, which was read from this, signed it.
    pub(crate) fn prove(&self, record: &Record) -> Result<(), Unbelievable> {
        let RecordKey { kind, writer, .. } = record.key;
        let is_signed = has_signed(&writer, &purposed(&self.content), &self.signature);
        is_signed.then_some(()).ok_or(Unbelievable::Signature(kind, writer))
    }

    /// The record, unproved: of bytes that this host has looked at before.
    pub fn read(&self) -> Result<Record, Unbelievable> {
        if self.content.len() > BYTES_MAX {
            return Err(Unbelievable::TooLong(self.content.len()));
        }
        let content: Content<'_> = minicbor::decode(&self.content).map_err(|_| Unbelievable::Malformed)?;
        let key = RecordKey { kind: Kind(content.kind), id: content.id, writer: content.writer };
        let body = content.body.map(|bytes| Body::from_bytes(&key, bytes));
        Ok(Record { key, seq: content.seq, body })
    }

    /// Who wrote it, and its number: without looking at what it says.
    pub fn numbered(&self) -> Result<(Key, u64), Unbelievable> {
        let content: Content<'_> = minicbor::decode(&self.content).map_err(|_| Unbelievable::Malformed)?;
        Ok((content.writer, content.seq))
    }

    /// What it takes on its way.
    pub fn bytes(&self) -> usize {
        self.content.len() + SIGNATURE_BYTES
    }

    /// BLAKE3 of the content.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.content).as_bytes()
    }

    /// Signature and content, one after the other.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.signature[..], &self.content].concat()
    }

    /// Reads [`Signed::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Unbelievable> {
        let (signature, content) = bytes.split_first_chunk().ok_or(Unbelievable::Malformed)?;
        Ok(Self { content: content.into(), signature: *signature })
    }
}

/// [`Signed::to_bytes`]; where people read, one text: base64 of them.
impl Serialize for Signed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.to_bytes();
        if serializer.is_human_readable() {
            serializer.serialize_str(&BASE64URL_NOPAD.encode(&bytes))
        } else {
            serializer.serialize_bytes(&bytes)
        }
    }
}

/// [`Signed::to_bytes`] in a message.
impl<C> Encode<C> for Signed {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.bytes(&self.to_bytes())?.ok()
    }
}

impl<C> Decode<'_, C> for Signed {
    fn decode(decoder: &mut minicbor::Decoder<'_>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::from_bytes(decoder.bytes()?).map_err(|_| minicbor::decode::Error::message("bytes that are no record"))
    }
}

impl<'de> Deserialize<'de> for Signed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return Self::from_bytes(<&[u8]>::deserialize(deserializer)?).map_err(serde::de::Error::custom);
        }
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(serde::de::Error::custom)?;
        Self::from_bytes(&bytes).map_err(serde::de::Error::custom)
    }
}
