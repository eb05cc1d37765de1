//! `rebec-elastic`: beside a scheduler, a client of the agent of the domain's broker.

use std::{fs, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use rebec_cli::args::AgentOptions;
use rebec_elastic::{config, run};

const AFTER: &str = "\
The agent is the one where the domain's broker is, named as `rebec` is told it: --socket, or --host-url, --fingerprint and a token of
the role scheduler (`rebec token create elastic --role scheduler`). docs/administrators.md says how the file is written.";

/// Tells the broker what a scheduler's queue wants, and makes nodes of the domain's own and borrowed machines.
#[derive(Parser, Debug)]
#[command(name = "rebec-elastic", version, after_help = AFTER)]
struct Cli {
    #[command(flatten)]
    agent: AgentOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Say whether a file is right, or what is wrong with it, each with line and column
    Check {
        /// The file
        file: PathBuf,
    },
    /// Run until it is ended
    Run {
        /// The file
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (Command::Check { file } | Command::Run { file }) = &cli.command;
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return failed(&format!("{}: {error}", file.display())),
    };
    let config = match config::read(&text) {
        Ok(config) => config,
        Err(mistakes) => {
            mistakes.iter().for_each(|mistake| run::say(&format!("{}:{mistake}", file.display())));
            return ExitCode::FAILURE;
        }
    };
    if let Command::Check { .. } = cli.command {
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("start: {error}")),
    };
    match runtime.block_on(run::run(&config, &cli.agent)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why),
    }
}

fn failed(why: &str) -> ExitCode {
    run::say(why);
    ExitCode::FAILURE
}
