//! A member of the pool that means no good: it has keys of its own and speaks as it likes. It is no agent, it runs on a machine of the lab beside
//! agents, joins with a ticket as they do, and asks hosts for what they should not give.
//!
//! ```text
//! story ── Hostile ── speech (records, questions) ── wire (HTTP/1.1, TLS 1.3 under any key) ── TCP port 7116 of a host
//!              └───── trap (its own port 7116: what hosts ask it for)
//! ```
//! It does not speak QUIC: hosts count it as silent until it asks them for their book.

pub mod deals;
pub mod findings;
pub mod speech;
pub mod trap;
pub mod wire;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use self::speech::{Invitation, Known};
pub use self::{
    findings::Findings,
    speech::{Id, Key, Question, Said, Vm, Writer},
    trap::Trap,
    wire::{Answer, Connection},
};
use super::{Machine, lab::Entrance};

/// Where agents reach each other.
pub const PORT: u16 = 7116;
/// How often a job is asked about, each time for seconds, before it counts as without end.
const JOB_ROUNDS_MAX: usize = 12;

/// The hostile member.
pub struct Hostile {
    entrance: Entrance,
    /// Its machine's address.
    pub address: Ipv4Addr,
    /// Its key as a host.
    pub host: Writer,
    /// Its key as a domain.
    pub domain: Writer,
    /// The domain that it belongs to.
    belongs: Option<Key>,
    known: Option<Known>,
}

impl Hostile {
    /// On a machine, with new keys; a member of nothing.
    pub fn new(machine: &Machine) -> Result<Self> {
        let (entrance, address) = (machine.entrance(), machine.address());
        // Where two domains claim one host, the lower key comes first.
        Ok(Self { entrance, address, host: Writer::new()?, domain: Writer::low()?, belongs: None, known: None })
    }

    /// Joins by a ticket; returns the domain it founds, as it is told.
    pub fn joins(&mut self, ticket: &str, name: &str) -> Result<Option<String>> {
        let invitation = Invitation::read(ticket)?;
        let request = invitation.join(self.host.key(), name, &self.domain)?;
        let connection = Connection::open(&self.entrance, &self.host.secret(), invitation.issuer().0, invitation.address()?)?;
        let answer = connection.ask(&request)?;
        ensure!(answer.is_granted(), "{} is not let in: {} {}", name, answer.status, answer.text());
        let (belongs, known) = invitation.joined(&answer.body)?;
        let founds = (belongs == self.domain.key()).then(|| known.domain(&belongs));
        (self.belongs, self.known) = (Some(belongs), Some(known));
        Ok(founds)
    }

    /// A connection to a host whose key and place are in the book.
    pub fn connects(&self, host: &str) -> Result<Connection> {
        self.connects_as(&self.host, host)
    }

    /// The same under another key.
    pub fn connects_as(&self, writer: &Writer, host: &str) -> Result<Connection> {
        let (key, address) = self.known()?.host(host)?;
        Connection::open(&self.entrance, &writer.secret(), key.0, address)
    }

    /// Connects to a host, so many times at once, and says nothing.
    pub fn knocks(&self, host: &str, times: usize) -> Result<Vec<TcpStream>> {
        let (_, address) = self.known()?.host(host)?;
        Ok(self.entrance.within(move || (0..times).map(|_| TcpStream::connect(address)).collect::<io::Result<_>>())??)
    }

    /// Asks a host and hears its answer.
    pub fn asks(&self, host: &str, question: &Question) -> Result<Answer> {
        let request = question.request()?;
        let answer = self.connects(host)?.ask(&request).with_context(|| format!("host {host}: {}", request.path))?;
        // What is not understood is not refused: such an attack would show nothing.
        let misunderstood = question.is_between_hosts() && answer.says_nonsense();
        ensure!(!misunderstood, "host {host} does not understand {}: {} {}", request.path, answer.status, answer.text());
        Ok(answer)
    }

    /// Asks what must be refused, by word or because the job that begins comes to nothing.
    pub fn is_refused(&self, host: &str, question: &Question) -> Result<()> {
        let path = question.request()?.path;
        self.comes_to_nothing(host, &path, &self.asks(host, question)?)
    }

    /// The same of an answer that has been heard.
    pub fn comes_to_nothing(&self, host: &str, path: &str, answer: &Answer) -> Result<()> {
        if !answer.is_granted() {
            return Ok(());
        }
        let job: Value = if answer.status == 202 { serde_json::from_slice(&answer.body).context("a job")? } else { Value::Null };
        let Some(id) = job["id"].as_str() else {
            bail!("host {host} granted {path}: {} {}", answer.status, answer.text());
        };
        for _ in 0..JOB_ROUNDS_MAX {
            let asked = self.asks(host, &Question::Job(id.to_owned()))?;
            let job: Value = serde_json::from_slice(&asked.body).context("a job")?;
            match job["state"].as_str() {
                Some("failed") => return Ok(()),
                Some("running") => {}
                _ => bail!("host {host} granted {path}: it did `{}`", job["what"].as_str().unwrap_or("?")),
            }
        }
        bail!("host {host} granted {path}, and is still at it")
    }

    /// Reads a host's book, and is heard by it.
    pub fn reads(&mut self, host: &str) -> Result<()> {
        // What it reads first tells of domains to ask for.
        for _ in 0..2 {
            let records = self.book(host)?;
            self.known.as_mut().context("it has not joined")?.learn(records);
        }
        Ok(())
    }

    /// What a host tells of its book.
    pub fn book(&self, host: &str) -> Result<Vec<Said>> {
        let told = self.known()?.groups().into_iter().map(|group| speech::told(&self.asks(host, &Question::Book(group))?.body));
        Ok(told.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Knows what another one has read.
    pub fn learns_from(&mut self, other: &Self) -> Result<()> {
        let records = other.known()?.all();
        self.known.as_mut().context("it has not joined")?.learn(records);
        Ok(())
    }

    /// What has been read so far.
    pub fn known(&self) -> Result<&Known> {
        self.known.as_ref().context("it has not joined")
    }

    /// A VM that is at home at a host, as the book tells.
    pub fn vm(&self, home: &str, name: &str) -> Result<Vm> {
        self.known()?.vm(self.known()?.host(home)?.0, name)
    }

    /// Tells hosts records. A refusal is an answer like any other.
    pub fn tells(&self, hosts: &[&str], records: &[Said]) -> Result<()> {
        for host in hosts {
            self.asks(host, &Question::Records(records.to_vec()))?;
        }
        Ok(())
    }

    /// Says to hosts that a VM is its own, under another name.
    pub fn claims_vm(&self, hosts: &[&str], victim: &Vm, name: &str) -> Result<()> {
        self.tells(hosts, &[self.host.vm(&victim.clone().named(name))?])
    }

    /// Says to hosts that a host belongs to its own domain.
    pub fn claims_host(&self, hosts: &[&str], victim: &str, dead: Option<&str>) -> Result<()> {
        let (key, _) = self.known()?.host(victim)?;
        self.tells(hosts, &[self.domain.member(key, victim, dead)?])
    }

    /// Where it is, as it says.
    pub fn is_at(&self, addresses: Vec<SocketAddr>) -> Result<Said> {
        self.host.host(self.belongs.context("it has not joined")?, addresses)
    }

    /// Says to hosts where it is: at its own port of agents.
    pub fn says_where(&self, hosts: &[&str]) -> Result<()> {
        self.tells(hosts, &[self.is_at(vec![SocketAddr::from((self.address, PORT))])?])
    }

    /// A UDP socket on its machine.
    pub fn udp(&self, port: u16) -> Result<UdpSocket> {
        let address = (self.address, port);
        Ok(self.entrance.within(move || UdpSocket::bind(address))??)
    }

    /// Listens for what hosts ask it.
    pub fn listens(&self) -> Result<Trap> {
        Trap::set(&self.entrance, &self.host.secret(), SocketAddr::from((self.address, PORT)))
    }
}
