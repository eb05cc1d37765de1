//! How a machine starts, and starts again after a guest reset: from a kernel that was handed over, or from what its own disk says then.

use std::{io, ops::Range, rc::Rc, sync::Arc};

use anyhow::{Context, Result, anyhow};
use rebec_boot::{Content, KernelImage};
use rebec_bootable::{Forget, ReadAt, Start};
use rebec_devices::disk::Disk;
use rebec_layout::DISK_BYTES_MAX;

use crate::{
    open::{BootFiles, BootGiven, KnownKernel, Named, Remembered},
    vm::Vm,
};

/// The machine's only console that shows anything: whoever starts from a disk that names another still sees what its kernel says.
const CONSOLE: &str = "console=ttyS0";

/// Memory that comes is used at once, as memory that can go again while that is less than three times what the guest began with
/// (Documentation/admin-guide/mm/memory-hotplug.rst).
const TAKING: &str = "memhp_default_state=online memory_hotplug.online_policy=auto-movable";

/// Open files, or the VM's disk, and a command line.
pub struct BootPlan {
    /// None: the disk's own word counts, as it is at each start.
    files: Option<BootFiles>,
    known: Option<KnownKernel>,
    cmdline: String,
}

impl BootPlan {
    /// A plan from open files, or from the VM's first disk.
    pub fn new(given: BootGiven, cmdline: &str) -> Self {
        let BootGiven { files, known } = given;
        Self { files, known, cmdline: cmdline.to_owned() }
    }

    /// Loads the kernel into a machine that has not run. The kernel's image is dropped afterwards: it is as large as the
    /// rest of this process many times over.
    pub fn boot(&self, vm: &Vm) -> Result<()> {
        let Some(BootFiles { kernel, initramfs }) = &self.files else { return self.boot_disk(vm) };
        let image = KernelImage::from_file(&kernel.file).with_context(|| format!("kernel {}", kernel.path.display()))?;
        let open = |named: &Named| Content::from_file(&named.file).with_context(|| format!("initramfs {}", named.path.display()));
        let initramfs = initramfs.as_ref().map(open).transpose()?;
        vm.boot(&image, initramfs.as_ref(), &with_taking(vm, &self.cmdline)).with_context(|| format!("boot {}", kernel.path.display()))
    }

    /// Whether the kernel was told to reset by a triple fault. Where the disk has the command line, the one that it has now counts.
    pub fn resets_by_triple_fault(&self, vm: &Vm) -> bool {
        match (&self.files, vm.disks().first()) {
            (Some(_), _) | (None, None) => says_triple(&self.cmdline),
            (None, Some(disk)) => start_of(disk).is_ok_and(|start| says_triple(&with_console(&start.cmdline, &self.cmdline))),
        }
    }

    fn boot_disk(&self, vm: &Vm) -> Result<()> {
        let disk = vm.disks().first().context("there is neither a kernel nor a disk to start from")?;
        let DiskStart { image, initramfs, cmdline, from, forget } = DiskStart::of(disk, self.known.as_ref())?;
        let place = || format!("disk {}: the kernel of {from}", disk.name());
        let cmdline = with_taking(vm, &with_console(&cmdline, &self.cmdline));
        log::info!("disk {}: starts {from}: {cmdline}", disk.name());
        vm.boot(&image, initramfs.as_ref(), &cmdline).with_context(place)?;
        if let Some(forget) = forget.filter(|_| !disk.read_only()) {
            let written = disk.write_at(forget.offset, &forget.bytes).and_then(|()| disk.flush());
            written.with_context(|| format!("disk {}: forget that {from} was to start once", disk.name()))?;
        }
        Ok(())
    }
}

/// What a disk starts, ready to be loaded.
pub struct DiskStart {
    pub image: KernelImage,
    pub initramfs: Option<Content>,
    pub cmdline: String,
    /// Where that was found.
    pub from: String,
    forget: Option<Forget>,
}

impl DiskStart {
    /// Remembered of the image on which the disk stands, where all that decides is the image's; read out of the disk otherwise, for what its guest changed is
    /// what counts. Of that the kernel alone may be remembered.
    pub fn of(disk: &Arc<Disk>, known: Option<&KnownKernel>) -> Result<Self> {
        let remembered = known.map(|known| Ok((known, known.start_of(disk)?))).transpose();
        let remembered =
            remembered.map_err(|error: io::Error| anyhow!("disk {}: look for what is remembered of it: {error}", disk.name()))?;
        if let Some((known, Some(Remembered { initramfs, cmdline, from }))) = remembered {
            let image = KernelImage::from_file(&known.file).with_context(|| format!("disk {}: the kernel of {from}", disk.name()))?;
            return Ok(Self { image, initramfs, cmdline, from, forget: None });
        }
        let Start { kernel, initramfs, cmdline, from, forget } = start_of(disk)?;
        let image = match known.filter(|known| known.is_of(&kernel)) {
            Some(known) => KernelImage::from_file(&known.file),
            None => KernelImage::from_bytes(kernel),
        };
        let image = image.with_context(|| format!("disk {}: the kernel of {from}", disk.name()))?;
        Ok(Self { image, initramfs: initramfs.map(Content::from_bytes), cmdline, from, forget })
    }
}

/// What a disk says would start from it.
pub fn start_of(disk: &Arc<Disk>) -> Result<Start> {
    let reader = Rc::new(OfDisk(disk.clone()));
    rebec_bootable::find(reader).map_err(|refusal| anyhow!("disk {}: {refusal}; give --kernel", disk.name()))
}

/// What a disk starts, and what was read for that; not the latter, where that is not all that decides: what counts once, or what comes out otherwise where
/// the same bytes are followed by zeros.
pub fn start_and_trace(disk: &Arc<Disk>) -> Result<(Start, Option<Vec<Range<u64>>>)> {
    let traced = |longer| {
        let found = rebec_bootable::find_traced(Rc::new(Longer { disk: disk.clone(), longer }));
        found.map_err(|refusal| anyhow!("disk {}: {refusal}; give --kernel", disk.name()))
    };
    let (start, read) = traced(false)?;
    let is_alike = || traced(true).is_ok_and(|longest| longest.0 == start && longest.1 == read);
    let read = (start.forget.is_none() && is_alike()).then_some(read);
    Ok((start, read))
}

/// A disk's own command line with what was added, and a console that is seen.
fn with_console(own: &str, added: &str) -> String {
    let is_console = |word: &str| word == CONSOLE || word.strip_prefix(CONSOLE).is_some_and(|rest| rest.starts_with(','));
    let is_there = own.split_whitespace().chain(added.split_whitespace()).any(is_console);
    let words = [own, if is_there { "" } else { CONSOLE }, added];
    words.into_iter().map(str::trim).filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" ")
}

/// In a machine with room for more memory, Linux is told to use what it takes in: few distributions do so by themselves. Whoever says how is heard.
fn with_taking(vm: &Vm, cmdline: &str) -> String {
    if vm.ram().room().is_empty() { cmdline.to_owned() } else { taking(cmdline) }
}

fn taking(cmdline: &str) -> String {
    if cmdline.split_whitespace().any(|word| word.starts_with("memhp_default_state=")) {
        return cmdline.to_owned();
    }
    format!("{cmdline} {TAKING}").trim_start().to_owned()
}

/// Linux's `reboot=[mode,]type[,force]` (Documentation/admin-guide/kernel-parameters.txt): the last word about a type counts, by its first letter.
fn says_triple(cmdline: &str) -> bool {
    let words = cmdline.split_whitespace().filter_map(|word| word.strip_prefix("reboot="));
    let mut types = words.flat_map(|word| word.split(',')).filter_map(|word| word.chars().next()).filter(|first| "baktep".contains(*first));
    types.next_back() == Some('t')
}

/// A disk as it is, or as if it had been made as long as disks get.
struct Longer {
    disk: Arc<Disk>,
    longer: bool,
}

impl ReadAt for Longer {
    fn bytes(&self) -> u64 {
        if self.longer { DISK_BYTES_MAX } else { self.disk.size_bytes() }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let held = self.disk.size_bytes().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (there, beyond) = buffer.split_at_mut(held);
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { self.disk.read_at(offset, there) }
    }
}

struct OfDisk(Arc<Disk>);

impl ReadAt for OfDisk {
    fn bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_resets_by_triple_fault_if_it_was_told_to() {
        for (cmdline, expected) in [
            ("", false),
            ("console=ttyS0 reboot=t panic=1", true),
            ("reboot=triple,force", true),
            ("reboot=warm,t", true),
            ("reboot=t reboot=acpi", false),
            ("reboot=k", false),
            ("xreboot=t init=/t", false),
        ] {
            assert_eq!(says_triple(cmdline), expected, "{cmdline}");
        }
    }

    #[test]
    fn a_kernel_is_told_to_use_what_it_takes_in_unless_it_was_told_how() {
        assert_eq!(taking("quiet"), format!("quiet {TAKING}"));
        assert_eq!(taking(""), TAKING);
        assert_eq!(taking("memhp_default_state=offline"), "memhp_default_state=offline");
    }

    #[test]
    fn a_console_is_added_where_there_is_none() {
        assert_eq!(with_console("root=/dev/vda1 ro quiet", ""), "root=/dev/vda1 ro quiet console=ttyS0");
        assert_eq!(with_console("console=tty0 console=ttyS0,115200 ro", "single"), "console=tty0 console=ttyS0,115200 ro single");
        assert_eq!(with_console("console=ttyS01", "console=ttyS0"), "console=ttyS01 console=ttyS0");
        assert_eq!(with_console("", ""), "console=ttyS0");
    }
}
