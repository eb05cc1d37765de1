//! The initrd: two archives, one after the other, which the kernel unpacks in that order.
//!
//! ```text
//! plain   cpio of modules.pack alone; padded to a multiple of 4
//! zstd    cpio of folders, programs, configuration, lists of modules, and the modules that nearly every machine loads
//! ```
//! The pack is the other modules, compressed one by one as Debian ships them, end to end; a line of modules.pack.index is
//! `NAME OFFSET LENGTH`. `rebec init` takes out what it needs. More than two thousand files, of which a machine reads ten, would cost
//! every boot the time to make them. Compressing compressed modules again saves next to nothing and costs the time to unpack them twice.
//!
//! ```text
//! /init                  -> usr/bin/rebec (PID 1)      /usr/bin/rebec, /usr/bin/rebec-vmm   the programs
//! /sbin                  /sbin/modprobe is made by `rebec init`: before it, the kernel asks for a dozen ciphers that it can do without
//! /lib/modules/RELEASE   modules, their pack and depmod's files     /etc   passwd, group, hosts, os-release, resolv.conf -> /run/resolv.conf
//! ```

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{cpio::Tree, firmware::Firmware, modules::Files};

/// A balance: above it, seconds of build for a per cent of the programs' size.
const ZSTD_LEVEL: i32 = 15;
const FOLDERS: [&str; 12] = ["dev", "proc", "sys", "run", "tmp", "mnt", "var/lib/rebec", "var/log", "var/tmp", "root", "usr/bin", "sbin"];
const PASSWD: &str = "root:x:0:0:root:/root:/usr/bin/nologin\nnobody:x:65534:65534:nobody:/:/usr/bin/nologin\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n";

/// The programs of the image.
#[derive(Debug, Clone, Copy)]
pub struct Programs<'a> {
    /// `rebec`, a static program.
    pub rebec: &'a Path,
    /// `rebec-vmm`, a static program.
    pub vmm: &'a Path,
}

/// Compressed modules, end to end.
#[derive(Default)]
struct Pack {
    modules: Vec<u8>,
    index: String,
}

/// Packs by the folder of their kernel: `lib/modules/RELEASE`.
type Packs<'a> = BTreeMap<&'a str, Pack>;

impl Pack {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        self.index += &format!("{name} {} {}\n", self.modules.len(), bytes.len());
        self.modules.extend_from_slice(bytes);
    }
}

/// The initrd's bytes.
pub fn build(modules: &Files, firmware: Firmware, programs: Programs<'_>, version: &str) -> Result<Vec<u8>> {
    let (mut plain, mut tree) = (Tree::default(), Tree::default());
    let mut packs = Packs::new();
    for (name, path) in modules {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        match name.strip_suffix(".xz").and(name.match_indices('/').nth(2)) {
            Some((home, _)) => packs.entry(&name[..home]).or_default().add(&name[home + 1..], &bytes),
            None => tree.data(name, bytes),
        }
    }
    for (home, pack) in packs {
        tree.data(&format!("{home}/modules.pack.index"), pack.index);
        plain.data(&format!("{home}/modules.pack"), pack.modules);
    }
    firmware.put(&mut tree);
    for folder in FOLDERS {
        tree.folder(folder);
    }
    // The kernel opens it as PID 1's input and output before anything can be mounted on /dev.
    tree.device("dev/console", 5, 1);
    tree.host_file("usr/bin/rebec", programs.rebec)?;
    tree.host_file("usr/bin/rebec-vmm", programs.vmm)?;
    tree.link("init", "usr/bin/rebec");
    tree.link("etc/resolv.conf", "/run/resolv.conf");
    tree.data("etc/passwd", PASSWD);
    tree.data("etc/group", GROUP);
    tree.data("etc/hosts", HOSTS);
    tree.data("etc/os-release", format!("ID=rebec\nNAME=Rebec\nPRETTY_NAME=\"Rebec {version}\"\nVERSION_ID={version}\n"));
    let packed = zstd::bulk::compress(&tree.to_bytes(), ZSTD_LEVEL).context("compress the programs")?;
    let mut bytes = plain.to_bytes();
    bytes.extend_from_slice(&packed);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_archives_are_there_and_the_second_is_aligned() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "program").unwrap();
        let named = |name: &str| (format!("lib/modules/1/{name}"), program.clone());
        let modules = Files::from([named("kernel/a.ko.xz"), named("kernel/b.ko.xz"), named("kernel/c.ko")]);
        let programs = Programs { rebec: &program, vmm: &program };
        let bytes = build(&modules, Firmware::default(), programs, "1.0").unwrap();
        assert_eq!(bytes, build(&modules, Firmware::default(), programs, "1.0").unwrap());
        let start = bytes.windows(4).position(|four| four == [0x28, 0xb5, 0x2f, 0xfd]).unwrap();
        assert_eq!(start % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        let second = zstd::bulk::decompress(&bytes[start..], 1 << 20).unwrap();
        let text = String::from_utf8_lossy(&second);
        assert!(text.contains("lib/modules/1/kernel/c.ko\0") && text.contains("PRETTY_NAME=\"Rebec 1.0\""));
        assert!(text.contains("kernel/a.ko.xz 0 7\nkernel/b.ko.xz 7 7\n"));
        assert!(String::from_utf8_lossy(&bytes[..start]).contains("lib/modules/1/modules.pack\0"));
        assert!(bytes[..start].windows(14).any(|both| both == b"programprogram"));
        // Made by init: the kernel must find nobody to answer before.
        assert!(!text.contains("sbin/modprobe"));
    }
}
