//! Loading into memory that is looked at afterwards, as a guest would find it.

use super::*;
use crate::kernel::samples::{ENTRY, ElfSample, TEXT, elf};

const MIB: u64 = 1 << 20;
const RAM: u64 = 64 * MIB;

fn ram(bytes: u64) -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap()
}

fn kernel() -> KernelImage {
    KernelImage::from_bytes(elf()).unwrap()
}

fn config(kernel: &KernelImage) -> BootConfig<'_> {
    BootConfig { kernel, initramfs: None, cmdline: "quiet", vcpus: 2 }
}

fn bytes_at(ram: &GuestRam, address: u64, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    ram.read_slice(&mut buffer, GuestAddress(address)).unwrap();
    buffer
}

#[test]
fn kernel_tables_and_command_line_are_in_place() {
    let (ram, kernel) = (ram(RAM), kernel());
    let entry = load(&ram, RAM, &config(&kernel)).unwrap();
    assert_eq!(entry, Entry { rip: ENTRY, start_info: 0x6000 });
    assert_eq!(bytes_at(&ram, TEXT, 0x1000), [0xaa; 0x1000]);
    assert_eq!(bytes_at(&ram, TEXT + 0x1000, 0x1000), [0; 0x1000]);
    assert_eq!(bytes_at(&ram, TEXT + 0x2000, 0x1000), [0xaa; 0x1000]);
    let data = bytes_at(&ram, TEXT + 0x3800, 0x5000);
    assert!(data[..0x900].iter().all(|byte| *byte == 0xdd) && data[0x900..].iter().all(|byte| *byte == 0));
    assert_eq!(bytes_at(&ram, 0x9000, 6), b"quiet\0");
    assert_eq!(bytes_at(&ram, 0xe_0000, 8), b"RSD PTR ");
}

#[test]
fn pages_of_zeros_are_never_touched() {
    let (ram, kernel) = (ram(RAM), kernel());
    load(&ram, RAM, &config(&kernel)).unwrap();
    let bitmap = ram.find_region(GuestAddress(0)).unwrap().bitmap();
    let dirty = |address: u64| bitmap.dirty_at(address as usize);
    assert!(dirty(TEXT) && !dirty(TEXT + 0x1000) && dirty(TEXT + 0x2000));
    assert!(dirty(TEXT + 0x4000) && !dirty(TEXT + 0x5000), "beyond the file's bytes");
}

#[test]
fn memory_in_a_file_holds_the_same_and_marks_the_same_pages() {
    let path = std::env::temp_dir().join(format!("rebec-boot-ram-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(RAM + PAGE_BYTES).unwrap();
    let range = (GuestAddress(0), RAM as usize, Some(vm_memory::FileOffset::new(file, PAGE_BYTES)));
    let (backed, plain, kernel) = (GuestRam::from_ranges_with_files([range]).unwrap(), ram(RAM), kernel());
    load(&backed, RAM, &config(&kernel)).unwrap();
    load(&plain, RAM, &config(&kernel)).unwrap();
    assert_eq!(bytes_at(&backed, 0, RAM as usize), bytes_at(&plain, 0, RAM as usize));
    let bitmap = |ram: &GuestRam, page: u64| ram.find_region(GuestAddress(0)).unwrap().bitmap().dirty_at((page * PAGE_BYTES) as usize);
    assert!((0..RAM / PAGE_BYTES).all(|page| bitmap(&backed, page) == bitmap(&plain, page)));
}

#[test]
fn an_initramfs_ends_with_low_memory() {
    let (ram, kernel) = (ram(RAM), kernel());
    let content: Vec<u8> = (0..0x2345u32).map(|at| at as u8).collect();
    let initramfs = Content::from_bytes(content.clone());
    load(&ram, RAM, &BootConfig { initramfs: Some(&initramfs), ..config(&kernel) }).unwrap();
    assert_eq!(bytes_at(&ram, RAM - 0x3000, 0x2345), content);
    assert_eq!(bytes_at(&ram, 0x8000, 16), [(RAM - 0x3000).to_le_bytes(), 0x2345u64.to_le_bytes()].concat());
}

#[test]
fn a_file_longer_than_a_piece_is_copied_whole() {
    let mut sample = ElfSample::new();
    let content: Vec<u8> = (0..MIB as u32).map(|at| (at / 97) as u8).collect();
    (sample.segments[1].1, sample.segments[1].0.p_memsz) = (content.clone(), MIB);
    let path = std::env::temp_dir().join(format!("rebec-boot-load-{}", std::process::id()));
    std::fs::write(&path, sample.bytes()).unwrap();
    let kernel = KernelImage::from_file(&std::fs::File::open(&path).unwrap()).unwrap();
    let (full, cut) = (ram(RAM), ram(RAM));
    load(&full, RAM, &config(&kernel)).unwrap();
    assert!(bytes_at(&full, TEXT + 0x3800, MIB as usize) == content);

    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let error = load(&cut, RAM, &config(&kernel)).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(error, BootError::Read { what: "the kernel", .. }), "a file that shrank: {error}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let kernel = kernel();
    let end = kernel.end();
    let tight = end.next_multiple_of(4096);
    load(&ram(tight), tight, &config(&kernel)).unwrap();
    let error = load(&ram(tight - 4096), tight - 4096, &config(&kernel)).unwrap_err();
    assert!(matches!(error, BootError::KernelTooLarge { needed, low } if needed == end && low == tight - 4096));

    let (ram, room) = (ram(RAM), RAM - tight);
    let with =
        |bytes: u64| load(&ram, RAM, &BootConfig { initramfs: Some(&Content::from_bytes(vec![1; bytes as usize])), ..config(&kernel) });
    with(room).unwrap();
    assert!(matches!(with(room + 1), Err(BootError::InitramfsTooLarge { .. })));
    assert!(matches!(with(0), Err(BootError::InitramfsEmpty)));
}

#[test]
fn command_lines_are_limited() {
    let (ram, kernel) = (ram(RAM), kernel());
    let with = |cmdline: &str| load(&ram, RAM, &BootConfig { cmdline, ..config(&kernel) });
    with(&"x".repeat(2047)).unwrap();
    assert!(matches!(with(&"x".repeat(2048)), Err(BootError::CmdlineTooLong { bytes: 2048, max: 2047 })));
    assert!(matches!(with("a\0b"), Err(BootError::CmdlineZero(1))));
}

#[test]
fn impossible_machines_are_refused() {
    let (ram, kernel) = (ram(RAM), kernel());
    for vcpus in [0, 17] {
        assert!(matches!(load(&ram, RAM, &BootConfig { vcpus, ..config(&kernel) }), Err(BootError::Shape { what: "vCPUs", .. })));
    }
    for bytes in [0, MIB, RAM + 1, RAM + 4096, 5 << 30] {
        assert!(matches!(load(&ram, bytes, &config(&kernel)), Err(BootError::Memory(said)) if said == bytes), "{bytes}");
    }
}
