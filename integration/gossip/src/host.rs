//! One host of the simulation: its book and engine, and the account of what they took.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use rebec_book::{
    Book, Key, Signed,
    book::{Came, Entry},
    gossip::{
        Engine, Input, Output,
        message::{Answer, Question},
    },
    record::RecordKey,
};

/// One of them.
pub struct Host {
    /// Whose.
    pub key: Key,
    /// Its domain, which is its site.
    pub site: usize,
    /// What it knows.
    pub book: Book,
    /// Whom it asks.
    pub engine: Engine,
    /// Whether it does nothing.
    pub is_silent: bool,
    /// Whether its processor time is measured.
    pub is_timed: bool,
    /// What it sent and did since this was emptied.
    pub account: Account,
    /// What did not concern its domain at the last look.
    pub unconcerned: BTreeSet<RecordKey>,
    /// When it looks again.
    pub look_at: Duration,
}

/// As the agent does.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Kinds of messages, in the order of their numbers: questions, then answers.
pub const KINDS: [&str; 10] = [
    "question Round",
    "question Marks",
    "question Offers",
    "question Wants",
    "question Records",
    "answer Dead",
    "answer Round",
    "answer Wants",
    "answer Records",
    "answer Taken",
];

/// Messages of one kind that a host sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told {
    /// How many.
    pub messages: usize,
    /// Their bytes, without what is around them.
    pub bytes: usize,
}

/// What a host took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Account {
    /// Which host.
    pub host: usize,
    /// Its domain.
    pub domain: usize,
    /// Sent, with everything around it.
    pub bytes: usize,
    /// Of that records, marks and the rest in messages.
    pub message_bytes: usize,
    /// The same by kinds of messages ([`KINDS`]).
    pub told: [Told; KINDS.len()],
    /// For new connections and tries of silent hosts.
    pub connection_bytes: usize,
    /// Messages.
    pub messages: usize,
    /// Processor time of engine, book and codec, where it is measured.
    pub busy: Option<Duration>,
    /// Signatures that it would have looked at.
    pub proofs: usize,
    /// Records that came and were not new.
    pub twice: usize,
    /// Records that were refused.
    pub refused: usize,
}

/// Records that some host has looked at: decoded once, and whether the signature is right.
#[derive(Default)]
pub struct Proved {
    known: HashMap<Vec<u8>, Option<Arc<Entry>>>,
    /// How long looking took.
    pub time: Duration,
    /// How many.
    pub count: u32,
}

impl Proved {
    /// Looks at a record, if nobody has.
    pub fn entry(&mut self, signed: &Signed) -> Option<Arc<Entry>> {
        let bytes = signed.to_bytes();
        // By the signature and the content's hash: what differs in either is another record.
        let key = [&bytes[..64], &signed.hash()].concat();
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let begun = processor_time();
        let entry = signed.open().is_ok().then(|| Entry::read(signed.clone()).ok().map(Arc::new)).flatten();
        self.time += processor_time() - begun;
        self.count += 1;
        self.known.insert(key, entry.clone());
        entry
    }
}

/// What a host has to say, in bytes.
pub enum Said {
    /// Ask this.
    Question(Key, Vec<u8>),
    /// These were new to its book.
    Learnt(Vec<Signed>),
}

/// Asking for it takes as long as some messages do: of so many hosts one is asked.
pub const TIMED_OF: usize = 8;

/// Of this host, if it is one that is timed.
fn time_of(is_timed: bool) -> Duration {
    if is_timed { processor_time() } else { Duration::ZERO }
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Account {
    /// A message is sent.
    pub fn tell(&mut self, message: &[u8], is_answer: bool) {
        self.message_bytes += message.len();
        self.messages += 1;
        // An array of the kind's number and the rest (message.rs).
        let kind = message.get(1).map_or(0, |number| usize::from(*number)) + if is_answer { KINDS.len() / 2 } else { 0 };
        if let Some(told) = self.told.get_mut(kind) {
            told.messages += 1;
            told.bytes += message.len();
        }
    }
}

impl Host {
    /// Answers a question.
    pub fn answer(&mut self, now: Duration, from: Key, question: &[u8], proved: &mut Proved) -> (Option<Vec<u8>>, Vec<Said>) {
        let begun = time_of(self.is_timed);
        let Ok(question) = Question::from_bytes(question) else { return (None, vec![]) };
        let answer = self.engine.answer(now, &self.book, from, question).to_bytes();
        self.work(begun);
        (Some(answer), self.drain(now, proved))
    }

    /// Hears an answer; of nothing when there was none.
    pub fn answered(&mut self, now: Duration, from: Key, answer: Option<&[u8]>, proved: &mut Proved) -> Vec<Said> {
        let begun = time_of(self.is_timed);
        let input = match answer.map(Answer::from_bytes) {
            Some(Ok(answer)) => Input::Answered { from, answer },
            _ => Input::Failed { from },
        };
        self.engine.handle(now, &self.book, input);
        self.work(begun);
        self.drain(now, proved)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration, proved: &mut Proved) -> Vec<Said> {
        let begun = time_of(self.is_timed);
        if self.look_at <= now {
            self.look_at = now + LOOK_EVERY;
            self.forget_unconcerned();
        }
        self.engine.tick(now, &self.book);
        self.work(begun);
        self.drain(now, proved)
    }

    /// It has written a record.
    pub fn write(&mut self, now: Duration, signed: Signed, proved: &mut Proved) -> Vec<Said> {
        if let Some(entry) = proved.entry(&signed) {
            let is_new = self.book.restore_read(entry, Came::InTurn);
            debug_assert_eq!(is_new, Ok(true));
        }
        self.engine.handle(now, &self.book, Input::Wrote(vec![signed]));
        self.drain(now, proved)
    }

    fn work(&mut self, begun: Duration) {
        if self.is_timed {
            *self.account.busy.get_or_insert_default() += processor_time() - begun;
        }
    }

    /// What did not concern its domain at the last look and does not now.
    fn forget_unconcerned(&mut self) {
        let now: BTreeSet<RecordKey> = self.book.unconcerned().into_iter().collect();
        let stale: Vec<RecordKey> = now.intersection(&self.unconcerned).copied().collect();
        self.unconcerned = now;
        if !stale.is_empty() {
            self.book.forget(&stale);
        }
    }

    fn drain(&mut self, now: Duration, proved: &mut Proved) -> Vec<Said> {
        let mut said = vec![];
        let mut begun = time_of(self.is_timed);
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Ask { to, question } => said.push(Said::Question(to, question.to_bytes())),
                Output::TakeIn(records, came) => {
                    self.work(begun);
                    let entries: Vec<_> = records.iter().map(|signed| proved.entry(signed)).collect();
                    begun = time_of(self.is_timed);
                    let mut new = vec![];
                    for (signed, entry) in records.into_iter().zip(entries) {
                        self.account.proofs += usize::from(entry.as_ref().is_none_or(|entry| self.book.wants_read(entry)));
                        match entry.map(|entry| self.book.restore_read(entry, came)) {
                            Some(Ok(true)) => new.push(signed),
                            Some(Ok(false)) => self.account.twice += 1,
                            Some(Err(_)) | None => self.account.refused += 1,
                        }
                    }
                    self.engine.handle(now, &self.book, Input::Learnt(new.clone(), came));
                    said.push(Said::Learnt(new));
                }
            }
        }
        self.work(begun);
        said
    }
}
