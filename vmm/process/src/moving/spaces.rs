//! Memory and disks as spaces of 4 KiB units: reading copies, writing verified units, and what is populated or dirty.

use std::{io, ops::Range, sync::Arc};

use anyhow::{Context, Result};
use rebec_bits::BitSet;
use rebec_devices::disk::{Disk, Extent, ExtentKind};
use rebec_kvm::Ram;
use rebec_layout::PAGE_BYTES;
use rebec_migrate::{Space, UNIT_BYTES, page::is_zero, unit::units_of};

/// Zeros of a disk are looked at and written in pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;

/// Handles to the memory and the disks of one machine; cheap to clone, one for each worker.
#[derive(Clone)]
pub struct Spaces {
    pub ram: Ram,
    pub disks: Vec<Arc<Disk>>,
}

impl Spaces {
    /// Copies units (ascending) behind each other into `copy`. A disk's last unit is filled up with zeros.
    pub fn read(&self, space: Space, units: &[u64], copy: &mut Vec<u8>) -> Result<()> {
        copy.clear();
        copy.resize(units.len() * UNIT_BYTES, 0);
        let Some(index) = space.disk_index() else {
            for (&unit, into) in units.iter().zip(copy.chunks_exact_mut(UNIT_BYTES)) {
                let into = into.first_chunk_mut().expect("invariant: chunks of a unit");
                self.ram.read_page(unit, into)?;
            }
            return Ok(());
        };
        let disk = self.disk(index)?;
        let mut at = 0;
        while at < units.len() {
            let neighbours = units[at..].iter().zip(units[at]..).take_while(|(unit, expected)| **unit == *expected).count();
            let offset = units[at] * PAGE_BYTES;
            let length = (neighbours as u64 * PAGE_BYTES).min(disk.size_bytes().saturating_sub(offset)) as usize;
            disk.read_at(offset, &mut copy[at * UNIT_BYTES..][..length])
                .with_context(|| format!("disk {}: read at {offset}", disk.name()))?;
            at += neighbours;
        }
        Ok(())
    }

    /// Writes one unit.
    pub fn write(&self, space: Space, unit: u64, bytes: &[u8]) -> Result<()> {
        let Some(index) = space.disk_index() else {
            let bytes = bytes.first_chunk().context("invariant: a whole unit")?;
            return Ok(self.ram.write_page(unit, bytes)?);
        };
        let disk = self.disk(index)?;
        let length = PAGE_BYTES.min(disk.size_bytes().saturating_sub(unit * PAGE_BYTES)) as usize;
        disk.write_at(unit * PAGE_BYTES, &bytes[..length]).with_context(|| format!("disk {}: write at {}", disk.name(), unit * PAGE_BYTES))
    }

    /// Makes units zero without writing where nothing else was. A read-only disk must be zero there already.
    pub fn clear(&self, space: Space, units: Range<u64>) -> Result<()> {
        let Some(index) = space.disk_index() else { return Ok(self.ram.discard(units)?) };
        let disk = self.disk(index)?;
        let end = (units.end * PAGE_BYTES).min(disk.size_bytes());
        let mut at = units.start * PAGE_BYTES;
        while at < end {
            let Some(extent) = disk.extent_at(at)? else { break };
            let next = extent.range.end.min(end);
            if extent.kind == ExtentKind::Data {
                clear_data(disk, at..next).with_context(|| format!("disk {}: zeros at {at}", disk.name()))?;
            }
            at = next.max(at + 1);
        }
        Ok(())
    }

    /// What may hold anything but zeros, a set for each space, memory first; and what is zero, a set for each disk. Of a disk whose base
    /// the target has, what comes from the base is in neither.
    pub fn populated(&self, on_base: &[bool]) -> Result<(Vec<BitSet>, Vec<BitSet>)> {
        let mut memory = BitSet::new(self.ram.pages());
        self.ram.populated()?.into_iter().for_each(|range| memory.insert_range(range));
        let (mut data, mut zeros) = (vec![memory], vec![]);
        for (disk, &on_base) in self.disks.iter().zip(on_base) {
            let (with_data, with_zeros) = contents(disk, on_base)?;
            data.push(with_data);
            zeros.push(with_zeros);
        }
        Ok((data, zeros))
    }

    /// What was written to each disk since the last call.
    pub fn take_disks_dirty(&self) -> impl Iterator<Item = BitSet> + '_ {
        self.disks.iter().map(|disk| disk.track_take())
    }

    fn disk(&self, index: usize) -> io::Result<&Disk> {
        self.disks.get(index).map(Arc::as_ref).ok_or_else(|| io::Error::other(format!("disk {index} does not exist")))
    }
}

/// The units of a disk that hold data, and those that are nothing but zeros.
fn contents(disk: &Disk, on_base: bool) -> Result<(BitSet, BitSet)> {
    let units = units_of(disk.size_bytes());
    let (mut data, mut zeros) = (BitSet::new(units), BitSet::new(units));
    for extent in disk.extents() {
        let Extent { range, kind, is_backing } = extent?;
        let (first, end) = (range.start.div_ceil(PAGE_BYTES), if range.end == disk.size_bytes() { units } else { range.end / PAGE_BYTES });
        // A unit that an extent fills only in part has more than one story: its bytes tell.
        [range.start / PAGE_BYTES..first, end..range.end.div_ceil(PAGE_BYTES)].into_iter().for_each(|border| data.insert_range(border));
        match kind {
            _ if on_base && is_backing => {}
            ExtentKind::Data => data.insert_range(first..end),
            ExtentKind::Zero => zeros.insert_range(first..end),
        }
    }
    Ok((data, zeros))
}

fn clear_data(disk: &Disk, range: Range<u64>) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES.min(range.end - range.start) as usize];
    let mut at = range.start;
    while at < range.end {
        let length = PIECE_BYTES.min(range.end - at);
        let piece = &mut piece[..length as usize];
        disk.read_at(at, piece)?;
        if !is_zero(piece) {
            if disk.read_only() {
                return Err(io::Error::other(
                    "it is read-only and holds something where the source's has zeros: give this side the same file",
                ));
            }
            disk.zero_at(at, length)?;
        }
        at += length;
    }
    Ok(())
}
