//! `rebec`: what a user types becomes requests to an agent, and what the agent answers becomes text.
//!
//! The road: [`args`] parses the command line, [`client`] carries requests to the agent on its Unix socket or over TLS,
//! `run` holds one file per noun of the command line, [`text`] turns answers into tables and lines. Nothing is decided
//! here: the agent decides, and its reasons are shown. Data goes to standard output, talk to standard error.

pub mod args;
mod chance;
pub mod client;
mod failure;
mod key;
mod pcapng;
mod run;
mod talk;
pub mod text;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use rebec_agent::Later;

use self::{
    args::{Command, NoCommand, PolicyCommand, UserCommand},
    client::Target,
    failure::{Exit, Failure},
};

/// A client of the agent that options and environment name, for programs beside the command line; nothing is connected yet, unless a user's key signs.
///
/// # Errors
/// One line.
pub async fn client_of(options: &args::AgentOptions) -> Result<client::Client, String> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let target = Target::choose(options, environment)?;
    let key = key::place(options, &target, environment)?;
    let client = client::Client::new(target);
    match key {
        Some(key) => client.signed_by(key::open(&key)?).await.map_err(|error| error.to_string()),
        None => Ok(client),
    }
}

/// Carries out one command line and says how it ended.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    main_as(arguments, None)
}

/// The same, whose agent plays a later version: the lab's.
pub fn main_as(arguments: impl IntoIterator<Item = OsString>, later: Option<Later>) -> ExitCode {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let parsed = args::parse_from(arguments).and_then(|cli| {
        let target = Target::choose(&cli.agent, environment).map_err(NoCommand::Usage)?;
        let key = key::place(&cli.agent, &target, environment).map_err(NoCommand::Usage)?;
        Ok((cli, target, key))
    });
    let exit = match parsed {
        Err(NoCommand::Answered(text)) => match io::stdout().write_all(text.as_bytes()) {
            Ok(()) => Exit::Done,
            Err(error) => Failure::Output(error).tell(),
        },
        Err(NoCommand::Usage(message)) => {
            talk::say(&format!("rebec: {message}"));
            Exit::Usage
        }
        Ok((cli, target, key)) => match cli.command {
            Command::Agent(options) => run::serve::agent(*options, cli.agent.socket, later),
            Command::Completion(shell) => run::offline::completion(shell.shell),
            Command::Man(folder) => run::offline::man(&folder.folder),
            Command::Policy(PolicyCommand::Check { file }) => run::policy::check(&file, cli.json),
            Command::Simulate(options) => run::simulate::run(&options, cli.json),
            Command::User(UserCommand::Key) => run::offline::user_key(key, environment),
            command => run::with_agent(command, target, key, cli.json),
        },
    };
    ExitCode::from(exit.code())
}
