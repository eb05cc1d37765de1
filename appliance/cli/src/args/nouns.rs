//! The command line of everything but VMs.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use rebec_api::{audit::AuditMark, host::HostRole, token::Role};
use rebec_vmm_api::{DiskSize, PerSecond};

use super::values::{HostKey, Span, TextFrom};

/// `rebec pool ...`
#[derive(Subcommand, Debug)]
pub enum PoolCommand {
    /// Found a pool with this host as its first
    Init {
        /// The pool's name
        name: String,
        /// Name of its first domain, the one this host belongs to
        #[arg(long, value_name = "NAME")]
        domain: String,
    },
    /// Join a pool with a ticket
    #[command(after_help = "A ticket on the command line can be seen by everyone on this host while the command runs: prefer @FILE or -.")]
    Join {
        /// The ticket that `rebec host invite` or `rebec domain invite` printed; @FILE reads a file, - standard input
        #[arg(value_name = "TICKET|@FILE|-")]
        ticket: TextFrom,
    },
    /// Show the pool and how far this host is with it
    Status,
    /// Take this host out of its pool
    Leave,
}

/// `rebec domain ...`
#[derive(Subcommand, Debug)]
pub enum DomainCommand {
    /// Print a ticket; the host that joins with it founds the domain
    Invite {
        /// Name of the domain to found
        name: String,
        /// What the ticket admits
        #[command(flatten)]
        terms: InviteOptions,
    },
    /// List the domains
    Ls,
    /// Copy the domain's root key to a file, or give it to this host from one
    #[command(subcommand)]
    Key(KeyCommand),
}

/// `rebec domain key ...`
#[derive(Subcommand, Debug)]
pub enum KeyCommand {
    /// Write the root key to a new file; who has it can be the domain
    Export {
        /// The file, which must not exist
        file: std::path::PathBuf,
    },
    /// Let this host invite others with the root key from a file
    Import {
        /// The file that `export` wrote
        file: std::path::PathBuf,
    },
}

/// What a ticket admits.
#[derive(Args, Debug, Clone, Copy)]
pub struct InviteOptions {
    /// How many hosts may use the ticket
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: u32,
    /// For how long the ticket is good, as in 30m, 24h or 7d
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub valid: Span,
}

/// `rebec host ...`
#[derive(Subcommand, Debug)]
pub enum HostCommand {
    /// List the hosts
    Ls,
    /// Show one host
    Show {
        /// The host
        name: String,
    },
    /// Print a ticket; a host that joins with it belongs to this host's domain
    Invite {
        /// What the ticket admits
        #[command(flatten)]
        terms: InviteOptions,
        /// What root at a host that joins may do in the domain, also at other hosts
        #[arg(long, value_enum, default_value_t = HostRoleName::Operator)]
        role: HostRoleName,
    },
    /// Say what root at a host may do in the domain, also at other hosts
    SetRole {
        /// The host
        name: String,
        /// What it may from now on: nothing but what is about that machine alone, look, run VMs too, look after hosts, images and LANs
        /// too, or everything
        #[arg(value_enum)]
        role: HostRoleName,
    },
    /// Show how a host reaches the others: the way, how long it takes, what it loses, and what is wrong with it
    Roads {
        /// The host [default: the one that is asked]
        name: Option<String>,
    },
    /// Print what the asked host, its agent and its VMs count, as Prometheus reads it
    Metrics,
    /// Move all VMs away from a host, and give it no new ones
    Drain {
        /// The host
        name: String,
        /// Let it take VMs again
        #[arg(long)]
        undo: bool,
    },
    /// Give a host labels, or take them from it; `rebec vm run --where NAME=VALUE` asks for them
    Set {
        /// The host
        name: String,
        /// Label, as in rack=r1; of one name a host has one; may be repeated
        #[arg(long = "label", value_name = "NAME=VALUE", required_unless_present = "no_labels")]
        labels: Vec<String>,
        /// Name of a label that it loses; may be repeated
        #[arg(long = "no-label", value_name = "NAME")]
        no_labels: Vec<String>,
    },
    /// Say that a silent host does not run any more, so that its VMs may start elsewhere
    #[command(after_help = "\
Only for a host that is off for certain: if it still runs, its VMs run twice and their disks part ways. The reason is
kept for audit.")]
    DeclareDead {
        /// The host
        name: String,
        /// How you know that it does not run
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// `rebec invitation ...`
#[derive(Subcommand, Debug)]
pub enum InvitationCommand {
    /// List the invitations that are open
    Ls,
    /// Take an invitation back; its ticket admits nobody any more
    Revoke {
        /// The invitation, as `rebec invitation ls` lists it
        id: String,
    },
}

/// `rebec image ...`
#[derive(Subcommand, Debug)]
pub enum ImageCommand {
    /// Make an image out of a distribution's disk image, or out of a kernel and what goes with it
    #[command(after_help = "\
Without --kernel a VM starts what the boot loader on its disk says: GRUB, entries of the Boot Loader Specification, unified kernel images,
extlinux. That is read again at each start, so a kernel that the guest installs is what starts next. File systems that are read: ext2 to ext4, FAT.
A file packed by gzip, xz, zstd or bzip2 is unpacked while it is sent.

Example: rebec image import debian debian-13-genericcloud-amd64.qcow2")]
    Import(ImportOptions),
    /// List the images
    Ls,
    /// Show one image, and what starts from it
    Show {
        /// The image
        name: String,
    },
    /// Remove an image
    Rm {
        /// The image
        name: String,
    },
}

/// Options of `image import`.
#[derive(Args, Debug)]
pub struct ImportOptions {
    /// The image's name
    pub name: String,
    /// Disk, raw or qcow2 without a backing file; each VM writes to a layer of its own
    #[arg(value_name = "DISK", required_unless_present_any = ["disk", "kernel"], conflicts_with = "disk")]
    pub file: Option<PathBuf>,
    /// Kernel: a Linux bzImage (a distribution's vmlinuz), or an ELF with a PVH entry [default: what the disk says]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initramfs: Option<PathBuf>,
    /// Kernel command line; without --kernel, what is added to the disk's own
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub cmdline: String,
    /// The disk, by name
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// Let VMs of this other domain start from it too; may be given several times
    #[arg(long = "domain", value_name = "DOMAIN")]
    pub domains: Vec<String>,
}

/// `rebec lan ...`
#[derive(Subcommand, Debug)]
pub enum LanCommand {
    /// Create a LAN
    Create {
        /// The LAN's name
        name: String,
        /// Its addresses, as in 10.5.0.0/24 [default: a range that is free]
        #[arg(long, value_name = "NET/BITS")]
        range: Option<String>,
        /// Let VMs of this other domain be on it too; may be given several times
        #[arg(long = "domain", value_name = "DOMAIN")]
        domains: Vec<String>,
        /// Send frames as plain VXLAN: everybody on the way can read and forge them, and other VXLAN endpoints can take part
        #[arg(long)]
        unsealed: bool,
        /// Largest packet of its VMs, for life; every way between its hosts must carry 96 bytes more [default: 1400]
        #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..=8900))]
        mtu: Option<u16>,
    },
    /// List the LANs
    Ls,
    /// Show one LAN and its ports
    Show {
        /// The LAN
        name: String,
        /// Who talks to whom there, in bytes a second: the last minutes count most
        #[arg(long)]
        matrix: bool,
        /// Write that as a picture, too
        #[arg(long, value_name = "FILE", requires = "matrix")]
        svg: Option<PathBuf>,
    },
    /// Change a LAN, at the host that created it
    Set {
        /// The LAN
        name: String,
        /// Most bits a second of each of its ports, each way, as in 200M, or none
        #[arg(long, value_name = "RATE")]
        rate: PerSecond,
    },
    /// Write what passes the ports of a LAN, or of one VM, into a file for packet dissectors, before it is sealed and after it was opened
    Capture(CaptureOptions),
    /// Remove a LAN
    Rm {
        /// The LAN
        name: String,
    },
}

/// `rebec lan capture`
#[derive(Args, Debug)]
pub struct CaptureOptions {
    /// The LAN, or a VM
    pub name: String,
    /// The file; `-` for standard output
    #[arg(long, value_name = "FILE.pcapng")]
    pub out: PathBuf,
    /// Which frames, as in `tcp and port 80 and not host 10.5.0.9` [default: all]
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub filter: String,
    /// For how long, a day at most
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// How long the file becomes at most, as in 100M
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub max_bytes: DiskSize,
}

/// `rebec token ...`
#[derive(Subcommand, Debug)]
pub enum TokenCommand {
    /// Print a new token; it is shown this once
    #[command(
        after_help = "Without --role the token lets its holder do everything that an admin may, at a host whose root may as much: give one that is enough.\nA token is good at this host; who has a key of their own is a user (`rebec user add`)."
    )]
    Create {
        /// The token's name, to remove it by
        name: String,
        /// What its holder may do: look, run VMs too, run them for a scheduler's queue, look after hosts, images and LANs too, or everything
        #[arg(long, value_enum, default_value_t = RoleName::Admin)]
        role: RoleName,
        /// For how long the token is good, as in 12h or 30d [default: until it is removed]
        #[arg(long, value_name = "TIME")]
        valid: Option<Span>,
    },
    /// List the tokens
    Ls,
    /// Remove a token; who holds it is let in no more
    Rm {
        /// The token's name
        name: String,
    },
}

/// `rebec user ...`
#[derive(Subcommand, Debug)]
pub enum UserCommand {
    /// Print your key, for whoever is to give it a role; it is made if there is none
    Key,
    /// Give a key a role in this host's domain, or another name, role or end
    #[command(after_help = "Asked on a host that has the domain's root key. A user of another domain is added by its key in the same way.")]
    Add {
        /// The user's name, unique in the domain
        name: String,
        /// The user's key, as `rebec user key` prints it
        #[arg(long, value_name = "HEX")]
        key: HostKey,
        /// What the user may do: look, run VMs too, run them for a scheduler's queue, look after hosts, images and LANs too, or everything
        #[arg(long, value_enum, default_value_t = RoleName::User)]
        role: RoleName,
        /// For how long, as in 12h or 30d [default: until the user is removed]
        #[arg(long, value_name = "TIME")]
        valid: Option<Span>,
    },
    /// List the users of the domain
    Ls,
    /// Take a user's role back
    Rm {
        /// The user
        name: String,
    },
}

/// What root at a host may do in its domain, the least first.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostRoleName {
    /// What is about that machine alone
    None,
    /// Looks
    Viewer,
    /// Runs VMs
    User,
    /// Runs VMs for a scheduler's queue, and says what that wants
    Scheduler,
    /// Looks after hosts, images and LANs
    Operator,
    /// Decides who belongs to the domain
    Admin,
}

impl From<HostRoleName> for HostRole {
    fn from(name: HostRoleName) -> Self {
        match name {
            HostRoleName::None => Self::None,
            HostRoleName::Viewer => Self::Viewer,
            HostRoleName::User => Self::User,
            HostRoleName::Scheduler => Self::Scheduler,
            HostRoleName::Operator => Self::Operator,
            HostRoleName::Admin => Self::Admin,
        }
    }
}

/// What a user, or the holder of a token, may do, the least first.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleName {
    /// Looks
    Viewer,
    /// Runs VMs
    User,
    /// Runs VMs for a scheduler's queue, and says what that wants
    Scheduler,
    /// Looks after hosts, images and LANs
    Operator,
    /// Decides who belongs to the domain
    Admin,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Viewer => Self::Viewer,
            RoleName::User => Self::User,
            RoleName::Scheduler => Self::Scheduler,
            RoleName::Operator => Self::Operator,
            RoleName::Admin => Self::Admin,
        }
    }
}

/// `rebec audit`, `rebec audit verify`
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AuditOptions {
    /// How many rows, the last ones
    #[arg(long, value_name = "N", default_value_t = rebec_api::audit::TAIL, value_parser = clap::value_parser!(u32).range(1..=i64::from(rebec_api::audit::TAIL_MAX)))]
    pub tail: u32,
    /// Something else than showing rows
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
}

/// `rebec audit ...`
#[derive(Subcommand, Debug)]
pub enum AuditCommand {
    /// Say whether the log is the one that was written, or the first row that is wrong
    Verify {
        /// A row that was noted elsewhere, as `rebec host show` on another host says
        #[arg(long, value_name = "ROW:HASH")]
        known: Option<AuditMark>,
    },
}

/// `rebec job ...`
#[derive(Subcommand, Debug)]
pub enum JobCommand {
    /// List the jobs
    Ls,
    /// Show one job
    Show {
        /// The job
        id: String,
    },
}

/// Options of `support-bundle`.
#[derive(Args, Debug)]
pub struct BundleOptions {
    /// Where to; - is standard output
    #[arg(long, value_name = "FILE", default_value = "rebec-support.tar")]
    pub out: PathBuf,
}

/// Options of `completion`.
#[derive(Args, Debug)]
pub struct CompletionOptions {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Options of `man`.
#[derive(Args, Debug)]
pub struct ManOptions {
    /// Folder that the pages are written into
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}
