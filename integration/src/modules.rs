//! Kernel modules for an initramfs: which files, in which order, unpacked.
//!
//! `modules.dep` of a provisioned kernel says what needs what. The answer is a list to load from first to last, so a
//! machine needs neither modprobe nor an unpacker.

use std::{collections::HashMap, fs};

use anyhow::{Context as _, Result, bail};

use crate::{command::Program, provision::Kernel};

/// One module, ready to be loaded after those before it.
#[derive(Debug)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The `.ko` file's bytes, unpacked.
    pub bytes: Vec<u8>,
}

/// The named modules and all they need, each once, in loading order. What is built into the kernel is left out.
pub fn closure(kernel: &Kernel, wanted: &[&str]) -> Result<Vec<Module>> {
    let read = |name: &str| {
        let path = kernel.modules.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let dependencies = read("modules.dep")?;
    let builtin = read("modules.builtin")?;
    let by_name: HashMap<String, (&str, &str)> =
        dependencies.lines().filter_map(|line| line.split_once(':')).map(|(file, needs)| (module_name(file), (file, needs))).collect();
    let mut files: Vec<&str> = Vec::new();
    for name in wanted {
        let Some((file, needs)) = by_name.get(*name) else {
            if builtin.lines().any(|line| module_name(line) == *name) {
                continue;
            }
            bail!("kernel {} has no module {name}", kernel.release);
        };
        // modules.dep lists needs closest first: loading goes the other way round.
        for needed in needs.split_whitespace().rev().chain([*file]) {
            if !files.contains(&needed) {
                files.push(needed);
            }
        }
    }
    files.into_iter().map(|file| Ok(Module { name: module_name(file), bytes: unpack(kernel, file)? })).collect()
}

fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

fn unpack(kernel: &Kernel, file: &str) -> Result<Vec<u8>> {
    let path = kernel.modules.join(file);
    if !file.ends_with(".xz") {
        return fs::read(&path).with_context(|| format!("read {}", path.display()));
    }
    let unpacked = tempfile::NamedTempFile::new().context("create a temporary file")?;
    let output = unpacked.reopen().context("open a temporary file")?;
    Program::new("xz").arg("-dc").arg(&path).stdout(output).into_file()?;
    fs::read(unpacked.path()).with_context(|| format!("read {} unpacked", path.display()))
}
