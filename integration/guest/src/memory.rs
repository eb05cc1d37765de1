//! Memory as a load: regions with known content, writes at a rate, and a check of every byte.
//!
//! A region is a run of usable pages. What a page holds is a function of its region's kind and seed and of how often it was dirtied, and that
//! count is all that is stored (4 bytes a page). Everything happens in slices between other work, so that heartbeats go on meanwhile.

use core::slice;

use crate::{
    console::Console,
    options::{Amount, Options, REGIONS_MAX, Work},
    pattern::{self, PAGE_WORDS, Page},
    say,
    start::{AREAS_MAX, Area},
};

const PAGE_BYTES: u64 = 4096;
/// Pages checked per turn of the main loop: about 0.1 ms.
const CHECK_PAGES_PER_TURN: u64 = 32;
/// After a stall, writes that fell due are made up for at most this long; the rest is skipped.
const CATCH_UP_US: u64 = 20_000;

/// Hands out usable memory: first to queues and buffers, then to regions.
pub struct Memory {
    areas: [Area; AREAS_MAX],
}

impl Memory {
    /// Over these areas.
    pub fn new(areas: [Area; AREAS_MAX]) -> Self {
        Self { areas }
    }

    /// Bytes left.
    pub fn bytes(&self) -> u64 {
        self.areas.iter().map(|area| area.end - area.start).sum()
    }

    /// Takes zeroed memory for good, in whole pages; its address is its physical one.
    pub fn take(&mut self, bytes: u64) -> Option<&'static mut [u8]> {
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        let area = self.areas.iter_mut().find(|area| area.end - area.start >= bytes)?;
        let start = area.start;
        area.start += bytes;
        // SAFETY: the area is RAM above the image that the memory map declares, mapped at its own address, and `start` moved past this piece:
        // nobody else has it. Nothing has been written there since the VMM zeroed it.
        Some(unsafe { slice::from_raw_parts_mut(start as *mut u8, bytes as usize) })
    }

    /// As [`Memory::take`], for words.
    pub fn take_words(&mut self, bytes: u64) -> Option<&'static mut [u64]> {
        let bytes = self.take(bytes)?;
        // SAFETY: whole pages are aligned for words, and any bytes are valid ones.
        Some(unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr().cast::<u64>(), bytes.len() / 8) })
    }

    /// The page with this number among those that are left. The highest area comes first, so that regions use the memory above 4 GiB
    /// whenever there is some.
    fn page(&self, mut number: u64) -> *mut Page {
        for area in self.areas.iter().rev() {
            let pages = (area.end - area.start) / PAGE_BYTES;
            if number < pages {
                return (area.start + number * PAGE_BYTES) as *mut Page;
            }
            number -= pages;
        }
        unreachable!("page numbers come from the regions, which end where the areas do")
    }
}

struct Region {
    first: u64,
    pages: u64,
    kind: pattern::Kind,
    seed: u64,
    work: Work,
    rate: u64,
    dirtied_pages: u64,
    done: u64,
    since_us: u64,
}

/// A check under way.
struct Check {
    page: u64,
    began_us: u64,
}

/// All regions with their state.
pub struct Load {
    memory: Memory,
    regions: [Option<Region>; REGIONS_MAX],
    pages: u64,
    /// How often each page was dirtied; words of which each half counts for one page.
    versions: &'static mut [u64],
    random: u64,
    check: Option<Check>,
    checks: u64,
    /// Writes made so far.
    pub writes: u64,
    /// Pages found to hold what they should not.
    pub bad: u64,
}

impl Load {
    /// Lays the regions out over what memory is left. An error says what does not fit.
    pub fn new(mut memory: Memory, options: &Options) -> Result<Self, &'static str> {
        let counts = memory.bytes() / PAGE_BYTES * 4;
        let versions = memory.take_words(counts).ok_or("no memory for the page counts")?;
        let total = memory.bytes() / PAGE_BYTES;
        let mut regions = [const { None }; REGIONS_MAX];
        let mut first = 0;
        for (region, wanted) in regions.iter_mut().zip(&options.regions) {
            let Some(wanted) = wanted else { continue };
            let pages = match wanted.amount {
                Amount::Bytes(bytes) => bytes / PAGE_BYTES,
                Amount::Percent(percent) => total * percent / 100,
                Amount::Rest => total - first,
            };
            if pages > total - first {
                return Err("the regions do not fit in memory");
            }
            // What is not declared shared differs from one VM to the next.
            let salt = if wanted.kind == pattern::Kind::Shared { 0 } else { pattern::mix(options.vm) };
            let dirtied_pages = if wanted.working_set == 0 { pages } else { (wanted.working_set / PAGE_BYTES).clamp(1, pages) };
            *region = Some(Region {
                first,
                pages,
                kind: wanted.kind,
                seed: wanted.seed ^ salt,
                work: wanted.work,
                rate: wanted.rate,
                dirtied_pages,
                done: 0,
                since_us: 0,
            });
            first += pages;
        }
        Ok(Self { memory, regions, pages: first, versions, random: pattern::mix(options.vm), check: None, checks: 0, writes: 0, bad: 0 })
    }

    /// Pages that have content of their own.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Fills all regions, which takes about 2 ms a MiB the first time.
    pub fn fill(&mut self) {
        for region in self.regions.iter().flatten().filter(|region| region.kind != pattern::Kind::Zero) {
            for number in 0..region.pages {
                // SAFETY: the page belongs to this region alone and no reference to it exists.
                let page = unsafe { &mut *self.memory.page(region.first + number) };
                pattern::fill(region.kind, region.seed, number, page);
            }
        }
    }

    /// Makes the writes that are due.
    pub fn dirty(&mut self, now_us: u64) {
        for slot in 0..REGIONS_MAX {
            let Some(region) = &mut self.regions[slot] else { continue };
            if region.work == Work::None || region.dirtied_pages == 0 {
                continue;
            }
            let (at, due) = (region.since_us, region.rate);
            let waiting = (u128::from(now_us - at) * u128::from(due) / 1_000_000) as u64 - region.done;
            let most = (due * CATCH_UP_US / 1_000_000).max(1);
            if waiting > most {
                // Begin to count anew: what a stall swallowed is not made up for.
                (region.since_us, region.done) = (now_us, 0);
            } else {
                region.done += waiting;
            }
            for _ in 0..waiting.min(most) {
                self.write(slot);
            }
        }
    }

    fn write(&mut self, slot: usize) {
        let Some(region) = &self.regions[slot] else { return };
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let number = pattern::mix(self.random) % region.dirtied_pages;
        // SAFETY: the page belongs to this region alone and no other reference to it exists.
        let page = unsafe { &mut *self.memory.page(region.first + number) };
        if region.work == Work::Silent {
            // SAFETY: a reference to the word itself; volatile, because the compiler would drop a store that changes nothing.
            unsafe { (&raw mut page[0]).write_volatile(page[0]) };
        } else {
            let version = version_of(self.versions, region.first + number) + 1;
            set_version(self.versions, region.first + number, version);
            pattern::dirty(region.seed, number, version, region.work.granule(), page);
        }
        self.writes += 1;
    }

    /// Begins a check of all pages, unless one is under way.
    pub fn begin_check(&mut self, now_us: u64) {
        if self.check.is_none() {
            self.check = Some(Check { page: 0, began_us: now_us });
        }
    }

    /// Carries a check on, and says how it ended.
    pub fn check(&mut self, now_us: u64, console: &mut Console) {
        let Some(Check { page: from, began_us }) = self.check else { return };
        let to = (from + CHECK_PAGES_PER_TURN).min(self.pages);
        for number in from..to {
            if let Some(fault) = self.fault(number) {
                self.bad += 1;
                self.checks += 1;
                self.check = None;
                let Fault { address, region, version, word, want, have } = fault;
                say!(
                    console,
                    "check {} bad address={address:#x} region={region} version={version} word={word} want={want:016x} have={have:016x}",
                    self.checks
                );
                return;
            }
        }
        self.check = Some(Check { page: to, began_us });
        if to == self.pages {
            self.checks += 1;
            self.check = None;
            say!(console, "check {} ok pages={} writes={} ms={}", self.checks, self.pages, self.writes, (now_us - began_us) / 1000);
        }
    }

    fn fault(&self, number: u64) -> Option<Fault> {
        let (slot, region) = self.regions.iter().enumerate().find_map(|(slot, region)| {
            region.as_ref().filter(|region| (region.first..region.first + region.pages).contains(&number)).map(|region| (slot, region))
        })?;
        let version = version_of(self.versions, number);
        let mut want = [0; PAGE_WORDS];
        pattern::expected(region.kind, region.seed, number - region.first, version, region.work.granule(), &mut want);
        let address = self.memory.page(number);
        // SAFETY: the page belongs to a region, and writes to regions happen in `write` only, which does not run now.
        let have = unsafe { &*address };
        // Differences are gathered without a branch per word, which keeps the loop in vector registers.
        if want.iter().zip(have).fold(0, |difference, (want, have)| difference | (want ^ have)) == 0 {
            return None;
        }
        let word = want.iter().zip(have).position(|(want, have)| want != have)?;
        Some(Fault { address: address as u64, region: slot, version, word, want: want[word], have: have[word] })
    }
}

/// A page that does not hold what it should.
struct Fault {
    address: u64,
    region: usize,
    version: u32,
    word: usize,
    want: u64,
    have: u64,
}

fn version_of(versions: &[u64], page: u64) -> u32 {
    (versions[page as usize / 2] >> (page % 2 * 32)) as u32
}

fn set_version(versions: &mut [u64], page: u64, version: u32) {
    let shift = page % 2 * 32;
    let word = &mut versions[page as usize / 2];
    *word = (*word & !(0xffff_ffff << shift)) | u64::from(version) << shift;
}
