//! The control socket: one JSON object a line, each way.
//!
//! ```text
//! server  {"rebec":"0.1.0","protocol":1,"from":1}               the hello, first line of every connection
//! client  {"id":1,"do":"status"}
//! server  {"id":1,"ok":{...}}            or  {"id":1,"error":{"code":"not_running","message":"..."}}
//! client  {"id":2,"do":"migrate","streams":4}                   with one descriptor per connection, by SCM_RIGHTS
//! server  {"id":2,"progress":{...}}                              any number, then ok or error
//! client  {"id":3,"do":"donate"}                                 after its ok the connection speaks the donor protocol
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::{mac::MacAddr, metrics::Family, port_key::PortKey, report::MoveReport, versions::Versions};
pub use crate::{
    memory::MemoryStatus,
    ports::{Capture, NetStatus, NetTalk, StationTalk},
};

/// What this program speaks, at either end.
pub const PROTOCOL: Versions = Versions::only(1);
/// Words of [`Request::must`] that this program knows.
const KNOWN: [&str; 0] = [];
/// Longest line either side accepts.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// Most descriptors one request carries: a control connection and sixteen streams.
pub const DESCRIPTORS_MAX: usize = 17;

/// The first line of every connection, from the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the program.
    pub rebec: String,
    /// Newest version of this protocol that the VMM speaks.
    pub protocol: u16,
    /// The oldest; left out, the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u16>,
}

impl Hello {
    /// The hello of this version.
    pub fn current() -> Self {
        Self::of(env!("CARGO_PKG_VERSION"), PROTOCOL)
    }

    /// The hello of a program that speaks these.
    pub fn of(rebec: &str, speaks: Versions) -> Self {
        Self { rebec: rebec.to_owned(), protocol: speaks.highest, from: Some(speaks.lowest) }
    }

    /// The version that a client of this program speaks with this VMM.
    ///
    /// # Errors
    /// Where there is none that both have.
    pub fn agree(&self) -> Result<u16, OtherVersion> {
        let theirs = Versions::new(self.from.unwrap_or(self.protocol), self.protocol);
        PROTOCOL.common(theirs).ok_or_else(|| OtherVersion { rebec: self.rebec.clone(), theirs })
    }
}

/// A VMM that was started by a program too old or too new for this one. Nothing is wrong with its VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the VMM (Rebec {rebec}) speaks version {theirs} of the control protocol, this program (Rebec {own}) {PROTOCOL}: the VM runs on; use a \
     program of a version between them, or start the VM anew",
    own = env!("CARGO_PKG_VERSION")
)]
pub struct OtherVersion {
    /// Version of the VMM.
    pub rebec: String,
    /// What it speaks.
    pub theirs: Versions,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, repeated in every answer.
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub command: Command,
    /// What the VMM has to know so as to do that: fields that it would skip otherwise, and may not. None of this version needs a word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must: Vec<String>,
}

/// Why a line is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The request's, where it has one; or 0.
    pub id: u64,
    /// What to answer.
    pub error: ControlError,
}

impl Request {
    /// A command alone.
    pub fn new(id: u64, command: Command) -> Self {
        Self { id, command, must: vec![] }
    }

    /// Reads a line. What a newer program asks and this one does not know is refused as such.
    ///
    /// # Errors
    /// What the client is to be told.
    pub fn read(line: &[u8]) -> Result<Self, Unread> {
        let refused = |id, code, message| Unread { id, error: ControlError { code, message } };
        let older = |what: &str| {
            let own = env!("CARGO_PKG_VERSION");
            format!("this VMM (Rebec {own}) is older than who asks and does not know {what}; start the VM anew with the program of today")
        };
        let request: Self = serde_json::from_slice(line).map_err(|error| {
            let asked: Asked = serde_json::from_slice(line).unwrap_or_default();
            match asked.command {
                Some(command) if !Command::NAMES.contains(&command.as_str()) => {
                    let name: String = command.chars().filter(|letter| !letter.is_control()).take(64).collect();
                    refused(asked.id, ErrorCode::NotKnown, older(&format!("`{name}`")))
                }
                _ => refused(0, ErrorCode::BadRequest, format!("not a request of this protocol: {error}")),
            }
        })?;
        match request.must.iter().find(|word| !KNOWN.contains(&word.as_str())) {
            None => Ok(request),
            Some(word) => {
                let word: String = word.chars().filter(|letter| !letter.is_control()).take(64).collect();
                Err(refused(request.id, ErrorCode::NotKnown, older(&format!("`{word}`"))))
            }
        }
    }
}

/// What can be said of a request that is not understood.
#[derive(Default, Deserialize)]
struct Asked {
    #[serde(default)]
    id: u64,
    #[serde(rename = "do")]
    command: Option<String>,
}

/// What a VMM can be asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Command {
    /// Answered with [`Status`].
    Status,
    /// Answered with [`Status`] too, as soon as the VM that is expected has come: at once where none is.
    Arrival,
    /// Stop all vCPUs and device threads; the state stays.
    Pause,
    /// Undo a pause.
    Resume,
    /// Make a disk larger, and tell the guest so.
    ResizeDisk {
        /// Which, from 0, in the order of `disk_bytes` of [`Status`].
        disk: u8,
        /// Its new virtual size.
        bytes: u64,
    },
    /// Change what the VM's devices may do; what is not said stays.
    Limits(DeviceLimits),
    /// Have the guest make do with so much memory, or take in more, up to what it was started for; what it has done of that says its status.
    Memory {
        /// In bytes.
        bytes: u64,
    },
    /// Press the power button: the guest turns itself off, if it listens to that; refused if it does not.
    PowerButton,
    /// End the VM, as if its power were cut.
    Stop,
    /// Abandon the move under way; the VM runs on here.
    Cancel,
    /// Tell the ports of this VM where a MAC lives.
    FdbAdd {
        /// The NIC whose port is told; every port, if none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        net: Option<MacAddr>,
        /// The station.
        mac: MacAddr,
        /// Its VXLAN endpoint.
        endpoint: SocketAddrV4,
        /// Its own IPv4 address: ARP for it is answered at the port. Left out, what was said of it before still counts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ip: Option<Ipv4Addr>,
        /// What it is called in the domain of the port. Left out, it is called nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Tell the ports of this VM to forget a MAC.
    FdbRemove {
        /// The NIC whose port is told; every port, if none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        net: Option<MacAddr>,
        /// The station.
        mac: MacAddr,
    },
    /// Tell a port of this VM whose key is behind an endpoint, in place of whose was: from then on they hear each other.
    PeerKey {
        /// The NIC whose port it is; it seals.
        net: MacAddr,
        /// The other port's endpoint.
        endpoint: SocketAddrV4,
        /// The other port's public key.
        key: PortKey,
        /// The station whose port it is; one of this VM's own for another place of it. One of nobody speaks for stations that no other has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        station: Option<MacAddr>,
        /// Whether it speaks for stations that no other port has, too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        trunk: bool,
        /// Whether it takes frames whose TCP or UDP checksum is not complete.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        takes_partial: bool,
    },
    /// Tell a port of this VM to forget whose key is behind an endpoint.
    PeerKeyRemove {
        /// The NIC whose port it is.
        net: MacAddr,
        /// The other port's endpoint.
        endpoint: SocketAddrV4,
    },
    /// Tell every port of this VM the address that its host is reached at from now on: frames leave from there.
    Underlay {
        /// That address.
        address: Ipv4Addr,
    },
    /// Give a port of this VM a road to another port of this host that is no network: the connected socket (SOCK_SEQPACKET) that comes with the request.
    Near {
        /// The NIC whose port it is.
        net: MacAddr,
        /// The other port's endpoint; what comes by this road is heard as if it came from there.
        endpoint: SocketAddrV4,
    },
    /// Say what the LAN of a port of this VM lets through, each way; another limit of the NIC counts beside it.
    LanRate {
        /// The NIC whose port it is.
        net: MacAddr,
        /// Bits a second; 0 is as much as goes.
        bits: u64,
    },
    /// Write what passes a port of this VM, as pcapng, into the connected socket (SOCK_SEQPACKET) that comes with the request.
    Capture(Capture),
    /// Answered with who talked to whom, by port and station.
    Talk,
    /// Answered with what was counted since the VMM started.
    Metrics,
    /// Move the VM over the connections passed with the request: the first for control, the others as streams.
    Migrate(MigrateOptions),
    /// Let the vCPUs run until an instant of CLOCK_BOOTTIME, which both sides have in common: a line that is read late grants nothing.
    Lease {
        /// That instant, in milliseconds.
        until_ms: u64,
    },
    /// Turn this connection into a donor connection.
    Donate,
}

impl Command {
    /// What each is called on a line.
    const NAMES: [&str; 23] = [
        "status",
        "arrival",
        "pause",
        "resume",
        "resize-disk",
        "limits",
        "memory",
        "power-button",
        "stop",
        "cancel",
        "fdb-add",
        "fdb-remove",
        "peer-key",
        "peer-key-remove",
        "underlay",
        "near",
        "lan-rate",
        "capture",
        "talk",
        "metrics",
        "migrate",
        "lease",
        "donate",
    ];
}

/// What devices may do a second, each of them; 0 is as much as they can, and nothing is what it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLimits {
    /// Bits of each NIC, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_bits: Option<u64>,
    /// Requests of each disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_requests: Option<u64>,
    /// Bytes of each disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
}

/// The limits of one move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateOptions {
    /// Data connections passed.
    pub streams: u8,
    /// Longest pause the user accepts; the switch waits until less is predicted.
    #[serde(default = "MigrateOptions::default_downtime_ms")]
    pub downtime_ms_max: u32,
    /// Highest rate the move may use; none is as fast as the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_mbit_max: Option<u32>,
    /// How far the target's clock is ahead of this host's, if that is known and matters: the guest's clock is to go on as if it were not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub clock_ahead_ms: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl MigrateOptions {
    /// Most data connections of one move.
    pub const STREAMS_MAX: u8 = 16;

    /// The pause that is accepted when nobody says otherwise.
    pub fn default_downtime_ms() -> u32 {
        300
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// Its outcome, or how far it is.
    #[serde(flatten)]
    pub body: ResponseBody,
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseBody {
    /// Done.
    Ok(Answer),
    /// Refused or failed.
    Error(ControlError),
    /// Still at it.
    Progress(Progress),
}

/// What a finished request returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Nothing but success.
    Done,
    /// To `status`.
    Status(Status),
    /// To `talk`.
    Talk(Vec<NetTalk>),
    /// To `metrics`.
    Metrics(Vec<Family>),
    /// To `migrate`.
    Moved(MoveReport),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what happened, to what, and what to do next.
    pub message: String,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The line is not a request of this protocol.
    BadRequest,
    /// The VM is not in a state that allows it.
    WrongState,
    /// Another move is under way.
    Busy,
    /// The VMM is older than who asks and does not know what is asked.
    NotKnown,
    /// The machine refused; also what a newer VMM calls otherwise.
    #[serde(other)]
    Failed,
}

/// Where the VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// vCPUs run.
    Running,
    /// Paused by request.
    Paused,
    /// Memory and disk are arriving; it has not run here.
    Incoming,
    /// A move is under way and it runs here.
    Moving,
    /// The right to run was granted away and not yet confirmed.
    Waiting,
    /// It runs elsewhere; this process forwards late frames for a moment.
    Moved,
    /// What a newer VMM calls by a word that this program does not know.
    #[serde(other)]
    Other,
}

/// Answer to `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where the VM is in its life.
    pub state: VmState,
    /// Its ownership counter.
    pub epoch: u64,
    /// Identity of the VM, 32 hexadecimal digits.
    pub vm: String,
    /// Guest memory; of one whose memory changes while it runs, what it begins with.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub vcpus: u8,
    /// Disks, with their virtual sizes.
    pub disk_bytes: Vec<u64>,
    /// NICs.
    pub nets: Vec<NetStatus>,
    /// Whether the right to run it is recorded in a file, and so survives a crash of both sides of a move.
    #[serde(default)]
    pub ledger: bool,
    /// How long the lease without which it does not run still lasts; 0 when it has ended, none where it needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// What its guest is shown of a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuStatus>,
    /// What its devices may do at most; none where nothing limits them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<DeviceLimits>,
    /// The control group that it entered, which limits its processors and memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Of a VM whose memory changes while it runs: how that stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Box<MemoryStatus>>,
}

/// What a guest is shown of a processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStatus {
    /// The model, as `--cpu` takes it.
    pub model: String,
    /// All that it may use, as a compact set: where that is, it can go.
    pub features: String,
}

/// How far a move is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// `rounds`, `switching`, `waiting` or the like: one word for people.
    pub phase: String,
    /// The pass under way, from 1.
    pub round: u32,
    /// 4 KiB units still to send in this pass.
    pub remaining_units: u64,
    /// 4 KiB units this pass began with.
    pub total_units: u64,
    /// Bytes put on the streams so far.
    pub wire_bytes: u64,
    /// Rate at which the target applied them, lately.
    pub applied_mbit: u64,
    /// Pause predicted if the switch came now.
    pub predicted_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_as_documented() {
        let line = |request: &Request| serde_json::to_string(request).unwrap();
        let migrate = Command::Migrate(MigrateOptions { streams: 2, downtime_ms_max: 300, bandwidth_mbit_max: None, clock_ahead_ms: 0 });
        assert_eq!(line(&Request::new(1, Command::Status)), r#"{"id":1,"do":"status"}"#);
        assert_eq!(line(&Request::new(2, migrate.clone())), r#"{"id":2,"do":"migrate","streams":2,"downtime_ms_max":300}"#);
        let parsed: Request = serde_json::from_str(r#"{"id":2,"do":"migrate","streams":2}"#).unwrap();
        assert_eq!(parsed.command, migrate);
        let fdb: Request = serde_json::from_str(r#"{"id":3,"do":"fdb-add","mac":"52:54:00:00:00:01","endpoint":"10.0.0.2:4789"}"#).unwrap();
        assert!(matches!(fdb.command, Command::FdbAdd { ip: None, .. }));
        assert_eq!(line(&fdb), r#"{"id":3,"do":"fdb-add","mac":"52:54:00:00:00:01","endpoint":"10.0.0.2:4789"}"#);
        let text = r#"{"id":3,"do":"fdb-add","mac":"52:54:00:00:00:01","endpoint":"10.0.0.2:4789","ip":"10.7.0.5"}"#;
        assert_eq!(line(&serde_json::from_str(text).unwrap()), text);
        let text = r#"{"id":3,"do":"fdb-add","net":"52:54:00:00:00:09","mac":"52:54:00:00:00:01","endpoint":"10.0.0.2:4789","ip":"10.7.0.5","name":"web"}"#;
        assert_eq!(line(&serde_json::from_str(text).unwrap()), text);
        let text = r#"{"id":4,"do":"fdb-remove","mac":"52:54:00:00:00:01"}"#;
        assert_eq!(line(&serde_json::from_str(text).unwrap()), text);
        let text = r#"{"id":4,"do":"peer-key","net":"52:54:00:00:00:01","endpoint":"10.0.0.2:4789","key":"KEY"}"#;
        let text = text.replace("KEY", &"0f".repeat(32));
        assert_eq!(line(&serde_json::from_str(&text).unwrap()), text);
        let text = text.replace('}', r#","station":"52:54:00:00:00:02","trunk":true,"takes_partial":true}"#);
        assert_eq!(line(&serde_json::from_str(&text).unwrap()), text);
        let text = r#"{"id":4,"do":"near","net":"52:54:00:00:00:01","endpoint":"10.0.0.2:4789"}"#;
        assert_eq!(line(&serde_json::from_str(text).unwrap()), text);
        let text = r#"{"id":4,"do":"lan-rate","net":"52:54:00:00:00:01","bits":1000000}"#;
        assert_eq!(line(&serde_json::from_str(text).unwrap()), text);
        let text = r#"{"id":4,"do":"capture","net":"52:54:00:00:00:01","name":"web","filter":"tcp","seconds":60,"bytes_max":1000000}"#;
        assert_eq!(line(&serde_json::from_str(text).unwrap()), text);
        let text = r#"{"id":5,"do":"resize-disk","disk":0,"bytes":1073741824}"#;
        assert_eq!(line(&serde_json::from_str(text).unwrap()), text);
        let text = r#"{"id":5,"do":"lease","until_ms":86400000}"#;
        assert_eq!(line(&serde_json::from_str(text).unwrap()), text);
        let error =
            Response { id: 4, body: ResponseBody::Error(ControlError { code: ErrorCode::Busy, message: "a move is under way".into() }) };
        assert_eq!(serde_json::to_string(&error).unwrap(), r#"{"id":4,"error":{"code":"busy","message":"a move is under way"}}"#);
    }

    #[test]
    fn what_a_newer_program_says_is_skipped_or_refused_in_words() {
        let request = Request::read(br#"{"id":1,"do":"pause","softly":true}"#).unwrap();
        assert_eq!(request, Request::new(1, Command::Pause));
        let request = Request::read(br#"{"id":1,"do":"migrate","streams":2,"colour":"red"}"#).unwrap();
        assert!(matches!(request.command, Command::Migrate(options) if options.streams == 2));

        for line in [&br#"{"id":7,"do":"shrink","to":5}"#[..], br#"{"id":7,"do":"pause","softly":true,"must":["softly"]}"#] {
            let Unread { id, error } = Request::read(line).unwrap_err();
            assert_eq!((id, error.code), (7, ErrorCode::NotKnown));
            assert!(error.message.contains("is older than who asks"), "{error}");
        }
        for line in [&b"{}"[..], b"7", br#"{"id":7,"do":"fdb-add"}"#, br#"{"id":-1,"do":"shrink"}"#] {
            assert_eq!(Request::read(line).unwrap_err().error.code, ErrorCode::BadRequest);
        }
        for name in Command::NAMES {
            let told = Request::read(format!(r#"{{"id":7,"do":"{name}"}}"#).as_bytes());
            assert!(
                told.is_ok_and(|request| request.id == 7)
                    || [
                        "resize-disk",
                        "memory",
                        "fdb-add",
                        "fdb-remove",
                        "peer-key",
                        "peer-key-remove",
                        "underlay",
                        "near",
                        "lan-rate",
                        "capture",
                        "migrate",
                        "lease"
                    ]
                    .contains(&name),
                "{name}"
            );
        }

        let status = r#"{"id":1,"ok":{"status":{"state":"hibernating","epoch":1,"vm":"00","memory_bytes":1,"vcpus":1,"disk_bytes":[],"nets":[],"heat":3}}}"#;
        let status: Response = serde_json::from_str(status).unwrap();
        assert!(matches!(status.body, ResponseBody::Ok(Answer::Status(Status { state: VmState::Other, .. }))));
        let error: Response = serde_json::from_str(r#"{"id":1,"error":{"code":"too_hot","message":"it is"}}"#).unwrap();
        assert!(matches!(error.body, ResponseBody::Error(ControlError { code: ErrorCode::Failed, .. })));
    }

    #[test]
    fn a_client_speaks_with_vmms_of_the_version_before_and_after() {
        let agree = |line: &str| serde_json::from_str::<Hello>(line).unwrap().agree();
        let own = PROTOCOL.highest;
        assert_eq!(agree(r#"{"rebec":"0.0.9","protocol":1}"#), Ok(1));
        assert_eq!(agree(&format!(r#"{{"rebec":"9.9","protocol":{},"from":{own}}}"#, own + 1)), Ok(own));
        let told = agree(&format!(r#"{{"rebec":"9.9","protocol":{},"from":{}}}"#, own + 2, own + 1)).unwrap_err().to_string();
        assert!(told.contains("9.9") && told.contains("start the VM anew"), "{told}");
    }
}
