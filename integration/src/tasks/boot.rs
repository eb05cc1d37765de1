//! `cargo lab boot`: one lab machine, one VM in it, its console here. For whoever works on the VMM.

use std::{
    io::{Read as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::{
    guest,
    progress::say,
    provision,
    qemu::{Accel, Lab, LabConfig, Shape, machine::ORDER_DEADLINE, vm},
};

/// Which form of the kernel the VMM is given.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum KernelForm {
    /// As shipped.
    Bzimage,
    /// The ELF inside it.
    Elf,
}

/// Options of `cargo lab boot`.
#[derive(Debug, Args)]
pub struct Options {
    /// Form of the guest's kernel.
    #[arg(long, value_enum, default_value = "elf")]
    kernel: KernelForm,
    /// Release of the guest's kernel: 12 or 13.
    #[arg(long, default_value_t = 13, value_parser = clap::value_parser!(u8).range(12..=13))]
    debian: u8,
    /// A static rebec-vmm to use instead of building one.
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,
    /// Memory of the VM.
    #[arg(long, default_value = "256M")]
    memory: String,
    /// Processors of the VM.
    #[arg(long, default_value_t = 1)]
    vcpus: u8,
    /// Give the VM no disk: its system runs from the initramfs.
    #[arg(long)]
    no_disk: bool,
    /// Give the VM a port on LAN 7.
    #[arg(long)]
    net: bool,
    /// More words for the guest's kernel, as in `loglevel=7 earlyprintk=ttyS0 rebec.shell`.
    #[arg(long, default_value = "", value_name = "WORDS")]
    append: String,
    /// A variable for the VMM's environment, as in RUST_LOG=debug.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// End after so many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Run this line of shell in the lab machine instead of a VM; programs and images are below /share.
    #[arg(long, value_name = "LINE")]
    exec: Option<String>,
    /// How the lab machine runs.
    #[arg(long, value_enum)]
    accel: Option<Accel>,
}

/// Boots, shows, and ends with the VMM's exit code.
pub fn run(options: &Options) -> Result<ExitCode> {
    let provisions = provision::provision()?;
    let kernel = if options.debian == 12 { &provisions.guest_12 } else { &provisions.guest };
    let files = guest::files(kernel)?;
    let share = vm::share(kernel, &files, options.vmm.as_ref())?;
    let link = Shape::default();
    let mut lab = Lab::start(
        &provisions,
        &LabConfig { name: "boot", machines: &["a"], accel: options.accel, memory_mib: 2048, share, link, devices: &[] },
    )?;
    let machine = &lab.machines[0];
    lab.check_kvm()?;
    let argv = match &options.exec {
        Some(line) => vec!["sh".to_owned(), "-c".to_owned(), line.clone()],
        None => {
            if !options.no_disk {
                let disk = lab.evidence().join("guest.qcow2");
                guest::overlay(&disk, "/share/guest/base.raw")?;
                machine.put_file("/work/guest.qcow2", &disk, 0o600, ORDER_DEADLINE)?;
            }
            vmm_arguments(options)
        }
    };
    say("boot", argv.join(" "));
    let job = Arc::new(machine.start(&argv.iter().map(String::as_str).collect::<Vec<_>>())?);
    forward_stdin(Arc::clone(&job));
    let start = Instant::now();
    let end = options.seconds.map(Duration::from_secs);
    loop {
        // Asked first, so that what it said last is taken below.
        let finished = job.ended()?;
        std::io::stdout().write_all(&job.take_output()).context("write to stdout")?;
        std::io::stdout().flush().context("write to stdout")?;
        std::io::stderr().write_all(&job.take_errors()).context("write to stderr")?;
        if let Some(code) = finished {
            say("boot", format_args!("ended with code {code} after {:.1} s", start.elapsed().as_secs_f64()));
            if code == 0 {
                lab.succeeded();
            }
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        if end.is_some_and(|end| start.elapsed() > end) {
            say("boot", "the time is over");
            lab.succeeded();
            return Ok(ExitCode::SUCCESS);
        }
        job.wait_output(Duration::from_secs(1));
    }
}

fn vmm_arguments(options: &Options) -> Vec<String> {
    let mut argv: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| argv.extend(words.iter().map(|word| (*word).to_owned()));
    if !options.env.is_empty() {
        add(&["env"]);
        add(&options.env.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let kernel = match options.kernel {
        KernelForm::Bzimage => "/share/guest/vmlinuz",
        KernelForm::Elf => "/share/guest/vmlinux",
    };
    add(&["/share/bin/rebec-vmm", "run", "--kernel", kernel, "--initramfs", "/share/guest/initramfs"]);
    let mut cmdline = format!("{} rebec.name=guest", guest::cmdline());
    if options.net {
        cmdline += " rebec.ip=dhcp";
        add(&["--net", "vni=7,mac=52:54:00:77:00:01,local=10.0.0.1:4790,ip=10.77.0.1/24"]);
    }
    add(&["--cmdline", format!("{cmdline} {}", options.append).trim()]);
    add(&["--memory", &options.memory, "--vcpus", &options.vcpus.to_string()]);
    if !options.no_disk {
        add(&["--disk", "/work/guest.qcow2"]);
    }
    add(&["--serial", "stdio", "--control", "/run/guest.control"]);
    argv
}

/// Passes on what is typed here. The thread ends with the program: reading a terminal cannot be interrupted.
fn forward_stdin(job: Arc<crate::channel::client::Job>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            if job.send(&buffer[..length]).is_err() {
                return;
            }
        }
    });
}
