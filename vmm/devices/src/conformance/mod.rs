//! One suite for every virtio device, driven through its PCI function by a fake driver over guest memory: what a driver may rely on, and
//! what a hostile one cannot break. Each device says in `subjects` what a request is and how its answer is verified.

mod driver;
mod hostile;
mod random;
mod subjects;

use std::sync::Arc;

use rebec_vmm_saved::Part;
use virtio_bindings::{
    virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1},
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_DESC_F_INDIRECT},
};
use virtio_queue::desc::split::Descriptor;

use crate::{room::Blocks, virtio::pci::registers};
use driver::{Buffer, Driver, SIZE, avail, base};
use subjects::{
    BalloonSubject, BlockSubject, MemSubject, NetRxSubject, NetTxSubject, ReportSubject, RingBlockSubject, RngSubject, Subject,
};

macro_rules! conformance {
    ($($module:ident: $subject:ty),*) => {$(
        mod $module {
            use super::*;

            #[test]
            fn a_driver_finds_and_negotiates_it() {
                super::finds_and_negotiates::<$subject>();
            }
            #[test]
            fn requests_are_answered_in_every_form() {
                super::answers_in_every_form::<$subject>();
            }
            #[test]
            fn a_reset_forgets_everything() {
                super::reset_forgets::<$subject>();
            }
            #[test]
            fn a_pause_loses_no_request_and_needs_no_kick() {
                super::pause_loses_nothing::<$subject>();
            }
            #[test]
            fn a_move_in_the_middle_answers_each_request_once() {
                super::move_answers_once::<$subject>();
            }
            #[test]
            fn interrupts_come_when_they_are_wanted_and_only_then() {
                super::interrupts_as_wanted::<$subject>();
            }
            #[test]
            fn a_pending_interrupt_is_sent_after_a_move() {
                super::interrupt_survives_a_move::<$subject>();
            }
            #[test]
            fn hostile_chains_end_in_a_reset_and_no_more() {
                hostile::chains::<$subject>();
            }
            #[test]
            fn hostile_rings_never_start() {
                hostile::rings::<$subject>();
            }
            #[test]
            fn hostile_parts_are_refused() {
                hostile::parts::<$subject>();
            }
            #[test]
            fn random_register_accesses_do_no_harm() {
                random::registers::<$subject>();
            }
            #[test]
            fn random_rings_do_no_harm() {
                random::rings::<$subject>();
            }
        }
    )*};
}

conformance!(
    block: BlockSubject,
    block_on_rings: RingBlockSubject,
    rng: RngSubject,
    net_tx: NetTxSubject,
    net_rx: NetRxSubject,
    mem: MemSubject,
    balloon: BalloonSubject,
    reports: ReportSubject
);

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A driver whose device runs with all features but those in `without`.
fn running<S: Subject>(without: u64) -> (S, Driver) {
    let subject = S::new();
    let mut driver = Driver::new(subject.device());
    driver.start(without, S::QUEUES);
    (subject, driver)
}

/// Offers requests `numbers`, kicks once and verifies all answers.
fn serve<S: Subject>(subject: &S, driver: &mut Driver, numbers: std::ops::Range<u64>) {
    let heads: Vec<_> = numbers.map(|number| (driver.offer(S::QUEUE, &subject.request(driver, number)), number)).collect();
    driver.kick(S::QUEUE);
    verify(subject, driver, &heads);
}

fn verify<S: Subject>(subject: &S, driver: &mut Driver, heads: &[(u16, u64)]) {
    let used = driver.wait_used(S::QUEUE, heads.len());
    if S::IN_ORDER {
        assert!(used.iter().map(|(head, _)| *head).eq(heads.iter().map(|(head, _)| u32::from(*head))), "answers come in order");
    }
    for (offered, number) in heads {
        let mut answers = used.iter().filter(|(head, _)| *head == u32::from(*offered));
        let (Some((_, written)), None) = (answers.next(), answers.next()) else { panic!("request {number} is answered once: {used:?}") };
        subject.verify(driver, *number, *written);
    }
}

#[test]
fn a_disk_that_grows_says_so_to_a_driver_that_runs() {
    let subject = BlockSubject::new();
    let mut driver = Driver::new(subject.device());
    let sectors = |driver: &Driver| {
        let mut data = [0; 8];
        driver.transport().read(0x2000, &mut data);
        u64::from_le_bytes(data)
    };
    let before = sectors(&driver);
    assert_eq!(driver.get(registers::CONFIG_GENERATION), 0);
    // Nobody listens yet.
    subject.grow(2);
    driver.transport().reconfigure();
    assert!(!driver.config_changed());
    driver.start(0, BlockSubject::QUEUES);
    assert_eq!((sectors(&driver), driver.get(registers::CONFIG_GENERATION)), (2 * before, 1));
    serve(&subject, &mut driver, 0..2);
    driver.transport().reconfigure();
    assert!(!driver.config_changed(), "nothing is new");
    subject.grow(2);
    driver.transport().reconfigure();
    assert!(driver.config_changed());
    assert_eq!((sectors(&driver), driver.get(registers::CONFIG_GENERATION)), (4 * before, 2));
    serve(&subject, &mut driver, 2..4);
}

#[test]
fn memory_that_the_guest_does_not_have_is_no_ram_to_any_device() {
    // The driver's second piece of RAM lies in the room.
    const ROOM: u64 = 4 << 30;
    let block = rebec_layout::ROOM_BLOCK_BYTES;
    let there = [Buffer { address: ROOM + 64, bytes: 64, writable: true }];
    for has_it in [true, false] {
        let blocks = Arc::new(Blocks::new(ROOM..ROOM + 64 * block));
        blocks.set(u64::from(!has_it)..2, true);
        let mut driver = Driver::within(RngSubject::new().device(), &blocks);
        driver.start(0, 1);
        driver.offer(0, &there);
        driver.kick(0);
        if has_it {
            assert_eq!(driver.wait_used(0, 1), [(0, 64)]);
            // A table of descriptors, and a ring.
            blocks.set(0..1, false);
            driver.descriptor(base(0), 4, Descriptor::new(ROOM, 16, VRING_DESC_F_INDIRECT as u16, 0));
            driver.make_available(0, 4);
            driver.kick(0);
        }
        expect_stopped(&driver);
        driver.reset();
        driver.set(registers::STATUS, 3);
        driver.set_features(driver.offered());
        driver.set(registers::STATUS, 11);
        driver.place(0, SIZE.into(), [ROOM, avail(0), avail(0) + 0x1000]);
        driver.set(registers::STATUS, 15);
        expect_stopped(&driver);
    }
}

fn expect_stopped(driver: &Driver) {
    driver.wait_until("a device that is broken", |driver| driver.get(registers::STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0);
}

#[test]
fn a_driver_of_memory_knows_that_it_may_not_look_at_what_it_does_not_have() {
    let subject = MemSubject::new();
    let driver = Driver::new(subject.device());
    driver.set(registers::STATUS, 3);
    driver.set_features(1 << VIRTIO_F_VERSION_1);
    driver.set(registers::STATUS, 11);
    assert_eq!(driver.get(registers::STATUS), 3, "without VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE");
}

#[test]
fn what_a_driver_has_taken_is_in_the_configuration_at_once() {
    let subject = MemSubject::new();
    let mut driver = Driver::new(subject.device());
    driver.start(0, MemSubject::QUEUES);
    let plugged = |driver: &Driver| {
        let mut data = [0; 8];
        driver.transport().read(0x2000 + 40, &mut data);
        u64::from_le_bytes(data)
    };
    assert_eq!(plugged(&driver), 0);
    serve(&subject, &mut driver, 0..6);
    assert_eq!((plugged(&driver), driver.get(registers::CONFIG_GENERATION)), (3 * rebec_layout::ROOM_BLOCK_BYTES, 0));
    // What is asked comes along too, for a device that begins with nothing asked.
    let asked = |driver: &Driver| {
        let mut data = [0; 8];
        driver.transport().read(0x2000 + 48, &mut data);
        u64::from_le_bytes(data)
    };
    let (before, part) = (asked(&driver), driver.transport().save(0));
    driver.move_to(subject.idle());
    assert_eq!(asked(&driver), 0);
    driver.transport().restore(&part).unwrap();
    assert_eq!((asked(&driver), plugged(&driver)), (before, 3 * rebec_layout::ROOM_BLOCK_BYTES));
}

fn finds_and_negotiates<S: Subject>() {
    let subject = S::new();
    let driver = Driver::new(subject.device());
    let mut id = [0; 4];
    driver.transport().read_config(0, &mut id);
    assert_eq!(u32::from_le_bytes(id), 0x1040_1af4 + ((S::KIND as u32) << 16));
    assert_eq!(driver.get(registers::QUEUE_COUNT) as usize, subject.device().queue_sizes().len());
    let offered = driver.offered();
    assert_eq!(offered & (1 << VIRTIO_F_VERSION_1 | EVENT_IDX | INDIRECT), 1 << VIRTIO_F_VERSION_1 | EVENT_IDX | INDIRECT);
    let config = subject.device().config();
    for (at, expected) in config.iter().enumerate() {
        let mut byte = [0xaa];
        driver.transport().read(0x2000 + at as u64, &mut byte);
        assert_eq!(byte[0], *expected, "configuration byte {at}");
    }
    let mut beyond = [0xaa; 8];
    driver.transport().read(0x2000 + config.len() as u64, &mut beyond);
    assert_eq!(beyond, [0; 8]);

    for queue in 0..4 {
        driver.set(registers::QUEUE_SELECT, queue);
        let size = driver.get(registers::QUEUE_SIZE);
        assert_eq!(size, subject.device().queue_sizes().get(queue as usize).map_or(0, |size| u32::from(*size)));
    }
    // Without VERSION_1, and with a feature that was not offered, FEATURES_OK does not stick; DRIVER_OK without it neither.
    for features in [0, offered & !(1 << VIRTIO_F_VERSION_1), offered | 1 << 50] {
        driver.set(registers::STATUS, 0);
        driver.set(registers::STATUS, 3);
        driver.set_features(features);
        driver.set(registers::STATUS, 11);
        assert_eq!(driver.get(registers::STATUS), 3, "{features:#x}");
        driver.set(registers::STATUS, 15);
        assert_eq!(driver.get(registers::STATUS), 3, "{features:#x}");
    }
    driver.set_features(offered);
    driver.set(registers::STATUS, 11);
    assert_eq!(driver.get(registers::STATUS), 11);
    // Steps are not taken back one by one.
    driver.set(registers::STATUS, 3);
    assert_eq!(driver.get(registers::STATUS), 11);
    driver.set(registers::STATUS, 0);
    assert_eq!(driver.get(registers::STATUS), 0);
}

fn answers_in_every_form<S: Subject>() {
    for without in [0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT] {
        let (subject, mut driver) = running::<S>(without);
        // More than the ring is long, so that its indexes go round.
        for round in 0..6 {
            let first = round * u64::from(driver::SLOTS);
            serve(&subject, &mut driver, first..first + u64::from(driver::SLOTS));
        }
        if without & INDIRECT == 0 {
            let buffers = subject.request(&driver, 96);
            let head = driver.offer_indirect(S::QUEUE, &buffers);
            driver.kick(S::QUEUE);
            verify(&subject, &mut driver, &[(head, 96)]);
        }
    }
}

fn reset_forgets<S: Subject>() {
    let (subject, mut driver) = running::<S>(0);
    serve(&subject, &mut driver, 0..5);
    driver.reset();
    assert_eq!(driver.get(registers::STATUS), 0);
    for queue in 0..S::QUEUES {
        driver.set(registers::QUEUE_SELECT, queue.into());
        assert_eq!(driver.get(registers::QUEUE_ENABLE), 0);
        assert_eq!(driver.get(registers::QUEUE_VECTOR), 0xffff);
    }
    driver.kick(S::QUEUE);
    driver.start(0, S::QUEUES);
    serve(&subject, &mut driver, 5..10);
    // Only a reset takes a queue back (§4.1.4.3.2).
    driver.set(registers::QUEUE_SELECT, S::QUEUE.into());
    driver.set(registers::QUEUE_ENABLE, 0);
    assert_eq!(driver.get(registers::QUEUE_ENABLE), 1);
    serve(&subject, &mut driver, 10..11);
}

fn pause_loses_nothing<S: Subject>() {
    let (subject, mut driver) = running::<S>(0);
    let mut number = 0;
    for round in 0..50 {
        let offer = |driver: &mut Driver, number: &mut u64| {
            *number += 1;
            (driver.offer(S::QUEUE, &subject.request(driver, *number)), *number)
        };
        let mut heads = vec![offer(&mut driver, &mut number), offer(&mut driver, &mut number)];
        driver.kick(S::QUEUE);
        driver.transport().pause();
        let used = driver.used_index(S::QUEUE);
        heads.push(offer(&mut driver, &mut number));
        assert_eq!(driver.used_index(S::QUEUE), used, "a paused device works on");
        if round % 2 == 0 {
            driver.transport().pause();
        }
        driver.transport().resume();
        verify(&subject, &mut driver, &heads);
    }
}

fn move_answers_once<S: Subject>() {
    let (subject, mut driver) = running::<S>(0);
    for round in 0..20 {
        let first = round * 10;
        let mut heads = Vec::new();
        for number in first..first + 10 {
            heads.push((driver.offer(S::QUEUE, &subject.request(&driver, number)), number));
            driver.kick(S::QUEUE);
        }
        let part = driver.transport().save(3);
        assert_eq!(driver.transport().save(3), part, "saving changes nothing");
        driver.move_to(subject.device());
        driver.transport().restore(&part).unwrap();
        assert_eq!(driver.transport().save(3), part, "what is restored is what was saved");
        driver.transport().resume();
        verify(&subject, &mut driver, &heads);
    }
}

fn interrupts_as_wanted<S: Subject>() {
    // The flag of rings without event indexes (§2.7.7).
    let (subject, mut driver) = running::<S>(EVENT_IDX);
    driver.set_avail_flags(S::QUEUE, 1);
    serve(&subject, &mut driver, 0..3);
    assert_eq!(driver.interrupts(), 0);
    driver.set_avail_flags(S::QUEUE, 0);
    serve(&subject, &mut driver, 3..4);
    assert!(driver.interrupts() > 0);

    // Event indexes (§2.7.10): one interrupt when the used index passes used_event, none before and after.
    let (subject, mut driver) = running::<S>(0);
    driver.set_used_event(S::QUEUE, 2);
    for (number, interrupts) in [(0, 0), (1, 0), (2, 1), (3, 0)] {
        serve(&subject, &mut driver, number..number + 1);
        assert_eq!(driver.interrupts(), interrupts, "after answer {number}");
    }
}

fn interrupt_survives_a_move<S: Subject>() {
    let (subject, mut driver) = running::<S>(EVENT_IDX);
    driver.set_msix_control(0xc000);
    serve(&subject, &mut driver, 0..1);
    assert_eq!(driver.interrupts(), 0, "all vectors are masked");
    let part = driver.transport().save(0);
    driver.move_to(subject.device());
    driver.transport().restore(&part).unwrap();
    driver.transport().resume();
    assert_eq!(driver.interrupts(), 0);
    driver.set_msix_control(0x8000);
    assert_eq!(driver.interrupts(), 1);
}

/// A broken device says so, serves nobody and comes back by a reset.
fn expect_broken<S: Subject>(subject: &S, driver: &mut Driver, what: &str) {
    driver.wait_until(what, |driver| driver.get(registers::STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0);
    driver.wait_until(what, Driver::config_changed);
    // It may even travel in this state.
    let part: Part = driver.transport().save(0);
    driver.move_to(subject.device());
    driver.transport().restore(&part).unwrap();
    driver.transport().resume();
    assert_ne!(driver.get(registers::STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0, "{what}");
    driver.reset();
    driver.start(0, S::QUEUES);
    serve(subject, driver, 0..2);
}

/// The same device serves a well-behaved driver after a reset, whatever was done to it before. What lies behind it may hold the rests of
/// that, so the last word has a new subject on the same memory.
fn comes_back<S: Subject>(mut driver: Driver) {
    driver.reset();
    driver.start(0, S::QUEUES);
    assert_eq!(driver.get(registers::STATUS), 15);
    let subject = S::new();
    let part = driver.transport().save(0);
    driver.move_to(subject.device());
    driver.transport().restore(&part).unwrap();
    driver.transport().resume();
    serve(&subject, &mut driver, 0..4);
}
