//! Descriptors that the agent may have open: as many as the machine lets it. Each connection is one, each part on its way one or two,
//! each VM some, and the limit that a program begins with is for programs that know no better.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as that goes. Listeners rest where it is reached all the same.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        log::warn!("raise the limit of {} open files: {error}", current.unwrap_or_default());
    }
}
