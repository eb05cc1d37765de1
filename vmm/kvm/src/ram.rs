//! Guest RAM: one memfd, mapped as one or two regions around the hole below 4 GiB, and one more for memory that comes and goes. It knows pages by dense
//! numbers and what devices wrote; it knows nothing of what the guest's CPUs wrote (that is the dirty log's).
//!
//! ```text
//! memfd         0 ............. 3 GiB ................ size ......... size + room     page n lies at n * 4096 of the memfd
//! guest         [0 ........ 3 GiB)   hole   [4 GiB ........)    [room_start ....)     page number != frame number above the hole
//! ```
//!
//! The room is mapped twice. Devices and moves see it through a mapping that is always whole, so that no access of theirs can fail. The guest's CPUs
//! reach it through a second one, which KVM is told of: in that, what the guest has not taken in cannot be reached at all ([`Ram::reach`]).

use std::{fs::File, io, ops::Range, sync::Arc};

use rebec_bits::BitSet;
use rebec_layout::{HIGH_RAM_START, LOW_RAM_BYTES_MAX, PAGE_BYTES, RAM_BYTES_MAX, high_ram_bytes, low_ram_bytes, room_start};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom};
use vm_memory::{Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, bitmap::AtomicBitmap};

use crate::{
    error::{Error, Result},
    view::View,
};

/// The type through which every device sees guest RAM. Writes through it are marked in its bitmap.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;

/// Guest RAM. Clones share the memory, which lives until the last clone is gone.
#[derive(Debug, Clone)]
pub struct Ram {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    memory: GuestRam,
    memfd: Arc<File>,
    /// Those that the guest has from its start.
    boot_pages: u64,
    /// All.
    pages: u64,
    /// What KVM is told of the room, if there is one.
    view: Option<View>,
}

impl Ram {
    /// Makes `bytes` of RAM, all zero and not yet populated.
    pub fn new(bytes: u64) -> Result<Self> {
        Self::with_room(bytes, 0)
    }

    /// Makes RAM with so much room behind it, of which the guest reaches nothing yet.
    pub fn with_room(bytes: u64, room: u64) -> Result<Self> {
        let fits = |bytes: u64| bytes.is_multiple_of(PAGE_BYTES) && bytes <= RAM_BYTES_MAX;
        if bytes == 0 || !fits(bytes) || !fits(room) || !fits(bytes + room) {
            return Err(Error::RamSize { bytes: bytes.saturating_add(room), max: RAM_BYTES_MAX });
        }
        let memfd = Arc::new(sealed_memfd(bytes + room)?);
        let (low, high) = (low_ram_bytes(bytes), high_ram_bytes(bytes));
        let mut ranges = vec![(GuestAddress(0), low as usize, Some(FileOffset::from_arc(memfd.clone(), 0)))];
        if high > 0 {
            ranges.push((GuestAddress(HIGH_RAM_START), high as usize, Some(FileOffset::from_arc(memfd.clone(), low))));
        }
        if room > 0 {
            ranges.push((GuestAddress(room_start(bytes)), room as usize, Some(FileOffset::from_arc(memfd.clone(), bytes))));
        }
        let memory = GuestRam::from_ranges_with_files(ranges).map_err(Error::Map)?;
        let view = (room > 0).then(|| View::map(&memfd, bytes, room)).transpose().map_err(ram("map the room for more"))?;
        let (boot_pages, pages) = (bytes / PAGE_BYTES, (bytes + room) / PAGE_BYTES);
        Ok(Self { shared: Arc::new(Shared { memory, memfd, boot_pages, pages, view }) })
    }

    /// The view that devices and loaders use. What is written through it counts as a device's write.
    pub fn memory(&self) -> &GuestRam {
        &self.shared.memory
    }

    /// The memory file, sealed against any change of size.
    pub fn memfd(&self) -> &File {
        &self.shared.memfd
    }

    /// How many pages there are, the room's among them.
    pub fn pages(&self) -> u64 {
        self.shared.pages
    }

    /// How many bytes the guest has from its start.
    pub fn boot_bytes(&self) -> u64 {
        self.shared.boot_pages * PAGE_BYTES
    }

    /// How many pages that is: they are the first.
    pub fn boot_pages(&self) -> u64 {
        self.shared.boot_pages
    }

    /// Where the guest sees the room; empty, where there is none.
    pub fn room(&self) -> Range<u64> {
        let start = room_start(self.boot_bytes());
        start..start + (self.shared.pages - self.shared.boot_pages) * PAGE_BYTES
    }

    /// Lets the guest's CPUs reach a part of the room, given by its addresses in whole pages, or no more.
    pub fn reach(&self, addresses: Range<u64>, allowed: bool) -> Result<()> {
        let room = self.room();
        let Some(view) = self.shared.view.as_ref().filter(|_| room.start <= addresses.start && addresses.end <= room.end) else {
            return Err(Error::Ram { operation: "reach what is not in its room", source: io::ErrorKind::InvalidInput.into() });
        };
        view.allow(addresses.start - room.start..addresses.end - room.start, allowed).map_err(ram("change what its guest reaches"))
    }

    /// What the host holds for it, in bytes.
    pub fn held_bytes(&self) -> Result<u64> {
        const BLOCK_BYTES: u64 = 512;
        rustix::fs::fstat(self.memfd()).map(|stat| stat.st_blocks as u64 * BLOCK_BYTES).map_err(ram("ask what is held for it"))
    }

    /// Where the guest sees page `n`. Meaningful for `n < pages()`.
    pub fn page_address(&self, n: u64) -> GuestAddress {
        let offset = n * PAGE_BYTES;
        GuestAddress(match offset.checked_sub(self.boot_bytes()) {
            Some(in_room) => self.room().start + in_room,
            None if offset < LOW_RAM_BYTES_MAX => offset,
            None => HIGH_RAM_START + (offset - LOW_RAM_BYTES_MAX),
        })
    }

    /// The number of the page that holds an address; `None` outside of RAM.
    pub fn page_of(&self, address: GuestAddress) -> Option<u64> {
        let address = address.raw_value();
        if self.room().contains(&address) {
            return Some(self.shared.boot_pages + (address - self.room().start) / PAGE_BYTES);
        }
        let offset = match address {
            low if low < LOW_RAM_BYTES_MAX => low,
            high => LOW_RAM_BYTES_MAX + high.checked_sub(HIGH_RAM_START)?,
        };
        Some(offset / PAGE_BYTES).filter(|n| *n < self.shared.boot_pages)
    }

    /// The pages at these addresses, if they are all RAM.
    pub fn pages_at(&self, addresses: &Range<u64>) -> Option<Range<u64>> {
        let first = self.page_of(GuestAddress(addresses.start))?;
        let end = self.page_of(GuestAddress(addresses.end.checked_sub(PAGE_BYTES)?))? + 1;
        (end.checked_sub(first)? == addresses.end.checked_sub(addresses.start)? / PAGE_BYTES).then_some(first..end)
    }

    /// Copies a page out. Marks nothing dirty; populates the page if it was not.
    pub fn read_page(&self, n: u64, into: &mut [u8; PAGE_BYTES as usize]) -> Result<()> {
        let address = self.checked_address(n)?;
        self.shared.memory.read_slice(into, address).map_err(|source| self.bad_page(n, Some(source)))
    }

    /// Copies a page in, and marks it as a device's write.
    pub fn write_page(&self, n: u64, from: &[u8; PAGE_BYTES as usize]) -> Result<()> {
        let address = self.checked_address(n)?;
        self.shared.memory.write_slice(from, address).map_err(|source| self.bad_page(n, Some(source)))
    }

    /// The pages that were ever populated, in ascending ranges; all others are zero.
    pub fn populated(&self) -> Result<Vec<Range<u64>>> {
        let mut ranges = Vec::new();
        let mut at = 0;
        while let Some(start) = self.seek(SeekFrom::Data(at))? {
            let end = self.seek(SeekFrom::Hole(start))?.unwrap_or(self.pages() * PAGE_BYTES);
            ranges.push(start / PAGE_BYTES..end.div_ceil(PAGE_BYTES));
            at = end;
        }
        Ok(ranges)
    }

    /// A walk over the populated pages. How far a piece of them reaches is found out once, however many steps it takes to walk it.
    pub fn walk(&self) -> PopulatedWalk {
        PopulatedWalk { ram: self.clone(), hole_from: 0, piece: 0..0 }
    }

    /// Marks pages as if a device had written them.
    pub fn mark_written(&self, range: Range<u64>) {
        for region in self.shared.memory.iter() {
            let first = self.page_of(region.start_addr()).expect("invariant: regions begin inside RAM");
            let piece = range.start.max(first)..range.end.min(first + region.len() / PAGE_BYTES);
            if !piece.is_empty() {
                let bytes = (piece.end - piece.start) * PAGE_BYTES;
                region.get_mmap().bitmap().set_addr_range(((piece.start - first) * PAGE_BYTES) as usize, bytes as usize);
            }
        }
    }

    /// What KVM is told of the room: where this process sees it.
    pub(crate) fn room_pointer(&self) -> Option<u64> {
        self.shared.view.as_ref().map(View::pointer)
    }

    /// Makes pages zero and gives their memory back to the host.
    pub fn discard(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if range.end > self.shared.pages {
            return Err(self.bad_page(range.end - 1, None));
        }
        let (offset, length) = (range.start * PAGE_BYTES, (range.end - range.start) * PAGE_BYTES);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(self.memfd(), punch, offset, length).map_err(ram("give pages back"))
    }

    /// Moves the marks of device writes into `pages`. A write that is under way is marked when it ends, so a page that is taken
    /// and then copied may hold half of it; it is taken again next time.
    pub fn take_device_dirty(&self, pages: &mut BitSet) {
        for region in self.shared.memory.iter() {
            let first = self.page_of(region.start_addr()).expect("invariant: regions begin inside RAM");
            // The region's own `bitmap()` is a slice; the mapping behind it owns the atomic words.
            let mapping = region.get_mmap();
            pages.union_words(first, &mapping.bitmap().get_and_reset());
        }
    }

    /// The next place of data or hole, `None` past the last.
    fn seek(&self, position: SeekFrom) -> Result<Option<u64>> {
        match rustix::fs::seek(self.memfd(), position) {
            Ok(offset) => Ok(Some(offset)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(errno) => Err(ram("find populated pages")(errno)),
        }
    }

    fn checked_address(&self, n: u64) -> Result<GuestAddress> {
        if n < self.shared.pages { Ok(self.page_address(n)) } else { Err(self.bad_page(n, None)) }
    }

    fn bad_page(&self, number: u64, source: Option<vm_memory::GuestMemoryError>) -> Error {
        Error::Page { number, pages: self.shared.pages, source }
    }
}

/// Populated pages, a range at a time.
#[derive(Debug)]
pub struct PopulatedWalk {
    ram: Ram,
    /// From here to the piece nothing is populated.
    hole_from: u64,
    piece: Range<u64>,
}

impl PopulatedWalk {
    /// The populated pages of a range, in ascending ranges. Walk upwards: a step back is looked for anew.
    pub fn within(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let (mut found, mut at) = (vec![], range.start);
        while at < range.end {
            if at < self.hole_from || at >= self.piece.end {
                self.look(at)?;
            }
            let piece = self.piece.start.max(at)..self.piece.end.min(range.end);
            if piece.is_empty() {
                break;
            }
            at = piece.end;
            found.push(piece);
        }
        Ok(found)
    }

    /// The next populated page from here on, if the last step has seen one.
    pub fn next_from(&self, at: u64) -> Option<u64> {
        let is_known = self.hole_from <= at && at < self.piece.end;
        is_known.then(|| self.piece.start.max(at))
    }

    fn look(&mut self, at: u64) -> Result<()> {
        let end = self.ram.pages();
        self.hole_from = at;
        self.piece = match self.ram.seek(SeekFrom::Data(at * PAGE_BYTES))? {
            None => end..end,
            Some(start) => {
                let stop = self.ram.seek(SeekFrom::Hole(start))?.unwrap_or(end * PAGE_BYTES);
                start / PAGE_BYTES..stop.div_ceil(PAGE_BYTES)
            }
        };
        Ok(())
    }
}

/// A memory file whose size nobody can change: a mapping of it never faults past the end.
fn sealed_memfd(bytes: u64) -> Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = rustix::fs::memfd_create("rebec-ram", flags).map_err(ram("create its memory file"))?;
    rustix::fs::ftruncate(&memfd, bytes).map_err(ram("size its memory file"))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memfd, seals).map_err(ram("seal its memory file"))?;
    Ok(File::from(memfd))
}

fn ram(operation: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |errno| Error::Ram { operation, source: io::Error::from(errno) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIGH_BYTES: u64 = LOW_RAM_BYTES_MAX + (16 << 20);

    #[test]
    fn pages_are_numbered_densely_over_the_hole() {
        let ram = Ram::new(HIGH_BYTES).unwrap();
        let low_pages = LOW_RAM_BYTES_MAX / PAGE_BYTES;
        assert_eq!(ram.page_address(low_pages - 1), GuestAddress(LOW_RAM_BYTES_MAX - PAGE_BYTES));
        assert_eq!(ram.page_address(low_pages), GuestAddress(HIGH_RAM_START));
        for n in [0, 1, low_pages - 1, low_pages, ram.pages() - 1] {
            assert_eq!(ram.page_of(ram.page_address(n).unchecked_add(4095)), Some(n));
        }
        assert_eq!(ram.page_of(GuestAddress(LOW_RAM_BYTES_MAX)), None);
        assert_eq!(ram.page_of(GuestAddress(HIGH_RAM_START - 1)), None);
        assert_eq!(ram.page_of(ram.page_address(ram.pages())), None);
        assert_eq!(ram.page_of(GuestAddress(u64::MAX)), None);
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for bytes in [0, 1, 4095, 4097, RAM_BYTES_MAX + PAGE_BYTES, u64::MAX] {
            assert!(matches!(Ram::new(bytes), Err(Error::RamSize { .. })), "{bytes}");
        }
    }

    #[test]
    fn populated_and_discarded_pages_on_both_sides_of_the_hole() {
        let ram = Ram::new(HIGH_BYTES).unwrap();
        let high = LOW_RAM_BYTES_MAX / PAGE_BYTES;
        assert_eq!(ram.populated().unwrap(), []);
        for n in [3, 4, high - 1, high, high + 9] {
            ram.write_page(n, &[n as u8 | 1; 4096]).unwrap();
        }
        assert_eq!(ram.populated().unwrap(), [3..5, high - 1..high + 1, high + 9..high + 10]);
        ram.discard(4..high).unwrap();
        assert_eq!(ram.populated().unwrap(), [3..4, high..high + 1, high + 9..high + 10]);
        let mut page = [7; 4096];
        ram.read_page(4, &mut page).unwrap();
        assert_eq!(page, [0; 4096]);
        ram.read_page(high + 9, &mut page).unwrap();
        assert_eq!(page, [(high + 9) as u8 | 1; 4096]);
        assert!(ram.discard(0..ram.pages() + 1).is_err());
        assert!(ram.read_page(ram.pages(), &mut page).is_err());
        assert!(ram.write_page(u64::MAX / PAGE_BYTES, &page).is_err());
    }

    #[test]
    fn a_walk_finds_the_same_in_steps_of_any_length() {
        let ram = Ram::new(64 << 20).unwrap();
        let written = [0, 1, 2, 4095, 4096, 4097, 9000, 16_383];
        written.iter().for_each(|&page| ram.write_page(page, &[1; 4096]).unwrap());
        for step in [1, 7, 4096, 16_384] {
            let (mut walk, mut found) = (ram.walk(), vec![]);
            let mut at = 0;
            while at < ram.pages() {
                let end = (at + step).min(ram.pages());
                found.extend(walk.within(at..end).unwrap().into_iter().flatten());
                at = walk.next_from(end).unwrap_or(end);
            }
            assert_eq!(found, written, "steps of {step}");
        }
        let mut walk = ram.walk();
        assert_eq!(walk.within(4096..9001).unwrap(), [4096..4098, 9000..9001]);
        let back: Vec<u64> = walk.within(0..3).unwrap().into_iter().flatten().collect();
        assert_eq!(back, [0, 1, 2], "back again");
        assert_eq!(walk.within(20_000..30_000).unwrap(), []);
    }

    #[test]
    fn device_writes_are_taken_once_and_reads_are_not_marked() {
        let ram = Ram::new(HIGH_BYTES).unwrap();
        let high = LOW_RAM_BYTES_MAX / PAGE_BYTES;
        ram.memory().write_slice(&[1; 4098], GuestAddress(5 * PAGE_BYTES - 1)).unwrap();
        ram.memory().write_obj(1_u64, GuestAddress(HIGH_RAM_START + 2 * PAGE_BYTES)).unwrap();
        ram.read_page(9, &mut [0; 4096]).unwrap();
        let mut dirty = BitSet::new(ram.pages());
        ram.take_device_dirty(&mut dirty);
        assert_eq!(dirty.iter().collect::<Vec<_>>(), [4, 5, 6, high + 2]);
        dirty.clear();
        ram.take_device_dirty(&mut dirty);
        assert!(dirty.is_empty());
    }

    #[test]
    fn the_room_has_numbers_behind_ram_and_its_own_addresses() {
        let (boot, room) = (HIGH_BYTES, 256 << 20);
        let ram = Ram::with_room(boot, room).unwrap();
        assert_eq!((ram.boot_bytes(), ram.pages()), (boot, (boot + room) / PAGE_BYTES));
        assert_eq!(ram.room(), 6 << 30..(6 << 30) + room);
        let first = ram.boot_pages();
        assert_eq!(ram.page_address(first), GuestAddress(6 << 30));
        for n in [0, first - 1, first, ram.pages() - 1] {
            assert_eq!(ram.page_of(ram.page_address(n).unchecked_add(4095)), Some(n));
        }
        assert_eq!(ram.page_of(GuestAddress(HIGH_RAM_START + (16 << 20))), None, "between RAM and room");
        assert_eq!(ram.page_of(GuestAddress(ram.room().end)), None);
        assert_eq!(Ram::new(boot).unwrap().room().clone().count(), 0);
        ram.write_page(first + 3, &[1; 4096]).unwrap();
        assert_eq!(ram.populated().unwrap().into_iter().flatten().collect::<Vec<_>>(), [first + 3]);
        assert_eq!(ram.held_bytes().unwrap(), 4096);
        let mut dirty = BitSet::new(ram.pages());
        ram.mark_written(first - 1..first + 2);
        ram.take_device_dirty(&mut dirty);
        assert_eq!(dirty.iter().collect::<Vec<_>>(), [first - 1, first, first + 1, first + 3]);
        ram.discard(first..ram.pages()).unwrap();
        assert_eq!((ram.populated().unwrap().len(), ram.held_bytes().unwrap()), (0, 0));
    }

    #[test]
    fn what_is_reached_of_the_room_is_in_the_room() {
        let ram = Ram::with_room(16 << 20, 128 << 20).unwrap();
        let room = ram.room();
        ram.reach(room.clone(), true).unwrap();
        ram.reach(room.start + (2 << 20)..room.start + (4 << 20), false).unwrap();
        for wrong in [0..4096, room.start - 4096..room.end, room.start..room.end + 4096] {
            assert!(ram.reach(wrong.clone(), true).is_err(), "{wrong:?}");
        }
        assert!(Ram::new(16 << 20).unwrap().reach(room.start..room.start + 4096, true).is_err());
        assert!(Ram::with_room(RAM_BYTES_MAX, PAGE_BYTES).is_err() && Ram::with_room(PAGE_BYTES, u64::MAX).is_err());
    }

    #[test]
    fn nobody_can_change_the_size() {
        let ram = Ram::new(1 << 20).unwrap();
        assert!(ram.memfd().set_len(0).is_err());
        assert!(ram.memfd().set_len(2 << 20).is_err());
    }
}
