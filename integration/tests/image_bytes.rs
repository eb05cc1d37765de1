//! The appliance's image from given programs is the same bytes twice, wherever it is built.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use rebec_image_build::image::{Order, build};
use rebec_lab::{appliance, paths, provision};

/// Any static programs will do: they are not started.
const PROGRAM: &str = "/bin/busybox";

#[test]
fn an_image_is_the_same_bytes_twice() -> Result<()> {
    provision::provision()?;
    let (one, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let first = made(&one.path().join("a"))?;
    // Another second, so that no time of day slips in unnoticed.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let second = made(&other.path().join("another/folder"))?;
    assert_eq!(first.keys().collect::<Vec<_>>(), ["initrd.img", "manifest.json", "rebec.iso", "vmlinuz"]);
    for (name, bytes) in &first {
        assert!(second.get(name) == Some(bytes), "{name} differs");
    }
    Ok(())
}

/// Builds in a folder and returns its files.
fn made(out: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let program = Path::new(PROGRAM).to_owned();
    let (cache, lock) = (paths::cache(), appliance::lock());
    build(&Order { rebec: program.clone(), vmm: program, out: out.to_owned(), cache, lock, newest: false, firmware: vec![] })?;
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(out).with_context(|| format!("read {}", out.display()))? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
    }
    Ok(files)
}
