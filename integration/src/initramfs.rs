//! What the initramfs of a lab machine or guest starts from: busybox and kernel modules in a tree that
//! [`rebec_image_build::cpio`] writes.

use std::{
    ops::{Deref, DerefMut},
    path::Path,
};

use anyhow::Result;
use rebec_image_build::cpio::Tree;

use crate::modules::Module;

/// Where Debian's busybox-static puts its program.
const BUSYBOX: &str = "/bin/busybox";

/// A tree being gathered.
#[derive(Default)]
pub struct Initramfs(Tree);

impl Initramfs {
    /// A tree with busybox, its applets named below, and the folders every system wants.
    pub fn with_busybox() -> Result<Self> {
        let mut tree = Self::default();
        for folder in ["dev", "proc", "sys", "run", "tmp", "etc", "mnt"] {
            tree.folder(folder);
        }
        // The kernel opens it before anything can be mounted on dev.
        tree.device("dev/console", 5, 1);
        tree.host_file("bin/busybox", Path::new(BUSYBOX))?;
        let listing = crate::command::Program::new(BUSYBOX).arg("--list").output()?;
        for applet in listing.lines().filter(|applet| *applet != "busybox") {
            tree.link(&format!("bin/{applet}"), "/bin/busybox");
        }
        tree.link("sbin", "bin");
        Ok(tree)
    }

    /// Adds modules below `folder`, with a file `folder/list` that names their paths in loading order.
    pub fn modules(&mut self, folder: &str, modules: Vec<Module>) {
        let list: String = modules.iter().map(|module| format!("/{folder}/{}.ko\n", module.name)).collect();
        self.program(&format!("{folder}/list"), list);
        for module in modules {
            self.program(&format!("{folder}/{}.ko", module.name), module.bytes);
        }
    }
}

impl Deref for Initramfs {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        &self.0
    }
}

impl DerefMut for Initramfs {
    fn deref_mut(&mut self) -> &mut Tree {
        &mut self.0
    }
}
