//! Units: the 4 KiB pieces of memory and disks that travel, sets of them, and the stream that carries each.
//!
//! Units of one space are numbered densely from 0. Thirty-two neighbours form a run, and a run always travels on stream
//! `run number mod streams`: two versions of one unit share a connection, so the older can never overtake the newer, and
//! neighbours still share a compressed batch.

/// Bytes of one unit: an x86 page.
pub const UNIT_BYTES: usize = 4096;
/// Neighbouring units that share a stream, and the most units of one batch: 128 KiB, a zstd block.
pub const RUN_UNITS: u64 = 32;
/// Most data connections of one move.
pub const STREAMS_MAX: usize = 16;
/// Most disks of one machine: one for each virtio slot.
pub const DISKS_MAX: usize = 16;

/// What a unit number counts in: the memory, or one of the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Space(u16);

impl Space {
    /// Guest memory.
    pub const MEMORY: Self = Self(0);

    /// Disk `index`, in order of the `--disk` options.
    ///
    /// # Panics
    /// If `index` is not below [`DISKS_MAX`].
    pub fn disk(index: usize) -> Self {
        assert!(index < DISKS_MAX, "disk {index} of at most {DISKS_MAX}");
        Self(index as u16 + 1)
    }

    /// The space with this number on the wire, if there is one.
    pub fn from_number(number: u16) -> Option<Self> {
        (usize::from(number) <= DISKS_MAX).then_some(Self(number))
    }

    /// Its number on the wire, and its place in a list of all spaces: 0 is memory, 1 is disk 0.
    pub fn number(self) -> u16 {
        self.0
    }

    /// Which disk it is; `None` is memory.
    pub fn disk_index(self) -> Option<usize> {
        self.0.checked_sub(1).map(usize::from)
    }
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.disk_index() {
            None => f.write_str("memory"),
            Some(index) => write!(f, "disk {index}"),
        }
    }
}

/// The units that `bytes` fill; the last one may be partly filled and then ends in zeros.
pub fn units_of(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT_BYTES as u64)
}

/// The stream that carries `unit` when there are `streams`.
pub fn stream_of(unit: u64, streams: usize) -> usize {
    ((unit / RUN_UNITS) % streams as u64) as usize
}

/// A set of units of one space, one bit each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnitSet {
    runs: Vec<u32>,
    units: u64,
    len: u64,
}

impl UnitSet {
    /// The empty set over units `0..units`.
    pub fn new(units: u64) -> Self {
        Self { runs: vec![0; units.div_ceil(RUN_UNITS) as usize], units, len: 0 }
    }

    /// A set from a bitmap of 64-bit words, lowest bit first; bits past `units` are ignored.
    pub fn from_words(words: &[u64], units: u64) -> Self {
        let mut set = Self::new(units);
        let halves = words.iter().flat_map(|&word| [word as u32, (word >> 32) as u32]);
        for (run, bits) in set.runs.iter_mut().zip(halves) {
            *run = bits;
        }
        if let (Some(last), tail @ 1..) = (set.runs.last_mut(), units % RUN_UNITS) {
            *last &= (1 << tail) - 1;
        }
        set.len = set.runs.iter().map(|run| u64::from(run.count_ones())).sum();
        set
    }

    /// How many units the space has.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// How many units are in the set.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `unit` is in the set.
    pub fn contains(&self, unit: u64) -> bool {
        self.runs.get((unit / RUN_UNITS) as usize).is_some_and(|run| run & bit(unit) != 0)
    }

    /// Adds a unit; one outside the space is ignored.
    pub fn insert(&mut self, unit: u64) {
        if unit < self.units {
            let run = &mut self.runs[(unit / RUN_UNITS) as usize];
            self.len += u64::from(*run & bit(unit) == 0);
            *run |= bit(unit);
        }
    }

    /// Adds a range of units.
    pub fn insert_range(&mut self, range: std::ops::Range<u64>) {
        for unit in range.start..range.end.min(self.units) {
            self.insert(unit);
        }
    }

    /// Removes a unit.
    pub fn remove(&mut self, unit: u64) {
        if let Some(run) = self.runs.get_mut((unit / RUN_UNITS) as usize) {
            self.len -= u64::from(*run & bit(unit) != 0);
            *run &= !bit(unit);
        }
    }

    /// Adds every unit of another set over the same space.
    pub fn union(&mut self, other: &Self) {
        for (mine, theirs) in self.runs.iter_mut().zip(&other.runs) {
            self.len += u64::from((theirs & !*mine).count_ones());
            *mine |= theirs;
        }
    }

    /// The units in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().enumerate().flat_map(|(run, &bits)| {
            let first = run as u64 * RUN_UNITS;
            (0..RUN_UNITS).filter(move |at| bits & (1 << at) != 0).map(move |at| first + at)
        })
    }

    /// The next range of units that are in the set, from `from` on.
    pub fn next_range(&self, from: u64) -> Option<std::ops::Range<u64>> {
        let start = self.seek(from, true)?;
        Some(start..self.seek(start, false).unwrap_or(self.units))
    }

    fn seek(&self, from: u64, present: bool) -> Option<u64> {
        let mut unit = from;
        while unit < self.units {
            let run = self.runs[(unit / RUN_UNITS) as usize];
            let wanted = (if present { run } else { !run }) >> (unit % RUN_UNITS);
            if wanted != 0 {
                let found = unit + u64::from(wanted.trailing_zeros());
                return (found < self.units).then_some(found);
            }
            unit = (unit / RUN_UNITS + 1) * RUN_UNITS;
        }
        None
    }

    /// Takes up to a batch of units that travel on `stream`, from run `cursor` on, and moves the cursor past what it saw.
    pub fn take_batch(&mut self, stream: usize, streams: usize, cursor: &mut u64) -> Vec<u64> {
        let mut batch = Vec::new();
        let mut run = (*cursor).max(stream as u64);
        run += (stream as u64 + streams as u64 - run % streams as u64) % streams as u64;
        while let Some(bits) = self.runs.get_mut(run as usize) {
            let count = bits.count_ones() as usize;
            if count > 0 {
                if batch.len() + count > RUN_UNITS as usize {
                    break;
                }
                batch.extend((0..RUN_UNITS).filter(|at| *bits & (1 << at) != 0).map(|at| run * RUN_UNITS + at));
                *bits = 0;
                self.len -= count as u64;
            }
            run += streams as u64;
        }
        *cursor = run;
        batch
    }
}

fn bit(unit: u64) -> u32 {
    1 << (unit % RUN_UNITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_partition_a_set_by_stream() {
        for streams in [1, 2, 3, 16] {
            let mut set = UnitSet::new(1000);
            for unit in (0..1000).filter(|unit| unit % 3 != 0 || unit / 32 == 4) {
                set.insert(unit);
            }
            let all: Vec<u64> = set.iter().collect();
            let mut taken = Vec::new();
            for stream in 0..streams {
                let mut cursor = 0;
                loop {
                    let batch = set.take_batch(stream, streams, &mut cursor);
                    if batch.is_empty() {
                        break;
                    }
                    assert!(batch.len() <= RUN_UNITS as usize);
                    assert!(batch.iter().all(|&unit| stream_of(unit, streams) == stream));
                    taken.extend(batch);
                }
            }
            taken.sort_unstable();
            assert_eq!(taken, all);
            assert!(set.is_empty());
        }
    }

    #[test]
    fn ranges_are_what_is_in_the_set() {
        let mut set = UnitSet::new(200);
        set.insert_range(10..70);
        set.insert(199);
        assert_eq!(set.next_range(0), Some(10..70));
        assert_eq!(set.next_range(30), Some(30..70));
        assert_eq!(set.next_range(70), Some(199..200));
        assert_eq!(UnitSet::new(5).next_range(0), None);
    }

    #[test]
    fn words_past_the_end_are_ignored() {
        let set = UnitSet::from_words(&[u64::MAX, u64::MAX], 70);
        assert_eq!(set.len(), 70);
        assert!(!set.contains(70));
        let mut other = UnitSet::new(70);
        other.insert(3);
        other.union(&set);
        assert_eq!(other.len(), 70);
        other.remove(69);
        assert_eq!(other.len(), 69);
    }
}
