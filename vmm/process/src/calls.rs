//! The system calls of a sealed process, as lists to read: one for all of it, and a shorter one for each kind of thread that a guest, a
//! network or a client reaches first. What is on no list ends the process. `lists` compiles and applies them.
//!
//! A call that needs no look at its arguments costs next to nothing: the kernel knows beforehand that it is allowed. For the others the
//! list is walked, in which [`KVM_RUN`] is the first of the ioctls.

use std::ffi::c_long;

use libc::{
    AT_EMPTY_PATH, F_ADD_SEALS, F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, FIONBIO, IPPROTO_TCP, MAP_ANONYMOUS, PR_SET_NAME, PR_SET_NO_NEW_PRIVS,
    PRIO_PROCESS, PROT_EXEC, SECCOMP_SET_MODE_FILTER, SIGABRT, SIGBUS, SIGSEGV, SO_DOMAIN, SO_ERROR, SO_KEEPALIVE, SO_RCVTIMEO,
    SO_SNDTIMEO, SO_TYPE, SOL_SOCKET, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_NODELAY, TCP_USER_TIMEOUT, TCSETS, TCSETS2,
};
use rebec_kvm::requests::{KVM_IOEVENTFD, KVM_RUN, KVM_SIGNAL_MSI, MACHINE, VCPU};

/// One line of a list.
pub struct Call {
    /// Of the x86-64 table.
    pub number: c_long,
    pub when: When,
}

/// Which of its uses.
pub enum When {
    Always,
    /// All these looks find what they shall.
    All(&'static [Look]),
    /// This argument is one of these.
    OneOf(u8, &'static [u32]),
}

/// A look at an argument, by its number. All that are looked at are integers or flags of 32 bits, and the kernel takes no more of them.
pub enum Look {
    /// It is this.
    Is(u8, u32),
    /// Of the bits of a mask these are set and no others.
    Bits { argument: u8, mask: u32, set: u32 },
}

/// Which list a thread takes beside that of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Runs the guest, and what the guest's accesses make devices do at once.
    Vcpu,
    /// Serves a network card, or sends on what comes for one that has moved.
    Net,
    /// Serves a disk or the source of randomness.
    Disk,
    /// Serves the devices by which memory comes and goes.
    Memory,
    /// Reads or writes a connection of a move, or serves the disks behind it.
    Stream,
    /// Talks to a client of the control socket.
    Client,
}

impl Role {
    pub const ALL: [Self; 6] = [Self::Vcpu, Self::Net, Self::Disk, Self::Memory, Self::Stream, Self::Client];

    /// By the name of the thread. The others make threads or machines, kick vCPUs (`move-ahead`: only where KVM can map memory ahead), or do
    /// nothing that could be made less.
    pub fn of(thread: &str) -> Option<Self> {
        let kind = thread.trim_end_matches(|character: char| character.is_ascii_digit());
        match kind {
            "vcpu" => Some(Self::Vcpu),
            "virtio-net" | "forward" => Some(Self::Net),
            "virtio-blk" | "virtio-rng" => Some(Self::Disk),
            "virtio-mem" | "virtio-balloon" => Some(Self::Memory),
            "move-" | "move-control" | "move-flush" | "move-donor" | "lender" => Some(Self::Stream),
            "control-client" => Some(Self::Client),
            _ => None,
        }
    }

    /// All that threads of this kind may call.
    pub fn list(self) -> &'static [&'static [Call]] {
        match self {
            Self::Vcpu => &[ABSENT, LIVING, OWN_MEMORY, &[VCPU_REQUESTS, EVENTFD, DUPLICATE]],
            Self::Net => &[ABSENT, LIVING, OWN_MEMORY, WAITING, MESSAGES, &[RAISING]],
            Self::Disk => &[ABSENT, LIVING, OWN_MEMORY, WAITING, FILES, &[RAISING, RING]],
            // What goes is cut out of the memory file; what may be reached is a matter of mprotect.
            Self::Memory => &[ABSENT, LIVING, OWN_MEMORY, WAITING, &[RAISING, CUTTING]],
            Self::Stream => &[ABSENT, LIVING, OWN_MEMORY, FILES, STREAMS],
            Self::Client => &[ABSENT, LIVING, OWN_MEMORY, STREAMS, MESSAGES, &[DUPLICATE, SOCKET_TYPE]],
        }
    }
}

/// All that a sealed process may call: what the roles may, and what makes machines and threads.
pub const PROCESS: &[&[Call]] = &[
    ABSENT,
    LIVING,
    WAITING,
    FILES,
    STREAMS,
    MESSAGES,
    MACHINES,
    ACCEPTING,
    THREADS,
    &[VCPU_REQUESTS, RAISING, RING, EVENTFD, DUPLICATE, SOCKET_TYPE],
];

/// What libraries try and do well without; answered with "no such call" and never carried out. They are allowed in the other lists for
/// that reason alone: of several answers the kernel takes the strictest.
pub const ABSENT: &[Call] = &[
    // Threads are then made by `clone`, whose flags can be looked at.
    always(libc::SYS_clone3),
    // malloc looks up the number of processors when many threads allocate, and then asks for its affinity instead.
    always(libc::SYS_openat),
    // Backtraces look for the program's file.
    always(libc::SYS_readlink),
    always(libc::SYS_getcwd),
];

/// What every thread does to live, to speak and to end.
const LIVING: &[Call] = &[
    always(libc::SYS_read),
    always(libc::SYS_write),
    always(libc::SYS_writev),
    always(libc::SYS_close),
    one_of(libc::SYS_fcntl, 1, &[F_GETFD as u32]),
    always(libc::SYS_futex),
    always(libc::SYS_sched_yield),
    always(libc::SYS_sched_getaffinity),
    // Where the kernel's page for clocks does not serve (a clock source that it cannot read).
    always(libc::SYS_clock_gettime),
    always(libc::SYS_gettimeofday),
    always(libc::SYS_clock_nanosleep),
    always(libc::SYS_nanosleep),
    always(libc::SYS_restart_syscall),
    always(libc::SYS_getrandom),
    always(libc::SYS_getpid),
    always(libc::SYS_gettid),
    always(libc::SYS_rt_sigreturn),
    always(libc::SYS_rt_sigprocmask),
    always(libc::SYS_sigaltstack),
    // A panic that aborts, which process 1 of a namespace does by a fault at last; the standard library's handler then steps aside.
    one_of(libc::SYS_rt_sigaction, 0, &[SIGABRT as u32, SIGSEGV as u32, SIGBUS as u32]),
    one_of(libc::SYS_tgkill, 2, &[SIGABRT as u32]),
    // Memory, never to be executed.
    always(libc::SYS_brk),
    always(libc::SYS_munmap),
    always(libc::SYS_mremap),
    always(libc::SYS_madvise),
    all(libc::SYS_mprotect, &[NOT_EXECUTABLE]),
    always(libc::SYS_exit),
    always(libc::SYS_exit_group),
];

/// Memory of no file.
const OWN_MEMORY: &[Call] =
    &[all(libc::SYS_mmap, &[NOT_EXECUTABLE, Look::Bits { argument: 3, mask: MAP_ANONYMOUS as u32, set: MAP_ANONYMOUS as u32 }])];

/// A queue's thread waits for kicks and its port, others for a descriptor or two.
const WAITING: &[Call] = &[
    always(libc::SYS_epoll_create1),
    always(libc::SYS_epoll_ctl),
    always(libc::SYS_epoll_wait),
    always(libc::SYS_epoll_pwait),
    always(libc::SYS_poll),
    always(libc::SYS_ppoll),
];

/// Files that are open: images, memory, the ledger, kernels.
const FILES: &[Call] = &[
    always(libc::SYS_pread64),
    always(libc::SYS_pwrite64),
    always(libc::SYS_readv),
    always(libc::SYS_preadv),
    always(libc::SYS_pwritev),
    always(libc::SYS_lseek),
    CUTTING,
    always(libc::SYS_ftruncate),
    always(libc::SYS_fsync),
    always(libc::SYS_fdatasync),
    always(libc::SYS_fstat),
    always(libc::SYS_fstatfs),
    all(libc::SYS_newfstatat, &[of_descriptor(3)]),
    all(libc::SYS_statx, &[of_descriptor(2)]),
    one_of(libc::SYS_fcntl, 1, &[F_GETFL as u32]),
];

/// Connections that are there, and how long to wait at them.
const STREAMS: &[Call] = &[
    always(libc::SYS_recvfrom),
    always(libc::SYS_sendto),
    always(libc::SYS_shutdown),
    all(libc::SYS_setsockopt, &[Look::Is(1, SOL_SOCKET as u32), Look::Is(2, SO_RCVTIMEO as u32)]),
    all(libc::SYS_setsockopt, &[Look::Is(1, SOL_SOCKET as u32), Look::Is(2, SO_SNDTIMEO as u32)]),
];

/// Datagrams in runs; lines with descriptors.
const MESSAGES: &[Call] = &[always(libc::SYS_recvmsg), always(libc::SYS_sendmsg), always(libc::SYS_poll), always(libc::SYS_ppoll)];

/// Machines: their memory, their vCPUs' pages, KVM's requests, how large a disk is that is a device, kicks.
const MACHINES: &[Call] = &[
    one_of(libc::SYS_ioctl, 1, &MACHINE),
    one_of(libc::SYS_ioctl, 1, &[BLKGETSIZE64]),
    all(libc::SYS_mmap, &[NOT_EXECUTABLE]),
    always(libc::SYS_memfd_create),
    one_of(libc::SYS_fcntl, 1, &[F_ADD_SEALS as u32]),
    one_of(libc::SYS_rt_sigaction, 0, &[KICK_SIGNAL]),
    one_of(libc::SYS_tgkill, 2, &[KICK_SIGNAL]),
];

/// Newcomers at a listening socket, and how their connections are set up.
const ACCEPTING: &[Call] = &[
    always(libc::SYS_accept4),
    // A terminal as it was, should the serial port end before the process.
    one_of(libc::SYS_ioctl, 1, &[FIONBIO as u32, TCSETS as u32, TCSETS2 as u32]),
    all(libc::SYS_getsockopt, &[Look::Is(1, SOL_SOCKET as u32), Look::Is(2, SO_DOMAIN as u32)]),
    all(libc::SYS_getsockopt, &[Look::Is(1, SOL_SOCKET as u32), Look::Is(2, SO_ERROR as u32)]),
    all(libc::SYS_setsockopt, &[Look::Is(1, SOL_SOCKET as u32), Look::Is(2, SO_KEEPALIVE as u32)]),
    all(libc::SYS_setsockopt, &[Look::Is(1, IPPROTO_TCP as u32), Look::Is(2, TCP_NODELAY as u32)]),
    all(libc::SYS_setsockopt, &[Look::Is(1, IPPROTO_TCP as u32), Look::Is(2, TCP_KEEPIDLE as u32)]),
    all(libc::SYS_setsockopt, &[Look::Is(1, IPPROTO_TCP as u32), Look::Is(2, TCP_KEEPINTVL as u32)]),
    all(libc::SYS_setsockopt, &[Look::Is(1, IPPROTO_TCP as u32), Look::Is(2, TCP_KEEPCNT as u32)]),
    all(libc::SYS_setsockopt, &[Look::Is(1, IPPROTO_TCP as u32), Look::Is(2, TCP_USER_TIMEOUT as u32)]),
];

/// Threads, with the flags of pthread_create and no others; each then takes its place behind others and its own list.
const THREADS: &[Call] = &[
    all(libc::SYS_clone, &[Look::Is(0, THREAD_FLAGS)]),
    always(libc::SYS_set_robust_list),
    always(libc::SYS_rseq),
    one_of(libc::SYS_rt_sigaction, 0, &[LIBC_SIGNAL]),
    one_of(libc::SYS_prctl, 0, &[PR_SET_NAME as u32, PR_SET_NO_NEW_PRIVS as u32]),
    all(libc::SYS_setpriority, &[Look::Is(0, PRIO_PROCESS), Look::Is(1, 0)]),
    all(libc::SYS_seccomp, &[Look::Is(0, SECCOMP_SET_MODE_FILTER), Look::Is(1, 0)]),
];

/// The guest, its state, and the events of its devices' registers.
const VCPU_REQUESTS: Call = one_of(libc::SYS_ioctl, 1, &VCPU_THREAD);
const VCPU_THREAD: [u32; 3 + VCPU.len()] = {
    let mut all = [KVM_RUN; 3 + VCPU.len()];
    all[1] = KVM_SIGNAL_MSI;
    all[2] = KVM_IOEVENTFD;
    let mut at = 0;
    while at < VCPU.len() {
        all[3 + at] = VCPU[at];
        at += 1;
    }
    all
};
/// An interrupt of a queue.
const RAISING: Call = one_of(libc::SYS_ioctl, 1, &[KVM_SIGNAL_MSI]);
/// Holes in files that are open.
const CUTTING: Call = always(libc::SYS_fallocate);
/// Requests to a disk's files, by rings that were made and narrowed before (`rebec_kvm::DiskRing`). Nobody may make another one or change one.
const RING: Call = always(libc::SYS_io_uring_enter);
const EVENTFD: Call = always(libc::SYS_eventfd2);
const DUPLICATE: Call = one_of(libc::SYS_fcntl, 1, &[F_DUPFD_CLOEXEC as u32]);
const SOCKET_TYPE: Call = all(libc::SYS_getsockopt, &[Look::Is(1, SOL_SOCKET as u32), Look::Is(2, SO_TYPE as u32)]);

/// `_IOR(0x12, 114, size_t)` of Linux's linux/fs.h.
const BLKGETSIZE64: u32 = 0x8008_1272;

/// The signal by which vCPUs are kicked: the first that libc leaves free.
pub const KICK_SIGNAL: u32 = 34;
/// The one whose handler glibc installs with the first thread (SIGSETXID).
const LIBC_SIGNAL: u32 = 33;
const NOT_EXECUTABLE: Look = Look::Bits { argument: 2, mask: PROT_EXEC as u32, set: 0 };
const THREAD_FLAGS: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u32;

const fn always(number: c_long) -> Call {
    Call { number, when: When::Always }
}

const fn all(number: c_long, looks: &'static [Look]) -> Call {
    Call { number, when: When::All(looks) }
}

const fn one_of(number: c_long, argument: u8, values: &'static [u32]) -> Call {
    Call { number, when: When::OneOf(argument, values) }
}

/// A look at flags: about a descriptor, as no path leads anywhere.
const fn of_descriptor(argument: u8) -> Look {
    Look::Bits { argument, mask: AT_EMPTY_PATH as u32, set: AT_EMPTY_PATH as u32 }
}
