//! The command line of `ctl`: what a user tells a VM that runs.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use rebec_vmm_api::{
    CPU_WEIGHT_MAX, CpuQuota, DiskSize, MacAddr, MemorySize, PerSecond, PortKey,
    control::{Capture, MigrateOptions},
};

/// Options of `ctl`.
#[derive(Args, Debug)]
pub struct CtlOptions {
    /// The VM's control socket
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,
    /// What to tell the VM
    #[command(subcommand)]
    pub request: CtlRequest,
}

/// What `ctl` tells the VM.
#[derive(Subcommand, Debug)]
pub enum CtlRequest {
    /// Show the VM's state, size and counters
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Stop the vCPUs; memory and devices stay as they are
    Pause,
    /// Let a paused VM run on
    Resume,
    /// Make a disk of the VM larger, while it runs; the guest grows what is on it
    ResizeDisk {
        /// Which, from 0, as given
        #[arg(value_name = "N")]
        disk: u8,
        /// Its new size, as in 30G
        #[arg(value_name = "SIZE")]
        size: DiskSize,
    },
    /// Change what the VM may take of its host, while it runs
    Set(SetTo),
    /// Press the VM's power button: its guest turns itself off, if it listens to that
    PowerButton,
    /// End the VM, as if its power were cut
    Stop,
    /// Abandon the move under way; the VM runs on here
    Cancel,
    /// Show who talked to whom since the VMM started, by port and station
    Talk {
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Print what was counted since the VMM started, as Prometheus reads it
    Metrics {
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Let a VM that was started with --lease run for a time from now
    Lease {
        /// In milliseconds, at most an hour; an end that is later stays
        #[arg(value_name = "MS")]
        for_ms: u64,
    },
    /// Tell the VM's ports where a MAC address lives
    FdbAdd {
        /// The station
        #[arg(value_name = "MAC")]
        mac: MacAddr,
        /// Its VXLAN endpoint
        #[arg(value_name = "IP:PORT")]
        endpoint: SocketAddrV4,
        /// Its own IPv4 address: ARP for it is answered at the port
        #[arg(value_name = "ADDRESS")]
        ip: Option<Ipv4Addr>,
        /// What it is called: answered for at ports with a domain
        #[arg(long)]
        name: Option<String>,
        /// The one NIC whose port is told [default: all]
        #[arg(long, value_name = "NET-MAC")]
        net: Option<MacAddr>,
    },
    /// Tell the VM's ports to forget a MAC address
    FdbRemove {
        /// The station; 00:00:00:00:00:00 for every physical machine
        #[arg(value_name = "MAC")]
        mac: MacAddr,
        /// The one NIC whose port is told [default: all]
        #[arg(long, value_name = "NET-MAC")]
        net: Option<MacAddr>,
    },
    /// Tell a port that seals whose key is behind an endpoint
    PeerKey {
        /// The NIC whose port it is
        #[arg(value_name = "NET-MAC")]
        net: MacAddr,
        /// The other port's endpoint
        #[arg(value_name = "IP:PORT")]
        endpoint: SocketAddrV4,
        /// The other port's key, as `ctl status` shows it there
        #[arg(value_name = "KEY")]
        key: PortKey,
        /// The station whose port it is; the NIC's own for another place of this VM [default: stations that no other port has]
        #[arg(long, value_name = "MAC")]
        station: Option<MacAddr>,
        /// It speaks for stations that no other port has, too
        #[arg(long)]
        trunk: bool,
        /// It takes frames whose checksums are left to the seal, as every port of Rebec does
        #[arg(long)]
        takes_partial: bool,
    },
    /// Tell a port that seals to forget whose key is behind an endpoint
    PeerKeyRemove {
        /// The NIC whose port it is
        #[arg(value_name = "NET-MAC")]
        net: MacAddr,
        /// The other port's endpoint
        #[arg(value_name = "IP:PORT")]
        endpoint: SocketAddrV4,
    },
    /// Give two ports of this host a road that is no network: frames between them are neither cut nor sealed
    Near {
        /// The NIC whose port it is
        #[arg(value_name = "NET-MAC")]
        net: MacAddr,
        /// Its endpoint, as the other port knows it
        #[arg(value_name = "IP:PORT")]
        endpoint: SocketAddrV4,
        /// The control socket of the other port's VM
        #[arg(value_name = "OTHER-SOCKET")]
        other: PathBuf,
        /// The NIC whose port that is
        #[arg(value_name = "OTHER-NET-MAC")]
        other_net: MacAddr,
        /// Its endpoint, as this port knows it
        #[arg(value_name = "OTHER-IP:PORT")]
        other_endpoint: SocketAddrV4,
    },
    /// Write what passes a port as pcapng, before it is sealed and after it was opened
    Capture {
        /// The NIC whose port it is
        #[arg(value_name = "NET-MAC")]
        net: MacAddr,
        /// The file; `-` for standard output
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Which frames, as in `tcp and port 80` [default: all]
        #[arg(long, value_name = "WORDS", default_value = "")]
        filter: String,
        /// For how long
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=i64::from(Capture::SECONDS_MAX)))]
        seconds: u32,
        /// How long the file becomes at most, as in 100M
        #[arg(long, value_name = "SIZE", default_value = "64M")]
        max_bytes: DiskSize,
    },
    /// Move the VM, memory and disks, to a waiting `rebec-vmm receive`
    #[command(after_help = "\
The streams are plain TCP: unprotected, neither encrypted nor authenticated.
Progress goes to standard error; one JSON object that says what the move cost goes to standard output.
Exit codes: 0 moved, 1 failed and the VM runs on here, 3 the right to run it waits for the other side.")]
    Migrate(MigrateTo),
}

/// Options of `ctl set`.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub struct SetTo {
    /// Most bits a second of each NIC, each way, as in 200M, or none
    #[arg(long, value_name = "RATE")]
    pub net: Option<PerSecond>,
    /// Most requests a second of each disk, as in 5000, or none
    #[arg(long, value_name = "RATE")]
    pub disk_iops: Option<PerSecond>,
    /// Most bytes a second of each disk, as in 100M, or none
    #[arg(long, value_name = "RATE")]
    pub disk_bytes: Option<PerSecond>,
    /// Memory that the guest is to have, as in 2G, of a VM that was started with --memory-max
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
    /// Most time of the host's processors, in percent of one, as in 150%, or none; by the control group that the VM was started in
    #[arg(long, value_name = "PERCENT")]
    pub cpu_quota: Option<CpuQuota>,
    /// Share of the processors where others want them too, from 1 to 10000; by that control group
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(CPU_WEIGHT_MAX)))]
    pub cpu_weight: Option<u32>,
}

/// Options of `ctl migrate`.
#[derive(Args, Debug)]
pub struct MigrateTo {
    /// Where `rebec-vmm receive --listen` waits
    #[arg(long, value_name = "IP:PORT")]
    pub to: SocketAddr,
    /// Parallel connections for pages and disk, from 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MigrateOptions::STREAMS_MAX)))]
    pub streams: u8,
    /// Longest pause of the VM that is accepted; the switch waits until less is predicted
    #[arg(long, value_name = "N", default_value_t = MigrateOptions::default_downtime_ms(), value_parser = clap::value_parser!(u32).range(1..=600_000))]
    pub downtime_max_ms: u32,
    /// Highest rate of the move [default: as fast as the link]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub bandwidth_max_mbit: Option<u32>,
}
