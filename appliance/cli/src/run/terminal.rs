//! The user's terminal in raw mode: every key goes to the guest. It is given back when the guard goes, in a panic too.

use std::{
    io::{self, Read as _},
    sync::Mutex,
    thread,
};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use crate::talk;

/// One read of the keyboard: a paste comes in such pieces.
const PIECE_BYTES: usize = 4096;
/// Pieces that wait for a slow link; then the terminal holds the rest.
const PIECES_MAX: usize = 16;

/// The terminal's settings before raw mode. A panic ends the process without unwinding, so its hook must find them.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode for as long as it lives; nothing where standard input is no terminal.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Enters raw mode.
    pub fn enter() -> io::Result<Self> {
        let input = io::stdin();
        if !isatty(&input) {
            return Ok(Self(()));
        }
        let before = tcgetattr(&input)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(before);
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |what| {
            restore();
            usual(what);
        }));
        let guard = Self(());
        tcsetattr(&input, OptionalActions::Flush, &raw)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(before) = before
        && let Err(error) = tcsetattr(io::stdin(), OptionalActions::Drain, &before)
    {
        talk::say(&format!("rebec: the terminal could not be given back ({error}); type `reset`"));
    }
}

/// What the user types, in pieces; the channel closes at the end of the input. The thread ends with the process: a read of
/// a terminal cannot be called off.
pub fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    thread::spawn(move || {
        let mut piece = [0; PIECE_BYTES];
        while let Ok(read @ 1..) = io::stdin().lock().read(&mut piece) {
            if sender.blocking_send(piece[..read].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}
