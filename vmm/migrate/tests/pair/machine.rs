//! A fake machine: real bytes, dirty bits, and a guest that writes.

use rebec_bits::BitSet;
use rebec_migrate::UNIT_BYTES;

/// xorshift64*: small, and the same everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// Memory first, then disks.
pub struct Machine {
    pub spaces: Vec<Vec<u8>>,
    pub dirty: Vec<BitSet>,
    /// What does not come from a base: all of memory, and of a disk what was written.
    pub own: Vec<BitSet>,
}

impl Machine {
    pub fn empty(memory_units: u64, disk_units: &[u64]) -> Self {
        let units = || std::iter::once(memory_units).chain(disk_units.iter().copied());
        let sets = || units().map(BitSet::new).collect();
        Self { spaces: units().map(|units| vec![0; units as usize * UNIT_BYTES]).collect(), dirty: sets(), own: sets() }
    }

    /// Declares half of each disk never written, and returns the machine whose disks show the base there and something else elsewhere.
    pub fn on_base(&mut self, rng: &mut Rng) -> Self {
        let mut fresh = Self::empty(self.own[0].size(), &self.own[1..].iter().map(BitSet::size).collect::<Vec<_>>());
        for space in 1..self.spaces.len() {
            for unit in 0..self.own[space].size() {
                let mut below = self.unit(space, unit).to_vec();
                if rng.below(2) == 0 {
                    self.own[space].insert(unit);
                    below[0] ^= 0x55;
                }
                fresh.set_unit(space, unit, &below);
            }
        }
        fresh
    }

    /// A third zeros, a third compressible, a third not; some contents more than once.
    pub fn random(rng: &mut Rng, memory_units: u64, disk_units: &[u64]) -> Self {
        let mut machine = Self::empty(memory_units, disk_units);
        for space in &mut machine.spaces {
            for unit in space.chunks_mut(UNIT_BYTES) {
                match rng.below(6) {
                    0 | 1 => {}
                    2 => unit.fill(rng.below(4) as u8 + 1),
                    3 => unit.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 7) as u8 + rng.below(2) as u8),
                    _ => unit.chunks_mut(8).for_each(|word| word.copy_from_slice(&rng.next().to_le_bytes())),
                }
            }
        }
        machine
    }

    /// A donor that holds a share (percent) of this memory's contents.
    pub fn lent(&self, rng: &mut Rng, share: u64) -> Vec<u8> {
        let units = self.spaces[0].chunks(UNIT_BYTES).filter(|_| rng.below(100) < share);
        let mut donor: Vec<u8> = units.flatten().copied().collect();
        donor.extend_from_slice(&[3; UNIT_BYTES]);
        donor
    }

    pub fn write_somewhere(&mut self, rng: &mut Rng) {
        let space = rng.below(self.spaces.len() as u64) as usize;
        let units = (self.spaces[space].len() / UNIT_BYTES) as u64;
        // Half of the writes hit a small working set.
        let unit = if rng.below(2) == 0 { rng.below(units.min(8)) } else { rng.below(units) };
        let unit_bytes = &mut self.spaces[space][unit as usize * UNIT_BYTES..][..UNIT_BYTES];
        match rng.below(4) {
            0 => {} // A silent store: dirty, but the same.
            1 => unit_bytes.fill(0),
            2 => unit_bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&rng.next().to_le_bytes())),
            _ => unit_bytes[rng.below(UNIT_BYTES as u64) as usize] ^= rng.next() as u8,
        }
        self.dirty[space].insert(unit);
        self.own[space].insert(unit);
    }

    pub fn unit(&self, space: usize, unit: u64) -> &[u8] {
        &self.spaces[space][unit as usize * UNIT_BYTES..][..UNIT_BYTES]
    }

    pub fn set_unit(&mut self, space: usize, unit: u64, bytes: &[u8]) {
        self.spaces[space][unit as usize * UNIT_BYTES..][..UNIT_BYTES].copy_from_slice(bytes);
    }

    /// What holds data, one set a space, and what is zero, one set a disk.
    pub fn populated(&self, on_base: &[bool]) -> (Vec<BitSet>, Vec<BitSet>) {
        let mut sets: Vec<_> = self.dirty.iter().map(|set| (BitSet::new(set.size()), BitSet::new(set.size()))).collect();
        for (space, (data, zeros)) in sets.iter_mut().enumerate() {
            let is_on_base = space > 0 && on_base[space - 1];
            for unit in (0..data.size()).filter(|&unit| !is_on_base || self.own[space].contains(unit)) {
                let holds = self.unit(space, unit).iter().any(|&byte| byte != 0) || unit % 5 == 0;
                (if holds { &mut *data } else { &mut *zeros }).insert(unit);
            }
        }
        let (data, mut zeros): (Vec<_>, Vec<_>) = sets.into_iter().unzip();
        zeros.remove(0);
        (data, zeros)
    }

    pub fn take_dirty(&mut self) -> Vec<BitSet> {
        self.dirty.iter_mut().map(|set| std::mem::replace(set, BitSet::new(set.size()))).collect()
    }
}
