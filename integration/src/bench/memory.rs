//! What a VM costs beside its own memory: the pages of both of its processes, each shared page counted by its share, without guest memory.
//!
//! Read from /proc/PID/smaps. What the kernel keeps for a VM (shadow pages, socket buffers) is not in there, neither ours nor the peer's.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{Figure, Peer, Target};
use crate::{
    netlab::{NetLab, Vmm, guest, vmm::SHORT},
    progress::say,
};

/// What is aimed at.
const TARGET_MIB: f64 = 8.0;
const MEMORY_MIB: u64 = 256;
const DISK_BYTES: u64 = 256 << 20;
const PEER: &str = "qemu-system-x86_64";
/// Guest memory is a mapping of this file in ours and, by its options, in the peer's process.
const OURS: &str = "/memfd:";
pub(super) const SETTLE: Duration = Duration::from_secs(1);

/// What processes hold.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Held {
    /// Proportional share of guest memory, KiB.
    pub(super) guest_kib: u64,
    /// And of all else.
    rest_kib: u64,
}

/// An idle VM with a network card and a disk, all of its memory filled.
pub fn measure() -> Result<Vec<Figure>> {
    let mut lab = NetLab::start("bench-memory", &["a"])?;
    let machine = &lab.machines[0];
    let disk = lab.evidence().join("disk");
    fs::File::create(&disk)?.set_len(DISK_BYTES)?;
    let mut config = guest::config(&format!("{MEMORY_MIB}M"), "net0=ip=10.7.0.1 blk0=load,rate=10 stats_ms=0 fill=text")?;
    config.nets = vec![format!("vni=7,mac=52:54:00:00:07:01,local={}:4790", machine.address())];
    config.disks = vec![disk.display().to_string()];
    let vmm = Vmm::run(machine, "idle", &config)?;
    vmm.console.wait("ready", SHORT)?;
    std::thread::sleep(SETTLE);
    let ours = held(vmm.process())?;
    // Less than all that was filled would mean that the wrong mapping was taken for guest memory.
    if ours.guest_kib < MEMORY_MIB * 1024 * 9 / 10 {
        bail!("{} KiB of guest memory were found where {MEMORY_MIB} MiB are filled", ours.guest_kib);
    }
    drop(vmm);
    let mut how = format!(
        "PSS of rebec-vmm's processes less the mapping of guest memory ({} MiB); bench guest, idle, one network card and one raw disk",
        ours.guest_kib / 1024
    );
    let peers = match peer(&config.kernel, &disk) {
        Ok(peer) => {
            how += "; QEMU the same way, q35 without default devices, virtio-net on user networking and virtio-blk, the same guest under TCG with a 32 MiB translation buffer";
            vec![Peer { name: "QEMU".into(), value: mib(peer) }]
        }
        Err(error) => {
            say("bench", format_args!("no peer beside our memory: {error:#}"));
            Vec::new()
        }
    };
    let name = "resident beside guest memory, net and disk".to_owned();
    lab.succeeded();
    Ok(vec![Figure { name, unit: "MiB", measured: mib(ours), target: Target::AtMost(TARGET_MIB), peers, how }])
}

pub(super) fn mib(held: Held) -> f64 {
    held.rest_kib as f64 / 1024.0
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn peer(kernel: &PathBuf, disk: &std::path::Path) -> Result<Held> {
    let mut command = Command::new(PEER);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-M", "q35,memory-backend=ram", "-accel", "tcg,tb-size=32"]);
    command.args(["-object", &format!("memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"), "-m", &MEMORY_MIB.to_string()]);
    command.args(["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-serial", "stdio"]);
    command.arg("-drive").arg(format!("if=virtio,format=raw,file={}", disk.display()));
    command.arg("-kernel").arg(kernel).args(["-append", "stats_ms=0 fill=text tsc_khz=1000000"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = Running(command.spawn().with_context(|| format!("start {PEER}"))?);
    let output = running.0.stdout.take().context("no stdout")?;
    let (says, heard) = std::sync::mpsc::channel();
    // Ends with the process, whose output it reads.
    std::thread::spawn(move || {
        if BufReader::new(output).lines().map_while(Result::ok).any(|line| line.starts_with("ready")) {
            // Nobody waits any more: then nobody cares.
            says.send(()).ok();
        }
    });
    let start = Instant::now();
    heard.recv_timeout(SHORT).with_context(|| format!("{PEER} did not bring the guest up in {} s", start.elapsed().as_secs()))?;
    std::thread::sleep(SETTLE);
    held(running.0.id())
}

/// Adds up a process and all its descendants.
pub(super) fn held(process: u32) -> Result<Held> {
    let mut sum = Held::default();
    let mut left = vec![process];
    while let Some(process) = left.pop() {
        let smaps =
            fs::read_to_string(format!("/proc/{process}/smaps")).with_context(|| format!("read the mappings of process {process}"))?;
        add(&mut sum, &smaps);
        for thread in fs::read_dir(format!("/proc/{process}/task")).with_context(|| format!("list threads of process {process}"))? {
            let children = fs::read_to_string(thread?.path().join("children")).context("list children")?;
            left.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
    }
    Ok(sum)
}

fn add(sum: &mut Held, smaps: &str) {
    let mut is_guest = false;
    for line in smaps.lines() {
        if let Some(pss) = line.strip_prefix("Pss:") {
            let kib: u64 = pss.trim().trim_end_matches(" kB").parse().unwrap_or_default();
            *(if is_guest { &mut sum.guest_kib } else { &mut sum.rest_kib }) += kib;
        } else if line.split(' ').next().is_some_and(|range| range.contains('-')) {
            is_guest = line.contains(OURS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_from_the_rest() {
        let smaps = "7f00-7f10 rw-s 00000000 00:01 7 /memfd:ram (deleted)\nRss: 64 kB\nPss: 40 kB\nPss_Dirty: 9 kB\n\
                     7f20-7f30 rw-p 00000000 00:00 0 \nPss: 3 kB\n7f40-7f50 r-xp 00000000 08:01 7 /usr/bin/x\nPss: 4 kB\n";
        let mut sum = Held::default();
        add(&mut sum, smaps);
        assert_eq!((sum.guest_kib, sum.rest_kib), (40, 7));
    }
}
