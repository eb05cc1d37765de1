//! What it costs to read what starts out of a disk, and to import a disk with holes.
//!
//! ```text
//! judge --disk   seal, read what starts, unpack its kernel        the difference is the reading: time, and peak memory without what it returns
//! judge --kernel seal,                  unpack the same kernel
//! ```

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Figure, Peer, Target};
use crate::{
    artifacts::{self, Artifact},
    command::Program,
    guest,
    netlab::{self, agents::Agents},
    paths, provision,
    standin::{self, Installed},
};

const READ_MS: f64 = 50.0;
const READ_MIB: f64 = 16.0;
/// What looking at the layer's tables may take.
const REMEMBERED_MS: f64 = 5.0;
const REMEMBERED_MIB: f64 = 1.0;
/// Written for each byte of data.
const WRITTEN: f64 = 1.05;
/// Of what the disk takes without anything in between.
const OF_DISK: f64 = 0.5;

const IMAGE_BYTES: u64 = 2 << 30;
const SPARSE_BYTES: u64 = 20 << 30;
const DATA_BYTES: u64 = 1 << 30;
/// Data lies in pieces of this size, spread evenly.
const PIECE_BYTES: u64 = 4 << 20;
const RUNS: usize = 9;
const MIB: f64 = 1048576.0;

/// Both.
pub fn measure() -> Result<Vec<Figure>> {
    let mut figures = reading()?;
    figures.extend(import()?);
    Ok(figures)
}

fn reading() -> Result<Vec<Figure>> {
    let provisions = provision::provision()?;
    let kernel = &provisions.guest;
    let files = guest::files(kernel)?;
    let folder = tempfile::tempdir_in(paths::lab()).context("create a folder for the bench")?;
    let image = folder.path().join("cloud.raw");
    let installed = |version| Installed {
        version,
        kernel: &kernel.bzimage,
        initramfs: Some(&files.initramfs),
        cmdline: "root=UUID=x ro quiet console=ttyS0",
    };
    standin::debian(&image, None, IMAGE_BYTES - (64 << 20), &[installed("6.12.9"), installed("6.12.6"), installed("6.1.1")], "")?;
    let vmm = artifacts::build(Artifact::Vmm)?;
    let median = |option: &str, file: &Path| -> Result<f64> {
        let mut times = (0..RUNS).map(|_| judged_ms(&vmm, option, file)).collect::<Result<Vec<_>>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[RUNS / 2])
    };
    let (whole, unpacking) = (median("--disk", &image)?, median("--kernel", &kernel.bzimage)?);
    // As a depot keeps it: what a start costs once its kernel was unpacked before and is still the disk's.
    let known = folder.path().join("cloud.starts");
    let made = Command::new(&vmm)
        .args(["unpack", "--disk"])
        .arg(&image)
        .stdout(File::create(&known)?)
        .status()
        .context("start rebec-vmm unpack")?;
    ensure!(made.success(), "rebec-vmm unpack --disk: {made}");
    let mut times =
        (0..RUNS).map(|_| timed_ms(judge(&vmm, "--disk", &image).arg("--unpacked-kernel").arg(&known))).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    let kept = times[RUNS / 2];
    // A fresh disk on that image, beside a process that reads nothing: the kernel's ELF needs no unpacking either.
    let layer = folder.path().join("fresh.qcow2");
    Program::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&image).arg(&layer).arg("20G").run()?;
    let fresh = || {
        let mut command = judge(&vmm, "--disk", &layer);
        command.arg("--unpacked-kernel").arg(&known);
        command
    };
    let mut times = (0..RUNS).map(|_| timed_ms(&mut fresh())).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    let (remembered, nothing) = (times[RUNS / 2], median("--kernel", &kernel.elf)?);
    let remembered_bytes = peak_bytes(fresh())?.saturating_sub(peak_bytes(judge(&vmm, "--kernel", &kernel.elf))?);
    let (with_disk, with_kernel) = (peak_bytes(judge(&vmm, "--disk", &image))?, peak_bytes(judge(&vmm, "--kernel", &kernel.bzimage))?);
    let returned = fs::metadata(&files.initramfs)?.len();
    let beside = with_disk.saturating_sub(with_kernel).saturating_sub(returned);
    let how = "`rebec-vmm judge --disk` on a stand-in of 2 GiB (GPT, ext4, grub.cfg with three kernels, in the page cache), less `judge --kernel` on the same kernel, median of 9; \
               the kernel itself is unpacked in both. It is read anew at each start of a disk that its guest has written to";
    Ok(vec![
        figure(
            "reading what starts out of a disk of 2 GiB",
            "ms",
            whole - unpacking,
            Target::AtMost(READ_MS),
            vec![peer("with unpacking", whole)],
            how,
        ),
        figure(
            "all of it, where the kernel that the disk has was unpacked before",
            "ms",
            kept,
            Target::AtMost(READ_MS),
            vec![peer("unpacked anew", whole)],
            "all of `rebec-vmm judge --disk` with `--unpacked-kernel`: process, seal, reading, and the digest of the packed kernel, by which it is known",
        ),
        figure(
            "memory for that",
            "MiB",
            beside as f64 / MIB,
            Target::AtMost(READ_MIB),
            vec![peer("all of judge", with_disk as f64 / MIB)],
            "peak resident memory of the two, less the initial RAM disk that the reading returns",
        ),
        figure(
            "the same on a fresh disk of an image that was read before",
            "ms",
            remembered - nothing,
            Target::AtMost(REMEMBERED_MS),
            vec![peer("all of judge", remembered)],
            "`rebec-vmm judge --disk` on an empty layer of 20 GiB with `--unpacked-kernel`, less `judge --kernel` on the kernel's ELF, median of 9 each",
        ),
        figure(
            "memory for that, where it was read before",
            "MiB",
            remembered_bytes as f64 / MIB,
            Target::AtMost(REMEMBERED_MIB),
            vec![],
            "peak resident memory of those two",
        ),
    ])
}

fn judge(vmm: &Path, option: &str, file: &Path) -> Command {
    let mut command = Command::new(vmm);
    command.arg("judge").arg(option).arg(file).stdin(Stdio::null());
    command
}

fn judged_ms(vmm: &Path, option: &str, file: &Path) -> Result<f64> {
    timed_ms(&mut judge(vmm, option, file))
}

fn timed_ms(judge: &mut Command) -> Result<f64> {
    let began = Instant::now();
    let done = judge.output().context("start rebec-vmm judge")?;
    ensure!(done.status.success(), "rebec-vmm judge: {}", String::from_utf8_lossy(&done.stderr));
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// The most memory that it ever held: its answer finds a pipe that is full, so that it still stands when it is looked at.
fn peak_bytes(mut judge: Command) -> Result<u64> {
    let (read, write) = nix::unistd::pipe().context("make a pipe")?;
    nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).context("make a small pipe")?;
    let mut full = File::from(write.try_clone()?);
    full.write_all(&[b' '; 4096])?;
    let mut child = judge.stdout(write).stderr(Stdio::null()).spawn().context("start rebec-vmm judge")?;
    let (mut last, mut since) = (0, Instant::now());
    // It has come to its answer when its time no longer passes.
    while since.elapsed() < Duration::from_millis(500) {
        thread::sleep(Duration::from_millis(20));
        let ticks = family(child.id())?.iter().map(|process| ticks_of(*process)).sum::<u64>();
        if ticks != last {
            (last, since) = (ticks, Instant::now());
        }
    }
    let peaks = family(child.id())?.into_iter().filter_map(peak_of);
    let peak = peaks.max().context("rebec-vmm judge ended before it was looked at")?;
    child.kill().and_then(|()| child.wait())?;
    drop(read);
    Ok(peak)
}

/// A process and those that it started.
pub(super) fn family(process: u32) -> Result<Vec<u32>> {
    let mut all = vec![process];
    let mut at = 0;
    while let Some(&process) = all.get(at) {
        let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        at += 1;
        if all.len() > 64 {
            bail!("process {process} starts others without end");
        }
    }
    Ok(all)
}

fn ticks_of(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}

pub(super) fn peak_of(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let kib: u64 = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse().ok())?;
    Some(kib << 10)
}

fn import() -> Result<Vec<Figure>> {
    let mut agents = Agents::start("bench-disks", &["a"])?;
    agents.found(&["alpha"])?;
    let host = agents.host("a");
    let sparse = host.state().with_extension("sparse.raw");
    let file = File::create(&sparse).context("make a sparse disk")?;
    file.set_len(SPARSE_BYTES)?;
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    let piece: Vec<u8> = std::iter::repeat_with(|| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance.to_le_bytes()
    })
    .take(PIECE_BYTES as usize / 8)
    .flatten()
    .collect();
    for number in 0..DATA_BYTES / PIECE_BYTES {
        file.write_all_at(&piece, number * (SPARSE_BYTES / DATA_BYTES) * PIECE_BYTES)?;
    }
    file.sync_all()?;
    // What the same disk takes with nothing in between.
    let alone = host.state().with_extension("alone.raw");
    let began = Instant::now();
    let mut plain = File::create(&alone)?;
    (0..DATA_BYTES / PIECE_BYTES).try_for_each(|_| plain.write_all(&piece))?;
    plain.sync_all()?;
    let disk_mib_s = DATA_BYTES as f64 / MIB / began.elapsed().as_secs_f64();
    fs::remove_file(&alone)?;

    let bench = netlab::guest::build()?.display().to_string();
    let began = Instant::now();
    host.must(&["image", "import", "sparse", "--kernel", &bench, "--disk", &sparse.display().to_string()])?;
    let took = began.elapsed().as_secs_f64();
    let shown = host.must(&["image", "show", "sparse"])?;
    let part = host.state().join("parts").join(shown["disk"]["digest"].as_str().context("the image has a disk")?);
    let stored = fs::metadata(&part)?;
    ensure!(stored.len() == SPARSE_BYTES, "the part has {} bytes", stored.len());
    fs::remove_file(&sparse)?;
    agents.succeeded();
    let how = "a raw disk of 20 GiB with 1 GiB of data in 256 pieces, by `rebec image import`, judged and synced; all 20 GiB are hashed at both ends. The peer is 1 GiB written \
               and synced in the same place";
    Ok(vec![
        figure(
            "written at the import of a sparse disk, by its data",
            "",
            (stored.blocks() * 512) as f64 / DATA_BYTES as f64,
            Target::AtMost(WRITTEN),
            vec![],
            how,
        ),
        figure(
            "that import, by the disk's length",
            "MiB/s",
            SPARSE_BYTES as f64 / MIB / took,
            Target::AtLeast(OF_DISK * disk_mib_s),
            vec![peer("the disk alone", disk_mib_s)],
            how,
        ),
        figure(
            "that import, by its data",
            "MiB/s",
            DATA_BYTES as f64 / MIB / took,
            Target::None,
            vec![peer("the disk alone", disk_mib_s)],
            how,
        ),
    ])
}

fn figure(name: &str, unit: &'static str, measured: f64, target: Target, peers: Vec<Peer>, how: &str) -> Figure {
    Figure { name: name.to_owned(), unit, measured, target, peers, how: how.to_owned() }
}

fn peer(name: &str, value: f64) -> Peer {
    Peer { name: name.to_owned(), value }
}
