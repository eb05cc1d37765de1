//! The drivers of a move over real sockets, with real memory, real disks and a real donor; the guest is a thread that
//! writes. No KVM is needed.

#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../src/moving/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the program uses the rest")]
mod moving;

use std::{
    fs::File,
    io,
    net::{TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileExt, MetadataExt},
            net::UnixStream,
        },
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use moving::{Arrived, BaseDigests, Incoming, MovingMachine, Outgoing, donor};
use rebec_bits::BitSet;
use rebec_devices::{
    Threads,
    disk::{BackingName, Disk, ImageFormat},
};
use rebec_kvm::Ram;
use rebec_migrate::{
    MoveId, Record, SourceConfig, VmId,
    ledger::Right,
    message::{DiskShape, Shape},
    page::Key,
};
use rebec_vmm_api::report::{MoveReport, Outcome};

const MEMORY_BYTES: u64 = 64 << 20;
const DISK_BYTES: u64 = (8 << 20) + 512;

struct PlainThreads;

impl Threads for PlainThreads {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name.into()).spawn(body)
    }
}

/// Memory, a disk, and a thread that writes both while it runs.
struct Guest {
    ram: Ram,
    disks: Vec<Arc<Disk>>,
    bases: Vec<Option<Arc<BaseDigests>>>,
    running: Arc<AtomicBool>,
    writer: Mutex<Option<JoinHandle<()>>>,
    writes: Arc<AtomicU64>,
    ledger: Mutex<Vec<Record>>,
    restored: Mutex<Vec<u8>>,
    /// The version of the move protocol that it was last saved for.
    saved_for: AtomicU64,
    period: Duration,
    memory_max_bytes: Option<u64>,
    /// Connections that break when a record is written.
    breaks: Mutex<Option<(Right, Vec<TcpStream>)>>,
}

impl Guest {
    fn empty(period: Duration) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(DISK_BYTES).unwrap();
        Self {
            ram: Ram::new(MEMORY_BYTES).unwrap(),
            disks: vec![Arc::new(open_disk(file))],
            bases: vec![None],
            running: Arc::new(AtomicBool::new(false)),
            writer: Mutex::new(None),
            writes: Arc::default(),
            ledger: Mutex::default(),
            restored: Mutex::default(),
            saved_for: AtomicU64::default(),
            period,
            memory_max_bytes: None,
            breaks: Mutex::default(),
        }
    }

    /// A quarter of the memory populated: random, text-like and zero pages; a disk with data here and there.
    fn filled(period: Duration) -> Self {
        let guest = Self::empty(period);
        for page in (0..guest.ram.pages()).step_by(4) {
            guest.ram.write_page(page, &content(page)).unwrap();
        }
        for unit in (0..DISK_BYTES / 4096).step_by(3) {
            guest.disks[0].write_at(unit * 4096, &content(unit + 7)).unwrap();
        }
        guest.disks[0].write_at(DISK_BYTES - 512, &[9; 512]).unwrap();
        guest
    }

    fn run(&self) {
        self.running.store(true, Ordering::SeqCst);
        let (ram, disk, running, writes, period) =
            (self.ram.clone(), self.disks[0].clone(), self.running.clone(), self.writes.clone(), self.period);
        let body = move || {
            let mut number = 1_u64;
            while running.load(Ordering::SeqCst) {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let page = (number >> 33) % 600 * 4;
                ram.write_page(page, &content(number >> 20)).unwrap();
                if number.is_multiple_of(3) {
                    disk.write_at((number >> 40) % 500 * 4096, &content(number >> 21)).unwrap();
                }
                writes.fetch_add(1, Ordering::SeqCst);
                // The guest's own pace, not a synchronisation.
                std::thread::sleep(period);
            }
        };
        *self.writer.lock().unwrap() = Some(std::thread::spawn(body));
    }

    fn stand_still(&self) {
        self.running.store(false, Ordering::SeqCst);
        if let Some(writer) = self.writer.lock().unwrap().take() {
            writer.join().unwrap();
        }
    }

    fn shape(&self) -> Shape {
        let disks = vec![DiskShape { bytes: DISK_BYTES, read_only: false, base: self.bases[0].as_ref().map(|base| base.name()) }];
        Shape {
            vm: VmId([1; 16]),
            epoch: 3,
            memory_bytes: MEMORY_BYTES,
            vcpus: 1,
            nets: vec![],
            disks,
            cpu_model: vec![],
            memory_max_bytes: self.memory_max_bytes,
        }
    }

    fn rights(&self) -> Vec<Right> {
        self.ledger.lock().unwrap().iter().map(|record| record.right).collect()
    }
}

impl MovingMachine for Guest {
    fn ports(&self) -> Vec<std::net::SocketAddrV4> {
        vec![]
    }

    fn ram(&self) -> &Ram {
        &self.ram
    }
    fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }
    fn bases(&self) -> &[Option<Arc<BaseDigests>>] {
        &self.bases
    }
    fn dirty_log_start(&self) -> anyhow::Result<()> {
        Ok(())
    }
    fn dirty_log_take(&self, pages: &mut BitSet) -> anyhow::Result<()> {
        self.ram.take_device_dirty(pages);
        Ok(())
    }
    fn dirty_log_stop(&self) -> anyhow::Result<()> {
        Ok(())
    }
    fn throttle(&self, _percent: u8) {}
    fn pause(&self) -> anyhow::Result<Instant> {
        self.stand_still();
        Ok(Instant::now())
    }
    fn resume(&self, _epoch: u64) -> anyhow::Result<()> {
        self.run();
        Ok(())
    }
    fn save(&self, version: u16) -> anyhow::Result<Vec<u8>> {
        self.saved_for.store(version.into(), Ordering::SeqCst);
        Ok(b"state".to_vec())
    }
    fn restore(&self, saved: &[u8]) -> anyhow::Result<()> {
        *self.restored.lock().unwrap() = saved.to_vec();
        Ok(())
    }
    fn populator(&self) -> Option<moving::Populate> {
        None
    }
    fn write_ledger(&self, record: Record) -> io::Result<()> {
        self.ledger.lock().unwrap().push(record);
        let mut breaks = self.breaks.lock().unwrap();
        if let Some((right, sockets)) = &*breaks
            && *right == record.right
        {
            sockets.iter().for_each(|socket| socket.shutdown(std::net::Shutdown::Both).unwrap_or_default());
            *breaks = None;
        }
        Ok(())
    }
}

fn open_disk(file: File) -> Disk {
    Disk::open("test", file, vec![], false).unwrap()
}

fn content(number: u64) -> [u8; 4096] {
    let mut page = [0; 4096];
    match number % 3 {
        0 => page.iter_mut().enumerate().for_each(|(at, byte)| *byte = b"the quick brown fox "[at % 20] ^ (number as u8 & 3)),
        1 => {
            let mut word = number | 1;
            for chunk in page.chunks_exact_mut(8) {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                chunk.copy_from_slice(&word.to_le_bytes());
            }
        }
        _ => {}
    }
    page
}

fn connections(to: &TcpListener, streams: usize) -> Vec<OwnedFd> {
    let address = to.local_addr().unwrap();
    (0..=streams).map(|_| TcpStream::connect(address).unwrap().into()).collect()
}

fn outgoing(guest: &Guest, streams: usize) -> Outgoing {
    Outgoing::new(SourceConfig {
        move_id: MoveId([5; 16]),
        key: Key([6; 32]),
        shape: guest.shape(),
        streams,
        downtime_max: Duration::from_millis(300),
        bytes_per_second_max: None,
    })
}

/// Moves a running guest; returns both sides, still, and the report.
fn move_guest(streams: usize, donors: Vec<UnixStream>) -> (Guest, Guest, MoveReport) {
    let source = Guest::filled(Duration::from_micros(200));
    source.run();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let passed = connections(&listener, streams);
    let incoming = Incoming::new(listener, donors, Arc::new(PlainThreads));
    let receiving = std::thread::spawn(move || {
        let built = |_: &Shape| Ok(Guest::empty(Duration::from_millis(1)));
        incoming.run(built, |reason| panic!("waits: {reason}")).unwrap()
    });
    let report = outgoing(&source, streams).run(&source, &PlainThreads, passed, |_| {}).unwrap();
    let target = match receiving.join().unwrap() {
        Arrived::Running { machine, epoch } => {
            assert_eq!(epoch, 4);
            machine
        }
        Arrived::Ended { reason } => panic!("{reason}"),
    };
    assert_eq!(report.outcome, Outcome::Moved, "{report:?}");
    (source, target, report)
}

fn assert_same(source: &Guest, target: &Guest, changed_after: bool) {
    let (mut mine, mut theirs) = ([0; 4096], [0; 4096]);
    for page in 0..source.ram.pages() {
        source.ram.read_page(page, &mut mine).unwrap();
        target.ram.read_page(page, &mut theirs).unwrap();
        assert!(changed_after || mine == theirs, "page {page}");
    }
    let mut disks = [vec![0; DISK_BYTES as usize], vec![0; DISK_BYTES as usize]];
    source.disks[0].read_at(0, &mut disks[0]).unwrap();
    target.disks[0].read_at(0, &mut disks[1]).unwrap();
    assert!(disks[0] == disks[1], "disks differ");
    assert_eq!(*target.restored.lock().unwrap(), b"state");
}

#[test]
fn a_guest_moves_while_it_writes() {
    for streams in [1, 4] {
        let (source, target, report) = move_guest(streams, vec![]);
        // The target's guest has begun to write: it must stop before anything is compared, and may have changed little.
        target.stand_still();
        assert!(source.writes.load(Ordering::SeqCst) > 0);
        assert_eq!(source.rights(), [Right::Granted]);
        assert_eq!(target.rights(), [Right::Prepared, Right::Running]);
        let counts = report.pages;
        assert!(counts.zero + counts.digest + counts.compressed + counts.raw >= 4096, "{report:?}");
        assert!(report.clusters.compressed + report.clusters.raw > 0, "{report:?}");
        assert!(report.downtime_ms < 2000, "{report:?}");
    }
}

#[test]
fn what_arrives_is_what_was_there() {
    let source = Guest::filled(Duration::from_micros(200));
    source.run();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let passed = connections(&listener, 2);
    let incoming = Incoming::new(listener, vec![], Arc::new(PlainThreads));
    let receiving = std::thread::spawn(move || {
        // A guest that never writes: what arrived stays to be compared.
        let built = |_: &Shape| Ok(Guest::empty(Duration::from_secs(3600)));
        incoming.run(built, |_| {}).unwrap()
    });
    outgoing(&source, 2).run(&source, &PlainThreads, passed, |_| {}).unwrap();
    let Arrived::Running { machine, .. } = receiving.join().unwrap() else { panic!("did not arrive") };
    // Its one write happens at once, to page and unit numbers that are known: put back what the source has.
    while machine.writes.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let number = 6_364_136_223_846_793_005_u64.wrapping_add(1_442_695_040_888_963_407);
    let mut page = [0; 4096];
    source.ram.read_page((number >> 33) % 600 * 4, &mut page).unwrap();
    machine.ram.write_page((number >> 33) % 600 * 4, &page).unwrap();
    if number.is_multiple_of(3) {
        source.disks[0].read_at((number >> 40) % 500 * 4096, &mut page).unwrap();
        machine.disks[0].write_at((number >> 40) % 500 * 4096, &page).unwrap();
    }
    assert_same(&source, &machine, false);
}

#[test]
fn a_donor_on_the_host_saves_the_bytes() {
    let like = Guest::filled(Duration::from_millis(1));
    let (near, far) = UnixStream::pair().unwrap();
    let ram = like.ram.clone();
    let lending = std::thread::spawn(move || donor::serve(&ram, &donor::Judges::start(&PlainThreads, &ram).unwrap(), near));
    let (_, target, report) = move_guest(2, vec![far]);
    target.stand_still();
    assert!(report.pages.digest > 2000, "{report:?}");
    lending.join().unwrap().unwrap();
}

#[test]
fn a_cancel_leaves_the_guest_running() {
    let source = Guest::filled(Duration::from_micros(200));
    source.run();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let passed = connections(&listener, 1);
    let incoming = Incoming::new(listener, vec![], Arc::new(PlainThreads));
    let receiving = std::thread::spawn(move || incoming.run(|_| Ok(Guest::empty(Duration::from_millis(1))), |_| {}).unwrap());
    let mut moved = outgoing(&source, 1);
    let canceller = moved.canceller();
    let report = moved.run(&source, &PlainThreads, passed, move |_| canceller.cancel()).unwrap();
    assert_eq!(report.outcome, Outcome::Failed);
    assert!(report.reason.unwrap().contains("cancelled"));
    let Arrived::Ended { reason } = receiving.join().unwrap() else { panic!("it arrived") };
    // The word comes on one connection and the end of the pages on another: either may be first.
    assert!(reason.contains("cancelled") || reason.contains("closed by the source"), "{reason}");
    let before = source.writes.load(Ordering::SeqCst);
    while source.writes.load(Ordering::SeqCst) == before {
        std::thread::yield_now();
    }
    source.stand_still();
}

#[test]
fn a_refusal_reaches_the_user_in_words() {
    let source = Guest::filled(Duration::from_micros(200));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let passed = connections(&listener, 3);
    let incoming = Incoming::new(listener, vec![], Arc::new(PlainThreads));
    let receiving =
        std::thread::spawn(move || incoming.run(|_| Err::<Guest, _>("disk 0 has another size".to_owned()), |_| {}).map(drop).unwrap());
    let report = outgoing(&source, 3).run(&source, &PlainThreads, passed, |_| {}).unwrap();
    receiving.join().unwrap();
    assert_eq!(report.reason.as_deref(), Some("the target refuses: disk 0 has another size"));
}

#[test]
fn what_does_not_speak_the_protocol_is_dropped() {
    let source = Guest::filled(Duration::from_micros(200));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Each would be waited for in turn, ten seconds long, were they not heard side by side.
    let silent: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
    let began = Instant::now();
    let mut foreign = TcpStream::connect(address).unwrap();
    io::Write::write_all(&mut foreign, b"GET / HTTP/1.1\r\nHost: example\r\n\r\n").unwrap();
    let passed = connections(&listener, 1);
    let incoming = Incoming::new(listener, vec![], Arc::new(PlainThreads));
    let receiving = std::thread::spawn(move || incoming.run(|_| Ok(Guest::empty(Duration::from_millis(1))), |_| {}).unwrap());
    let report = outgoing(&source, 1).run(&source, &PlainThreads, passed, |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Moved, "{report:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "the silent were waited for");
    drop(silent);
    let Arrived::Running { machine, .. } = receiving.join().unwrap() else { panic!("did not arrive") };
    machine.stand_still();
}

/// Moves a guest that stands still between programs that speak these; what came of it, and what the source was asked to save for.
fn between(source_speaks: &str, target_speaks: &str, memory_max_bytes: Option<u64>) -> Result<(MoveReport, u16), String> {
    let source = Guest { memory_max_bytes, ..Guest::filled(Duration::from_micros(200)) };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let passed = connections(&listener, 1);
    let stop = listener.try_clone().unwrap();
    let incoming = Incoming::new(listener, vec![], Arc::new(PlainThreads)).speaking(target_speaks.parse().unwrap());
    let receiving = std::thread::spawn(move || incoming.run(|_| Ok(Guest::empty(Duration::from_millis(1))), |_| {}));
    let mut outgoing = outgoing(&source, 1).speaking(source_speaks.parse().unwrap());
    let moved = outgoing.run(&source, &PlainThreads, passed, |_| {});
    if moved.is_err() {
        rustix::net::shutdown(&stop, rustix::net::Shutdown::Both).unwrap();
    }
    let arrived = receiving.join().unwrap();
    if let Ok(Arrived::Running { machine, .. }) = arrived {
        machine.stand_still();
    }
    moved.map(|report| (report, source.saved_for.load(Ordering::SeqCst) as u16)).map_err(|error| format!("{error:#}"))
}

#[test]
fn programs_of_neighbouring_versions_move_vms_both_ways_and_others_say_which_is_behind() {
    for (source, target, spoken) in [("3", "3-4", 3), ("3-4", "3", 3), ("3-4", "3-4", 4), ("3-4", "4-5", 4)] {
        let (report, saved_for) = between(source, target, None).unwrap();
        assert_eq!((report.outcome, saved_for), (Outcome::Moved, spoken), "{source} to {target}: {report:?}");
    }
    let refused = between("3", "4-5", None).unwrap_err();
    assert!(refused.contains("speaks version 4-5 of the move protocol, this one 3: upgrade this host"), "{refused}");
    let refused = between("4-5", "3", None).unwrap_err();
    assert!(refused.contains("speaks version 3 of the move protocol, this one 4-5: upgrade the other host"), "{refused}");
}

#[test]
fn a_vm_whose_memory_changes_goes_where_that_is_known_and_a_side_that_is_older_is_named() {
    assert_eq!(between("3-4", "3-4", Some(MEMORY_BYTES)).unwrap().0.outcome, Outcome::Moved);
    let refused = between("3-4", "3", Some(MEMORY_BYTES)).unwrap_err();
    assert!(refused.contains("memory changes while it runs needs 4: upgrade the other host"), "{refused}");
}

/// The link breaks when one side writes `right`; both wait, connect again, and the VM has moved.
fn broken_at(right: Right) {
    let source = Guest::filled(Duration::from_micros(200));
    source.run();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.try_clone().unwrap();
    let passed = connections(&listener, 2);
    let copies = passed.iter().map(|socket| TcpStream::from(socket.try_clone().unwrap())).collect();
    let target = Guest::empty(Duration::from_millis(1));
    let side = if right == Right::Granted { &source } else { &target };
    *side.breaks.lock().unwrap() = Some((right, copies));
    let incoming = Incoming::new(listener, vec![], Arc::new(PlainThreads));
    let mut built = Some(target);
    let receiving = std::thread::spawn(move || incoming.run(|_| Ok(built.take().unwrap()), |_| {}).unwrap());
    let mut moved = outgoing(&source, 2);
    let report = moved.run(&source, &PlainThreads, passed, |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Waiting, "{report:?}");
    assert!(!source.running.load(Ordering::SeqCst));
    let report = moved.run(&source, &PlainThreads, connections(&address, 2), |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Moved, "{report:?}");
    let Arrived::Running { machine, .. } = receiving.join().unwrap() else { panic!("did not arrive") };
    machine.stand_still();
    assert_eq!(machine.rights(), [Right::Prepared, Right::Running]);
    assert_eq!(source.rights(), [Right::Granted]);
}

#[test]
fn a_link_that_breaks_before_the_grant_arrives_only_delays_it() {
    broken_at(Right::Granted);
}

#[test]
fn a_link_that_breaks_before_the_answer_arrives_only_delays_it() {
    broken_at(Right::Running);
}

#[test]
fn a_link_that_breaks_before_the_grant_costs_nothing() {
    let source = Guest::filled(Duration::from_micros(200));
    source.run();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.try_clone().unwrap();
    let passed = connections(&listener, 1);
    let target = Guest::empty(Duration::from_millis(1));
    let copies = passed.iter().map(|socket| TcpStream::from(socket.try_clone().unwrap())).collect();
    *target.breaks.lock().unwrap() = Some((Right::Prepared, copies));
    let incoming = Incoming::new(listener, vec![], Arc::new(PlainThreads));
    let mut built = Some(target);
    let receiving = std::thread::spawn(move || incoming.run(|_| Ok(built.take().unwrap()), |_| {}).unwrap());
    let report = outgoing(&source, 1).run(&source, &PlainThreads, passed, |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Failed, "{report:?}");
    assert!(source.running.load(Ordering::SeqCst), "the guest runs on");
    // The next move finds the old target, which lets go of what it was never granted.
    let report = outgoing(&source, 1).run(&source, &PlainThreads, connections(&address, 1), |_| {}).unwrap();
    assert!(report.reason.unwrap().contains("older move"));
    let Arrived::Ended { reason } = receiving.join().unwrap() else { panic!("it ran") };
    assert!(reason.contains("runs on"), "{reason}");
    source.stand_still();
}

/// A base of data, zeros and data, with a short last unit.
fn base_file(seed: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK_BYTES).unwrap();
    for unit in (0..DISK_BYTES / 4096).filter(|unit| !(256..512).contains(unit)) {
        file.write_all_at(&content(seed + unit * 3 + 1), unit * 4096).unwrap();
    }
    file.write_all_at(&[9; 512], DISK_BYTES - 512).unwrap();
    file
}

/// A guest with a new layer over this base, and its kept digests.
fn on_base(below: &File, period: Duration) -> Guest {
    let layer = tempfile::tempfile().unwrap();
    let backing = BackingName { name: "base".into(), format: Some(ImageFormat::Raw) };
    Disk::create_qcow2("layer", &layer, DISK_BYTES, Some(&backing)).unwrap();
    let mut digests = tempfile::tempfile().unwrap();
    moving::write_digests(&open_disk(below.try_clone().unwrap()), DISK_BYTES, &mut digests).unwrap();
    let disk = Disk::open("layer", layer, vec![below.try_clone().unwrap()], false).unwrap();
    let bases = vec![Some(Arc::new(BaseDigests::from_file(digests).unwrap()))];
    Guest { disks: vec![Arc::new(disk)], bases, ..Guest::empty(period) }
}

/// Moves a guest that writes nothing meanwhile; the content of both disks is compared.
fn move_on_base(source: &Guest, target: Guest) -> MoveReport {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let passed = connections(&listener, 2);
    let incoming = Incoming::new(listener, vec![], Arc::new(PlainThreads));
    let mut built = Some(target);
    let receiving = std::thread::spawn(move || incoming.run(|_| Ok(built.take().unwrap()), |_| {}).unwrap());
    let report = outgoing(source, 2).run(source, &PlainThreads, passed, |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Moved, "{report:?}");
    let Arrived::Running { machine, .. } = receiving.join().unwrap() else { panic!("did not arrive") };
    let read = |guest: &Guest| {
        let mut bytes = vec![0; DISK_BYTES as usize];
        guest.disks[0].read_at(0, &mut bytes).unwrap();
        bytes
    };
    assert!(read(source) == read(&machine), "disks differ");
    report
}

#[test]
fn of_a_base_that_both_sides_have_only_what_was_written_over_it_travels() {
    // The first write of an arrived guest goes to memory alone.
    let still = Duration::from_secs(3600);
    let below = base_file(0);
    let source = on_base(&below, still);
    let disk = &source.disks[0];
    for unit in [3, 200, 400] {
        disk.write_at(unit * 4096, &content(unit * 3 + 7)).unwrap();
    }
    // Zeros over data, a whole cluster of them.
    disk.discard_at(640 * 4096, 16 * 4096).unwrap();
    // A page of memory with what only the base holds.
    let mut page = [0; 4096];
    disk.read_at(1000 * 4096, &mut page).unwrap();
    source.ram.write_page(5, &page).unwrap();

    let report = move_on_base(&source, on_base(&below, still));
    let (units, clusters) = (DISK_BYTES.div_ceil(4096), report.clusters);
    // Three clusters of sixteen units were written, one was discarded.
    assert_eq!(clusters.on_base, units - 4 * 16, "{report:?}");
    assert_eq!(report.pages.digest, 1, "{report:?}");
    assert!(report.wire_bytes < 40 << 10, "{report:?}");

    let written = on_base(&below, still);
    written.disks[0].write_at(0, &[1; 512]).unwrap();
    for (target, why) in [(on_base(&base_file(1), still), "another base"), (written, "a layer that was written")] {
        let report = move_on_base(&source, target);
        assert_eq!(report.clusters.on_base, 0, "{why}: {report:?}");
    }
}

#[test]
fn digests_of_zeros_take_no_room() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 38).unwrap();
    file.write_all_at(&[7; 4096], 1 << 37).unwrap();
    let mut digests = tempfile::tempfile().unwrap();
    let refused = moving::write_digests(&open_disk(file.try_clone().unwrap()), 16, &mut digests);
    assert!(refused.unwrap_err().to_string().contains("too much comes out"));
    let mut digests = tempfile::tempfile().unwrap();
    moving::write_digests(&open_disk(file), 1 << 16, &mut digests).unwrap();
    let metadata = digests.metadata().unwrap();
    assert_eq!(metadata.len(), (1 << 26) * 32 + 48);
    assert!(metadata.blocks() * 512 < 64 << 10, "{} blocks", metadata.blocks());
    let base = BaseDigests::from_file(digests).unwrap();
    let found = base.wire_digests(&Key([6; 32]), (1 << 25) - 1, 3).unwrap();
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn digests_that_were_cut_off_are_refused() {
    let mut digests = tempfile::tempfile().unwrap();
    moving::write_digests(&open_disk(base_file(0)), DISK_BYTES, &mut digests).unwrap();
    let length = digests.metadata().unwrap().len();
    assert_eq!(length, DISK_BYTES.div_ceil(4096) * 32 + 48);
    digests.set_len(length - 1).unwrap();
    assert!(BaseDigests::from_file(digests.try_clone().unwrap()).unwrap_err().to_string().contains("not a file of digests"));
    digests.set_len(7).unwrap();
    assert!(BaseDigests::from_file(digests).is_err());
}
