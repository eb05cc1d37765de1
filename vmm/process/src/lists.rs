//! Compiles the lists of system calls and puts them in force: that of the process when it is sealed, a thread's own when it begins.
//!
//! ```text
//! seal()                    the process's list, and the one that hides clone3      every thread inherits both
//! a thread with a role      its role's list on top                                 the kernel asks all three
//! ```
//! A list can be added to a thread and never taken from it.

use std::{collections::BTreeMap, sync::OnceLock};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    apply_filter,
};

use crate::calls::{ABSENT, Call, Look, PROCESS, Role, When};

/// The lists of threads to come; set when the process has its own.
static ROLES: OnceLock<BTreeMap<Role, BpfProgram>> = OnceLock::new();

/// All lists, compiled.
pub struct Lists {
    absent: BpfProgram,
    process: BpfProgram,
    roles: BTreeMap<Role, BpfProgram>,
}

impl Lists {
    /// Compiles them.
    pub fn compile() -> Result<Self, BackendError> {
        let roles = Role::ALL.into_iter().map(|role| Ok((role, allowing(role.list())?))).collect::<Result<_, BackendError>>()?;
        let no_such_call = SeccompAction::Errno(libc::ENOSYS as u32);
        Ok(Self { absent: program(&[ABSENT], no_such_call, SeccompAction::Allow)?, process: allowing(PROCESS)?, roles })
    }

    /// Puts the process's list in force, for good. The process has one thread.
    pub fn enforce(self) -> Result<(), seccompiler::Error> {
        apply_filter(&self.absent)?;
        apply_filter(&self.process)?;
        ROLES.get_or_init(|| self.roles);
        Ok(())
    }
}

/// Whether the lists are in force.
pub fn in_force() -> bool {
    ROLES.get().is_some()
}

/// Narrows this thread to its role's list. A thread that cannot be narrowed must not begin: the process ends.
pub fn narrow(role: Role) {
    let Some(list) = ROLES.get().and_then(|roles| roles.get(&role)) else { return };
    if let Err(error) = apply_filter(list) {
        log::error!("sandbox: a thread's list of system calls: {error}; the VM ends");
        std::process::exit(1);
    }
}

fn allowing(groups: &[&[Call]]) -> Result<BpfProgram, BackendError> {
    program(groups, SeccompAction::Allow, SeccompAction::KillProcess)
}

/// The program that answers `listed` to what is in one of the groups.
fn program(groups: &[&[Call]], listed: SeccompAction, unlisted: SeccompAction) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in groups.iter().flat_map(|group| group.iter()) {
        rules.entry(call.number).or_default().extend(rules_of(&call.when)?);
    }
    SeccompFilter::new(rules, unlisted, listed, TargetArch::x86_64)?.try_into()
}

fn rules_of(when: &When) -> Result<Vec<SeccompRule>, BackendError> {
    match when {
        When::Always => Ok(vec![]),
        When::All(looks) => Ok(vec![SeccompRule::new(looks.iter().map(condition).collect::<Result<_, _>>()?)?]),
        When::OneOf(argument, values) => {
            let is = |value: &u32| SeccompRule::new(vec![condition(&Look::Is(*argument, *value))?]);
            values.iter().map(is).collect()
        }
    }
}

fn condition(look: &Look) -> Result<SeccompCondition, BackendError> {
    let (argument, comparison, value) = match *look {
        Look::Is(argument, value) => (argument, SeccompCmpOp::Eq, value),
        Look::Bits { argument, mask, set } => (argument, SeccompCmpOp::MaskedEq(mask.into()), set),
    };
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, value.into())
}

#[cfg(test)]
mod tests {
    use libc::*;
    use rebec_kvm::requests::{KVM_RUN, KVM_SIGNAL_MSI, MACHINE};
    use seccompiler::sock_filter;

    use super::*;
    use crate::calls::KICK_SIGNAL;

    const ALLOW: u32 = 0x7fff_0000;
    const KILL_PROCESS: u32 = 0x8000_0000;
    const NO_SUCH_CALL: u32 = 0x0005_0000 | ENOSYS as u32;
    const X86_64: u32 = 0xc000_003e;

    /// What the kernel would answer: runs a program over a call, as far as compiled lists need it (bpf(4), seccomp(2)).
    fn answer(program: &[sock_filter], number: c_long, arguments: &[u64]) -> u32 {
        let mut data = vec![number as u32, X86_64, 0, 0];
        data.extend((0..6).flat_map(|at| arguments.get(at).map_or([0, 0], |value| [*value as u32, (*value >> 32) as u32])));
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let choose = |condition| usize::from(if condition { jt } else { jf });
            match code {
                0x20 => accumulator = data[k as usize / 4],
                0x54 => accumulator &= k,
                0x05 => at += k as usize,
                0x15 => at += choose(accumulator == k),
                0x25 => at += choose(accumulator > k),
                0x35 => at += choose(accumulator >= k),
                0x06 => return k,
                other => panic!("an instruction that lists do not have: {other:#x}"),
            }
        }
    }

    /// Of the answers of all lists on a thread the strictest.
    fn says(role: Option<Role>, number: c_long, arguments: &[u64]) -> u32 {
        let lists = Lists::compile().unwrap();
        let answers = [Some(&lists.absent), Some(&lists.process), role.map(|role| &lists.roles[&role])];
        let answers: Vec<u32> = answers.into_iter().flatten().map(|program| answer(program, number, arguments)).collect();
        // The kernel compares the actions as signed numbers (seccomp_run_filters).
        answers.into_iter().min_by_key(|answer| *answer as i32).unwrap()
    }

    fn every_thread() -> impl Iterator<Item = Option<Role>> {
        Role::ALL.into_iter().map(Some).chain([None])
    }

    #[test]
    fn what_no_vmm_needs_ends_it() {
        let calls = [
            SYS_socket,
            SYS_socketpair,
            SYS_connect,
            SYS_bind,
            SYS_listen,
            SYS_open,
            SYS_openat2,
            SYS_open_by_handle_at,
            SYS_creat,
            SYS_execve,
            SYS_execveat,
            SYS_fork,
            SYS_vfork,
            SYS_ptrace,
            SYS_mount,
            SYS_move_mount,
            SYS_fsopen,
            SYS_unshare,
            SYS_setns,
            SYS_bpf,
            SYS_io_uring_setup,
            SYS_io_uring_register,
            SYS_userfaultfd,
            SYS_keyctl,
            SYS_add_key,
            SYS_perf_event_open,
            SYS_kill,
            SYS_tkill,
            SYS_pidfd_open,
            SYS_pidfd_getfd,
            SYS_process_vm_readv,
            SYS_process_vm_writev,
            SYS_pkey_mprotect,
            SYS_dup2,
            SYS_chmod,
            SYS_unlink,
            SYS_setuid,
            SYS_capset,
            SYS_arch_prctl,
            SYS_personality,
            SYS_modify_ldt,
            SYS_init_module,
            SYS_kexec_load,
            SYS_splice,
            SYS_vmsplice,
            SYS_shmget,
            SYS_getdents64,
        ];
        for (role, number) in every_thread().flat_map(|role| calls.map(|number| (role, number))) {
            assert_eq!(says(role, number, &[]), KILL_PROCESS, "{role:?}: call {number}");
        }
        // The same number in the x32 table, and another architecture's tables.
        assert_eq!(says(None, SYS_read | 0x4000_0000, &[]), KILL_PROCESS);
    }

    #[test]
    fn arguments_are_looked_at() {
        let rw = (PROT_READ | PROT_WRITE) as u64;
        let own = (MAP_PRIVATE | MAP_ANONYMOUS) as u64;
        let thread = 0x3d_0f00;
        for (expected, number, arguments) in [
            (ALLOW, SYS_mmap, &[0, 4096, rw, MAP_SHARED as u64][..]),
            (KILL_PROCESS, SYS_mmap, &[0, 4096, rw | PROT_EXEC as u64, own]),
            (ALLOW, SYS_mprotect, &[0, 4096, rw]),
            (KILL_PROCESS, SYS_mprotect, &[0, 4096, (PROT_READ | PROT_EXEC) as u64]),
            (ALLOW, SYS_clone, &[thread]),
            (KILL_PROCESS, SYS_clone, &[SIGCHLD as u64]),
            (KILL_PROCESS, SYS_clone, &[thread | CLONE_NEWUSER as u64]),
            (NO_SUCH_CALL, SYS_clone3, &[]),
            (NO_SUCH_CALL, SYS_openat, &[]),
            (KILL_PROCESS, SYS_ioctl, &[0, TIOCSTI]),
            (KILL_PROCESS, SYS_ioctl, &[0, TCGETS]),
            (KILL_PROCESS, SYS_prctl, &[PR_SET_DUMPABLE as u64, 1]),
            (KILL_PROCESS, SYS_seccomp, &[SECCOMP_SET_MODE_FILTER.into(), SECCOMP_FILTER_FLAG_NEW_LISTENER]),
            (KILL_PROCESS, SYS_setpriority, &[PRIO_USER.into(), 0, 0]),
            (KILL_PROCESS, SYS_tgkill, &[1, 2, SIGKILL as u64]),
            (KILL_PROCESS, SYS_rt_sigaction, &[SIGSYS as u64]),
            (KILL_PROCESS, SYS_setsockopt, &[3, SOL_SOCKET as u64, SO_ATTACH_FILTER as u64]),
            (KILL_PROCESS, SYS_statx, &[AT_FDCWD as u64, 1, 0]),
            (KILL_PROCESS, SYS_fcntl, &[3, F_SETOWN as u64]),
        ] {
            assert_eq!(says(None, number, arguments), expected, "call {number} with {arguments:x?}");
        }
    }

    #[test]
    fn roles_are_narrow() {
        let machine = [Role::Vcpu].as_slice();
        let interrupts = [Role::Vcpu, Role::Net, Role::Disk, Role::Memory].as_slice();
        let anonymous = (MAP_PRIVATE | MAP_ANONYMOUS) as u64;
        for (number, arguments, allowed) in [
            (SYS_clone, &[0x3d_0f00][..], &[][..]),
            (SYS_seccomp, &[SECCOMP_SET_MODE_FILTER.into()], &[]),
            (SYS_accept4, &[], &[]),
            (SYS_memfd_create, &[], &[]),
            (SYS_tgkill, &[1, 2, KICK_SIGNAL.into()], &[]),
            (SYS_mmap, &[0, 4096, 3, MAP_SHARED as u64], &[]),
            (SYS_mmap, &[0, 4096, 3, anonymous], &Role::ALL),
            (SYS_recvmsg, &[], &[Role::Net, Role::Client]),
            (SYS_sendto, &[], &[Role::Stream, Role::Client]),
            (SYS_pwrite64, &[], &[Role::Disk, Role::Stream]),
            (SYS_fallocate, &[], &[Role::Disk, Role::Memory, Role::Stream]),
            (SYS_io_uring_enter, &[], &[Role::Disk]),
            (SYS_ioctl, &[0, KVM_RUN.into()], machine),
            (SYS_ioctl, &[0, KVM_SIGNAL_MSI.into()], interrupts),
        ] {
            for role in Role::ALL {
                let expected = if allowed.contains(&role) { ALLOW } else { KILL_PROCESS };
                assert_eq!(says(Some(role), number, arguments), expected, "{role:?}: call {number} with {arguments:x?}");
            }
            assert_eq!(says(None, number, arguments), ALLOW, "call {number} with {arguments:x?}");
        }
        for (role, request) in Role::ALL.into_iter().flat_map(|role| MACHINE.map(|request| (role, request))) {
            assert_eq!(says(Some(role), SYS_ioctl, &[0, request.into()]), KILL_PROCESS, "{role:?}: request {request:#x}");
        }
    }

    /// A line without a condition beside one with would be lost without a word.
    #[test]
    fn no_list_says_always_and_sometimes_of_one_call() {
        for groups in Role::ALL.map(Role::list).into_iter().chain([PROCESS, &[ABSENT]]) {
            let calls: Vec<&Call> = groups.iter().flat_map(|group| group.iter()).collect();
            for (one, other) in calls.iter().flat_map(|one| calls.iter().map(move |other| (one, other))) {
                let alike = matches!(one.when, When::Always) == matches!(other.when, When::Always);
                assert!(one.number != other.number || alike, "call {}", one.number);
            }
        }
    }

    /// What a role may and the process may not is a line that does nothing.
    #[test]
    fn the_process_may_all_that_its_threads_may() {
        let process: Vec<c_long> = PROCESS.iter().flat_map(|group| group.iter()).map(|call| call.number).collect();
        for role in Role::ALL {
            assert!(role.list().iter().flat_map(|group| group.iter()).all(|call| process.contains(&call.number)), "{role:?}");
        }
    }

    #[test]
    fn the_kick_signal_is_what_the_crate_that_kicks_says() {
        assert_eq!(KICK_SIGNAL as i32, rebec_kvm::kick_signal());
    }

    #[test]
    fn threads_are_known_by_name() {
        for (name, role) in [
            ("vcpu0", Some(Role::Vcpu)),
            ("vcpu15", Some(Role::Vcpu)),
            ("virtio-net", Some(Role::Net)),
            ("forward", Some(Role::Net)),
            ("virtio-blk", Some(Role::Disk)),
            ("virtio-rng", Some(Role::Disk)),
            ("virtio-mem", Some(Role::Memory)),
            ("virtio-balloon", Some(Role::Memory)),
            ("move-0", Some(Role::Stream)),
            ("move-control", Some(Role::Stream)),
            ("control-client", Some(Role::Client)),
            ("move-ahead", None),
            ("control", None),
            ("move", None),
            ("threads", None),
        ] {
            assert_eq!(Role::of(name), role, "{name}");
        }
    }
}
