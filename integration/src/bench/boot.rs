//! What a boot costs: instructions from exec of the VMM to the guest's init.
//!
//! Wall time under emulation is noise, so the lab machine counts: its clock goes on by a nanosecond with every instruction of
//! its one processor, be it the VMM's, its kernel's or the guest's. Repeats agree to one percent. A processor that repeats a
//! string instruction counts every element, so copying and clearing memory weigh more here than on hardware.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    artifacts::{self, Artifact},
    channel::client::Client,
    command::Program,
    initramfs::Initramfs,
    paths,
    progress::say,
    provision::Provisions,
    qemu::{
        Accel, Machine,
        image::{self, Share},
        machine::MachineConfig,
    },
};

/// Five times what two busy cores were seen to need for one boot at the pace of counting.
const DEADLINE: Duration = Duration::from_secs(600);
/// A boot that is not over after so long by the counting clock hangs.
const BOOT_SECONDS: u32 = 6;
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off audit=0 random.trust_cpu=on";
const BUSYBOX: &str = "/bin/busybox";
/// Where kernels are kept unpacked in the lab machine.
const KERNELS: &str = "/tmp/kernels";
const MARK: &str = "rebec-init";
const PEER: &str = "/usr/bin/qemu-system-x86_64-microvm";
/// qboot, and the option ROMs that QEMU asks for beside it.
const PEER_FIRMWARE: [&str; 3] = ["/usr/share/qemu/bios-microvm.bin", "/usr/share/qemu/pvh.bin", "/usr/share/qemu/linuxboot_dma.bin"];

/// Says the time before and after. What is read from the clock costs a thousandth of a boot at most.
const STOPWATCH: &str = "
now() { while read -r a b c d; do if [ \"$a $b\" = 'now at' ]; then t=$c; return; fi; done < /proc/timer_list; }
now; start=$t
timeout SECONDS \"$@\" </dev/null 2>/tmp/errors | while read -r line; do
    case $line in *MARK*) now; echo $((t - start)); break;; esac
    echo \"$line\" >>/tmp/console
done
";

/// One boot.
#[derive(Debug, Clone, Serialize)]
pub struct BootCost {
    /// The VMM.
    pub program: &'static str,
    /// The kernel's form.
    pub kernel: &'static str,
    /// Instructions from exec to init.
    pub instructions: u64,
    /// At most so many; none for peers.
    pub target: Option<u64>,
}

impl BootCost {
    /// Whether the target is met.
    pub fn is_met(&self) -> bool {
        self.target.is_none_or(|target| self.instructions <= target)
    }
}

impl fmt::Display for BootCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let giga = |count: u64| count as f64 / 1e9;
        write!(f, "exec to init, {}, {}: {:.3} G instructions", self.program, self.kernel, giga(self.instructions))?;
        match self.target {
            Some(target) => write!(f, ", at most {:.2} ({})", giga(target), if self.is_met() { "met" } else { "MISSED" }),
            None => Ok(()),
        }
    }
}

/// Boots the guests' Debian 13 kernel with 256 MiB and one vCPU in both forms, with our VMM and with QEMU's microvm.
pub fn measure(provisions: &Provisions) -> Result<Vec<BootCost>> {
    let folder = tempfile::tempdir_in(paths::lab()).context("create a folder for the bench")?;
    let init = folder.path().join("init.cpio");
    let mut tree = Initramfs::default();
    tree.host_file("bin/busybox", Path::new(BUSYBOX))?;
    // The kernel's own first archive has a /dev/console.
    tree.program("init", format!("#!{BUSYBOX} sh\necho {MARK}\n{BUSYBOX} poweroff -f\n"));
    tree.write(&init)?;
    let mut share = Share::default()
        .with("bin/rebec-vmm", &artifacts::build(Artifact::Vmm)?)
        .with("init.cpio", &init)
        .with("vmlinux", &provisions.guest.elf)
        .with("vmlinuz", &provisions.guest.bzimage);
    let peer = peer_files()?;
    for (name, path) in &peer {
        share = share.with(&format!("peer/{name}"), path);
    }
    let image = folder.path().join("share.img");
    share.write(&image)?;
    let machine = Machine::start(&MachineConfig {
        name: "count",
        emulator: &provisions.emulator,
        kernel: &provisions.lab.bzimage,
        words: "",
        initramfs: &image::lab_initramfs(&provisions.lab)?,
        accel: Accel::Counting,
        memory_mib: 2048,
        vcpus: 1,
        share: Some(&image),
        network: None,
        devices: &[],
        evidence: folder.path(),
    })?;
    // Its clock runs at the pace of its instructions: nobody sets it.
    Client::wait_ready(&machine, DEADLINE)?;
    let ready = "until [ -b /dev/vda ]; do sleep 0.1; done; mount -o ro -t ext4 /dev/vda /share && find /share -type f | xargs cat | wc -c";
    machine.check(&["sh", "-c", ready], DEADLINE)?;

    let mut costs = Vec::new();
    let starts = [
        ("ELF", "/share/vmlinux", Some(1_600_000_000)),
        // The first start with a kernel unpacks and keeps it; the second is what a pool of VMs sees.
        ("bzImage, unpacked now", "/share/vmlinuz", None),
        ("bzImage, kept unpacked", "/share/vmlinuz", Some(1_800_000_000)),
    ];
    machine.shell(&format!("mkdir {KERNELS}"))?;
    for (kernel, file, target) in starts {
        let own = ["/share/bin/rebec-vmm", "run", "--serial", "stdio", "--memory", "256M", "--kernel", file, "--kernel-cache", KERNELS];
        let own = [&own[..], &["--initramfs", "/share/init.cpio", "--cmdline", CMDLINE]].concat();
        costs.push(BootCost { program: "rebec-vmm", kernel, instructions: boot(&machine, &own)?, target });
        say("bench", costs.last().map(ToString::to_string).unwrap_or_default());
    }
    for (kernel, file) in [("ELF", "/share/vmlinux"), ("bzImage", "/share/vmlinuz")].into_iter().filter(|_| !peer.is_empty()) {
        let libraries = ["/share/peer/ld-linux-x86-64.so.2", "--library-path", "/share/peer", "/share/peer/qemu", "-L", "/share/peer"];
        let shape =
            ["-M", "microvm,isa-serial=on,pit=on,pic=on,rtc=on", "-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-no-reboot"];
        let cmdline = format!("{CMDLINE} reboot=t");
        let guest = ["-nographic", "-serial", "stdio", "-kernel", file, "-initrd", "/share/init.cpio", "-append", &cmdline];
        let argv = [&libraries[..], &shape, &guest].concat();
        match boot(&machine, &argv) {
            Ok(instructions) => costs.push(BootCost { program: "QEMU microvm", kernel, instructions, target: None }),
            // Our figures stand without it.
            Err(error) => {
                say("bench", format_args!("no figure of QEMU's microvm: {error:#}"));
                break;
            }
        }
        say("bench", costs.last().map(ToString::to_string).unwrap_or_default());
    }
    Ok(costs)
}

fn boot(machine: &Machine, argv: &[&str]) -> Result<u64> {
    let script = STOPWATCH.replace("SECONDS", &BOOT_SECONDS.to_string()).replace("MARK", MARK);
    let all = [&["sh", "-c", &script, "stopwatch"], argv].concat();
    let said = machine.check(&all, DEADLINE)?;
    let counted = said.trim().parse();
    counted.with_context(|| {
        let words = machine.shell("cat /tmp/errors; tail -n 20 /tmp/console").unwrap_or_default();
        format!("{}: the guest did not come to its init: {} {}", argv.join(" "), said.trim(), words.trim())
    })
}

/// QEMU's microvm with what it needs to run elsewhere; nothing where it is not installed.
fn peer_files() -> Result<Vec<(String, PathBuf)>> {
    let named = |path: PathBuf| (path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(), path);
    let mut files = vec![("qemu".to_owned(), PathBuf::from(PEER))];
    files.extend(PEER_FIRMWARE.map(PathBuf::from).map(named));
    if let Some((_, missing)) = files.iter().find(|(_, path)| !path.exists()) {
        say("bench", format_args!("{} is not installed: no peer beside our figures", missing.display()));
        return Ok(Vec::new());
    }
    let libraries = Program::new("ldd").arg(PEER).output()?;
    files.extend(libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).map(named));
    Ok(files)
}
