//! What a hostile driver or a hostile saved part tries, case by case. The answer is always the same: refused, said, and over after a reset.

use rebec_vmm_saved::{Part, PartKind};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::{
    comes_back,
    driver::{DATA, Driver, RAM_BYTES, SIZE, avail, base},
    expect_broken, running, serve,
    subjects::Subject,
};
use crate::virtio::pci::registers;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A chain that cannot be followed, by its name; lays it out and returns its head.
type Case = (&'static str, fn(&Driver, u16) -> u16);

const CHAINS: &[Case] = &[
    ("a loop of one", |driver, queue| chain(driver, queue, &[Descriptor::new(DATA, 16, NEXT, 0)])),
    ("a loop of two", |driver, queue| chain(driver, queue, &[Descriptor::new(DATA, 16, NEXT, 1), Descriptor::new(DATA, 16, NEXT, 0)])),
    ("a head outside of the table", |_, _| SIZE),
    ("a far head", |_, _| u16::MAX),
    ("a next outside of the table", |driver, queue| chain(driver, queue, &[Descriptor::new(DATA, 16, NEXT, SIZE)])),
    ("a buffer outside of RAM", |driver, queue| chain(driver, queue, &[Descriptor::new(RAM_BYTES, 16, 0, 0)])),
    ("a buffer across the end of RAM", |driver, queue| chain(driver, queue, &[Descriptor::new(RAM_BYTES - 15, 16, 0, 0)])),
    ("a buffer across the end of addresses", |driver, queue| chain(driver, queue, &[Descriptor::new(u64::MAX - 7, 16, WRITE, 0)])),
    ("a huge buffer", |driver, queue| chain(driver, queue, &[Descriptor::new(DATA, u32::MAX, WRITE, 0)])),
    ("a readable buffer after a writable one", |driver, queue| {
        chain(driver, queue, &[Descriptor::new(DATA, 16, NEXT | WRITE, 1), Descriptor::new(DATA, 16, 0, 0)])
    }),
    ("an indirect table of odd length", |driver, queue| chain(driver, queue, &[Descriptor::new(DATA, 17, INDIRECT, 0)])),
    ("an empty indirect table", |driver, queue| chain(driver, queue, &[Descriptor::new(DATA, 0, INDIRECT, 0)])),
    ("an indirect table outside of RAM", |driver, queue| chain(driver, queue, &[Descriptor::new(RAM_BYTES, 16, INDIRECT, 0)])),
    ("an indirect table at the end of addresses", |driver, queue| chain(driver, queue, &[Descriptor::new(u64::MAX, 32, INDIRECT, 0)])),
    ("a huge indirect table", |driver, queue| chain(driver, queue, &[Descriptor::new(0, 0xffff_fff0, INDIRECT, 0)])),
    ("an indirect table with a successor", |driver, queue| chain(driver, queue, &[Descriptor::new(DATA, 16, INDIRECT | NEXT, 1)])),
    ("an indirect table in an indirect table", |driver, queue| {
        driver.descriptor(DATA, 0, Descriptor::new(DATA, 16, INDIRECT, 0));
        chain(driver, queue, &[Descriptor::new(DATA, 16, INDIRECT, 0)])
    }),
    ("a loop in an indirect table", |driver, queue| {
        driver.descriptor(DATA, 0, Descriptor::new(DATA, 16, NEXT, 0));
        chain(driver, queue, &[Descriptor::new(DATA, 16, INDIRECT, 0)])
    }),
    ("a next outside of an indirect table", |driver, queue| {
        driver.descriptor(DATA, 0, Descriptor::new(DATA, 16, NEXT, 1));
        chain(driver, queue, &[Descriptor::new(DATA, 16, INDIRECT, 0)])
    }),
];

fn chain(driver: &Driver, queue: u16, descriptors: &[Descriptor]) -> u16 {
    for (index, descriptor) in (0..).zip(descriptors) {
        driver.descriptor(base(queue), index, *descriptor);
    }
    0
}

pub(super) fn chains<S: Subject>() {
    for (what, lay) in CHAINS {
        let (subject, mut driver) = running::<S>(0);
        serve(&subject, &mut driver, 0..1);
        // Something behind the device, so that one with a choice looks at its ring.
        subject.request(&driver, 1);
        let head = lay(&driver, S::QUEUE);
        driver.make_available(S::QUEUE, head);
        driver.kick(S::QUEUE);
        let fresh = S::new();
        expect_broken(&fresh, &mut driver, what);
    }
    available_index_runs_away::<S>();
    empty_buffers_are_answered_or_refused::<S>();
}

fn available_index_runs_away<S: Subject>() {
    let (subject, mut driver) = running::<S>(0);
    driver.ram.write_obj((SIZE + 1).to_le(), GuestAddress(avail(S::QUEUE) + 2)).unwrap();
    driver.kick(S::QUEUE);
    expect_broken(&subject, &mut driver, "an available index beyond the ring");
}

/// A chain of no bytes may be answered or refused, as the device likes; it may not hang.
fn empty_buffers_are_answered_or_refused<S: Subject>() {
    let (subject, mut driver) = running::<S>(0);
    subject.request(&driver, 0);
    let head = chain(&driver, S::QUEUE, &[Descriptor::new(DATA, 0, 0, 0)]);
    driver.make_available(S::QUEUE, head);
    driver.kick(S::QUEUE);
    driver.wait_until("an answer to nothing", |driver| driver.used_index(S::QUEUE) == 1 || driver.get(registers::STATUS) & 0x40 != 0);
    comes_back::<S>(driver);
}

pub(super) fn rings<S: Subject>() {
    let sound = [base(S::QUEUE), base(S::QUEUE) + 0x4000, base(S::QUEUE) + 0x5000];
    let [desc, avail, used] = sound;
    for (what, size, place) in [
        ("size 0", 0, sound),
        ("a size that is no power of two", 48, sound),
        ("a size above the maximum", 2048, sound),
        ("descriptors outside of RAM", 64, [RAM_BYTES, avail, used]),
        ("descriptors across the end of RAM", 64, [RAM_BYTES - 512, avail, used]),
        ("an available ring outside of RAM", 64, [desc, 0xffff_ffff_ffff_fff0, used]),
        ("a used ring between two regions", 64, [desc, avail, (4 << 30) - 16]),
        ("crooked descriptors", 64, [desc + 8, avail, used]),
        ("a crooked available ring", 64, [desc, avail + 1, used]),
        ("a crooked used ring", 64, [desc, avail, used + 2]),
    ] {
        let subject = S::new();
        let mut driver = Driver::new(subject.device());
        for status in [1, 3] {
            driver.set(registers::STATUS, status);
        }
        driver.set_features(driver.offered());
        driver.set(registers::STATUS, 11);
        driver.place(S::QUEUE, size, place);
        driver.set(registers::STATUS, 15);
        expect_broken(&subject, &mut driver, what);
    }
}

pub(super) fn parts<S: Subject>() {
    let (subject, mut driver) = running::<S>(0);
    serve(&subject, &mut driver, 0..3);
    let part = driver.transport().save(0);
    let restore = |part: &Part| {
        let ram = driver.ram.clone();
        let mut other = Driver::new(subject.device());
        other.ram = ram;
        other.move_to(subject.device());
        other.transport().restore(part).map(|()| other)
    };
    assert!(restore(&part).is_ok());
    assert!(restore(&Part { version: 1, ..part.clone() }).is_err());
    assert!(restore(&Part { kind: PartKind::Virtio, bytes: [part.bytes.as_slice(), &[0]].concat(), ..part.clone() }).is_err());
    for cut in 0..part.bytes.len() {
        assert!(restore(&Part { bytes: part.bytes[..cut].to_vec(), ..part.clone() }).is_err(), "cut at {cut}");
    }
    // Each byte, changed: either refused, or a device that runs, breaks or waits, but ends when told to.
    for at in 0..part.bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bytes = part.bytes.clone();
            bytes[at] ^= flip;
            if let Ok(other) = restore(&Part { bytes, ..part.clone() }) {
                other.transport().resume();
                other.kick(S::QUEUE);
                other.transport().pause();
            }
        }
    }
}
