//! Unpacks the payload of a bzImage. Input is hostile: output is as large as the payload's last four bytes say, within a limit, and
//! every decoder writes into that and no more.

use std::{fmt, io::Read};

use xz2::stream::{Action, Status, Stream};

use super::{KernelError, lzop};

/// Largest unpacked kernel. Debian's are at 53 to 66 MB, relocations included.
const UNPACKED_BYTES_MAX: u64 = 512 << 20;
/// An ELF header at least.
const UNPACKED_BYTES_MIN: u64 = 64;
/// Kernels are packed with a dictionary of up to 128 MiB; the decoder needs little beside it.
const XZ_MEMORY_BYTES_MAX: u64 = 160 << 20;
/// Unpacked size of every block but the last of the legacy LZ4 frame (`lz4 -l`).
const LZ4_BLOCK_BYTES: usize = 8 << 20;
const SIZE_BYTES: usize = 4;

const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const LZ4_LEGACY_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const XZ_MAGIC: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const ELF_MAGIC: &[u8] = b"\x7fELF";
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const BZIP2_MAGIC: &[u8] = b"BZh";
const LZMA_MAGIC: &[u8] = &[0x5d, 0, 0];

/// How a payload is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// CONFIG_KERNEL_UNCOMPRESSED.
    None,
    /// Debian 13, all flavours.
    Zstd,
    /// Legacy frame: Debian 12, cloud flavour.
    Lz4,
    /// Debian 12, full flavour.
    Xz,
    /// Upstream's default, and that of Red Hat's kin.
    Gzip,
    /// CONFIG_KERNEL_BZIP2.
    Bzip2,
    /// CONFIG_KERNEL_LZMA.
    Lzma,
    /// CONFIG_KERNEL_LZO.
    Lzo,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Xz => "xz",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
        })
    }
}

/// The vmlinux in `payload`.
pub(super) fn unpack(payload: &[u8]) -> Result<(Compression, Vec<u8>), KernelError> {
    let compression = match payload {
        bytes if bytes.starts_with(ZSTD_MAGIC) => Compression::Zstd,
        bytes if bytes.starts_with(LZ4_LEGACY_MAGIC) => Compression::Lz4,
        bytes if bytes.starts_with(XZ_MAGIC) => Compression::Xz,
        bytes if bytes.starts_with(GZIP_MAGIC) => Compression::Gzip,
        bytes if bytes.starts_with(BZIP2_MAGIC) => Compression::Bzip2,
        bytes if bytes.starts_with(LZMA_MAGIC) => Compression::Lzma,
        bytes if bytes.starts_with(lzop::MAGIC) => Compression::Lzo,
        // Nothing is packed, so there is no size at the end either.
        bytes if bytes.starts_with(ELF_MAGIC) => return Ok((Compression::None, bytes.to_vec())),
        _ => return Err(KernelError::Compression),
    };
    let Some((packed, size)) = payload.split_last_chunk::<SIZE_BYTES>() else {
        return Err(KernelError::Compression);
    };
    let size = u64::from(u32::from_le_bytes(*size));
    if !(UNPACKED_BYTES_MIN..=UNPACKED_BYTES_MAX).contains(&size) {
        return Err(KernelError::Size { what: "unpacked size", bytes: size, min: UNPACKED_BYTES_MIN, max: UNPACKED_BYTES_MAX });
    }
    let size = size as usize;
    let unpacked = match compression {
        Compression::Zstd => zstd(packed, size),
        Compression::Xz => Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, 0)
            .map_err(|error| error.to_string())
            .and_then(|decoder| xz(decoder, packed, size)),
        Compression::Lzma => {
            Stream::new_lzma_decoder(XZ_MEMORY_BYTES_MAX).map_err(|error| error.to_string()).and_then(|decoder| xz(decoder, packed, size))
        }
        Compression::Gzip => read(flate2::bufread::GzDecoder::new(packed), size),
        Compression::Bzip2 => read(bzip2::bufread::BzDecoder::new(packed), size),
        Compression::Lzo => lzop::unpack(packed, size),
        Compression::Lz4 | Compression::None => lz4_legacy(&packed[LZ4_LEGACY_MAGIC.len()..], size),
    };
    let unpacked = unpacked.map_err(|reason| KernelError::Unpack { compression, reason })?;
    if unpacked.len() != size {
        let reason = format!("{} bytes came out and {size} were announced", unpacked.len());
        return Err(KernelError::Unpack { compression, reason });
    }
    Ok((compression, unpacked))
}

/// One frame, straight into memory that nobody cleared first: the output is the window, so there is no second buffer.
fn zstd(packed: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(size);
    zstd::bulk::Decompressor::new()
        .and_then(|mut decoder| decoder.decompress_to_buffer(packed, &mut out))
        .map_err(|error| error.to_string())?;
    Ok(out)
}

/// One byte more than was announced is enough to know.
fn read(decoder: impl Read, size: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(size + 1);
    decoder.take(size as u64 + 1).read_to_end(&mut out).map_err(|error| error.to_string())?;
    Ok(out)
}

fn xz(mut decoder: Stream, packed: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(size);
    loop {
        let (read, written) = (decoder.total_in(), out.len());
        let status = decoder.process_vec(&packed[read as usize..], &mut out, Action::Finish).map_err(|error| error.to_string())?;
        if status == Status::StreamEnd {
            return Ok(out);
        }
        // No end and no progress: the input ended early, or more comes out than was announced.
        if decoder.total_in() == read && out.len() == written {
            return Err("the stream does not end where its size says".into());
        }
    }
}

/// Blocks of `u32 packed size, bytes`, each of which unpacks on its own (lz4 doc/lz4_Frame_format.md, "Legacy frame").
fn lz4_legacy(mut packed: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut out = vec![0; size];
    let mut written = 0;
    while let Some((length, rest)) = packed.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = rest.get(..length).ok_or("a block reaches past the end")?;
        let room = LZ4_BLOCK_BYTES.min(size - written);
        written += lz4_flex::block::decompress_into(block, &mut out[written..written + room]).map_err(|error| error.to_string())?;
        packed = &rest[length..];
    }
    if !packed.is_empty() {
        return Err("bytes are left after the last block".into());
    }
    out.truncate(written);
    Ok(out)
}
