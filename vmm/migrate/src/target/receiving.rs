//! What has arrived: the place of each stream, the units whose content is still missing, and whether everything is there.
//! Bounded: one frame a stream, one bit a unit.

use rebec_bits::BitSet;

use crate::{
    frame::{Content, Entry, FrameHead},
    index::{HELD_ENTRIES_MAX, Holder, Index, MOVED_ENTRIES_MAX, Place},
    message::Shape,
    unit::{Space, units_of},
};

/// Units written to disks between two flushes: 16 MiB, which a slow disk writes in a few hundred ms.
const UNFLUSHED_UNITS_MAX: u64 = 4096;

struct SpaceState {
    units: u64,
    missing: BitSet,
    read_only: bool,
}

#[derive(Default)]
struct Lane {
    next_sequence: u64,
    applied: u64,
    applying: Option<(Space, Vec<Entry>)>,
}

struct Finish {
    frames: Vec<u64>,
    saved: Vec<u8>,
}

/// The state of all spaces and streams.
pub struct Receiving {
    spaces: Vec<SpaceState>,
    lanes: Vec<Lane>,
    finish: Option<Finish>,
    unflushed_units: u64,
    flushing: bool,
}

impl Receiving {
    /// Nothing has arrived.
    pub fn new(shape: &Shape, streams: usize) -> Self {
        let space = |units, read_only| SpaceState { units, missing: BitSet::new(units), read_only };
        let memory = space(shape.memory_units(), false);
        let disks = shape.disks.iter().map(|disk| space(units_of(disk.bytes), disk.read_only));
        Self {
            spaces: std::iter::once(memory).chain(disks).collect(),
            lanes: std::iter::repeat_with(Lane::default).take(streams).collect(),
            finish: None,
            unflushed_units: 0,
            flushing: false,
        }
    }

    /// Units of all spaces.
    pub fn units(&self) -> u64 {
        self.spaces.iter().map(|space| space.units).sum()
    }

    /// A frame has arrived: where each of its held contents may be found.
    pub fn arrived(
        &mut self,
        stream: usize,
        head: &FrameHead,
        entries: Vec<Entry>,
        index: &Index,
    ) -> Result<Vec<Option<Place>>, &'static str> {
        let lane = self.lanes.get_mut(stream).ok_or("a frame on a stream that does not exist")?;
        if lane.applying.is_some() || head.sequence != lane.next_sequence {
            return Err("a frame is doubled or lost");
        }
        if self.finish.as_ref().is_some_and(|finish| head.sequence >= finish.frames[stream]) {
            return Err("a frame after the last one");
        }
        let space = self.spaces.get(usize::from(head.space.number())).ok_or("a frame for a disk that does not exist")?;
        let end = |entry: &Entry| match entry.content {
            Content::Zero { count } => entry.unit + u64::from(count),
            Content::Held(_) | Content::Bytes(_) => entry.unit + 1,
        };
        if entries.iter().any(|entry| end(entry) > space.units) {
            return Err("a unit outside its space");
        }
        if space.read_only && entries.iter().any(|entry| matches!(entry.content, Content::Bytes(_))) {
            return Err("bytes for a read-only disk");
        }
        let place = |entry: &Entry| match entry.content {
            Content::Held(digest) => index.find(&digest),
            Content::Zero { .. } | Content::Bytes(_) => None,
        };
        let places = entries.iter().map(place).collect();
        lane.next_sequence += 1;
        lane.applying = Some((head.space, entries));
        Ok(places)
    }

    /// The frame of a stream is applied but for `missed`: its place on the stream.
    pub fn applied(&mut self, stream: usize, missed: &[u64], index: &mut Index) -> Result<u64, String> {
        let lane = &mut self.lanes[stream];
        let Some((space, entries)) = lane.applying.take() else { return Err(format!("stream {stream} applied nothing")) };
        let sequence = lane.applied;
        lane.applied += 1;
        let state = &mut self.spaces[usize::from(space.number())];
        if let (true, Some(unit)) = (state.read_only, missed.first()) {
            return Err(format!("{space} is read-only, and its unit {unit} differs from the source's: give this side the same file"));
        }
        if space != Space::MEMORY {
            self.unflushed_units += entries.len() as u64;
        }
        let holder = space.disk_index().map_or(Holder::Memory, |disk| Holder::Disk(disk as u16));
        for Entry { unit, content } in entries {
            match content {
                Content::Zero { count } => state.missing.remove_range(unit..unit + u64::from(count)),
                Content::Held(_) if missed.contains(&unit) => {
                    state.missing.insert(unit);
                }
                Content::Held(_) => {
                    state.missing.remove(unit);
                }
                Content::Bytes(digest) => {
                    state.missing.remove(unit);
                    index.insert(digest, Place { holder, unit }, HELD_ENTRIES_MAX + MOVED_ENTRIES_MAX);
                }
            }
        }
        Ok(sequence)
    }

    /// Whether the disks should be flushed now; true once, until [`Self::flushed`].
    pub fn wants_flush(&mut self) -> bool {
        let wants = !self.flushing && self.unflushed_units >= UNFLUSHED_UNITS_MAX;
        if wants {
            (self.flushing, self.unflushed_units) = (true, 0);
        }
        wants
    }

    /// The disks are flushed.
    pub fn flushed(&mut self) {
        self.flushing = false;
    }

    /// The source has paused and says how much there is in all.
    pub fn finish(&mut self, frames: Vec<u64>, saved: Vec<u8>) -> Result<(), &'static str> {
        let enough = frames.len() == self.lanes.len() && self.lanes.iter().zip(&frames).all(|(lane, &all)| lane.next_sequence <= all);
        if self.finish.is_some() || !enough {
            return Err("the source's end does not fit what it sent");
        }
        self.finish = Some(Finish { frames, saved });
        Ok(())
    }

    /// The saved machine, once everything is there.
    pub fn complete(&mut self) -> Result<Option<Vec<u8>>, String> {
        let Some(finish) = &mut self.finish else { return Ok(None) };
        if self.lanes.iter().zip(&finish.frames).any(|(lane, &all)| lane.applied < all) {
            return Ok(None);
        }
        let missing: u64 = self.spaces.iter().map(|space| space.missing.len()).sum();
        if missing > 0 {
            return Err(format!("{missing} units were named by their digests and never sent"));
        }
        Ok(Some(std::mem::take(&mut finish.saved)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ledger::VmId, page::Digest};

    const DIGEST: Digest = Digest([1; 16]);

    fn receiving(read_only: bool) -> Receiving {
        let disks = vec![crate::message::DiskShape { bytes: 4096, read_only, base: None }];
        let shape = Shape {
            vm: VmId([0; 16]),
            epoch: 1,
            memory_bytes: 8 * 4096,
            vcpus: 1,
            nets: vec![],
            disks,
            cpu_model: vec![],
            memory_max_bytes: None,
        };
        Receiving::new(&shape, 1)
    }

    fn arrive(receiving: &mut Receiving, space: Space, sequence: u64, unit: u64, content: Content) -> Result<(), &'static str> {
        let head = FrameHead { space, round: 0, sequence };
        receiving.arrived(0, &head, vec![Entry { unit, content }], &Index::default()).map(drop)
    }

    #[test]
    fn a_doubled_lost_or_misplaced_frame_is_refused() {
        let mut state = receiving(false);
        let zero = Content::Zero { count: 2 };
        assert!(arrive(&mut state, Space::MEMORY, 1, 0, zero).is_err(), "frame 0 is lost");
        assert!(arrive(&mut state, Space::MEMORY, 0, 7, zero).is_err(), "past the end of memory");
        assert!(arrive(&mut state, Space::disk(1), 0, 0, zero).is_err(), "no such disk");
        arrive(&mut state, Space::MEMORY, 0, 0, zero).unwrap();
        assert!(arrive(&mut state, Space::MEMORY, 1, 0, zero).is_err(), "frame 0 is not applied yet");
        state.applied(0, &[], &mut Index::default()).unwrap();
        assert!(arrive(&mut state, Space::MEMORY, 0, 0, zero).is_err(), "frame 0 again");
        state.finish(vec![1], vec![]).unwrap();
        assert!(arrive(&mut state, Space::MEMORY, 1, 0, zero).is_err(), "after the last one");
    }

    #[test]
    fn nothing_is_complete_while_a_unit_is_missing() {
        let mut state = receiving(false);
        let mut index = Index::default();
        arrive(&mut state, Space::MEMORY, 0, 3, Content::Held(DIGEST)).unwrap();
        state.applied(0, &[3], &mut index).unwrap();
        let mut gives_up = receiving(false);
        arrive(&mut gives_up, Space::MEMORY, 0, 3, Content::Held(DIGEST)).unwrap();
        gives_up.applied(0, &[3], &mut index).unwrap();
        gives_up.finish(vec![1], vec![9]).unwrap();
        assert!(gives_up.complete().is_err());
        arrive(&mut state, Space::MEMORY, 1, 3, Content::Bytes(DIGEST)).unwrap();
        state.finish(vec![2], vec![9]).unwrap();
        assert_eq!(state.complete(), Ok(None), "the last frame is not applied");
        state.applied(0, &[], &mut index).unwrap();
        assert_eq!(state.complete(), Ok(Some(vec![9])));
    }

    #[test]
    fn a_read_only_disk_is_compared_and_never_written() {
        let mut state = receiving(true);
        assert!(arrive(&mut state, Space::disk(0), 0, 0, Content::Bytes(DIGEST)).is_err());
        arrive(&mut state, Space::disk(0), 0, 0, Content::Held(DIGEST)).unwrap();
        assert!(state.applied(0, &[0], &mut Index::default()).unwrap_err().contains("disk 0 is read-only"));
    }
}
