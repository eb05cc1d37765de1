//! What this host gives guests of its processor: its VMM is asked once, for a kernel or microcode changes at a boot.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};
use rebec_cpu::Model;

/// What guests are given here, as the set that `rebec-vmm cpu` writes; of a model at most.
pub fn ask(vmm: &Path, max: &Model) -> Result<String> {
    let mut command = Command::new(vmm);
    command.args(["cpu", "--cpu"]).arg(max.to_string());
    let said = command.output().with_context(|| format!("start {}", vmm.display()))?;
    let text = String::from_utf8_lossy(&said.stdout);
    match text.lines().find_map(|line| line.strip_prefix("set ")) {
        Some(set) if said.status.success() => Ok(set.to_owned()),
        _ => bail!("{}", String::from_utf8_lossy(&said.stderr).trim()),
    }
}
