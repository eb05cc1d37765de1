//! The overlay of a LAN: what one port does with its guest's frames and with the datagrams of others. Pure.
//!
//! A port is the only VXLAN endpoint (RFC 7348) of one guest NIC. This crate turns guest frames into runs of datagrams and datagrams into
//! guest frames; it has no socket, clock, thread or randomness. Its driver (`vmm/process/src/lan`) owns the socket and passes bytes,
//! time and the control thread's forwarding database in. The modules are in the order in which a frame travels:
//!
//! ```text
//! transmit  guest frame + Offload -> frame (views) -> guard (may it?) -> addresses (what is the guest's own) -> local (ARP, discovery, DHCP and DNS answered here)
//!           -> fdb (where to) -> storm (not too much to all) -> segment (cut, checksum) -> vxlan (header) -> batch (equal stride, one sendmsg a run) -> seal (in place) -> Wire
//! receive   datagrams of one recvmsg -> seal (opened in place) -> inbound (whose) -> vxlan -> guard (has the sender this station?) -> port (switch, learn)
//!           -> join (segments of one flow) -> guest frame + Offload
//! near      guest frame + Offload -> near (one record, as it is) ~~ a socket pair of this host ~~ near -> guard -> guest frame + Offload
//! moved     datagrams of one recvmsg -> relay -> Wire                       the old place, for some seconds
//! ```
//!
//! Everything that arrives is hostile: what is malformed is dropped and counted by [`Reason`], nothing panics, every table has a limit.
//! `docs/formats/lan.md` draws the bytes.

pub mod addresses;
pub mod announce;
pub mod batch;
pub mod capture;
pub mod checksum;
pub mod config;
pub mod counters;
pub mod dhcp;
pub mod discovery;
pub mod dns;
pub mod fdb;
pub mod frame;
pub mod groups;
pub mod guard;
pub mod inbound;
pub mod join;
pub mod local;
pub mod near;
pub mod port;
pub mod relay;
pub mod reply;
pub mod seal;
pub mod segment;
pub mod storm;
pub mod talk;
pub mod vxlan;

pub use batch::Wire;
pub use config::{PortConfig, Zone};
pub use counters::{Counters, Reason};
pub use fdb::{FarPort, Fdb, FdbError};
pub use inbound::Inbound;
pub use port::{Port, Ready};
pub use relay::Relay;
pub use seal::Seals;
pub use talk::{Talk, Traffic};
