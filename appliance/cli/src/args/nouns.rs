//! The command line of everything but VMs.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use rebec_api::{audit::AuditMark, token::Role};

use super::values::{Span, TextFrom};

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
    },
    /// Move all VMs away from a host, and give it no new ones
    Drain {
        /// The host
        name: String,
        /// Let it take VMs again
        #[arg(long)]
        undo: bool,
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
    /// Make an image out of files
    Import(ImportOptions),
    /// List the images
    Ls,
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
    /// Kernel: a Linux bzImage (a distribution's vmlinuz), or an ELF with a PVH entry
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub cmdline: String,
    /// Disk, raw or qcow2 without a backing file; each VM writes to a layer of its own
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
    },
    /// List the LANs
    Ls,
    /// Show one LAN and its ports
    Show {
        /// The LAN
        name: String,
    },
    /// Remove a LAN
    Rm {
        /// The LAN
        name: String,
    },
}

/// `rebec token ...`
#[derive(Subcommand, Debug)]
pub enum TokenCommand {
    /// Print a new token; it is shown this once
    #[command(after_help = "Without --role the token lets its holder do everything that root at this host may: give one that is enough.")]
    Create {
        /// The token's name, to remove it by
        name: String,
        /// What its holder may do: look, run VMs too, look after hosts, images and LANs too, or everything
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

/// What a token's holder may do, the least first.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleName {
    /// Looks
    Viewer,
    /// Runs VMs
    User,
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
