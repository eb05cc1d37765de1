//! Which uid and gid the sealed process gets, and how it comes by them.
//!
//! Started as root of the machine, each VMM gets a uid of its own that owns nothing: [`OWN_ID_BASE`] plus its process id, in the
//! range that systemd's table of uids leaves unused. Started by anyone else it keeps that user's, which is then all it has.

use std::{fs, io};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    process::{Pid, getegid, geteuid, getpid},
    thread::{CapabilitySet, capabilities},
};

use super::SealError;

/// First of 2^22 ids (as many as there are process ids) between containers' range and 2^31.
const OWN_ID_BASE: u32 = 0x7000_0000;
/// The uid map of a machine's own user namespace: all of them, unchanged.
const WHOLE_MAP: [&str; 3] = ["0", "0", "4294967295"];

/// The ids of the sealed process, the same inside its user namespace and outside.
#[derive(Debug, Clone, Copy)]
pub struct OwnIds {
    pub uid: u32,
    pub gid: u32,
    /// Whether this process may give others any id and make namespaces without a user namespace of its own.
    pub from_root: bool,
}

/// Chooses them.
pub fn choose() -> io::Result<OwnIds> {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID | CapabilitySet::SETGID;
    let map = fs::read_to_string("/proc/self/uid_map")?;
    let from_root = capabilities(None)?.effective.contains(needed) && map.split_whitespace().eq(WHOLE_MAP);
    if !from_root {
        return Ok(OwnIds { uid: geteuid().as_raw(), gid: getegid().as_raw(), from_root });
    }
    // Process ids are positive and below 2^22 (pid_max, proc(5)).
    let own = OWN_ID_BASE | getpid().as_raw_nonzero().get().unsigned_abs();
    Ok(OwnIds { uid: own, gid: own, from_root })
}

/// Makes the next child the first process of a pid namespace. Without root that takes a user namespace first, in which the
/// parent stays who it is.
pub fn begin_pid_namespace(own: &OwnIds) -> Result<(), SealError> {
    if !own.from_root {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|source| SealError::Namespaces { what: "a user namespace", source })?;
        // user_namespaces(7): without privilege the gid map may be written only once setgroups is denied.
        fs::write("/proc/self/setgroups", "deny")
            .and_then(|()| write_maps("/proc/self", own))
            .map_err(|source| SealError::Ids { what: "map its own uid and gid", source })?;
    }
    unshare(CloneFlags::CLONE_NEWPID).map_err(|source| SealError::Namespaces { what: "a pid namespace", source })
}

/// Gives a child that has just made its user namespace its one uid and one gid.
pub fn map_child(child: Pid, own: &OwnIds) -> Result<(), SealError> {
    write_maps(&format!("/proc/{}", child.as_raw_nonzero()), own)
        .map_err(|source| SealError::Ids { what: "map the uid and gid of the sealed process", source })
}

fn write_maps(process: &str, own: &OwnIds) -> io::Result<()> {
    let OwnIds { uid, gid, .. } = own;
    fs::write(format!("{process}/uid_map"), format!("{uid} {uid} 1"))?;
    fs::write(format!("{process}/gid_map"), format!("{gid} {gid} 1"))
}
