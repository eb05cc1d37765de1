//! The other hosts: connections to them, who answers, and the gossip with them (`rebec_book::gossip`), whose questions are carried to other hosts
//! from here and their answers back, and whose news is proved and put into the book. Whom to ask, what to say and who is silent are the engine's to
//! decide.
//!
//! ```text
//! tick, Knowledge::take_untold  ──> Engine ──> conversation with one host: question ~~ mesh ~~ answer ──> Engine ──> next question
//! POST /internal/exchange     ──> Engine ──> answer              records ──> Knowledge::take_in ──> Engine
//! ```
//! The engine's lock is taken under the book's, never the other way, and neither while anything is waited for.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rebec_api::ApiError;
use rebec_book::{
    Book, Key, Signed,
    book::Came,
    gossip::{
        Engine, Input, Output,
        message::{Answer, MESSAGE_BYTES_MAX, Question, Vitals},
    },
};
use rebec_host::lock;
use tokio::sync::Notify;

use crate::{
    chance::{now_s, random},
    knowledge::Knowledge,
    mesh::Mesh,
};

/// Where hosts gossip.
pub const PATH: &str = "/internal/exchange";
/// How long a host may take to answer: a host that has not spoken for 7 s is silent.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Conversations with one host at a time, but for rounds: what does not fit is mended by the next round.
const TALKS_PER_HOST: usize = 8;
/// Questions of one conversation: those about all groups of a large pool that differ, and what they bring. A host whose every answer leads to
/// another question is left here.
const QUESTIONS_MAX: usize = 256;
/// Records written here that are told in one message: each may be some kilobytes long.
const TOLD_AT_ONCE: usize = 32;
/// Between two looks where there is no pool.
const ALONE: Duration = Duration::from_secs(1);
/// So long after its start an agent may not have heard yet who answers.
const HEARD_TIME: Duration = Duration::from_secs(10);

/// Other hosts, as far as this one has to do with them.
pub struct Peers {
    /// When the agent was started.
    begun: Instant,
    knowledge: Arc<Knowledge>,
    /// Connections to them.
    pub mesh: Mesh,
    /// None while this host belongs to no pool.
    gossip: Mutex<Option<Gossip>>,
    /// Something is due sooner than it was.
    sooner: Notify,
}

struct Gossip {
    pool: Key,
    engine: Engine,
    began: Instant,
    /// Hosts that answered when this was looked at last.
    answering: BTreeSet<Key>,
    talks: BTreeMap<Key, usize>,
}

impl Gossip {
    fn new(own: Key, pool: Key) -> Self {
        let engine = Engine::new(own, now_s(), u64::from_be_bytes(random()));
        let (answering, talks) = Default::default();
        Self { pool, engine, began: Instant::now(), answering, talks }
    }
}

impl Peers {
    /// Nobody has been heard yet.
    pub fn new(knowledge: Arc<Knowledge>, mesh: Mesh) -> Self {
        Self { begun: Instant::now(), knowledge, mesh, gossip: Mutex::default(), sooner: Notify::new() }
    }

    /// Whether a host answers.
    pub fn answers(&self, key: &Key) -> bool {
        *key == self.knowledge.key() || self.silence(key).is_none()
    }

    /// Finds what may only not be there yet because this agent has just started and has heard nobody.
    pub async fn once_heard<T, E>(&self, find: impl Fn() -> Result<T, E>) -> Result<T, E> {
        let mut changed = self.knowledge.watch();
        let heard = self.begun + HEARD_TIME;
        loop {
            let found = find();
            if found.is_ok() {
                return found;
            }
            match tokio::time::timeout_at(heard.into(), changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return found,
            }
        }
    }

    /// Forgets a pool that this host has left.
    pub fn forget(&self) {
        *lock(&self.gossip) = None;
    }

    /// For how long a host has not been heard; none where it answers.
    pub fn silence(&self, host: &Key) -> Option<Duration> {
        let gossip = lock(&self.gossip);
        gossip.as_ref().map_or(Some(Duration::ZERO), |gossip| gossip.engine.silence(gossip.began.elapsed(), host))
    }

    /// How a host is, by its own word.
    pub fn vitals(&self, host: &Key) -> Vitals {
        lock(&self.gossip).as_ref().and_then(|gossip| gossip.engine.vitals(host)).unwrap_or_default()
    }

    /// Lets the engine take a step; none where there is no pool.
    fn turn<T>(&self, step: impl FnOnce(&mut Engine, Duration, &Book) -> T) -> Option<(T, VecDeque<Output>)> {
        self.knowledge.read(|book| {
            let mut gossip = lock(&self.gossip);
            if gossip.as_ref().is_some_and(|gossip| gossip.pool != book.pool()) {
                *gossip = None;
            }
            let gossip = gossip.get_or_insert_with(|| Gossip::new(self.knowledge.key(), book.pool()));
            let before = gossip.engine.next_deadline();
            let done = step(&mut gossip.engine, gossip.began.elapsed(), book);
            let outputs = std::iter::from_fn(|| gossip.engine.poll_output()).collect();
            if gossip.engine.next_deadline() < before {
                self.sooner.notify_one();
            }
            (done, outputs)
        })
    }

    fn due_in(&self) -> Duration {
        let gossip = lock(&self.gossip);
        gossip.as_ref().map_or(ALONE, |gossip| gossip.engine.next_deadline().saturating_sub(gossip.began.elapsed()))
    }

    /// Hosts that were lost and hosts that came back since the last look.
    fn look(&self) -> (Vec<Key>, Vec<Key>) {
        let mut gossip = lock(&self.gossip);
        let Some(gossip) = gossip.as_mut() else { return Default::default() };
        let now = gossip.engine.answering(gossip.began.elapsed());
        let before = std::mem::replace(&mut gossip.answering, now);
        (before.difference(&gossip.answering).copied().collect(), gossip.answering.difference(&before).copied().collect())
    }

    /// Whether a host answers that did not at the last look.
    fn is_back(&self, host: &Key) -> bool {
        let mut gossip = lock(&self.gossip);
        let Some(gossip) = gossip.as_mut() else { return false };
        let answers = gossip.engine.silence(gossip.began.elapsed(), host).is_none();
        answers && gossip.answering.insert(*host)
    }

    /// Takes a place for a conversation.
    fn begin_talk(&self, with: Key, is_round: bool) -> bool {
        let mut gossip = lock(&self.gossip);
        let Some(gossip) = gossip.as_mut() else { return false };
        let talks = gossip.talks.entry(with).or_default();
        let fits = is_round || *talks < TALKS_PER_HOST;
        *talks += usize::from(fits);
        fits
    }

    fn end_talk(&self, with: &Key) {
        if let Some(gossip) = lock(&self.gossip).as_mut()
            && let Some(talks) = gossip.talks.get_mut(with)
        {
            *talks = talks.saturating_sub(1);
            if *talks == 0 {
                gossip.talks.remove(with);
            }
        }
    }

    /// Gossips as long as the agent runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            self.act(|engine, now, book| engine.tick(now, book));
            self.heed();
            tokio::select! {
                () = tokio::time::sleep(self.due_in()) => {}
                () = self.sooner.notified() => {}
                () = self.knowledge.written() => self.tell(),
            }
        }
    }

    /// Who waits for a change hears when a host is silent or is back.
    fn heed(&self) {
        let (lost, back) = self.look();
        for host in &lost {
            log::info!("host {} is silent", self.knowledge.name_of(host));
        }
        if !lost.is_empty() || !back.is_empty() {
            self.knowledge.touch();
        }
    }

    /// Tells what this host has written.
    fn tell(self: &Arc<Self>) {
        for records in self.knowledge.take_untold().chunks(TOLD_AT_ONCE) {
            self.act(|engine, now, book| engine.handle(now, book, Input::Wrote(records.to_vec())));
        }
    }

    /// Records came with something else than the gossip.
    pub fn learn(self: &Arc<Self>, records: Vec<Signed>) {
        let new = self.knowledge.take_in(records, Came::Alone);
        if !new.is_empty() {
            self.act(|engine, now, book| engine.handle(now, book, Input::Learnt(new, Came::Alone)));
        }
    }

    /// A host has spoken to this one.
    pub fn heard(&self, from: Key) {
        self.turn(|engine, now, book| engine.handle(now, book, Input::Heard { from }));
        if self.is_back(&from) {
            self.knowledge.touch();
        }
    }

    /// What this host is like by now: no record tells it.
    pub fn feel(&self, vitals: Vitals) {
        self.turn(|engine, now, _| engine.feel(now, vitals));
    }

    /// Answers another host's question.
    pub fn answer(self: &Arc<Self>, from: Key, question: Question) -> Option<Answer> {
        let mut answer = None;
        self.act(|engine, now, book| answer = Some(engine.answer(now, book, from, question)));
        // Once more: it may have said only now who it is.
        self.heard(from);
        answer
    }

    /// Has a host tell all that this one lacks, before anything else: as who has just joined does.
    pub async fn catch_up(self: &Arc<Self>, from: Key) {
        let questions = self.step(|engine, _, book| engine.catch_up(book, from));
        self.converse(from, questions.into_iter().map(|(_, question)| question).collect()).await;
    }

    /// Lets the engine take a step and begins what comes of it.
    fn act(self: &Arc<Self>, by: impl FnOnce(&mut Engine, Duration, &Book)) {
        self.begin(self.step(by));
    }

    /// Lets the engine take a step. What came of records is taken in; questions are returned.
    fn step(&self, by: impl FnOnce(&mut Engine, Duration, &Book)) -> Vec<(Key, Question)> {
        let Some(((), mut outputs)) = self.turn(by) else { return vec![] };
        let mut questions = vec![];
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Ask { to, question } => questions.push((to, question)),
                Output::TakeIn(records, came) => {
                    let new = self.knowledge.take_in(records, came);
                    let learnt = self.turn(|engine, now, book| engine.handle(now, book, Input::Learnt(new, came)));
                    outputs.extend(learnt.into_iter().flat_map(|((), outputs)| outputs));
                }
            }
        }
        questions
    }

    fn begin(self: &Arc<Self>, questions: Vec<(Key, Question)>) {
        for (to, question) in questions {
            let is_round = matches!(question, Question::Round { .. });
            if self.begin_talk(to, is_round) {
                let peers = self.clone();
                tokio::spawn(async move {
                    peers.converse(to, VecDeque::from([question])).await;
                    peers.end_talk(&to);
                });
            }
        }
    }

    /// Asks a host, and goes on until nothing more comes of its answers.
    async fn converse(self: &Arc<Self>, with: Key, mut questions: VecDeque<Question>) {
        let mut asked = questions.len();
        while let Some(question) = questions.pop_front() {
            let answer = match self.ask(&with, &question).await {
                Ok(answer) => answer,
                Err(error) => {
                    log::debug!("gossip: {error}");
                    self.act(|engine, now, book| engine.handle(now, book, Input::Failed { from: with }));
                    return;
                }
            };
            let (more, others) = self
                .step(|engine, now, book| engine.handle(now, book, Input::Answered { from: with, answer }))
                .into_iter()
                .partition::<Vec<_>, _>(|(to, _)| *to == with);
            self.begin(others);
            let room = QUESTIONS_MAX.saturating_sub(asked);
            asked += more.len();
            questions.extend(more.into_iter().take(room).map(|(_, question)| question));
            if self.is_back(&with) {
                self.knowledge.touch();
            }
        }
    }

    async fn ask(&self, to: &Key, question: &Question) -> Result<Answer, ApiError> {
        let unknown = || ApiError::not_found("host", &to.short(), "rebec host ls");
        let peer = self.knowledge.peer(to).ok_or_else(unknown)?;
        let bytes = self.mesh.ask_bytes(&peer, PATH, question.to_bytes(), MESSAGE_BYTES_MAX, ANSWER_TIME).await?;
        let answer = Answer::from_bytes(&bytes).ok().filter(|answer| question.is_answered_by(answer));
        answer.ok_or_else(|| peer.silent("an answer that makes no sense"))
    }
}
