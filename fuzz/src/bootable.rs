//! A disk that somebody downloaded, or a guest wrote, asked what starts from it.
//!
//! ```text
//! input = 0 disk | 1 for each of FILES (length:u16 bytes), which are then put onto a disk
//! ```

use std::{
    io::{Cursor, Write},
    process::Command,
    rc::Rc,
};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use rebec_bootable::{INITRAMFS_BYTES_MAX, KERNEL_BYTES_MAX, find};

use crate::input::Input;

/// Words that boot loaders read, each with what it may name: the kernel is there.
const FILES: [&str; 5] = ["grub/grub.cfg", "grub/grubenv", "loader/entries/a.conf", "extlinux.conf", "EFI/Linux/a.efi"];
const DISK_BYTES: usize = 64 << 10;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let disk = if input.u8() & 1 == 0 {
        input.rest().to_vec()
    } else {
        let texts = FILES.map(|name| {
            let length = usize::from(input.u8()) << 8 | usize::from(input.u8());
            (name, input.take(length).to_vec())
        });
        disk(&texts)
    };
    let bytes = disk.len() as u64;
    match find(Rc::new(disk)) {
        Ok(start) => {
            assert!(start.kernel.len() as u64 <= KERNEL_BYTES_MAX && !start.from.is_empty());
            assert!(start.initramfs.is_none_or(|initramfs| initramfs.len() as u64 <= INITRAMFS_BYTES_MAX));
            assert!(start.forget.is_none_or(|forget| forget.bytes.len() == 1024 && forget.offset + 1024 <= bytes));
        }
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
    }
}

/// A disk that is one FAT, with these files and a kernel.
fn disk(texts: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut image = Cursor::new(vec![0; DISK_BYTES]);
    fatfs::format_volume(&mut image, FormatVolumeOptions::new()).expect("a FAT fits");
    {
        let fs = FileSystem::new(&mut image, FsOptions::new()).expect("a FAT that was just made");
        let put = |path: &str, content: &[u8]| -> std::io::Result<()> {
            let mut folder = fs.root_dir();
            let mut parts = path.split('/').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    return folder.create_file(part)?.write_all(content);
                }
                folder = folder.create_dir(part)?;
            }
            Ok(())
        };
        // A disk that is full before all is written is one more case.
        let _all = std::iter::once(("vmlinuz-1", &b"kernel"[..]))
            .chain(texts.iter().map(|(path, content)| (*path, content.as_slice())))
            .try_for_each(|(path, content)| put(path, content));
    }
    image.into_inner()
}

/// Each kind of words by itself, a disk of each kind of file system, and a table of partitions.
pub fn seeds() -> Vec<Vec<u8>> {
    let grub = "load_env\nif [ \"${next_entry}\" ]; then set default=\"${next_entry}\"; set next_entry=; save_env next_entry; else set default=0; fi\n\
                function f { insmod gzio; }\nsubmenu 'a' --id s {\nmenuentry 'b' --id 'i' {\nf\nsearch --no-floppy --label --set=root x\nlinux /vmlinuz-1 ro $root\ninitrd /vmlinuz-1\n}\n}\n\
                for i in a b; do set x=$i; done\nblscfg\n";
    let env = format!("{:#<1024}", "# GRUB Environment Block\nnext_entry=s>i\n");
    let entry = "title A\nversion 1\nlinux /vmlinuz-1\ninitrd /vmlinuz-1\noptions ro $x\n";
    let extlinux = "default a\nlabel a\nmenu label A\nlinux vmlinuz-1\ninitrd vmlinuz-1\nappend ro\n";
    let texts = |all: [&[u8]; FILES.len()]| {
        let lengths = |bytes: &[u8]| [(bytes.len() >> 8) as u8, bytes.len() as u8];
        std::iter::once(1).chain(all.iter().flat_map(|bytes| lengths(bytes).into_iter().chain(bytes.iter().copied()))).collect::<Vec<u8>>()
    };
    let plain = |disk: Vec<u8>| [&[0][..], &disk].concat();
    let mut table = vec![0; 1024];
    table[446 + 4..446 + 16].copy_from_slice(&[0x0e, 0, 0, 0, 2, 0, 0, 0, 128, 0, 0, 0]);
    table[510..512].copy_from_slice(&[0x55, 0xaa]);
    let fat = disk(&[(FILES[0], grub.into()), (FILES[1], env.clone().into())]);
    vec![
        texts([grub.as_bytes(), env.as_bytes(), &[], &[], &[]]),
        texts([b"blscfg\n", &[], entry.as_bytes(), &[], &[]]),
        texts([&[], &[], entry.as_bytes(), extlinux.as_bytes(), b"MZ"]),
        texts([&[], &[], &[], extlinux.as_bytes(), &[]]),
        plain([table, fat.clone()].concat()),
        plain(fat),
        plain(ext4(grub, &env)),
    ]
}

/// As small as it goes, without checksums, which hide what lies behind them from a fuzzer.
fn ext4(grub: &str, env: &str) -> Vec<u8> {
    let folder = std::env::temp_dir().join(format!("rebec-fuzz-ext4-{}", std::process::id()));
    let make = || -> std::io::Result<Vec<u8>> {
        std::fs::create_dir_all(folder.join("tree/boot/grub"))?;
        for (name, content) in [("vmlinuz-1", "kernel"), ("boot/grub/grub.cfg", grub), ("boot/grub/grubenv", env)] {
            std::fs::write(folder.join("tree").join(name), content)?;
        }
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.env("PATH", path).args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "1024",
            "-N",
            "16",
            "-m",
            "0",
            "-O",
            "^metadata_csum,^has_journal,^resize_inode",
            "-d",
        ]);
        mke2fs.arg(folder.join("tree")).arg(folder.join("image")).arg("64k").status()?;
        // Blocks at the end that nothing uses are not written.
        std::fs::read(folder.join("image")).map(|mut image| {
            image.resize(DISK_BYTES, 0);
            image
        })
    };
    let made = make();
    std::fs::remove_dir_all(&folder).unwrap_or_default();
    made.expect("mke2fs, of e2fsprogs, makes a file system")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_start() {
        for (number, seed) in seeds().into_iter().enumerate().filter(|(_, seed)| seed[0] == 0) {
            let start = find(Rc::new(seed[1..].to_vec())).unwrap_or_else(|refusal| panic!("seed {number}: {refusal}"));
            assert_eq!((start.kernel, start.forget.is_some()), (b"kernel".to_vec(), true), "seed {number}: {}", start.from);
        }
    }
}
