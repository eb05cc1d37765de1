//! Orders and answers of the serial console, one JSON object a line each way.
//!
//! ```text
//! host   {"id":3,"do":"serve","port":5001}
//! guest  {"id":3,"ok":"done"}                    or  {"id":3,"error":"port 5001: address in use"}
//! ```
//! An order that comes twice with the same id is carried out once and answered twice, so that a host which heard no
//! answer (a line lost in a move) may simply repeat it.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

/// Longest line either side accepts.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// One order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Chosen by the host, repeated in the answer.
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub what: What,
}

/// What a workload can be told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum What {
    /// Are you there?
    Hello,
    /// Accept transfers on a TCP port.
    Serve {
        /// The port.
        port: u16,
    },
    /// Begin a transfer.
    Send {
        /// The server.
        to: SocketAddrV4,
        /// How fast, in kilobits per second.
        kbit: u32,
    },
    /// End the transfer in an orderly way: both ends then know its last sequence number and checksum.
    StopSend,
    /// Begin to ping.
    Ping {
        /// Whom.
        to: Ipv4Addr,
        /// How often, in milliseconds.
        every_ms: u64,
    },
    /// Begin a new phase: pings and clocks are told apart by it.
    Phase {
        /// Its name.
        name: String,
    },
    /// Begin to write blocks.
    Write {
        /// The file.
        file: String,
        /// How many 4 KiB blocks it has.
        blocks: u64,
        /// Blocks written between two calls of fsync.
        batch: u64,
        /// Batches a second, at most.
        batches_per_second: u32,
    },
    /// Stop writing; then read all that was acknowledged from the disk.
    VerifyDisk,
    /// Hold a pattern in memory. If one of this size is held already, go on with it at this rate.
    Hold {
        /// How much, in MiB.
        mib: u64,
        /// Pages given a new pattern each second.
        rewrites_per_second: u32,
    },
    /// Stop rewriting; then check every page.
    VerifyMemory,
    /// Begin to watch the clocks.
    WatchClocks,
    /// What is CLOCK_REALTIME? A short answer, because a long one takes long on a slow serial port.
    Now,
    /// Move CLOCK_REALTIME.
    StepClock {
        /// By so much, in nanoseconds.
        by_ns: i64,
    },
    /// Tell what happened so far.
    Report,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The order's.
    pub id: u64,
    /// Its outcome.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How an order went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, with what was asked for.
    Ok(Told),
    /// Not done.
    Error(String),
}

/// What an answer tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Nothing but success.
    Done,
    /// CLOCK_REALTIME in nanoseconds.
    Now(u64),
    /// To verifications.
    Verified(Verified),
    /// To `report`.
    Report(Box<Report>),
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Blocks or pages checked.
    pub checked: u64,
    /// How many were wrong.
    pub wrong: u64,
    /// The first wrong one, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
}

/// Everything a workload knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The receiving end of transfers.
    pub server: Option<ServerReport>,
    /// The sending end of the transfer.
    pub sender: Option<SenderReport>,
    /// One for each target pinged.
    pub pings: Vec<PingReport>,
    /// The writer of blocks.
    pub disk: Option<DiskReport>,
    /// The pattern in memory.
    pub memory: Option<MemoryReport>,
    /// The clocks, if they are watched.
    pub clock: Option<ClockReport>,
}

/// The receiving end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerReport {
    /// Connections accepted since the start.
    pub connections: u64,
    /// The connection's name, chosen at random by the sender.
    pub nonce: String,
    /// Blocks received in order, each checked.
    pub blocks: u64,
    /// Checksum over all of them.
    pub checksum: String,
    /// Blocks that were out of order or not what they should be.
    pub wrong: u64,
    /// Why the connection ended, if it did.
    pub ended: Option<String>,
}

/// The sending end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SenderReport {
    /// The connection's name.
    pub nonce: String,
    /// Blocks sent.
    pub blocks: u64,
    /// Checksum over all of them.
    pub checksum: String,
    /// Blocks whose checksum the server has confirmed.
    pub confirmed: u64,
    /// Confirmations that disagreed.
    pub wrong: u64,
    /// Longest time between two confirmations while something was under way.
    pub longest_wait_ms: u64,
    /// Why the connection ended, if it did.
    pub ended: Option<String>,
}

/// Pings to one target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PingReport {
    /// Whom.
    pub to: String,
    /// In order.
    pub phases: Vec<PingPhase>,
}

/// Pings of one phase.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PingPhase {
    /// The phase.
    pub name: String,
    /// Sent, and long enough ago to be judged.
    pub sent: u64,
    /// Never answered.
    pub lost: u64,
    /// Never answered and not sent within the longest silence.
    pub lost_outside_silence: u64,
    /// Longest time without any answer arriving.
    pub longest_silence_ms: f64,
    /// Half of the answers took at most this long.
    pub median_ms: f64,
}

/// The writer of blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Writes acknowledged by fsync.
    pub acknowledged: u64,
    /// Longest fsync.
    pub longest_sync_ms: u64,
    /// Why writing ended, if it did by itself.
    pub failed: Option<String>,
}

/// The pattern in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Pages held.
    pub pages: u64,
    /// Pages given a new pattern so far.
    pub rewrites: u64,
}

/// The clocks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReport {
    /// Looks at CLOCK_MONOTONIC.
    pub looks: u64,
    /// How often it was behind an earlier look, on any processor.
    pub steps_back: u64,
    /// Longest time between two looks in this phase.
    pub longest_stall_ms: u64,
    /// CLOCK_MONOTONIC of this answer.
    pub monotonic_ns: u64,
    /// CLOCK_REALTIME of this answer.
    pub realtime_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_as_documented() {
        let order = Order { id: 3, what: What::Serve { port: 5001 } };
        assert_eq!(serde_json::to_string(&order).unwrap(), r#"{"id":3,"do":"serve","port":5001}"#);
        let answer = Answer { id: 3, outcome: Outcome::Ok(Told::Done) };
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"id":3,"ok":"done"}"#);
        let report = Answer { id: 4, outcome: Outcome::Ok(Told::Report(Box::default())) };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), report);
        let error: Answer = serde_json::from_str(r#"{"id":5,"error":"no"}"#).unwrap();
        assert_eq!(error.outcome, Outcome::Error("no".into()));
    }
}
