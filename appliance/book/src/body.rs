//! What records say. Each body is a CBOR array whose fields have their place for ever: a later version adds fields at the end, which
//! this one skips, and reads as absent what an earlier one did not write. So a field that is added is an `Option`.
//!
//! A body that is not sound (a name that could not be typed, an id that is another writer's, a length beyond its limit) is kept and
//! passed on like one of a kind that this version does not know, and counts for nothing: hosts of two versions have equal books.

mod broker;
mod disks;
mod host;
mod machine;
mod placing;
mod seen;

use minicbor::{Decode, Encode};

pub use self::{
    broker::BrokerBody,
    disks::{DISKS, DISKS_MAX, DiskBody, ROOT_DISK},
    host::{AuditHead, HostBody, PartsBody, Speaks},
    machine::{CPU_MODEL, CpuBody, LimitsBody},
    placing::{LABELS_MAX, Partner, PlacingBody, is_label},
    seen::{PortAhead, SeenBody, SeenState},
};
use crate::{
    contract::Contract,
    grant::GRANTS_MAX,
    key::{Digest, Key, Nonce, bound_id, id_of_key},
    kind::{Kind, RecordKey},
    lan,
    name::is_name,
    role::Role,
};
pub use crate::{
    grant::Assigned,
    lan::{LanBody, NICS_MAX, NicBody, RangeLease},
};

/// Most addresses of a host that anybody dials.
pub const ADDRESSES_MAX: usize = 8;
/// Longest kernel command line.
pub const CMDLINE_BYTES_MAX: usize = 2048;
/// Longest text of a seed disk.
pub const SEED_BYTES_MAX: usize = 16 << 10;
/// Longest reason.
pub const REASON_BYTES_MAX: usize = 1024;
/// Parts of a depot in one record.
pub const PARTS_MAX: usize = 1024;
/// Domains that a thing is shared with.
const DOMAINS_MAX: usize = 1024;

/// The word of a VM that is on a sealed LAN: a host that does not know it would speak in the clear.
pub const SEALED: &str = "sealed-lan";
/// Of [`VmBody::must`]: its seed disk has a network configuration ([`VmPrivate::network`]).
pub const NETWORK_CONFIG: &str = "network-config";
/// Of [`VmBody::must`]: a NIC of it has another MTU than hosts without a word about it take, or bridges.
pub const NIC_OPTIONS: &str = "nic-options";
/// Words of [`VmBody::must`] that this version knows.
const KNOWN: [&str; 5] = [SEALED, NETWORK_CONFIG, DISKS, NIC_OPTIONS, CPU_MODEL];
/// Words of one VM, and bytes of one.
const MUST_MAX: usize = 8;
const WORD_BYTES_MAX: usize = 64;

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// See [`Kind::FLOOR`].
    Floor(FloorBody),
    /// See [`Kind::POOL`].
    Pool(PoolBody),
    /// See [`Kind::DOMAIN`].
    Domain(DomainBody),
    /// See [`Kind::MEMBER`].
    Member(MemberBody),
    /// See [`Kind::HELPER`].
    Helper(HelperBody),
    /// See [`Kind::USER`].
    User(UserBody),
    /// See [`Kind::BROKER`].
    Broker(BrokerBody),
    /// See [`Kind::HOST`].
    Host(Box<HostBody>),
    /// See [`Kind::PARTS`].
    Parts(PartsBody),
    /// See [`Kind::LAN`].
    Lan(Box<LanBody>),
    /// See [`Kind::IMAGE`].
    Image(Box<ImageBody>),
    /// See [`Kind::VM`].
    Vm(Box<VmBody>),
    /// See [`Kind::SEEN`].
    Seen(Box<SeenBody>),
    /// See [`Kind::CONTRACT`].
    Contract(Box<Contract>),
    /// Not understood, or not sound.
    Unknown,
}

/// All that its writer wrote before is void.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct FloorBody {
    /// Up to this number.
    #[n(0)]
    pub floor: u64,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PoolBody {
    /// Its name.
    #[n(0)]
    pub name: String,
}

/// A domain.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DomainBody {
    /// Its name.
    #[n(0)]
    pub name: String,
    /// Its root key.
    #[n(1)]
    pub key: Key,
}

/// A host's membership in a domain. It counts when the host says so too.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct MemberBody {
    /// The host.
    #[n(0)]
    pub host: Key,
    /// The domain: its key writes the record, or a key that it made a helper.
    #[n(1)]
    pub domain: Key,
    /// The name that the host asked for.
    #[n(2)]
    pub name: String,
    /// Set when an operator declared it dead: why, and when.
    #[n(3)]
    pub dead: Option<String>,
    /// What root at its socket may do in the domain; none where that is nothing.
    #[n(4)]
    pub role: Option<Role>,
}

/// A key that lets hosts in for a domain, and declares them dead, so that the root key can lie in a drawer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct HelperBody {
    /// A host's key.
    #[n(0)]
    pub key: Key,
}

/// A person or a program that a domain gave a role.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct UserBody {
    /// Signs what it asks.
    #[n(0)]
    pub key: Key,
    /// The domain: its key writes the record, or a key that it made a helper.
    #[n(1)]
    pub domain: Key,
    /// What it is called there.
    #[n(2)]
    pub name: String,
    /// What it may do there.
    #[n(3)]
    pub role: Role,
    /// When that ends, in seconds since 1970; none where it does when it is taken back.
    #[n(4)]
    pub until: Option<u64>,
}

/// A part and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct PartRef {
    /// BLAKE3 of its content.
    #[n(0)]
    pub digest: Digest,
    /// Its length.
    #[n(1)]
    pub bytes: u64,
}

/// What VMs start from.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ImageBody {
    /// Of which its id is made.
    #[n(0)]
    pub nonce: Nonce,
    /// Its name.
    #[n(1)]
    pub name: String,
    /// Kernel; none, where the disk's own boot loader says what starts.
    #[n(2)]
    pub kernel: Option<PartRef>,
    /// Initial RAM disk.
    #[n(3)]
    pub initramfs: Option<PartRef>,
    /// Kernel command line; without a kernel, what is added to the disk's own.
    #[n(4)]
    pub cmdline: String,
    /// Disk.
    #[n(5)]
    pub disk: Option<DiskRef>,
    /// When it was imported, in seconds since 1970.
    #[n(6)]
    pub created: u64,
    /// Other domains whose VMs may start from it.
    #[n(7)]
    pub domains: Vec<Key>,
    /// What would start from its disk, as it was imported: for people.
    #[n(8)]
    pub starts: Option<String>,
}

/// An image's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct DiskRef {
    /// The file.
    #[n(0)]
    pub part: PartRef,
    /// Whether it is qcow2; else raw.
    #[n(1)]
    pub qcow2: bool,
    /// What the guest sees.
    #[n(2)]
    pub virtual_bytes: u64,
}

/// A VM as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct VmBody {
    /// Of which its id is made.
    #[n(0)]
    pub nonce: Nonce,
    /// Its name.
    #[n(1)]
    pub name: String,
    /// Who may start it, and at which epoch.
    #[n(2)]
    pub assigned: Assigned,
    /// The image's name when it was created: for people.
    #[n(3)]
    pub image_name: String,
    /// What it starts from, as it was then.
    #[n(4)]
    pub image: ImageBody,
    /// Guest memory.
    #[n(5)]
    pub memory_bytes: u64,
    /// Virtual processors.
    #[n(6)]
    pub vcpus: u8,
    /// What only hosts that run it or may have to know: [`VmPrivate::digest`].
    #[n(7)]
    pub private: Digest,
    /// NICs.
    #[n(8)]
    pub nics: Vec<NicBody>,
    /// The host that has it started elsewhere when its host is lost; without one it is held. For life.
    #[n(9)]
    pub keeper: Option<Key>,
    /// When it was created, in seconds since 1970.
    #[n(10)]
    pub created: u64,
    /// What a host has to know that runs it: fields that an older one skips, and may not. See [`VmBody::not_known`].
    #[n(11)]
    pub must: Option<Vec<String>>,
    /// Disks beside what its image gives: further ones, in their order, and [`ROOT_DISK`] where that is larger than the image's.
    #[n(12)]
    pub disks: Option<Vec<DiskBody>>,
    /// What its guest is shown of a processor; none is what its host gives. In a box, as most VMs have none.
    #[n(13)]
    pub cpu: Option<Box<CpuBody>>,
    /// What it may take of its host at most.
    #[n(14)]
    pub limits: Option<Box<LimitsBody>>,
    /// Where it wants to be, and with whom.
    #[n(16)]
    pub placing: Option<Box<PlacingBody>>,
}

/// What of a VM is told only to hosts that run it, are to, or keep it: it travels with orders, not with records.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct VmPrivate {
    /// By chance: who has the digest cannot try what the rest might be.
    #[n(0)]
    pub nonce: Nonce,
    /// Kernel command line, whole.
    #[n(1)]
    pub cmdline: String,
    /// Texts of its NoCloud seed disk: meta-data, user-data.
    #[n(2)]
    pub seed: Option<(String, String)>,
    /// The network configuration on that disk.
    #[n(3)]
    pub network: Option<String>,
}

impl VmPrivate {
    /// What the VM's record says of it.
    pub fn digest(&self) -> Digest {
        let bytes = minicbor::to_vec(self).unwrap_or_default();
        crate::key::Name(blake3::derive_key("rebec private part of a VM v1", &bytes))
    }

    /// Whether a disk and a command line can be made of it.
    pub fn is_sound(&self) -> bool {
        let seed = self.seed.as_ref().is_none_or(|(meta, user)| meta.len().max(user.len()) <= SEED_BYTES_MAX);
        let network = self.network.as_ref().is_none_or(|network| network.len() <= SEED_BYTES_MAX);
        self.cmdline.len() <= 2 * CMDLINE_BYTES_MAX && seed && network
    }
}

impl Body {
    /// What it is about; none of what is not known.
    pub fn kind(&self) -> Option<Kind> {
        Some(match self {
            Self::Floor(_) => Kind::FLOOR,
            Self::Pool(_) => Kind::POOL,
            Self::Domain(_) => Kind::DOMAIN,
            Self::Member(_) => Kind::MEMBER,
            Self::Helper(_) => Kind::HELPER,
            Self::User(_) => Kind::USER,
            Self::Broker(_) => Kind::BROKER,
            Self::Host(_) => Kind::HOST,
            Self::Parts(_) => Kind::PARTS,
            Self::Lan(_) => Kind::LAN,
            Self::Image(_) => Kind::IMAGE,
            Self::Vm(_) => Kind::VM,
            Self::Seen(_) => Kind::SEEN,
            Self::Contract(_) => Kind::CONTRACT,
            Self::Unknown => return None,
        })
    }

    /// As it stands in a record; none of what is not known.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let bytes = match self {
            Self::Floor(body) => minicbor::to_vec(body),
            Self::Pool(body) => minicbor::to_vec(body),
            Self::Domain(body) => minicbor::to_vec(body),
            Self::Member(body) => minicbor::to_vec(body),
            Self::Helper(body) => minicbor::to_vec(body),
            Self::User(body) => minicbor::to_vec(body),
            Self::Broker(body) => minicbor::to_vec(body),
            Self::Host(body) => minicbor::to_vec(body),
            Self::Parts(body) => minicbor::to_vec(body),
            Self::Lan(body) => minicbor::to_vec(body),
            Self::Image(body) => minicbor::to_vec(body),
            Self::Vm(body) => minicbor::to_vec(body),
            Self::Seen(body) => minicbor::to_vec(body),
            Self::Contract(body) => minicbor::to_vec(body),
            Self::Unknown => return None,
        };
        bytes.ok()
    }

    /// What a record's bytes say, as far as this version can tell and believe.
    pub(crate) fn from_bytes(key: &RecordKey, bytes: &[u8]) -> Self {
        let body = match key.kind {
            Kind::FLOOR => minicbor::decode(bytes).map(Self::Floor),
            Kind::POOL => minicbor::decode(bytes).map(Self::Pool),
            Kind::DOMAIN => minicbor::decode(bytes).map(Self::Domain),
            Kind::MEMBER => minicbor::decode(bytes).map(Self::Member),
            Kind::HELPER => minicbor::decode(bytes).map(Self::Helper),
            Kind::USER => minicbor::decode(bytes).map(Self::User),
            Kind::BROKER => minicbor::decode(bytes).map(Self::Broker),
            Kind::HOST => minicbor::decode(bytes).map(Self::Host),
            Kind::PARTS => minicbor::decode(bytes).map(Self::Parts),
            Kind::LAN => minicbor::decode(bytes).map(Self::Lan),
            Kind::IMAGE => minicbor::decode(bytes).map(Self::Image),
            Kind::VM => minicbor::decode(bytes).map(Self::Vm),
            Kind::SEEN => minicbor::decode(bytes).map(Self::Seen),
            Kind::CONTRACT => minicbor::decode(bytes).map(Self::Contract),
            _ => return Self::Unknown,
        };
        body.ok().filter(|body| body.is_sound(key)).map(Self::shrunk).unwrap_or(Self::Unknown)
    }

    /// Lists as long as they are: they grew by doubling, and a book has ten thousands of them.
    fn shrunk(mut self) -> Self {
        match &mut self {
            Self::Vm(vm) => vm.nics.shrink_to_fit(),
            Self::Seen(seen) => {
                seen.endpoints.shrink_to_fit();
                seen.grants.shrink_to_fit();
            }
            Self::Host(host) => host.addresses.shrink_to_fit(),
            Self::Parts(parts) => parts.digests.shrink_to_fit(),
            Self::Lan(lan) => lan.leases.shrink_to_fit(),
            _ => {}
        }
        self
    }

    /// Whether it can be reckoned with, and is about what its record's key says.
    fn is_sound(&self, key: &RecordKey) -> bool {
        let RecordKey { id, writer, .. } = key;
        let text = |text: &Option<String>| text.as_ref().is_none_or(|text| text.len() <= REASON_BYTES_MAX);
        match self {
            Self::Floor(_) | Self::Unknown => true,
            Self::Pool(pool) => is_name(&pool.name),
            Self::Domain(domain) => is_name(&domain.name) && *id == id_of_key(&domain.key),
            Self::Member(member) => is_name(&member.name) && *id == id_of_key(&member.host) && text(&member.dead),
            Self::Helper(helper) => *id == id_of_key(&helper.key),
            Self::User(user) => is_name(&user.name) && *id == id_of_key(&user.key),
            Self::Broker(broker) => *id == id_of_key(&broker.domain) && broker.is_sound(),
            Self::Contract(contract) => contract.is_sound(id),
            Self::Host(host) => {
                *id == id_of_key(writer)
                    && host.addresses.len() <= ADDRESSES_MAX
                    && host.version.len() <= 64
                    && text(&host.no_kvm)
                    && host.has_sound_cpu()
                    && host.has_sound_labels()
            }
            Self::Parts(parts) => parts.digests.len() <= PARTS_MAX,
            Self::Lan(body) => {
                *id == bound_id(writer, &body.nonce)
                    && is_name(&body.name)
                    && body.leases.len() <= lan::LEASES_MAX
                    && body.domains.len() <= DOMAINS_MAX
                    && lan::is_sound(body)
            }
            Self::Image(image) => *id == bound_id(writer, &image.nonce) && image.is_sound(),
            Self::Vm(vm) => *id == bound_id(writer, &vm.nonce) && vm.is_sound(),
            Self::Seen(seen) => {
                seen.grants.len() <= GRANTS_MAX
                    && seen.endpoints.len() <= NICS_MAX
                    && seen.keys.as_ref().is_none_or(|keys| keys.len() <= NICS_MAX)
                    && seen.ahead.as_ref().is_none_or(|ahead| ahead.len() <= NICS_MAX)
                    && text(&seen.reason)
                    && seen.grants.iter().all(|grant| grant.is_signed(id))
            }
        }
    }
}

impl ImageBody {
    /// An image that is a kernel and no more.
    pub fn bare(nonce: Nonce, name: &str, kernel: PartRef) -> Self {
        Self {
            nonce,
            name: name.to_owned(),
            kernel: Some(kernel),
            initramfs: None,
            cmdline: String::new(),
            disk: None,
            created: 0,
            domains: vec![],
            starts: None,
        }
    }

    fn is_sound(&self) -> bool {
        let has_start = self.kernel.is_some() || self.disk.is_some();
        let starts = self.starts.as_ref().is_none_or(|starts| starts.len() <= REASON_BYTES_MAX);
        has_start && starts && is_name(&self.name) && self.cmdline.len() <= CMDLINE_BYTES_MAX && self.domains.len() <= DOMAINS_MAX
    }

    /// The parts that it is made of.
    pub fn parts(&self) -> impl Iterator<Item = PartRef> {
        [self.kernel, self.initramfs, self.disk.map(|disk| disk.part)].into_iter().flatten()
    }
}

impl VmBody {
    fn is_sound(&self) -> bool {
        let names = is_name(&self.name) && is_name(&self.image_name);
        let must = self.must.iter().flatten();
        let words =
            must.clone().count() <= MUST_MAX && must.clone().all(|word| (1..=WORD_BYTES_MAX).contains(&word.len()) && is_name(word));
        names
            && words
            && self.has_sound_disks()
            && self.has_sound_machine()
            && self.has_sound_placing()
            && self.image.is_sound()
            && self.nics.len() <= NICS_MAX
    }

    /// What a host of this version would have to know so as to run it, and does not.
    pub fn not_known(&self) -> Option<&str> {
        self.must.iter().flatten().map(String::as_str).find(|word| !KNOWN.contains(word))
    }
}

/// A body, or part of one, inside another format: base64 of its CBOR.
pub mod as_text {
    use data_encoding::BASE64URL_NOPAD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _, ser::Error as _};

    use minicbor::{Decode, Encode};

    /// Writes it.
    pub fn serialize<T: Encode<()>, S: Serializer>(body: &T, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = minicbor::to_vec(body).map_err(S::Error::custom)?;
        serializer.serialize_str(&BASE64URL_NOPAD.encode(&bytes))
    }

    /// Reads it.
    pub fn deserialize<'de, T: for<'b> Decode<'b, ()>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(D::Error::custom)?;
        minicbor::decode(&bytes).map_err(D::Error::custom)
    }
}
