//! Which modules a device asks for: depmod's text files, read the way modprobe reads them.
//!
//! ```text
//! modules.alias    alias pci:v00008086d*sv*... e1000e     patterns as in fnmatch(3): * ? [a-z]
//! modules.dep      kernel/drivers/.../e1000e.ko.xz: kernel/.../ptp.ko.xz ...     closest dependency first
//! modules.softdep  softdep ext4 pre: crypto-crc32c post: ...     names or aliases
//! modules.builtin  kernel/fs/binfmt_script.ko
//! ```
//! Pure: text in, names of files out.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

/// How far soft dependencies of soft dependencies are followed.
const SOFT_DEPTH_MAX: usize = 8;
const ALIAS: &str = "alias ";
const LINE_BYTES_USUAL: usize = 50;

/// The files, ready to be asked. Texts are kept as they are and lines found by position: a short-lived process reads them too.
#[derive(Debug, Default)]
pub struct Index {
    alias: String,
    /// Pattern and module of each line, as positions in `alias`.
    patterns: Vec<[Range<usize>; 2]>,
    dep: String,
    /// Module name to its line in `dep`.
    files: HashMap<String, Range<usize>>,
    soft: HashMap<String, Vec<String>>,
    builtin: HashSet<String>,
}

impl Index {
    /// Takes the four files' texts. Lines that make no sense are passed over.
    pub fn parse(alias: String, dep: String, softdep: &str, builtin: &str) -> Self {
        let mut patterns = Vec::with_capacity(alias.len() / LINE_BYTES_USUAL);
        for (start, line) in positions(&alias) {
            let Some((pattern, module)) = line.strip_prefix(ALIAS).and_then(|rest| rest.rsplit_once(' ')) else { continue };
            let pattern_start = start + ALIAS.len();
            let module_start = start + line.len() - module.len();
            patterns.push([pattern_start..pattern_start + pattern.len(), module_start..start + line.len()]);
        }
        let of = |(start, line): (usize, &str)| Some((name_of(line.split_once(':')?.0), start..start + line.len()));
        let files = positions(&dep).filter_map(of).collect();
        let mut soft: HashMap<String, Vec<String>> = HashMap::new();
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            let (Some("softdep"), Some(module)) = (words.next(), words.next()) else { continue };
            let before = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| *word != "post:");
            soft.entry(module.replace('-', "_")).or_default().extend(before.map(str::to_owned));
        }
        let builtin = builtin.lines().map(name_of).collect();
        Self { alias, patterns, dep, files, soft, builtin }
    }

    /// Module names that an alias or a module's own name stands for.
    pub fn names(&self, wanted: &str) -> Vec<String> {
        let matching = self.patterns.iter().filter(|[pattern, _]| matches(&self.alias[pattern.clone()], wanted));
        let mut names: Vec<String> = matching.map(|[_, module]| self.alias[module.clone()].replace('-', "_")).collect();
        names.extend(Some(wanted.replace('-', "_")).filter(|name| self.files.contains_key(name)));
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    /// Files to load for an alias or name, first to last, below the folder of modules. Empty when nothing is known or all is built in.
    pub fn files(&self, wanted: &str) -> Vec<&str> {
        let mut files = Vec::new();
        self.gather(wanted, 0, &mut files);
        files
    }

    fn gather<'a>(&'a self, wanted: &str, depth: usize, files: &mut Vec<&'a str>) {
        if depth > SOFT_DEPTH_MAX {
            return;
        }
        for name in self.names(wanted) {
            let Some(line) = self.files.get(&name).filter(|_| !self.builtin.contains(&name)) else { continue };
            let Some((file, needs)) = self.dep[line.clone()].split_once(':').filter(|(file, _)| !files.contains(file)) else { continue };
            // modules.dep lists needs closest first: loading goes the other way round.
            for needed in needs.split_whitespace().rev().chain([file]) {
                for soft in self.soft.get(&name_of(needed)).into_iter().flatten() {
                    self.gather(soft, depth + 1, files);
                }
                if !files.contains(&needed) {
                    files.push(needed);
                }
            }
        }
    }
}

/// The name of the module in a file: `kernel/a/b-c.ko.xz` is `b_c`.
pub fn name_of(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

/// Lines without their ends, each with its position.
fn positions(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_inclusive('\n').scan(0, |next, line| {
        let start = *next;
        *next += line.len();
        Some((start, line.trim_end_matches('\n')))
    })
}

/// fnmatch(3) without flags, for ASCII patterns; hyphens and underscores are one, except between brackets.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut read) = (0, 0);
    // Where the last star stood, and how much of the text it has swallowed.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at + 1, read));
            at += 1;
            continue;
        }
        let step = text.get(read).and_then(|byte| one(&pattern[at.min(pattern.len())..], *byte));
        match (step, read == text.len()) {
            (Some(length), _) => (at, read) = (at + length, read + 1),
            (None, true) if at == pattern.len() => return true,
            (None, true) => return false,
            (None, false) => match star {
                Some((after, swallowed)) => {
                    star = Some((after, swallowed + 1));
                    (at, read) = (after, swallowed + 1);
                }
                None => return false,
            },
        }
    }
}

/// How long the part of the pattern is that matches this byte.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern.first()? {
        b'?' => Some(1),
        b'[' => {
            let end = pattern.iter().position(|letter| *letter == b']')?;
            let set = &pattern[1..end];
            let ranges = set.windows(3).any(|range| range[1] == b'-' && (range[0]..=range[2]).contains(&byte));
            (ranges || set.contains(&byte)).then_some(end + 1)
        }
        letter => {
            let same = |byte: u8| if byte == b'-' { b'_' } else { byte };
            (same(*letter) == same(byte)).then_some(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIASES: &str = "# Aliases extracted from modules themselves.\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\n\
                         alias pci:v*d*sv*sd*bc0Csc03i30* xhci_pci\nalias fs-ext4 ext4\nalias crypto-crc32c crc32c_generic\n\
                         alias crypto-crc32c crc32c-intel\nalias dmi*:bvn*:svnAcme* acme_laptop\nalias usb:v0B95p772[B-D]d* asix\n";
    const DEP: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/fs/mbcache.ko.xz\nkernel/fs/jbd2/jbd2.ko.xz:\n\
                       kernel/fs/mbcache.ko.xz:\nkernel/crypto/crc32c_generic.ko.xz:\nkernel/arch/x86/crypto/crc32c-intel.ko.xz:\n\
                       kernel/drivers/usb/xhci-pci.ko.xz:\nkernel/drivers/acme-laptop.ko.xz:\nkernel/a.ko:\nkernel/drivers/asix.ko:\n";
    const SOFT: &str = "softdep ext4 pre: crypto-crc32c\nsoftdep a pre: a\nsoftdep jbd2 pre: crypto-crc32c post: xhci-pci\n";

    fn index() -> Index {
        Index::parse(ALIASES.to_owned(), DEP.to_owned(), SOFT, "kernel/drivers/virtio/virtio_pci.ko\n")
    }

    #[test]
    fn devices_find_their_modules() {
        let index = index();
        assert_eq!(index.names("pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00"), ["virtio_pci"]);
        assert_eq!(index.files("pci:v00008086d00001041sv00001AF4sd00001100bc0Csc03i30"), ["kernel/drivers/usb/xhci-pci.ko.xz"]);
        assert_eq!(index.files("dmi:bvnX:bvr1:svnAcme:pn1:"), ["kernel/drivers/acme-laptop.ko.xz"]);
        assert_eq!(index.files("usb:v0B95p772Cd0001dc"), ["kernel/drivers/asix.ko"]);
        assert!(index.files("usb:v0B95p772Ed0001dc").is_empty());
        // Built into the kernel: nothing to load.
        assert!(index.files("pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00").is_empty());
    }

    #[test]
    fn what_a_module_needs_comes_first_and_once() {
        let expected = [
            "kernel/fs/mbcache.ko.xz",
            "kernel/crypto/crc32c_generic.ko.xz",
            "kernel/arch/x86/crypto/crc32c-intel.ko.xz",
            "kernel/fs/jbd2/jbd2.ko.xz",
            "kernel/fs/ext4/ext4.ko.xz",
        ];
        assert_eq!(index().files("fs-ext4"), expected);
        assert_eq!(index().files("ext4"), expected);
    }

    #[test]
    fn a_module_that_wants_itself_ends() {
        assert_eq!(index().files("a"), ["kernel/a.ko"]);
        assert!(index().files("nothing-known").is_empty());
    }

    #[test]
    fn patterns_match_as_fnmatch_does() {
        for (pattern, text) in
            [("a*c", "abbc"), ("*", ""), ("a?c", "abc"), ("*b*d*", "abcd"), ("x[0-9a]", "x7"), ("a**", "a"), ("crc-t10", "crc_t10")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("a*c", "abb"), ("a", ""), ("a?", "a"), ("", "a"), ("x[0-9]", "xa"), ("x[0-9", "x1"), ("ab", "a"), ("[a_]", "-")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
