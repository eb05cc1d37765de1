//! A kernel without a boot loader's word: `/vmlinuz`, or the newest of `/boot`, with the words that GRUB's settings would have given it.

use crate::{Entry, version::compare, volumes::Volume};

/// Finds one; the RAM disk has its version's name.
pub fn find(volumes: &[Volume]) -> Option<Entry> {
    volumes.iter().enumerate().find_map(|(at, volume)| {
        let link = || {
            let kernel = ["/vmlinuz", "/boot/vmlinuz"].into_iter().find(|path| volume.has(path))?;
            let initramfs = kernel.replace("vmlinuz", "initrd.img");
            Some((kernel.to_owned(), vec![initramfs]))
        };
        let newest = || {
            ["/boot", "/"].into_iter().find_map(|folder| {
                let names = volume.list(folder);
                let versions = names.iter().filter_map(|name| name.strip_prefix("vmlinuz-")).filter(|version| !version.contains("rescue"));
                let version = versions.max_by(|a, b| compare(a, b))?;
                let folder = folder.trim_end_matches('/');
                let initramfs = ["initrd.img-", "initramfs-"]
                    .map(|name| [format!("{folder}/{name}{version}"), format!("{folder}/{name}{version}.img")]);
                Some((format!("{folder}/vmlinuz-{version}"), initramfs.into_iter().flatten().collect::<Vec<_>>()))
            })
        };
        let (kernel, initramfs) = link().or_else(newest)?;
        let initramfs = initramfs.into_iter().find(|path| volume.has(path));
        let settings = volumes.iter().find_map(|volume| volume.text("/etc/default/grub"));
        Some(Entry {
            title: kernel.clone(),
            kernel: (at, kernel),
            initramfs: initramfs.into_iter().map(|path| (at, path)).collect(),
            cmdline: cmdline(volumes, settings.as_deref().unwrap_or_default()),
        })
    })
}

/// The root file system is the one with an `/etc/fstab`, as nobody names it.
fn cmdline(volumes: &[Volume], settings: &str) -> String {
    let root = volumes.iter().find(|volume| volume.has("/etc/fstab")).map(|volume| format!("root=UUID={} ro", volume.uuid()));
    let setting = |key: &str| {
        let value = settings.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
    };
    let words = [root, setting("GRUB_CMDLINE_LINUX"), setting("GRUB_CMDLINE_LINUX_DEFAULT")];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}
