//! A disk under load: self-describing blocks written, flushed and read back through virtio-blk.
//!
//! Every block of 4 KiB carries its number and the count of its writes, and the guest remembers that count for each write the device
//! acknowledged. What is read must be exactly the acknowledged write: a lost, torn, misplaced or stale block is noticed. The memory of counts
//! moves with the VM, so that a disk that moved beside it is held to the same.

use core::slice;

use crate::{
    console::Console,
    memory::Memory,
    options::{DEPTH_MAX, DiskOptions, QUEUES_MAX},
    pattern::{self, BLOCK_MAGIC, PAGE_WORDS, Page},
    say,
    virtio::{Device, Piece, Queue},
};

/// VIRTIO_BLK_F_RO, VIRTIO_BLK_F_FLUSH and VIRTIO_BLK_F_MQ.
const READ_ONLY: u64 = 1 << 5;
const HAS_FLUSH: u64 = 1 << 9;
const HAS_QUEUES: u64 = 1 << 12;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;

const BLOCK_BYTES: u64 = 4096;
const REQUESTS: usize = DEPTH_MAX as usize;
/// At once where nothing is said.
const DEPTH: usize = 16;
/// Of a request: header, data, status.
const DESCRIPTORS: usize = 3;
/// Writes between two flushes, and blocks read back after one.
const WRITES_PER_FLUSH: u64 = 256;
const READS_PER_FLUSH: u64 = 32;
/// Largest disk whose counts fit comfortably: 16 GiB.
const BLOCKS_MAX: u64 = 4 << 20;

/// What the load is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Learns what earlier runs left.
    Scan,
    Write,
    Flush,
    /// Reads some blocks back.
    Verify,
    /// Reads all blocks back.
    Check,
    /// Reads blocks at random, looks at none of them, and does so without an end.
    Read,
    Idle,
}

/// A request under way.
#[derive(Clone, Copy)]
struct Request {
    kind: u32,
    block: u64,
    generation: u32,
}

/// One disk.
pub struct Disk {
    number: usize,
    options: DiskOptions,
    seed: u64,
    /// A request's slot says which is its own.
    queues: [Option<Queue>; QUEUES_MAX as usize],
    queue_count: usize,
    depth: usize,
    /// For each request a page of data, then for all of them a page of headers and status bytes.
    buffers: *mut u8,
    requests: [Option<Request>; REQUESTS],
    blocks: u64,
    /// How often each block was written and acknowledged.
    generations: &'static mut [u64],
    has_flush: bool,
    read_only: bool,
    phase: Phase,
    /// Requests begun in this phase.
    step: u64,
    random: u64,
    began_us: u64,
    issued: u64,
    check_wanted: bool,
    check_bad: u64,
    checks: u64,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    written: u64,
    read: u64,
    flushed: u64,
    verified: u64,
    bad: u64,
    errors: u64,
}

impl Disk {
    /// Drives the device from now on.
    pub fn new(number: usize, device: Device, options: DiskOptions, vm: u64, memory: &mut Memory) -> Result<Self, &'static str> {
        let features = device.begin(READ_ONLY | HAS_FLUSH | if options.queues > 1 { HAS_QUEUES } else { 0 })?;
        let sectors = u64::from(device.config32(0)) | u64::from(device.config32(4)) << 32;
        let bytes = if options.size == 0 { sectors * 512 } else { options.size.min(sectors * 512) };
        let blocks = (bytes / BLOCK_BYTES).min(BLOCKS_MAX);
        let queue_count = if features & HAS_QUEUES != 0 { options.queues as usize } else { 1 };
        let mut queues = [const { None }; QUEUES_MAX as usize];
        for (index, queue) in (0..).zip(queues.iter_mut().take(queue_count)) {
            *queue = Some(device.queue(index, (REQUESTS * 4) as u16, memory)?);
        }
        let depth = if options.depth == 0 { DEPTH } else { options.depth as usize };
        let buffers = memory.take((REQUESTS as u64 + 1) * BLOCK_BYTES).ok_or("no memory for disk buffers")?.as_mut_ptr();
        let generations = memory.take_words(blocks.max(1) * 4).ok_or("no memory for the disk's counts")?;
        device.go();
        let read_only = features & READ_ONLY != 0;
        if options.load && (read_only || blocks == 0) {
            return Err("a disk with load is read-only or empty");
        }
        Ok(Self {
            number,
            options,
            seed: pattern::mix(vm ^ number as u64),
            queues,
            queue_count,
            depth,
            buffers,
            requests: [None; REQUESTS],
            blocks,
            generations,
            has_flush: features & HAS_FLUSH != 0,
            read_only,
            phase: if options.scan { Phase::Scan } else { Self::rest(&options) },
            step: 0,
            random: pattern::mix(vm),
            began_us: 0,
            issued: 0,
            check_wanted: false,
            check_bad: 0,
            checks: 0,
            counts: Counts::default(),
        })
    }

    fn rest(options: &DiskOptions) -> Phase {
        match options {
            DiskOptions { load: true, .. } => Phase::Write,
            DiskOptions { read: true, .. } => Phase::Read,
            _ => Phase::Idle,
        }
    }

    /// Reads all blocks back, as soon as what is under way has ended.
    pub fn begin_check(&mut self) {
        self.check_wanted = true;
    }

    /// One turn: what is done, then what is next.
    pub fn turn(&mut self, now_us: u64, console: &mut Console) {
        for number in 0..self.queue_count {
            while let Some((head, _)) = self.queues[number].as_mut().and_then(Queue::done) {
                self.complete(usize::from(head) / DESCRIPTORS % REQUESTS, console);
            }
        }
        // Each phase begins when the one before has no request left: a flush covers all writes before it, a read sees them.
        if self.phase_is_issued() {
            if self.requests.iter().all(Option::is_none) {
                self.next_phase(console);
            }
            return;
        }
        for slot in 0..self.depth {
            if self.requests[slot].is_none() && !self.phase_is_issued() && !self.begin(slot, now_us) {
                break;
            }
        }
        self.queues.iter_mut().flatten().for_each(Queue::kick);
    }

    /// A line of counters.
    pub fn say(&self, console: &mut Console) {
        let Counts { written, read, flushed, verified, bad, errors } = self.counts;
        say!(
            console,
            "blk {} written={written} read={read} flushed={flushed} verified={verified} bad={bad} errors={errors} blocks={} read_only={} flush={}",
            self.number,
            self.blocks,
            u8::from(self.read_only),
            u8::from(self.has_flush)
        );
    }

    fn phase_is_issued(&self) -> bool {
        match self.phase {
            Phase::Scan | Phase::Check => self.step >= self.blocks,
            Phase::Write => self.step >= WRITES_PER_FLUSH || self.check_wanted,
            Phase::Flush => self.step >= 1,
            Phase::Verify => self.step >= READS_PER_FLUSH || self.check_wanted,
            Phase::Read => self.check_wanted,
            Phase::Idle => true,
        }
    }

    fn next_phase(&mut self, console: &mut Console) {
        let before = self.phase;
        if before == Phase::Idle && !self.check_wanted {
            return;
        }
        self.step = 0;
        match before {
            Phase::Scan => {
                let used = (0..self.blocks).filter(|block| generation_of(self.generations, *block) > 0).count();
                say!(console, "blk {} scan ok={} used={used} blocks={}", self.number, u8::from(self.counts.bad == 0), self.blocks);
            }
            Phase::Check => {
                self.checks += 1;
                let verdict = if self.counts.bad == self.check_bad { "ok" } else { "bad" };
                say!(console, "blk {} check {} {verdict} blocks={} written={}", self.number, self.checks, self.blocks, self.counts.written);
            }
            Phase::Flush => self.counts.flushed = self.counts.written,
            Phase::Write | Phase::Verify | Phase::Read | Phase::Idle => {}
        }
        self.phase = match before {
            _ if self.check_wanted && before != Phase::Write => {
                self.check_wanted = false;
                self.check_bad = self.counts.bad;
                Phase::Check
            }
            Phase::Write if self.has_flush => Phase::Flush,
            Phase::Write | Phase::Flush => Phase::Verify,
            _ => Self::rest(&self.options),
        };
    }

    /// Begins the phase's next request in a free slot; false if none is due yet.
    fn begin(&mut self, slot: usize, now_us: u64) -> bool {
        let (kind, block) = match self.phase {
            Phase::Scan | Phase::Check => (READ, self.step),
            Phase::Verify | Phase::Read => (READ, self.random_block()),
            Phase::Flush => (FLUSH, 0),
            Phase::Write => {
                if !self.is_due(now_us) {
                    return false;
                }
                let block = self.random_block();
                if self.requests.iter().flatten().any(|request| request.block == block) {
                    // Two writes of one block at once have no order: take another block next turn.
                    return false;
                }
                self.issued += 1;
                (WRITE, block)
            }
            Phase::Idle => return false,
        };
        self.step += 1;
        let generation = generation_of(self.generations, block) + u32::from(kind == WRITE);
        self.requests[slot] = Some(Request { kind, block, generation });
        if kind == WRITE {
            pattern::block(self.seed, block, u64::from(generation), self.page(slot));
        }
        self.submit(slot, kind, block);
        true
    }

    fn is_due(&mut self, now_us: u64) -> bool {
        if self.options.rate == 0 {
            return true;
        }
        let due = (u128::from(now_us - self.began_us) * u128::from(self.options.rate) / 1_000_000) as u64;
        if due > self.issued + WRITES_PER_FLUSH {
            // After a stall the rhythm begins anew.
            (self.began_us, self.issued) = (now_us, 0);
        }
        due > self.issued
    }

    fn random_block(&mut self) -> u64 {
        self.random = self.random.wrapping_add(1);
        pattern::mix(self.random) % self.blocks
    }

    fn submit(&mut self, slot: usize, kind: u32, block: u64) {
        let header = self.buffers.wrapping_add(REQUESTS * BLOCK_BYTES as usize + slot * 32);
        let status = header.wrapping_add(16);
        // SAFETY: header and status byte of a slot without a request: nobody else reads or writes them now.
        unsafe {
            header.cast::<u32>().write_volatile(kind);
            header.cast::<u32>().add(1).write_volatile(0);
            header.cast::<u64>().add(1).write_volatile(block * (BLOCK_BYTES / 512));
            status.write_volatile(0xff);
        }
        let first = Piece { address: header as u64, bytes: 16, device_writes: false };
        let data = Piece { address: self.page_address(slot) as u64, bytes: BLOCK_BYTES as u32, device_writes: kind == READ };
        let last = Piece { address: status as u64, bytes: 1, device_writes: true };
        let head = (slot * DESCRIPTORS) as u16;
        let Some(queue) = &mut self.queues[slot % self.queue_count] else { return };
        if kind == FLUSH { queue.offer(head, &[first, last]) } else { queue.offer(head, &[first, data, last]) }
    }

    fn complete(&mut self, slot: usize, console: &mut Console) {
        let Some(Request { kind, block, generation }) = self.requests[slot].take() else { return };
        let status = self.buffers.wrapping_add(REQUESTS * BLOCK_BYTES as usize + slot * 32 + 16);
        // SAFETY: the status byte of a request that the device is done with.
        let status = unsafe { status.read_volatile() };
        if status != 0 {
            self.counts.errors += 1;
            if self.counts.errors == 1 {
                say!(console, "blk {} error kind={kind} block={block} status={status}", self.number);
            }
            return;
        }
        match kind {
            WRITE => {
                set_generation(self.generations, block, generation);
                self.counts.written += 1;
            }
            READ if self.phase == Phase::Read => self.counts.read += 1,
            READ if self.phase == Phase::Scan => self.learn(slot, block, console),
            READ => self.verify(slot, block, generation, console),
            _ => {}
        }
    }

    /// Takes a block as it is, if it is one that a guest wrote here, or zeros.
    fn learn(&mut self, slot: usize, block: u64, console: &mut Console) {
        let [magic, _, generation, ..] = *self.page(slot);
        // Blocks that were never written may hold anything: a base image's content, for one.
        if magic == BLOCK_MAGIC {
            set_generation(self.generations, block, generation as u32);
            self.verify(slot, block, generation as u32, console);
        }
    }

    fn verify(&mut self, slot: usize, block: u64, generation: u32, console: &mut Console) {
        if generation == 0 {
            return;
        }
        let mut want = [0; PAGE_WORDS];
        pattern::block(self.seed, block, u64::from(generation), &mut want);
        self.counts.verified += 1;
        let have = self.page(slot);
        if *have != want {
            let [magic, number, found, seed, ..] = *have;
            let word = have.iter().zip(&want).position(|(have, want)| have != want).unwrap_or(0);
            self.counts.bad += 1;
            if self.counts.bad <= 4 {
                say!(
                    console,
                    "blk {} bad block={block} generation={generation} word={word} magic={magic:016x} number={number} found={found} seed={seed:016x}",
                    self.number
                );
            }
        }
    }

    fn page_address(&self, slot: usize) -> *mut u8 {
        self.buffers.wrapping_add(slot * BLOCK_BYTES as usize)
    }

    /// The data of a slot, while the device has no request of it.
    fn page(&mut self, slot: usize) -> &mut Page {
        // SAFETY: callers hold the slot: its request is not yet offered, or done. One page each, in memory taken for this disk.
        unsafe { &mut *slice::from_raw_parts_mut(self.page_address(slot), BLOCK_BYTES as usize).as_mut_ptr().cast::<Page>() }
    }
}

fn generation_of(generations: &[u64], block: u64) -> u32 {
    (generations[block as usize / 2] >> (block % 2 * 32)) as u32
}

fn set_generation(generations: &mut [u64], block: u64, generation: u32) {
    let shift = block % 2 * 32;
    let word = &mut generations[block as usize / 2];
    *word = (*word & !(0xffff_ffff << shift)) | u64::from(generation) << shift;
}
