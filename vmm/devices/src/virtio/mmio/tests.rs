//! The transport by itself, over an entropy source: its saved form, byte by byte, and rules that no well-behaved driver meets.

use vm_memory::GuestAddress;

use super::*;
use crate::{PlainThreads, rng::RngDevice};

fn transport() -> MmioTransport {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let device = Box::new(RngDevice::new(io::repeat(1)));
    MmioTransport::new(device, ram, EventFd::new(EFD_NONBLOCK).unwrap(), Arc::new(PlainThreads)).unwrap()
}

fn set(transport: &MmioTransport, writes: &[(u32, u32)]) {
    for (offset, value) in writes {
        transport.write((*offset).into(), &value.to_le_bytes());
    }
}

fn get(transport: &MmioTransport, offset: u32) -> u32 {
    let mut data = [0; 4];
    transport.read(offset.into(), &mut data);
    u32::from_le_bytes(data)
}

const NEGOTIATE: [(u32, u32); 5] = [
    (offsets::VIRTIO_MMIO_STATUS, 3),
    (offsets::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
    (offsets::VIRTIO_MMIO_DRIVER_FEATURES, 1),
    (offsets::VIRTIO_MMIO_STATUS, 11),
    (offsets::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1),
];

const PLACE: [(u32, u32); 5] = [
    (offsets::VIRTIO_MMIO_QUEUE_NUM, 8),
    (offsets::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000),
    (offsets::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000),
    (offsets::VIRTIO_MMIO_QUEUE_USED_LOW, 0x3000),
    (offsets::VIRTIO_MMIO_QUEUE_READY, 1),
];

#[test]
fn golden_bytes_of_a_running_device() {
    let device = transport();
    set(&device, &NEGOTIATE);
    set(&device, &PLACE);
    set(&device, &[(offsets::VIRTIO_MMIO_STATUS, 15)]);
    let part = device.save(5);
    let expected = [
        &[4, 15, 0, 0, 1, 1][..],                             // kind, status, needs reset, interrupt status, feature pages
        &[0x80, 0x80, 0x80, 0x80, 0x10, 0],                   // driver features: bit 32; selected queue
        &[1, 8, 1, 0x80, 0x20, 0x80, 0x40, 0x80, 0x60, 0, 0], // one queue: size, ready, three addresses, two indexes
        &[0],                                                 // device part: none
    ]
    .concat();
    assert_eq!(
        (part.kind, part.index, part.version, part.bytes.as_slice()),
        (rebec_vmm_saved::PartKind::Virtio, 5, 1, expected.as_slice())
    );
    let other = transport();
    other.restore(&part).unwrap();
    assert_eq!(other.save(5), part);
}

#[test]
fn saved_states_that_cannot_be_are_refused_with_a_reason() {
    let device = transport();
    set(&device, &NEGOTIATE);
    set(&device, &PLACE);
    set(&device, &[(offsets::VIRTIO_MMIO_STATUS, 15)]);
    let part = device.save(0);
    for (at, value, reason) in [
        (0, 2, "type 2"),
        (1, 0x1f, "cannot be"),
        (1, 7, "cannot be"),
        (3, 8, "interrupt status"),
        (10, 0x18, "features"),
        (13, 9, "queue 0"),
        (15, 0x81, "queue 0"),
    ] {
        let mut bytes = part.bytes.clone();
        bytes[at] = value;
        let refused = transport().restore(&Part { bytes, ..part.clone() }).unwrap_err().to_string();
        assert!(refused.contains(reason), "byte {at}: {refused}");
    }
}

#[test]
fn a_ready_queue_and_negotiated_features_are_final() {
    let device = transport();
    set(&device, &NEGOTIATE);
    set(&device, &PLACE);
    let before = device.save(0);
    set(
        &device,
        &[(offsets::VIRTIO_MMIO_QUEUE_NUM, 4), (offsets::VIRTIO_MMIO_QUEUE_USED_HIGH, 1), (offsets::VIRTIO_MMIO_DRIVER_FEATURES, 0)],
    );
    assert_eq!(device.save(0), before);
}

#[test]
fn a_kick_reaches_the_descriptor_of_its_queue() {
    let device = transport();
    let kicks = device.kicks().unwrap();
    assert_eq!(kicks.iter().map(|(queue, _)| *queue).collect::<Vec<_>>(), [0]);
    set(
        &device,
        &[(offsets::VIRTIO_MMIO_QUEUE_NOTIFY, 0), (offsets::VIRTIO_MMIO_QUEUE_NOTIFY, 1), (offsets::VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX)],
    );
    assert_eq!(kicks[0].1.read().unwrap(), 1);
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
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    let device = Box::new(RngDevice::new(io::repeat(1)));
    let device = MmioTransport::new(device, ram, irq.try_clone().unwrap(), Arc::new(NoThreads)).unwrap();
    for _ in 0..2 {
        set(&device, &NEGOTIATE);
        set(&device, &PLACE);
        set(&device, &[(offsets::VIRTIO_MMIO_STATUS, 15)]);
        assert_eq!(get(&device, offsets::VIRTIO_MMIO_STATUS), 15 | 0x40);
        assert_eq!(irq.read().unwrap(), 1);
        set(&device, &[(offsets::VIRTIO_MMIO_STATUS, 0)]);
        assert_eq!(get(&device, offsets::VIRTIO_MMIO_STATUS), 0);
    }
}
