//! Firmware that cards want from their host before they work: packages of Debian's `non-free-firmware`, whose licences allow to pass them on and not to
//! change them. An image has none unless whoever builds it names the packages.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::cpio::Tree;

/// Where the archive has it.
pub const COMPONENT: &str = "non-free-firmware";
/// Where packages have it, and where the kernel looks.
const IN_PACKAGE: &str = "usr/lib/firmware";
const IN_IMAGE: &str = "lib/firmware";
/// All of it stays in every machine's memory.
const BYTES_MAX: u64 = 64 << 20;

/// One entry below `/lib/firmware`.
enum Entry {
    File(Vec<u8>),
    Link(String),
}

/// What packages have, by path.
#[derive(Default)]
pub struct Firmware {
    entries: BTreeMap<String, Entry>,
    bytes: u64,
}

impl Firmware {
    /// Takes in an unpacked package.
    pub fn add(&mut self, package: &str, folder: &Path) -> Result<()> {
        let (home, before) = (folder.join(IN_PACKAGE), self.entries.len());
        ensure!(home.is_dir(), "package {package} has no {IN_PACKAGE}; it is no firmware");
        self.walk(&home, IN_IMAGE).with_context(|| format!("package {package}"))?;
        ensure!(self.entries.len() > before, "package {package} has no firmware that is not there already");
        ensure!(
            self.bytes <= BYTES_MAX,
            "with {package} there are {} MB of firmware, which stays in memory, at most {} are allowed; name only what your cards want",
            self.bytes >> 20,
            BYTES_MAX >> 20
        );
        Ok(())
    }

    fn walk(&mut self, folder: &Path, at: &str) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            let entry = entry.with_context(|| format!("read {}", folder.display()))?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = format!("{at}/{}", entry.file_name().to_string_lossy());
            if kind.is_dir() {
                self.walk(&path, &name)?;
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).with_context(|| format!("read {}", path.display()))?;
                self.entries.insert(name, Entry::Link(target.to_string_lossy().into_owned()));
            } else if kind.is_file() {
                let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                self.bytes += bytes.len() as u64;
                self.entries.insert(name, Entry::File(bytes));
            }
        }
        Ok(())
    }

    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts it into the image.
    pub fn put(self, tree: &mut Tree) {
        for (name, entry) in self.entries {
            match entry {
                Entry::File(bytes) => tree.data(&name, bytes),
                Entry::Link(target) => tree.link(&name, &target),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_links_are_where_the_kernel_looks() {
        let package = tempfile::tempdir().unwrap();
        let home = package.path().join(IN_PACKAGE);
        fs::create_dir_all(home.join("bnx2")).unwrap();
        fs::write(home.join("bnx2/one.fw"), "firmware one").unwrap();
        std::os::unix::fs::symlink("one.fw", home.join("bnx2/other.fw")).unwrap();
        let (mut firmware, mut tree) = (Firmware::default(), Tree::default());
        firmware.add("firmware-bnx2", package.path()).unwrap();
        assert_eq!(firmware.bytes(), 12);
        assert!(firmware.add("firmware-bnx2", package.path()).unwrap_err().to_string().contains("not there already"));
        firmware.put(&mut tree);
        let archive = String::from_utf8_lossy(&tree.to_bytes()).into_owned();
        for part in ["lib/firmware/bnx2/one.fw\0", "firmware one", "lib/firmware/bnx2/other.fw\0"] {
            assert!(archive.contains(part), "{part}");
        }
    }

    #[test]
    fn what_is_no_firmware_or_too_much_is_refused() {
        let package = tempfile::tempdir().unwrap();
        let refused = |package: &Path| Firmware::default().add("hello", package).unwrap_err().to_string();
        assert!(refused(package.path()).contains("it is no firmware"));
        fs::create_dir_all(package.path().join(IN_PACKAGE)).unwrap();
        assert!(refused(package.path()).contains("not there already"));
        // Sparse: it takes memory while it is read.
        fs::File::create(package.path().join(IN_PACKAGE).join("large")).unwrap().set_len(BYTES_MAX + 1).unwrap();
        assert!(refused(package.path()).contains("at most 64 are allowed"));
    }
}
