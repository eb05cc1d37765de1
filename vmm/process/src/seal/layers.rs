//! What the child takes from itself, in the order that keeps each step possible: first what needs capabilities, then they go.

use std::{
    ffi::CStr,
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
};

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use nix::sched::{CloneFlags, unshare};
use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
    },
    net::{RecvFlags, recv},
    process::{
        DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid, chdir, chroot, fchdir, pivot_root, set_dumpable_behavior,
        set_parent_process_death_signal, setrlimit,
    },
    thread::{
        CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};

use super::{MAPPED, SealError, UNSHARED, ids::OwnIds};

/// Descriptors: a machine's files and eight clients that pass 17 each, with room.
const DESCRIPTORS_MAX: u64 = 1024;
/// Threads of this uid: 16 vCPUs, two for each of 15 devices, a move's and the control connections', twice over.
const THREADS_MAX: u64 = 256;

/// Applies every layer; gives back the channel, on which from now on only a stop arrives.
pub fn apply(mut parent: UnixStream, own: OwnIds) -> Result<UnixStream, SealError> {
    let own_namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let what = "user, mount, network, IPC and UTS namespaces";
    unshare(own_namespaces).map_err(|source| SealError::Namespaces { what, source })?;
    await_ids(&mut parent)?;
    become_own(&own)?;
    forbid_more_user_namespaces();
    empty_root()?;
    drop_capabilities()?;
    limit()?;
    landlock()?;
    die_with(&parent)?;
    Ok(parent)
}

fn await_ids(parent: &mut UnixStream) -> Result<(), SealError> {
    let mut message = [0];
    parent.write_all(&[UNSHARED]).map_err(|_| SealError::Orphaned)?;
    match parent.read(&mut message) {
        Ok(1) if message == [MAPPED] => Ok(()),
        // The parent could not write the maps and says so itself.
        _ => std::process::exit(1),
    }
}

/// Switches to the mapped ids. Capabilities in the new user namespace survive it: its uid 0 is not mapped.
fn become_own(own: &OwnIds) -> Result<(), SealError> {
    let failed = |what| move |source: Errno| SealError::Ids { what, source: source.into() };
    let (uid, gid) = (Uid::from_raw(own.uid), Gid::from_raw(own.gid));
    if own.from_root {
        set_thread_groups(&[]).map_err(failed("leave root's groups"))?;
    }
    set_thread_res_gid(gid, gid, gid).map_err(failed("take the gid of the sealed process"))?;
    set_thread_res_uid(uid, uid, uid).map_err(failed("take the uid of the sealed process"))
}

/// A process without capabilities gains them all in a new user namespace, which opens much of the kernel to it. This needs a
/// writable /proc/sys, which containers may lack: the layers below hold without it.
fn forbid_more_user_namespaces() {
    if let Err(error) = std::fs::write("/proc/sys/user/max_user_namespaces", "0") {
        log::debug!("sandbox: user namespaces inside it stay possible: {error}");
    }
}

/// Makes an empty read-only file system the root and lets go of the old one.
fn empty_root() -> Result<(), SealError> {
    const EMPTY: &CStr = c"";
    let failed = |what| move |source| SealError::Root { what, source };
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(failed("make mounts private"))?;
    let config = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("open tmpfs"))?;
    for (key, value) in [(c"size", c"4096"), (c"nr_inodes", c"2"), (c"mode", c"0555")] {
        fsconfig_set_string(&config, key, value).map_err(failed("configure tmpfs"))?;
    }
    fsconfig_create(&config).map_err(failed("create tmpfs"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&config, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mount tmpfs"))?;
    move_mount(&root, EMPTY, CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed("attach tmpfs"))?;
    fchdir(&root).map_err(failed("enter tmpfs"))?;
    match pivot_root(c".", c".") {
        // The old root now lies on top of the new one at "."; letting it go leaves nothing but tmpfs (pivot_root(2)).
        Ok(()) => unmount(c".", UnmountFlags::DETACH).map_err(failed("let the old root go"))?,
        // The initial ramfs cannot be pivoted away from: it stays below, covered, and no path leads there.
        Err(Errno::INVAL) => chroot(c".").map_err(failed("chroot"))?,
        Err(error) => return Err(failed("pivot")(error)),
    }
    chdir(c"/").map_err(failed("enter the new root"))
}

fn drop_capabilities() -> Result<(), SealError> {
    let failed = |what| move |source| SealError::Process { what, source };
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(false) => {}
            Ok(true) => remove_capability_from_bounding_set(capability).map_err(failed("empty the capability bounding set"))?,
            // Numbers above the kernel's last capability are invalid.
            Err(_) => break,
        }
    }
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(locked).map_err(failed("lock the secure bits"))?;
    clear_ambient_capability_set().map_err(failed("clear ambient capabilities"))?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).map_err(failed("drop capabilities"))?;
    set_no_new_privs(true).map_err(failed("set no_new_privs"))
}

fn limit() -> Result<(), SealError> {
    // No core: it would hold the guest's memory.
    for (what, resource, most) in [
        ("limit core files", Resource::Core, 0),
        ("limit descriptors", Resource::Nofile, DESCRIPTORS_MAX),
        ("limit threads", Resource::Nproc, THREADS_MAX),
    ] {
        let inherited = rustix::process::getrlimit(resource).maximum;
        let most = inherited.map_or(most, |inherited| inherited.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(|source| SealError::Process { what, source })?;
    }
    Ok(())
}

/// Handles every access there is and allows none. What the first version knew is required, the rest as far as the kernel goes.
fn landlock() -> Result<(), SealError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V9))?
        .handle_access(AccessNet::from_all(ABI::V9))?
        .scope(Scope::from_all(ABI::V9))?
        .create()?
        .restrict_self()?;
    Ok(())
}

/// The last step, since every change of ids or capabilities undoes it (prctl(2), PR_SET_PDEATHSIG).
fn die_with(parent: &UnixStream) -> Result<(), SealError> {
    let failed = |what| move |source| SealError::Process { what, source };
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("make itself undumpable"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("tie its life to its parent's"))?;
    // A parent that died before that closed its end of the channel.
    match recv(parent.as_fd(), &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, 0)) => Err(SealError::Orphaned),
        _ => Ok(()),
    }
}
