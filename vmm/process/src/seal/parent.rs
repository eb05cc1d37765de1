//! The unsealed parent: gives the child its ids, waits for it, passes on the wish that it end, and tidies up behind it.

use std::{
    convert::Infallible,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
};

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

use super::{
    MAPPED, POWER_OFF, STOP, SealError, UNSHARED,
    ids::{OwnIds, map_child},
};

/// What SIGSYS means. The kernel's log has the number of the call and the name of the thread.
const FORBIDDEN_CALL: &str =
    " (SIGSYS): it made a system call that is not on its list; the kernel's log says which (`dmesg | grep type=1326`)";

/// Serves the child to its end, then exits as it did. Returns only if the child could not be set up, and then it is dead.
pub fn wait(
    child: Pid,
    mut channel: UnixStream,
    watched: &SigSet,
    own: OwnIds,
    at_end: Vec<Box<dyn FnOnce()>>,
) -> Result<Infallible, SealError> {
    if let Err(error) = introduce(child, &mut channel, &own) {
        // The child reads the end of the channel and gives up; it prints nothing, the error is told here.
        drop(channel);
        reap(child, true);
        at_end.into_iter().for_each(|tidy| tidy());
        return Err(error);
    }
    let status = serve(child, &mut channel, watched);
    at_end.into_iter().for_each(|tidy| tidy());
    std::process::exit(exit_code(status))
}

/// Maps the child's ids when it asks. A child that ends instead has told why.
fn introduce(child: Pid, channel: &mut UnixStream, own: &OwnIds) -> Result<(), SealError> {
    let mut message = [0];
    let asked = channel.read(&mut message).map_err(SealError::Start)?;
    if asked == 1 && message == [UNSHARED] {
        map_child(child, own)?;
        // A child that is gone by now is found by the wait that follows.
        channel.write_all(&[MAPPED]).ok();
    }
    Ok(())
}

fn serve(child: Pid, channel: &mut UnixStream, watched: &SigSet) -> Option<WaitStatus> {
    loop {
        match watched.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => match reap(child, false) {
                Reaped::Ended(status) => return status,
                Reaped::Runs => {}
            },
            // The child may have just ended, or be so busy that many of them wait; those are enough.
            Ok(signal) => _ = channel.write(&[if signal == Signal::SIGTERM { POWER_OFF } else { STOP }]).ok(),
        }
    }
}

enum Reaped {
    Runs,
    /// None: somebody else (an ignored SIGCHLD) took its exit status.
    Ended(Option<WaitStatus>),
}

fn reap(child: Pid, wait: bool) -> Reaped {
    let options = if wait { WaitOptions::empty() } else { WaitOptions::NOHANG };
    loop {
        match waitpid(Some(child), options) {
            Ok(None) => return Reaped::Runs,
            Ok(Some((_, status))) if status.exited() || status.signaled() => return Reaped::Ended(Some(status)),
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                eprintln!("rebec-vmm: wait for the sealed process: {}", io::Error::from(error));
                return Reaped::Ended(None);
            }
        }
    }
}

fn exit_code(status: Option<WaitStatus>) -> i32 {
    if let Some(signal) = status.and_then(WaitStatus::terminating_signal) {
        let forbidden = if signal == Signal::SIGSYS as i32 { FORBIDDEN_CALL } else { "" };
        eprintln!("rebec-vmm: the sealed process was ended by signal {signal}{forbidden}");
        return 1;
    }
    status.and_then(WaitStatus::exit_status).unwrap_or(1)
}
