//! What the namespace lab tests on the local KVM, on the KVM of a lab machine: the tests of `vmm/kvm`, and the bench guest, which runs there as it
//! does everywhere, is checked, moves and is checked again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rebec_lab::{
    artifacts::{self, Artifact},
    channel::client::Job,
    netlab::guest,
    provision,
    qemu::{Lab, LabConfig, Machine, Shape, image::Share, vm},
};

/// Five times what two busy cores were seen to need for the longest step.
const DEADLINE: Duration = Duration::from_secs(300);
const TARGET: &str = "127.0.0.1:7000";

/// A VMM whose console is its job's output.
struct Guest {
    job: Job,
    console: String,
    errors: String,
}

impl Guest {
    fn start(machine: &Machine, arguments: &[&str], control: &str) -> Result<Self> {
        let argv = [&[vm::PROGRAM][..], arguments, &["--serial", "stdio", "--control", control]].concat();
        Ok(Self { job: machine.start(&argv)?, console: String::new(), errors: String::new() })
    }

    /// Waits for a line that was not there before the call and returns it.
    fn wait(&mut self, text: &str) -> Result<String> {
        let (from, end) = (self.console.len(), Instant::now() + DEADLINE);
        loop {
            let over = self.job.ended()?;
            self.job.wait_output(Duration::from_millis(200));
            self.console += &String::from_utf8_lossy(&self.job.take_output());
            let new = &self.console[from..];
            let whole = &new[..new.rfind('\n').map_or(0, |end| end + 1)];
            if let Some(line) = whole.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            self.errors += &String::from_utf8_lossy(&self.job.take_errors());
            ensure!(over.is_none() && Instant::now() < end, "{text:?} did not come; ended: {over:?}; {}; {new}", self.errors);
        }
    }

    fn check(&mut self) -> Result<()> {
        self.job.send(b"c")?;
        let check = self.wait("check ")?;
        ensure!(check.contains(" ok "), "{check}");
        Ok(())
    }
}

/// What a guest reads of its processor is what its model says, on a KVM that hears each CPUID of it.
fn models(machine: &Machine) -> Result<()> {
    const AVX: u32 = 1 << 28;
    let said = machine.check(&[vm::PROGRAM, "cpu"], DEADLINE)?;
    let level = said.lines().find_map(|line| line.strip_prefix("level ")).unwrap_or_default();
    ensure!(level >= "x86-64-v2" && level.starts_with("x86"), "too little for this test: {said}");
    for (model, state) in [("x86-64-v2", 0), ("x86-64-v3", 7), ("x86-64-v4", 0xe7)] {
        if level < model {
            continue;
        }
        let run = [
            "run",
            "--kernel",
            "/share/bench-guest",
            "--memory",
            "64M",
            "--cpu",
            model,
            "--cmdline",
            "cpuid=1 stats_ms=0 heartbeat_ms=200",
        ];
        let mut guest = Guest::start(machine, &run, &format!("/tmp/{model}"))?;
        guest.wait("hb 0 ")?;
        let shown = |leaf: &str, register: usize| {
            let line = guest.console.lines().find_map(|line| line.strip_prefix(&format!("cpuid {leaf} ")))?;
            u32::from_str_radix(line.split_ascii_whitespace().nth(register)?, 16).ok()
        };
        let (one, xsave) = (shown("1.0", 2), shown("d.0", 0));
        let is_so = one.is_some_and(|ecx| (ecx & AVX != 0) == (state != 0)) && xsave == Some(state);
        ensure!(is_so, "{model}: {one:x?} {xsave:x?}: {}", guest.console);
        guest.job.send(b"q")?;
        let ended = guest.job.finish(DEADLINE)?;
        ensure!(ended.code == 0 && !ended.errors.contains("shows its guest more"), "{model}: {}", ended.errors);
    }
    Ok(())
}

#[test]
fn kvm_and_the_bench_guest_are_the_same_on_other_hardware() -> Result<()> {
    let provisions = provision::provision()?;
    let share = Share::default()
        .with("bin/rebec-vmm", &artifacts::build(Artifact::Vmm)?)
        .with("bin/kvm-tests", &artifacts::build_tests("rebec-kvm")?)
        .with("bench-guest", &guest::build()?);
    let config =
        LabConfig { name: "qemu-kvm", machines: &["a"], accel: None, memory_mib: 2048, share, link: Shape::default(), devices: &[] };
    let mut lab = Lab::start(&provisions, &config)?;
    lab.check_kvm()?;
    let machine = &lab.machines[0];
    println!("{}", machine.check(&["/share/bin/kvm-tests", "--test-threads=1"], DEADLINE)?);

    models(machine)?;

    // A byte on the console may take a machine's emulated KVM a millisecond.
    let load = "vm=1 heartbeat_ms=200 fill=text:3:20%,random:5:10%,zero dirty=0:words:500 stats_ms=0";
    let run = ["run", "--kernel", "/share/bench-guest", "--memory", "64M", "--cmdline", load];
    let mut source = Guest::start(machine, &run, "/tmp/source")?;
    source.wait("hb 10 ")?;
    source.check()?;
    let mut target = Guest::start(machine, &["receive", "--listen", TARGET], "/tmp/target")?;
    machine.shell("until [ -S /tmp/target ]; do sleep 0.1; done")?;
    let moved = machine.check(&[vm::PROGRAM, "ctl", "/tmp/source", "migrate", "--to", TARGET, "--downtime-max-ms", "2000"], DEADLINE)?;
    ensure!(moved.contains("\"outcome\":\"moved\""), "{moved}");
    target.wait("hb ")?;
    target.check()?;
    target.job.send(b"q")?;
    let ended = target.job.finish(DEADLINE)?;
    ensure!(ended.code == 0, "{}", ended.errors);
    lab.succeeded();
    Ok(())
}
