//! The program a guest of the lab runs. `rebec-workload console` owns the serial console until its input ends.

use std::io;

use clap::{Parser, Subcommand};
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};

/// Work that can be checked, ordered over the serial console.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Take orders from standard input, answer on standard output.
    Console,
}

fn main() -> anyhow::Result<()> {
    let Task::Console = Cli::parse().task;
    let stdin = io::stdin();
    if isatty(&stdin) {
        // Without echo and line editing: the other end is a program.
        let mut terminal = tcgetattr(&stdin)?;
        terminal.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &terminal)?;
    }
    rebec_workload::console::serve(stdin.lock(), io::stdout())?;
    Ok(())
}
