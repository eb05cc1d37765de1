//! `rebec vm console`: a real terminal on a VM, which stays through moves.
//!
//! ```text
//! keys  -> until Ctrl-] ->  stream  -> guest        the stream ends when the VM leaves its host; the VM is then asked for
//! screen <-                 stream  <- guest        again, and a new stream opened where it runs now
//! ```

use std::{
    io::{self, Write as _},
    time::Duration,
};

use rebec_api::vm::{VmInfo, VmState};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, split},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::sleep,
};

use super::{
    session::Session,
    terminal::{RawMode, keys},
    vm::{get, waiting},
};
use crate::{
    client::{Raw, path},
    failure::Failure,
    talk,
    text::printable,
};

/// Ctrl-], as in telnet and virsh.
const DETACH: u8 = 0x1d;
/// Between two attempts to find a VM that has left its host.
const ATTEMPT_PERIOD: Duration = Duration::from_millis(200);
/// Attempts for one absence, half a minute: a move ends within its pause, a restarted agent is back in seconds.
const ATTEMPTS_MAX: u32 = 150;

/// How one stream came to its end.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The user has left.
    Detached,
    /// The VM has left its host, or has ended.
    Stream,
}

/// Sits at the console until the user leaves or the VM ends.
pub async fn run(session: &Session, name: &str) -> Result<(), Failure> {
    let at = path(&["vms", name, "console"]);
    let mut stream = open(session, name, &at).await?;
    session.say(&format!("console of vm {name}; Ctrl-] leaves it"));
    let refuse = |error: io::Error| Failure::Here(format!("terminal: {error}"));
    let mut endings = Endings::catch().map_err(refuse)?;
    let raw = RawMode::enter().map_err(refuse)?;
    let mut keys = Some(keys());
    let left = tokio::select! {
        left = sit(session, name, &at, &mut stream, &mut keys) => left,
        () = endings.any() => Ok("interrupted".to_owned()),
    };
    drop(raw);
    talk::raw("\n");
    session.say(&format!("console of vm {name}: {}", left?));
    Ok(())
}

/// Stream after stream, until one ends for good; says why it did.
async fn sit(
    session: &Session,
    name: &str,
    at: &str,
    stream: &mut Raw,
    keys: &mut Option<mpsc::Receiver<Vec<u8>>>,
) -> Result<String, Failure> {
    loop {
        if pump(stream, keys).await? == End::Detached {
            return Ok("left".to_owned());
        }
        match again(session, name, at, keys).await? {
            Some(next) => *stream = next,
            None => return Ok(ended(&get(session, name).await?)),
        }
    }
}

/// Carries bytes both ways until the stream ends or the user leaves.
async fn pump(stream: &mut Raw, keys: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Result<End, Failure> {
    let (mut from, mut to) = split(stream);
    let mut piece = vec![0; 64 << 10];
    loop {
        tokio::select! {
            typed = next_keys(keys) => match typed {
                None => *keys = None,
                Some(typed) => {
                    let sent = typed.split(|byte| *byte == DETACH).next().unwrap_or_default();
                    // A stream that cannot be written to has ended; reading tells so next.
                    drop(to.write_all(sent).await);
                    drop(to.flush().await);
                    if sent.len() < typed.len() {
                        return Ok(End::Detached);
                    }
                }
            },
            read = from.read(&mut piece) => match read {
                Ok(0) | Err(_) => return Ok(End::Stream),
                Ok(read) => {
                    let mut out = io::stdout().lock();
                    out.write_all(&piece[..read])?;
                    out.flush()?;
                }
            },
        }
    }
}

/// The user's next keys; waits for ever once the input has ended.
async fn next_keys(keys: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

/// The VM's next stream, wherever it runs now; none when it has ended or the user has left.
async fn again(session: &Session, name: &str, at: &str, keys: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Result<Option<Raw>, Failure> {
    let mut last = None;
    for _ in 0..ATTEMPTS_MAX {
        tokio::select! {
            opened = open(session, name, at) => match opened {
                Ok(stream) => return Ok(Some(stream)),
                // For a moment it waits in every move, until its new host has been heard.
                Err(failure) => last = Some(failure),
            },
            true = left(keys) => return Ok(None),
        }
        match get(session, name).await {
            Ok(vm) if matches!(vm.state, VmState::Stopped | VmState::Failed | VmState::Lost) => return Ok(None),
            Err(failure @ Failure::Client(_)) if failure.refusal().is_some() => return Err(failure),
            _ => {}
        }
        tokio::select! {
            () = sleep(ATTEMPT_PERIOD) => {}
            true = left(keys) => return Ok(None),
        }
    }
    if let Some(waiting @ Failure::Waiting(_)) = last {
        return Err(waiting);
    }
    let why = last.map_or_else(String::new, |failure| format!(" ({failure})"));
    Err(Failure::Here(format!("vm `{name}`: its console has not come back{why}; `rebec vm show {name}` says where it is")))
}

/// Whether the user leaves while nobody listens; other keys are for nobody.
async fn left(keys: &mut Option<mpsc::Receiver<Vec<u8>>>) -> bool {
    loop {
        match next_keys(keys).await {
            Some(typed) if typed.contains(&DETACH) => return true,
            Some(_) => {}
            None => *keys = None,
        }
    }
}

async fn open(session: &Session, name: &str, at: &str) -> Result<Raw, Failure> {
    match session.client.upgrade(at).await {
        Ok(stream) => Ok(stream),
        Err(error) => match get(session, name).await {
            Ok(vm) if vm.state == VmState::Waiting => Err(Failure::Waiting(waiting(&vm))),
            _ => Err(error.into()),
        },
    }
}

fn ended(vm: &VmInfo) -> String {
    let why = vm.reason.as_deref().map(|reason| format!(" ({})", printable(reason))).unwrap_or_default();
    match vm.state {
        VmState::Stopped => format!("the VM has stopped{why}; `rebec vm start {}` starts it", vm.name),
        VmState::Failed => format!("the VM has failed{why}; `rebec vm start {}` starts it", vm.name),
        VmState::Lost => format!("the VM's host {} does not answer{why}", vm.host),
        _ => "left".to_owned(),
    }
}

/// The signals that ask a process to end. They are caught from here on: the terminal is given back first.
struct Endings([Signal; 3]);

impl Endings {
    fn catch() -> io::Result<Self> {
        let [terminate, hangup, interrupt] = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()].map(signal);
        Ok(Self([terminate?, hangup?, interrupt?]))
    }

    async fn any(&mut self) {
        let [terminate, hangup, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}
