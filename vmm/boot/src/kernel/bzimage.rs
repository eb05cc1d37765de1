//! The bzImage: finds the packed kernel inside (Linux, Documentation/arch/x86/boot.rst). Unpacking is `unpack`'s.
//!
//! ```text
//! 0x000  boot sector ... 0x1f1 setup header ("HdrS" at 0x202)
//!        setup code, setup_sects * 512 bytes (0 means 4)
//!        protected-mode code; at payload_offset in it, payload_length bytes: the packed vmlinux, then its size as u32
//! ```

use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::{KernelError, read};
use crate::content::Content;

const SETUP_HEADER: u64 = 0x1f1;
const SECTOR_BYTES: u64 = 512;
/// Before protocol 2.00 "0" meant 4 sectors, and it still does.
const SETUP_SECTORS_DEFAULT: u64 = 4;
const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// The first protocol that tells where the payload is.
const PROTOCOL_MIN: u16 = 0x0208;
/// Packed size plus its u32: stock kernels are at 8 to 14 MB, everything built in at about 60 MB.
const PAYLOAD_BYTES_MAX: u64 = 256 << 20;
/// Magic, a byte of content and the size.
const PAYLOAD_BYTES_MIN: u64 = 16;

/// The payload, its trailing size included.
pub(super) fn payload(content: &Content) -> Result<Vec<u8>, KernelError> {
    let mut header = setup_header::default();
    match read(content, "the setup header", SETUP_HEADER, header.as_mut_slice()) {
        // Nothing this short can tell that it was meant to be a bzImage.
        Err(KernelError::Truncated { .. }) => return Err(KernelError::UnknownFormat),
        other => other?,
    }
    let setup_header { boot_flag, header: magic, version, setup_sects, payload_offset, payload_length, .. } = header;
    if boot_flag != BOOT_FLAG || magic != MAGIC {
        return Err(KernelError::UnknownFormat);
    }
    if version < PROTOCOL_MIN {
        return Err(KernelError::OldProtocol(version));
    }
    let length = u64::from(payload_length);
    if length == 0 {
        return Err(KernelError::NoPayload);
    }
    if !(PAYLOAD_BYTES_MIN..=PAYLOAD_BYTES_MAX).contains(&length) {
        return Err(KernelError::Size { what: "packed size", bytes: length, min: PAYLOAD_BYTES_MIN, max: PAYLOAD_BYTES_MAX });
    }
    let setup_sectors = if setup_sects == 0 { SETUP_SECTORS_DEFAULT } else { u64::from(setup_sects) };
    let start = (1 + setup_sectors) * SECTOR_BYTES + u64::from(payload_offset);
    let end = start + length;
    if end > content.len() {
        return Err(KernelError::Truncated { what: "the packed kernel", end, length: content.len() });
    }
    let mut payload = Vec::with_capacity(length as usize);
    content
        .pieces(start, length, |_, piece| {
            payload.extend_from_slice(piece);
            Ok(())
        })
        .map_err(|source| KernelError::Read { what: "the packed kernel", source })?;
    Ok(payload)
}
