//! Entries of the Boot Loader Specification: files of `loader/entries` (type 1), their order, and which of them is taken
//! (uapi-group.org, "Boot Loader Specification").

use std::cmp::Ordering;

use crate::{Entry, version::compare, volumes::Volume};

/// A type 1 entry, or what stands for one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// The file's name without `.conf` and count of tries.
    pub id: String,
    /// No tries are left: it failed to start each time.
    pub is_bad: bool,
    pub title: String,
    pub version: String,
    pub machine: String,
    pub sort_key: String,
    pub linux: String,
    pub initrd: Vec<String>,
    pub options: String,
}

/// All of a folder that start Linux, in the order of the specification: the first is what starts if nobody chose.
pub fn read(volume: &Volume, folder: &str) -> Vec<Words> {
    let names = volume.list(folder).into_iter().filter(|name| name.ends_with(".conf"));
    let mut found: Vec<Words> = names.filter_map(|name| parse(&name, &volume.text(&format!("{folder}/{name}"))?)).collect();
    found.sort_by(order);
    found
}

/// One file. None, if it starts no Linux of this architecture.
pub fn parse(name: &str, text: &str) -> Option<Words> {
    let (id, tries) = without_tries(name.strip_suffix(".conf").unwrap_or(name));
    let mut words = Words { id: id.to_owned(), is_bad: tries == Some(0), ..Words::default() };
    let mut options: Vec<&str> = vec![];
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some((key, value)) = line.split_once(char::is_whitespace) else { continue };
        let value = value.trim();
        match key {
            "title" => words.title = value.to_owned(),
            "version" => words.version = value.to_owned(),
            "machine-id" => words.machine = value.to_owned(),
            "sort-key" => words.sort_key = value.to_owned(),
            "linux" => words.linux = value.to_owned(),
            // GRUB's own entries list several in one line.
            "initrd" => words.initrd.extend(value.split_whitespace().map(str::to_owned)),
            "options" => options.push(value),
            "architecture" if !value.eq_ignore_ascii_case("x64") => return None,
            _ => {}
        }
    }
    words.options = options.join(" ");
    (!words.linux.is_empty()).then_some(words)
}

/// `name+LEFT-DONE`: the name, and how many tries are left.
pub fn without_tries(name: &str) -> (&str, Option<u32>) {
    let Some((id, counts)) = name.rsplit_once('+') else { return (name, None) };
    let left = counts.split_once('-').map_or(counts, |(left, _)| left);
    left.parse().map_or((name, None), |left| (id, Some(left)))
}

/// Which comes first in a menu.
pub fn order(a: &Words, b: &Words) -> Ordering {
    let sorted = |words: &Words| words.sort_key.is_empty();
    let by_key = || match (a.sort_key.is_empty(), b.sort_key.is_empty()) {
        (false, false) => a.sort_key.cmp(&b.sort_key).then_with(|| a.machine.cmp(&b.machine)).then_with(|| compare(&b.version, &a.version)),
        _ => Ordering::Equal,
    };
    a.is_bad.cmp(&b.is_bad).then_with(|| sorted(a).cmp(&sorted(b))).then_with(by_key).then_with(|| compare(&b.id, &a.id))
}

/// The entry that `default` of loader.conf names, or the first.
pub fn preferred<'a, T>(found: &'a [T], default: Option<&str>, id: impl Fn(&T) -> &str) -> Option<&'a T> {
    let named = default.and_then(|pattern| found.iter().find(|entry| fits(pattern.trim_end_matches(".conf"), id(entry))));
    named.or(found.first())
}

/// `default` of `loader/loader.conf`.
pub fn default_of(volume: &Volume) -> Option<String> {
    let text = volume.text("/loader/loader.conf")?;
    let mut lines = text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
    lines.find(|(key, _)| *key == "default").map(|(_, value)| value.trim().to_owned())
}

impl Words {
    /// Its files are named from the root of the file system that it lies on.
    pub fn entry(&self, volume: usize) -> Entry {
        let at = |path: &String| (volume, path.clone());
        let title = if self.title.is_empty() { &self.id } else { &self.title };
        Entry {
            title: title.clone(),
            kernel: at(&self.linux),
            initramfs: self.initrd.iter().map(at).collect(),
            cmdline: self.options.clone(),
        }
    }
}

/// Whether a name is what a pattern of `*` and `?` means.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut to, mut star) = (0, 0, None);
    while to < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, to));
                at += 1;
            }
            Some(letter) if *letter == '?' || letter.eq_ignore_ascii_case(&name[to]) => (at, to) = (at + 1, to + 1),
            _ => match star {
                // The last star takes one more.
                Some((place, taken)) => {
                    star = Some((place, taken + 1));
                    (at, to) = (place + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_and_other_architectures_are_not() {
        let text = "# made by kernel-install\ntitle Fedora\nversion 6.11.4\nlinux /vmlinuz-6.11.4\ninitrd /a.img /b.img\noptions root=UUID=1 ro\noptions quiet\n";
        let words = parse("abc-6.11.4+2-1.conf", text).unwrap();
        assert_eq!((words.id.as_str(), words.is_bad, words.options.as_str()), ("abc-6.11.4", false, "root=UUID=1 ro quiet"));
        assert_eq!(words.initrd, ["/a.img", "/b.img"]);
        assert!(parse("abc+0-3.conf", text).unwrap().is_bad);
        assert_eq!(parse("a.conf", "linux /x\narchitecture aa64\n"), None);
        assert_eq!(parse("a.conf", "efi /shellx64.efi\n"), None);
    }

    #[test]
    fn the_newest_comes_first_and_the_failed_last() {
        let named = |name: &str| parse(name, "linux /x\n").unwrap();
        let mut all: Vec<_> = ["m-6.9.1.conf", "m-6.11.4.conf", "m-6.12.0+0-3.conf", "m-6.11.10.conf"].map(named).into();
        all.sort_by(order);
        assert_eq!(all.iter().map(|words| words.id.as_str()).collect::<Vec<_>>(), ["m-6.11.10", "m-6.11.4", "m-6.9.1", "m-6.12.0"]);
        let wanted = |pattern| preferred(&all, pattern, |words| &words.id).unwrap().id.clone();
        assert_eq!(wanted(Some("m-6.11.4.conf")), "m-6.11.4");
        assert_eq!(wanted(Some("m-6.9*")), "m-6.9.1");
        assert_eq!(wanted(Some("gone")), "m-6.11.10");
        assert!(fits("a*b*c", "aXXbYYbc") && !fits("a*b", "ac") && fits("*", "") && !fits("?", ""));
    }
}
