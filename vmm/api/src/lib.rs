//! What callers say to a VMM, and what it answers.
//!
//! Words only: the values a user writes on the command line (`NetConfig`, `DiskConfig`, `SerialConfig`, `MemorySize`, `DhcpLease`, `Handle`),
//! the lines of the control socket (`control`), the report that ends a move (`report`), what is said of a kernel or disk (`judgement`), what is counted (`metrics`),
//! and numbers of protocols (`versions`). Nothing here opens, runs or
//! decides; `docs/formats/control.md` is the prose of the same contract.

pub mod cgroup;
pub mod config;
pub mod control;
pub mod dhcp_lease;
pub mod handle;
pub mod judgement;
pub mod mac;
mod memory;
pub mod metrics;
pub mod port_key;
mod ports;
pub mod report;
pub mod versions;

pub use cgroup::{CPU_WEIGHT_MAX, CpuQuota, CpuQuotaError};
pub use config::{DiskConfig, DiskSize, MemorySize, NetConfig, Peer, PerSecond, SerialConfig, dns_name};
pub use dhcp_lease::{DhcpLease, DhcpLeaseError};
pub use handle::Handle;
pub use mac::MacAddr;
pub use port_key::{InvalidPortKey, PortKey};
pub use report::{MoveReport, Outcome, UnitCounts};
pub use versions::Versions;
