//! A terminal that belongs to the guest: raw mode, and the two keys that still belong to this process.

use std::{
    io::{self, IsTerminal, Stdin},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    io::Errno,
    process::getpgrp,
    termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcgetpgrp, tcsetattr},
};

/// Ctrl-A, as in other monitors: announces a command.
const ESCAPE: u8 = 0x01;

/// Whether reading is allowed: a terminal gives its input to the foreground job only.
pub fn may_read(stdin: &Stdin) -> bool {
    !stdin.is_terminal() || in_foreground(stdin.as_fd())
}

fn in_foreground(terminal: BorrowedFd<'_>) -> bool {
    tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())
}

/// A terminal in raw mode, restored on drop.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Raw input, so that every key (Ctrl-C too) reaches the guest; output still turns newlines into line starts, for the
    /// messages of this process. None if this is no terminal, or not ours.
    pub fn enter(stdin: &Stdin) -> Result<Option<Self>, Errno> {
        if !stdin.is_terminal() || !in_foreground(stdin.as_fd()) {
            return Ok(None);
        }
        let before = tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        tcsetattr(stdin, OptionalActions::Now, &raw)?;
        eprintln!("rebec-vmm: this terminal is the guest's serial port; Ctrl-A X ends the VM, Ctrl-A Ctrl-A sends Ctrl-A");
        Ok(Some(Self { before }))
    }

    /// Restores the terminal from another process that has it as standard input.
    pub fn restorer(&self) -> Box<dyn FnOnce()> {
        let before = self.before.clone();
        Box::new(move || restore(&before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore(&self.before);
    }
}

fn restore(before: &Termios) {
    if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, before) {
        log::warn!("restore the terminal: {error}; `reset` does");
    }
}

/// Finds the user's commands to this process among the guest's input.
#[derive(Default)]
pub struct Commands {
    announced: bool,
}

impl Commands {
    /// Removes commands from `input`; true if the user wants to end the VM.
    pub fn take_from(&mut self, input: &mut Vec<u8>) -> bool {
        let mut quit = false;
        input.retain(|byte| {
            if std::mem::take(&mut self.announced) {
                quit |= matches!(byte, b'x' | b'X');
                return !matches!(byte, b'x' | b'X');
            }
            self.announced = *byte == ESCAPE;
            !self.announced
        });
        quit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_across_reads_and_nothing_else_is_lost() {
        let mut commands = Commands::default();
        let mut typed = |text: &[u8]| {
            let mut input = text.to_vec();
            let quit = commands.take_from(&mut input);
            (input, quit)
        };
        assert_eq!(typed(b"ls -l\r"), (b"ls -l\r".to_vec(), false));
        assert_eq!(typed(b"\x03x"), (b"\x03x".to_vec(), false));
        assert_eq!(typed(b"a\x01\x01b\x01"), (b"a\x01b".to_vec(), false));
        assert_eq!(typed(b"xc"), (b"c".to_vec(), true));
        assert_eq!(typed(b"x\x01X"), (b"x".to_vec(), true));
    }
}
