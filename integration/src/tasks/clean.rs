//! `cargo lab clean`: away with what the lab has made, and with what runs that were killed have left.

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{netlab, paths, progress::say};

/// Options of `cargo lab clean`.
#[derive(Debug, Args)]
pub struct Options {
    /// Also remove downloaded packages: the next run fetches them again.
    #[arg(long)]
    all: bool,
}

/// Removes it.
pub fn run(options: &Options) -> Result<ExitCode> {
    // Without root there are no namespaces of ours.
    if rustix::process::geteuid().is_root() {
        let states = netlab::agents::clean()?;
        say("clean", format_args!("{states} state folders of agents that are no more"));
        let count = netlab::clean()?;
        say("clean", format_args!("{count} namespaces of runs that are no more"));
    }
    let mut folders = vec![paths::runs(), paths::images(), paths::lab().join("static")];
    if options.all {
        folders.push(paths::cache());
    }
    for folder in folders {
        remove(&folder)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Ok(()) => say("clean", format_args!("removed {}", folder.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("remove {}", folder.display())),
    }
    Ok(())
}
