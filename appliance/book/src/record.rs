//! Records: what the hosts of a pool tell each other. Each has one writer, who signs it and counts its versions.
//!
//! ```text
//! pool key    --signs-->  Pool, Domain         a domain's name and root key
//! domain key  --signs-->  Member               a host's key and name in that domain
//! host key    --signs-->  Host                 what it is and where
//!                         Lan, Image           at their home host
//!                         Vm                   as it should be: at its home host
//!                         Seen                 as it is: at the host that holds its epoch
//! ```

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::key::{Digest, Id, Key, Name, has_signed, public, sign};

/// Longest signed content.
pub const BYTES_MAX: usize = 64 * 1024;
/// Longest name of anything.
pub const NAME_BYTES_MAX: usize = 63;

/// What a record is about. The order is that of authority: who reads records in it can judge each by those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The pool itself.
    Pool,
    /// A domain.
    Domain,
    /// A host's membership.
    Member,
    /// A host's facts.
    Host,
    /// A LAN.
    Lan,
    /// An image.
    Image,
    /// A VM as it should be.
    Vm,
    /// A VM as it is.
    Seen,
}

/// The name of a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordKey {
    /// What it is about.
    pub kind: Kind,
    /// Which one.
    pub id: Id,
    /// Who writes it.
    pub writer: Key,
}

/// A record's content, as it is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub key: RecordKey,
    /// Later versions replace earlier ones.
    pub version: u64,
    /// What it says; none when the thing is gone.
    pub body: Option<Body>,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// See [`Kind::Pool`].
    Pool(PoolBody),
    /// See [`Kind::Domain`].
    Domain(DomainBody),
    /// See [`Kind::Member`].
    Member(MemberBody),
    /// See [`Kind::Host`].
    Host(HostBody),
    /// See [`Kind::Lan`].
    Lan(LanBody),
    /// See [`Kind::Image`].
    Image(ImageBody),
    /// See [`Kind::Vm`].
    Vm(VmBody),
    /// See [`Kind::Seen`].
    Seen(SeenBody),
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolBody {
    /// Its name.
    pub name: String,
}

/// A domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainBody {
    /// Its name.
    pub name: String,
    /// Its root key.
    pub key: Key,
}

/// A host's membership in the domain that writes the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberBody {
    /// The host.
    pub host: Key,
    /// The name it asked for.
    pub name: String,
    /// Set when an operator declared it dead: why, and when.
    pub dead: Option<String>,
}

/// What a host is and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostBody {
    /// Where its mesh endpoint is reached.
    pub addresses: Vec<SocketAddr>,
    /// The address its ports have.
    pub underlay: Option<Ipv4Addr>,
    /// Where its API listens.
    pub api: Option<SocketAddr>,
    /// Why no VM can run there.
    pub no_kvm: Option<String>,
    /// Processors.
    pub cpus: u32,
    /// Memory for VMs, all together.
    pub memory_bytes: u64,
    /// Room for disks and parts.
    pub disk_bytes: u64,
    /// Room taken.
    pub disk_used_bytes: u64,
    /// Whether it is being emptied.
    pub draining: bool,
    /// Whether its state survives a reboot.
    pub durable: bool,
    /// Version of Rebec.
    pub version: String,
    /// Parts in its depot.
    pub parts: Vec<Digest>,
}

/// A LAN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanBody {
    /// Its name.
    pub name: String,
    /// Its label on the wire.
    pub vni: u32,
    /// First address of its range.
    pub network: Ipv4Addr,
    /// Length of the range's prefix.
    pub prefix: u8,
    /// Largest packet, for life.
    pub mtu: u16,
    /// Parts of the range that hosts may give out by themselves.
    pub leases: Vec<RangeLease>,
    /// When it was created, in seconds since 1970.
    pub created: u64,
}

/// Part of a LAN's range in the hands of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeLease {
    /// The host.
    pub host: Key,
    /// First address.
    pub first: Ipv4Addr,
    /// How many.
    pub count: u32,
}

/// A part and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRef {
    /// BLAKE3 of its content.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
}

/// What VMs start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageBody {
    /// Its name.
    pub name: String,
    /// Kernel.
    pub kernel: PartRef,
    /// Initial RAM disk.
    pub initramfs: Option<PartRef>,
    /// Kernel command line.
    pub cmdline: String,
    /// Disk.
    pub disk: Option<DiskRef>,
    /// When it was imported, in seconds since 1970.
    pub created: u64,
}

/// An image's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRef {
    /// The file.
    pub part: PartRef,
    /// Whether it is qcow2; else raw.
    pub qcow2: bool,
    /// What the guest sees.
    pub virtual_bytes: u64,
}

/// A VM as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmBody {
    /// Its name.
    pub name: String,
    /// The image's name when it was created: for people.
    pub image_name: String,
    /// What it starts from, as it was then.
    pub image: ImageBody,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub vcpus: u8,
    /// Kernel command line, whole.
    pub cmdline: String,
    /// NICs.
    pub nics: Vec<NicBody>,
    /// Texts of its NoCloud seed disk: meta-data, user-data.
    pub seed: Option<(String, String)>,
    /// The host that has it started elsewhere when its host is lost; without one it is held. For life.
    pub keeper: Option<Key>,
    /// When it was created, in seconds since 1970.
    pub created: u64,
}

/// One NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicBody {
    /// The LAN.
    pub lan: Id,
    /// Its label on the wire.
    pub vni: u32,
    /// The NIC's address.
    pub mac: [u8; 6],
    /// Its address on the LAN.
    pub address: Ipv4Addr,
    /// Length of the LAN's prefix.
    pub prefix: u8,
}

/// A VM as it is, by the host that holds its epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenBody {
    /// Its ownership counter there: of several, the highest holds.
    pub epoch: u64,
    /// Where it is in its life.
    pub state: SeenState,
    /// More about the state.
    pub reason: Option<String>,
    /// The endpoints of its NICs, in their order; empty while it does not run.
    pub endpoints: Vec<SocketAddrV4>,
    /// Memory it takes there.
    pub memory_bytes: u64,
    /// Its process.
    pub pid: u32,
}

/// Where a VM is in its life, at the host that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
}

impl Body {
    /// What it is about.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pool(_) => Kind::Pool,
            Self::Domain(_) => Kind::Domain,
            Self::Member(_) => Kind::Member,
            Self::Host(_) => Kind::Host,
            Self::Lan(_) => Kind::Lan,
            Self::Image(_) => Kind::Image,
            Self::Vm(_) => Kind::Vm,
            Self::Seen(_) => Kind::Seen,
        }
    }
}

/// The id of a record about a key: its first half.
pub fn id_of_key(key: &Key) -> Id {
    let mut half = [0; 16];
    half.copy_from_slice(&key.0[..16]);
    Name(half)
}

/// A record with its writer's signature: what is stored and sent. Whoever holds one may pass it on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The record, as postcard.
    pub content: Vec<u8>,
    /// Both halves of the signature.
    pub signature: ([u8; 32], [u8; 32]),
}

/// Why a record was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unbelievable {
    /// It cannot be read.
    #[error("a record that is not one of this version")]
    Malformed,
    /// Its signature is not its writer's.
    #[error("{0:?} by {1:?}: the signature is wrong")]
    Signature(Kind, Key),
    /// Its writer may not write such a record.
    #[error("{0:?} by {1:?}: the writer has no right to it in this pool")]
    Writer(Kind, Key),
}

impl Record {
    /// Signs it; the writer is whoever signs.
    pub fn sign(kind: Kind, id: Id, version: u64, body: Option<Body>, secret: &SigningKey) -> Result<Signed, Unbelievable> {
        let record = Self { key: RecordKey { kind, id, writer: public(secret) }, version, body };
        let content = postcard::to_stdvec(&record).map_err(|_| Unbelievable::Malformed)?;
        if content.len() > BYTES_MAX {
            return Err(Unbelievable::Malformed);
        }
        let signature = sign(secret, &content);
        let (mut first, mut second) = ([0; 32], [0; 32]);
        first.copy_from_slice(&signature[..32]);
        second.copy_from_slice(&signature[32..]);
        Ok(Signed { content, signature: (first, second) })
    }
}

impl Signed {
    /// The record, if its writer signed it.
    pub fn open(&self) -> Result<Record, Unbelievable> {
        if self.content.len() > BYTES_MAX {
            return Err(Unbelievable::Malformed);
        }
        let record: Record = postcard::from_bytes(&self.content).map_err(|_| Unbelievable::Malformed)?;
        if record.body.as_ref().is_some_and(|body| body.kind() != record.key.kind) {
            return Err(Unbelievable::Malformed);
        }
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&self.signature.0);
        signature[32..].copy_from_slice(&self.signature.1);
        if has_signed(&record.key.writer, &self.content, &signature) {
            Ok(record)
        } else {
            Err(Unbelievable::Signature(record.key.kind, record.key.writer))
        }
    }
}
