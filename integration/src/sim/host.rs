//! One host of the simulation: its book and engine, and the account of what they took.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rebec_book::{
    Book, Key, Signed,
    book::{Came, Entry},
    gossip::{
        Engine, Input, Output,
        message::{Answer, Question},
    },
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
    /// What it sent and did since this was emptied.
    pub account: Account,
}

/// What a host took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Account {
    /// Sent, with everything around it.
    pub bytes: usize,
    /// Of that records, marks and the rest in messages.
    pub message_bytes: usize,
    /// For new connections and tries of silent hosts.
    pub connection_bytes: usize,
    /// Messages.
    pub messages: usize,
    /// Processor time of engine, book and codec.
    pub busy: Duration,
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

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Host {
    /// Answers a question.
    pub fn answer(&mut self, now: Duration, from: Key, question: &[u8], proved: &mut Proved) -> (Option<Vec<u8>>, Vec<Said>) {
        let begun = processor_time();
        let Ok(question) = Question::from_bytes(question) else { return (None, vec![]) };
        let answer = self.engine.answer(now, &self.book, from, question).to_bytes();
        self.account.busy += processor_time() - begun;
        (Some(answer), self.drain(now, proved))
    }

    /// Hears an answer; of nothing when there was none.
    pub fn answered(&mut self, now: Duration, from: Key, answer: Option<&[u8]>, proved: &mut Proved) -> Vec<Said> {
        let begun = processor_time();
        let input = match answer.map(Answer::from_bytes) {
            Some(Ok(answer)) => Input::Answered { from, answer },
            _ => Input::Failed { from },
        };
        self.engine.handle(now, &self.book, input);
        self.account.busy += processor_time() - begun;
        self.drain(now, proved)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration, proved: &mut Proved) -> Vec<Said> {
        let begun = processor_time();
        self.engine.tick(now, &self.book);
        self.account.busy += processor_time() - begun;
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

    fn drain(&mut self, now: Duration, proved: &mut Proved) -> Vec<Said> {
        let mut said = vec![];
        let mut begun = processor_time();
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Ask { to, question } => said.push(Said::Question(to, question.to_bytes())),
                Output::TakeIn(records, came) => {
                    self.account.busy += processor_time() - begun;
                    let entries: Vec<_> = records.iter().map(|signed| proved.entry(signed)).collect();
                    begun = processor_time();
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
        self.account.busy += processor_time() - begun;
        said
    }
}
