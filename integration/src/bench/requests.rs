//! Small reads of a disk whose file is in the page cache, one by one and 32 at once, by the bench guest: ours and QEMU's virtio-blk with io_uring, each on this
//! machine's KVM, one after the other.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Figure, Peer, Target};
use crate::{
    netlab::{NetLab, Vmm, guest, vmm::SHORT},
    progress::say,
};

const DISK_BYTES: usize = 256 << 20;
const DEPTH: u32 = 32;
/// Times the peer's, at 32 requests.
const OF_PEER: f64 = 2.0;
const PEER: &str = "qemu-system-x86_64";
/// Reads are counted for so long, so often, in turns: what else the machine does meets both.
const COUNTED: Duration = Duration::from_secs(3);
const TURNS: usize = 3;

/// Both depths.
pub fn measure() -> Result<Vec<Figure>> {
    let mut lab = NetLab::start("bench-requests", &["a"])?;
    let disk = lab.evidence().join("disk");
    // Written, so that no hole is read, and it is in the page cache then.
    File::create(&disk)?.write_all(&vec![7; DISK_BYTES])?;
    let mut figures = vec![];
    for (depth, times) in [(1, 1.0), (DEPTH, OF_PEER)] {
        let (mut ours, mut theirs) = (vec![], vec![]);
        for _ in 0..TURNS {
            ours.push(our_rate(&lab, &disk, depth)?);
            match peer_rate(&lab, &disk, depth) {
                Ok(rate) => theirs.push(rate),
                Err(error) => say("bench", format_args!("no peer beside our disk: {error:#}")),
            }
        }
        let peer = (!theirs.is_empty()).then(|| median(&mut theirs));
        figures.push(Figure {
            name: format!("random reads of 4 KiB, {depth} at once, file in the page cache"),
            unit: "k/s",
            measured: median(&mut ours) / 1e3,
            target: peer.map_or(Target::None, |peer| Target::AtLeast(peer * times / 1e3)),
            peers: peer.map(|peer| Peer { name: "QEMU".into(), value: peer / 1e3 }).into_iter().collect(),
            how: format!(
                "bench guest, raw file, one queue, medians of {TURNS} turns; QEMU with KVM, q35, virtio-blk-pci on an I/O thread with aio=io_uring and the page cache, the same guest"
            ),
        });
    }
    fs::remove_file(&disk)?;
    lab.succeeded();
    Ok(figures)
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn load(depth: u32) -> String {
    format!("heartbeat_ms=0 blk0=read,depth={depth}")
}

fn our_rate(lab: &NetLab, disk: &Path, depth: u32) -> Result<f64> {
    let mut config = guest::config("128M", &format!("{} stats_ms=0", load(depth)))?;
    config.disks = vec![disk.display().to_string()];
    let vmm = Vmm::run(&lab.machines[0], "reads", &config)?;
    vmm.console.wait("ready", SHORT)?;
    let count = || -> Result<(Instant, u64)> {
        let mark = vmm.console.mark();
        vmm.console.send(b"s")?;
        let line = vmm.console.wait_after(mark, "blk 0 written", SHORT)?;
        ensure!(line.number("errors")? == 0, "{}", line.text);
        Ok((Instant::now(), line.number("read")?))
    };
    let (began, first) = count()?;
    thread::sleep(COUNTED);
    let (ended, last) = count()?;
    Ok((last - first) as f64 / (ended - began).as_secs_f64())
}

/// Killed when it has run for long enough: the guest's way to power off is not this machine's.
fn peer_rate(lab: &NetLab, disk: &Path, depth: u32) -> Result<f64> {
    let (said, kernel) = (lab.evidence().join("peer.console"), guest::build()?);
    let khz = tsc_khz(lab)?;
    let mut command = Command::new(PEER);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-M", "q35", "-accel", "kvm", "-cpu", "qemu64", "-m", "128"]);
    command.args(["-object", "iothread,id=io", "-blockdev", &format!("driver=file,filename={},node-name=f,aio=io_uring", disk.display())]);
    command.args(["-blockdev", "driver=raw,file=f,node-name=d"]);
    command.args(["-device", "virtio-blk-pci,drive=d,disable-legacy=on,addr=0x1,iothread=io"]);
    command.arg("-serial").arg(format!("file:{}", said.display())).arg("-kernel").arg(&kernel);
    command.arg("-append").arg(format!("{} stats_ms=500 tsc_khz={khz} machine=q35", load(depth)));
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().with_context(|| format!("start {PEER}"))?;
    let rate = counted(&said);
    child.kill().and_then(|()| child.wait())?;
    rate
}

/// Reads a second, from the guest's own clock: `stat ms=` and the `blk` line behind it.
fn counted(said: &Path) -> Result<f64> {
    let deadline = Instant::now() + SHORT + COUNTED;
    while Instant::now() < deadline {
        thread::sleep(Duration::from_millis(200));
        let text = fs::read_to_string(said).unwrap_or_default();
        let of = |start: &str, key: &str| -> Vec<u64> {
            let number = |line: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.parse().ok());
            text.lines().filter(|line| line.starts_with(start)).filter_map(number).collect()
        };
        let (times, reads) = (of("stat ", "ms="), of("blk 0 ", "read="));
        let count = times.len().min(reads.len());
        // The last line may be half of one.
        let (Some((&began, &first)), Some(end)) = (times.iter().zip(&reads).nth(1), count.checked_sub(2)) else { continue };
        if times[end].saturating_sub(began) as u128 >= COUNTED.as_millis() {
            return Ok((reads[end] - first) as f64 * 1000.0 / (times[end] - began) as f64);
        }
    }
    anyhow::bail!("{PEER}'s guest did not read: {}", said.display())
}

/// The rate of the time stamp counter, which our machine tells its guest.
fn tsc_khz(lab: &NetLab) -> Result<u64> {
    let mut config = guest::config("32M", "heartbeat_ms=0 stats_ms=0")?;
    config.cmdline += " run_ms=1";
    let vmm = Vmm::run(&lab.machines[0], "clock", &config)?;
    vmm.console.wait("rebec-bench", SHORT)?.number("tsc_khz")
}
