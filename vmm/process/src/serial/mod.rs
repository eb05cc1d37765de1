//! Where the guest's first serial port leads: this process's terminal, a file, or a Unix socket. The 16550 itself is
//! `rebec_devices::serial`; here are only bytes.
//!
//! ```text
//! vCPU --write--> [backlog: newest 64 KiB] --serial thread--> stdout | file | whoever is connected
//! SerialPort <--sink------------------------ serial thread <-- stdin | whoever is connected
//! ```
//!
//! A vCPU never waits: it writes into a bounded backlog that drops its oldest bytes, and one thread does all input and output.
//! Everything is opened before sealing; accepting a connection on the socket needs no path.

mod console;
mod terminal;

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
};

use rebec_devices::Threads;
use rebec_vmm_api::SerialConfig;

pub use self::console::Console;
use self::terminal::RawTerminal;
use crate::listen::{self, ListenError, SocketFile, listen};

/// Why a serial backend cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// The file for `file:`.
    #[error("serial `file:{path}`: open for appending", path = path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket for `unix:`.
    #[error("serial")]
    Listen(#[from] ListenError),
    /// Standard input or output.
    #[error("serial `stdio`: {what}")]
    Stdio {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// An opened backend: descriptors and nothing else.
pub struct Backend {
    /// Read from here; none: no input.
    input: Option<OwnedFd>,
    /// Written to here; none: nowhere, or to whoever connects.
    output: Option<OwnedFd>,
    /// People connect here.
    listener: Option<UnixListener>,
    terminal: Option<RawTerminal>,
    socket: Option<(PathBuf, SocketFile)>,
}

impl Backend {
    /// Opens what `--serial` names. A terminal is put into raw mode, and back when the backend or its [`Backend::at_end`] goes.
    pub fn open(config: Option<&SerialConfig>) -> Result<Self, SerialError> {
        let mut backend = Self { input: None, output: None, listener: None, terminal: None, socket: None };
        match config {
            None => {}
            Some(SerialConfig::Stdio) => backend.open_stdio()?,
            Some(SerialConfig::File(path)) => {
                let failed = |source| SerialError::File { path: path.clone(), source };
                backend.output = Some(OpenOptions::new().append(true).create(true).open(path).map(File::into).map_err(failed)?);
            }
            Some(SerialConfig::Unix(path)) => {
                let (listener, file) = listen(path)?;
                backend.listener = Some(listener);
                backend.socket = Some((path.clone(), file));
            }
        }
        Ok(backend)
    }

    fn open_stdio(&mut self) -> Result<(), SerialError> {
        let failed = |what| move |source| SerialError::Stdio { what, source };
        let duplicate = |descriptor: &dyn AsFd, what| descriptor.as_fd().try_clone_to_owned().map_err(failed(what));
        self.output = Some(duplicate(&io::stdout(), "duplicate standard output")?);
        if terminal::may_read(&io::stdin()) {
            self.input = Some(duplicate(&io::stdin(), "duplicate standard input")?);
        }
        self.terminal = RawTerminal::enter(&io::stdin()).map_err(|error| failed("put the terminal into raw mode")(error.into()))?;
        Ok(())
    }

    /// What the unsealed parent does at the end: restores the terminal, removes the socket.
    pub fn at_end(&self) -> Vec<Box<dyn FnOnce()>> {
        let mut tidy: Vec<Box<dyn FnOnce()>> = Vec::new();
        if let Some(terminal) = &self.terminal {
            tidy.push(terminal.restorer());
        }
        if let Some(path) = self.socket.as_ref().map(|(path, _)| path.clone()) {
            tidy.push(Box::new(move || listen::remove(&path)));
        }
        tidy
    }

    /// Starts the serial thread. `quit` is called when the user types Ctrl-A X on a terminal.
    pub fn start(self, threads: &dyn Threads, quit: Box<dyn FnMut() + Send>) -> io::Result<Console> {
        Console::start(self, threads, quit)
    }
}

#[cfg(test)]
mod tests;
