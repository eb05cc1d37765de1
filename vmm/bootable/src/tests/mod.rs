//! Disks as distributions lay them out, and disks that lie, are damaged or have no end.

use std::rc::Rc;

use proptest::prelude::*;

use self::samples::{ESP, LINUX, Part, UUID, btrfs_with, ext4, ext4_with, fat, gpt, grub_cfg, grubenv, mbr, unified, xfs_with};
use super::{Start, find, find_traced};

mod samples;

fn start(disk: Vec<u8>) -> Start {
    find(Rc::new(disk)).unwrap()
}

fn refusal(disk: Vec<u8>) -> String {
    find(Rc::new(disk)).unwrap_err().to_string()
}

/// As Debian's genericcloud: root 1, BIOS boot 14, ESP 15 with a file that leads to the real one.
fn debian(env: &str, versions: &[&str]) -> Vec<u8> {
    let config = grub_cfg(UUID, "/boot", versions);
    let files: Vec<(String, Vec<u8>)> = versions
        .iter()
        .flat_map(|version| [("vmlinuz", version), ("initrd.img", version)])
        .map(|(name, version)| (format!("/boot/{name}-{version}"), format!("{name} {version}").into_bytes()))
        .collect();
    let env = grubenv(env);
    let mut all: Vec<(&str, &[u8])> = files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect();
    all.extend([("/boot/grub/grub.cfg", config.as_bytes()), ("/boot/grub/grubenv", &env), ("/etc/fstab", b"")]);
    let stub = format!("search.fs_uuid {UUID} root hd0,gpt1\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n");
    gpt(&[
        Part { number: 14, kind: LINUX, content: vec![0; 1 << 20] },
        Part { number: 15, kind: ESP, content: fat(&[("/EFI/debian/grub.cfg", stub.as_bytes()), ("/EFI/BOOT/BOOTX64.EFI", b"MZ")]) },
        Part { number: 1, kind: LINUX, content: ext4(&all) },
    ])
}

#[test]
fn grub_starts_the_first_entry_and_the_saved_one_where_there_is_one() {
    let kernels = ["6.12.9+deb13-cloud-amd64", "6.12.6+deb13-cloud-amd64"];
    let newest = start(debian("", &kernels));
    assert_eq!(newest.kernel, b"vmlinuz 6.12.9+deb13-cloud-amd64");
    assert_eq!(newest.initramfs.as_deref(), Some(&b"initrd.img 6.12.9+deb13-cloud-amd64"[..]));
    assert_eq!(newest.cmdline, format!("root=UUID={UUID} ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200"));
    assert_eq!(newest.from, "`Debian GNU/Linux` of /boot/grub/grub.cfg on partition 1 (ext4)");

    let older = format!("gnulinux-6.12.6+deb13-cloud-amd64-advanced-{UUID}");
    for named in [format!("gnulinux-advanced-{UUID}>{older}"), "1>1".to_owned(), format!("1>{older}")] {
        let saved = start(debian(&format!("saved_entry={named}\n"), &kernels));
        assert_eq!(saved.kernel, b"vmlinuz 6.12.6+deb13-cloud-amd64", "{named}");
        assert_eq!(saved.from, "`Debian GNU/Linux, with Linux 6.12.6+deb13-cloud-amd64` of /boot/grub/grub.cfg on partition 1 (ext4)");
    }
    // What is asked for once goes before it, and what is not there, or starts nothing, leaves the first.
    let mut disk = debian("saved_entry=0\nnext_entry=1>1\n", &kernels);
    let next = start(disk.clone());
    assert_eq!(next.kernel, b"vmlinuz 6.12.6+deb13-cloud-amd64");
    // It is for one start: who writes what is to be forgotten has the saved one afterwards, as with GRUB.
    let forget = next.forget.unwrap();
    assert_eq!(forget.bytes, grubenv("saved_entry=0\n"));
    disk[forget.offset as usize..][..forget.bytes.len()].copy_from_slice(&forget.bytes);
    let after = start(disk);
    assert_eq!((after.kernel, after.forget), (newest.kernel.clone(), None));
    for gone in ["7", "uefi-firmware", "gnulinux-gone"] {
        assert_eq!(start(debian(&format!("saved_entry={gone}\n"), &kernels)).kernel, newest.kernel, "{gone}");
    }
}

#[test]
fn a_kernel_that_was_installed_meanwhile_starts() {
    assert_eq!(start(debian("", &["6.12.6"])).kernel, b"vmlinuz 6.12.6");
    assert_eq!(start(debian("", &["6.12.9", "6.12.6"])).kernel, b"vmlinuz 6.12.9");
}

/// Makes a file system of a UUID and files.
type Made = fn(&str, &[(&str, &[u8])]) -> Vec<u8>;

/// As Fedora and its kin: ESP, /boot with entries, a root that is not read.
fn fedora(env: &str) -> Vec<u8> {
    fedora_on(ext4_with, env)
}

fn fedora_on(boot: Made, env: &str) -> Vec<u8> {
    let config = "set pager=1\nif [ -f ${config_directory}/grubenv ]; then\n  load_env -f ${config_directory}/grubenv\nelif [ -s $prefix/grubenv ]; then\n  load_env\nfi\n\
         if [ \"${next_entry}\" ] ; then\n   set default=\"${next_entry}\"\n   set next_entry=\n   save_env next_entry\n   set boot_once=true\nelse\n   set default=\"${saved_entry}\"\nfi\n\
         if [ \"$grub_platform\" = \"efi\" ]; then\n  set linux=linux\nfi\nsearch --no-floppy --fs-uuid --set=boot 6f2d6c61-6265-4331-8000-726562656302\n\
         search --no-floppy --fs-uuid --set=root 6F2D6C61-6265-4331-8000-726562656302\n\
         if [ \"${boot_success}\" = \"1\" -o \"${boot_indeterminate}\" = \"1\" ]; then\n  set menu_hide_ok=1\nelse\n  set menu_hide_ok=0\nfi\n\
         insmod blscfg\nblscfg\nif [ \"${menu_auto_hide}\" ]; then\n  set timeout=1\nfi\n";
    let entry = |version: &str| {
        format!(
            "title Fedora Linux ({version}) 41 (Cloud Edition)\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\n\
             options root=UUID=1-2 ro rootflags=subvol=root console=ttyS0,115200n8 $kernelopts $tuned_params\ngrub_users $grub_users\ngrub_class fedora\n"
        )
    };
    let (old, new, rescue) = (entry("6.11.4-301.fc41.x86_64"), entry("6.11.10-300.fc41.x86_64"), entry("0-rescue-77"));
    let env = grubenv(env);
    let boot = boot(
        "6f2d6c61-6265-4331-8000-726562656302",
        &[
            ("/grub2/grub.cfg", config.as_bytes()),
            ("/grub2/grubenv", &env),
            ("/loader/entries/77-6.11.4-301.fc41.x86_64.conf", old.as_bytes()),
            ("/loader/entries/77-6.11.10-300.fc41.x86_64.conf", new.as_bytes()),
            ("/loader/entries/77-0-rescue.conf", rescue.as_bytes()),
            ("/vmlinuz-6.11.4-301.fc41.x86_64", b"old"),
            ("/initramfs-6.11.4-301.fc41.x86_64.img", b"old initramfs"),
            ("/vmlinuz-6.11.10-300.fc41.x86_64", b"new"),
            ("/initramfs-6.11.10-300.fc41.x86_64.img", b"new initramfs"),
        ],
    );
    let mut root = vec![0; 1 << 20];
    root[0x400..0x404].copy_from_slice(b"\x10\x20\xf5\xf2");
    gpt(&[
        Part { number: 1, kind: ESP, content: fat(&[("/EFI/fedora/grub.cfg", b"configfile x")]) },
        Part { number: 2, kind: LINUX, content: boot },
        Part { number: 3, kind: LINUX, content: root },
    ])
}

#[test]
fn entries_of_the_boot_loader_specification_start_newest_first_or_as_saved() {
    let newest = start(fedora("kernelopts=quiet\n"));
    assert_eq!((newest.kernel.as_slice(), newest.initramfs.as_deref()), (&b"new"[..], Some(&b"new initramfs"[..])));
    assert_eq!(newest.cmdline, "root=UUID=1-2 ro rootflags=subvol=root console=ttyS0,115200n8 quiet");
    assert_eq!(newest.from, "`Fedora Linux (6.11.10-300.fc41.x86_64) 41 (Cloud Edition)` of /grub2/grub.cfg on partition 2 (ext4)");
    assert_eq!(start(fedora("saved_entry=77-6.11.4-301.fc41.x86_64\n")).kernel, b"old");
    // An entry whose kernel is gone is passed over.
    assert_eq!(start(fedora("saved_entry=77-0-rescue\n")).kernel, b"new");
}

/// As Rocky and its kin: the same, with /boot on XFS.
#[test]
fn entries_on_xfs_start_and_a_choice_for_one_start_is_forgotten_there_too() {
    let newest = start(fedora_on(xfs_with, "kernelopts=quiet\n"));
    assert_eq!((newest.kernel.as_slice(), newest.initramfs.as_deref()), (&b"new"[..], Some(&b"new initramfs"[..])));
    assert_eq!(newest.from, "`Fedora Linux (6.11.10-300.fc41.x86_64) 41 (Cloud Edition)` of /grub2/grub.cfg on partition 2 (XFS)");
    let mut disk = fedora_on(xfs_with, "next_entry=77-6.11.4-301.fc41.x86_64\n");
    let once = start(disk.clone());
    assert_eq!(once.kernel, b"old");
    let forget = once.forget.unwrap();
    disk[forget.offset as usize..][..forget.bytes.len()].copy_from_slice(&forget.bytes);
    let after = start(disk);
    assert_eq!((after.kernel.as_slice(), after.forget), (&b"new"[..], None));
}

/// As of who has everything in one file system, or in a subvolume of one (here a folder: nothing is mounted to make it).
#[test]
fn grub_starts_from_xfs_and_from_btrfs() {
    let kernel = vec![7; 9 << 20];
    for (made, kind, above) in [(xfs_with as Made, "XFS", ""), (btrfs_with, "btrfs", ""), (btrfs_with, "btrfs", "/@")] {
        let config = grub_cfg(UUID, &format!("{above}/boot"), &["6.12.9"]);
        let at = |path: &str| format!("{above}/boot/{path}");
        let paths = ["grub/grub.cfg", "grub/grubenv", "vmlinuz-6.12.9", "images/initrd", "initrd.img-6.12.9", "loop"].map(at);
        let env = grubenv("next_entry=0\n");
        let contents = [config.as_bytes(), &env, &kernel, b"initrd", b"->../boot/./images/initrd", b"->loop"];
        let files: Vec<(&str, &[u8])> = paths.iter().map(String::as_str).zip(contents).collect();
        let found = start(gpt(&[Part { number: 1, kind: LINUX, content: made(UUID, &files) }]));
        assert_eq!(found.from, format!("`Debian GNU/Linux` of {above}/boot/grub/grub.cfg on partition 1 ({kind})"));
        assert_eq!((found.kernel.len(), found.initramfs.as_deref()), (kernel.len(), Some(&b"initrd"[..])), "{kind}");
        assert!(found.kernel == kernel, "{kind}");
        assert!(found.cmdline.starts_with(&format!("root=UUID={UUID} ro ")), "{}", found.cmdline);
        // What has checksums is not written beside its file system.
        assert_eq!(found.forget.is_some(), kind == "XFS");
        // Links without an end, and what is no file.
        for (path, why) in [
            ("loop", "it has too many links, or one that is too long"),
            ("images", "it is no regular file"),
            ("images/initrd/x", "is not there"),
        ] {
            let looped = format!("linux {}\n", at(path));
            let said = refusal(made(UUID, &[(&paths[0], looped.as_bytes()), (&paths[5], b"->loop"), (&paths[3], b"x")]));
            assert!(said.contains(why), "{kind}: {said}");
        }
    }
}

/// Where a superblock says that its log begins, and how long it is.
fn log_of(xfs: &[u8]) -> std::ops::Range<usize> {
    let word = |at: usize| u32::from_be_bytes(xfs[at..at + 4].try_into().unwrap()) as usize;
    let start = u64::from_be_bytes(xfs[48..56].try_into().unwrap()) as usize;
    let (group, block) = (start >> xfs[124], start & ((1 << xfs[124]) - 1));
    let at = (group * word(84) + block) * word(4);
    at..at + word(96) * word(4)
}

#[test]
fn a_log_that_is_not_replayed_is_named() {
    let sound = xfs_with(UUID, &[("/boot/vmlinuz-1", b"kernel")]);
    assert_eq!(start(sound.clone()).kernel, b"kernel");
    let log = log_of(&sound);
    assert_eq!(sound[log.start..log.start + 4], [0xfe, 0xed, 0xba, 0xbe]);
    // Not the record of an unmount any more.
    let mut dirty = sound;
    dirty[log.start + 512 + 9] = 0;
    let said = refusal(dirty);
    assert!(said.contains("the disk holds XFS that cannot be read: its log holds changes that are not replayed here"), "{said}");
}

#[test]
fn ubuntus_grub_takes_the_way_with_a_ram_disk() {
    let config = "if [ -s $prefix/grubenv ]; then\n set have_grubenv=true\n load_env\nfi\nset default=\"0\"\nif [ \"${initrdfail}\" = 2 ]; then\n set initrdfail=\n\
        elif [ \"${initrdfail}\" = 1 ]; then\n set next_entry=\"${prev_entry}\"\n set prev_entry=\n save_env prev_entry\n if [ \"${next_entry}\" ]; then\n  set initrdfail=2\n fi\nfi\n\
        set partuuid=\"1-2\"\nset linux_gfx_mode=auto\nmenuentry 'Ubuntu' --class ubuntu $menuentry_id_option 'simple' {\n search --no-floppy --label --set=root root\n\
        if [ \"${initrdfail}\" = 1 ]; then\n  echo 'GRUB_FORCE_PARTUUID set, initrdless boot failed. Attempting with initrd.'\n\
        linux /vmlinuz-6.8 root=LABEL=cloudimg-rootfs ro  console=tty1 console=ttyS0\n initrd /initrd.img-6.8\n else\n\
        linux /vmlinuz-6.8 root=PARTUUID=1-2 ro console=ttyS0 panic=-1\n initrd /microcode.cpio\n fi\n initrdfail\n}\n";
    let boot = ext4(&[("/grub/grub.cfg", config.as_bytes()), ("/vmlinuz-6.8", b"kernel"), ("/initrd.img-6.8", b"initrd")]);
    let found = start(gpt(&[Part { number: 16, kind: LINUX, content: boot }]));
    assert_eq!(
        (found.cmdline.as_str(), found.initramfs.as_deref()),
        ("root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0", Some(&b"initrd"[..]))
    );
}

#[test]
fn alpines_extlinux_starts_from_an_mbr_and_from_a_disk_without_partitions() {
    let config = b"DEFAULT menu.c32\nLABEL virt\n MENU DEFAULT\n MENU LABEL Linux virt\n LINUX vmlinuz-virt\n INITRD initramfs-virt\n APPEND root=UUID=1 console=ttyS0\n";
    let root = ext4(&[("/boot/extlinux.conf", config), ("/boot/vmlinuz-virt", b"kernel"), ("/boot/initramfs-virt", b"initramfs")]);
    let found = start(mbr(&root));
    assert_eq!(
        (found.kernel.as_slice(), found.from.as_str()),
        (&b"kernel"[..], "`Linux virt` of /boot/extlinux.conf on partition 1 (ext4)")
    );
    assert_eq!(start(root).from, "`Linux virt` of /boot/extlinux.conf on the disk (ext4)");
}

#[test]
fn systemd_boots_entries_and_unified_images_start() {
    let image = |what: &str| unified(&[(".linux", what.as_bytes()), (".initrd", b"initrd"), (".cmdline", b"root=/dev/vda2 ro\0")]);
    let (old, new, failed) = (image("old"), image("new"), image("failed"));
    let esp = |files: &[(&str, &[u8])]| gpt(&[Part { number: 1, kind: ESP, content: fat(files) }]);
    let loader = ("/EFI/systemd/systemd-bootx64.efi", &b"MZ"[..]);
    let found =
        start(esp(&[loader, ("/EFI/Linux/a-6.9.efi", &old), ("/EFI/Linux/a-6.12+2-1.efi", &new), ("/EFI/Linux/a-6.13+0-3.efi", &failed)]));
    assert_eq!(
        (found.kernel.as_slice(), found.initramfs.as_deref(), found.cmdline.as_str()),
        (&b"new"[..], Some(&b"initrd"[..]), "root=/dev/vda2 ro")
    );
    let chosen = start(esp(&[
        ("/loader/loader.conf", b"timeout 3\ndefault a-6.9*\n"),
        ("/EFI/Linux/a-6.9.efi", &old),
        ("/EFI/Linux/a-6.12.efi", &new),
    ]));
    assert_eq!(chosen.kernel, b"old");
    let entry = b"title One\nversion 1\nsort-key a\nlinux /one/linux\ninitrd /one/initrd\ninitrd /one/more\noptions root=UUID=3\n";
    let found =
        start(esp(&[loader, ("/loader/entries/one.conf", entry), ("/one/linux", b"one"), ("/one/initrd", b"12345"), ("/one/more", b"6")]));
    assert_eq!((found.kernel.as_slice(), found.initramfs.as_deref()), (&b"one"[..], Some(&b"12345\0\0\x006"[..])));
    assert_eq!(found.from, "`One` of /loader/entries/one.conf on partition 1 (FAT)");
}

#[test]
fn a_kernel_that_lies_there_starts_without_a_boot_loader() {
    let settings = b"GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=\"console=ttyS0\"\n";
    let files: [(&str, &[u8]); 6] = [
        ("/boot/vmlinuz-6.1.0-9-amd64", b"old"),
        ("/boot/vmlinuz-6.1.0-31-amd64", b"new"),
        ("/boot/initrd.img-6.1.0-31-amd64", b"initrd"),
        ("/boot/vmlinuz-0-rescue-1", b"rescue"),
        ("/etc/default/grub", settings),
        ("/etc/fstab", b""),
    ];
    let found = start(ext4(&files));
    assert_eq!((found.kernel.as_slice(), found.cmdline.as_str()), (&b"new"[..], &*format!("root=UUID={UUID} ro console=ttyS0 quiet")));
    let linked: Vec<_> = files.into_iter().chain([("/vmlinuz", &b"->boot/vmlinuz-6.1.0-9-amd64"[..])]).collect();
    assert_eq!(start(ext4(&linked)).kernel, b"old");
}

#[test]
fn what_is_not_read_is_named() {
    let named = |at: usize, magic: &[u8]| {
        let mut content = vec![0; 1 << 20];
        content[at..at + magic.len()].copy_from_slice(magic);
        refusal(gpt(&[Part { number: 3, kind: LINUX, content }]))
    };
    assert_eq!(named(0, b"LUKS\xba\xbe"), "nothing on it says what starts: partition 3 holds a LUKS volume, which is not read");
    assert_eq!(named(512, b"LABELONE"), "nothing on it says what starts: partition 3 holds an LVM volume, which is not read");
    assert!(named(0x1_0040, b"_BHRfS_M").contains("partition 3 holds btrfs that cannot be read: "));
    assert!(named(0, b"XFSB").contains("partition 3 holds XFS that cannot be read: "));
    assert_eq!(refusal(vec![0; 1 << 20]), "it has neither partitions nor a file system that is known");
    assert_eq!(refusal(vec![]), "it has neither partitions nor a file system that is known");
    assert_eq!(
        refusal(ext4(&[("/etc/fstab", b"")])),
        "nothing on it says what starts: no boot loader's configuration and no kernel in /boot"
    );
    let broken = ext4(&[("/boot/grub/grub.cfg", b"menuentry x {\nlinux /gone\n")]);
    assert_eq!(refusal(broken), "nothing on it says what starts: /boot/grub/grub.cfg on the disk (ext4): it has a `{` without its `}`");
}

#[test]
fn tables_that_lie_are_not_followed() {
    let root = ext4(&[("/boot/vmlinuz-1", b"kernel")]);
    let sound = gpt(&[Part { number: 1, kind: LINUX, content: root }]);
    // The copy at the end counts where the first table is broken, or claims more entries than anybody writes.
    for header in [
        samples::gpt_header(1, 2, u32::MAX, 128, 0),
        samples::gpt_header(1, u64::MAX, 128, 128, 0),
        samples::gpt_header(1, 2, 128, 1 << 31, 0),
    ] {
        let mut disk = sound.clone();
        disk[512..512 + 92].copy_from_slice(&header);
        assert_eq!(start(disk).kernel, b"kernel");
    }
    // Extended partitions that lead to themselves end.
    let mut looped = vec![0; 1 << 20];
    looped[446 + 4] = 5;
    looped[446 + 8] = 8;
    looped[510..512].copy_from_slice(&[0x55, 0xaa]);
    looped[8 * 512 + 462 + 4] = 5;
    looped[8 * 512 + 510..8 * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    looped[8 * 512 + 462 + 8] = 0;
    refusal(looped.clone());
    looped[8 * 512 + 462 + 8] = 1;
    refusal(looped);
}

#[test]
fn scripts_and_links_without_an_end_end() {
    let file = |text: &str| ext4(&[("/boot/grub/grub.cfg", text.as_bytes()), ("/boot/loop", b"->loop")]);
    for text in [
        "configfile /boot/grub/grub.cfg\n".to_owned(),
        "function f {\nf\nf\n}\nf\n".to_owned(),
        "set a=xxxxxxxx\nfor i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do set a=$a$a; done\n"
            .to_owned(),
        "if true; then\n".repeat(100_000),
        "menuentry a {\n".repeat(50_000),
        "submenu a {\nsource /boot/grub/grub.cfg\n}\n".to_owned(),
        "linux /boot/loop\n".to_owned(),
        "eval \"eval \\\"eval eval\\\"\"\n".to_owned(),
        "x ".repeat(500_000),
    ] {
        refusal(file(&text));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn scripts_never_panic(text in "([a-z{}\"'$\\\\;#\n =>\\[\\]!-]|if |then |fi\n|menuentry |linux /x|\\$\\{|set |é){0,80}") {
        if let Ok(mut grub) = crate::grub::read(&[], 0, "/boot/grub", &text) {
            crate::grub::choose(&mut grub);
        }
        drop(crate::grub::parse(&text));
        crate::syslinux::parse(&text, 0, "/");
        crate::entries::parse("a.conf", &text);
    }

    #[test]
    fn unified_images_never_panic(changes in proptest::collection::vec((0usize..600, any::<u8>()), 0..8)) {
        let mut image = unified(&[(".linux", b"kernel"), (".cmdline", b"a")]);
        for (at, byte) in changes {
            image[at] = byte;
        }
        crate::unified::parse(&image);
    }
}

/// Clusters are numbered from 2.
#[test]
fn a_folder_that_begins_before_the_first_cluster_leads_nowhere() {
    for cluster in [0, 1, 0xfff] {
        let mut disk = fat(&[("/EFI/BOOT/BOOTX64.EFI", &unified(&[(".linux", b"kernel")]))]);
        let entry = disk.windows(11).position(|name| name == b"EFI        ").unwrap();
        disk[entry + 26..entry + 28].copy_from_slice(&u16::to_le_bytes(cluster));
        assert!(!refusal(disk).is_empty());
    }
}

/// Whatever else changes, what was read decides: a disk that is zeros elsewhere starts the same, and one whose length alone is another reads no more.
#[test]
fn a_trace_is_all_that_a_start_depends_on() {
    let alone = btrfs_with(UUID, &[("/boot/vmlinuz-1", b"kernel")]);
    let btrfs = gpt(&[Part { number: 1, kind: LINUX, content: alone.clone() }]);
    for disk in [debian("", &["6.12.9", "6.12.6"]), fedora(""), fedora_on(xfs_with, ""), btrfs] {
        let (start, trace) = find_traced(Rc::new(disk.clone())).unwrap();
        assert!(trace.windows(2).all(|pair| pair[0].end < pair[1].start));
        let mut other = vec![0; disk.len()];
        for range in &trace {
            let range = range.start as usize..range.end as usize;
            other[range.clone()].copy_from_slice(&disk[range]);
        }
        assert!(other != disk, "all of it was read");
        assert_eq!(find_traced(Rc::new(other.clone())).unwrap(), (start.clone(), trace.clone()));
        other.resize(disk.len() + (1 << 20), 0);
        assert_eq!(find_traced(Rc::new(other)).unwrap(), (start, trace));
    }
    // Where no table is at its beginning, a disk is asked at its end.
    let mut longer = alone.clone();
    longer.resize(alone.len() + (1 << 20), 0);
    assert_ne!(find_traced(Rc::new(longer)).unwrap().1, find_traced(Rc::new(alone)).unwrap().1);
}

#[test]
fn changed_disks_never_panic() {
    // Where tables lie, in turn: a table of partitions, superblocks, group descriptors, inodes, folders.
    let files: [(&str, &[u8]); 2] = [("/boot/vmlinuz-1", b"kernel"), ("/vmlinuz", b"->boot/vmlinuz-1")];
    for sound in [debian("", &["6.12.6"]), xfs_with(UUID, &files), btrfs_with(UUID, &files)] {
        changed(&sound);
    }
}

fn changed(sound: &[u8]) {
    let interesting: Vec<usize> = (0..sound.len()).filter(|at| sound[*at] != 0).collect();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..100 {
        let mut disk = sound.to_vec();
        for _ in 0..4 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = interesting[(seed >> 20) as usize % interesting.len()];
            disk[at] = (seed >> 56) as u8;
        }
        drop(find(Rc::new(disk)));
    }
}
