//! The command line: what a user writes becomes [`Command`], or one line that says what is wrong with it.
//!
//! Nothing is opened here. The values of `--memory`, `--disk`, `--net` and `--serial` are parsed by `rebec_vmm_api::config`;
//! what only several options together can get wrong (two NICs on one endpoint, one disk twice) is refused in [`Shared::check`].

use std::{
    collections::HashSet,
    ffi::OsString,
    net::{AddrParseError, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Args, Parser, Subcommand, error::ErrorKind};
use rebec_cpu::{Features, Model};
use rebec_layout::{SLOTS, VCPUS_MAX};
use rebec_migrate::VmId;
use rebec_vmm_api::{DiskConfig, Handle, MemorySize, NetConfig, PerSecond, SerialConfig, control::DeviceLimits};

pub use self::ctl::{CtlOptions, CtlRequest, MigrateTo, SetTo};
use crate::{cgroup, limits::Limits};

mod ctl;
mod memory;

/// Device slots of the machine; one of them is the random number generator.
const DISKS_AND_NETS_MAX: usize = SLOTS - 1;
/// Donors one `receive` asks; each costs a connection and a question per unknown page.
const DONORS_MAX: usize = 16;

const ABOUT: &str = "Runs one virtual machine on KVM, on its own LAN, and moves it live to another rebec-vmm.";

const AFTER: &str = "\
A move travels over plain TCP: unprotected, neither encrypted nor authenticated. Whoever can reach the address of
`receive`, or sees the link, can read or replace the VM. LAN frames (VXLAN over UDP) are unprotected too, unless their
nets have seal=on. Use both only
on a network you trust, or inside a tunnel.

Example: a VM here, moved to host 10.0.0.2
  here$      rebec-vmm run --kernel vmlinuz --disk web.qcow2 --cmdline 'console=ttyS0 root=/dev/vda' --serial stdio \\
               --net vni=7,mac=52:54:00:00:00:01,local=10.0.0.1:4789 --control /run/web.sock
  10.0.0.2$  rebec-vmm receive --listen 10.0.0.2:7000 --disk web.qcow2 \\
               --net vni=7,mac=52:54:00:00:00:01,local=10.0.0.2:4789 --control /run/web.sock
  here$      rebec-vmm ctl /run/web.sock migrate --to 10.0.0.2:7000

A FILE may also be fd:N: the Nth, from 0, of the descriptors that came with one byte over standard input, a Unix socket.
Exit codes: 0 done, 1 failed, 2 wrong usage; `ctl migrate` also 3, when the right to run the VM waits for the other side.
REBEC_LOG=debug (or info, warn, error) sets how much is said on standard error.";

#[derive(Parser, Debug)]
#[command(name = "rebec-vmm", version, about = ABOUT, after_help = AFTER, disable_help_subcommand = true, arg_required_else_help = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What the user asked for, checked.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Boot a VM and run it until it ends
    #[command(
        after_help = "The VM ends when its guest powers off, on `ctl stop` and on SIGINT; a guest reset starts it again. SIGTERM presses its power button; \
                      a guest that does not listen to that, and one that is told a second time, is ended."
    )]
    Run(RunOptions),
    /// Wait for one VM to arrive, run it on, and end when it ends
    #[command(after_help = "\
The machine's shape (memory, vCPUs, devices and their order) comes with the VM; the options here say where its disks,
ports and sockets are on this side, in the same order. What does not fit is refused before the first page.
The connection is plain TCP: unprotected, neither encrypted nor authenticated. Listen on a network you trust.")]
    Receive(ReceiveOptions),
    /// Talk to a running VM through its control socket
    #[command(arg_required_else_help = false)]
    Ctl(CtlOptions),
    /// Write the ELF kernel inside a bzImage to standard output
    Unpack(UnpackOptions),
    /// Write the digests of a base image to standard output, for `--disk FILE,base-digests=FILE`
    #[command(after_help = "\
Given at both sides of a move, they save reading the base, and what the VM never wrote over it is not spoken of.
Take them again when the base changes; they are worth nothing if it does so afterwards.")]
    Digests(DigestsOptions),
    /// Say whether a kernel or a disk can be used, and what would start from the disk, as one line of JSON
    Judge(JudgeOptions),
    /// Say what this host gives a guest of its processor: its level, the set for `--cpu only:SET`, the names of its features
    Cpu(CpuOptions),
    /// Seals itself and says what it can still reach, for the tests of the sandbox
    #[command(hide = true)]
    SealSelfTest(SealSelfTest),
}

/// Options of `run`.
#[derive(Args, Debug)]
pub struct RunOptions {
    /// Kernel: a Linux bzImage, or an ELF with a PVH entry; without one, what the boot loader on the first disk would start, read again at each reset
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<Handle>,
    /// What goes with the kernel
    #[command(flatten)]
    pub boot: BootOptions,
    /// Guest memory, in whole MiB, from 16M to 1T
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: MemorySize,
    /// Most memory that the guest may have, in whole MiB: `ctl set --memory` changes how much that is while it runs
    #[arg(long, value_name = "SIZE")]
    pub memory_max: Option<MemorySize>,
    /// Virtual CPUs, from 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(VCPUS_MAX)))]
    pub vcpus: u8,
    /// What both sides of a move have in common
    #[command(flatten)]
    pub shared: Shared,
}

/// What a kernel is started with.
#[derive(Args, Debug)]
pub struct BootOptions {
    /// Keep unpacked kernels in this folder: a bzImage that was started from before need not be unpacked again
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub kernel_cache: Option<PathBuf>,
    /// What `unpack --disk` made of an image that the first disk stands on: if the disk still has that kernel, it need not be unpacked again
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    pub unpacked_kernel: Option<Handle>,
    /// Initial RAM disk handed to the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initramfs: Option<Handle>,
    /// Kernel command line; without --kernel, what is added to the disk's own
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub cmdline: String,
}

/// Options of `unpack`.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct UnpackOptions {
    /// A Linux bzImage (a distribution's vmlinuz)
    #[arg(value_name = "FILE")]
    pub kernel: Option<Handle>,
    /// A disk image that stands alone: the kernel that would start from it, for --unpacked-kernel
    #[arg(long, value_name = "FILE")]
    pub disk: Option<Handle>,
}

/// Options of `digests`.
#[derive(Args, Debug)]
pub struct DigestsOptions {
    /// The image that VMs' disks stand on, raw or qcow2
    #[arg(value_name = "FILE")]
    pub base: Handle,
}

/// Options of `judge`.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub struct JudgeOptions {
    /// A kernel: whether a VM can be started from it
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<Handle>,
    /// A disk image that stands alone: whether a VM can use it and, without --kernel, what would start from it
    #[arg(long, value_name = "FILE")]
    pub disk: Option<Handle>,
    /// What `unpack --disk` made of it, as a start would use it
    #[arg(long, value_name = "FILE", requires = "disk", conflicts_with = "kernel")]
    pub unpacked_kernel: Option<Handle>,
}

/// Options of `cpu`.
#[derive(Args, Debug)]
pub struct CpuOptions {
    /// What a guest of this model is shown
    #[arg(long, value_name = "MODEL", default_value = "host")]
    pub cpu: Model,
    /// A set of another host's: what both have in common; may be repeated
    #[arg(long = "with", value_name = "SET")]
    pub with: Vec<Features>,
    /// The answers of CPUID themselves, each a line: leaf, subleaf, EAX, EBX, ECX, EDX
    #[arg(long, conflicts_with = "with")]
    pub table: bool,
}

/// Options of `receive`.
#[derive(Args, Debug)]
pub struct ReceiveOptions {
    /// Where the VM arrives (plain TCP, unprotected)
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Listen,
    /// Control socket of another VMM on this host that may hold the same content; may be repeated. As fd:N, a connection to one that
    /// was turned by `donate`
    #[arg(long = "donor", value_name = "SOCKET")]
    pub donors: Vec<Handle>,
    /// Kernel to start from when the guest resets; without one, what its first disk says, and without a disk a guest reset ends the VM
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<Handle>,
    /// What goes with the kernel
    #[command(flatten)]
    pub boot: BootOptions,
    /// Take in this VM and no other: its identity, 32 hexadecimal digits
    #[arg(long, value_name = "ID", value_parser = vm_id)]
    pub vm: Option<VmId>,
    /// Take in a VM of so much memory and no other
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
    /// Take in a VM whose memory may become so much and no other; without this and with --memory, one whose memory stays as it is
    #[arg(long, value_name = "SIZE")]
    pub memory_max: Option<MemorySize>,
    /// Take in a VM of so many virtual CPUs and no other
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(VCPUS_MAX)))]
    pub vcpus: Option<u8>,
    /// What both sides of a move have in common
    #[command(flatten)]
    pub shared: Shared,
}

/// Where a VM arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// At an address.
    Address(SocketAddr),
    /// At a socket that listens already, of those that were handed over.
    Descriptor(usize),
}

impl FromStr for Listen {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        match text.parse() {
            Ok(Handle::Descriptor(number)) => Ok(Self::Descriptor(number)),
            Ok(Handle::Path(_)) | Err(_) => text.parse().map(Self::Address),
        }
    }
}

/// Where a VM's disks, ports and sockets are on this host.
#[derive(Args, Debug)]
pub struct Shared {
    /// Disk image, raw or qcow2; `,ro` makes it read-only; may be repeated. `receive` creates a missing one.
    /// `size=` is the least that it has: it grows to that; `base=` names its backing image, whatever its header calls it; `base-digests=` what `digests` said of that one
    #[arg(long = "disk", value_name = "FILE[,ro][,size=SIZE][,base=FILE][,base-digests=FILE][,queues=N]")]
    pub disks: Vec<DiskConfig>,
    /// NIC and its port on a VXLAN LAN; may be repeated. ip=ADDRESS/LENGTH is told to the guest by DHCP, with gateway=ADDRESS and dns=ADDRESS;
    /// peer=MAC@IP:PORT, which may be repeated, says where a station is and, with @ADDRESS behind it, answers ARP for it
    #[arg(long = "net", value_name = "vni=N,mac=MAC,local=IP:PORT[,...]")]
    pub nets: Vec<NetConfig>,
    /// Where the guest's first serial port leads; unix: listens at PATH [default: nowhere]
    #[arg(long, value_name = "stdio|file:PATH|unix:PATH")]
    pub serial: Option<SerialConfig>,
    /// Create a control socket here, for `rebec-vmm ctl`
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// Enter this control group (version 2) before anything else
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Keep the record of who may run this VM here; without it, a crash of both sides of a move is not covered
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<Handle>,
    /// What the guest is shown of the processor: all that this host gives it, or what every processor of a level has, so that it goes to each of them and
    /// back. only:SET is a set as `rebec-vmm cpu` writes it. With `receive`, the most that this side gives
    #[arg(long, value_name = "host|x86-64-v2|x86-64-v3|x86-64-v4|only:SET", default_value = "host")]
    pub cpu: Model,
    /// Most bits a second of each NIC, each way, as in 200M; changed by `ctl set`. With `receive`, these three count in place of what the VM brings along
    #[arg(long, value_name = "RATE")]
    pub net_max: Option<PerSecond>,
    /// Most requests a second of each disk, as in 5000
    #[arg(long, value_name = "RATE")]
    pub disk_iops_max: Option<PerSecond>,
    /// Most bytes a second of each disk, as in 100M
    #[arg(long, value_name = "RATE")]
    pub disk_bytes_max: Option<PerSecond>,
    /// Let the vCPUs run only while a lease lasts, which `lease` on the control socket extends
    #[arg(long, requires = "control")]
    pub lease: bool,
}

/// What the sealed process tries to reach.
#[derive(Args, Debug)]
pub struct SealSelfTest {
    /// A socket to create before sealing; connections to it are answered afterwards
    #[arg(long)]
    pub listen: PathBuf,
    /// Somebody who listens on this machine
    #[arg(long)]
    pub tcp: SocketAddr,
}

/// Why there is no command to carry out.
#[derive(Debug)]
pub enum NoCommand {
    /// The user asked for help or the version: this text answers, and the exit code is 0.
    Answered(String),
    /// The command line is wrong: one line, and the exit code is 2.
    Usage(String),
}

/// Reads the process's own arguments.
pub fn parse() -> Result<Command, NoCommand> {
    parse_from(std::env::args_os())
}

fn parse_from(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Command, NoCommand> {
    let command = Cli::try_parse_from(arguments).map_err(no_command)?.command;
    let checked = match &command {
        Command::Run(options) => options.check(),
        Command::Receive(options) => options.shared.check().and_then(|()| check_donors(&options.donors)),
        Command::Ctl(_) | Command::Unpack(_) | Command::Digests(_) | Command::Judge(_) | Command::Cpu(_) | Command::SealSelfTest(_) => {
            Ok(())
        }
    };
    checked.map(|()| command).map_err(NoCommand::Usage)
}

/// clap answers in paragraphs with hints; programs and logs want one line, people the sentence that matters.
fn no_command(error: clap::Error) -> NoCommand {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return NoCommand::Answered(text);
    }
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    // clap lists hidden commands when none is given.
    let sentence = words.join(" ").replace(", seal-self-test", "");
    NoCommand::Usage(format!("{}; see --help", sentence.strip_prefix("error: ").unwrap_or(&sentence)))
}

impl RunOptions {
    fn check(&self) -> Result<(), String> {
        if self.kernel.is_none() && self.shared.disks.is_empty() {
            return Err("nothing to start from: give --kernel, or a --disk whose boot loader says what starts; see --help".into());
        }
        if let Some(max) = self.memory_max {
            let devices = self.shared.disks.len() + self.shared.nets.len();
            memory::check(self.memory, max, devices, DISKS_AND_NETS_MAX)?;
        }
        self.shared.check()
    }
}

impl Shared {
    /// Enters the control group that was named, if one was.
    pub fn enter(&self) -> anyhow::Result<()> {
        self.cgroup.as_deref().map_or(Ok(()), cgroup::enter)
    }

    /// What devices may do.
    pub fn limits(&self) -> Limits {
        let said = |rate: Option<PerSecond>| rate.map(|rate| rate.0);
        let (net_bits, disk_requests) = (said(self.net_max), said(self.disk_iops_max));
        Limits::new(DeviceLimits { net_bits, disk_requests, disk_bytes: said(self.disk_bytes_max) })
    }

    fn check(&self) -> Result<(), String> {
        let slots = self.disks.len() + self.nets.len();
        if slots > DISKS_AND_NETS_MAX {
            return Err(format!("{slots} disks and nets: a machine has room for {DISKS_AND_NETS_MAX}; leave some out"));
        }
        self.check_disks()?;
        self.check_nets()?;
        self.check_paths()
    }

    /// Two read-only views of one image are harmless; a writer beside anyone else destroys it.
    fn check_disks(&self) -> Result<(), String> {
        for (index, disk) in self.disks.iter().enumerate() {
            let twin = self.disks[..index].iter().find(|other| other.image == disk.image);
            if twin.is_some_and(|other| !(other.read_only && disk.read_only)) {
                return Err(format!("disk `{}` is given twice; make both `,ro`, or leave one out", disk.image));
            }
        }
        Ok(())
    }

    fn check_nets(&self) -> Result<(), String> {
        let (mut endpoints, mut stations) = (HashSet::new(), HashSet::new());
        for net in &self.nets {
            if !endpoints.insert(net.local) {
                return Err(format!("two nets have local={}; give each its own port", net.local));
            }
            if !stations.insert(net.mac) {
                return Err(format!("two nets have mac={}; give each its own address", net.mac));
            }
        }
        Ok(())
    }

    /// Every path this process creates or appends to must be its own.
    fn check_paths(&self) -> Result<(), String> {
        let serial = match &self.serial {
            Some(SerialConfig::File(path) | SerialConfig::Unix(path)) => Some(path.as_path()),
            Some(SerialConfig::Stdio) | None => None,
        };
        let mut named: HashSet<&Path> = self.disks.iter().filter_map(|disk| disk.image.path()).collect();
        let ledger = self.ledger.as_ref().and_then(Handle::path);
        for (option, path) in [("--serial", serial), ("--control", self.control.as_deref()), ("--ledger", ledger)] {
            if let Some(path) = path
                && !named.insert(path)
            {
                return Err(format!("{option} `{}` is also used for something else; give it its own path", path.display()));
            }
        }
        Ok(())
    }
}

/// As [`VmId`] shows itself.
fn vm_id(text: &str) -> Result<VmId, String> {
    let wrong = || format!("`{text}` is no VM's identity: it has 32 hexadecimal digits");
    let digits = text.as_bytes();
    let (32, true) = (digits.len(), digits.iter().all(u8::is_ascii_hexdigit)) else { return Err(wrong()) };
    u128::from_str_radix(text, 16).map(|number| VmId(number.to_be_bytes())).map_err(|_| wrong())
}

fn check_donors(donors: &[Handle]) -> Result<(), String> {
    if donors.len() > DONORS_MAX {
        return Err(format!("{} donors: at most {DONORS_MAX} are asked; leave some out", donors.len()));
    }
    let mut seen = HashSet::new();
    match donors.iter().find(|donor| !seen.insert(*donor)) {
        Some(twice) => Err(format!("donor `{twice}` is given twice")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse_words(line: &str) -> Result<Command, NoCommand> {
        parse_from(line.split_whitespace())
    }

    fn refused(line: &str) -> String {
        match parse_words(line) {
            Err(NoCommand::Usage(message)) => message,
            other => panic!("`{line}` gave {other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_full_run_line() {
        let line = "rebec-vmm run --kernel k --initramfs i --cmdline quiet --memory 1G --vcpus 4 --disk a.qcow2 --disk b,ro --ledger l \
                    --net vni=1,mac=52:54:00:00:00:01,local=10.0.0.1:1,peer=52:54:00:00:00:02@10.0.0.2:1 --serial unix:/s --control /c";
        let Ok(Command::Run(options)) = parse_words(line) else { panic!("not a run") };
        assert_eq!((options.memory.bytes(), options.vcpus), (1 << 30, 4));
        assert_eq!(options.shared.disks.len(), 2);
        assert!(options.shared.disks[1].read_only);
        assert_eq!(options.shared.nets[0].peers.len(), 1);
        assert_eq!(options.shared.serial, Some(SerialConfig::Unix("/s".into())));
    }

    #[test]
    fn what_was_handed_over_is_named_by_number() {
        let line = "rebec-vmm receive --listen fd:0 --donor fd:1 --kernel fd:2 --initramfs fd:3 --disk fd:4,base=fd:5,base-digests=fd:6 \
                    --ledger fd:7 --net vni=1,mac=52:54:00:00:00:01,local=10.0.0.1:1,socket=fd:8";
        let Ok(Command::Receive(options)) = parse_words(line) else { panic!("not a receive") };
        assert_eq!((options.listen, &options.donors[..]), (Listen::Descriptor(0), &[Handle::Descriptor(1)][..]));
        assert_eq!((options.kernel, options.boot.initramfs), (Some(Handle::Descriptor(2)), Some(Handle::Descriptor(3))));
        assert_eq!(options.shared.disks[0].base_digests, Some(Handle::Descriptor(6)));
        assert_eq!((options.shared.ledger, options.shared.nets[0].socket), (Some(Handle::Descriptor(7)), Some(8)));
    }

    #[test]
    fn an_order_names_the_vm_that_is_taken_in() {
        let id = "00112233445566778899aabbccddeeff";
        let line = format!("rebec-vmm receive --listen 1.2.3.4:1 --vm {id} --memory 64M --vcpus 2");
        let Ok(Command::Receive(options)) = parse_words(&line) else { panic!("not a receive") };
        assert_eq!(options.vm.unwrap().to_string(), id);
        assert_eq!((options.memory.unwrap().bytes(), options.vcpus), (64 << 20, Some(2)));
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let Ok(Command::Run(options)) = parse_words("rebec-vmm run --kernel k") else { panic!("not a run") };
        assert_eq!((options.memory.bytes(), options.vcpus, options.boot.cmdline.as_str()), (512 << 20, 1, ""));
        assert_eq!(options.shared.serial, None);
    }

    #[test]
    fn receive_and_every_ctl_request() {
        let line = "rebec-vmm receive --listen 0.0.0.0:7000 --donor /a --donor /b --disk d --control /c";
        assert!(matches!(parse_words(line), Ok(Command::Receive(options)) if options.donors.len() == 2 && !options.shared.lease));
        assert!(matches!(parse_words("rebec-vmm run --kernel k --control /c --lease"), Ok(Command::Run(options)) if options.shared.lease));
        for request in [
            "status",
            "status --json",
            "pause",
            "resume",
            "resize-disk 0 30G",
            "set --memory 2G",
            "set --net 200M --disk-iops 5000 --disk-bytes none --cpu-quota 150% --cpu-weight 200",
            "stop",
            "cancel",
            "lease 15000",
            "fdb-add 52:54:00:00:00:01 10.0.0.1:4789",
            "fdb-add 52:54:00:00:00:01 10.0.0.1:4789 10.7.0.5",
            "fdb-remove 52:54:00:00:00:01",
        ] {
            assert!(matches!(parse_words(&format!("rebec-vmm ctl /c {request}")), Ok(Command::Ctl(_))), "{request}");
        }
        let line = "rebec-vmm ctl /c migrate --to 10.0.0.2:7000 --streams 16 --downtime-max-ms 50 --bandwidth-max-mbit 100";
        let Ok(Command::Ctl(CtlOptions { request: CtlRequest::Migrate(migrate), .. })) = parse_words(line) else { panic!("not a migrate") };
        assert_eq!((migrate.streams, migrate.downtime_max_ms, migrate.bandwidth_max_mbit), (16, 50, Some(100)));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_that_names_it() {
        for (line, names) in [
            ("rebec-vmm", "run, receive, ctl, unpack, digests, judge, cpu]"),
            ("rebec-vmm fly", "fly"),
            ("rebec-vmm run", "--kernel"),
            ("rebec-vmm run --disk d --initramfs i", "--kernel"),
            ("rebec-vmm judge", "--disk"),
            ("rebec-vmm run --kernel k --colour blue", "--colour"),
            ("rebec-vmm run --kernel k --vcpus 0", "--vcpus"),
            ("rebec-vmm run --kernel k --vcpus 17", "17"),
            ("rebec-vmm run --kernel k --vcpus -1", "-1"),
            ("rebec-vmm run --kernel k --memory 15M", "15M"),
            ("rebec-vmm run --kernel k --memory 1G --memory-max 512M", "--memory-max of 512 MiB is less than --memory of 1024 MiB"),
            ("rebec-vmm run --kernel k --memory 500M --memory-max 1T", "more than 1T"),
            ("rebec-vmm ctl /c set --memory 15M", "15M"),
            ("rebec-vmm run --kernel k --disk d,rw", "d,rw"),
            ("rebec-vmm run --kernel k --serial tcp:1", "tcp:1"),
            ("rebec-vmm run --kernel k --net vni=1", "mac is missing"),
            ("rebec-vmm run --kernel k --no-sandbox", "--no-sandbox"),
            ("rebec-vmm run --kernel k --disk d --disk d", "disk `d` is given twice"),
            ("rebec-vmm run --kernel k --disk d --serial file:d", "--serial `d`"),
            ("rebec-vmm run --kernel k --ledger x --control x", "--ledger `x`"),
            ("rebec-vmm run --kernel k --lease", "--control"),
            ("rebec-vmm receive --listen 1.2.3.4:1 --vm 12", "no VM's identity"),
            ("rebec-vmm receive --listen 1.2.3.4:1 --vcpus 17", "17"),
            ("rebec-vmm run --kernel k --cpu pentium", "`pentium` is no CPU model: it is host, x86-64-v2"),
            ("rebec-vmm run --kernel k --cpu only:x", "`x` is no set"),
            ("rebec-vmm receive", "--listen"),
            ("rebec-vmm receive --listen nowhere", "nowhere"),
            ("rebec-vmm receive --listen fd:x", "fd:x"),
            ("rebec-vmm run --kernel k --disk fd:1 --disk fd:1", "disk `fd:1` is given twice"),
            ("rebec-vmm receive --listen 1.2.3.4:1 --donor /a --donor /a", "donor `/a`"),
            ("rebec-vmm ctl", "ctl"),
            ("rebec-vmm ctl /c", "status, pause"),
            ("rebec-vmm ctl /c set", "--net"),
            ("rebec-vmm ctl /c set --net fast", "rate `fast`"),
            ("rebec-vmm ctl /c set --cpu-quota 0%", "`0%`"),
            ("rebec-vmm ctl /c set --cpu-weight 10001", "10001"),
            ("rebec-vmm ctl /c migrate", "--to"),
            ("rebec-vmm ctl /c migrate --to 1.2.3.4:1 --streams 17", "17"),
            ("rebec-vmm ctl /c fdb-add 52:54 1.2.3.4:1", "52:54"),
            ("rebec-vmm ctl /c fdb-add 52:54:00:00:00:01 1.2.3.4:1 1.2.3", "1.2.3"),
            ("rebec-vmm ctl /c fdb-remove 52:54", "52:54"),
        ] {
            let message = refused(line);
            assert!(message.contains(names), "`{line}`: {message}");
            assert!(!message.contains('\n') && !message.contains("error:"), "`{line}`: {message}");
        }
    }

    #[test]
    fn two_nics_cannot_share_an_endpoint_or_an_address() {
        let net = |mac: u8, port: u16| format!("--net vni=1,mac=52:54:00:00:00:{mac:02x},local=10.0.0.1:{port}");
        assert!(parse_words(&format!("rebec-vmm run --kernel k {} {}", net(1, 1), net(2, 2))).is_ok());
        assert!(refused(&format!("rebec-vmm run --kernel k {} {}", net(1, 1), net(2, 1))).contains("local=10.0.0.1:1"));
        assert!(refused(&format!("rebec-vmm run --kernel k {} {}", net(1, 1), net(1, 2))).contains("mac=52:54:00:00:00:01"));
    }

    #[test]
    fn a_machine_has_room_for_fifteen_disks_and_nets() {
        let disks = |count: usize| (0..count).map(|n| format!("--disk d{n}")).collect::<Vec<_>>().join(" ");
        assert!(parse_words(&format!("rebec-vmm run --kernel k {}", disks(15))).is_ok());
        assert!(refused(&format!("rebec-vmm run --kernel k {}", disks(16))).contains("16 disks"));
        assert!(parse_words(&format!("rebec-vmm run --kernel k --memory-max 1G {}", disks(13))).is_ok());
        assert!(refused(&format!("rebec-vmm run --kernel k --memory-max 1G {}", disks(14))).contains("has room for 13"));
    }

    #[test]
    fn help_names_plain_tcp_as_unprotected() {
        for line in ["rebec-vmm --help", "rebec-vmm receive --help", "rebec-vmm ctl /c migrate --help"] {
            let Err(NoCommand::Answered(help)) = parse_words(line) else { panic!("{line} gave no help") };
            assert!(help.contains("plain TCP") && help.contains("unprotected"), "{line}: {help}");
        }
    }
}
