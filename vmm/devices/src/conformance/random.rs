//! Random drivers. They may break their device; they may not break anything else, and a reset mends it.

use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::{
    comes_back,
    driver::{DATA, Driver, RAM_BYTES, SIZE, avail, base},
    running,
    subjects::Subject,
};

fn runner() -> TestRunner {
    TestRunner::new(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })
}

#[derive(Debug, Clone)]
struct Access {
    /// To the configuration space, not the BAR.
    space: bool,
    offset: u64,
    width: usize,
    value: u64,
    write: bool,
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![
        6 => 0_u64..0x38,
        2 => (0_u64..6, 0_u64..0x40).prop_map(|(region, at)| region * 0x1000 + at),
        1 => 0_u64..0x110,
        1 => any::<u64>(),
    ];
    let value = prop_oneof![3 => 0_u64..20, 1 => (0..64_u64).prop_map(|bit| 1 << bit), 1 => any::<u64>()];
    let width = prop_oneof![3 => Just(4_usize), 3 => Just(2_usize), 1 => Just(1_usize), 1 => 0_usize..=8];
    let space = prop_oneof![4 => Just(false), 1 => Just(true)];
    let all = (space, offset, width, value, any::<bool>());
    all.prop_map(|(space, offset, width, value, write)| Access { space, offset, width, value, write })
}

pub(super) fn registers<S: Subject>() {
    let test = |(accesses, started): (Vec<Access>, bool)| {
        let driver = if started { running::<S>(0).1 } else { Driver::new(S::new().device()) };
        for Access { space, offset, width, value, write } in accesses {
            let mut data = value.to_le_bytes();
            match (space, write) {
                (false, true) => driver.transport().write(offset, &data[..width]),
                (false, false) => driver.transport().read(offset, &mut data[..width]),
                (true, true) => driver.transport().write_config(offset, &data[..width]),
                (true, false) => driver.transport().read_config(offset, &mut data[..width]),
            }
        }
        comes_back::<S>(driver);
        Ok(())
    };
    runner().run(&(vec(access(), 0..200), any::<bool>()), test).unwrap();
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![6 => DATA..DATA + 0x10_0000, 1 => 0..RAM_BYTES + 0x1000, 1 => any::<u64>()];
    let bytes = prop_oneof![3 => 0_u32..64, 2 => 0_u32..5000, 1 => any::<u32>()];
    (address, bytes, 0_u16..8, 0..SIZE + 1).prop_map(|(address, bytes, flags, next)| Descriptor::new(address, bytes, flags, next))
}

pub(super) fn rings<S: Subject>() {
    let heads = vec(prop_oneof![8 => 0..SIZE, 1 => any::<u16>()], usize::from(SIZE));
    let table = vec(descriptor(), usize::from(SIZE));
    let data = vec(any::<u8>(), 512);
    let test = |(heads, table, data, available, event): (Vec<u16>, Vec<Descriptor>, Vec<u8>, u16, u16)| {
        let (subject, driver) = running::<S>(0);
        for number in 0..4 {
            subject.request(&driver, number);
        }
        for queue in 0..S::QUEUES {
            driver.ram.write_slice(&data, GuestAddress(DATA)).unwrap();
            for (index, descriptor) in (0..).zip(&table) {
                driver.descriptor(base(queue), index, *descriptor);
            }
            for (slot, head) in (0..).zip(&heads) {
                driver.ram.write_obj(head.to_le(), GuestAddress(avail(queue) + 4 + 2 * slot)).unwrap();
            }
            driver.set_used_event(queue, event);
            driver.ram.write_obj(available.to_le(), GuestAddress(avail(queue) + 2)).unwrap();
            driver.kick(queue);
        }
        // Let it get somewhere; how far does not matter, it only must end.
        for _ in 0..200 {
            std::thread::yield_now();
        }
        driver.transport().pause();
        driver.transport().resume();
        comes_back::<S>(driver);
        Ok(())
    };
    runner().run(&(heads, table, data, prop_oneof![4 => 0..=SIZE, 1 => any::<u16>()], any::<u16>()), test).unwrap();
}
