//! Loading kernel modules: for devices by their modalias, by name from a fixed list, and for the kernel itself.
//!
//! Most modules lie compressed in a pack; the kernel unpacks them (finit_module(2), MODULE_INIT_COMPRESSED_FILE). Whatever the kernel asks for
//! on its own (a file system, a cipher, a kind of link) comes to `/sbin/modprobe`, which is this program again.

use std::{
    collections::HashSet,
    ffi::CString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use crate::{
    agent::REBEC,
    alias::{Index, name_of},
    pack,
};

/// Where the kernel looks for a program that loads modules.
const MODPROBE: &str = "/sbin/modprobe";
/// Modules that nothing asks for before their device nodes are wanted. All others come by devices or at the kernel's request.
pub const ALWAYS: [&str; 5] = ["tun", "fuse", "loop", "vxlan", "vhost_vsock"];
/// Ciphers come when something uses them: processors ask for dozens, whose self-tests take a second of every boot.
const ON_REQUEST: [&str; 3] = ["kernel/crypto/", "kernel/lib/crypto/", "kernel/arch/x86/crypto/"];
const PROCESSOR: &str = "cpu:";
const COMPRESSED_FILE: i32 = 4;

/// Loads modules of the running kernel.
pub struct Loader {
    home: PathBuf,
    index: Index,
    command_line: String,
    /// Files that are loaded, or that this machine refused: neither is tried twice.
    done: HashSet<String>,
}

impl Loader {
    /// Reads what depmod wrote for the running kernel.
    pub fn open() -> io::Result<Self> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let home = Path::new("/lib/modules").join(release);
        let read = |name: &str| fs::read_to_string(home.join(name));
        let index = Index::parse(
            read("modules.alias")?,
            read("modules.dep")?,
            &read("modules.softdep").unwrap_or_default(),
            &read("modules.builtin")?,
        );
        let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        Ok(Self { home, index, command_line, done: HashSet::new() })
    }

    /// Loads all that an alias or a name stands for. A module that finds no device of its own fails, which is as it should be.
    pub fn load(&mut self, wanted: &str) -> usize {
        let files: Vec<String> = self.index.files(wanted).into_iter().map(str::to_owned).collect();
        let mut loaded = 0;
        let on_request = |file: &str| wanted.starts_with(PROCESSOR) && ON_REQUEST.iter().any(|folder| file.starts_with(folder));
        for file in files.into_iter().filter(|file| !on_request(file)) {
            let name = name_of(&file);
            if !denied(&self.command_line, &name) && self.done.insert(file.clone()) {
                loaded += usize::from(insert(&self.home, &file, &parameters(&self.command_line, &name)).is_ok());
            }
        }
        loaded
    }
}

fn insert(home: &Path, name: &str, parameters: &str) -> io::Result<()> {
    let path = home.join(name);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            pack::take_out(home, name)?;
            File::open(&path)?
        }
        file => file?,
    };
    let packed = path.extension().is_some_and(|extension| extension != "ko");
    let parameters = CString::new(parameters).unwrap_or_default();
    match rustix::system::finit_module(&file, &parameters, if packed { COMPRESSED_FILE } else { 0 }) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Parameters of a module on the kernel's command line: `kvm_amd.nested=1` gives `nested=1`.
fn parameters(command_line: &str, module: &str) -> String {
    let of = |word: &str| {
        let (owner, parameter) = word.split_once('.')?;
        (owner.replace('-', "_") == module).then(|| parameter.to_owned())
    };
    command_line.split_whitespace().filter_map(of).collect::<Vec<_>>().join(" ")
}

/// Whether `modprobe.blacklist=a,b` names a module.
fn denied(command_line: &str, module: &str) -> bool {
    let lists = command_line.split_whitespace().filter_map(|word| word.strip_prefix("modprobe.blacklist="));
    lists.flat_map(|list| list.split(',')).any(|name| name.replace('-', "_") == module)
}

/// Answers the kernel's own requests from now on. The image has no such program: while it starts, a kernel asks for a dozen ciphers that
/// it can do without, and each answer took as long as the start of this program and the reading of depmod's files.
pub fn answer_from_now_on() -> io::Result<()> {
    std::os::unix::fs::symlink(REBEC, MODPROBE)
}

/// What `/sbin/modprobe` does: loads the aliases among its arguments, which the kernel gives as `-q -- ALIAS`.
pub fn answer_kernel(words: impl Iterator<Item = String>) -> i32 {
    let Ok(mut loader) = Loader::open() else { return 1 };
    let wanted: Vec<String> = words.filter(|word| !word.starts_with('-')).collect();
    let known = wanted.iter().all(|wanted| loader.load(wanted) > 0);
    i32::from(!known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_denials_come_from_the_command_line() {
        let line = "quiet kvm-amd.nested=1 kvm_amd.avic=0 rebec.join=x modprobe.blacklist=pcspkr,floppy\n";
        assert_eq!(parameters(line, "kvm_amd"), "nested=1 avic=0");
        assert_eq!(parameters(line, "kvm"), "");
        assert!(denied(line, "floppy") && !denied(line, "kvm"));
    }
}
