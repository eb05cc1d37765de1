//! How long it takes a guest to take in a GiB of memory while it runs, and to give it back, and how closely what the host holds follows.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{Figure, Target};
use crate::netlab::{NetLab, Vmm, VmmConfig, guest, vmm::LONG};

const BEGINS_MIB: u64 = 64;
const MORE_MIB: u64 = 1024;
const SECONDS_MAX: f64 = 1.0;
const PERCENT_MAX: f64 = 5.0;

/// A guest that touches every page that it takes in.
pub fn measure() -> Result<Vec<Figure>> {
    let mut lab = NetLab::start("bench-resize", &["a"])?;
    let [machine] = &lab.machines[..] else { unreachable!("one machine was asked for") };
    let max = Some(format!("{}M", BEGINS_MIB + MORE_MIB));
    let config = VmmConfig { memory_max: max, ..guest::config(&format!("{BEGINS_MIB}M"), "fill=text:1 mem=take stats_ms=0")? };
    let vm = Vmm::run(machine, "vm", &config)?;
    vm.console.wait("hb ", LONG)?;
    let has = |mib: u64| -> Result<(f64, f64)> {
        let (mark, began) = (vm.console.mark(), Instant::now());
        vm.must(machine, &["set", "--memory", &format!("{mib}M")])?;
        let done = vm.console.wait_after(mark, &format!("mem done asked={} ", (mib - BEGINS_MIB) << 20), LONG)?;
        let seconds = done.at.duration_since(began).as_secs_f64();
        let memory = vm.status(machine)?.memory.context("its memory changes")?;
        let apart = (memory.held_bytes as f64 - memory.taken_bytes as f64).abs() * 100.0 / memory.taken_bytes as f64;
        Ok((seconds, apart))
    };
    let (taken, apart_after) = has(BEGINS_MIB + MORE_MIB)?;
    let (given, apart_then) = has(BEGINS_MIB)?;
    lab.succeeded();
    let how = format!(
        "bench guest of {BEGINS_MIB} MiB that takes in {MORE_MIB} MiB by virtio-mem, 32 MiB at a time, and writes each page; from `ctl set` to its last word"
    );
    let figure = |name: &str, unit, measured, most| Figure {
        name: name.into(),
        unit,
        measured,
        target: Target::AtMost(most),
        peers: vec![],
        how: how.clone(),
    };
    Ok(vec![
        figure("a guest takes in 1 GiB", "s", taken, SECONDS_MAX),
        figure("it gives that back", "s", given, SECONDS_MAX),
        figure("what the host holds, apart from what the guest has", "%", apart_after.max(apart_then), PERCENT_MAX),
    ])
}
