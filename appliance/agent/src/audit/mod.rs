//! What was decided here, for who asks later: each judgement about a question or command is a row of an append-only log (docs/formats/audit.md).
//!
//! ```text
//! http (a judgement) -> Audit (bounded queue) -> one thread: flood (refusals are counted), row (the chain), files (fsync a batch)
//!                                                            head -> the host's record, at most once a minute
//! ```
//! What changes something waits for its place in the queue before it is carried out. Looks and refusals do not: what finds no place is
//! counted, and the count is a row.

mod files;
mod flood;
mod row;

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rebec_book::authority::{Command, Question, Role};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::row::{Entry, Head, Row, Who, Wrong};
use self::{
    files::{BOUNDS, Files},
    flood::Flood,
};
use crate::chance::now_s;

/// Decisions that wait for the disk.
const QUEUE: usize = 1024;
/// Rows that are written at once: one fsync is for all of them.
const BATCH: usize = 256;
/// Between two looks whether counted refusals are to be written.
const TICK: Duration = Duration::from_secs(10);
/// The pool is told of the head no more often.
const TOLD_PERIOD: Duration = Duration::from_secs(60);

/// The log of a host.
pub struct Audit {
    queue: mpsc::Sender<Message>,
    dropped: Arc<AtomicU64>,
    head: watch::Receiver<Head>,
    told: Mutex<Head>,
}

enum Message {
    Entry(Box<Entry>),
    Tick,
    /// Something to be done with the log, once all before it is in it.
    Look(Box<dyn FnOnce(&Files) + Send>),
}

/// How a decision is written down when it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Not at all: it comes all the time, or only looks at what every user may see.
    None,
    /// If there is room.
    Look,
    /// Before it is carried out.
    Change,
}

/// How much weight a question has.
pub fn weight(question: &Question) -> Weight {
    use Command::{AuditShow, AuditVerify, InvitationList, SupportBundle, TokenList, VmLogs};
    match question {
        // Whether who joins has a ticket is judged later, and written then.
        Question::Join
        | Question::Exchange
        | Question::Promise(_)
        | Question::Stream(_)
        | Question::Job
        | Question::Part(_)
        | Question::Lend => Weight::None,
        Question::Command(command, _) if command.role() == Role::Viewer => Weight::None,
        Question::Command(InvitationList | TokenList | VmLogs | SupportBundle | AuditShow | AuditVerify, _) => Weight::Look,
        Question::Command(..) => Weight::Change,
        Question::Leave
        | Question::Addresses(_)
        | Question::Return(_)
        | Question::Restart(_)
        | Question::Start(..)
        | Question::Remove(_)
        | Question::Disks(_)
        | Question::Contract(_)
        | Question::Arrive(..) => Weight::Change,
    }
}

impl Audit {
    /// Opens the log of a state folder, and starts the thread that writes it.
    pub fn open(state: &Path) -> Result<Self> {
        let (files, cut) = Files::open(state, BOUNDS)?;
        if let Some(cut) = cut {
            log::warn!("audit: {cut}; the agent or the machine ended while it wrote");
        }
        let (queue, waiting) = mpsc::channel(QUEUE);
        let (told, head) = watch::channel(files.head());
        let dropped = Arc::<AtomicU64>::default();
        let audit = Self { queue, dropped: dropped.clone(), head, told: Mutex::new(files.head()) };
        let writer = Writer { files, flood: Flood::default(), waiting, told, dropped, failing: false };
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run()).context("start the thread of the audit log")?;
        Ok(audit)
    }

    /// Notes what is to be in the log before it is carried out. Waits while the disk is behind.
    pub async fn note(&self, entry: Entry) {
        if self.queue.send(Message::Entry(entry.into())).await.is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes what may be left out, and counted.
    pub fn try_note(&self, entry: Entry) {
        if self.queue.try_send(Message::Entry(entry.into())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The last row of which the pool is told.
    pub fn told(&self) -> Option<Head> {
        Some(*self.told.lock().unwrap_or_else(PoisonError::into_inner)).filter(|head| head.seq > 0)
    }

    /// From now on the pool is told of the last row that is on the disk.
    pub fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = *self.head.borrow();
    }

    /// Waits until all that was noted is on the disk.
    pub async fn settle(&self) {
        if let Err(error) = self.look(|_| ()).await {
            log::error!("audit: {error:#}");
        }
    }

    /// The last rows.
    pub async fn tail(&self, rows: usize) -> Result<Vec<Row>> {
        self.look(move |files| files.tail(rows)).await?
    }

    /// Walks the log; `known` are rows that others know. Returns the number before its first row, and its head or what is wrong.
    pub async fn verify(&self, known: Vec<(Head, &'static str)>) -> Result<(u64, Result<Head, Wrong>)> {
        self.look(move |files| files.verify(&known)).await?
    }

    /// Keeps the log going as long as the agent lives: what was counted is written, and the pool told now and then.
    pub async fn keep(&self) {
        let mut period = tokio::time::interval(TICK);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            period.tick().await;
            // A full queue is no time to look.
            let _is_full = self.queue.try_send(Message::Tick).is_err();
            if last.elapsed() >= TOLD_PERIOD {
                last = Instant::now();
                self.tell();
            }
        }
    }

    async fn look<T: Send + 'static>(&self, look: impl FnOnce(&Files) -> T + Send + 'static) -> Result<T> {
        let (answer, heard) = oneshot::channel();
        // Who asked may have gone.
        let look = move |files: &Files| drop(answer.send(look(files)));
        let ended = || anyhow!("the audit log is not written any more; start the agent anew");
        self.queue.send(Message::Look(Box::new(look))).await.map_err(|_| ended())?;
        heard.await.map_err(|_| ended())
    }
}

/// The one who writes.
struct Writer {
    files: Files,
    flood: Flood,
    waiting: mpsc::Receiver<Message>,
    told: watch::Sender<Head>,
    dropped: Arc<AtomicU64>,
    /// Whether the disk has refused, which is said once.
    failing: bool,
}

impl Writer {
    fn run(mut self) {
        let mut batch = vec![];
        while self.waiting.blocking_recv_many(&mut batch, BATCH) > 0 {
            let mut rows = self.flood.over(Instant::now());
            for message in batch.drain(..) {
                match message {
                    Message::Entry(entry) if entry.refused.is_some() => rows.extend(self.flood.judge(*entry, Instant::now())),
                    Message::Entry(entry) => rows.push(*entry),
                    Message::Tick => {}
                    Message::Look(look) => {
                        write(&mut self.files, &self.dropped, &mut self.failing, std::mem::take(&mut rows));
                        // Whoever looks knows that the pool may be told of what it sees.
                        self.told.send_replace(self.files.head());
                        look(&self.files);
                    }
                }
            }
            write(&mut self.files, &self.dropped, &mut self.failing, rows);
            self.told.send_replace(self.files.head());
        }
    }
}

/// Writes rows, and how many decisions were left out before them; what cannot be written is left out.
fn write(files: &mut Files, dropped: &AtomicU64, failing: &mut bool, rows: Vec<Entry>) {
    let lost = dropped.swap(0, Ordering::Relaxed);
    let count = rows.len() as u64;
    let all = (lost > 0).then(|| Entry::dropped(lost)).into_iter().chain(rows);
    match files.append(now_s(), all) {
        Ok(()) => *failing = false,
        Err(error) => {
            dropped.fetch_add(lost + count, Ordering::Relaxed);
            if !std::mem::replace(failing, true) {
                log::error!("audit: {error:#}; decisions are counted until it can be written again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rebec_book::authority::Asker;

    fn refusal() -> Entry {
        Entry::new(Who::new(Asker::Nobody, None), &Question::Exchange, Some("no".into()))
    }

    #[test]
    fn every_command_of_a_viewer_is_a_look_and_what_changes_something_is_written() {
        for command in Command::ALL {
            let weight = weight(&Question::Command(*command, None));
            assert_eq!(weight == Weight::None, command.role() == Role::Viewer, "{command:?}");
        }
        assert_eq!(weight(&Question::Command(Command::VmStop, None)), Weight::Change);
        assert_eq!(weight(&Question::Command(Command::VmConsole, None)), Weight::Change);
        assert_eq!(weight(&Question::Exchange), Weight::None);
    }

    #[tokio::test]
    async fn what_finds_no_place_is_counted_and_the_count_is_a_row() {
        let state = tempfile::tempdir().unwrap();
        let audit = Audit::open(state.path()).unwrap();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        // The writer stands still.
        let stuck = Message::Look(Box::new(move |_| assert!(held.recv().is_err())));
        audit.queue.send(stuck).await.unwrap_or_else(|_| panic!("no writer"));
        while audit.queue.capacity() < QUEUE {
            tokio::task::yield_now().await;
        }
        for _ in 0..QUEUE + 7 {
            audit.try_note(refusal());
        }
        // A change waits for its place.
        let waits = tokio::time::timeout(Duration::from_millis(50), audit.note(Entry { refused: None, ..refusal() })).await;
        assert!(waits.is_err());
        drop(hold);
        audit.note(Entry { refused: None, ..refusal() }).await;
        let rows = audit.tail(100).await.unwrap();
        let dropped: u64 = rows.iter().filter(|row| row.entry.asked == row::DROPPED).filter_map(|row| row.entry.times).sum();
        assert_eq!(dropped, 7);
        assert_eq!(rows.iter().filter(|row| row.entry.refused.is_some()).count(), flood::EACH_MAX as usize);
        assert_eq!(rows.last().unwrap().entry.refused, None);
        let (before, judged) = audit.verify(vec![]).await.unwrap();
        assert_eq!((before, judged.unwrap().seq), (0, rows.last().unwrap().seq));
    }
}
