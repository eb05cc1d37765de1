//! The hybrid ISO around kernel and initrd.
//!
//! ```text
//! BIOS, CD          El Torito entry 1: ISOLINUX        -> /isolinux/isolinux.cfg -> /boot
//! BIOS, USB disk    the MBR that isohybrid makes       -> the same
//! UEFI, CD          El Torito entry 2: /boot/efi.img   -> shim -> GRUB -> the ISO with our marker file -> /boot
//! UEFI, USB disk    a GPT entry for the same efi.img   -> the same
//! UEFI, a stick     /EFI/BOOT among the files, for who copies them onto a FAT file system -> the same
//! ```
//! shim and GRUB are Debian's signed ones; the kernel carries Debian's signature. Firmware of 32 bits, which some machines of 64 bits have, starts a GRUB that
//! nobody has signed: Debian has no shim for it, and such machines seldom have Secure Boot. xorriso and mtools do the packing, with every date and identifier
//! fixed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};

use crate::command::Program;

/// Every date in the image: 2025-01-01. Digests say what it is, dates would only say when it was packed.
pub const EPOCH_SECONDS: u64 = 1_735_689_600;
/// The ISO's label.
pub const LABEL: &str = "REBEC";
/// Where Debian's signed GRUB looks for its configuration.
const GRUB_CONFIG: &str = "EFI/debian/grub.cfg";
/// The kernel's command line.
pub const COMMAND_LINE: &str = "console=tty1 console=ttyS0,115200 quiet panic=10";

/// Boot programs, in unpacked Debian packages.
#[derive(Debug, Clone)]
pub struct BootPrograms {
    /// Package isolinux.
    pub isolinux: PathBuf,
    /// Package syslinux-common.
    pub syslinux: PathBuf,
    /// Package shim-signed.
    pub shim: PathBuf,
    /// Package shim-helpers-amd64-signed.
    pub shim_helpers: PathBuf,
    /// Package grub-efi-amd64-signed.
    pub grub: PathBuf,
    /// Package grub-efi-ia32-unsigned.
    pub grub_ia32: PathBuf,
}

impl BootPrograms {
    /// What firmware of UEFI starts, and what that starts, by their names in /EFI/BOOT.
    fn of_uefi(&self) -> [(PathBuf, &'static str); 4] {
        [
            (self.shim.join("usr/lib/shim/shimx64.efi.signed"), "EFI/BOOT/BOOTX64.EFI"),
            (self.shim_helpers.join("usr/lib/shim/mmx64.efi.signed"), "EFI/BOOT/mmx64.efi"),
            (self.grub.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"), "EFI/BOOT/grubx64.efi"),
            (self.grub_ia32.join("usr/lib/grub/i386-efi/monolithic/grubia32.efi"), "EFI/BOOT/BOOTIA32.EFI"),
        ]
    }
}

/// Writes `out`. `id` names this image among others, for GRUB to find it; `work` is an empty folder.
pub fn write(out: &Path, kernel: &Path, initrd: &Path, programs: &BootPrograms, id: &str, work: &Path) -> Result<()> {
    let tree = work.join("iso");
    let copy = |from: &Path, to: &str| copy(from, &tree.join(to));
    copy(kernel, "boot/vmlinuz")?;
    copy(initrd, "boot/initrd.img")?;
    copy(&programs.isolinux.join("usr/lib/ISOLINUX/isolinux.bin"), "isolinux/isolinux.bin")?;
    copy(&programs.syslinux.join("usr/lib/syslinux/modules/bios/ldlinux.c32"), "isolinux/ldlinux.c32")?;
    let marker = format!("boot/rebec-{id}");
    put(isolinux_cfg().as_bytes(), &tree.join("isolinux/isolinux.cfg"))?;
    put(b"", &tree.join(marker))?;
    // GRUB looks in the file system that its firmware started it from: that is the ISO where El Torito was used, as OVMF does even
    // for a USB disk, and the EFI system partition otherwise, or the stick onto which somebody copied the files.
    let config = grub_cfg(id);
    put(config.as_bytes(), &tree.join(GRUB_CONFIG))?;
    for (from, to) in programs.of_uefi() {
        copy(&from, to)?;
    }
    efi_partition(&tree.join("boot/efi.img"), programs, &config, work)?;
    date(&tree)?;
    let mbr = programs.isolinux.join("usr/lib/ISOLINUX/isohdpfx.bin");
    Program::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-r", "-J", "-V", LABEL, "-o"])
        .arg(out)
        .arg("-isohybrid-mbr")
        .arg(&mbr)
        .args(["-c", "isolinux/boot.cat", "-b", "isolinux/isolinux.bin", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
        .args(["-eltorito-alt-boot", "-e", "boot/efi.img", "-no-emul-boot", "-isohybrid-gpt-basdat"])
        .arg(&tree)
        .env("SOURCE_DATE_EPOCH", EPOCH_SECONDS.to_string())
        .env("TZ", "UTC")
        .quiet()
        .with_context(|| format!("make {}", out.display()))
}

/// The EFI system partition: a FAT file system with shim, GRUB and GRUB's configuration.
fn efi_partition(image: &Path, programs: &BootPrograms, config: &str, work: &Path) -> Result<()> {
    const SECTOR_BYTES: u64 = 512;
    const SLACK_BYTES: u64 = 256 << 10;
    let esp = work.join("esp");
    put(config.as_bytes(), &esp.join(GRUB_CONFIG))?;
    let mut bytes = SLACK_BYTES;
    for (from, to) in programs.of_uefi() {
        copy(&from, &esp.join(to))?;
        bytes += fs::metadata(esp.join(to)).with_context(|| format!("size of {to}"))?.len();
    }
    let sectors = bytes.div_ceil(SECTOR_BYTES).next_multiple_of(2048);
    let file = fs::File::create(image).with_context(|| format!("create {}", image.display()))?;
    file.set_len(sectors * SECTOR_BYTES).with_context(|| format!("size {}", image.display()))?;
    drop(file);
    let tool = |name: &str| {
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        Program::new(name).env("PATH", path).env("SOURCE_DATE_EPOCH", EPOCH_SECONDS.to_string()).env("TZ", "UTC")
    };
    tool("mkfs.vfat").args(["--invariant", "-n", "REBEC-EFI"]).arg(image).quiet()?;
    date(&esp)?;
    // -m keeps the files' times.
    tool("mcopy").args(["-s", "-m", "-Q", "-i"]).arg(image).arg(esp.join("EFI")).arg("::/").quiet()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    put(&bytes, to)
}

fn put(bytes: &[u8], to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    fs::write(to, bytes).with_context(|| format!("write {}", to.display()))
}

/// Puts the image's date on everything below a path, and on itself last.
fn date(path: &Path) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
            date(&entry.with_context(|| format!("read {}", path.display()))?.path())?;
        }
    }
    let epoch = UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS);
    let dated = fs::File::open(path).and_then(|file| file.set_modified(epoch));
    dated.with_context(|| format!("set the time of {}", path.display()))
}

fn isolinux_cfg() -> String {
    format!(
        "SERIAL 0 115200\nDEFAULT rebec\nPROMPT 0\nTIMEOUT 10\nSAY Rebec starts.\n\
         LABEL rebec\n  KERNEL /boot/vmlinuz\n  INITRD /boot/initrd.img\n  APPEND {COMMAND_LINE}\n"
    )
}

fn grub_cfg(id: &str) -> String {
    format!(
        "serial --unit=0 --speed=115200\nterminal_output console serial\nterminal_input console serial\nset timeout=1\n\
         search --no-floppy --set=root --file /boot/rebec-{id}\n\
         menuentry \"Rebec\" {{\n  linux /boot/vmlinuz {COMMAND_LINE}\n  initrd /boot/initrd.img\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_boot_configurations_say_the_same_command_line() {
        assert!(isolinux_cfg().contains(&format!("APPEND {COMMAND_LINE}\n")));
        assert!(grub_cfg("abc").contains(&format!("linux /boot/vmlinuz {COMMAND_LINE}\n")));
        assert!(grub_cfg("abc").contains("--file /boot/rebec-abc\n"));
    }

    #[test]
    fn files_and_folders_carry_the_fixed_date() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/c");
        put(b"x", &path).unwrap();
        date(folder.path()).unwrap();
        for dated in path.ancestors().take(4) {
            let time = fs::metadata(dated).unwrap().modified().unwrap();
            assert_eq!(time.duration_since(UNIX_EPOCH).unwrap().as_secs(), EPOCH_SECONDS, "{}", dated.display());
        }
    }
}
