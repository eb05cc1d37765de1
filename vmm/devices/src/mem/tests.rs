//! What a driver may ask for and what it may not; what travels.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use super::*;

const BLOCK: u64 = ROOM_BLOCK_BYTES;
const START: u64 = 4 << 30;
const BLOCKS: u64 = 64;

/// What was done with the host's memory, in words; it refuses where it is told to.
#[derive(Debug, Default)]
struct Told {
    words: Mutex<Vec<(&'static str, Range<u64>)>>,
    refuses: Mutex<bool>,
}

impl Told {
    fn hear(&self, word: &'static str, addresses: Range<u64>) -> io::Result<()> {
        if *self.refuses.lock().unwrap() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let blocks = (addresses.start - START) / BLOCK..(addresses.end - START) / BLOCK;
        self.words.lock().unwrap_or_else(PoisonError::into_inner).push((word, blocks));
        Ok(())
    }

    fn take(&self) -> Vec<(&'static str, Range<u64>)> {
        std::mem::take(&mut self.words.lock().unwrap())
    }
}

impl HostMemory for Told {
    fn open(&self, addresses: Range<u64>) -> io::Result<()> {
        self.hear("open", addresses)
    }

    fn close(&self, addresses: Range<u64>) -> io::Result<()> {
        self.hear("close", addresses)
    }

    fn discard(&self, addresses: Range<u64>) -> io::Result<()> {
        self.hear("discard", addresses)
    }
}

fn room() -> (Room, Arc<Told>) {
    let host = Arc::<Told>::default();
    (Room::new(START..START + BLOCKS * BLOCK, host.clone()), host)
}

fn plug(room: &Room, first: u64, blocks: u16) -> Outcome {
    room.answer(Request::Plug { address: START + first * BLOCK, blocks })
}

fn unplug(room: &Room, first: u64, blocks: u16) -> Outcome {
    room.answer(Request::Unplug { address: START + first * BLOCK, blocks })
}

#[test]
fn a_guest_takes_what_it_was_asked_to_have_and_no_block_more() {
    let (room, host) = room();
    assert_eq!(plug(&room, 0, 1), Outcome::Refused, "nothing was asked of it");
    room.ask(8 * BLOCK);
    assert_eq!(plug(&room, 4, 6), Outcome::Done);
    assert_eq!(plug(&room, 20, 3), Outcome::Refused);
    assert_eq!(plug(&room, 20, 2), Outcome::Done);
    assert_eq!((room.blocks().taken_bytes(), room.refused()), (8 * BLOCK, 2));
    // It gives back later than it was asked to, and meanwhile takes nothing.
    room.ask(2 * BLOCK);
    assert_eq!(plug(&room, 30, 1), Outcome::Refused);
    assert_eq!(unplug(&room, 5, 2), Outcome::Done);
    assert_eq!(plug(&room, 5, 1), Outcome::Refused);
    let state = |first: u64, blocks| room.answer(Request::State { address: START + first * BLOCK, blocks });
    assert_eq!(
        [state(4, 1), state(5, 2), state(4, 2), state(64, 1)],
        [Outcome::Plugged, Outcome::Unplugged, Outcome::Mixed, Outcome::Error]
    );
    assert_eq!(room.answer(Request::UnplugAll), Outcome::Done);
    assert_eq!(room.blocks().taken_bytes(), 0);
    let expected = [
        ("discard", 4..10),
        ("open", 4..10),
        ("discard", 20..22),
        ("open", 20..22),
        ("close", 5..7),
        ("close", 4..5),
        ("close", 7..10),
        ("close", 20..22),
    ];
    assert_eq!(host.take(), expected);
    room.ask(u64::MAX - BLOCK);
    assert_eq!(room.asked_bytes(), BLOCKS * BLOCK);
}

#[test]
fn a_guest_that_lies_is_refused_and_counted() {
    let (room, host) = room();
    room.ask(BLOCKS * BLOCK);
    assert_eq!(plug(&room, 8, 8), Outcome::Done);
    host.take();
    let lies = [
        Request::Plug { address: START + 15 * BLOCK, blocks: 2 },
        Request::Plug { address: START + 8 * BLOCK, blocks: 8 },
        Request::Plug { address: START + 1, blocks: 1 },
        Request::Plug { address: START + BLOCK - 4096, blocks: 1 },
        Request::Plug { address: START, blocks: 0 },
        Request::Plug { address: START + 63 * BLOCK, blocks: 2 },
        Request::Plug { address: START - BLOCK, blocks: 2 },
        Request::Plug { address: !(BLOCK - 1), blocks: u16::MAX },
        Request::Plug { address: 0, blocks: 1 },
        Request::Unplug { address: START, blocks: 1 },
        Request::Unplug { address: START + 7 * BLOCK, blocks: 2 },
        Request::Unplug { address: START + 8 * BLOCK, blocks: u16::MAX },
        Request::State { address: START, blocks: 0 },
        Request::Unknown,
    ];
    for lie in lies {
        assert_eq!(room.answer(lie), Outcome::Error, "{lie:?}");
    }
    assert_eq!((room.refused(), room.blocks().taken_bytes()), (lies.len() as u64, 8 * BLOCK));
    assert!(host.take().is_empty(), "nothing is done about a lie");
}

#[test]
fn what_the_host_cannot_do_is_not_done() {
    let (room, host) = room();
    room.ask(BLOCKS * BLOCK);
    assert_eq!(plug(&room, 0, 4), Outcome::Done);
    *host.refuses.lock().unwrap() = true;
    assert_eq!([plug(&room, 8, 4), unplug(&room, 0, 1), room.answer(Request::UnplugAll)], [Outcome::Busy; 3]);
    assert_eq!((room.blocks().taken_bytes(), room.refused()), (4 * BLOCK, 0));
    assert!(room.blocks().are(0..4, true));
}

#[test]
fn what_a_guest_has_travels_with_it() {
    let (source, _) = room();
    source.ask(10 * BLOCK);
    plug(&source, 3, 4);
    source.ask(2 * BLOCK);
    let source = Arc::new(source);
    let saved = MemDevice::new(source.clone()).save();
    let (target, host) = room();
    let target = Arc::new(target);
    let mut device = MemDevice::new(target.clone());
    device.restore(&saved).unwrap();
    assert_eq!((target.asked_bytes(), target.blocks().runs(true)), (2 * BLOCK, source.blocks().runs(true)));
    assert_eq!(host.take(), [("open", 3..7), ("close", 0..3), ("close", 7..64)]);
    assert_eq!(device.save(), saved);
    let mut config = device.config();
    config[PLUGGED_AT..PLUGGED_AT + 8].fill(0);
    target.overlay(&mut config);
    assert_eq!(config, device.config());

    let here = |saved: SavedMem| MemDevice::new(Arc::new(room().0)).restore(&saved.encode());
    let good = SavedMem { start: START, end: START + BLOCKS * BLOCK, asked: 0, taken: vec![0; 8] };
    here(good.clone()).unwrap();
    for wrong in [
        SavedMem { start: 0, ..good.clone() },
        SavedMem { end: u64::MAX, ..good.clone() },
        SavedMem { asked: 1, ..good.clone() },
        SavedMem { asked: (BLOCKS + 1) * BLOCK, ..good.clone() },
        SavedMem { taken: vec![0; 7], ..good.clone() },
        SavedMem { taken: vec![0; 9], ..good },
    ] {
        assert!(here(wrong.clone()).is_err(), "{wrong:?}");
    }
}
