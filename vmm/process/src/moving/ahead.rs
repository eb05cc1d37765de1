//! Maps memory that has arrived into KVM's tables while the source still runs, so that the guest need not do it page by page in the first
//! moments here. Best effort: a pass a second, in slices of 2 MiB, until the machine is to be restored.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use rebec_devices::Threads;
use rebec_kvm::{Populated, Ram};

/// How long memory arrives before it is looked at again.
const PASS_EVERY: Duration = Duration::from_secs(1);
/// Pages of a slice: what a large page of the host holds.
const SLICE_PAGES: u64 = 512;

/// Maps pages on behalf of a machine that does not run yet; `None` once it runs or is gone.
pub type Populate = Box<dyn FnMut(Range<u64>) -> Option<Populated> + Send>;

/// The thread that does it. Dropped, it ends after its slice.
pub struct Ahead {
    /// Dropped with this: the thread wakes.
    _ends: SyncSender<()>,
    stop: Arc<AtomicBool>,
}

impl Ahead {
    pub fn start(threads: &dyn Threads, ram: Ram, populate: Populate) -> io::Result<(Self, JoinHandle<()>)> {
        let (ends, end) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let work = Work { ram, populate, stop: stop.clone(), mapped: HashMap::new() };
        let thread = threads.spawn("move-ahead", Box::new(move || work.run(&end)))?;
        Ok((Self { _ends: ends, stop }, thread))
    }

    /// The switch begins: nothing more is mapped after the slice under way.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Work {
    ram: Ram,
    populate: Populate,
    stop: Arc<AtomicBool>,
    /// How many populated pages each slice had when it was mapped.
    mapped: HashMap<u64, u64>,
}

impl Work {
    fn run(mut self, end: &Receiver<()>) {
        while end.recv_timeout(PASS_EVERY) == Err(RecvTimeoutError::Timeout) && self.pass() {}
        log::info!("{} pieces of memory, 2 MiB each, were mapped ahead", self.mapped.len());
    }

    /// Maps what has arrived since the last pass. Whether another one makes sense.
    fn pass(&mut self) -> bool {
        let ranges = match self.ram.populated() {
            Ok(ranges) => ranges,
            Err(error) => {
                log::warn!("{error}: memory is not mapped ahead");
                return false;
            }
        };
        for (slice, ranges) in by_slice(ranges) {
            let count = ranges.iter().map(|range| range.end - range.start).sum();
            if self.mapped.get(&slice) != Some(&count) {
                if !ranges.into_iter().all(|range| self.map(range)) {
                    return false;
                }
                self.mapped.insert(slice, count);
            }
        }
        true
    }

    /// Maps pages of one slice, kicks notwithstanding. Whether to go on.
    fn map(&mut self, mut range: Range<u64>) -> bool {
        while !self.stop.load(Ordering::Relaxed) {
            match (self.populate)(range.clone()) {
                Some(Populated::Done) => return true,
                Some(Populated::Until(page)) => range.start = page,
                Some(Populated::Unsupported) => {
                    log::info!("this KVM maps no memory ahead: it lacks KVM_CAP_PRE_FAULT_MEMORY (Linux 6.11)");
                    return false;
                }
                None => return false,
            }
        }
        false
    }
}

fn by_slice(ranges: Vec<Range<u64>>) -> BTreeMap<u64, Vec<Range<u64>>> {
    let mut slices: BTreeMap<u64, Vec<Range<u64>>> = BTreeMap::new();
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let end = (at + 1).next_multiple_of(SLICE_PAGES).min(range.end);
            slices.entry(at / SLICE_PAGES).or_default().push(at..end);
            at = end;
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Work over 8 MiB, and what it has asked for.
    fn work(answer: fn(&Range<u64>) -> Option<Populated>) -> (Work, Arc<Mutex<Vec<Range<u64>>>>) {
        let asked = Arc::new(Mutex::new(vec![]));
        let keep = asked.clone();
        let populate = move |range: Range<u64>| {
            keep.lock().unwrap().push(range.clone());
            answer(&range)
        };
        let (ram, stop) = (Ram::new(8 << 20).unwrap(), Arc::default());
        (Work { ram, populate: Box::new(populate), stop, mapped: HashMap::new() }, asked)
    }

    fn write(work: &Work, pages: Range<u64>) {
        pages.for_each(|page| work.ram.write_page(page, &[1; 4096]).unwrap());
    }

    #[test]
    fn what_has_arrived_is_mapped_once_and_what_has_not_never() {
        let (mut work, asked) = work(|_| Some(Populated::Done));
        write(&work, 500..600);
        write(&work, 1100..1101);
        assert!(work.pass());
        assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), [500..512, 512..600, 1100..1101]);
        assert!(work.pass());
        assert!(asked.lock().unwrap().is_empty());
        write(&work, 1102..1103);
        assert!(work.pass());
        assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), [1100..1101, 1102..1103]);
    }

    #[test]
    fn kicks_cost_a_repetition_and_ends_are_ends() {
        let (mut kicked, asked) = work(|range| Some(if range.start == 3 { Populated::Until(7) } else { Populated::Done }));
        write(&kicked, 3..9);
        assert!(kicked.pass());
        assert_eq!(*asked.lock().unwrap(), [3..9, 7..9]);
        for answer in [|_: &Range<u64>| None, |_: &Range<u64>| Some(Populated::Unsupported)] {
            let (mut work, asked) = work(answer);
            write(&work, 3..9);
            write(&work, 600..601);
            assert!(!work.pass());
            assert_eq!(asked.lock().unwrap().len(), 1);
        }
        kicked.stop.store(true, Ordering::Relaxed);
        write(&kicked, 600..601);
        assert!(!kicked.pass());
        assert_eq!(asked.lock().unwrap().len(), 2);
    }
}
