//! Disks laid out as distributions publish them for clouds, which cannot be fetched here: GPT, an EFI partition, ext4 or XFS, a boot loader's configuration as
//! its own tools write it. What is in them is the caller's: a stock kernel, or the bench guest. Made without root: mkfs.ext4 takes a folder, mkfs.xfs a list of
//! files, mtools write FAT.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

use crate::command::Program;

const SECTOR: u64 = 512;
/// Where the first partition begins, as everybody aligns it.
const FIRST_SECTOR: u64 = 2048;
const ESP: [u8; 16] = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
const LINUX: [u8; 16] = [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];
const ESP_BYTES: u64 = 8 << 20;
const BOOT_BYTES: u64 = 64 << 20;
/// A log takes its part of it.
const XFS_BOOT_BYTES: u64 = 144 << 20;
/// Of the file system that a configuration names: the root, or a /boot of its own.
pub const UUID: &str = "6f2d6c61-6265-4331-8000-72656265630a";
/// Of the root, where /boot is apart.
pub const ROOT_UUID: &str = "6f2d6c61-6265-4331-8000-72656265630b";

/// A kernel that is installed: its version, its file, and what goes with it.
#[derive(Debug, Clone, Copy)]
pub struct Installed<'a> {
    /// As in `vmlinuz-VERSION`.
    pub version: &'a str,
    /// The kernel's file.
    pub kernel: &'a Path,
    /// Its initial RAM disk.
    pub initramfs: Option<&'a Path>,
    /// Its command line.
    pub cmdline: &'a str,
}

/// As Debian's: root on partition 1, EFI partition 15; GRUB with these kernels, the first of them its default, or what `env` (lines of `grubenv`) saves.
/// `tree` is what else the root holds.
pub fn debian(image: &Path, tree: Option<&Path>, root_bytes: u64, kernels: &[Installed<'_>], env: &str) -> Result<()> {
    let work = tempfile::tempdir().context("make a folder for a disk's content")?;
    let (root, file) = (work.path().join("root"), work.path().join("root.ext4"));
    match tree {
        Some(tree) => Program::new("cp").arg("-a").arg(tree).arg(&root).run()?,
        None => fs::create_dir(&root)?,
    }
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/fstab"), format!("UUID={UUID} / ext4 defaults 0 1\n"))?;
    debian_boot(&root.join("boot"), kernels, env)?;
    ext4(&file, &root, UUID, root_bytes)?;
    let esp = work.path().join("esp");
    efi(
        &esp,
        &[(
            "EFI/debian/grub.cfg",
            &format!("search.fs_uuid {UUID} root hd0,gpt1\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"),
        )],
    )?;
    partitioned(image, &[(15, ESP, &esp), (1, LINUX, &file)])
}

/// What Debian's /boot holds.
pub fn debian_boot(boot: &Path, kernels: &[Installed<'_>], env: &str) -> Result<()> {
    install(boot, kernels)?;
    let grub = boot.join("grub");
    fs::create_dir_all(&grub)?;
    fs::write(grub.join("grub.cfg"), grub_cfg("/boot", kernels))?;
    fs::write(grub.join("grubenv"), grubenv(env)?)?;
    Ok(())
}

/// What a /boot apart lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// Fedora's.
    Ext4,
    /// Rocky's and its kin's.
    Xfs,
}

/// As Fedora's and Rocky's: EFI partition 1, /boot 2 with entries of the Boot Loader Specification, root 3, which holds `tree`.
pub fn fedora(image: &Path, kind: Boot, tree: Option<&Path>, root_bytes: u64, kernels: &[Installed<'_>], env: &str) -> Result<()> {
    let work = tempfile::tempdir().context("make a folder for a disk's content")?;
    let path = |name: &str| work.path().join(name);
    let (boot, root) = (path("boot"), path("root"));
    fedora_boot(&boot, kernels, env)?;
    match tree {
        Some(tree) => Program::new("cp").arg("-a").arg(tree).arg(&root).run()?,
        None => fs::create_dir(&root)?,
    }
    fs::create_dir_all(root.join("etc"))?;
    let (boot_file, root_file, esp) = (path("boot.fs"), path("root.ext4"), path("esp"));
    let name = match kind {
        Boot::Ext4 => {
            ext4(&boot_file, &boot, UUID, BOOT_BYTES)?;
            "ext4"
        }
        Boot::Xfs => {
            xfs(&boot_file, &boot, UUID, XFS_BOOT_BYTES)?;
            "xfs"
        }
    };
    fs::write(root.join("etc/fstab"), format!("UUID={ROOT_UUID} / ext4 defaults 0 0\nUUID={UUID} /boot {name} defaults 0 0\n"))?;
    ext4(&root_file, &root, ROOT_UUID, root_bytes)?;
    efi(
        &esp,
        &[(
            "EFI/fedora/grub.cfg",
            &format!("search --no-floppy --fs-uuid --set=dev {UUID}\nset prefix=($dev)/grub2\nconfigfile $prefix/grub.cfg\n"),
        )],
    )?;
    partitioned(image, &[(1, ESP, &esp), (2, LINUX, &boot_file), (3, LINUX, &root_file)])
}

/// What Fedora's partition for /boot holds.
pub fn fedora_boot(boot: &Path, kernels: &[Installed<'_>], env: &str) -> Result<()> {
    install(boot, kernels)?;
    for folder in ["loader/entries", "grub2"] {
        fs::create_dir_all(boot.join(folder))?;
    }
    for Installed { version, initramfs, cmdline, .. } in kernels {
        let initrd = initramfs.map(|_| format!("initrd /initrd.img-{version} $tuned_initrd\n")).unwrap_or_default();
        let entry = format!(
            "title Fedora Linux ({version}) 41 (Cloud Edition)\nversion {version}\nlinux /vmlinuz-{version}\n{initrd}options {cmdline} $tuned_params\n\
             grub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n"
        );
        fs::write(boot.join(format!("loader/entries/0123-{version}.conf")), entry)?;
    }
    let config = format!(
        "set pager=1\nif [ -s $prefix/grubenv ]; then\n  load_env\nfi\nif [ \"${{next_entry}}\" ] ; then\n   set default=\"${{next_entry}}\"\n   set next_entry=\n   \
         save_env next_entry\n   set boot_once=true\nelse\n   set default=\"${{saved_entry}}\"\nfi\nsearch --no-floppy --fs-uuid --set=root {UUID}\n\
         insmod blscfg\nblscfg\nif [ x$feature_timeout_style = xy ] ; then\n  set timeout_style=menu\n  set timeout=1\nfi\n"
    );
    fs::write(boot.join("grub2/grub.cfg"), config)?;
    fs::write(boot.join("grub2/grubenv"), grubenv(env)?)?;
    Ok(())
}

fn install(boot: &Path, kernels: &[Installed<'_>]) -> Result<()> {
    fs::create_dir_all(boot).context("make /boot")?;
    for installed in kernels {
        fs::copy(installed.kernel, boot.join(format!("vmlinuz-{}", installed.version))).context("install a kernel")?;
        if let Some(initramfs) = installed.initramfs {
            fs::copy(initramfs, boot.join(format!("initrd.img-{}", installed.version))).context("install an initial RAM disk")?;
        }
    }
    Ok(())
}

/// As `grub-mkconfig` of Debian 13 writes it, with `GRUB_DEFAULT=saved`, without comments.
fn grub_cfg(boot: &str, kernels: &[Installed<'_>]) -> String {
    let entry = |title: &str, id: &str, installed: &Installed<'_>| {
        let Installed { version, initramfs, cmdline, .. } = installed;
        let initrd = initramfs
            .map(|_| format!("\techo\t'Loading initial ramdisk ...'\n\tinitrd\t{boot}/initrd.img-{version}\n"))
            .unwrap_or_default();
        format!(
            "menuentry '{title}' --class debian --class gnu-linux --class gnu --class os $menuentry_id_option '{id}' {{\n\tload_video\n\tinsmod gzio\n\t\
             if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi\n\tinsmod part_gpt\n\tinsmod ext2\n\t\
             search --no-floppy --fs-uuid --set=root {UUID}\n\techo\t'Loading Linux {version} ...'\n\tlinux\t{boot}/vmlinuz-{version} {cmdline}\n{initrd}}}\n"
        )
    };
    let simple = kernels.first().map(|newest| entry("Debian GNU/Linux", &format!("gnulinux-simple-{UUID}"), newest)).unwrap_or_default();
    let advanced: String = kernels
        .iter()
        .map(|installed| {
            let title = format!("Debian GNU/Linux, with Linux {}", installed.version);
            entry(&title, &format!("gnulinux-{}-advanced-{UUID}", installed.version), installed)
        })
        .collect();
    format!(
        "if [ -s $prefix/grubenv ]; then\n  set have_grubenv=true\n  load_env\nfi\nif [ \"${{next_entry}}\" ] ; then\n   set default=\"${{next_entry}}\"\n   \
         set next_entry=\n   save_env next_entry\n   set boot_once=true\nelse\n   set default=\"${{saved_entry}}\"\nfi\n\n\
         if [ x\"${{feature_menuentry_id}}\" = xy ]; then\n  menuentry_id_option=\"--id\"\nelse\n  menuentry_id_option=\"\"\nfi\n\nexport menuentry_id_option\n\n\
         function savedefault {{\n  if [ -z \"${{boot_once}}\" ]; then\n    saved_entry=\"${{chosen}}\"\n    save_env saved_entry\n  fi\n}}\n\
         function load_video {{\n  if [ x$feature_all_video_module = xy ]; then\n    insmod all_video\n  else\n    insmod efi_gop\n    insmod efi_uga\n  fi\n}}\n\
         if [ \"${{recordfail}}\" = 1 ] ; then\n  set timeout=30\nelse\n  set timeout=0\nfi\n\n{simple}\
         submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-{UUID}' {{\n{advanced}}}\n"
    )
}

fn grubenv(lines: &str) -> Result<String> {
    let mut text = format!("# GRUB Environment Block\n# WARNING: Do not edit this file by tools other than grub-editenv!!!\n{lines}");
    ensure!(text.len() <= 1024, "a grubenv has 1024 bytes");
    text.extend(std::iter::repeat_n('#', 1024 - text.len()));
    Ok(text)
}

fn ext4(file: &Path, tree: &Path, uuid: &str, bytes: u64) -> Result<()> {
    File::create(file).and_then(|file| file.set_len(bytes)).with_context(|| format!("make {}", file.display()))?;
    Program::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-U", uuid, "-L", "cloudimg-rootfs", "-E", "root_owner=0:0,lazy_itable_init=0", "-d"])
        .arg(tree)
        .arg(file)
        .env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin")
        .quiet()
        .with_context(|| format!("make the file system {}", file.display()))
}

/// Smaller than its own tools think it should be, which nothing that reads or mounts it minds.
fn xfs(file: &Path, tree: &Path, uuid: &str, bytes: u64) -> Result<()> {
    let prototype = file.with_extension("prototype");
    let mut text = "/\n0 0\nd--755 0 0\n".to_owned();
    list(tree, &mut text)?;
    fs::write(&prototype, text + "$\n").with_context(|| format!("write {}", prototype.display()))?;
    Program::new("mkfs.xfs")
        .args(["--unsupported", "-q", "-L", "boot", "-m", &format!("uuid={uuid}"), "-p"])
        .arg(&prototype)
        .args(["-d", &format!("file,size={bytes},name={}", file.display())])
        .env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin")
        .quiet()
        .with_context(|| format!("make the file system {}", file.display()))
}

/// A folder's files and folders, as a prototype of mkfs.xfs names them.
fn list(folder: &Path, text: &mut String) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            *text += &format!("{name} d--755 0 0\n");
            list(&path, text)?;
            *text += "$\n";
        } else {
            *text += &format!("{name} ---644 0 0 {}\n", path.display());
        }
    }
    Ok(())
}

fn efi(file: &Path, files: &[(&str, &str)]) -> Result<()> {
    File::create(file).and_then(|file| file.set_len(ESP_BYTES)).with_context(|| format!("make {}", file.display()))?;
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    Program::new("mkfs.vfat").arg(file).env("PATH", &path).quiet().context("make an EFI partition")?;
    let content = tempfile::NamedTempFile::new().context("make a file for an EFI partition")?;
    for (name, text) in files {
        let folders = name.match_indices('/').map(|(end, _)| format!("::{}", &name[..end]));
        for folder in folders {
            Program::new("mmd").args(["-D", "s", "-i"]).arg(file).arg(&folder).quiet().with_context(|| format!("make {folder}"))?;
        }
        fs::write(content.path(), text)?;
        Program::new("mcopy")
            .arg("-i")
            .arg(file)
            .arg(content.path())
            .arg(format!("::{name}"))
            .quiet()
            .with_context(|| format!("copy {name}"))?;
    }
    Ok(())
}

/// A disk with a GPT at both ends (UEFI 2.10 §5.3): number, type and content of each partition, in their order on the disk.
fn partitioned(image: &Path, parts: &[(u32, [u8; 16], &Path)]) -> Result<()> {
    let disk = File::create(image).with_context(|| format!("make {}", image.display()))?;
    let (mut table, mut at) = (vec![0; 128 * 128], FIRST_SECTOR);
    for (number, kind, content) in parts {
        let content = fs::read(content).with_context(|| format!("read {}", content.display()))?;
        let sectors = (content.len() as u64).div_ceil(SECTOR);
        let entry = &mut table[(*number as usize - 1) * 128..][..128];
        entry[..16].copy_from_slice(kind);
        entry[16..20].copy_from_slice(&number.to_le_bytes());
        entry[32..40].copy_from_slice(&at.to_le_bytes());
        entry[40..48].copy_from_slice(&(at + sectors - 1).to_le_bytes());
        for (index, block) in content.chunks(1 << 16).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0)) {
            disk.write_all_at(block, at * SECTOR + ((index as u64) << 16))?;
        }
        at += sectors;
    }
    let last = at + 33;
    disk.set_len((last + 1) * SECTOR)?;
    let mut protective = [0; SECTOR as usize];
    protective[446 + 4] = 0xee;
    protective[446 + 8] = 1;
    protective[446 + 12..446 + 16].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    protective[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write_all_at(&protective, 0)?;
    for (own, other, table_at) in [(1, last, 2), (last, 1, last - 32)] {
        disk.write_all_at(&table, table_at * SECTOR)?;
        let mut header = [0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        for (place, value) in [(8, 0x1_0000_u32), (12, 92), (80, 128), (84, 128), (88, crc32fast::hash(&table))] {
            header[place..place + 4].copy_from_slice(&value.to_le_bytes());
        }
        for (place, value) in [(24, own), (32, other), (40, 34), (48, last - 33), (72, table_at)] {
            header[place..place + 8].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        disk.write_all_at(&header, own * SECTOR)?;
    }
    Ok(())
}
