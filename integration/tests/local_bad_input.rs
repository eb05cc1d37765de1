//! What users get wrong, one by one: every mistake is one line that names the object, with exit code 1 or 2, and no panic.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rebec_lab::{
    netlab::{
        Machine, NetLab, Vmm, guest,
        pattern::mix,
        vmm::{self, SHORT},
    },
    provision,
};

/// Runs `rebec-vmm` with a mistake; it must end soon, say one line with every word of `names`, and exit with 1 or 2.
fn refused(machine: &Machine, arguments: &[&str], names: &[&str]) -> Result<()> {
    let mut command = Command::new(vmm::program()?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = vmm::wait_with_output(machine.spawn(command)?, SHORT).with_context(|| format!("{arguments:?} was not refused"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let shown = format!("{arguments:?}: {}: {said}", output.status);
    ensure!(matches!(output.status.code(), Some(1 | 2)), "{shown}");
    ensure!(said.trim_end().lines().count() == 1, "not one line: {shown}");
    ensure!(!said.contains("panicked"), "{shown}");
    for name in names {
        ensure!(said.contains(name), "`{name}` is not named: {shown}");
    }
    Ok(())
}

/// Files with mistakes in them.
struct Files {
    folder: PathBuf,
    kernel: Vec<u8>,
}

impl Files {
    fn new(folder: &Path) -> Result<Self> {
        Ok(Self { folder: folder.to_owned(), kernel: fs::read(guest::build()?)? })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<String> {
        let path = self.folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        Ok(path.display().to_string())
    }
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64 / 8).flat_map(|word| mix(seed ^ mix(word)).to_le_bytes()).collect()
}

#[test]
fn kernels_that_are_none() -> Result<()> {
    let mut lab = NetLab::start("local-bad-kernel", &["a"])?;
    let machine = &lab.machines[0];
    let files = Files::new(lab.evidence())?;
    let kernel = |path: &str| refused(machine, &["run", "--kernel", path], &[path]);
    kernel("/nowhere/vmlinuz")?;
    kernel("/dev/null")?;
    kernel(&lab.evidence().display().to_string())?;
    kernel(&files.write("empty", b"")?)?;
    kernel(&files.write("random", &noise(1, 1 << 20))?)?;
    // The last one ends within what is loaded; what follows it are tables for debuggers.
    for bytes in [1, 4, 16, 63, 64, 100, 300, 4096, 100 << 10] {
        kernel(&files.write(&format!("truncated-{bytes}"), &files.kernel[..bytes])?)?;
    }
    let mut bzimage = noise(2, 64 << 10);
    bzimage[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    kernel(&files.write("bzimage", &bzimage)?)?;
    // An ELF that no PVH loader can enter: this test itself.
    kernel(&std::env::current_exe()?.display().to_string())?;
    let initramfs = "/nowhere/initramfs";
    let good = files.write("good", &files.kernel)?;
    refused(machine, &["run", "--kernel", &good, "--initramfs", initramfs], &[initramfs])?;
    lab.succeeded();
    Ok(())
}

/// A kernel that was started from once is started from its kept form, and nothing that is no kernel is kept.
#[test]
fn a_kernel_cache_keeps_kernels_and_nothing_else() -> Result<()> {
    let mut lab = NetLab::start("local-kernel-cache", &["a"])?;
    let machine = &lab.machines[0];
    let files = Files::new(lab.evidence())?;
    let kernel = provision::provision()?.guest.bzimage.display().to_string();
    let kernels = lab.evidence().join("kernels");
    let folder = kernels.display().to_string();
    let random = files.write("random", &noise(9, 1 << 20))?;
    let run = |kernel| ["run", "--kernel", kernel, "--memory", "128M", "--kernel-cache", &folder];
    refused(machine, &run(&kernel), &[&folder])?;
    fs::create_dir(&kernels)?;
    refused(machine, &run(&random), &[&random])?;
    refused(machine, &["unpack", &files.write("empty", b"")?], &["empty"])?;
    ensure!(fs::read_dir(&kernels)?.next().is_none(), "what is no kernel was kept");

    let sockets = tempfile::tempdir()?;
    let control = sockets.path().join("control");
    let mut command = Command::new(vmm::program()?);
    command.args(run(&kernel)).arg("--control").arg(&control);
    let mut child = machine.spawn(command)?;
    let until = Instant::now() + SHORT;
    while !control.exists() {
        ensure!(Instant::now() < until && child.try_wait()?.is_none(), "the VM does not start");
        thread::sleep(Duration::from_millis(5));
    }
    // Stock kernels boot for minutes on this KVM; this one is only to be started.
    child.kill()?;
    child.wait()?;
    let kept: Vec<_> = fs::read_dir(&kernels)?.collect::<Result<_, _>>()?;
    let [kept] = &kept[..] else { bail!("{} files were kept", kept.len()) };
    let unpacked = Command::new(vmm::program()?).args(["unpack", &kernel]).output()?;
    ensure!(unpacked.status.success() && fs::read(kept.path())? == unpacked.stdout, "what is kept is not what `unpack` writes");

    // What is kept is what starts: with it cut short, nothing does.
    File::options().write(true).open(kept.path())?.set_len(1000)?;
    refused(machine, &run(&kernel), &[&kernel])?;
    lab.succeeded();
    Ok(())
}

#[test]
fn every_bit_of_the_kernels_head_may_be_wrong() -> Result<()> {
    let mut lab = NetLab::start("local-bad-head", &["a"])?;
    let machine = &lab.machines[0];
    let files = Files::new(lab.evidence())?;
    for seed in 0..24_u64 {
        let mut kernel = files.kernel.clone();
        let at = mix(seed) as usize % 232;
        kernel[at] ^= 1 << (seed % 8);
        let path = files.write("flipped", &kernel)?;
        let mut command = Command::new(vmm::program()?);
        command.args(["run", "--kernel", &path, "--memory", "64M", "--cmdline", "run_ms=1"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = machine.spawn(command)?;
        // Some flips matter to nobody, and some make a kernel that runs nowhere: those are ended here.
        if vmm::wait(&mut child, Duration::from_secs(2)).is_err() {
            child.kill()?;
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!said.contains("panicked") && said.lines().count() <= 1, "byte {at}, seed {seed}: {}: {said}", output.status);
        ensure!(matches!(output.status.code(), Some(0..=2) | None), "byte {at}, seed {seed}: {}: {said}", output.status);
    }
    lab.succeeded();
    Ok(())
}

#[test]
fn machines_that_cannot_be() -> Result<()> {
    let mut lab = NetLab::start("local-bad-shape", &["a"])?;
    let machine = &lab.machines[0];
    let kernel = guest::build()?.display().to_string();
    let run = |more: &[&str], names: &[&str]| refused(machine, &[&["run", "--kernel", &kernel], more].concat(), names);
    for memory in ["0", "1M", "15M", "2T", "-1G", "much", "", "99999999999999999999G"] {
        run(&[&format!("--memory={memory}")], &["memory"])?;
    }
    for vcpus in ["0", "17", "256", "-1", "two"] {
        run(&[&format!("--vcpus={vcpus}")], &["vcpus"])?;
    }
    run(&["--turbo"], &["--turbo"])?;
    refused(machine, &["run"], &["--kernel"])?;
    refused(machine, &["fly"], &["fly"])?;
    refused(machine, &[], &[])?;
    run(&["--net", "vni=1"], &["net"])?;
    run(&["--net", "vni=99999999,mac=52:54:00:00:00:01,local=10.0.0.1:1"], &["vni"])?;
    run(&["--net", "vni=1,mac=53:54:00:00:00:01,local=10.0.0.1:1"], &["mac"])?;
    run(&["--net", "vni=1,mac=52:54:00:00:00:01,local=192.0.2.1:4789"], &["192.0.2.1:4789"])?;
    run(&["--serial", "tcp:1"], &["serial"])?;
    run(&["--serial", "file:/nowhere/log"], &["/nowhere/log"])?;
    run(&["--control", "/nowhere/socket"], &["/nowhere/socket"])?;
    run(&["--ledger", "/nowhere/ledger"], &["/nowhere/ledger"])?;
    run(&["--cgroup", "/nowhere/group"], &["/nowhere/group"])?;
    lab.succeeded();
    Ok(())
}

#[test]
fn disks_that_are_not_what_they_say() -> Result<()> {
    let mut lab = NetLab::start("local-bad-disk", &["a"])?;
    let machine = &lab.machines[0];
    let files = Files::new(lab.evidence())?;
    let kernel = guest::build()?.display().to_string();
    let disk = |path: &str| refused(machine, &["run", "--kernel", &kernel, "--memory", "64M", "--disk", path], &[path]);
    disk("/nowhere/disk")?;
    disk("/dev/null")?;
    disk(&lab.evidence().display().to_string())?;
    disk(&files.write("qcow2-cut", b"QFI\xfb\0\0\0\x03")?)?;
    let mut qcow2 = noise(3, 64 << 10);
    qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    disk(&files.write("qcow2-random", &qcow2)?)?;
    disk(&files.write("ledger", b"not a ledger, not a disk")?)?;
    refused(machine, &["run", "--kernel", &kernel, "--ledger", &files.write("ledger", &noise(4, 256))?], &["ledger"])?;
    lab.succeeded();
    Ok(())
}

#[test]
fn ports_that_are_taken() -> Result<()> {
    let mut lab = NetLab::start("local-bad-port", &["a"])?;
    let machine = &lab.machines[0];
    let kernel = guest::build()?.display().to_string();
    let address = machine.address();
    let (_tcp, _udp) = machine.within(move || (TcpListener::bind((address, 7000)), UdpSocket::bind((address, 4789))))?;
    let (listen, local) = (format!("{address}:7000"), format!("{address}:4789"));
    refused(machine, &["receive", "--listen", &listen], &[&listen])?;
    let net = format!("vni=1,mac=52:54:00:00:00:01,local={local}");
    refused(machine, &["run", "--kernel", &kernel, "--memory", "64M", "--net", &net], &[&local])?;
    lab.succeeded();
    Ok(())
}

#[test]
fn a_control_socket_that_is_not_there_or_is_told_nonsense() -> Result<()> {
    let mut lab = NetLab::start("local-bad-control", &["a"])?;
    let machine = &lab.machines[0];
    refused(machine, &["ctl", "/nowhere/socket", "status"], &["/nowhere/socket"])?;
    let mut vm = Vmm::run(machine, "vm", &guest::config("64M", "")?)?;
    let socket = vm.control().display().to_string();
    refused(machine, &["ctl", &socket, "fly"], &["fly"])?;
    refused(machine, &["ctl", &socket, "resume"], &["paused"])?;
    refused(machine, &["ctl", &socket, "cancel"], &["move"])?;
    refused(machine, &["ctl", &socket, "fdb-add", "53:54:00:00:00", "10.0.0.9:4789"], &["53:54"])?;
    for seed in 0..32_u64 {
        let mut stream = std::os::unix::net::UnixStream::connect(vm.control())?;
        let bytes = match seed % 4 {
            0 => noise(seed, 4096),
            1 => vec![b'{'; 200_000],
            2 => b"{\"id\":1,\"do\":\"migrate\",\"streams\":16}\n".to_vec(),
            _ => format!("{{\"id\":{seed},\"do\":\"status\"").into_bytes(),
        };
        // The VM may hang up on such a client before it has said all.
        stream.write_all(&bytes).ok();
    }
    vm.status(machine)?;
    vm.console.send(b"q")?;
    assert!(vm.wait(SHORT)?.success());
    lab.succeeded();
    Ok(())
}

#[test]
fn a_peer_that_sends_garbage_harms_nobody() -> Result<()> {
    let mut lab = NetLab::start("local-bad-peer", &["a", "b"])?;
    let [a, b] = &lab.machines[..] else { unreachable!("two machines were asked for") };
    for seed in 0..8_u64 {
        let port = 7000 + seed as u16;
        let mut target = Vmm::receive(b, &format!("target{seed}"), port, &guest::config("64M", "")?)?;
        let to = (b.address(), port);
        let garbage = noise(seed, 1 << (seed + 4));
        a.within(move || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(to)?;
            // It may hang up before it has heard all.
            stream.write_all(&garbage).ok();
            Ok(())
        })??;
        // Either it gives up in one line, or it goes on waiting for a VM.
        if let Ok(status) = target.wait(Duration::from_secs(2)) {
            let said = target.said();
            ensure!(matches!(status.code(), Some(1 | 2)), "seed {seed}: {status}: {said}");
            ensure!(said.lines().count() == 1 && !said.contains("panicked"), "seed {seed}: {said}");
        }
    }

    // And a source whose target talks garbage runs on.
    let mut vm = Vmm::run(a, "vm", &guest::config("64M", "fill=text:1")?)?;
    vm.console.wait("ready", SHORT)?;
    for seed in 0..4_u64 {
        let at = (b.address(), 7100 + seed as u16);
        let listener = b.within(move || TcpListener::bind(at))??;
        let talker = thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if stream.write_all(&noise(seed, 4096)).is_err() {
                    return;
                }
            }
        });
        let moved = vm.migrate(a, b, at.1, &[])?;
        ensure!(moved.code == Some(1), "seed {seed}: {moved:?}");
        vm.console.wait_after(vm.console.mark(), "hb ", SHORT)?;
        drop(talker);
    }
    vm.console.send(b"c")?;
    ensure!(vm.console.wait("check 1", SHORT)?.text.starts_with("check 1 ok"));
    vm.console.send(b"q")?;
    ensure!(vm.wait(SHORT)?.success());
    lab.succeeded();
    Ok(())
}
