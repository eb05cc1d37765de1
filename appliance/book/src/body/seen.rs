//! A VM as it is: what its holder says of it.

use std::net::SocketAddrV4;

use minicbor::{Decode, Decoder, Encode, Encoder};
use serde::{Deserialize, Serialize};

use crate::{grant::Grant, key::Key};

/// A VM as it is, by a host that holds it or held it last.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SeenBody {
    /// Its ownership counter there.
    #[n(0)]
    pub epoch: u64,
    /// Where it is in its life.
    #[n(1)]
    pub state: SeenState,
    /// More about the state.
    #[n(2)]
    pub reason: Option<String>,
    /// The endpoints of its NICs, in their order; empty while it does not run.
    #[n(3)]
    pub endpoints: Vec<SocketAddrV4>,
    /// Memory it takes there.
    #[n(4)]
    pub memory_bytes: u64,
    /// Its process.
    #[n(5)]
    pub pid: u32,
    /// How the right to run it came here from the host that its home assigned it to; the last one is what this host granted on, if it did.
    #[n(6)]
    pub grants: Vec<Grant>,
    /// The host that it is on its way to.
    #[n(7)]
    pub to: Option<Key>,
    /// The public keys of its ports, in the order of its NICs; none of a port that does not seal.
    #[n(8)]
    pub keys: Option<Vec<Option<Key>>>,
    /// Where its ports will be when it has come to where it is on its way to, so that others know their keys by then.
    #[n(9)]
    pub ahead: Option<Vec<PortAhead>>,
}

/// A port of a VM that is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct PortAhead {
    /// Its endpoint.
    #[n(0)]
    pub endpoint: SocketAddrV4,
    /// Its public key, if it seals.
    #[n(1)]
    pub key: Option<Key>,
}

/// Where a VM is in its life, at the host that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SeenState {
    /// Its parts are being gathered, or its VMM is starting.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Paused by request.
    Paused,
    /// It runs, and a move is under way.
    Moving,
    /// The right to run it was granted and not yet taken up.
    Waiting,
    /// It does not run.
    Stopped,
    /// It ended with an error.
    Failed,
    /// Its lease has run out: it stands still until its keeper answers.
    Unleased,
    /// It was granted to another host, which has it.
    Left,
    /// Something that this version has no word for.
    Other,
}

impl SeenState {
    /// Each at its number.
    const NUMBERED: [Self; 10] = [
        Self::Other,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Moving,
        Self::Waiting,
        Self::Stopped,
        Self::Failed,
        Self::Unleased,
        Self::Left,
    ];
}

impl<C> Encode<C> for SeenState {
    fn encode<W: minicbor::encode::Write>(&self, encoder: &mut Encoder<W>, _: &mut C) -> Result<(), minicbor::encode::Error<W::Error>> {
        let number = Self::NUMBERED.iter().position(|state| state == self).unwrap_or_default();
        encoder.u64(number as u64)?.ok()
    }
}

impl<C> Decode<'_, C> for SeenState {
    fn decode(decoder: &mut Decoder<'_>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let number = usize::try_from(decoder.u64()?).unwrap_or(usize::MAX);
        Ok(Self::NUMBERED.get(number).copied().unwrap_or(Self::Other))
    }
}
