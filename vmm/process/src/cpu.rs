//! `rebec-vmm cpu`: what this host gives a guest of its processor, for people, for `--cpu only:SET`, and for an agent's record of its host.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Result, bail};
use rebec_cpu::{Entry, Features, Level};
use rebec_kvm::{host_cpuid, open_kvm};

use crate::cli::CpuOptions;

/// Runs the command.
pub fn run(options: &CpuOptions) -> Result<ExitCode> {
    let mut table = host_cpuid(open_kvm()?)?;
    let lacks = options.cpu.lacks(&Features::of(&table));
    if !lacks.is_empty() {
        bail!("this host lacks {}, which {} has: take a lesser model", lacks.join(", "), options.cpu);
    }
    options.cpu.filter(&mut table, 32);
    let own = Features::of(&table);
    let sets = [("this", &own)].into_iter().chain(options.with.iter().map(|set| ("--with", set)));
    let common = Features::common(sets).map_err(anyhow::Error::msg)?.unwrap_or_else(|| own.clone());
    let mut out = io::stdout().lock();
    if options.table {
        table.iter().try_for_each(|entry| writeln!(out, "{}", line(entry)))?;
    } else {
        writeln!(out, "level {}", Level::of(&common).map_or("below x86-64-v2", |level| level.name()))?;
        writeln!(out, "set {common}")?;
        writeln!(out, "features {}", common.names().join(" "))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn line(entry: &Entry) -> String {
    let [eax, ebx, ecx, edx] = entry.registers;
    format!("{:x} {:x} {eax:x} {ebx:x} {ecx:x} {edx:x}", entry.leaf, entry.subleaf)
}
