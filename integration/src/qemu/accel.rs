//! Which acceleration lab machines get.
//!
//! KVM inside a lab machine needs a processor with svm or vmx, nesting switched on, and a `/dev/kvm` that really boots
//! something; where one of these is missing, QEMU emulates a processor with SVM. Slower, and everywhere the same.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

use crate::{initramfs::Initramfs, progress::say, provision::Provisions};

/// How lab machines run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Accel {
    /// On the host's processor.
    Kvm,
    /// Emulated, with emulated SVM.
    Tcg,
    /// Emulated on one thread, with a clock that counts instructions: for the bench alone.
    #[value(skip)]
    Counting,
}

/// How long the probe may take to boot a kernel on KVM.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
const PROBE_WORD: &str = "rebec-probe-runs";

impl Accel {
    /// QEMU's options.
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Kvm => &["-accel", "kvm", "-cpu", "host"],
            // SVM is emulated with nested paging; the rest of `max` is what this QEMU can do. Told that byte strings are fast, kernels copy
            // and clear pages by them, and emulation goes byte by byte.
            Self::Tcg => &["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,+svm,-erms,-fsrm,-fsrs,-fzrm"],
            // Counted on the processor as it is.
            Self::Counting => &["-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=0,sleep=off", "-cpu", "max,+svm"],
        }
    }

    /// Processors of one machine. Emulation of several crashes guests now and then (docs/notes/qemu-lab.md).
    pub fn processors(self) -> u8 {
        match self {
            Self::Kvm => 2,
            Self::Tcg | Self::Counting => 1,
        }
    }

    /// What the user asked for, or what this host can give. Prints the choice and its reason.
    pub fn choose(asked: Option<Self>, provisions: &Provisions) -> Result<Self> {
        let (choice, reason) = match asked {
            Some(asked) => (asked, "asked for".to_owned()),
            None => match kvm_refusal(provisions)? {
                None => (Self::Kvm, "nesting works here".to_owned()),
                Some(reason) => (Self::Tcg, reason),
            },
        };
        let name = match choice {
            Self::Kvm => "KVM",
            Self::Tcg => "emulation (TCG) with SVM",
            Self::Counting => "emulation (TCG) with SVM that counts instructions",
        };
        say("lab", format_args!("lab machines run by {name}: {reason}"));
        Ok(choice)
    }
}

/// Why KVM cannot be used; none if it can.
fn kvm_refusal(provisions: &Provisions) -> Result<Option<String>> {
    let flags = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let module = match flags.split_whitespace().find(|word| ["svm", "vmx"].contains(word)) {
        Some("svm") => "kvm_amd",
        Some(_) => "kvm_intel",
        None => return Ok(Some("this processor shows neither svm nor vmx".to_owned())),
    };
    let nested = fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).unwrap_or_default();
    if !["1", "Y", "y"].contains(&nested.trim()) {
        return Ok(Some(format!("nesting is off in module {module}")));
    }
    let folder = tempfile::tempdir().context("create a temporary folder")?;
    match probe(provisions, folder.path()) {
        Ok(output) if output.contains(PROBE_WORD) => Ok(None),
        Ok(_) => Ok(Some("a probe on /dev/kvm did not reach user space".to_owned())),
        Err(error) => Ok(Some(format!("a probe on /dev/kvm failed: {error}"))),
    }
}

fn probe(provisions: &Provisions, folder: &Path) -> Result<String> {
    let mut tree = Initramfs::with_busybox()?;
    tree.program("init", format!("#!/bin/sh\necho {PROBE_WORD}\npoweroff -f\n"));
    let initramfs = folder.join("probe.cpio");
    tree.write(&initramfs)?;
    let program = provisions.emulator.program();
    program
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35", "-m", "512", "-serial", "stdio"])
        .args(Accel::Kvm.arguments())
        .arg("-kernel")
        .arg(&provisions.lab.bzimage)
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .deadline(PROBE_DEADLINE)
        .output()
}
