//! A depot among holders that lie, stall, drip, break off and say too much. Time is the test's: half a minute passes at once.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::bail;
use futures_util::stream;
use tokio::sync::Notify;

use super::*;
use crate::lock;

/// What a holder does when it is asked.
#[derive(Clone)]
enum Way {
    /// Sends what it has.
    Honest,
    /// Sends other bytes, as many.
    Garbage,
    /// Sends a half and breaks off.
    Half,
    /// Sends a half of other bytes and breaks off.
    GarbageHalf,
    /// Sends a half and no more, and stays connected.
    Stall,
    /// Never answers.
    Mute,
    /// Sends so many bytes every ten seconds.
    Drip(usize),
    /// Sends what it has and goes on with garbage, in the same piece or another.
    TooMuch { same_piece: bool },
    /// Waits for a word, then sends what it has.
    Gate(Arc<Notify>),
    /// Waits for a word, then fails.
    Fail(Arc<Notify>),
}

struct Fake {
    name: String,
    content: Vec<u8>,
    way: Way,
    asked: Mutex<Vec<u64>>,
}

impl Holder for Fake {
    fn key(&self) -> Key {
        Name(*blake3::hash(self.name.as_bytes()).as_bytes())
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read<'a>(&'a self, _: &'a PartRef, from: u64) -> BoxFuture<'a, Result<Pieces>> {
        Box::pin(async move {
            lock(&self.asked).push(from);
            let right = self.content[from as usize..].to_vec();
            let wrong: Vec<u8> = right.iter().map(|byte| !byte).collect();
            let half = right.len() / 2;
            let cut = || stream::iter([Err(anyhow::anyhow!("connection reset"))]);
            Ok(match self.way.clone() {
                Way::Honest => pieces(right).boxed(),
                Way::Garbage => pieces(wrong).boxed(),
                Way::Half => pieces(right[..half].to_vec()).chain(cut()).boxed(),
                Way::GarbageHalf => pieces(wrong[..half].to_vec()).chain(cut()).boxed(),
                Way::Stall => pieces(right[..half].to_vec()).chain(stream::pending()).boxed(),
                Way::Mute => std::future::pending().await,
                Way::Drip(bytes) => drips(right, bytes).boxed(),
                Way::TooMuch { same_piece: true } => {
                    stream::iter([right[..half].to_vec(), [&right[half..], b"EVIL"].concat()].map(|piece| Ok(piece.into()))).boxed()
                }
                Way::TooMuch { same_piece: false } => pieces(right).chain(stream::repeat_with(|| Ok(Bytes::from_static(b"EVIL")))).boxed(),
                Way::Gate(gate) => {
                    gate.notified().await;
                    pieces(right).boxed()
                }
                Way::Fail(gate) => {
                    gate.notified().await;
                    bail!("it is on fire")
                }
            })
        })
    }
}

fn pieces(bytes: Vec<u8>) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    let pieces: Vec<_> = bytes.chunks(60_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces)
}

fn drips(bytes: Vec<u8>, each: usize) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    let pieces: Vec<_> = bytes.chunks(each).map(Bytes::copy_from_slice).collect();
    stream::iter(pieces).then(|piece| async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok(piece)
    })
}

struct Bench {
    folder: tempfile::TempDir,
    depot: Arc<Depot>,
    content: Vec<u8>,
    part: PartRef,
}

impl Bench {
    fn new() -> Self {
        Self::with(3_000_001)
    }

    fn with(bytes: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..bytes).map(|n| (n / 251) as u8 ^ n as u8).collect();
        let part = PartRef { digest: Name(*blake3::hash(&content).as_bytes()), bytes: content.len() as u64 };
        Self { depot: Arc::new(Depot::open(folder.path()).unwrap()), folder, content, part }
    }

    fn holder(&self, name: &str, way: Way) -> Arc<Fake> {
        Arc::new(Fake { name: name.into(), content: self.content.clone(), way, asked: Mutex::default() })
    }

    async fn fetch(&self, holders: &[&Arc<Fake>]) -> Result<(), ApiError> {
        self.depot.fetch(&self.part, &as_holders(holders), |_, _, _| {}).await
    }

    /// Asks beside the test.
    fn begin(&self, holders: &[&Arc<Fake>]) -> (tokio::task::JoinHandle<Result<(), ApiError>>, Arc<AtomicUsize>) {
        let (depot, part, holders, seen) = (self.depot.clone(), self.part, as_holders(holders), Arc::new(AtomicUsize::new(0)));
        let progress = seen.clone();
        let task = async move {
            let seen = |_: &str, done: u64, _: u64| progress.store(done as usize, Ordering::Relaxed);
            depot.fetch(&part, &holders, seen).await
        };
        (tokio::spawn(task), seen)
    }

    fn is_whole(&self) -> bool {
        fs::read(self.depot.path(&self.part.digest)).is_ok_and(|bytes| bytes == self.content)
    }

    /// All names in the depot but the part's.
    fn others(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path().join("parts")).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).filter(|name| *name != self.part.digest.to_string()).collect()
    }
}

fn as_holders(holders: &[&Arc<Fake>]) -> Vec<Arc<dyn Holder>> {
    holders.iter().map(|holder| Arc::clone(holder) as Arc<dyn Holder>).collect()
}

fn asked(holder: &Fake) -> Vec<u64> {
    lock(&holder.asked).clone()
}

/// Lets all tasks get as far as they can without time.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_what_is_on_its_way_shares_the_flight() {
    let (bench, gate) = (Bench::new(), Arc::new(Notify::new()));
    let holder = bench.holder("a", Way::Gate(gate.clone()));
    let flights = [bench.begin(&[&holder]), bench.begin(&[&holder]), bench.begin(&[])];
    settle().await;
    gate.notify_one();
    for (task, seen) in flights {
        task.await.unwrap().unwrap();
        assert!(seen.load(Ordering::Relaxed) > 0, "an asker saw no progress");
    }
    assert_eq!(asked(&holder), [0]);
    assert!(bench.is_whole() && bench.others().is_empty(), "{:?}", bench.others());
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_failed_is_failed_for_all_and_begun_anew_by_the_next() {
    let (bench, gate) = (Bench::new(), Arc::new(Notify::new()));
    let holder = bench.holder("a", Way::Fail(gate.clone()));
    let flights = [bench.begin(&[&holder]), bench.begin(&[&holder])];
    settle().await;
    gate.notify_one();
    for (task, _) in flights {
        let error = task.await.unwrap().unwrap_err();
        assert_eq!(error.details, ["a: it is on fire"], "{error}");
    }
    assert_eq!(asked(&holder), [0]);
    gate.notify_one();
    assert!(bench.fetch(&[&holder]).await.is_err());
    assert_eq!(asked(&holder), [0, 0]);
    bench.fetch(&[&bench.holder("b", Way::Honest)]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_joins_brings_holders_along() {
    let bench = Bench::new();
    let (mute, honest) = (bench.holder("a", Way::Mute), bench.holder("b", Way::Honest));
    let (first, _) = bench.begin(&[&mute]);
    settle().await;
    bench.fetch(&[&honest]).await.unwrap();
    first.await.unwrap().unwrap();
    assert!(bench.is_whole());
}

#[tokio::test(start_paused = true)]
async fn who_stalls_is_left_and_the_next_goes_on_from_there() {
    for way in [Way::Stall, Way::Half] {
        let bench = Bench::new();
        let (first, second) = (bench.holder("a", way), bench.holder("b", Way::Honest));
        bench.fetch(&[&first, &second]).await.unwrap();
        assert_eq!(asked(&second), [bench.part.bytes / 2]);
        assert!(bench.is_whole() && bench.others().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_had_come_is_gone_on_with_by_a_later_flight() {
    let bench = Bench::new();
    let (half, honest) = (bench.holder("a", Way::Half), bench.holder("b", Way::Honest));
    let error = bench.fetch(&[&half]).await.unwrap_err();
    assert!(error.details[0].contains("connection reset"), "{error:?}");
    let reopened = Depot::open(bench.folder.path()).unwrap();
    reopened.fetch(&bench.part, &as_holders(&[&honest]), |_, _, _| {}).await.unwrap();
    assert_eq!(asked(&honest), [bench.part.bytes / 2]);
    assert!(bench.is_whole());
}

#[tokio::test(start_paused = true)]
async fn who_drips_is_left_and_sooner_where_there_is_another() {
    let bench = Bench::with(300_000);
    // 60,000 bytes in half a minute.
    let drip = bench.holder("a", Way::Drip(20_000));
    let error = bench.fetch(&[&drip]).await.unwrap_err();
    assert!(error.details[0].contains("in 30 s"), "{error:?}");
    // 90,000: a slow link, if it is the only one.
    let slow = bench.holder("b", Way::Drip(30_000));
    bench.fetch(&[&slow]).await.unwrap();
    let bench = Bench::with(300_000);
    let (slow, honest) = (bench.holder("b", Way::Drip(30_000)), bench.holder("c", Way::Honest));
    bench.fetch(&[&slow, &honest]).await.unwrap();
    assert_eq!(asked(&honest).len(), 1);
    assert!(asked(&honest)[0] > 0 && bench.is_whole());
}

#[tokio::test(start_paused = true)]
async fn what_a_liar_sent_is_thrown_away_and_it_is_not_asked_again() {
    let bench = Bench::new();
    let (liar, honest) = (bench.holder("a", Way::Garbage), bench.holder("b", Way::Honest));
    bench.fetch(&[&liar, &honest]).await.unwrap();
    assert_eq!((asked(&liar), asked(&honest)), (vec![0], vec![0]));
    assert!(bench.is_whole() && bench.others().is_empty());
    let bench = Bench::new();
    let error = bench.fetch(&[&bench.holder("a", Way::Garbage)]).await.unwrap_err();
    assert!(error.details[0].contains("another hash"), "{error:?}");
    assert!(!bench.depot.has(&bench.part.digest) && bench.others().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_liar_who_breaks_off_does_not_spoil_what_others_send() {
    let bench = Bench::new();
    let (liar, honest) = (bench.holder("a", Way::GarbageHalf), bench.holder("b", Way::Honest));
    bench.fetch(&[&liar, &honest]).await.unwrap();
    assert_eq!((asked(&liar), asked(&honest)), (vec![0], vec![bench.part.bytes / 2, 0]));
    assert!(bench.is_whole());
    // Nor does one that ends what another began; whoever spoke the truth is asked again alone.
    let bench = Bench::new();
    let (stalls, liar) = (bench.holder("a", Way::Half), bench.holder("b", Way::Garbage));
    let error = bench.fetch(&[&stalls, &liar]).await.unwrap_err();
    assert_eq!((asked(&stalls), asked(&liar)), (vec![0, 0], vec![bench.part.bytes / 2, 0]), "{error:?}");
    bench.fetch(&[&bench.holder("c", Way::Honest)]).await.unwrap();
    assert!(bench.is_whole());
}

#[tokio::test(start_paused = true)]
async fn who_says_too_much_changes_nothing() {
    let bench = Bench::new();
    let (half, greedy) = (bench.holder("a", Way::Half), bench.holder("b", Way::TooMuch { same_piece: true }));
    let error = bench.fetch(&[&half, &greedy]).await.unwrap_err();
    assert!(error.details[1].contains("more than"), "{error:?}");
    // What came before it is still there.
    let honest = bench.holder("c", Way::Honest);
    bench.fetch(&[&honest]).await.unwrap();
    assert_eq!(asked(&honest), [bench.part.bytes / 2]);
}

/// Descriptors of this process by which a file can be written.
fn writers(path: &Path) -> usize {
    let file = fs::metadata(path).unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten().filter(|entry| {
        let is_it = fs::metadata(entry.path()).is_ok_and(|open| (open.dev(), open.ino()) == (file.dev(), file.ino()));
        let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(entry.file_name())).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
        is_it && flags.is_some_and(|flags| !flags.ends_with('0'))
    });
    open.count()
}

#[tokio::test(start_paused = true)]
async fn nobody_can_write_to_a_part_that_was_verified() {
    let bench = Bench::new();
    let endless = bench.holder("a", Way::TooMuch { same_piece: false });
    // The same digest with another length: a claim of somebody who wants to be there first.
    let claim = PartRef { bytes: bench.part.bytes + 1000, ..bench.part };
    let (depot, stalls) = (bench.depot.clone(), as_holders(&[&bench.holder("evil", Way::Drip(1_400_000))]));
    let evil = tokio::spawn(async move { depot.fetch(&claim, &stalls, |_, _, _| {}).await });
    settle().await;
    bench.fetch(&[&endless]).await.unwrap();
    let path = bench.depot.path(&bench.part.digest);
    assert_eq!(writers(&path), 0);
    assert!(bench.is_whole());
    let inode = fs::metadata(&path).unwrap().ino();
    // All that was under way has come and gone.
    tokio::time::sleep(Duration::from_secs(600)).await;
    evil.await.unwrap().unwrap();
    assert_eq!((writers(&path), fs::metadata(&path).unwrap().ino()), (0, inode));
    assert!(bench.is_whole());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o222, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_of_what_is_here_changes_nothing() {
    let bench = Bench::new();
    let path = bench.depot.path(&bench.part.digest);
    let import = async || bench.depot.take(pieces(bench.content.clone()), Some(bench.part.bytes)).await.unwrap();
    assert_eq!(import().await.digest, bench.part.digest.to_string());
    let inode = fs::metadata(&path).unwrap().ino();
    import().await;
    assert_eq!((fs::metadata(&path).unwrap().ino(), writers(&path)), (inode, 0));
    assert!(bench.is_whole() && bench.others().is_empty(), "{:?}", bench.others());
}

#[tokio::test(start_paused = true)]
async fn the_holders_of_the_own_domain_are_asked_before_the_sender() {
    let bench = Bench::new();
    let [sender, near, far] = ["sender", "near", "far"].map(|name| bench.holder(name, Way::Honest));
    let order = nearest_first(vec![(Nearness::Other, &far), (Nearness::Sender, &sender), (Nearness::Own, &near)]);
    assert_eq!(order.iter().map(|holder| holder.name()).collect::<Vec<_>>(), ["near", "sender", "far"]);
    bench.fetch(&order).await.unwrap();
    assert_eq!((asked(&near).len(), asked(&sender).len() + asked(&far).len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn parts_that_nothing_needs_go_after_an_hour() {
    let bench = Bench::new();
    bench.fetch(&[&bench.holder("a", Way::Honest)]).await.unwrap();
    let (digest, hour) = (bench.part.digest, Duration::from_secs(60 * 60));
    let derived = bench.depot.path(&digest).with_extension("digests");
    fs::write(&derived, b"made of it").unwrap();
    let later = Instant::now() + hour;
    assert!(bench.depot.sweep_at(&[digest].into(), later + hour).is_empty());
    assert!(bench.depot.sweep(&BTreeSet::new()).is_empty() && bench.is_whole());
    // Another VM asks for it: an hour from then.
    std::thread::sleep(Duration::from_millis(20));
    bench.fetch(&[]).await.unwrap();
    assert!(bench.depot.sweep_at(&BTreeSet::new(), later).is_empty());
    assert_eq!(bench.depot.sweep_at(&BTreeSet::new(), later + hour), [digest]);
    assert!(!bench.depot.has(&digest) && !derived.exists());
}

#[tokio::test(start_paused = true)]
async fn what_was_on_its_way_a_day_ago_goes() {
    let bench = Bench::new();
    assert!(bench.fetch(&[&bench.holder("a", Way::Half)]).await.is_err());
    let [name] = &bench.others()[..] else { panic!("{:?}", bench.others()) };
    let path = bench.folder.path().join("parts").join(name);
    bench.depot.sweep(&BTreeSet::new());
    assert!(path.exists());
    let old = std::time::SystemTime::now() - Duration::from_secs(25 * 60 * 60);
    fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let (mute, _) = bench.begin(&[&bench.holder("b", Way::Mute)]);
    settle().await;
    bench.depot.sweep(&BTreeSet::new());
    assert!(path.exists(), "a flight had it");
    mute.await.unwrap().unwrap_err();
    bench.depot.sweep(&BTreeSet::new());
    assert!(!path.exists());
}
