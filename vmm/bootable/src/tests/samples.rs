//! Disks as distributions lay them out, small: GPT, ext4 by mke2fs, XFS and btrfs by their own tools, FAT by fatfs.

use std::{
    fs,
    io::{Cursor, Read, Write},
    path::Path,
    process::Command,
};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

pub const SECTOR: usize = 512;
pub const ESP: [u8; 16] = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
pub const LINUX: [u8; 16] = [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];
/// UUID of every ext4 here, unless another is given.
pub const UUID: &str = "6f2d6c61-6265-4331-8000-726562656301";

/// A partition to be.
pub struct Part {
    pub number: usize,
    pub kind: [u8; 16],
    pub content: Vec<u8>,
}

/// A disk with a GPT at both ends.
pub fn gpt(parts: &[Part]) -> Vec<u8> {
    let sectors = |bytes: usize| bytes.div_ceil(SECTOR);
    let first = 2048;
    let total = first + parts.iter().map(|part| sectors(part.content.len())).sum::<usize>() + 34;
    let mut disk = vec![0; total * SECTOR];
    disk[446 + 4] = 0xee;
    disk[446 + 8] = 1;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut table = vec![0; 128 * 128];
    let mut at = first;
    for part in parts {
        let entry = &mut table[(part.number - 1) * 128..part.number * 128];
        entry[..16].copy_from_slice(&part.kind);
        entry[16] = part.number as u8;
        entry[32..40].copy_from_slice(&(at as u64).to_le_bytes());
        entry[40..48].copy_from_slice(&((at + sectors(part.content.len()) - 1) as u64).to_le_bytes());
        disk[at * SECTOR..at * SECTOR + part.content.len()].copy_from_slice(&part.content);
        at += sectors(part.content.len());
    }
    for (own, table_at) in [(1, 2), (total - 1, total - 33)] {
        disk[table_at * SECTOR..table_at * SECTOR + table.len()].copy_from_slice(&table);
        let header = gpt_header(own as u64, table_at as u64, 128, 128, crc32fast::hash(&table));
        disk[own * SECTOR..own * SECTOR + header.len()].copy_from_slice(&header);
    }
    disk
}

pub fn gpt_header(own: u64, table: u64, entries: u32, entry_bytes: u32, table_crc: u32) -> [u8; 92] {
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
    header[12..16].copy_from_slice(&92_u32.to_le_bytes());
    header[24..32].copy_from_slice(&own.to_le_bytes());
    header[72..80].copy_from_slice(&table.to_le_bytes());
    header[80..84].copy_from_slice(&entries.to_le_bytes());
    header[84..88].copy_from_slice(&entry_bytes.to_le_bytes());
    header[88..92].copy_from_slice(&table_crc.to_le_bytes());
    let crc = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    header
}

/// A disk with one partition in an MBR.
pub fn mbr(content: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 2048 * SECTOR];
    disk[446 + 4] = 0x83;
    disk[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    disk[446 + 12..446 + 16].copy_from_slice(&((content.len() / SECTOR) as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk.extend_from_slice(content);
    disk
}

/// An ext4 of files, and of links where a content begins with `->`.
pub fn ext4(files: &[(&str, &[u8])]) -> Vec<u8> {
    ext4_with(UUID, files)
}

pub fn ext4_with(uuid: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    made(files, |tree, image| {
        let mut mke2fs = tool("mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext4", "-L", "root", "-U", uuid, "-E", "no_copy_xattrs", "-d"]).arg(tree).arg(image).arg("8M");
        mke2fs
    })
}

/// An XFS, likewise. Its prototype names files of a folder, so that nothing is mounted.
pub fn xfs_with(uuid: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    made(files, |tree, image| {
        let proto = tree.with_extension("proto");
        let mut text = "/\n0 0\nd--755 0 0\n".to_owned();
        prototype(tree, &mut text);
        fs::write(&proto, text + "$\n").unwrap();
        let mut mkfs = tool("mkfs.xfs");
        mkfs.args(["--unsupported", "-q", "-L", "boot", "-m", &format!("uuid={uuid}"), "-p"]).arg(proto);
        mkfs.args(["-d", &format!("file,size=16m,name={}", image.display())]);
        mkfs
    })
}

fn prototype(folder: &Path, text: &mut String) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (name, path, kind) = (entry.file_name().into_string().unwrap(), entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            *text += &format!("{name} d--755 0 0\n");
            prototype(&path, text);
            *text += "$\n";
        } else if kind.is_symlink() {
            *text += &format!("{name} l--777 0 0 {}\n", fs::read_link(&path).unwrap().display());
        } else {
            *text += &format!("{name} ---644 0 0 {}\n", path.display());
        }
    }
}

/// A btrfs, likewise.
pub fn btrfs_with(uuid: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    made(files, |tree, image| {
        fs::File::create(image).unwrap().set_len(32 << 20).unwrap();
        let mut mkfs = tool("mkfs.btrfs");
        mkfs.args(["-q", "-f", "-M", "-m", "single", "-d", "single", "-L", "root", "-U", uuid, "--rootdir"]).arg(tree).arg(image);
        mkfs
    })
}

fn tool(name: &str) -> Command {
    let mut tool = Command::new(name);
    tool.env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin");
    tool
}

fn made(files: &[(&str, &[u8])], command: impl Fn(&Path, &Path) -> Command) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (tree, image) = (folder.path().join("tree"), folder.path().join("image"));
    fs::create_dir(&tree).unwrap();
    for (path, content) in files {
        let path = tree.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix(b"->") {
            Some(target) => std::os::unix::fs::symlink(Path::new(std::str::from_utf8(target).unwrap()), path).unwrap(),
            None => fs::write(path, content).unwrap(),
        }
    }
    let made = command(&tree, &image).output().expect("the tools of e2fsprogs, xfsprogs and btrfs-progs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::read(image).unwrap()
}

/// A FAT of files.
pub fn fat(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = Cursor::new(vec![0; 4 << 20]);
    fatfs::format_volume(&mut image, FormatVolumeOptions::new().volume_id(0x1234_abcd)).unwrap();
    {
        let fs = FileSystem::new(&mut image, FsOptions::new()).unwrap();
        for (path, content) in files {
            let mut folder = fs.root_dir();
            let mut parts = path.trim_start_matches('/').split('/').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    folder.create_file(part).unwrap().write_all(content).unwrap();
                } else {
                    folder = folder.create_dir(part).unwrap();
                }
            }
        }
    }
    let mut bytes = vec![];
    image.set_position(0);
    image.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A unified kernel image, as far as it is read.
pub fn unified(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = vec![0; 64];
    image[..2].copy_from_slice(b"MZ");
    image[60..64].copy_from_slice(&64_u32.to_le_bytes());
    image.extend_from_slice(b"PE\0\0");
    let optional = 112;
    image.extend_from_slice(&0x8664_u16.to_le_bytes());
    image.extend_from_slice(&(sections.len() as u16).to_le_bytes());
    image.extend_from_slice(&[0; 12]);
    image.extend_from_slice(&(optional as u16).to_le_bytes());
    image.extend_from_slice(&0x22_u16.to_le_bytes());
    let mut header = vec![0; optional];
    header[..2].copy_from_slice(&0x20b_u16.to_le_bytes());
    image.extend_from_slice(&header);
    let mut at = 1024;
    let mut data = vec![];
    for (name, content) in sections {
        let mut section = [0; 40];
        section[..name.len()].copy_from_slice(name.as_bytes());
        let rounded = content.len().next_multiple_of(512);
        section[8..12].copy_from_slice(&(content.len() as u32).to_le_bytes());
        section[12..16].copy_from_slice(&(at as u32).to_le_bytes());
        section[16..20].copy_from_slice(&(rounded as u32).to_le_bytes());
        section[20..24].copy_from_slice(&(at as u32).to_le_bytes());
        image.extend_from_slice(&section);
        data.extend_from_slice(content);
        data.resize(data.len() + rounded - content.len(), 0);
        at += rounded;
    }
    image.resize(1024, 0);
    image.extend_from_slice(&data);
    image
}

/// What `grub-mkconfig` of Debian writes for these kernels, the newest first, with `GRUB_DEFAULT=saved`.
pub fn grub_cfg(uuid: &str, boot: &str, versions: &[&str]) -> String {
    let search = format!(
        "\tinsmod part_gpt\n\tinsmod ext2\n\tset root='hd0,gpt9'\n\tif [ x$feature_platform_search_hint = xy ]; then\n\t  \
         search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt9 --hint-efi=hd0,gpt9 --hint-baremetal=ahci0,gpt9  {uuid}\n\telse\n\t  \
         search --no-floppy --fs-uuid --set=root {uuid}\n\tfi\n"
    );
    let entry = |title: &str, id: &str, version: &str| {
        format!(
            "menuentry '{title}' --class debian --class gnu-linux --class gnu --class os $menuentry_id_option '{id}' {{\n\tload_video\n\tinsmod gzio\n\t\
             if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi\n{search}\techo\t'Loading Linux {version} ...'\n\t\
             linux\t{boot}/vmlinuz-{version} root=UUID={uuid} ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200\n\t\
             echo\t'Loading initial ramdisk ...'\n\tinitrd\t{boot}/initrd.img-{version}\n}}\n"
        )
    };
    let advanced: String = versions
        .iter()
        .map(|version| entry(&format!("Debian GNU/Linux, with Linux {version}"), &format!("gnulinux-{version}-advanced-{uuid}"), version))
        .collect();
    format!(
        "#\n# DO NOT EDIT THIS FILE\n#\n\n### BEGIN /etc/grub.d/00_header ###\nif [ -s $prefix/grubenv ]; then\n  set have_grubenv=true\n  load_env\nfi\n\
         if [ \"${{next_entry}}\" ] ; then\n   set default=\"${{next_entry}}\"\n   set next_entry=\n   save_env next_entry\n   set boot_once=true\nelse\n   \
         set default=\"${{saved_entry}}\"\nfi\n\n\
         if [ x\"${{feature_menuentry_id}}\" = xy ]; then\n  menuentry_id_option=\"--id\"\nelse\n  menuentry_id_option=\"\"\nfi\n\nexport menuentry_id_option\n\n\
         if [ \"${{prev_saved_entry}}\" ]; then\n  set saved_entry=\"${{prev_saved_entry}}\"\n  save_env saved_entry\n  set prev_saved_entry=\n  \
         save_env prev_saved_entry\n  set boot_once=true\nfi\n\n\
         function savedefault {{\n  if [ -z \"${{boot_once}}\" ]; then\n    saved_entry=\"${{chosen}}\"\n    save_env saved_entry\n  fi\n}}\n\
         function load_video {{\n  if [ x$feature_all_video_module = xy ]; then\n    insmod all_video\n  else\n    insmod efi_gop\n  fi\n}}\n\n\
         terminal_input console\nterminal_output console\nif [ \"${{recordfail}}\" = 1 ] ; then\n  set timeout=30\nelse\n  \
         if [ x$feature_timeout_style = xy ] ; then\n    set timeout_style=menu\n    set timeout=0\n  else\n    set timeout=0\n  fi\nfi\n### END ###\n\n{}\
         submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-{uuid}' {{\n{advanced}}}\n\n\
         menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {{\n\tfwsetup\n}}\n",
        entry("Debian GNU/Linux", &format!("gnulinux-simple-{uuid}"), versions[0])
    )
}

pub fn grubenv(lines: &str) -> Vec<u8> {
    let mut text = format!("# GRUB Environment Block\n# WARNING: Do not edit this file by tools other than grub-editenv!!!\n{lines}");
    text.extend(std::iter::repeat_n('#', 1024 - text.len()));
    text.into_bytes()
}
