//! What needs no agent: completion scripts, manual pages, the user's key.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap_complete::Shell;

use crate::{
    args,
    failure::{Exit, Failure},
    key, talk,
};

/// Prints the completion script of a shell.
pub fn completion(shell: Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::definition(), "rebec", &mut script);
    match io::Write::write_all(&mut io::stdout(), &script) {
        Ok(()) => Exit::Done,
        Err(error) => Failure::Output(error).tell(),
    }
}

/// Writes a manual page for the program and one for each of its commands.
pub fn man(folder: &Path) -> Exit {
    let written = fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(args::definition(), folder));
    match written {
        Ok(()) => {
            talk::say(&format!("manual pages are in {0}; `man -l {0}/rebec.1` reads the first", folder.display()));
            Exit::Done
        }
        Err(error) => Failure::Here(format!("write manual pages into {}: {error}", folder.display())).tell(),
    }
}

/// Prints the user's key, which is made if there is none.
pub fn user_key(place: Option<PathBuf>, environment: impl Fn(&str) -> Option<String>) -> Exit {
    let key = place.map_or_else(|| key::usual(environment), Ok).and_then(|place| key::open(&place));
    match key {
        Ok(key) => match io::Write::write_all(&mut io::stdout(), format!("{}\n", key::known_as(&key)).as_bytes()) {
            Ok(()) => Exit::Done,
            Err(error) => Failure::Output(error).tell(),
        },
        Err(error) => Failure::Here(error).tell(),
    }
}
