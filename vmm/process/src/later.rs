//! A later version of this program, as the lab plays it: one binary of the lab's has the same library and says first what is different.
//! `rebec-vmm` says nothing, and is what its constants say.

use std::sync::OnceLock;

use rebec_migrate::frame::VERSIONS;
use rebec_vmm_api::{Versions, control::Hello};

/// What a later version does otherwise.
pub struct Later {
    /// What it is called.
    pub rebec: &'static str,
    /// What it speaks on the control socket.
    pub control: Versions,
    /// What it speaks in moves.
    pub moves: Versions,
    /// What it says of a paused machine, to a target of this version of the move protocol.
    pub save: fn(u16, Vec<u8>) -> Vec<u8>,
    /// Takes out again what `save` put in.
    pub restore: fn(&[u8]) -> Vec<u8>,
}

/// Set before anything runs, or never.
static PLAYED: OnceLock<Later> = OnceLock::new();

/// Plays a later version from here on. Belongs first in a process.
pub fn play(later: Later) {
    PLAYED.get_or_init(|| later);
}

/// What is spoken in moves.
pub fn moves() -> Versions {
    PLAYED.get().map_or(VERSIONS, |later| later.moves)
}

/// The first line on a control connection.
pub fn hello() -> Hello {
    PLAYED.get().map_or_else(Hello::current, |later| Hello::of(later.rebec, later.control))
}

/// What is said of a machine, as [`Later::save`].
pub fn saved(version: u16, saved: Vec<u8>) -> Vec<u8> {
    match PLAYED.get() {
        Some(later) => (later.save)(version, saved),
        None => saved,
    }
}

/// What this program understands of what was said of a machine.
pub fn understood(saved: &[u8]) -> Vec<u8> {
    PLAYED.get().map_or_else(|| saved.to_vec(), |later| (later.restore)(saved))
}

#[cfg(test)]
mod tests {
    use rebec_vmm_api::control::PROTOCOL;

    use super::*;

    #[test]
    fn nothing_is_played_by_itself() {
        assert_eq!((moves(), hello()), (VERSIONS, Hello::of(env!("CARGO_PKG_VERSION"), PROTOCOL)));
        assert_eq!((saved(3, vec![1]), understood(&[2])), (vec![1], vec![2]));
    }
}
