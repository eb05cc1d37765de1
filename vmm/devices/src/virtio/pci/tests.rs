//! The function by itself, over an entropy source: its saved form, byte by byte, and rules that no well-behaved driver meets.

use vm_memory::GuestAddress;

use super::{
    registers::{self, Field},
    testing::{FakeHost, MSIX_CONTROL},
    *,
};
use crate::{PlainThreads, rng::RngDevice};

const ADDRESS: u32 = 0xd000_0000;

fn function() -> (PciTransport, Arc<FakeHost>) {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let device = Box::new(RngDevice::new(io::repeat(1)));
    let host = Arc::new(FakeHost::default());
    (PciTransport::new(device, ram, host.clone(), ADDRESS, Arc::new(PlainThreads)).unwrap(), host)
}

fn set(function: &PciTransport, writes: &[(Field, u32)]) {
    for ((at, bytes), value) in writes {
        function.write(*at, &value.to_le_bytes()[..*bytes]);
    }
}

fn get(function: &PciTransport, (at, bytes): Field) -> u32 {
    let mut data = [0; 4];
    function.read(at, &mut data[..bytes]);
    u32::from_le_bytes(data)
}

fn config(function: &PciTransport, at: u64) -> u32 {
    let mut data = [0; 4];
    function.read_config(at, &mut data);
    u32::from_le_bytes(data)
}

const NEGOTIATE: [(Field, u32); 5] = [
    (registers::STATUS, 3),
    (registers::DRIVER_FEATURES_SELECT, 1),
    (registers::DRIVER_FEATURES, 1),
    (registers::STATUS, 11),
    (registers::DEVICE_FEATURES_SELECT, 1),
];

const PLACE: [(Field, u32); 6] = [
    (registers::QUEUE_SIZE, 8),
    (registers::QUEUE_DESCRIPTORS, 0x1000),
    (registers::QUEUE_DRIVER, 0x2000),
    (registers::QUEUE_DEVICE, 0x3000),
    (registers::QUEUE_VECTOR, 1),
    (registers::QUEUE_ENABLE, 1),
];

fn run(function: &PciTransport) {
    set(function, &NEGOTIATE);
    set(function, &PLACE);
    set(function, &[(registers::STATUS, 15)]);
}

#[test]
fn golden_bytes_of_a_running_device() {
    let (device, _) = function();
    run(&device);
    device.write_config(MSIX_CONTROL, &0x8000u16.to_le_bytes());
    device.write(TABLE + 16, &0x8000_0000_fee0_1000u64.to_le_bytes());
    device.write(TABLE + 24, &0x21u64.to_le_bytes());
    let part = device.save(5);
    let mut space = [0; 256];
    device.read_config(0, &mut space);
    let expected = [
        &[4, 15, 0, 0, 1, 1][..],           // kind, status, needs reset, ISR status, feature pages
        &[0x80, 0x80, 0x80, 0x80, 0x10, 0], // driver features: bit 32; selected queue
        &[1, 8, 1, 0x80, 0x20, 0x80, 0x40], // one queue: size, ready, addresses ...
        &[0x80, 0x60, 0, 0, 1],             // ... of the third ring, two indexes, vector
        &[0],                               // device part: none
        &[0x80, 2],                         // configuration space: 256 bytes
        &space,                             //
        &[0xff, 0xff, 3],                   // configuration's vector: none
        &[2, 0, 0, 1, 0],                   // two vectors: the first at rest
        &[0x80, 0xa0, 0x80, 0xf7, 0x8f, 0x80, 0x80, 0x80, 0x80, 1, 0x21, 0, 0],
    ]
    .concat();
    assert_eq!(
        (part.kind, part.index, part.version, part.bytes.as_slice()),
        (rebec_vmm_saved::PartKind::Virtio, 5, 2, expected.as_slice())
    );
    let (other, _) = function();
    other.restore(&part).unwrap();
    assert_eq!(other.save(5), part);
}

#[test]
fn golden_bytes_of_a_configuration_space() {
    let (function, _) = function();
    let mut space = [0; 256];
    function.read_config(0, &mut space);
    let words: Vec<u32> = space.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    let header = [
        0x1044_1af4,
        0x0010_0006,
        0x1080_0001,
        0, // ids; capabilities, bus master, memory; class, revision
        0xd000_0000,
        0,
        0,
        0,
        0,
        0,
        0, // one BAR
        0x1044_1af4,
        0,
        0x40,
        0,
        0, // subsystem; first capability; no interrupt pin
    ];
    let capabilities = [
        [0x0110_5009, 0, 0x0000, 0x1000], // common
        [0x0310_6009, 0, 0x1000, 0x1000], // ISR
        [0x0410_7009, 0, 0x2000, 0x1000], // device
        [0x0214_8409, 0, 0x3000, 4],      // notify: one queue
    ];
    assert_eq!(words[..16], header);
    assert_eq!(words[16..32], capabilities.concat());
    assert_eq!(words[32..41], [4, 0x0514_9809, 0, 0, 0, 0, 0x0001_0011, 0x4000, 0x5000]);
    assert!(words[41..].iter().all(|word| *word == 0));
}

#[test]
fn saved_states_that_cannot_be_are_refused_with_a_reason() {
    let (device, _) = function();
    run(&device);
    let part = device.save(0);
    for (at, value, reason) in [
        (0, 2, "type 2"),
        (1, 0x1f, "cannot be"),
        (1, 7, "cannot be"),
        (3, 8, "ISR status"),
        (10, 0x18, "features"),
        (13, 9, "queue 0"),
        (15, 0x81, "queue 0"),
        (23, 2, "vector 2"),
        (27, 0xf5, "configuration byte 0x0"),
        (283, 0x80, "vector 65408"),
        (286, 1, "left over"),
    ] {
        let mut bytes = part.bytes.clone();
        bytes[at] = value;
        let refused = function().0.restore(&Part { bytes, ..part.clone() }).unwrap_err().to_string();
        assert!(refused.contains(reason), "byte {at}: {refused}");
    }
}

#[test]
fn an_enabled_queue_and_negotiated_features_are_final() {
    let (device, _) = function();
    set(&device, &NEGOTIATE);
    set(&device, &PLACE);
    let before = device.save(0);
    set(&device, &[(registers::QUEUE_SIZE, 4), (registers::QUEUE_DEVICE_HIGH, 1), (registers::DRIVER_FEATURES, 0)]);
    assert_eq!(device.save(0), before);
}

#[test]
fn fields_read_back_what_was_written_and_only_whole() {
    let (device, _) = function();
    run(&device);
    for (field, value) in PLACE {
        assert_eq!(get(&device, field), value, "{field:?}");
    }
    assert_eq!(get(&device, registers::DRIVER_FEATURES), 1);
    assert_eq!(get(&device, (0x20, 2)), 0);
    set(&device, &[(registers::QUEUE_SELECT, 1)]);
    for field in [registers::QUEUE_SIZE, registers::QUEUE_ENABLE, registers::QUEUE_DESCRIPTORS] {
        assert_eq!(get(&device, field), 0, "a queue that is not there");
    }
    assert_eq!(get(&device, registers::QUEUE_VECTOR), 0xffff);
}

#[test]
fn a_vector_that_is_not_there_reads_back_as_none() {
    let (device, _) = function();
    set(&device, &[(registers::CONFIG_VECTOR, 2), (registers::QUEUE_VECTOR, 1)]);
    assert_eq!((get(&device, registers::CONFIG_VECTOR), get(&device, registers::QUEUE_VECTOR)), (0xffff, 1));
}

#[test]
fn kicks_are_watched_where_the_bar_is() {
    let (device, host) = function();
    assert_eq!(host.watched(), [u64::from(ADDRESS) + 0x3000]);
    assert_eq!((device.offset_of(0xd000_7fff), device.offset_of(0xd000_8000), device.offset_of(0xcfff_ffff)), (Some(0x7fff), None, None));
    // How an operating system learns the size of a BAR: decoding off, all ones, and back.
    device.write_config(4, &4u16.to_le_bytes());
    assert_eq!((host.watched(), device.offset_of(ADDRESS.into())), (vec![], None));
    device.write_config(0x10, &u32::MAX.to_le_bytes());
    assert_eq!(config(&device, 0x10), 0xffff_8000);
    device.write_config(0x10, &0xd800_0000u32.to_le_bytes());
    device.write_config(4, &6u16.to_le_bytes());
    assert_eq!((host.watched(), device.offset_of(0xd800_0010)), (vec![0xd800_3000], Some(0x10)));

    let part = device.save(0);
    let (other, host) = function();
    other.restore(&part).unwrap();
    assert_eq!(host.watched(), [0xd800_3000]);
}

#[test]
fn the_bar_is_reached_through_the_configuration_space() {
    let (device, _) = function();
    device.write_config(0x84 + 8, &0x14u32.to_le_bytes());
    device.write_config(0x84 + 12, &1u32.to_le_bytes());
    device.write_config(0x84 + 16, &[3]);
    assert_eq!(get(&device, registers::STATUS), 3);
    let mut status = [0];
    device.read_config(0x84 + 16, &mut status);
    assert_eq!(status, [3]);
    // An access of another width than the window's goes nowhere.
    device.write_config(0x84 + 16, &[0, 0]);
    assert_eq!(get(&device, registers::STATUS), 3);
}

#[test]
fn a_masked_vector_waits_and_says_so() {
    let (device, host) = function();
    device.write_config(MSIX_CONTROL, &0x8000u16.to_le_bytes());
    device.write(TABLE + 16, &0xfee0_0000u64.to_le_bytes());
    device.write(TABLE + 24, &[0x21, 0, 0, 0]);
    set(&device, &[(registers::QUEUE_VECTOR, 1)]);
    assert!(device.msix.raise(msix::Cause::Used(0)));
    let mut pending = [0; 8];
    device.read(PENDING, &mut pending);
    assert_eq!((pending[0], host.take_messages()), (2, vec![]));
    device.write(TABLE + 28, &[0; 4]);
    device.read(PENDING, &mut pending);
    assert_eq!((pending[0], host.take_messages()), (0, vec![(0xfee0_0000, 0x21)]));
    assert!(device.msix.raise(msix::Cause::Used(0)));
    assert_eq!(host.take_messages(), [(0xfee0_0000, 0x21)]);
    // No vector, no message; MSI-X off, the ISR status.
    assert!(device.msix.raise(msix::Cause::Config));
    assert_eq!(host.take_messages(), []);
    device.write_config(MSIX_CONTROL, &[0, 0]);
    assert!(!device.msix.raise(msix::Cause::Used(0)));
}

#[test]
fn a_thread_that_cannot_be_had_breaks_the_device_until_a_reset() {
    struct NoThreads;
    impl Threads for NoThreads {
        fn spawn(&self, _name: &str, _body: Box<dyn FnOnce() + Send>) -> io::Result<std::thread::JoinHandle<()>> {
            Err(io::ErrorKind::OutOfMemory.into())
        }
    }
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let device = Box::new(RngDevice::new(io::repeat(1)));
    let device = PciTransport::new(device, ram, Arc::<FakeHost>::default(), ADDRESS, Arc::new(NoThreads)).unwrap();
    for _ in 0..2 {
        run(&device);
        assert_eq!(get(&device, registers::STATUS), 15 | 0x40);
        // Without MSI-X the ISR status says it, once.
        assert_eq!((get(&device, (ISR, 1)), get(&device, (ISR, 1))), (2, 0));
        set(&device, &[(registers::STATUS, 0)]);
        assert_eq!(get(&device, registers::STATUS), 0);
    }
}
