//! Which label the file system on a disk carries.
//!
//! ```text
//! ext4     superblock at 1024: magic 53 ef at 56, label of 16 bytes at 120
//! iso9660  primary volume descriptor at 32768: 01 "CD001", volume identifier of 32 bytes at 40
//! vfat     boot sector: 55 aa at 510; label of 11 bytes at 71 (FAT32) or 43 (FAT12, FAT16); the root folder's own label counts first,
//!          as other systems change only that
//! ```
//! Bytes of a disk are not to be trusted: everything is looked up within what was read.

use std::{
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
};

/// File systems that are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// For state, and for seeds.
    Ext4,
    /// For seeds.
    Vfat,
    /// For seeds.
    Iso9660,
}

impl Kind {
    /// The kernel's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Vfat => "vfat",
            Self::Iso9660 => "iso9660",
        }
    }
}

/// What of a FAT root folder is looked at: a label is among the first entries.
const FAT_ROOT_BYTES: usize = 4096;

/// Finds a file system and its label; none if there is nothing known.
pub fn read(disk: &mut (impl Read + Seek)) -> io::Result<Option<(Kind, String)>> {
    // An ISO that is also a disk has a boot sector, but is one ISO: it comes first.
    let descriptor = at(disk, 32_768, 2048)?;
    if descriptor.get(..6) == Some(b"\x01CD001") {
        return Ok(Some((Kind::Iso9660, text(&descriptor, 40..72))));
    }
    let start = at(disk, 0, 2048)?;
    if start.get(1024 + 56..1024 + 58) == Some(&[0x53, 0xef]) {
        return Ok(Some((Kind::Ext4, text(&start, 1024 + 120..1024 + 136))));
    }
    fat(disk, &start)
}

fn fat(disk: &mut (impl Read + Seek), sector: &[u8]) -> io::Result<Option<(Kind, String)>> {
    let byte = |at: usize| sector.get(at).copied().map_or(0, u64::from);
    let word = |at: usize| byte(at) | byte(at + 1) << 8;
    let double = |at: usize| word(at) | word(at + 2) << 16;
    let wide = sector.get(82..87) == Some(b"FAT32");
    let known = wide || sector.get(54..57) == Some(b"FAT");
    let sector_bytes = word(11);
    if !known || sector.get(510..512) != Some(&[0x55, 0xaa]) || ![512, 1024, 2048, 4096].contains(&sector_bytes) {
        return Ok(None);
    }
    let tables = byte(16) * if wide { double(36) } else { word(22) };
    let mut root = word(14) + tables;
    if wide {
        root += double(44).saturating_sub(2) * byte(13);
    }
    let folder = at(disk, root * sector_bytes, FAT_ROOT_BYTES)?;
    const ATTRIBUTE: usize = 11;
    const VOLUME_LABEL: u8 = 0x08;
    const KIND_BITS: u8 = 0x3f;
    let entries = folder.chunks_exact(32).take_while(|entry| entry[0] != 0).filter(|entry| entry[0] != 0xe5);
    let mut labels = entries.filter(|entry| entry[ATTRIBUTE] & KIND_BITS == VOLUME_LABEL);
    let label = match labels.next() {
        Some(entry) => text(entry, 0..11),
        None if wide => text(sector, 71..82),
        None => text(sector, 43..54),
    };
    Ok(Some((Kind::Vfat, label)))
}

/// Up to `length` bytes from `offset`; fewer where the disk ends.
fn at(disk: &mut (impl Read + Seek), offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    disk.seek(SeekFrom::Start(offset))?;
    disk.by_ref().take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(bytes: &[u8], range: Range<usize>) -> String {
    let bytes = bytes.get(range).unwrap_or_default();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs::File, path::Path, process::Command};

    use super::*;

    fn made_by(program: &str, args: &[&str]) -> Option<(Kind, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let path_with_tools = std::env::var("PATH").unwrap() + ":/usr/sbin:/sbin";
        let made = Command::new(program).args(args).arg(&path).env("PATH", path_with_tools).output().unwrap();
        assert!(made.status.success(), "{program}: {}", String::from_utf8_lossy(&made.stderr));
        of(&path)
    }

    fn of(path: &Path) -> Option<(Kind, String)> {
        read(&mut File::open(path).unwrap()).unwrap()
    }

    #[test]
    fn labels_of_real_file_systems_are_read() {
        assert_eq!(made_by("mkfs.ext4", &["-q", "-F", "-L", "REBEC-STATE"]), Some((Kind::Ext4, "REBEC-STATE".to_owned())));
        for size in ["16", "32"] {
            let made = made_by("mkfs.vfat", &["-F", size, "-n", "REBEC-SEED"]);
            assert_eq!(made, Some((Kind::Vfat, "REBEC-SEED".to_owned())), "FAT{size}");
        }
    }

    #[test]
    fn a_fat_label_in_the_root_folder_counts_first() {
        let mut disk = vec![0; 64 << 10];
        disk[11..13].copy_from_slice(&512u16.to_le_bytes());
        disk[14] = 1;
        disk[16] = 2;
        disk[22] = 4;
        disk[43..54].copy_from_slice(b"NO NAME    ");
        disk[54..62].copy_from_slice(b"FAT16   ");
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(read(&mut io::Cursor::new(&disk)).unwrap(), Some((Kind::Vfat, "NO NAME".to_owned())));
        let root = 9 * 512;
        disk[root..root + 12].copy_from_slice(b"REBEC-SEED \x08");
        assert_eq!(read(&mut io::Cursor::new(&disk)).unwrap(), Some((Kind::Vfat, "REBEC-SEED".to_owned())));
    }

    #[test]
    fn disks_with_nothing_or_nonsense_have_no_label() {
        for disk in [vec![], vec![0; 100], vec![0xff; 64 << 10]] {
            assert_eq!(read(&mut io::Cursor::new(disk)).unwrap(), None);
        }
        let mut iso = vec![0; 40 << 10];
        iso[32_768..32_774].copy_from_slice(b"\x01CD001");
        iso[32_808..32_814].copy_from_slice(b"REBEC ");
        assert_eq!(read(&mut io::Cursor::new(iso)).unwrap(), Some((Kind::Iso9660, "REBEC".to_owned())));
    }
}
