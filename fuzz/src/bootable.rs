//! A disk that somebody downloaded, or a guest wrote, asked what starts from it.
//!
//! ```text
//! input = 0 disk
//!       | 1 for each of FILES (length:u16 bytes), which are then put onto a disk
//!       | 2 many (number:u16 sector), of a disk of 32 MiB that is zeros elsewhere
//! ```

use std::{
    collections::BTreeMap,
    io::{self, Cursor, Write},
    path::Path,
    process::{Command, Stdio},
    rc::Rc,
};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use rebec_bootable::{INITRAMFS_BYTES_MAX, KERNEL_BYTES_MAX, ReadAt, find};

use crate::input::Input;

/// Words that boot loaders read, each with what it may name: the kernel is there.
const FILES: [&str; 5] = ["grub/grub.cfg", "grub/grubenv", "loader/entries/a.conf", "extlinux.conf", "EFI/Linux/a.efi"];
const DISK_BYTES: usize = 64 << 10;
const SECTOR_BYTES: usize = 512;
/// Of nodes of the btrfs here.
const NODE_BYTES: usize = 4096;
/// Polynomial of CRC-32C, reflected.
const CRC_32C: u32 = 0x82f6_3b78;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let disk: Rc<dyn ReadAt> = match input.u8() % 3 {
        0 => Rc::new(input.rest().to_vec()),
        1 => {
            let texts = FILES.map(|name| {
                let length = usize::from(input.u8()) << 8 | usize::from(input.u8());
                (name, input.take(length).to_vec())
            });
            Rc::new(disk(&texts))
        }
        _ => Rc::new(Sparse::read(input.rest())),
    };
    let bytes = disk.bytes();
    match find(disk) {
        Ok(start) => {
            assert!(start.kernel.len() as u64 <= KERNEL_BYTES_MAX && !start.from.is_empty());
            assert!(start.initramfs.is_none_or(|initramfs| initramfs.len() as u64 <= INITRAMFS_BYTES_MAX));
            assert!(start.forget.is_none_or(|forget| forget.bytes.len() == 1024 && forget.offset + 1024 <= bytes));
        }
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
    }
}

/// A disk that is zeros but for these sectors.
struct Sparse(BTreeMap<usize, Vec<u8>>);

impl Sparse {
    fn read(input: &[u8]) -> Self {
        let pieces = input.chunks_exact(2 + SECTOR_BYTES);
        let sectors = pieces.map(|piece| (usize::from(u16::from_le_bytes([piece[0], piece[1]])), piece[2..].to_vec()));
        let mut sparse = Self(sectors.collect());
        sparse.sum_nodes();
        sparse
    }

    /// Sums of btrfs, which would hide from a fuzzer what lies behind them, are made right; those of XFS are not looked at under `cfg(fuzzing)`.
    fn sum_nodes(&mut self) {
        let in_a_node = NODE_BYTES / SECTOR_BYTES;
        let mut nodes: Vec<usize> = self.0.keys().map(|sector| sector / in_a_node).collect();
        nodes.dedup();
        for node in nodes {
            let mut bytes = vec![0; NODE_BYTES];
            let is_read = self.read_at((node * NODE_BYTES) as u64, &mut bytes).is_ok();
            if is_read && let Some(first) = self.0.get_mut(&(node * in_a_node)) {
                first[..4].copy_from_slice(&crc_32c(&bytes[32..]).to_le_bytes());
            }
        }
    }

    /// What is on a disk, as an input.
    fn written(disk: &[u8]) -> Vec<u8> {
        let sectors = disk.chunks(SECTOR_BYTES).enumerate().filter(|(_, sector)| sector.iter().any(|byte| *byte != 0));
        sectors.fold(vec![2], |all, (number, sector)| [&all, &(number as u16).to_le_bytes()[..], sector].concat())
    }
}

impl ReadAt for Sparse {
    fn bytes(&self) -> u64 {
        (SECTOR_BYTES << 16) as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.bytes());
        let (start, end) = (offset as usize, end.ok_or(io::ErrorKind::UnexpectedEof)? as usize);
        buffer.fill(0);
        for (number, sector) in self.0.range(start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES)) {
            let at = number * SECTOR_BYTES;
            let (from, to) = (at.max(start), (at + SECTOR_BYTES).min(end));
            buffer[from - start..to - start].copy_from_slice(&sector[from - at..to - at]);
        }
        Ok(())
    }
}

fn crc_32c(bytes: &[u8]) -> u32 {
    let step =
        |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ CRC_32C } else { crc >> 1 });
    !bytes.iter().fold(u32::MAX, step)
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
        Sparse::written(&xfs(grub, &env)),
        Sparse::written(&btrfs(grub, &env)),
    ]
}

fn xfs(grub: &str, env: &str) -> Vec<u8> {
    made(grub, env, |folder| {
        let at = |name: &str| format!("{}/tree/{name}", folder.display());
        let proto = format!(
            "/\n0 0\nd--755 0 0\nvmlinuz-1 ---644 0 0 {}\nboot d--755 0 0\ngrub d--755 0 0\ngrub.cfg ---644 0 0 {}\ngrubenv ---644 0 0 {}\n\
             $\nlink l--777 0 0 ../vmlinuz-1\n$\n$\n",
            at("vmlinuz-1"),
            at("boot/grub/grub.cfg"),
            at("boot/grub/grubenv")
        );
        std::fs::write(folder.join("proto"), proto)?;
        let mut mkfs = Command::new("mkfs.xfs");
        mkfs.args(["--unsupported", "-q", "-p"]).arg(folder.join("proto"));
        mkfs.args(["-d", &format!("file,size=16m,name={}", folder.join("image").display())]);
        Ok(mkfs)
    })
}

fn btrfs(grub: &str, env: &str) -> Vec<u8> {
    made(grub, env, |folder| {
        std::fs::File::create(folder.join("image"))?.set_len((SECTOR_BYTES << 16) as u64)?;
        let mut mkfs = Command::new("mkfs.btrfs");
        mkfs.args(["-q", "-f", "-M", "-m", "single", "-d", "single", "--rootdir"]).arg(folder.join("tree")).arg(folder.join("image"));
        Ok(mkfs)
    })
}

/// As small as it goes, without checksums, which hide what lies behind them from a fuzzer.
fn ext4(grub: &str, env: &str) -> Vec<u8> {
    let mut image = made(grub, env, |folder| {
        let mut mke2fs = Command::new("mke2fs");
        let features = "^metadata_csum,^has_journal,^resize_inode";
        mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "1024", "-N", "16", "-m", "0", "-O", features, "-d"]);
        mke2fs.arg(folder.join("tree")).arg(folder.join("image")).arg("64k");
        Ok(mke2fs)
    });
    // Blocks at the end that nothing uses are not written.
    image.resize(DISK_BYTES, 0);
    image
}

/// What a tool makes of a folder with a kernel and GRUB's files.
fn made(grub: &str, env: &str, tool: impl Fn(&Path) -> io::Result<Command>) -> Vec<u8> {
    let folder = std::env::temp_dir().join(format!("rebec-fuzz-disk-{}-{:?}", std::process::id(), std::thread::current().id()));
    let make = || -> io::Result<Vec<u8>> {
        std::fs::create_dir_all(folder.join("tree/boot/grub"))?;
        for (name, content) in [("vmlinuz-1", "kernel"), ("boot/grub/grub.cfg", grub), ("boot/grub/grubenv", env)] {
            std::fs::write(folder.join("tree").join(name), content)?;
        }
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        tool(&folder)?.env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        std::fs::read(folder.join("image"))
    };
    let made = make();
    std::fs::remove_dir_all(&folder).unwrap_or_default();
    made.expect("the tools of e2fsprogs, xfsprogs and btrfs-progs make file systems")
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
        for (number, seed) in seeds().into_iter().enumerate().filter(|(_, seed)| seed[0] == 2) {
            println!("seed {number}: {} bytes", seed.len());
            let start = find(Rc::new(Sparse::read(&seed[1..]))).unwrap_or_else(|refusal| panic!("seed {number}: {refusal}"));
            assert_eq!(start.kernel, b"kernel", "seed {number}: {}", start.from);
        }
    }
}
