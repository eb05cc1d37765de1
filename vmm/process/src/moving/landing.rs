//! The machine that arrives, and everything that writes it: stream workers, donors, the flusher. Does what the target's
//! engine says about it.

use std::{
    net::TcpStream,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use rebec_devices::{
    Threads,
    disk::{Disk, ExtentKind},
};
use rebec_layout::PAGE_BYTES;
use rebec_migrate::{
    Space, TargetInput, TargetOutput,
    base::BaseName,
    donor::Response,
    index::{Holder, Place},
    page::{self, Digest, Key, Verdict},
    unit::units_of,
};

use super::{BaseDigests, MovingMachine, ahead::Ahead, donor::DonorHandle, spaces::Spaces, streams::ReceiveWorker};

/// Where to go on, and what was found.
type Judged = (Option<u64>, Vec<(u64, Digest)>);

/// The arriving machine and the workers that write it.
pub struct Landing<M> {
    pub machine: M,
    spaces: Spaces,
    key: Key,
    donors: Vec<DonorHandle>,
    places: Vec<SyncSender<Vec<Option<Place>>>>,
    flush: Option<SyncSender<()>>,
    ahead: Option<Ahead>,
}

impl<M> Landing<M> {
    /// Nothing is left to write: the workers and donors end.
    pub fn dismiss(&mut self) {
        self.places.clear();
        self.donors.clear();
        self.flush = None;
        self.ahead = None;
    }
}

impl<M: MovingMachine> Landing<M> {
    /// Starts the workers, now that there is something to write to; their threads end when the streams and [`Self::dismiss`] do.
    pub fn open(
        machine: M,
        key: Key,
        threads: &dyn Threads,
        donors: Vec<UnixStream>,
        sockets: &[TcpStream],
        events: &SyncSender<TargetInput>,
    ) -> Result<(Self, Vec<JoinHandle<()>>)> {
        let spaces = Spaces { ram: machine.ram().clone(), disks: machine.disks().to_vec() };
        let donors = donors.into_iter().map(|stream| DonorHandle::start(threads, stream)).collect::<Result<Vec<_>>>()?;
        let (flush, wanted) = sync_channel::<()>(1);
        let (disks, told) = (spaces.disks.clone(), events.clone());
        let flusher = move || {
            while wanted.recv().is_ok() {
                let flushed = flush_disks(&disks).map_or_else(|error| TargetInput::Failed(format!("{error:#}")), |()| TargetInput::Flushed);
                if told.send(flushed).is_err() {
                    break;
                }
            }
        };
        let mut started = vec![threads.spawn("move-flush", Box::new(flusher))?];
        let ahead = match machine.populator() {
            Some(populate) => {
                let (ahead, thread) = Ahead::start(threads, spaces.ram.clone(), populate)?;
                started.push(thread);
                Some(ahead)
            }
            None => None,
        };
        let mut landing = Self { machine, spaces, key, donors, places: vec![], flush: Some(flush), ahead };
        for (number, socket) in sockets.iter().enumerate() {
            let (sender, places) = sync_channel(1);
            let worker = ReceiveWorker {
                spaces: landing.spaces.clone(),
                key,
                number,
                streams: sockets.len(),
                stream: socket.try_clone()?,
                places,
                donors: landing.donors.clone(),
                events: events.clone(),
            };
            started.push(threads.spawn(&format!("move-{number}"), Box::new(move || worker.run()))?);
            landing.places.push(sender);
        }
        Ok((landing, started))
    }

    /// Who may hold contents. Donors before disks: the first place seen of a content counts, and memory is read faster.
    pub fn holders(&self) -> Vec<Holder> {
        let donors = (0..self.donors.len()).map(|number| Holder::Donor(number as u16));
        let disks = (0..self.spaces.disks.len()).map(|number| Holder::Disk(number as u16));
        donors.chain(disks).collect()
    }

    /// Which base each disk shows all of: one that says something itself does not.
    pub fn fresh_bases(&self) -> Result<Vec<Option<BaseName>>> {
        let named = |(disk, base): (&Arc<Disk>, &Option<Arc<BaseDigests>>)| match base {
            Some(base) if shows_its_base(disk)? => Ok(Some(base.name())),
            _ => Ok(None),
        };
        self.spaces.disks.iter().zip(self.machine.bases()).map(named).collect()
    }

    pub fn perform(&self, output: TargetOutput) -> Result<Option<TargetInput>> {
        let input = match output {
            TargetOutput::Index { holder, first, count } => self.index(holder, first, count)?,
            TargetOutput::Blank { disk, ranges } => {
                let space = Space::disk(disk);
                ranges.into_iter().try_for_each(|(first, count)| self.spaces.clear(space, first..first + count))?;
                TargetInput::Blanked
            }
            TargetOutput::FlushNow => {
                flush_disks(&self.spaces.disks)?;
                TargetInput::Blanked
            }
            TargetOutput::Apply { stream, places } => {
                let worker = self.places.get(stream).context("invariant: a frame came from a worker")?;
                // The worker takes one answer a frame; if it has ended, it has said why.
                worker.try_send(places).unwrap_or_default();
                return Ok(None);
            }
            TargetOutput::Flush => {
                if let Some(flush) = &self.flush {
                    flush.try_send(()).unwrap_or_default();
                }
                return Ok(None);
            }
            TargetOutput::Restore(saved) => {
                if let Some(ahead) = &self.ahead {
                    ahead.stop();
                }
                self.machine.restore(&saved).context("restore the machine")?;
                flush_disks(&self.spaces.disks)?;
                TargetInput::Restored
            }
            TargetOutput::WriteLedger(record) => match self.machine.write_ledger(record) {
                Ok(()) => TargetInput::LedgerWritten,
                Err(error) => TargetInput::LedgerFailed(error.to_string()),
            },
            TargetOutput::Control(_)
            | TargetOutput::Build { .. }
            | TargetOutput::Run { .. }
            | TargetOutput::Waiting { .. }
            | TargetOutput::Running { .. }
            | TargetOutput::Ended { .. } => return Ok(None),
        };
        Ok(Some(input))
    }

    fn index(&self, holder: Holder, first: u64, count: u32) -> Result<TargetInput> {
        let (next, found) = match holder {
            Holder::Donor(number) => match self.donors.get(usize::from(number)).and_then(|donor| donor.digests(self.key, first, count)) {
                Some(Response::Digests { next, found }) => {
                    (next, found.into_iter().map(|(offset, digest)| (first + u64::from(offset), digest)).collect())
                }
                _ => (None, vec![]),
            },
            Holder::Disk(disk) => self.index_disk(usize::from(disk), first, count)?,
            Holder::Memory => (None, vec![]),
        };
        Ok(TargetInput::Indexed { next, found })
    }

    /// Judges what a disk already holds, a batch at a time; ranges that read as zeros are skipped without reading, and what its base holds was
    /// judged when the digests were taken.
    fn index_disk(&self, index: usize, first: u64, count: u32) -> Result<Judged> {
        let disk = &self.spaces.disks[index];
        let base = self.machine.bases().get(index).and_then(Option::as_ref);
        let units = units_of(disk.size_bytes());
        let end = units.min(first + u64::from(count));
        let (mut at, mut found, mut copy) = (first, vec![], vec![]);
        while at < end {
            let Some(extent) = disk.extent_at(at * PAGE_BYTES)? else { break };
            let extent_end = extent.range.end.div_ceil(PAGE_BYTES).max(at + 1);
            if extent.kind == ExtentKind::Zero {
                // A unit that is only partly zeros belongs to the data behind it.
                at = (extent.range.end / PAGE_BYTES).max(at + 1);
                continue;
            }
            let whole_end = if extent.range.end == disk.size_bytes() { extent_end } else { extent.range.end / PAGE_BYTES };
            if let Some(base) = base.filter(|_| extent.is_backing && whole_end > at) {
                let units = at..whole_end.min(end);
                let kept = base.wire_digests(&self.key, at, (units.end - at) as usize)?;
                at = units.end;
                found.extend(units.zip(kept).filter_map(|(unit, digest)| Some((unit, digest?))));
                continue;
            }
            let batch: Vec<u64> = (at..extent_end.min(end).min(at + 256)).collect();
            self.spaces.read(Space::disk(index), &batch, &mut copy)?;
            let judged = batch.iter().zip(page::judge(&self.key, &copy));
            found.extend(
                judged.filter_map(|(&unit, verdict)| if let Verdict::Content(digest) = verdict { Some((unit, digest)) } else { None }),
            );
            at += batch.len() as u64;
        }
        Ok((Some(at).filter(|&at| at < units), found))
    }
}

/// Whether an image says nothing itself: its backing image shows through everywhere.
fn shows_its_base(disk: &Disk) -> Result<bool> {
    for extent in disk.extents() {
        if !extent?.is_backing {
            return Ok(false);
        }
    }
    Ok(true)
}

fn flush_disks(disks: &[Arc<Disk>]) -> Result<()> {
    disks.iter().try_for_each(|disk| disk.flush().with_context(|| format!("flush disk {}", disk.name())))
}
