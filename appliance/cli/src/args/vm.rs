//! The command line of VMs.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum, builder::RangedI64ValueParser};
use rebec_api::vm::{OnHostLoss, StopVm};
use rebec_vmm_api::{CPU_WEIGHT_MAX, CpuQuota, DiskSize, MemorySize, PerSecond};

use super::values::Bytes;

/// `rebec vm ...`
#[derive(Subcommand, Debug)]
pub enum VmCommand {
    /// Create a VM and start it
    Run(Box<RunOptions>),
    /// List the VMs
    Ls,
    /// Show one VM
    Show {
        /// The VM
        name: String,
    },
    /// Sit at the console of a VM; Ctrl-] leaves it
    Console {
        /// The VM
        name: String,
    },
    /// Print what a VM wrote to its console
    Logs {
        /// The VM
        name: String,
        /// Go on printing what it writes
        #[arg(long, short)]
        follow: bool,
        /// Only the last BYTES, as in 4096 or 64K
        #[arg(long, value_name = "BYTES")]
        tail: Option<Bytes>,
    },
    /// Have a VM's guest power itself off; its disk stays
    Stop {
        /// The VM
        name: String,
        /// How long the guest has before its power is cut; 0 cuts at once
        #[arg(long, short, value_name = "SECONDS", default_value_t = StopVm::DEFAULT_TIMEOUT_S, value_parser = timeout())]
        timeout: u32,
        /// Whether to wait
        #[command(flatten)]
        patience: Patience,
    },
    /// Start a VM that does not run, from its disk
    Start {
        /// The VM
        name: String,
        /// Whether to wait
        #[command(flatten)]
        patience: Patience,
    },
    /// Remove a VM that does not run, and its disk
    Rm {
        /// The VM
        name: String,
    },
    /// Change what a VM may take of its host, while it runs or not
    Set(SetOptions),
    /// Make a VM's disk larger, while it runs or not; the guest grows what is on it
    ResizeDisk {
        /// The VM
        name: String,
        /// Its new size, in whole MiB, as in 30G
        size: DiskSize,
        /// Which disk [default: root, the one that stands on the image's]
        #[arg(long, value_name = "DISK")]
        disk: Option<String>,
    },
    /// Further disks of a stopped VM
    #[command(subcommand, arg_required_else_help = false)]
    Disk(DiskCommand),
    /// Move a VM to another host while it runs
    Move(MoveOptions),
    /// Lead a local port to a TCP port of a VM, until Ctrl-C
    Forward {
        /// The VM
        name: String,
        /// TCP port of the guest
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// Where to listen [default: 127.0.0.1 and a port that is free]
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0", hide_default_value = true)]
        listen: SocketAddr,
    },
}

/// Options of `vm set`.
#[derive(Args, Debug)]
pub struct SetOptions {
    /// The VM
    pub name: String,
    /// What is changed
    #[command(flatten)]
    pub limits: LimitOptions,
}

/// What a VM may take: at least one of them is changed.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub struct LimitOptions {
    /// Most time of the host's processors, in percent of one, as in 150%, or none
    #[arg(long, value_name = "PERCENT")]
    pub cpu_quota: Option<CpuQuota>,
    /// Share of the processors where others want them too, from 1 to 10000 [default: 100 for each of its processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(CPU_WEIGHT_MAX)))]
    pub cpu_weight: Option<u32>,
    /// Most bits a second of each NIC, each way, as in 200M, or none
    #[arg(long, value_name = "RATE")]
    pub net: Option<PerSecond>,
    /// Most requests a second of each disk, as in 5000, or none
    #[arg(long, value_name = "RATE")]
    pub disk_iops: Option<PerSecond>,
    /// Most bytes a second of each disk, as in 100M, or none
    #[arg(long, value_name = "RATE")]
    pub disk_bytes: Option<PerSecond>,
    /// Memory, in whole MiB, as in 2G, of a VM that was created with --memory-max
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
}

/// `rebec vm disk ...`
#[derive(Subcommand, Debug)]
pub enum DiskCommand {
    /// Give a stopped VM another disk, which is empty
    Add {
        /// The VM
        vm: String,
        /// What the disk is called
        name: String,
        /// Its size, in whole MiB, as in 10G
        size: DiskSize,
    },
    /// Take a disk from a stopped VM, with all that is on it
    Rm {
        /// The VM
        vm: String,
        /// The disk
        name: String,
    },
}

fn timeout() -> RangedI64ValueParser<u32> {
    RangedI64ValueParser::new().range(..=i64::from(StopVm::TIMEOUT_S_MAX))
}

/// Whether a command ends when its work does.
#[derive(Args, Debug, Clone, Copy, Default)]
pub struct Patience {
    /// Wait until it is done (the default)
    #[arg(long, conflicts_with = "detach")]
    pub wait: bool,
    /// Print the job's name and do not wait
    #[arg(long, short)]
    pub detach: bool,
}

/// Options of `vm run`.
#[derive(Args, Debug)]
pub struct RunOptions {
    /// The VM's name
    pub name: String,
    /// The image it starts from
    #[arg(long)]
    pub image: String,
    /// Guest memory, in whole MiB, as in 512M or 4G
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: MemorySize,
    /// Most memory that it may come to have while it runs (`vm set --memory`); none of it is promised before that [default: it stays as it is]
    #[arg(long, value_name = "SIZE")]
    pub memory_max: Option<MemorySize>,
    /// Virtual CPUs, from 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub vcpus: u8,
    /// What its guest is shown of a processor, and so where it can go: all that its first host gives, what every processor of a level has, or what all
    /// hosts of this domain (or those behind a colon) have in common now
    #[arg(long, value_name = "host|x86-64-v2|x86-64-v3|x86-64-v4|pool|pool:HOST,HOST|only:SET", default_value = "host")]
    pub cpu: String,
    /// Size of its disk, in whole MiB, as in 20G [default: the image's]
    #[arg(long, value_name = "SIZE")]
    pub disk_size: Option<DiskSize>,
    /// LAN to attach a NIC to; may be repeated
    #[arg(long = "lan", value_name = "LAN")]
    pub lans: Vec<String>,
    /// Only on this host [default: the one that suits best]
    #[arg(long)]
    pub host: Option<String>,
    /// Only on a host of this domain
    #[arg(long, conflicts_with = "host")]
    pub domain: Option<String>,
    /// Only on a host with this label (`rebec host set HOST --label NAME=VALUE`); may be repeated
    #[arg(long = "where", value_name = "NAME=VALUE")]
    pub host_labels: Vec<String>,
    /// Label of the VM, for others' affinity; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
    /// Only on a host where this VM is, or one of this domain with the label; may be repeated
    #[arg(long, value_name = "VM|NAME=VALUE")]
    pub affinity: Vec<String>,
    /// On no host where this VM is, or one of this domain with the label; may be repeated
    #[arg(long, value_name = "VM|NAME=VALUE")]
    pub anti_affinity: Vec<String>,
    /// Start nothing: print where the VM would go, and what each host says
    #[arg(long, conflicts_with = "detach")]
    pub explain: bool,
    /// Added to the image's kernel command line
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// The guest's name for itself, with its domain or without, told by a NoCloud seed disk (cloud-init) [default: what is left of the VM's name]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Public key that may log in, or a file of such keys, told by a NoCloud seed disk; may be repeated
    #[arg(long = "ssh-key", value_name = "FILE|KEY")]
    pub ssh_keys: Vec<String>,
    /// User-data for a NoCloud seed disk, as cloud-init takes it: #cloud-config, a script
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// What happens when the VM's host is lost: hold it until the host is back, or restart it elsewhere from its image (its disk's changes are lost)
    #[arg(long, value_name = "WHAT", default_value = "hold")]
    pub on_host_loss: HostLoss,
    /// Whether to wait
    #[command(flatten)]
    pub patience: Patience,
}

impl RunOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        let name = |lan: &String| lan.split(',').next().unwrap_or_default().to_owned();
        let twice = self.lans.iter().map(name).enumerate().find(|(index, lan)| self.lans[..*index].iter().any(|other| name(other) == *lan));
        match twice {
            Some((_, lan)) => Err(format!("--lan `{lan}` is given twice; one NIC on a LAN is enough")),
            None => Ok(()),
        }
    }
}

/// `--on-host-loss`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostLoss {
    /// Only its host, or an operator who declares the host dead, starts it again
    Hold,
    /// Its keeper, a second host of this domain, starts it elsewhere; the VM stands still while its host does not reach the keeper
    Restart,
}

impl From<HostLoss> for OnHostLoss {
    fn from(loss: HostLoss) -> Self {
        match loss {
            HostLoss::Hold => Self::Hold,
            HostLoss::Restart => Self::Restart,
        }
    }
}

/// Options of `vm move`.
#[derive(Args, Debug)]
pub struct MoveOptions {
    /// The VM
    pub name: String,
    /// To this host [default: the one that suits best]
    #[arg(long, value_name = "HOST")]
    pub to: Option<String>,
    /// To the host of this domain that suits best
    #[arg(long, conflicts_with = "to")]
    pub domain: Option<String>,
    /// Parallel streams, from 1 to 16
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub streams: Option<u8>,
    /// Longest pause of the VM that is accepted; the switch waits until less is predicted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=600_000))]
    pub downtime_max_ms: Option<u32>,
    /// Highest rate of the move [default: as fast as the link]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub bandwidth_max_mbit: Option<u32>,
    /// Whether to wait
    #[command(flatten)]
    pub patience: Patience,
}
