//! The pack: modules that few machines load, end to end in one file, because a file for each costs every boot more than the ten that it
//! takes out. `image-build` writes it.
//!
//! ```text
//! modules.pack.index   NAME OFFSET LENGTH, a line for each     kernel/drivers/net/dummy.ko.xz 20480 5120
//! ```

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

const PACK: &str = "modules.pack";
const INDEX: &str = "modules.pack.index";

/// Makes the file of a module below `home`, the folder of the kernel's modules, out of the pack.
pub fn take_out(home: &Path, name: &str) -> io::Result<()> {
    let index = fs::read_to_string(home.join(INDEX))?;
    let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("{INDEX} does not name {name}"));
    let (offset, length) = place(&index, name).ok_or_else(unknown)?;
    let mut bytes = vec![0; length];
    File::open(home.join(PACK))?.read_exact_at(&mut bytes, offset)?;
    let target = home.join(name);
    fs::create_dir_all(target.parent().unwrap_or(home))?;
    // Several processes may want one module at once: nobody may find half of it.
    let fresh = home.join(format!("{name}.{}", std::process::id()));
    fs::write(&fresh, bytes)?;
    fs::rename(&fresh, &target)
}

/// Where the module lies, and its length.
fn place(index: &str, name: &str) -> Option<(u64, usize)> {
    let line = index.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    let (offset, length) = line.split_once(' ')?;
    Some((offset.parse().ok()?, length.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_taken_out_and_no_other() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        fs::write(home.join(PACK), "onetwothree").unwrap();
        fs::write(home.join(INDEX), "kernel/a/one.ko.xz 0 3\nkernel/a/two.ko.xz 3 3\nkernel/three.ko.xz 6 5\nkernel/cut.ko.xz 9 3\n")
            .unwrap();
        take_out(home, "kernel/a/two.ko.xz").unwrap();
        take_out(home, "kernel/a/two.ko.xz").unwrap();
        assert_eq!(fs::read(home.join("kernel/a/two.ko.xz")).unwrap(), b"two");
        assert_eq!(fs::read_dir(home.join("kernel/a")).unwrap().count(), 1);
        assert!(take_out(home, "kernel/a/tw").unwrap_err().to_string().contains("does not name kernel/a/tw"));
        assert!(take_out(home, "kernel/cut.ko.xz").is_err());
        assert!(!home.join("kernel/cut.ko.xz").exists());
    }
}
