//! Digests of a disk's base: taken once into a file (`rebec-vmm digests`), read back by every move (`--disk FILE,base-digests=FILE`). With
//! them neither side reads its base again, and of what both sides' bases hold nothing is said.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
};

use anyhow::{Context, Result, ensure};
use rebec_devices::disk::{Disk, ExtentKind};
use rebec_layout::PAGE_BYTES;
use rebec_migrate::{
    base::{BaseName, DIGEST_BYTES, SUMMARY_BYTES, Summary, Taking, digest_at, wire_digests},
    page::{Digest, Key},
    unit::units_of,
};

/// Units that are read at once: 1 MiB.
const BATCH_UNITS: u64 = 256;
/// Units of zeros that are taken at once: 2 MiB of digests.
const ZEROS_UNITS: u64 = 65_536;

/// Kept digests of the base that a disk stands on.
#[derive(Debug)]
pub struct BaseDigests {
    file: File,
    summary: Summary,
}

impl BaseDigests {
    /// Reads the summary of an open file of digests.
    ///
    /// # Errors
    /// When it is none, or was cut off.
    pub fn from_file(file: File) -> Result<Self> {
        let length = file.metadata()?.len();
        let mut bytes = [0; SUMMARY_BYTES];
        let at = length.checked_sub(SUMMARY_BYTES as u64).context("not a file of digests")?;
        file.read_exact_at(&mut bytes, at)?;
        Ok(Self { summary: Summary::from_end(&bytes, length)?, file })
    }

    /// Names the content.
    pub fn name(&self) -> BaseName {
        self.summary.name
    }

    /// Virtual size.
    pub fn bytes(&self) -> u64 {
        self.summary.bytes
    }

    /// The wire digests of units of the base; `None` for a unit of zeros.
    pub fn wire_digests(&self, key: &Key, first: u64, count: usize) -> Result<Vec<Option<Digest>>> {
        let mut kept = vec![0; count * DIGEST_BYTES];
        self.file.read_exact_at(&mut kept, digest_at(first)).context("read the digests of its base")?;
        Ok(wire_digests(key, &kept).collect())
    }
}

/// Writes the digests of all of a disk, at most `bytes_max` of them. Those of zeros become holes: a large disk with little in it has a small file.
pub fn write_digests(disk: &Disk, bytes_max: u64, out: &mut (impl Write + Seek)) -> Result<()> {
    let units = units_of(disk.size_bytes());
    let mut taking = Taking::new(disk.size_bytes());
    let (mut at, mut written, mut units_read, mut digests) = (0, 0, vec![], vec![]);
    while at < units {
        let extent = disk.extent_at(at * PAGE_BYTES)?.context("invariant: a disk has extents up to its end")?;
        let zeros = if extent.kind == ExtentKind::Zero { extent.range.end / PAGE_BYTES - at } else { 0 };
        let count = if zeros > 0 { zeros.min(ZEROS_UNITS) } else { (extent.range.end.div_ceil(PAGE_BYTES) - at).min(BATCH_UNITS) };
        if zeros > 0 {
            taking.take_zeros(count as usize);
            out.seek(SeekFrom::Current(count as i64 * DIGEST_BYTES as i64)).context("leave out the digests of zeros")?;
        } else {
            digests.clear();
            units_read.clear();
            units_read.resize((count * PAGE_BYTES) as usize, 0);
            let length = (count * PAGE_BYTES).min(disk.size_bytes() - at * PAGE_BYTES) as usize;
            disk.read_at(at * PAGE_BYTES, &mut units_read[..length])
                .with_context(|| format!("disk {}: read at {}", disk.name(), at * PAGE_BYTES))?;
            taking.take(&units_read, &mut digests);
            written += digests.len() as u64;
            ensure!(written <= bytes_max, "they would take more than {bytes_max} bytes: too much comes out of this image for its size");
            out.write_all(&digests)?;
        }
        at += count;
    }
    Ok(out.write_all(&taking.finish().to_bytes()).and_then(|()| out.flush())?)
}
