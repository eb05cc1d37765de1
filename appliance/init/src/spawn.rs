//! Starting programs and hearing of their end.
//!
//! Orphans of any program become children of this process; all are reaped in one place, so nothing else may wait for a child.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn},
    sys::{
        signal::{SigSet, Signal},
        stat::Mode,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Variables of this process that its children get too: the kernel makes them of words on its command line.
const PASSED_ON: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];

/// Starts a program in a process group of its own, reading nothing and writing to `output`.
pub fn start(program: &str, args: &[&str], output: &OwnedFd) -> io::Result<Pid> {
    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_open(0, "/dev/null", OFlag::O_RDONLY, Mode::empty())?;
    for number in [1, 2] {
        actions.add_dup2(output.as_raw_fd(), number)?;
    }
    let mut attributes = PosixSpawnAttr::init()?;
    // This process blocks its signals and ignores SIGPIPE; a program starts with neither.
    attributes.set_sigmask(&SigSet::empty())?;
    attributes.set_sigdefault(&SigSet::from_iter([Signal::SIGPIPE]))?;
    attributes.set_pgroup(Pid::from_raw(0))?;
    let flags = [PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK, PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF, PosixSpawnFlags::POSIX_SPAWN_SETPGROUP];
    attributes.set_flags(flags.into_iter().collect())?;
    let text = |text: &str| CString::new(text).map_err(io::Error::from);
    let argv = [program].iter().chain(args).map(|word| text(word)).collect::<io::Result<Vec<_>>>()?;
    let mut environment = vec![text("PATH=/usr/bin:/sbin")?, text("HOME=/root")?, text("TERM=linux")?];
    for name in PASSED_ON {
        if let Ok(value) = std::env::var(name) {
            environment.push(text(&format!("{name}={value}"))?);
        }
    }
    Ok(posix_spawn(text(program)?.as_c_str(), &actions, &attributes, &argv, &environment)?)
}

/// A child that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub pid: Pid,
    /// How, in words.
    pub how: String,
}

/// Reaps every child that has ended.
pub fn reap() -> Vec<Ended> {
    let mut ended = Vec::new();
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => ended.push(Ended { pid, how: format!("ended with code {code}") }),
            Ok(WaitStatus::Signaled(pid, signal, _)) => ended.push(Ended { pid, how: format!("was ended by {signal}") }),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use super::*;

    #[test]
    fn a_program_writes_where_it_was_told_and_is_reaped() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let pid = start("/bin/sh", &["-c", "echo out; echo err >&2; exit 3"], &writer).unwrap();
        drop(writer);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "out\nerr\n");
        // Both ends of the pipe are closed a moment before the process can be reaped.
        let ended = loop {
            let ended = reap();
            if !ended.is_empty() {
                break ended;
            }
            std::thread::yield_now();
        };
        assert_eq!(ended, [Ended { pid, how: "ended with code 3".to_owned() }]);
    }
}
