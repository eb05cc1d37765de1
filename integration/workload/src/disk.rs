//! Writes blocks that say what they are, calls fsync, and remembers what was acknowledged. Verification reads the disk,
//! not the cache: every acknowledged write must be there.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    pattern::{BLOCK_BYTES, Label},
    words::{DiskReport, Verified},
};

/// What the writer has been told to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The file.
    pub file: String,
    /// Its blocks.
    pub blocks: u64,
    /// Blocks between two fsyncs.
    pub batch: u64,
    /// Batches a second, at most.
    pub batches_per_second: u32,
    /// Goes into every block.
    pub owner: u64,
}

#[derive(Default)]
struct Progress {
    /// Last version that fsync acknowledged, by place; 0 is none.
    acknowledged: Vec<u64>,
    report: DiskReport,
}

/// A file being written.
pub struct Writer {
    plan: Plan,
    progress: Arc<Mutex<Progress>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Creates the file and starts writing.
    pub fn start(plan: Plan) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&plan.file)?;
        file.set_len(plan.blocks * BLOCK_BYTES as u64)?;
        let blocks = usize::try_from(plan.blocks).map_err(io::Error::other)?;
        if blocks == 0 || plan.batch == 0 {
            return Err(io::Error::other("nothing to write: blocks and batch must be at least 1"));
        }
        let progress = Progress { acknowledged: vec![0; blocks], ..Progress::default() };
        let (progress, stop) = (Arc::new(Mutex::new(progress)), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (plan, progress, stop) = (plan.clone(), Arc::clone(&progress), Arc::clone(&stop));
            thread::spawn(move || {
                if let Err(error) = write(&file, &plan, &progress, &stop) {
                    progress.lock().unwrap_or_else(PoisonError::into_inner).report.failed = Some(error.to_string());
                }
            })
        };
        Ok(Self { plan, progress, stop, thread: Some(thread) })
    }

    /// Stops writing, forgets what the kernel has cached, and reads every acknowledged block.
    pub fn verify(&mut self) -> io::Result<Verified> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        drop_caches()?;
        let file = File::open(&self.plan.file)?;
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let mut verified = Verified { checked: 0, wrong: 0, first: None };
        let mut block = [0; BLOCK_BYTES];
        for (place, version) in (0..).zip(&progress.acknowledged).filter(|(_, version)| **version > 0) {
            verified.checked += 1;
            file.read_exact_at(&mut block, place * BLOCK_BYTES as u64)?;
            let expected = Label { owner: self.plan.owner, place, version: *version };
            if !expected.matches(&block) {
                verified.wrong += 1;
                verified.first.get_or_insert_with(|| format!("block {place} should be {expected:?} and says {:?}", Label::read(&block)));
            }
        }
        Ok(verified)
    }

    /// What was written.
    pub fn report(&self) -> DiskReport {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).report.clone()
    }
}

fn write(file: &File, plan: &Plan, progress: &Mutex<Progress>, stop: &AtomicBool) -> io::Result<()> {
    let every = Duration::from_secs(1) / plan.batches_per_second.max(1);
    let mut version = 0;
    let mut place = 0;
    let mut block = [0; BLOCK_BYTES];
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let mut written = Vec::new();
        for _ in 0..plan.batch {
            version += 1;
            // A stride that visits every place and writes no two neighbours in a row.
            place = (place + 7919) % plan.blocks;
            Label { owner: plan.owner, place, version }.fill(&mut block);
            file.write_all_at(&block, place * BLOCK_BYTES as u64)?;
            written.push((place, version));
        }
        let syncing = Instant::now();
        file.sync_data()?;
        let took = u64::try_from(syncing.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, version) in written {
            let place = usize::try_from(place).map_err(io::Error::other)?;
            progress.acknowledged[place] = version;
        }
        progress.report.acknowledged = version;
        progress.report.longest_sync_ms = progress.report.longest_sync_ms.max(took);
        drop(progress);
        if let Some(early) = every.checked_sub(start.elapsed()) {
            thread::sleep(early);
        }
    }
    Ok(())
}

/// Makes the kernel read from the disk again. Without root it cannot be asked to, and reads come from its cache.
fn drop_caches() -> io::Result<()> {
    match std::fs::write("/proc/sys/vm/drop_caches", "3") {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledged_blocks_are_found_and_a_lost_write_too() {
        let folder = std::env::temp_dir().join(format!("rebec-disk-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("blocks").display().to_string();
        let plan = Plan { file: file.clone(), blocks: 64, batch: 4, batches_per_second: 1000, owner: 5 };
        let mut writer = Writer::start(plan).unwrap();
        while writer.report().acknowledged < 100 {
            thread::sleep(Duration::from_millis(1));
        }
        let good = writer.verify().unwrap();
        assert_eq!((good.checked, good.wrong), (64, 0));
        // An older version of a block is a lost write.
        let mut old = [0; BLOCK_BYTES];
        Label { owner: 5, place: 3, version: 1 }.fill(&mut old);
        OpenOptions::new().write(true).open(&file).unwrap().write_all_at(&old, 3 * BLOCK_BYTES as u64).unwrap();
        let bad = writer.verify().unwrap();
        assert_eq!((bad.checked, bad.wrong), (64, 1));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
