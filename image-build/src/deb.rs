//! A Debian package for hosts that already have a system: the two programs and the agent's unit.
//!
//! ```text
//! ar archive   debian-binary     "2.0"
//!              control.tar.zst   control, postinst, prerm
//!              data.tar.zst      usr/bin/rebec, usr/bin/rebec-vmm, the unit, the licence
//! ```
//! Written here and not by dpkg-deb, so that the same programs give the same bytes on every machine (deb(5), ar(5)). Packed with
//! Zstandard, which dpkg reads since Debian 12. The programs are static: it depends on nothing.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::iso::EPOCH_SECONDS;

/// The unit of the agent.
const UNIT: &str = include_str!("../../appliance/agent/rebec.service");
const LICENSE: &str = include_str!("../../LICENSE");
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Packs well, and takes a second.
const ZSTD_LEVEL: i32 = 12;
/// The first bytes of a static program.
const ELF_MAGIC: &[u8] = b"\x7fELF";

const POSTINST: &str = "#!/bin/sh
set -e
if [ \"$1\" = configure ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if [ -z \"$2\" ]; then
        systemctl enable --now rebec.service
    else
        systemctl try-restart rebec.service
    fi
fi
";
const PRERM: &str = "#!/bin/sh
set -e
if [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now rebec.service
fi
";

/// A file of the package.
struct File {
    path: &'static str,
    mode: u32,
    bytes: Vec<u8>,
}

/// Writes the package; returns where it is.
pub fn build(rebec: &Path, vmm: &Path, out: &Path) -> Result<PathBuf> {
    let files = [
        program("usr/bin/rebec", rebec)?,
        program("usr/bin/rebec-vmm", vmm)?,
        File { path: "usr/lib/systemd/system/rebec.service", mode: 0o644, bytes: UNIT.into() },
        File { path: "usr/share/doc/rebec/copyright", mode: 0o644, bytes: LICENSE.into() },
    ];
    let size: usize = files.iter().map(|file| file.bytes.len()).sum();
    let control = [
        File { path: "control", mode: 0o644, bytes: control(size.div_ceil(1024)).into() },
        File { path: "postinst", mode: 0o755, bytes: POSTINST.into() },
        File { path: "prerm", mode: 0o755, bytes: PRERM.into() },
    ];
    let mut package = b"!<arch>\n".to_vec();
    member(&mut package, "debian-binary", b"2.0\n");
    member(&mut package, "control.tar.zst", &packed(&control)?);
    member(&mut package, "data.tar.zst", &packed(&files)?);
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let path = out.join(format!("rebec_{VERSION}_amd64.deb"));
    let readable = fs::Permissions::from_mode(0o644);
    let mut file =
        tempfile::Builder::new().permissions(readable).tempfile_in(out).with_context(|| format!("write in {}", out.display()))?;
    std::io::Write::write_all(&mut file, &package).with_context(|| format!("write {}", path.display()))?;
    file.persist(&path).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn program(path: &'static str, from: &Path) -> Result<File> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    if !bytes.starts_with(ELF_MAGIC) {
        bail!("{}: not a program; build it with `cargo build --release`", from.display());
    }
    Ok(File { path, mode: 0o755, bytes })
}

fn control(installed_kib: usize) -> String {
    format!(
        "Package: rebec
Version: {VERSION}
Architecture: amd64
Maintainer: Rebec engineers <engineers@rebec.invalid>
Installed-Size: {installed_kib}
Section: admin
Priority: optional
Description: virtual machines on a pool of machines of several domains
 The agent of a host and its command line. `rebec pool init` makes a pool,
 `rebec pool join` joins one by a ticket.
"
    )
}

/// A tar file of these files and the folders above them, each once and before what is in it.
fn packed(files: &[File]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(vec![]);
    let mut folders = BTreeSet::new();
    for file in files {
        for folder in Path::new(file.path).ancestors().skip(1) {
            folders.insert(folder);
        }
    }
    for folder in folders {
        let name = Path::new("./").join(folder).join("");
        tar.append(&header(&name, tar::EntryType::Directory, 0o755, 0)?, &[][..])?;
    }
    for file in files {
        let name = Path::new("./").join(file.path);
        tar.append(&header(&name, tar::EntryType::Regular, file.mode, file.bytes.len())?, &file.bytes[..])?;
    }
    zstd::bulk::compress(&tar.into_inner()?, ZSTD_LEVEL).context("pack the files")
}

fn header(name: &Path, kind: tar::EntryType, mode: u32, bytes: usize) -> Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    // The crate would leave out the `./` that dpkg writes and its tools look for.
    let name = name.as_os_str().as_encoded_bytes();
    let field = header.as_old_mut().name.get_mut(..name.len()).context("a path is too long for a package")?;
    field.copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_username("root")?;
    header.set_groupname("root")?;
    header.set_mtime(EPOCH_SECONDS);
    header.set_size(bytes as u64);
    header.set_cksum();
    Ok(header)
}

/// A member of an ar archive, at an even place.
fn member(archive: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    archive.extend(format!("{name:<16}{EPOCH_SECONDS:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, "100644", bytes.len()).as_bytes());
    archive.extend(bytes);
    if bytes.len() % 2 == 1 {
        archive.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn programs(folder: &Path) -> (PathBuf, PathBuf) {
        let place = |name: &str, bytes: usize| {
            let path = folder.join(name);
            fs::write(&path, [ELF_MAGIC, &vec![7; bytes]].concat()).unwrap();
            path
        };
        (place("rebec", 4001), place("rebec-vmm", 3000))
    }

    fn dpkg(option: &str, package: &Path, more: &[&Path]) -> String {
        let output = Command::new("dpkg-deb").arg(option).arg(package).args(more).env("TZ", "UTC").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn dpkg_finds_what_belongs_there() {
        let folder = tempfile::tempdir().unwrap();
        let (rebec, vmm) = programs(folder.path());
        let package = build(&rebec, &vmm, &folder.path().join("out")).unwrap();
        assert_eq!(package.file_name().unwrap().to_str().unwrap(), format!("rebec_{VERSION}_amd64.deb"));
        assert_eq!(fs::metadata(&package).unwrap().permissions().mode() & 0o444, 0o444, "others may not read it");
        assert_eq!(dpkg("--field", &package, &[Path::new("Package")]), "rebec\n");
        assert_eq!(dpkg("--field", &package, &[Path::new("Version")]).trim(), VERSION);
        let contents = dpkg("--contents", &package, &[]);
        let shown: Vec<Vec<&str>> = contents.lines().map(|line| line.split_whitespace().collect()).collect();
        let files: Vec<_> = shown.iter().map(|words| (words[0], words[1], *words.last().unwrap())).collect();
        let folder_of = |name| ("drwxr-xr-x", "root/root", name);
        assert_eq!(files[..2], [folder_of("./"), folder_of("./usr/")]);
        for file in [
            ("-rwxr-xr-x", "root/root", "./usr/bin/rebec"),
            ("-rwxr-xr-x", "root/root", "./usr/bin/rebec-vmm"),
            ("-rw-r--r--", "root/root", "./usr/lib/systemd/system/rebec.service"),
            ("-rw-r--r--", "root/root", "./usr/share/doc/rebec/copyright"),
        ] {
            assert!(files.contains(&file), "{file:?} in {contents}");
        }
        assert_eq!(files.iter().filter(|(mode, ..)| mode.starts_with('-')).count(), 4);
        let (data, scripts) = (folder.path().join("data"), folder.path().join("scripts"));
        dpkg("--extract", &package, &[&data]);
        dpkg("--control", &package, &[&scripts]);
        assert_eq!(fs::read(data.join("usr/bin/rebec")).unwrap(), fs::read(&rebec).unwrap());
        assert_eq!(fs::read(data.join("usr/bin/rebec-vmm")).unwrap(), fs::read(&vmm).unwrap());
        for script in ["postinst", "prerm"] {
            assert!(Command::new("sh").arg("-n").arg(scripts.join(script)).status().unwrap().success());
        }
    }

    #[test]
    fn the_same_programs_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (rebec, vmm) = programs(folder.path());
        let first = fs::read(build(&rebec, &vmm, &folder.path().join("a")).unwrap()).unwrap();
        let (rebec, vmm) = programs(folder.path());
        assert!(first == fs::read(build(&rebec, &vmm, &folder.path().join("b")).unwrap()).unwrap());
    }

    #[test]
    fn the_unit_leaves_vms_alone() {
        let keys: BTreeSet<_> = UNIT.lines().collect();
        for line in ["KillMode=process", "Restart=always", "OOMPolicy=continue", "WantedBy=multi-user.target"] {
            assert!(keys.contains(line), "{line}");
        }
        let command = UNIT.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        assert!(command.starts_with("/usr/bin/rebec agent ") && command.contains("--vmm /usr/bin/rebec-vmm"));
    }

    #[test]
    fn what_is_no_program_is_not_packed() {
        let folder = tempfile::tempdir().unwrap();
        let (rebec, _) = programs(folder.path());
        let text = folder.path().join("text");
        fs::write(&text, "#!/bin/sh").unwrap();
        assert!(build(&rebec, &text, folder.path()).unwrap_err().to_string().contains("not a program"));
        assert!(build(&folder.path().join("none"), &rebec, folder.path()).unwrap_err().to_string().contains("none"));
    }
}
