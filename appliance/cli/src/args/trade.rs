//! The command line of trade between domains.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use rebec_vmm_api::MemorySize;

use super::values::Span;

/// `rebec policy ...`
#[derive(Subcommand, Debug)]
pub enum PolicyCommand {
    /// Say whether a policy's file is right and what it means, or what is wrong with it, each with line and column
    Check {
        /// The policy's file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Show the domain's policy, and where its broker is
    Show,
    /// Set the domain's policy and make this host its broker; from then on VMs of other domains come by contract alone
    #[command(after_help = "Asked on a host that has the domain's root key: the broker signs contracts with it.")]
    Set {
        /// The policy's file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// `rebec contract ...`
#[derive(Subcommand, Debug)]
pub enum ContractCommand {
    /// List the contracts with other domains
    Ls,
    /// Show one contract and what was said of it
    Show {
        /// The contract, or the first digits of its id
        id: String,
    },
    /// Ask another domain for machines; what both policies allow is signed at once
    Propose(ProposeOptions),
    /// Sign a proposal that waits for an operator
    Accept {
        /// The contract, or the first digits of its id
        id: String,
    },
    /// Call a machine back, as its owner, or give it back
    Recall {
        /// The contract, or the first digits of its id
        id: String,
        /// Why, for the other side and the books
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        reason: String,
    },
}

/// Options of `contract propose`.
#[derive(Args, Debug)]
pub struct ProposeOptions {
    /// The domain that is asked
    pub lender: String,
    /// How many machines, a contract each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub machines: u32,
    /// Memory that each has for VMs, at least
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
    /// Processors that each has, at least
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub vcpus: u32,
    /// Only VMs on this LAN; may be given several times
    #[arg(long = "lan", value_name = "LAN")]
    pub lans: Vec<String>,
    /// Only this VM; may be given several times
    #[arg(long = "vm", value_name = "VM")]
    pub vms: Vec<String>,
}

/// `rebec demand ...`
#[derive(Subcommand, Debug)]
pub enum DemandCommand {
    /// Say what the domain's work wants; it holds for 15 minutes
    Set(DemandOptions),
    /// Run a program again and again, and say what it prints: `squeue --json`, or {"queued": N, "running": N, "widest": N}
    #[command(after_help = "Example: rebec demand follow --every 30s -- squeue --json")]
    Follow {
        /// Between two runs
        #[arg(long, value_name = "TIME", default_value = "60s")]
        every: Span,
        /// So often, and then no more [default: until it is ended]
        #[arg(long, value_name = "N")]
        times: Option<u32>,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
}

/// Options of `demand set`.
#[derive(Args, Debug)]
pub struct DemandOptions {
    /// Machines wanted by work that waits
    pub queued: u32,
    /// Machines wanted by work that runs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub running: u32,
    /// Machines wanted by the widest work that waits
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub widest: u32,
}
