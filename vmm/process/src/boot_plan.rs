//! How a machine starts, and starts again after a guest reset: its kernel, initramfs and command line.

use anyhow::{Context, Result};
use rebec_boot::{Content, KernelImage};

use crate::{
    open::{BootFiles, Named},
    vm::Vm,
};

/// Open files and a command line.
pub struct BootPlan {
    files: BootFiles,
    cmdline: String,
}

impl BootPlan {
    /// A plan from open files.
    pub fn new(files: BootFiles, cmdline: &str) -> Self {
        Self { files, cmdline: cmdline.to_owned() }
    }

    /// Loads the kernel into a machine that has not run. The kernel's image is dropped afterwards: it is as large as the
    /// rest of this process many times over.
    pub fn boot(&self, vm: &Vm) -> Result<()> {
        let BootFiles { kernel, initramfs } = &self.files;
        let image = KernelImage::from_file(&kernel.file).with_context(|| format!("kernel {}", kernel.path.display()))?;
        let open = |named: &Named| Content::from_file(&named.file).with_context(|| format!("initramfs {}", named.path.display()));
        let initramfs = initramfs.as_ref().map(open).transpose()?;
        vm.boot(&image, initramfs.as_ref(), &self.cmdline).with_context(|| format!("boot {}", kernel.path.display()))
    }
}
