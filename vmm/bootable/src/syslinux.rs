//! Configuration of the SYSLINUX family (`extlinux.conf`): what Alpine's disk images start from.

use crate::{Entry, absolute};

/// Labels of one file.
const LABELS_MAX: usize = 256;

#[derive(Default)]
struct Label {
    name: String,
    title: String,
    kernel: String,
    initrd: Vec<String>,
    append: Option<String>,
    is_default: bool,
}

/// The entry that a file takes by default, or its first; paths begin at `folder`, that of the file.
pub fn parse(text: &str, volume: usize, folder: &str) -> Option<Entry> {
    let (mut labels, mut default, mut append) = (Vec::<Label>::new(), String::new(), String::new());
    for line in text.lines().map(str::trim) {
        let (key, value) = line.split_once(char::is_whitespace).map_or((line, ""), |(key, value)| (key, value.trim()));
        let key = key.to_ascii_lowercase();
        if key == "label" && labels.len() < LABELS_MAX {
            labels.push(Label { name: value.to_owned(), ..Label::default() });
            continue;
        }
        match (key.as_str(), labels.last_mut()) {
            ("default" | "ontimeout", _) if !value.is_empty() => value.clone_into(&mut default),
            ("menu", Some(label)) => {
                let (word, rest) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
                match word.to_ascii_lowercase().as_str() {
                    "default" => label.is_default = true,
                    "label" => label.title = rest.trim().replace('^', ""),
                    _ => {}
                }
            }
            ("kernel" | "linux", Some(label)) => value.clone_into(&mut label.kernel),
            ("initrd", Some(label)) => label.initrd = value.split(',').map(|path| path.trim().to_owned()).collect(),
            ("append", Some(label)) => label.append = Some(value.to_owned()),
            ("append", None) => value.clone_into(&mut append),
            _ => {}
        }
    }
    let chosen = labels.iter().find(|label| label.name == default || default.split_whitespace().next() == Some(&label.name));
    let label = chosen.or_else(|| labels.iter().find(|label| label.is_default)).or(labels.first())?;
    let mut initrd = label.initrd.clone();
    let mut words = vec![];
    // Older files name the RAM disk among the kernel's words.
    for word in label.append.as_ref().unwrap_or(&append).split_whitespace() {
        match word.strip_prefix("initrd=") {
            Some(paths) => initrd.extend(paths.split(',').map(str::to_owned)),
            None => words.push(word),
        }
    }
    if label.kernel.is_empty() {
        return None;
    }
    Some(Entry {
        title: if label.title.is_empty() { label.name.clone() } else { label.title.clone() },
        kernel: (volume, absolute(folder, &label.kernel)),
        initramfs: initrd.iter().filter(|path| !path.is_empty()).map(|path| (volume, absolute(folder, path))).collect(),
        cmdline: words.join(" "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_alpine_writes_is_read() {
        let text = "DEFAULT menu.c32\nPROMPT 0\nTIMEOUT 10\nMENU TITLE Alpine/Linux Boot Menu\nLABEL virt\n  MENU DEFAULT\n  MENU LABEL Linux virt\n  LINUX vmlinuz-virt\n  INITRD initramfs-virt\n  APPEND root=UUID=1 modules=ext4 console=ttyS0,115200n8\nMENU SEPARATOR\n";
        let entry = parse(text, 2, "/boot").unwrap();
        assert_eq!(entry.kernel, (2, "/boot/vmlinuz-virt".to_owned()));
        assert_eq!(entry.initramfs, [(2, "/boot/initramfs-virt".to_owned())]);
        assert_eq!((entry.title.as_str(), entry.cmdline.as_str()), ("Linux virt", "root=UUID=1 modules=ext4 console=ttyS0,115200n8"));
    }

    #[test]
    fn the_default_counts_and_a_ram_disk_among_the_words() {
        let text = "default new\nappend quiet\nlabel old\nkernel /old\nlabel new\nkernel /new\nappend initrd=/a.img,/b.img ro\n";
        let entry = parse(text, 0, "/").unwrap();
        assert_eq!((entry.kernel.1.as_str(), entry.cmdline.as_str()), ("/new", "ro"));
        assert_eq!(entry.initramfs.len(), 2);
        assert_eq!(parse("default x\n", 0, "/"), None);
    }
}
