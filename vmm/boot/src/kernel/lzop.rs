//! The file format of `lzop`, with which CONFIG_KERNEL_LZO packs (its own `lzop.c`; Linux reads it in lib/decompress_unlzo.c).
//!
//! ```text
//! magic (9)  version:u16  library:u16  needed:u16  method:u8  [level:u8]  flags:u32  [filter:u32]  mode:u32  mtime:u32  [mtime high:u32]
//! length:u8  name  checksum:u32
//! blocks     unpacked:u32  packed:u32  checksums of the one and the other:u32 each, as the flags say  bytes; a 0 ends it
//! ```
//! All big endian; what is in brackets from version 0x940 on, or if the flags say so. Checksums are not looked at: the size at the payload's end and the ELF are.

pub const MAGIC: &[u8] = &[0x89, b'L', b'Z', b'O', 0, b'\r', b'\n', 0x1a, b'\n'];

/// From this version on, there is a level and a longer time.
const VERSION_LEVEL: u16 = 0x940;
const HAS_FILTER: u32 = 0x800;
/// Checksums of each block unpacked, and of each block that is packed: Adler-32 and CRC-32.
const SUMS_UNPACKED: u32 = 0x101;
const SUMS_PACKED: u32 = 0x202;
/// What `lzop` makes.
const BLOCK_BYTES_MAX: usize = 256 << 10;

/// What is in `packed`, `size` bytes at most.
pub fn unpack(packed: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut input = Input(packed);
    let flags = header(&mut input).ok_or("its header is cut short")?;
    let (mut out, mut written) = (vec![0; size], 0);
    loop {
        let cut = "a block reaches past the end";
        let unpacked = input.u32().ok_or(cut)? as usize;
        if unpacked == 0 {
            out.truncate(written);
            return Ok(out);
        }
        let packed = input.u32().ok_or(cut)? as usize;
        let mut sums = (flags & SUMS_UNPACKED).count_ones();
        if packed < unpacked {
            sums += (flags & SUMS_PACKED).count_ones();
        }
        let bytes = input.take(4 * sums as usize).and_then(|_| input.take(packed)).ok_or(cut)?;
        if unpacked > BLOCK_BYTES_MAX || packed > unpacked {
            return Err("a block's sizes are impossible".into());
        }
        let room = out.get_mut(written..written + unpacked).ok_or("more comes out than was announced")?;
        if packed == unpacked {
            room.copy_from_slice(bytes);
        } else if lzokay::decompress::decompress(bytes, room).map_err(|error| error.to_string())? != unpacked {
            return Err("a block is shorter than it says".into());
        }
        written += unpacked;
    }
}

/// Reads up to the first block; the flags.
fn header(input: &mut Input<'_>) -> Option<u32> {
    input.take(MAGIC.len())?;
    let version = u16::from_be_bytes(input.take(2)?.try_into().ok()?);
    let is_new = version >= VERSION_LEVEL;
    input.take(2 + 2 + 1 + usize::from(is_new))?;
    let flags = input.u32()?;
    if flags & HAS_FILTER != 0 {
        input.take(4)?;
    }
    input.take(4 + 4 + if is_new { 4 } else { 0 })?;
    let name = usize::from(*input.take(1)?.first()?);
    input.take(name + 4)?;
    Some(flags)
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }
}
