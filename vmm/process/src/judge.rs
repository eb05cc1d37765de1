//! `rebec-vmm judge`: whether a kernel or a disk can be used, and what would start from the disk: the same code that a start runs, sealed, before
//! anybody relies on it. The answer is one line of JSON on standard output; a refusal is an error like any other.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use rebec_boot::KernelImage;
use rebec_vmm_api::judgement::{DiskJudgement, Judgement, StartJudgement};

use crate::{
    boot_plan::DiskStart,
    cli::JudgeOptions,
    open,
    seal::{SealOptions, seal},
};

/// What to do about a format of other programs.
const CONVERT: &str = "convert it with `qemu-img convert -O qcow2 FILE disk.qcow2`";
/// Files that hold a disk, or a packed one, in a form that is not read, by first bytes at a place: at an import they are what they look like. A guest
/// may write the same to a raw disk of its own, so nothing is made of them when a VM starts.
const CONTAINERS: [(usize, &[u8], &str, &str); 20] = [
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "a VDI image", CONVERT),
    (0, b"KDMV", "a VMDK image", CONVERT),
    (0, b"# Disk Descriptor", "a VMDK image's description", CONVERT),
    (0, b"vhdxfile", "a VHDX image", CONVERT),
    (0, b"COWD", "a VMDK image", CONVERT),
    (0, b"conectix", "a VHD image", CONVERT),
    (0, b"QED\0", "a QED image", CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels image", CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels image", CONVERT),
    (0, b"LUKS\xba\xbe", "encrypted (LUKS)", "decrypt it with `qemu-img convert --image-opts -O qcow2`"),
    (0, &[0x1f, 0x8b], "packed by gzip", "unpack it with `gzip -d FILE`"),
    (0, &[0xfd, b'7', b'z', b'X', b'Z', 0], "packed by xz", "unpack it with `xz -d FILE`"),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "packed by zstd", "unpack it with `zstd -d FILE`"),
    (0, b"BZh", "packed by bzip2", "unpack it with `bzip2 -d FILE`"),
    (0, b"PK\x03\x04", "a ZIP file", "unpack it and give the disk image in it"),
    (257, b"ustar", "a tar file", "unpack it and give the disk image in it; an .ova holds one too"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z file", "unpack it and give the disk image in it"),
    (0, &[0x04, 0x22, 0x4d, 0x18], "packed by lz4", "unpack it with `lz4 -d FILE`"),
    (0, b"LZIP", "packed by lzip", "unpack it with `lzip -d FILE`"),
    (
        0x8001,
        b"CD001",
        "an ISO image of a CD or DVD",
        "give the image that the distribution publishes for clouds; to install from this, give its kernel and initial RAM disk with --kernel and --initramfs",
    ),
];

/// Runs the command.
pub fn run(options: &JudgeOptions) -> Result<ExitCode> {
    let (kernel, disk, known) = open::for_judging(options)?;
    let mut out = io::stdout().lock();
    let _sealed = seal(SealOptions::default())?;
    let mut judgement = Judgement::default();
    if let Some(kernel) = &kernel {
        let image = KernelImage::from_file(&kernel.file).with_context(|| format!("kernel {}", kernel.path.display()))?;
        judgement.kernel = Some(image.format().to_string());
    }
    if let Some(file) = &disk {
        refuse_container(&file.name, &file.file)?;
        let disk = Arc::new(file.parse()?);
        judgement.disk = Some(DiskJudgement { format: disk.format().to_string(), bytes: disk.size_bytes() });
        if kernel.is_none() {
            let start = DiskStart::of(&disk, known.as_ref())?;
            let (kernel, initramfs_bytes) = (start.image.format().to_string(), start.initramfs.map_or(0, |content| content.len()));
            judgement.start = Some(StartJudgement { from: start.from, kernel, initramfs_bytes, cmdline: start.cmdline });
        }
    }
    let line = serde_json::to_string(&judgement).context("write the judgement")?;
    writeln!(out, "{line}").and_then(|()| out.flush()).context("write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// The last sector of a VHD of fixed size, whose disk begins at its first byte.
const VHD_FOOTER: &[u8] = b"conectix";

/// Names what is no disk image but could pass for a raw one, or fail for the wrong reason.
fn refuse_container(name: &str, file: &File) -> Result<()> {
    for (at, magic, what, remedy) in CONTAINERS {
        let mut bytes = [0; 32];
        let bytes = &mut bytes[..magic.len()];
        if file.read_exact_at(bytes, at as u64).is_ok() && *bytes == *magic {
            bail!("disk {name}: it is {what}; {remedy}");
        }
    }
    let mut footer = [0; VHD_FOOTER.len()];
    let at = file.metadata().ok().and_then(|file| file.len().checked_sub(512));
    if at.is_some_and(|at| file.read_exact_at(&mut footer, at).is_ok()) && footer == *VHD_FOOTER {
        bail!("disk {name}: it is a VHD image of fixed size; convert it with `qemu-img convert -f vpc -O qcow2 FILE disk.qcow2`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_disk_image_is_named_with_what_to_do() {
        for (at, magic, what, remedy) in CONTAINERS {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 16).unwrap();
            file.write_all_at(magic, at as u64).unwrap();
            assert_eq!(refuse_container("d", &file).unwrap_err().to_string(), format!("disk d: it is {what}; {remedy}"));
        }
        let raw = tempfile::tempfile().unwrap();
        refuse_container("d", &raw).unwrap();
        raw.set_len(4096).unwrap();
        refuse_container("d", &raw).unwrap();
        raw.write_all_at(VHD_FOOTER, 4096 - 512).unwrap();
        assert!(refuse_container("d", &raw).unwrap_err().to_string().contains("-f vpc"));
    }
}
