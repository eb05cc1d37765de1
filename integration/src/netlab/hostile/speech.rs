//! What a hostile member says: the form of records and of the questions between hosts. All that the lab knows of either is in this file; stories
//! speak of VMs, LANs and hosts.
//!
//! The records are signed by whoever the lab likes, with contents that no agent would write.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use ed25519_dalek::SigningKey;
use rebec_book::{
    Book, Grant, Signed, Ticket, Warrant,
    book::tag_of,
    contract::Contract,
    gossip::message::{self, Marks, Parcel},
    key::{bound_id, id_of_key, public},
    record::{
        Assigned, Body, DiskRef, HostBody, ImageBody, Kind, MemberBody, NicBody, PartRef, Record, SeenBody, SeenState, VmBody, VmPrivate,
        as_text,
    },
    view, warrant,
};
pub use rebec_book::{
    Key,
    key::{Digest, Id, Name},
};
use serde_json::{Value, json};

/// Where a host asks another for a part.
pub const PART_PATH: &str = "/internal/parts/";
/// A signed record.
pub type Said = Signed;

/// A request as it is sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// HTTP method.
    pub method: &'static str,
    /// Path and query.
    pub path: String,
    /// More headers.
    pub headers: Vec<(&'static str, String)>,
    /// JSON, mostly.
    pub body: Vec<u8>,
}

/// Whoever signs records: a host, or a domain.
pub struct Writer {
    secret: SigningKey,
    said: AtomicU64,
}

impl Writer {
    /// One of a key made by chance, that sorts before those of most others.
    pub fn low() -> Result<Self> {
        loop {
            let writer = Self::new()?;
            if writer.key().0[0] == 0 && writer.key().0[1] < 16 {
                return Ok(writer);
            }
        }
    }

    /// One of a key made by chance.
    pub fn new() -> Result<Self> {
        let mut secret = [0; 32];
        let filled = rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty()).context("a key by chance")?;
        anyhow::ensure!(filled == secret.len(), "the kernel gave {filled} random bytes");
        Ok(Self { secret: SigningKey::from_bytes(&secret), said: AtomicU64::new(0) })
    }

    /// The public half.
    pub fn key(&self) -> Key {
        public(&self.secret)
    }

    /// The other half.
    pub fn secret(&self) -> [u8; 32] {
        self.secret.to_bytes()
    }

    /// An id that this writer may give to a thing of its own.
    pub fn own_id(&self, nonce: u64) -> Id {
        bound_id(&self.key(), &nonce_of(nonce))
    }

    fn say(&self, kind: Kind, id: Id, body: &Body) -> Result<Said> {
        // Later ones count more.
        let seq = self.said.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Record::sign(kind, id, seq, Some(body), &self.secret)?)
    }

    /// As a domain: this host is a member.
    pub fn member(&self, host: Key, name: &str, dead: Option<&str>) -> Result<Said> {
        let member = MemberBody { host, domain: self.key(), name: name.to_owned(), dead: dead.map(str::to_owned), role: None };
        self.say(Kind::MEMBER, id_of_key(&host), &Body::Member(member))
    }

    /// As a host of a domain: this is where it is.
    pub fn host(&self, domain: Key, addresses: Vec<SocketAddr>) -> Result<Said> {
        let underlay = addresses.iter().find_map(|address| if let SocketAddr::V4(v4) = address { Some(*v4.ip()) } else { None });
        let body = HostBody { addresses, underlay, ..HostBody::bare(domain) };
        self.say(Kind::HOST, id_of_key(&self.key()), &Body::Host(body.into()))
    }

    /// As a user, or for root at its own socket: do this, said to a host.
    pub fn signs(&self, at: Key, question: &Question) -> Result<String> {
        let request = question.request()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let mut nonce = [0; 16];
        nonce[8..].copy_from_slice(&self.said.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let warrant = Warrant {
            signer: self.key(),
            at,
            method: request.method.to_owned(),
            path: request.path,
            body: Some(warrant::body_digest(&request.body)),
            until: now + warrant::LIFE_S,
            nonce: Name(nonce),
            token: None,
        };
        Ok(warrant.sign(&self.secret)?)
    }

    /// As a domain: signs a contract, if it is a side of it.
    pub fn signs_contract(&self, contract: &mut Contract) {
        contract.sign(&self.secret);
    }

    /// As a host: this is what it says of a contract.
    pub fn knows_contract(&self, contract: &Contract) -> Result<Said> {
        self.say(Kind::CONTRACT, contract.id(), &Body::Contract(contract.clone().into()))
    }

    /// As a host: this VM is at home here.
    pub fn vm(&self, vm: &Vm) -> Result<Said> {
        self.say(Kind::VM, vm.id, &Body::Vm(vm.body.clone().into()))
    }

    /// As a host: this VM runs here.
    pub fn runs(&self, vm: Id, epoch: u64, endpoints: Vec<SocketAddrV4>) -> Result<Said> {
        // The best that a liar can show: its own word that it may.
        let grants = vec![Grant::sign(&vm, self.key(), epoch, &self.secret)];
        let state = SeenState::Running;
        let body =
            SeenBody { epoch, state, reason: None, endpoints, memory_bytes: 16 << 20, pid: 1, grants, to: None, keys: None, ahead: None };
        self.say(Kind::SEEN, vm, &Body::Seen(body.into()))
    }
}

fn no_secret() -> VmPrivate {
    VmPrivate { nonce: Name([0; 16]), cmdline: String::new(), seed: None, network: None }
}

fn nonce_of(number: u64) -> Name<16> {
    Name(u128::from(number).to_be_bytes())
}

/// A VM as a record tells of it.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its id.
    pub id: Id,
    /// Its home.
    pub home: Key,
    body: VmBody,
}

impl Vm {
    /// One of a writer, that starts from a part as its kernel.
    pub fn new(writer: &Writer, nonce: u64, name: &str, part: (Digest, u64)) -> Self {
        let kernel = PartRef { digest: part.0, bytes: part.1 };
        let image = ImageBody::bare(nonce_of(nonce), "own", kernel);
        let body = VmBody {
            nonce: nonce_of(nonce),
            name: name.to_owned(),
            assigned: Assigned { host: writer.key(), epoch: 1 },
            image_name: "own".to_owned(),
            image,
            memory_bytes: 16 << 20,
            vcpus: 1,
            private: no_secret().digest(),
            nics: vec![],
            keeper: None,
            created: 0,
            must: None,
            disks: None,
            cpu: None,
            limits: None,
            placing: None,
        };
        Self { id: writer.own_id(nonce), home: writer.key(), body }
    }

    /// The same under another name.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.body.name);
        self
    }

    /// With so much memory.
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.body.memory_bytes = bytes;
        self
    }

    /// With a keeper.
    pub fn kept_by(mut self, keeper: Key) -> Self {
        self.body.keeper = Some(keeper);
        self
    }

    /// With the first NIC of another VM.
    pub fn with_nic_of(mut self, other: &Self) -> Self {
        self.body.nics = other.body.nics.iter().take(1).cloned().collect::<Vec<NicBody>>();
        self
    }

    /// Its kernel.
    pub fn kernel(&self) -> (Digest, u64) {
        self.body.image.kernel.map(|part| (part.digest, part.bytes)).unwrap_or((Name([0; 32]), 0))
    }

    /// The disk of its image.
    pub fn disk(&self) -> Option<(Digest, u64)> {
        self.body.image.disk.map(|DiskRef { part, .. }| (part.digest, part.bytes))
    }
}

/// What a question is about.
#[derive(Debug, Clone)]
pub enum Question {
    /// Tell me all that you know of a domain, or of the pool's keys.
    Book(Key),
    /// Know this.
    Records(Vec<Said>),
    /// I leave.
    Leave,
    /// Start this VM.
    Start(Id, u64),
    /// Remove this VM.
    Remove(Id),
    /// Have this VM of yours started elsewhere.
    Restart(Id),
    /// I run this VM at this epoch: may I go on?
    Promise(Id, u64),
    /// This VM comes to you from me, where it has this epoch.
    Arrival(Id, u64),
    /// Give me this part.
    Part(Digest),
    /// How far is this job?
    Job(String),
    /// As a broker: sign this.
    Contract(Box<Contract>),
    /// Something that users ask.
    User(&'static str, String, Value),
    /// The console of a VM.
    Console(String),
    /// The same with somebody's signature, which may be of something else.
    Signed(Box<Self>, String),
}

impl Question {
    /// Cut the power of a VM.
    pub fn stop(name: &str) -> Self {
        Self::User("POST", format!("/v1/vms/{name}/stop"), json!({"timeout_s": 0}))
    }

    /// What a VM's console has said.
    pub fn logs(name: &str) -> Self {
        Self::User("GET", format!("/v1/vms/{name}/logs"), Value::Null)
    }

    /// What tells of a host's faults.
    pub fn bundle() -> Self {
        Self::User("GET", "/v1/support-bundle".to_owned(), Value::Null)
    }

    /// A ticket with which somebody founds a domain.
    pub fn invite_domain(name: &str) -> Self {
        Self::User("POST", "/v1/domains/invite".to_owned(), json!({"domain": name}))
    }

    /// A ticket with which somebody joins the asked host's domain.
    pub fn invite_host() -> Self {
        Self::User("POST", "/v1/hosts/invite".to_owned(), json!({}))
    }

    /// Have the asked host leave its pool.
    pub fn leave_pool() -> Self {
        Self::User("POST", "/v1/pool/leave".to_owned(), json!({}))
    }

    /// Whether it is for agents; users ask the others.
    pub fn is_between_hosts(&self) -> bool {
        !matches!(self, Self::User(..) | Self::Console(_) | Self::Signed(..))
    }

    /// The same with a signature.
    pub fn with(self, warrant: &str) -> Self {
        Self::Signed(Box::new(self), warrant.to_owned())
    }

    /// As it is sent.
    pub fn request(&self) -> Result<Request> {
        if let Self::Signed(question, warrant) = self {
            let mut request = question.request()?;
            request.headers.push((warrant::HEADER, warrant.clone()));
            return Ok(request);
        }
        let secret = || as_text::serialize(&no_secret(), serde_json::value::Serializer);
        let internal = |what: &str, body: Value| ("POST", format!("/internal/{what}"), body);
        let (method, path, body) = match self {
            Self::Book(of) => return Ok(gossip(&message::Question::Marks(Marks { group: tag_of(of), marks: vec![] }))),
            Self::Records(records) => return Ok(gossip(&message::Question::Records(Parcel::alone(records.clone())))),
            Self::Leave => internal("leave", json!({})),
            Self::Start(vm, epoch) => internal("starts", json!({"vm": vm, "epoch": epoch, "records": [], "private": secret()?})),
            Self::Remove(vm) => internal("removals", json!({ "vm": vm })),
            Self::Restart(vm) => internal("restarts", json!({ "vm": vm })),
            Self::Promise(vm, epoch) => internal("promises", json!({"vm": vm, "ask": {"epoch": epoch, "stance": "runs"}, "records": []})),
            Self::Arrival(vm, epoch) => internal("arrivals", json!({"vm": vm, "epoch": epoch, "records": [], "private": secret()?})),
            Self::Job(id) => internal("jobs/wait", json!({"id": id, "seen": {"phase": "", "done_bytes": 0, "total_bytes": 0}})),
            Self::Contract(contract) => {
                internal("contracts", json!({"contract": as_text::serialize(&**contract, serde_json::value::Serializer)?}))
            }
            Self::Part(digest) => ("GET", format!("{PART_PATH}{digest}"), Value::Null),
            Self::User(method, path, body) => (*method, path.clone(), body.clone()),
            Self::Console(name) => ("GET", format!("/v1/vms/{name}/console"), Value::Null),
            Self::Signed(..) => unreachable!("it was sent on above"),
        };
        let body = if body.is_null() { vec![] } else { serde_json::to_vec(&body)? };
        let headers = if matches!(self, Self::Console(_)) { vec![("Upgrade", "rebec-stream".to_owned())] } else { vec![] };
        Ok(Request { method, path, headers, body })
    }
}

fn gossip(question: &message::Question) -> Request {
    Request { method: "POST", path: "/internal/exchange".to_owned(), headers: vec![], body: question.to_bytes() }
}

/// What a host told of its book.
pub fn told(answer: &[u8]) -> Result<Vec<Said>> {
    match message::Answer::from_bytes(answer)? {
        message::Answer::Records(Parcel { in_turn, alone }) => Ok([in_turn, alone].concat()),
        other => anyhow::bail!("no records but {other:?}"),
    }
}

/// A ticket as its holder reads it.
pub struct Invitation(Ticket);

impl Invitation {
    /// Reads what `rebec host invite` printed.
    pub fn read(text: &str) -> Result<Self> {
        Ok(Self(text.parse().context("a ticket")?))
    }

    /// The host to join at.
    pub fn issuer(&self) -> Key {
        self.0.issuer
    }

    /// Where that is.
    pub fn address(&self) -> Result<SocketAddr> {
        self.0.addresses.first().copied().context("a ticket without an address")
    }

    /// The question of a host that wants in, with the domain that it founds if it is to found one.
    pub fn join(&self, host: Key, name: &str, domain: &Writer) -> Result<Request> {
        let member = domain.member(host, name, None)?;
        let question = json!({"secret": self.0.secret, "name": name, "domain_key": domain.key(), "member": member});
        Ok(Request { method: "POST", path: "/internal/join".to_owned(), headers: vec![], body: serde_json::to_vec(&question)? })
    }

    /// What the answer says: the domain that the host belongs to, and the first of the book.
    pub fn joined(&self, answer: &[u8]) -> Result<(Key, Known)> {
        let answer: Value = serde_json::from_slice(answer).context("the answer to a join")?;
        let mut known = Known(Book::new(self.0.pool));
        known.learn(serde_json::from_value(answer["records"].clone()).context("the first of the book")?);
        let domain: Key = serde_json::from_value(answer["domain"].clone()).context("the domain that it belongs to")?;
        Ok((domain, known))
    }
}

/// What has been read of hosts' books.
pub struct Known(Book);

impl Known {
    /// Takes in what a host told.
    pub fn learn(&mut self, records: Vec<Said>) {
        for record in records {
            // What is not believed is not known either.
            self.0.merge(record).ok();
        }
    }

    /// Every record.
    pub fn all(&self) -> Vec<Said> {
        self.0.all().cloned().collect()
    }

    /// Whose logs are compared together: the keys', and each domain's.
    pub fn groups(&self) -> Vec<Key> {
        let domains = view::domains(&self.0).into_iter().map(|domain| domain.body.key);
        std::iter::once(self.0.pool()).chain(domains).collect()
    }

    /// The name of a domain.
    pub fn domain(&self, key: &Key) -> String {
        self.0.domain_name(key)
    }

    /// The domain that a host belongs to.
    pub fn domain_of(&self, host: &Key) -> Option<Key> {
        self.0.domain_of(host)
    }

    /// A VM of a home, by the name that its record has.
    pub fn vm(&self, home: Key, name: &str) -> Result<Vm> {
        let found = view::vms(&self.0).into_iter().find(|vm| vm.home == home && vm.body.name == name);
        let found = found.with_context(|| format!("no VM {name} is in the book"))?;
        Ok(Vm { id: found.id, home: found.home, body: found.body.clone() })
    }

    /// A host's key and where it is, by the name that its member record has.
    pub fn host(&self, name: &str) -> Result<(Key, SocketAddr)> {
        let found = view::hosts(&self.0).into_iter().find(|host| host.member.name == name);
        let found = found.with_context(|| format!("no host {name} is in the book"))?;
        let address = found.body.addresses.first().copied();
        Ok((found.key, address.with_context(|| format!("host {name} is nowhere"))?))
    }
}

/// The public half of a key.
pub fn public_of(secret: &[u8; 32]) -> Key {
    public(&SigningKey::from_bytes(secret))
}

/// What a host's book says, record by record, to be compared with another's.
pub fn contents(records: &[Said]) -> Result<BTreeMap<String, String>> {
    let named = |said: &Said| -> Result<(String, String)> {
        let Record { key, seq, .. } = said.open()?;
        Ok((format!("{:?} {:?} by {:?}", key.kind, key.id, key.writer), format!("{seq} {}", Name(said.hash()))))
    };
    records.iter().map(named).collect()
}

/// How many records tell of things of other hosts: VMs and where they are, images, LANs, parts.
pub fn things_of_others(records: &[Said], own: Key) -> usize {
    let read = records.iter().filter_map(|said| said.read().ok());
    read.filter(|record| record.key.writer != own && record.key.kind > Kind::HOST && record.body.is_some()).count()
}

/// Whether what a host told has a text in it, also within records.
pub fn tells(records: &[Said], text: &str) -> bool {
    records.iter().any(|said| said.to_bytes().windows(text.len()).any(|window| window == text.as_bytes()))
}

/// The addresses that hosts of the lab have and nobody answers at, with the port of agents.
pub fn nobody(count: u8) -> BTreeSet<SocketAddr> {
    (0..count).map(|number| SocketAddr::from((Ipv4Addr::new(10, 0, 0, 255 - number - 1), super::PORT))).collect()
}
