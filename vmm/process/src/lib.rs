//! `rebec-vmm`: one process, one VM. The road: `cli` -> `open` -> `seal` -> `vm` -> `owner`, which hears `control` and
//! lends the VM to `moving`. Frames take `lan`, the console takes `serial`.

mod boot_plan;
mod calls;
mod cgroup;
mod cli;
mod control;
mod cpu;
mod ctl;
mod departure;
mod digests;
mod event;
mod heard;
mod held;
mod judge;
mod lan;
mod later;
mod lease;
mod ledger;
mod lending;
mod limits;
mod listen;
mod lists;
mod logging;
mod meters;
mod moving;
mod open;
mod owner;
mod receive;
mod run;
mod seal;
mod serial;
mod services;
mod threads;
mod unpack;
mod unsettled;
mod vm;

use std::process::ExitCode;

use crate::cli::{Command, NoCommand};
pub use crate::later::{Later, play};

/// Something went wrong; the chain of causes was printed.
const FAILED: u8 = 1;
/// The command line makes no sense.
const USAGE: u8 = 2;

/// Carries out the command line of this process.
pub fn main() -> ExitCode {
    logging::start();
    let command = match cli::parse() {
        Ok(command) => command,
        Err(NoCommand::Answered(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(NoCommand::Usage(message)) => {
            eprintln!("rebec-vmm: {message}");
            return ExitCode::from(USAGE);
        }
    };
    carry_out(&command).unwrap_or_else(|error| {
        eprintln!("rebec-vmm: {error:#}");
        ExitCode::from(FAILED)
    })
}

fn carry_out(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(options) => options.shared.enter().and_then(|()| run::run(options)),
        Command::Receive(options) => options.shared.enter().and_then(|()| receive::run(options)),
        Command::Ctl(options) => Ok(ctl::run(options)?),
        Command::Unpack(options) => unpack::run(options),
        Command::Digests(options) => digests::run(options),
        Command::Judge(options) => judge::run(options),
        Command::Cpu(options) => cpu::run(options),
        Command::SealSelfTest(options) => seal::self_test::run(options),
    }
}
