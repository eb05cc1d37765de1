//! Four spare machines at once: from the start of QEMU until all are members of one pool, beside the time the same machines need for their
//! kernel alone.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{Figure, Peer, Target};
use crate::{
    appliance::Appliance,
    initramfs::Initramfs,
    paths,
    progress::say,
    provision::{Provisions, provision},
    qemu::{Accel, Machine, lab, machine::MachineConfig, pool, switch::Switch},
};

const NAMES: [&str; 4] = ["m1", "m2", "m3", "m4"];
const TARGET_S: f64 = 16.0;
/// Of a spare machine that is to run something beside.
const MEMORY_MIB: u32 = 512;
/// Five times what two busy cores were seen to need.
const DEADLINE: Duration = Duration::from_secs(200);
const MARK: &str = "rebec-init";

/// Boots them twice: as they are, and with a PID 1 that only says that it runs.
pub fn measure() -> Result<Vec<Figure>> {
    let provisions = provision()?;
    let appliance = Appliance::build()?;
    let folder = tempfile::tempdir_in(paths::lab()).context("create a folder for the bench")?;
    let alone = folder.path().join("init.cpio");
    let mut tree = Initramfs::with_busybox()?;
    tree.program("init", format!("#!/bin/sh\necho {MARK}\nwhile :; do sleep 1000; done\n"));
    tree.write(&alone)?;

    let rack = Rack { accel: Accel::choose(None, &provisions)?, kernel: appliance.vmlinux()?, provisions, folder };
    let kernels = rack.boot(&alone)?;
    kernels.machines.iter().try_for_each(|machine| machine.wait_console(MARK, DEADLINE))?;
    let kernel_s = kernels.began.elapsed().as_secs_f64();
    say("bench", format_args!("kernels alone: {kernel_s:.1} s"));
    drop(kernels);

    let all = rack.boot(&appliance.initrd())?;
    let [first, others @ ..] = &all.machines[..] else { bail!("invariant: there are four machines") };
    pool::wait_agent(first, DEADLINE)?;
    let ticket = pool::found_by_typing(first, "bench", "lab", others.len())?;
    say("bench", format_args!("m1 shows a ticket: {:.1} s", all.began.elapsed().as_secs_f64()));
    for machine in others {
        pool::wait_agent(machine, DEADLINE)?;
        machine.type_line(&ticket)?;
    }
    others.iter().try_for_each(|machine| pool::wait_member(machine, "lab"))?;
    let joined_s = all.began.elapsed().as_secs_f64();
    let how = "four machines of 512 MiB boot the image's kernel and initrd side by side; one founds a pool, the others join by a ticket typed at their consoles; \
               the peer is the same machines and kernel with a PID 1 that only says that it runs";
    Ok(vec![Figure {
        name: "four machines, from start to joined".into(),
        unit: "s",
        measured: joined_s,
        target: Target::AtMost(TARGET_S),
        peers: vec![Peer { name: "their kernels alone".into(), value: kernel_s }],
        how: how.into(),
    }])
}

/// What the machines of both boots have in common.
struct Rack {
    provisions: Provisions,
    accel: Accel,
    kernel: PathBuf,
    folder: tempfile::TempDir,
}

struct Boot {
    began: Instant,
    machines: Vec<Machine>,
    // The machines' network, for as long as they run.
    _switch: Switch,
}

impl Rack {
    fn boot(&self, initramfs: &Path) -> Result<Boot> {
        let switch = Switch::start(NAMES.len(), None)?;
        let began = Instant::now();
        let start = |(port, name): (usize, &&str)| {
            let words = format!(" quiet rebec.state=ram rebec.hostname={name} rebec.ip={}/24", lab::address(port));
            Machine::start(&MachineConfig {
                name,
                emulator: &self.provisions.emulator,
                kernel: &self.kernel,
                initramfs,
                words: &words,
                accel: self.accel,
                memory_mib: MEMORY_MIB,
                vcpus: self.accel.processors(),
                share: None,
                network: Some((switch.socket(port), lab::mac(port))),
                devices: &[],
                evidence: self.folder.path(),
            })
        };
        let machines = NAMES.iter().enumerate().map(start).collect::<Result<_>>()?;
        Ok(Boot { began, machines, _switch: switch })
    }
}
