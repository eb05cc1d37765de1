//! The initrd: two archives, one after the other, which the kernel unpacks in that order.
//!
//! ```text
//! plain   cpio of the kernel modules, compressed one by one as Debian ships them; padded to a multiple of 4
//! zstd    cpio of folders, programs, configuration and lists of modules
//! ```
//! Compressing compressed modules again saves next to nothing and costs every boot the time to unpack them twice.
//!
//! ```text
//! /init                  -> usr/bin/rebec (PID 1)      /usr/bin/rebec, /usr/bin/rebec-vmm   the programs
//! /sbin/modprobe         -> /usr/bin/rebec (the kernel's own requests for modules)
//! /lib/modules/RELEASE   modules and depmod's files     /etc   passwd, group, hosts, os-release, resolv.conf -> /run/resolv.conf
//! ```

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{cpio::Tree, modules::Files};

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

/// The initrd's bytes.
pub fn build(modules: &Files, programs: Programs<'_>, version: &str) -> Result<Vec<u8>> {
    let (mut plain, mut tree) = (Tree::default(), Tree::default());
    for (name, path) in modules {
        let packed = name.ends_with(".xz");
        let target = if packed { &mut plain } else { &mut tree };
        target.data(name, fs::read(path).with_context(|| format!("read {}", path.display()))?);
    }
    for folder in FOLDERS {
        tree.folder(folder);
    }
    // The kernel opens it as PID 1's input and output before anything can be mounted on /dev.
    tree.device("dev/console", 5, 1);
    tree.host_file("usr/bin/rebec", programs.rebec)?;
    tree.host_file("usr/bin/rebec-vmm", programs.vmm)?;
    tree.link("init", "usr/bin/rebec");
    tree.link("sbin/modprobe", "/usr/bin/rebec");
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
        let modules = Files::from([("lib/modules/1/a.ko.xz".to_owned(), program.clone())]);
        let programs = Programs { rebec: &program, vmm: &program };
        let bytes = build(&modules, programs, "1.0").unwrap();
        assert_eq!(bytes, build(&modules, programs, "1.0").unwrap());
        let start = bytes.windows(4).position(|four| four == [0x28, 0xb5, 0x2f, 0xfd]).unwrap();
        assert_eq!(start % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        let second = zstd::bulk::decompress(&bytes[start..], 1 << 20).unwrap();
        let text = String::from_utf8_lossy(&second);
        assert!(text.contains("sbin/modprobe") && text.contains("PRETTY_NAME=\"Rebec 1.0\""));
    }
}
