//! A file as a block device, for as long as its owner lives.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::command::Program;

/// A loop device; given back when it is dropped.
#[derive(Debug)]
pub struct LoopDevice(String);

impl LoopDevice {
    /// Puts a device in front of a file.
    pub fn of(file: &Path) -> Result<Self> {
        let node = Program::new("losetup").args(["-f", "--show"]).arg(file).env("PATH", path()).output().context("make a loop device")?;
        Ok(Self(node.trim().to_owned()))
    }

    /// Its place in /dev.
    pub fn node(&self) -> &str {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["-d", &self.0]).env("PATH", path()).status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("detach {} by hand: losetup -d {0}", self.0);
        }
    }
}

fn path() -> String {
    std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin"
}
