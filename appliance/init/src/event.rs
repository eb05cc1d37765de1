//! What the machine's loop hears of: from the terminals, the power button, signals and the agent. Who sees it sends it; only the loop acts.

use nix::sys::signal::Signal;

use crate::volumes::Volumes;

/// What the loop hears of.
pub enum Event {
    /// The agent wrote its screen anew.
    Screen,
    /// A signal arrived.
    Signal(Signal),
    /// The machine's power button was pressed.
    PowerButton,
    /// A disk for state has come.
    StateDisk(Volumes),
    /// A line was typed.
    Typed {
        /// Where.
        console: usize,
        /// What.
        line: String,
    },
    /// A program that was started for a console wrote a line.
    Said {
        /// For which.
        console: usize,
        /// What.
        line: String,
    },
}
