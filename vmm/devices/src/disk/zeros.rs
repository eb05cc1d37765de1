//! Zeros over a range of an image: whole clusters by the format's tables, the ends of the range as bytes.
//!
//! imago 0.2.6 is given whole clusters only. What it does with the rest of a range underflows where a disk is smaller than a cluster, and
//! between looking whether the other part of a cluster is zero and zeroing all of it, it loses what another thread writes there.
//!
//! ```text
//! range         |-----------------------------|
//! clusters   |        |        |        |        |
//!               bytes      tables         bytes
//! ```

use std::{fs::File, io, ops::Range};

use super::{
    Image,
    extent::{self, ExtentKind},
};

static ZEROS: [u8; 65_536] = [0; 65_536];

/// The whole clusters of a range; empty if it has none. The last cluster of a disk is whole where the disk ends.
pub(super) fn whole_clusters(range: &Range<u64>, cluster_bytes: u64, disk_bytes: u64) -> Range<u64> {
    let start = range.start.next_multiple_of(cluster_bytes);
    let end = if range.end == disk_bytes { range.end } else { range.end - range.end % cluster_bytes };
    if start < end { start..end } else { range.start..range.start }
}

/// Writes zeros wherever anything else may be.
pub(super) fn write(image: &Image, raw: Option<&File>, range: Range<u64>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let extent = extent::find(image, raw, at, range.end)?;
        let next = extent.range.end;
        if extent.kind == ExtentKind::Zero {
            at = next;
            continue;
        }
        while at < next {
            let length = (next - at).min(ZEROS.len() as u64);
            image.write(&ZEROS[..length as usize], at)?;
            at += length;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_clusters_are_those_within_the_range_and_the_disk_s_last() {
        let whole = |range| whole_clusters(&range, 4096, 10_240);
        assert_eq!(whole(0..10_240), 0..10_240);
        assert_eq!(whole(1..10_240), 4096..10_240);
        assert_eq!(whole(1..10_239), 4096..8192);
        assert_eq!(whole(8192..10_240), 8192..10_240);
        assert!(whole(8193..10_240).is_empty());
        assert!(whole(512..4096).is_empty());
        assert!(whole(10_240..10_240).is_empty());
        assert_eq!(whole_clusters(&(0..512), 65_536, 512), 0..512);
        assert!(whole_clusters(&(0..512), 65_536, 1024).is_empty());
    }
}
