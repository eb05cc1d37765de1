//! A kernel file that somebody downloaded, put into a machine of 64 MiB.
//!
//! ```text
//! input = vcpus:u8 flags:u8 command line:(length:u8 bytes) file
//! ```

use rebec_boot::{BootConfig, Content, GuestRam, KernelImage, load};
use vm_memory::GuestAddress;

use crate::input::Input;

const RAM_BYTES: u64 = 64 << 20;
const KERNEL_START: u64 = 1 << 20;
const LOW_RAM_END: u64 = 3 << 30;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (vcpus, flags, length) = (input.u8(), input.u8(), input.u8());
    let cmdline = String::from_utf8_lossy(input.take(length.into())).into_owned();
    let kernel = match KernelImage::from_bytes(input.rest().to_vec()) {
        Ok(kernel) => kernel,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let entry = u64::from(kernel.entry());
    let mut end = KERNEL_START;
    for segment in kernel.segments() {
        assert!(segment.address >= end && segment.end() <= LOW_RAM_END, "{segment:?} begins before {end:#x} or ends too late");
        end = segment.end();
    }
    assert!(kernel.segments().iter().any(|segment| (segment.address..segment.end()).contains(&entry)), "an entry in no segment");

    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)]).expect("memory for a guest");
    let initramfs = Content::from_bytes(vec![7; 5000]);
    let initramfs = (flags & 0x80 == 0).then_some(&initramfs);
    let config = BootConfig { kernel: &kernel, initramfs, cmdline: &cmdline, vcpus };
    match load(&ram, RAM_BYTES, &config) {
        Ok(entry) => assert_eq!(entry.rip, kernel.entry()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// An ELF kernel by itself and as a bzImage around each packing that is made without a C library.
pub fn seeds() -> Vec<Vec<u8>> {
    let elf = elf();
    let zstd = zstd::bulk::compress(&elf, 3).expect("zstd packs");
    let block = lz4_flex::block::compress(&elf);
    let lz4 = [&[0x02, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block].concat();
    let sized = |packed: &[u8], bytes: usize| [packed, &(bytes as u32).to_le_bytes()].concat();
    let (zstd, lz4, xz) = (sized(&zstd, elf.len()), sized(&lz4, elf.len()), sized(XZ_OF_ZEROS, 64));
    let head = [&[1, 3, 7][..], b"quiet x"].concat();
    let lzo = sized(&lzop(&elf), elf.len());
    [elf.clone(), bzimage(&zstd), bzimage(&lz4), bzimage(&elf), bzimage(&lzo), bzimage(&xz)]
        .iter()
        .map(|file| [&head, file.as_slice()].concat())
        .collect()
}

/// One block, as `lzop` writes it.
fn lzop(bytes: &[u8]) -> Vec<u8> {
    let packed = lzokay::compress::compress(bytes).expect("LZO packs");
    let head = [&b"\x89LZO\0\r\n\x1a\n\x10\x30\x20\xa0\x09\x40\x03\x09"[..], &0x0300_0001_u32.to_be_bytes(), &[0; 17]].concat();
    let words = [bytes.len() as u32, packed.len() as u32, 0].map(u32::to_be_bytes).concat();
    [head, words, packed, vec![0; 4]].concat()
}

/// `head -c 64 /dev/zero | xz --check=crc32`
const XZ_OF_ZEROS: &[u8] = &[
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f,
    0xe5, 0xa3, 0xe0, 0x00, 0x3f, 0x00, 0x06, 0x5d, 0x00, 0x00, 0x6e, 0x58, 0x46, 0x98, 0x00, 0x00, 0x00, 0x00, 0x36, 0x63, 0x8d, 0x75,
    0x00, 0x01, 0x1e, 0x40, 0x64, 0xcb, 0x1b, 0x82, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
];

/// Text, data with more memory than file, and notes of which the second is the PVH entry.
fn elf() -> Vec<u8> {
    const HEADERS_BYTES: u64 = 64 + 3 * 56;
    let note = |kind: u32, owner: &[u8; 4], value: &[u8]| {
        [&4_u32.to_le_bytes()[..], &(value.len() as u32).to_le_bytes(), &kind.to_le_bytes(), owner, value].concat()
    };
    let notes = [note(7, b"GNU\0", &[9; 8]), note(18, b"Xen\0", &0x100_0010_u64.to_le_bytes())].concat();
    let (text, data) = (vec![0xaa; 0x300], vec![0xdd; 0x90]);
    // type and flags, offset, virtual and physical address, bytes in the file and in memory, alignment
    let segment = |kind: u32, flags: u32, offset: u64, address: u64, bytes: usize, memory: u64| {
        let words = [offset, address, address, bytes as u64, memory, 8];
        [&kind.to_le_bytes()[..], &flags.to_le_bytes(), &words.map(u64::to_le_bytes).concat()].concat()
    };
    let data_at = HEADERS_BYTES + text.len() as u64;
    let notes_at = data_at + data.len() as u64;
    [
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec(),
        [0_u64, 64, 0].map(u64::to_le_bytes).concat(),
        // flags, header's size, then size and count of program and of section headers, and the section of names
        vec![0, 0, 0, 0, 64, 0, 56, 0, 3, 0, 64, 0, 0, 0, 0, 0],
        segment(1, 5, HEADERS_BYTES, 0x100_0000, text.len(), 0x300),
        segment(1, 6, data_at, 0x100_3800, data.len(), 0x5000),
        segment(4, 4, notes_at, 0, notes.len(), 0),
        text,
        data,
        notes,
    ]
    .concat()
}

/// A setup header of protocol 2.15 with a payload behind its two setup sectors (Documentation/arch/x86/boot.rst).
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 3 * 512];
    bytes[0x1f1] = 2;
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    // payload_offset counts from the end of the setup sectors.
    bytes[0x248..0x24c].copy_from_slice(&0_u32.to_le_bytes());
    bytes[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_kernels() {
        for (number, seed) in seeds().into_iter().enumerate().take(5) {
            let kernel = KernelImage::from_bytes(seed[10..].to_vec()).unwrap_or_else(|error| panic!("seed {number}: {error}"));
            assert_eq!(kernel.entry(), 0x100_0010);
        }
    }
}
