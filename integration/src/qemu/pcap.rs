//! Keeps the beginning of every frame in a pcap file, for whoever looks into a failure.
//!
//! The classic format with nanoseconds (magic a1b23c4d), link type Ethernet. Bounded in bytes a frame and bytes a file.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Bytes kept of one frame: headers down to a TCP header inside VXLAN, and a little payload.
const FRAME_BYTES_MAX: usize = 192;
/// Bytes kept of one run.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A file being written.
pub struct Pcap {
    file: BufWriter<File>,
    written: u64,
}

impl Pcap {
    /// Creates the file.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        let snap = FRAME_BYTES_MAX as u32;
        for field in [0xa1b2_3c4d, 0x0004_0002, 0, 0, snap, 1] {
            file.write_all(&u32::to_le_bytes(field))?;
        }
        Ok(Self { file, written: 24 })
    }

    /// Notes a frame that enters the switch.
    pub fn note(&mut self, frame: &[u8]) -> io::Result<()> {
        let kept = &frame[..frame.len().min(FRAME_BYTES_MAX)];
        if self.written + kept.len() as u64 > FILE_BYTES_MAX {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for field in [now.as_secs() as u32, now.subsec_nanos(), kept.len() as u32, frame.len() as u32] {
            self.file.write_all(&field.to_le_bytes())?;
        }
        self.file.write_all(kept)?;
        self.written += 16 + kept.len() as u64;
        Ok(())
    }

    /// Makes what was noted visible to readers of the file.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
