//! `rebec-vmm ctl`: says one thing to a running VM and prints what it answers. Data goes to standard output, talk to
//! standard error. This process is not sealed: for a move it makes the connections to the target and passes them on.

mod client;
mod migrate;
mod ports;
mod set;
mod show;

use std::{
    io::{self, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
};

use rebec_vmm_api::{
    control::{Answer, Capture, Command, ControlError, OtherVersion, Status},
    metrics,
};

use self::client::Client;
use crate::{
    cli::{CtlOptions, CtlRequest},
    control::wire::WireError,
    lease,
};

/// Why `ctl` has nothing good to report.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// No VMM at the socket.
    #[error("control socket `{path}` (is the VM running, with --control {path}?)", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something listens, but not a VMM.
    #[error("control socket `{0}`: what listens there is not rebec-vmm")]
    NotRebec(PathBuf),
    /// A VMM of another version.
    #[error("control socket")]
    Version(#[source] OtherVersion),
    /// The VMM said no.
    #[error("{what}")]
    Refused {
        /// The request, in the words of the command line.
        what: &'static str,
        /// Why.
        source: ControlError,
    },
    /// The VMM ended, hung or broke the protocol.
    #[error("{what}: the VMM did not answer; see its messages, and `status` if it still runs")]
    NoAnswer {
        /// The request, in the words of the command line.
        what: &'static str,
        /// How the connection ended.
        source: WireError,
    },
    /// An answer to another question.
    #[error("{what}: the VMM sent an answer that does not fit")]
    Unexpected {
        /// The request, in the words of the command line.
        what: &'static str,
    },
    /// The target of a move.
    #[error("connect to {to} (is `rebec-vmm receive --listen` waiting there?)")]
    Target {
        /// Where.
        to: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A control group.
    #[error("{0}")]
    Group(String),
    /// Standard output is closed or full.
    #[error("write the answer to standard output")]
    Output(#[from] io::Error),
}

/// Connects to another VMM on this host that lends what its VM holds.
pub fn donor_connection(path: &Path) -> Result<UnixStream, CtlError> {
    Client::connect(path)?.donate()
}

/// Carries out one `ctl` command line.
pub fn run(options: &CtlOptions) -> Result<ExitCode, CtlError> {
    let mut client = Client::connect(&options.socket)?;
    let (what, command) = match &options.request {
        CtlRequest::Migrate(to) => return migrate::run(&mut client, to),
        CtlRequest::Status { json } => {
            print(&client.status()?, *json)?;
            return Ok(ExitCode::SUCCESS);
        }
        CtlRequest::Talk { json } => {
            match client.ask("talk", Command::Talk)? {
                Answer::Talk(talk) if *json => writeln!(io::stdout(), "{}", serde_json::to_string(&talk).map_err(io::Error::from)?)?,
                Answer::Talk(talk) => write!(io::stdout(), "{}", show::talk(&talk))?,
                _ => return Err(CtlError::Unexpected { what: "talk" }),
            }
            return Ok(ExitCode::SUCCESS);
        }
        CtlRequest::Metrics { json } => {
            match client.ask("metrics", Command::Metrics)? {
                Answer::Metrics(families) if *json => {
                    writeln!(io::stdout(), "{}", serde_json::to_string(&families).map_err(io::Error::from)?)?;
                }
                Answer::Metrics(families) => write!(io::stdout(), "{}", metrics::text(&families))?,
                _ => return Err(CtlError::Unexpected { what: "metrics" }),
            }
            return Ok(ExitCode::SUCCESS);
        }
        CtlRequest::Near { net, endpoint, other, other_net, other_endpoint } => {
            let mut there = Client::connect(other)?;
            let command = |net, endpoint| Command::Near { net, endpoint };
            ports::near([
                ports::Port { client: &mut client, command: command(*net, *other_endpoint) },
                ports::Port { client: &mut there, command: command(*other_net, *endpoint) },
            ])?;
            return Ok(ExitCode::SUCCESS);
        }
        CtlRequest::Capture { net, out, filter, seconds, max_bytes } => {
            let (filter, bytes_max) = (filter.clone(), max_bytes.bytes());
            ports::capture(&mut client, Capture { net: *net, name: net.to_string(), filter, seconds: *seconds, bytes_max }, out)?;
            return Ok(ExitCode::SUCCESS);
        }
        CtlRequest::Pause => ("pause", Command::Pause),
        CtlRequest::Resume => ("resume", Command::Resume),
        CtlRequest::ResizeDisk { disk, size } => ("resize-disk", Command::ResizeDisk { disk: *disk, bytes: size.bytes() }),
        CtlRequest::Set(to) => return set::run(&mut client, to),
        CtlRequest::PowerButton => ("power-button", Command::PowerButton),
        CtlRequest::Stop => ("stop", Command::Stop),
        CtlRequest::Cancel => ("cancel", Command::Cancel),
        CtlRequest::Lease { for_ms } => ("lease", Command::Lease { until_ms: lease::now_ms().saturating_add(*for_ms) }),
        CtlRequest::FdbAdd { mac, endpoint, ip, name, net } => {
            ("fdb-add", Command::FdbAdd { net: *net, mac: *mac, endpoint: *endpoint, ip: *ip, name: name.clone() })
        }
        CtlRequest::FdbRemove { mac, net } => ("fdb-remove", Command::FdbRemove { net: *net, mac: *mac }),
        CtlRequest::PeerKey { net, endpoint, key, station, trunk, takes_partial } => (
            "peer-key",
            Command::PeerKey { net: *net, endpoint: *endpoint, key: *key, station: *station, trunk: *trunk, takes_partial: *takes_partial },
        ),
        CtlRequest::PeerKeyRemove { net, endpoint } => ("peer-key-remove", Command::PeerKeyRemove { net: *net, endpoint: *endpoint }),
    };
    match client.ask(what, command)? {
        Answer::Done => Ok(ExitCode::SUCCESS),
        _ => Err(CtlError::Unexpected { what }),
    }
}

fn print(status: &Status, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, status)?;
        writeln!(out)
    } else {
        write!(out, "{}", show::table(status))
    }
}

#[cfg(test)]
mod tests;
