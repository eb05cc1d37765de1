//! What this machine's KVM gives guests of its processor, and a host that gives less.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::vmm;

/// What `rebec-vmm cpu` says.
pub struct Processor {
    /// `x86-64-v3`, or that it is below all.
    pub level: String,
    /// The set.
    pub set: String,
}

impl Processor {
    /// Of this machine.
    pub fn here() -> Result<Self> {
        Self::ask(&[])
    }

    fn ask(arguments: &[&str]) -> Result<Self> {
        let said = Command::new(vmm::program()?).arg("cpu").args(arguments).output().context("start rebec-vmm cpu")?;
        let text = String::from_utf8(said.stdout)?;
        let word = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned).with_context(|| text.clone());
        Ok(Self { level: word("level ")?, set: word("set ")? })
    }

    /// As `--cpu` takes it: this machine without what CPUID 7.0 says in ECX, and without more than SSE in the XSAVE area.
    pub fn lesser(&self) -> Result<String> {
        let fields: Vec<&str> = self.set.split(':').collect();
        let mut words: Vec<&str> = fields[2].split('.').collect();
        *words.get_mut(3).context("a host of hardly any features")? = "0";
        let lesser = format!("{}:{}:{}:", fields[0], fields[1], words.join("."));
        // Its text is what the program itself makes of it.
        Ok(format!("only:{}", Self::ask(&["--with", &lesser])?.set))
    }
}
