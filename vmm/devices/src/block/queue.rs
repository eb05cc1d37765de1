//! A queue's thread: takes requests from the ring, begins those that may, gives back those that have ended, and sleeps when there is nothing else to do.
//!
//! ```text
//!          ┌──────────────── turn, until nothing moves ────────────────┐
//!  take a few from the ring ─► begin what may ─► give to the kernel ─► what has ended ─► give back, one message for all
//!          └─► look for a while (the next request is often on its way) ─► sleep: a kick, an end, a stop
//! ```
//! A stop takes nothing more and waits for what was taken: a stopped queue has no request under way, and its state is two numbers.
//!
//! A disk's units are marked before a write begins and after it has ended, guest memory when what was read is there (`disk::FileRing`): both before the
//! driver hears of it.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::{
    by_hand::{self, Hands},
    flight::{Does, Flight},
    request::{BlockRequest, SEGMENTS_MAX, Status, Work},
    saved::ID_BYTES,
    transfer::{Next, Transfer, error_of, synced},
};
use crate::{
    GuestRam,
    disk::{Disk, FileRing, Lease, PARTS_MAX, Part},
    limit::SharedLimit,
    virtio::{
        QueueEnvironment,
        chain::Chain,
        ring::{Broken, Ring},
        single::Serve,
        wait::{Waiter, take_kicks},
        worker::Stop,
    },
};

const KICK: u64 = 0;
const DONE: u64 = 1;
/// Taken from the ring before those are given on: the driver works on the first ones while the device works on the next.
const BATCH: usize = 8;
/// Segments of a request that goes on beside others at most: header, data as told to the driver, status.
const SEGMENTS_KEPT_MAX: usize = SEGMENTS_MAX as usize + 2;
/// Longest look for the next request before sleeping. A kick and the way out of a sleep cost more than most requests.
const LOOK_MAX: Duration = Duration::from_micros(32);
const LOOK_MIN: Duration = Duration::from_micros(4);

/// A request that was taken from the ring.
#[derive(Debug)]
struct Taken {
    chain: Chain,
    work: Work,
    transfers: Vec<Transfer>,
    /// Transfers, or a sync, that have not ended.
    left: usize,
    failure: Option<i32>,
    by_hand: bool,
    /// What follows a write where the driver does not flush.
    is_syncing: bool,
}

/// Serves one queue of a disk.
#[derive(Debug)]
pub(super) struct BlockQueue {
    disk: Arc<Disk>,
    pub(super) id: [u8; ID_BYTES],
    pub(super) limit: Arc<SharedLimit>,
    /// The driver will not flush (§5.2.6.2), so each write is followed by a flush.
    flush_writes: bool,
    hands: Hands,
    /// None: all is done by hand.
    files: Option<Box<dyn FileRing>>,
    flight: Flight,
    taken: Vec<Taken>,
    free: Vec<usize>,
    /// Held while something is carried.
    lease: Option<Lease>,
    /// Requests of which the ring to the files knows.
    on_the_way: usize,
    /// Those of them that are carried to and from places in files; the others are syncs, which no change of places concerns.
    carried: usize,
    used: Vec<(u16, u32)>,
    parts: Vec<Part>,
    pieces: Vec<(GuestAddress, u32)>,
    look: Duration,
}

impl BlockQueue {
    pub(super) fn new(disk: Arc<Disk>, id: [u8; ID_BYTES]) -> Self {
        Self {
            disk,
            id,
            limit: Arc::default(),
            flush_writes: false,
            hands: Hands::default(),
            files: None,
            flight: Flight::default(),
            taken: vec![],
            free: vec![],
            lease: None,
            on_the_way: 0,
            carried: 0,
            used: vec![],
            parts: vec![],
            pieces: vec![],
            look: Duration::ZERO,
        }
    }
}

impl Serve for BlockQueue {
    fn start(&mut self, environment: &QueueEnvironment) -> io::Result<()> {
        self.flush_writes = environment.features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        self.files = self.disk.take_ring();
        if let Some(files) = &mut self.files
            && let Err(error) = files.attach(&environment.ram)
        {
            self.stopped();
            return Err(error);
        }
        Ok(())
    }

    fn serve(&mut self, ring: &mut Ring, kick: &EventFd, stop: &Stop) -> Result<(), Broken> {
        self.taken.clear();
        self.free.clear();
        let served = self.run(ring, kick, stop);
        if served.is_err() {
            self.abandon();
        }
        self.lease = None;
        served
    }

    fn stopped(&mut self) {
        if let Some(files) = self.files.take() {
            self.disk.give_ring(files);
        }
    }
}

impl BlockQueue {
    fn run(&mut self, ring: &mut Ring, kick: &EventFd, stop: &Stop) -> Result<(), Broken> {
        let waiter = Waiter::new(stop)?;
        waiter.add(kick, KICK)?;
        if let Some(files) = &self.files {
            waiter.add(&files.descriptor(), DONE)?;
        }
        loop {
            // First thing after a start too: what was available before it brings no kick.
            ring.suppress_kicks()?;
            let later = self.turn(ring, stop)?;
            if stop.requested() {
                if self.flight.is_empty() {
                    return Ok(());
                }
                self.wait_for_files()?;
                continue;
            }
            // A request that has to wait for its time needs no kick to be seen.
            if let Some(at) = later {
                if waiter.wait(Some(at.saturating_duration_since(Instant::now())))?.contains(KICK) {
                    take_kicks(kick);
                }
                continue;
            }
            let idle = Instant::now();
            if self.look_on(idle, ring, stop)? {
                continue;
            }
            let is_full = self.free.is_empty() && self.taken.len() >= usize::from(ring.size());
            if is_full || !ring.want_kick()? {
                // Kicks are taken before the ring is looked at: one that comes in between wakes again.
                let is_idle = self.on_the_way == 0;
                if waiter.wait(None)?.contains(KICK) {
                    take_kicks(kick);
                }
                if is_idle {
                    self.learn(idle.elapsed());
                }
            }
        }
    }

    /// All that can be done now; when there is more, if something has to wait for its time.
    fn turn(&mut self, ring: &mut Ring, stop: &Stop) -> Result<Option<Instant>, Broken> {
        loop {
            let (taken, later) = self.take(ring, stop)?;
            let mut moved = taken | self.begin(ring)?;
            if let Some(files) = &mut self.files {
                files.submit()?;
            }
            moved |= self.reap(ring.ram())?;
            self.publish(ring)?;
            if self.carried == 0 {
                self.lease = None;
            }
            if !moved {
                return Ok(later);
            }
        }
    }

    /// Takes a few requests from the ring.
    fn take(&mut self, ring: &mut Ring, stop: &Stop) -> Result<(bool, Option<Instant>), Broken> {
        for count in 0..BATCH {
            if stop.requested() {
                return Ok((count > 0, None));
            }
            let later = self.limit.not_before();
            let Some(number) = self.place(ring.size()).filter(|_| later.is_none()) else { return Ok((count > 0, later)) };
            if !ring.pop(&mut self.taken[number].chain)? {
                return Ok((count > 0, None));
            }
            self.accept(number, ring.ram())?;
        }
        Ok((true, None))
    }

    /// A place for a request, if not as many are under way as the ring is long.
    fn place(&mut self, size: u16) -> Option<usize> {
        if self.free.is_empty() && self.taken.len() < usize::from(size) {
            self.free.push(self.taken.len());
            self.taken.push(Taken {
                chain: Chain::default(),
                work: Work::Flush,
                transfers: vec![],
                left: 0,
                failure: None,
                by_hand: false,
                is_syncing: false,
            });
        }
        self.free.last().copied()
    }

    /// Parses a request. What needs no disk is answered at once.
    fn accept(&mut self, number: usize, ram: &GuestRam) -> Result<(), Broken> {
        let chain = &self.taken[number].chain;
        let request = BlockRequest::parse(chain, ram, self.disk.size_bytes())?;
        self.limit.took(request.data_bytes());
        let (work, does) = match request {
            BlockRequest::Read { offset, bytes } => (Work::Read { offset, bytes }, Does::Read),
            BlockRequest::Write { offset, bytes } => (Work::Write { offset, bytes }, Does::Write),
            BlockRequest::Flush => (Work::Flush, Does::Flush),
            BlockRequest::Discard { offset, bytes } | BlockRequest::WriteZeroes { offset, bytes, unmap: true } => {
                (Work::Discard { offset, bytes }, Does::Change)
            }
            BlockRequest::WriteZeroes { offset, bytes, unmap: false } => (Work::Zero { offset, bytes }, Does::Change),
            BlockRequest::Id { mut into } => {
                // The last byte of the chain is the status, whatever the driver meant to have as room for the identity.
                let room = (into.left() - 1).min(ID_BYTES as u64) as usize;
                let written = into.write(&self.id[..room]) as u64;
                self.used.push(answer(chain, ram, Status::Ok, written));
                return Ok(());
            }
            BlockRequest::Refused(status) => {
                self.used.push(answer(chain, ram, status, 0));
                return Ok(());
            }
        };
        let range = match work {
            Work::Read { offset, bytes } | Work::Write { offset, bytes } => offset..offset + bytes,
            _ => 0..0,
        };
        self.free.pop();
        let taken = &mut self.taken[number];
        (taken.work, taken.left, taken.failure, taken.by_hand, taken.is_syncing) = (work, 0, None, false, false);
        taken.transfers.clear();
        self.flight.arrive(number, does, range);
        Ok(())
    }

    /// Begins what may begin; whether something did.
    fn begin(&mut self, ring: &mut Ring) -> Result<bool, Broken> {
        let mut moved = false;
        while self.flight.waiting() > 0 {
            if let Some(files) = &self.files {
                // Who wants to change where bytes lie goes first.
                let is_wanted = self.lease.as_ref().is_some_and(Lease::is_wanted);
                if is_wanted && self.carried > 0 || files.room() < PARTS_MAX {
                    break;
                }
                if is_wanted {
                    self.lease = None;
                }
            }
            let Some(number) = self.flight.next() else { break };
            moved = true;
            if !self.begin_beside(number, ring.ram())? {
                self.by_hand(number, ring)?;
            }
        }
        Ok(moved)
    }

    /// Begins a request that can go on beside others; false if it is to be done by hand.
    fn begin_beside(&mut self, number: usize, ram: &GuestRam) -> Result<bool, Broken> {
        let (offset, bytes, writes) = match self.taken[number].work {
            Work::Read { offset, bytes } => (offset, bytes, false),
            Work::Write { offset, bytes } => (offset, bytes, true),
            Work::Flush => return self.begin_sync(number),
            Work::Discard { .. } | Work::Zero { .. } => return Ok(false),
        };
        // A chain longer than drivers are told to make is no reason to hold memory for 128 such.
        if self.files.is_none() || self.taken[number].chain.segments() > SEGMENTS_KEPT_MAX {
            return Ok(false);
        }
        // Waited for only while nothing is carried: nobody who changes something waits for this queue then.
        let lease = self.lease.get_or_insert_with(|| self.disk.lease());
        if !self.disk.parts(lease, offset, bytes, writes, &mut self.parts).unwrap_or(false) {
            return Ok(false);
        }
        if writes {
            self.disk.mark(offset, bytes);
        }
        let taken = &mut self.taken[number];
        let mut at = 0;
        for part in &self.parts {
            match *part {
                Part::File { file, offset, bytes } => {
                    taken.transfers.push(Transfer { file, offset, at, bytes, reads: !writes });
                    at += bytes;
                }
                Part::Zeros { bytes } => {
                    by_hand::zeros(taken.work, &taken.chain, ram, at, bytes);
                    at += bytes;
                }
            }
        }
        taken.left = taken.transfers.len();
        self.on_the_way += 1;
        self.carried += 1;
        for part in 0..self.taken[number].transfers.len() {
            self.send(number, part, ram)?;
        }
        self.ended_in_part(number, ram);
        Ok(true)
    }

    /// Has what was written brought to the host's disk, while others go on.
    fn begin_sync(&mut self, number: usize) -> Result<bool, Broken> {
        let Some(files) = self.files.as_mut().filter(|_| !self.disk.read_only()) else { return Ok(false) };
        if self.disk.flush_tables().is_err() {
            return Ok(false);
        }
        files.sync_data(token(number, 0), 0)?;
        self.taken[number].left = 1;
        self.on_the_way += 1;
        Ok(true)
    }

    /// Puts a transfer into the ring to the files.
    fn send(&mut self, number: usize, part: usize, ram: &GuestRam) -> Result<(), Broken> {
        let Taken { chain, work, transfers, .. } = &self.taken[number];
        let Transfer { file, offset, at, bytes, reads } = transfers[part];
        by_hand::pieces(*work, chain, ram, at, bytes, &mut self.pieces);
        let Some(files) = &mut self.files else { return Ok(()) };
        let token = token(number, part);
        Ok(if reads { files.read(token, file, offset, &self.pieces) } else { files.write(token, file, offset, &self.pieces) }?)
    }

    /// Takes in what the files' ring has done; whether something has ended.
    fn reap(&mut self, ram: &GuestRam) -> Result<bool, Broken> {
        let mut moved = false;
        while let Some((token, result)) = self.files.as_mut().and_then(|files| files.next_done()) {
            moved = true;
            let (number, part) = ((token as usize) / PARTS_MAX, (token as usize) % PARTS_MAX);
            let taken = &mut self.taken[number];
            let next = match taken.transfers.get_mut(part).filter(|_| taken.work != Work::Flush && !taken.is_syncing) {
                Some(transfer) => transfer.answered(result),
                None => synced(result),
            };
            match next {
                Next::Done => {}
                Next::Rest => {
                    self.send(number, part, ram)?;
                    continue;
                }
                Next::Zeros => {
                    let Transfer { at, bytes, .. } = taken.transfers[part];
                    by_hand::zeros(taken.work, &taken.chain, ram, at, bytes);
                }
                Next::ByHand => taken.by_hand = true,
                Next::Failed(number) => {
                    taken.failure.get_or_insert(number);
                }
            }
            taken.left -= 1;
            self.ended_in_part(number, ram);
        }
        Ok(moved)
    }

    /// A request's end, if nothing of it is left.
    fn ended_in_part(&mut self, number: usize, ram: &GuestRam) {
        let taken = &mut self.taken[number];
        if taken.left > 0 {
            return;
        }
        self.on_the_way -= 1;
        if taken.work != Work::Flush && !taken.is_syncing {
            self.carried -= 1;
        }
        let mut result = match taken.failure {
            Some(number) => Err(error_of(number)),
            None => Ok(()),
        };
        if let Work::Write { offset, bytes } = taken.work {
            self.disk.mark(offset, bytes);
        }
        if result.is_ok() && taken.by_hand {
            let again = |hands: &mut Hands| hands.carry(&self.disk, taken.work, &taken.chain, ram);
            result = if taken.is_syncing { self.disk.flush() } else { again(&mut self.hands) };
        }
        let is_write = matches!(taken.work, Work::Write { .. });
        if result.is_ok() && is_write && self.flush_writes && !taken.is_syncing {
            (taken.is_syncing, taken.by_hand) = (true, false);
            match self.begin_sync(number) {
                Ok(true) => return,
                Ok(false) | Err(_) => result = self.disk.flush(),
            }
        }
        self.end(number, &result, ram);
    }

    /// Carries out a request by hand. What was begun before goes on meanwhile, what has ended is told first.
    fn by_hand(&mut self, number: usize, ring: &mut Ring) -> Result<(), Broken> {
        if let Some(files) = &mut self.files {
            files.submit()?;
        }
        self.publish(ring)?;
        self.carry(number, ring.ram());
        // One by one: a slow request must not keep the finished ones before it from the guest.
        self.publish(ring)
    }

    fn carry(&mut self, number: usize, ram: &GuestRam) {
        let taken = &self.taken[number];
        if matches!(taken.work, Work::Discard { .. } | Work::Zero { .. }) {
            // Nothing is on the way: it was waited for.
            self.lease = None;
        }
        let mut result = self.hands.carry(&self.disk, taken.work, &taken.chain, ram);
        if self.flush_writes && !matches!(taken.work, Work::Read { .. } | Work::Flush) {
            result = result.and_then(|()| self.disk.flush());
        }
        self.end(number, &result, ram);
    }

    fn end(&mut self, number: usize, result: &io::Result<()>, ram: &GuestRam) {
        let taken = &self.taken[number];
        let (status, written) = match (result, taken.work) {
            (Ok(()), Work::Read { bytes, .. }) => (Status::Ok, bytes),
            (Ok(()), _) => (Status::Ok, 0),
            (Err(error), _) => {
                log::warn!("disk {}: {error}", self.disk.name());
                (Status::Error, 0)
            }
        };
        self.used.push(answer(&taken.chain, ram, status, written));
        if taken.chain.segments() > SEGMENTS_KEPT_MAX {
            self.taken[number].chain = Chain::default();
        }
        self.flight.end(number);
        self.free.push(number);
    }

    /// Gives back what has ended.
    fn publish(&mut self, ring: &mut Ring) -> Result<(), Broken> {
        if !self.used.is_empty() {
            ring.add_used(&self.used)?;
            self.used.clear();
            ring.notify()?;
        }
        Ok(())
    }

    /// Looks for something to do for as long as it has lately been worth it; whether there is.
    fn look_on(&self, began: Instant, ring: &Ring, stop: &Stop) -> Result<bool, Broken> {
        // Whoever waits for the host's disk sleeps.
        if self.look.is_zero() || self.on_the_way > 0 {
            return Ok(false);
        }
        while began.elapsed() < self.look {
            if stop.requested() || ring.waiting()? > 0 {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        Ok(false)
    }

    /// A short time without anything to do would have been better spent looking, a long one not.
    fn learn(&mut self, idle: Duration) {
        self.look = if idle > LOOK_MAX { Duration::ZERO } else { (self.look * 2).clamp(LOOK_MIN, LOOK_MAX) };
    }

    fn wait_for_files(&mut self) -> io::Result<()> {
        self.files.as_mut().map_or(Ok(()), |files| files.wait())
    }

    /// The ring is broken: waits for what is on the way, and tells nobody.
    fn abandon(&mut self) {
        while self.on_the_way > 0 || !self.flight.is_empty() {
            for number in self.flight.give_up() {
                self.free.push(number);
            }
            let Some(files) = self.files.as_mut().filter(|_| self.on_the_way > 0) else { break };
            if let Err(error) = files.wait() {
                log::error!("disk {}: wait for its requests: {error}", self.disk.name());
                break;
            }
            while let Some((token, _)) = files.next_done() {
                let number = token as usize / PARTS_MAX;
                let taken = &mut self.taken[number];
                taken.left -= 1;
                if taken.left == 0 {
                    if let Work::Write { offset, bytes } = taken.work {
                        self.disk.mark(offset, bytes);
                    }
                    self.on_the_way -= 1;
                    self.flight.end(number);
                }
            }
        }
        (self.on_the_way, self.carried) = (0, 0);
        self.flight = Flight::default();
        self.used.clear();
    }
}

/// Writes a request's status; how it goes into the used ring.
fn answer(chain: &Chain, ram: &GuestRam, status: Status, data_bytes: u64) -> (u16, u32) {
    let mut writer = chain.writer(ram);
    let data_room = writer.left() - 1;
    writer.skip(data_room);
    writer.write(&[status as u8]);
    (chain.head(), data_bytes as u32 + 1)
}

fn token(number: usize, part: usize) -> u64 {
    (number * PARTS_MAX + part) as u64
}

#[cfg(test)]
impl BlockQueue {
    /// A request alone, without a ring and its thread: takes a chain, waits for its end, says how it goes into the used ring.
    pub(super) fn ask(&mut self, chain: Chain, ram: &GuestRam) -> Result<(u16, u32), Broken> {
        self.put(chain, ram)?;
        loop {
            while let Some(number) = self.flight.next() {
                if !self.begin_beside(number, ram)? {
                    self.carry(number, ram);
                }
            }
            if let Some(used) = self.used.pop() {
                self.lease = None;
                return Ok(used);
            }
            self.wait_for_files()?;
            self.reap(ram)?;
        }
    }

    pub(super) fn on_the_way(&self) -> usize {
        self.on_the_way
    }

    pub(super) fn flush_writes(&mut self, flush: bool) {
        self.flush_writes = flush;
    }

    pub(super) fn begin_alone(&mut self, ram: &GuestRam) -> Result<bool, Broken> {
        let number = self.flight.next();
        number.map_or(Ok(false), |number| self.begin_beside(number, ram))
    }

    pub(super) fn finish_alone(&mut self, ram: &GuestRam) -> Result<(), Broken> {
        while self.on_the_way > 0 {
            self.wait_for_files()?;
            self.reap(ram)?;
        }
        Ok(())
    }

    /// Takes a request and does not begin it.
    pub(super) fn put(&mut self, chain: Chain, ram: &GuestRam) -> Result<(), Broken> {
        let Some(number) = self.place(128) else { unreachable!("invariant: tests ask for less than a ring is long") };
        self.taken[number].chain = chain;
        self.accept(number, ram)
    }
}
