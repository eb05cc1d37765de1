//! Carries out command lines: one file per noun. Each asks the agent, and prints what it answered.

mod audit;
mod capture;
mod console;
mod forward;
mod host;
mod image;
mod job;
mod lan;
mod logs;
pub mod offline;
pub mod policy;
mod pool;
mod progress;
pub mod serve;
mod session;
pub mod simulate;
mod spot;
mod support;
mod terminal;
mod token;
mod trade;
mod travel;
mod user;
mod vm;

use std::path::PathBuf;

use crate::{
    args::{Command, VmCommand},
    client::{Client, Target},
    failure::{Exit, Failure},
    run::session::Session,
};

/// Carries out a command that asks an agent.
pub fn with_agent(command: Command, target: Target, key: Option<PathBuf>, json: bool) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::Here(format!("start: {error}")).tell(),
    };
    let done = runtime.block_on(async {
        let client = match key {
            Some(key) => Client::new(target).signed_by(crate::key::open(&key).map_err(Failure::Here)?).await?,
            None => Client::new(target),
        };
        carry_out(&Session { client, json }, command).await
    });
    // A thread may still read the terminal; the process ends without it.
    runtime.shutdown_background();
    done.map_or_else(|failure| failure.tell(), |()| Exit::Done)
}

async fn carry_out(session: &Session, command: Command) -> Result<(), Failure> {
    match command {
        Command::Pool(command) => pool::pool(session, command).await,
        Command::Domain(command) => pool::domain(session, command).await,
        Command::Invitation(command) => pool::invitation(session, command).await,
        Command::Host(command) => host::run(session, command).await,
        Command::Image(command) => image::run(session, command).await,
        Command::Lan(command) => lan::run(session, command).await,
        Command::Vm(VmCommand::Console { name }) => console::run(session, &name).await,
        Command::Vm(VmCommand::Logs { name, follow, tail }) => logs::run(session, &name, follow, tail).await,
        Command::Vm(VmCommand::Forward { name, port, listen }) => forward::run(session, &name, port, listen).await,
        Command::Vm(VmCommand::Move(options)) => travel::run(session, &options).await,
        Command::Vm(command) => vm::run(session, command).await,
        Command::User(command) => user::run(session, command).await,
        Command::Token(command) => token::run(session, command).await,
        Command::Audit(options) => audit::run(session, &options).await,
        Command::Job(command) => job::run(session, command).await,
        Command::SupportBundle(options) => support::run(session, &options).await,
        Command::Policy(command) => trade::policy(session, command).await,
        Command::Contract(command) => trade::contract(session, command).await,
        Command::Demand(command) => trade::demand(session, command).await,
        Command::Plan => trade::plan(session).await,
        Command::Why { vm } => trade::why(session, &vm).await,
        Command::Account => trade::account(session).await,
        // These ask nobody; the caller has carried them out.
        Command::Agent(_) | Command::Completion(_) | Command::Man(_) | Command::Simulate(_) => Ok(()),
    }
}
