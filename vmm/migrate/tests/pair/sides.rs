//! What the drivers do, on fake machines: carry out the outputs of each engine.

use std::time::Duration;

use rebec_migrate::{
    SourceInput, SourceOutput, TargetInput, TargetOutput, UNIT_BYTES,
    frame::{Content, Entry, HEAD_BYTES, RawHead},
    index::{Holder, Place},
    page::{self, Verdict},
};

use super::{Event, KEY, Pair, Work};

const WORK_TIME: Duration = Duration::from_micros(300);
const SYNC_TIME: Duration = Duration::from_millis(4);

/// A frame that waits for the engine's word.
pub struct Pending {
    raw: RawHead,
    entries: Vec<Entry>,
    body: Vec<u8>,
}

impl Pair {
    pub fn drain_outputs(&mut self) {
        loop {
            let mut idle = true;
            while let Some(output) = self.source.engine.as_mut().and_then(|engine| engine.poll_output()) {
                idle = false;
                self.source_does(output);
            }
            while let Some(output) = self.target.engine.as_mut().and_then(|engine| engine.poll_output()) {
                idle = false;
                self.target_does(output);
            }
            if idle {
                break;
            }
        }
        // One wake-up for the next deadline of each is always on the list.
        self.events.retain(|_, event| !matches!(event, Event::TickSource | Event::TickTarget));
        if let Some(deadline) = self.target.engine.as_ref().and_then(|engine| engine.next_deadline()) {
            self.later(deadline.saturating_sub(self.now), Event::TickTarget);
        }
        if let Some(deadline) = self.source.engine.as_ref().and_then(|engine| engine.next_deadline()) {
            self.later(deadline.saturating_sub(self.now), Event::TickSource);
        }
    }

    fn source_does(&mut self, output: SourceOutput) {
        match output {
            SourceOutput::Control(bytes) => self.transmit(0, bytes, |_, bytes| Event::ToTarget(bytes)),
            SourceOutput::StartDirty { on_base } => {
                self.source.machine.take_dirty();
                let (data, zeros) = self.source.machine.populated(&on_base);
                self.later(WORK_TIME, Event::Source(SourceInput::Populated { data, zeros }));
            }
            SourceOutput::TakeDirty => {
                let dirty = self.source.machine.take_dirty();
                self.later(WORK_TIME, Event::Source(SourceInput::Dirty(dirty)));
            }
            SourceOutput::Read(batch) => {
                let stream = batch.stream;
                self.source.work[stream].push_back(Work::Read(batch));
                self.later(WORK_TIME, Event::Work { stream });
            }
            SourceOutput::Send(batch) => {
                let stream = batch.stream;
                self.source.work[stream].push_back(Work::Send(batch));
                self.later(WORK_TIME, Event::Work { stream });
            }
            SourceOutput::Throttle(percent) => {
                self.throttle = u64::from(percent);
                self.throttles.push(percent);
            }
            SourceOutput::Pause => {
                self.source.running = false;
                let stopped = self.now;
                self.later(WORK_TIME, Event::Source(SourceInput::Paused { stopped }));
            }
            SourceOutput::Save => {
                // Saving dirties memory, as a device that writes its rings does.
                self.source.machine.write_somewhere(&mut self.rng);
                self.later(WORK_TIME, Event::Source(SourceInput::Saved(b"saved machine".to_vec())));
            }
            SourceOutput::Resume { .. } => self.source.running = true,
            SourceOutput::WriteLedger(record) => {
                self.source.writing = true;
                self.later(SYNC_TIME, Event::WriteSource(record));
            }
            SourceOutput::Waiting(report) => {
                self.source.waiting = true;
                self.source.report = Some(report);
            }
            SourceOutput::Ended(report) => {
                self.source.waiting = false;
                self.source.report = Some(report);
            }
        }
    }

    pub fn work(&mut self, stream: usize) {
        match self.source.work[stream].pop_front() {
            None => {}
            Some(Work::Read(batch)) => {
                let space = usize::from(batch.space.number());
                let copy: Vec<u8> = batch.units.iter().flat_map(|&unit| self.source.machine.unit(space, unit).to_vec()).collect();
                let verdicts = page::judge(&KEY, &copy);
                self.source.batches.insert(batch.id, (batch.units, copy));
                self.tell_source(SourceInput::Prepared { id: batch.id, verdicts });
            }
            Some(Work::Send(batch)) => {
                let (units, copy) = self.source.batches.remove(&batch.id).unwrap();
                let Some(head) = batch.head else { return };
                let mut bytes = vec![];
                let packed = self.source.packer.pack(head, &units, &batch.forms, &copy, &mut bytes);
                let length = bytes.len() as u64;
                self.transmit(2 + stream, bytes, |connection, bytes| Event::Frame { stream: connection - 2, bytes });
                // The worker's word may come after the target's.
                let delay = Duration::from_millis(self.rng.below(4));
                self.later(delay, Event::Source(SourceInput::Sent { id: batch.id, bytes: length, packed }));
            }
        }
    }

    fn target_does(&mut self, output: TargetOutput) {
        match output {
            TargetOutput::Control(bytes) => self.transmit(1, bytes, |_, bytes| Event::ToSource(bytes)),
            TargetOutput::Build { .. } => {
                let bases = vec![self.plan.base.at_target(); self.plan.disk_units.len()];
                self.later(WORK_TIME, Event::Target(TargetInput::Built { holders: vec![Holder::Donor(0)], ports: vec![], bases }))
            }
            TargetOutput::Index { first, count, .. } => {
                let mut found = vec![];
                for (unit, bytes) in self.donor.chunks(UNIT_BYTES).enumerate().skip(first as usize).take(count as usize) {
                    if let [Verdict::Content(digest)] = page::judge(&KEY, bytes)[..] {
                        found.push((unit as u64, digest));
                    }
                }
                self.later(WORK_TIME, Event::Target(TargetInput::Indexed { next: None, found }));
            }
            TargetOutput::Blank { disk, ranges } => {
                for (first, count) in ranges {
                    (first..first + count).for_each(|unit| self.target.machine.set_unit(disk + 1, unit, &[0; UNIT_BYTES]));
                }
                self.later(WORK_TIME, Event::Target(TargetInput::Blanked));
            }
            TargetOutput::Apply { stream, places } => {
                let delay = Duration::from_micros(self.rng.below(2000));
                self.later(delay, Event::Apply { stream, places });
            }
            TargetOutput::FlushNow => self.later(self.plan.flush, Event::Target(TargetInput::Blanked)),
            TargetOutput::Flush => self.later(SYNC_TIME, Event::Target(TargetInput::Flushed)),
            TargetOutput::Restore(saved) => {
                self.target.restored = Some(saved);
                self.later(WORK_TIME, Event::Target(TargetInput::Restored));
            }
            TargetOutput::WriteLedger(record) => {
                self.target.writing = true;
                self.later(SYNC_TIME, Event::WriteTarget(record));
            }
            TargetOutput::Run { .. } => {
                self.target.running = true;
                self.later(WORK_TIME, Event::Target(TargetInput::Started));
            }
            TargetOutput::Waiting { .. } | TargetOutput::Running { .. } | TargetOutput::Ended { .. } => {}
        }
    }

    pub fn frame_arrives(&mut self, stream: usize, bytes: Vec<u8>) {
        self.target.queued[stream].push_back(bytes);
        self.next_frame(stream);
    }

    fn next_frame(&mut self, stream: usize) {
        if self.target.applying[stream].is_some() {
            return;
        }
        let Some(bytes) = self.target.queued[stream].pop_front() else { return };
        match parse(&bytes, stream, self.plan.streams) {
            Ok(pending) => {
                let input = TargetInput::Frame { stream, head: pending.raw.head, entries: pending.entries.clone() };
                self.target.applying[stream] = Some(pending);
                self.tell_target(input);
            }
            Err(error) => self.tell_target(TargetInput::Failed(error)),
        }
    }

    pub fn apply(&mut self, stream: usize, places: &[Option<Place>]) {
        let Pending { raw, entries, body } = self.target.applying[stream].take().unwrap();
        let space = usize::from(raw.head.space.number());
        let units = match self.target.unpacker.unpack(&KEY, &entries, raw.compressed, body) {
            Ok(units) => units,
            Err(error) => return self.tell_target(TargetInput::Failed(error.to_string())),
        };
        let mut with_bytes = units.chunks(UNIT_BYTES);
        let mut missed = vec![];
        for (entry, place) in entries.iter().zip(places) {
            match entry.content {
                Content::Zero { count } => {
                    (entry.unit..entry.unit + u64::from(count))
                        .for_each(|unit| self.target.machine.set_unit(space, unit, &[0; UNIT_BYTES]));
                }
                Content::Bytes(_) => self.target.machine.set_unit(space, entry.unit, with_bytes.next().unwrap()),
                Content::Held(digest) => {
                    let copy = place.map(|place| match place.holder {
                        Holder::Donor(_) => self.donor[place.unit as usize * UNIT_BYTES..][..UNIT_BYTES].to_vec(),
                        Holder::Disk(disk) => self.target.machine.unit(usize::from(disk) + 1, place.unit).to_vec(),
                        Holder::Memory => self.target.machine.unit(0, place.unit).to_vec(),
                    });
                    match copy.filter(|copy| page::digest(&KEY, copy) == digest) {
                        Some(copy) => self.target.machine.set_unit(space, entry.unit, &copy),
                        None => missed.push(entry.unit),
                    }
                }
            }
        }
        self.tell_target(TargetInput::Applied { stream, missed });
        self.next_frame(stream);
    }
}

fn parse(bytes: &[u8], stream: usize, streams: usize) -> Result<Pending, String> {
    let raw = RawHead::from_bytes(bytes[..HEAD_BYTES].try_into().unwrap()).map_err(|error| error.to_string())?;
    if bytes.len() != raw.frame_bytes() {
        return Err("the stream ends within a frame".into());
    }
    let (entries, body) = bytes[HEAD_BYTES..].split_at(raw.entries_bytes());
    let entries = raw.entries(entries, stream, streams).map_err(|error| error.to_string())?;
    Ok(Pending { raw, entries, body: body.to_vec() })
}
