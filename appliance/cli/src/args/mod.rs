//! The command line: what a user writes becomes a [`Cli`], or one line that says what is wrong with it. Nothing is opened here.

pub mod agent;
mod nouns;
mod simulate;
mod trade;
pub mod values;
mod vm;

#[cfg(test)]
mod tests;

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand, error::ErrorKind};

use self::values::HostKey;
pub use self::{nouns::*, simulate::*, trade::*, vm::*};

const ABOUT: &str = "Runs virtual machines on a pool of hosts, and moves them while they run.";

const AFTER: &str = "\
The agent of this host is asked, on its Unix socket, as root. With --host-url and --fingerprint an agent elsewhere is
asked, over TLS 1.3 pinned to its host's key: commands are signed with your key (`rebec user key`), to which an admin gives
a role with `rebec user add`, or carry the token in --token-file. The environment may say the same: REBEC_SOCKET, or
REBEC_URL and REBEC_FINGERPRINT, and REBEC_USER_KEY or REBEC_TOKEN.

From nothing to a VM that moved:
  a1$ rebec pool init lab --domain alpha        a1$ rebec host invite           (prints a ticket)
  a2$ rebec pool join TICKET
  a1$ rebec image import debian debian-13-genericcloud-amd64.qcow2
  a1$ rebec lan create office                   a1$ rebec vm run web --image debian --lan office
  a1$ rebec vm console web                      a1$ rebec vm move web --to a2

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the agent does not answer, 4 a VM whose ownership waits for
the other side of a move.";

/// What the user asked for.
#[derive(Parser, Debug)]
#[command(name = "rebec", version, about = ABOUT, after_help = AFTER, disable_help_subcommand = true, arg_required_else_help = false)]
pub struct Cli {
    /// Print answers as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Which agent is asked
    #[command(flatten)]
    pub agent: AgentOptions,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Which agent is asked.
#[derive(Args, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Which agent")]
pub struct AgentOptions {
    /// The agent's Unix socket [default: /run/rebec/agent.sock]
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "host_url")]
    pub socket: Option<PathBuf>,
    /// An agent elsewhere, as its status screen shows it
    #[arg(long, global = true, value_name = "https://ADDRESS:PORT")]
    pub host_url: Option<String>,
    /// Key of that agent's host, as its status screen shows it
    #[arg(long, global = true, value_name = "HEX")]
    pub fingerprint: Option<HostKey>,
    /// File with a token of that agent, made by `rebec token create`
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// File with your key, which signs what you ask; made at first need [default: ~/.config/rebec/user.key, for an agent elsewhere]
    #[arg(long, global = true, value_name = "FILE")]
    pub user_key: Option<PathBuf>,
}

/// The nouns of the command line.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Found, join, see or leave a pool
    #[command(subcommand, arg_required_else_help = false)]
    Pool(PoolCommand),
    /// Domains of the pool
    #[command(subcommand, arg_required_else_help = false)]
    Domain(DomainCommand),
    /// Hosts of the pool
    #[command(subcommand, arg_required_else_help = false)]
    Host(HostCommand),
    /// Invitations that are open
    #[command(subcommand, arg_required_else_help = false)]
    Invitation(InvitationCommand),
    /// Images: what a VM starts from
    #[command(subcommand, arg_required_else_help = false)]
    Image(ImageCommand),
    /// LANs: the private networks of VMs
    #[command(subcommand, arg_required_else_help = false)]
    Lan(LanCommand),
    /// Virtual machines
    #[command(subcommand, arg_required_else_help = false)]
    Vm(VmCommand),
    /// Users of the domain: keys that sign commands
    #[command(subcommand, arg_required_else_help = false)]
    User(UserCommand),
    /// Tokens that let a client in over TCP
    #[command(subcommand, arg_required_else_help = false)]
    Token(TokenCommand),
    /// What was asked of this host, and what was decided
    Audit(AuditOptions),
    /// Long work and its progress
    #[command(subcommand, arg_required_else_help = false)]
    Job(JobCommand),
    /// Policies of lending and borrowing between domains
    #[command(subcommand, arg_required_else_help = false)]
    Policy(PolicyCommand),
    /// Contracts with other domains about machines
    #[command(subcommand, arg_required_else_help = false)]
    Contract(ContractCommand),
    /// What the domain's work wants, for its broker
    #[command(subcommand, arg_required_else_help = false)]
    Demand(DemandCommand),
    /// Show what the domain's broker would do now, and what not, with reasons
    Plan,
    /// Say why a VM is where it is
    Why {
        /// The VM
        vm: String,
    },
    /// Show what was lent and borrowed, by contract and month
    Account,
    /// What trade between domains would have done to the jobs of real clusters
    Simulate(Box<SimulateOptions>),
    /// Run the agent of this host: it owns the host's VMs, disks and part of the pool
    Agent(Box<agent::ServeOptions>),
    /// Write what is needed to look into a problem to a tar file; no keys, tickets or tokens are in it
    SupportBundle(BundleOptions),
    /// Print the completion script of a shell
    Completion(CompletionOptions),
    /// Write manual pages into a folder
    Man(ManOptions),
}

/// Why there is no command to carry out.
#[derive(Debug)]
pub enum NoCommand {
    /// The user asked for help or the version: this text answers, and the exit code is 0.
    Answered(String),
    /// The command line is wrong: one line, and the exit code is 2.
    Usage(String),
}

/// Reads a command line, the program's name first.
pub fn parse_from(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, NoCommand> {
    let cli = Cli::try_parse_from(arguments).map_err(no_command)?;
    cli.check().map(|()| cli).map_err(NoCommand::Usage)
}

/// The definition of the command line, for completion and manual pages.
pub fn definition() -> clap::Command {
    Cli::command()
}

impl Cli {
    fn check(&self) -> Result<(), String> {
        match &self.command {
            Command::Vm(VmCommand::Run(run)) => run.check(),
            Command::Simulate(options) => options.check(),
            _ => Ok(()),
        }
    }
}

/// clap answers in paragraphs with hints; programs and logs want one line, people the sentence that matters.
fn no_command(error: clap::Error) -> NoCommand {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return NoCommand::Answered(text);
    }
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let sentence = words.join(" ");
    NoCommand::Usage(format!("{}; see --help", sentence.strip_prefix("error: ").unwrap_or(&sentence)))
}
