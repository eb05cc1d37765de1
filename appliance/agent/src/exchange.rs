//! Drives the gossip (`rebec_book::gossip`): carries its questions to other hosts and their answers back, has what comes proved and put into
//! the book, and keeps its time. Whom to ask, what to say and who is silent are the engine's to decide.
//!
//! ```text
//! tick, what was written here ──> Engine ──> conversation with one host: question ~~ mesh ~~ answer ──> Engine ──> next question
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
    agent::{Agent, now_s, random},
    facts,
    vm::start,
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
/// Between two looks where there is no pool.
const ALONE: Duration = Duration::from_secs(1);
/// Disk and memory are told in steps, so that every block written is no news.
const STEP_MIB: u64 = 64;

/// The gossip of this host; none while it belongs to no pool.
#[derive(Default)]
pub struct Exchange {
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

impl Exchange {
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
    fn turn<T>(&self, agent: &Agent, step: impl FnOnce(&mut Engine, Duration, &Book) -> T) -> Option<(T, VecDeque<Output>)> {
        agent.book(|book| {
            let mut gossip = lock(&self.gossip);
            if gossip.as_ref().is_some_and(|gossip| gossip.pool != book.pool()) {
                *gossip = None;
            }
            let gossip = gossip.get_or_insert_with(|| Gossip::new(agent.key(), book.pool()));
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
}

/// Gossips as long as the agent runs.
pub async fn run(agent: Arc<Agent>) {
    loop {
        act(&agent, |engine, now, book| engine.tick(now, book));
        look(&agent);
        tokio::select! {
            () = tokio::time::sleep(agent.exchange.due_in()) => {}
            () = agent.exchange.sooner.notified() => {}
        }
    }
}

/// Who waits for a change hears when a host is silent or is back.
fn look(agent: &Agent) {
    let (lost, back) = agent.exchange.look();
    for host in &lost {
        log::info!("host {} is silent", agent.name_of(host));
    }
    if !lost.is_empty() || !back.is_empty() {
        agent.touch();
    }
}

/// This host wrote records.
pub fn wrote(agent: &Arc<Agent>, records: Vec<Signed>) {
    act(agent, |engine, now, book| engine.handle(now, book, Input::Wrote(records)));
}

/// Records came with something else than the gossip.
pub fn learn(agent: &Arc<Agent>, records: Vec<Signed>) {
    let new = agent.knowledge.take_in(records, Came::Alone);
    if !new.is_empty() {
        act(agent, |engine, now, book| engine.handle(now, book, Input::Learnt(new, Came::Alone)));
    }
}

/// A host has spoken to this one.
pub fn heard(agent: &Agent, from: Key) {
    agent.exchange.turn(agent, |engine, now, book| engine.handle(now, book, Input::Heard { from }));
    if agent.exchange.is_back(&from) {
        agent.touch();
    }
}

/// What this host is like by now: no record tells it.
pub fn feel(agent: &Agent) {
    let (disk, free) = facts::disk_bytes(&agent.options.state);
    let in_steps = |bytes: u64| u32::try_from((bytes >> 20) / STEP_MIB * STEP_MIB).unwrap_or(u32::MAX);
    let vitals = Vitals {
        for_s: 0,
        disk_used_mib: in_steps(disk.saturating_sub(free)),
        memory_used_mib: u32::try_from(start::promised_bytes(agent) >> 20).unwrap_or(u32::MAX),
        vms: u32::try_from(agent.local_vms().len()).unwrap_or(u32::MAX),
    };
    agent.exchange.turn(agent, |engine, now, _| engine.feel(now, vitals));
}

/// Answers another host's question.
pub fn answer(agent: &Arc<Agent>, from: Key, question: Question) -> Option<Answer> {
    let mut answer = None;
    act(agent, |engine, now, book| answer = Some(engine.answer(now, book, from, question)));
    // Once more: it may have said only now who it is.
    heard(agent, from);
    answer
}

/// Has a host tell all that this one lacks, before anything else: as who has just joined does.
pub async fn catch_up(agent: &Arc<Agent>, from: Key) {
    let questions = step(agent, |engine, _, book| engine.catch_up(book, from));
    converse(agent, from, questions.into_iter().map(|(_, question)| question).collect()).await;
}

/// Lets the engine take a step and begins what comes of it.
fn act(agent: &Arc<Agent>, by: impl FnOnce(&mut Engine, Duration, &Book)) {
    begin(agent, step(agent, by));
}

/// Lets the engine take a step. What came of records is taken in; questions are returned.
fn step(agent: &Agent, by: impl FnOnce(&mut Engine, Duration, &Book)) -> Vec<(Key, Question)> {
    let Some(((), mut outputs)) = agent.exchange.turn(agent, by) else { return vec![] };
    let mut questions = vec![];
    while let Some(output) = outputs.pop_front() {
        match output {
            Output::Ask { to, question } => questions.push((to, question)),
            Output::TakeIn(records, came) => {
                let new = agent.knowledge.take_in(records, came);
                let learnt = agent.exchange.turn(agent, |engine, now, book| engine.handle(now, book, Input::Learnt(new, came)));
                outputs.extend(learnt.into_iter().flat_map(|((), outputs)| outputs));
            }
        }
    }
    questions
}

fn begin(agent: &Arc<Agent>, questions: Vec<(Key, Question)>) {
    for (to, question) in questions {
        let is_round = matches!(question, Question::Round { .. });
        if agent.exchange.begin_talk(to, is_round) {
            let agent = agent.clone();
            tokio::spawn(async move {
                converse(&agent, to, VecDeque::from([question])).await;
                agent.exchange.end_talk(&to);
            });
        }
    }
}

/// Asks a host, and goes on until nothing more comes of its answers.
async fn converse(agent: &Arc<Agent>, with: Key, mut questions: VecDeque<Question>) {
    let mut asked = questions.len();
    while let Some(question) = questions.pop_front() {
        let answer = match ask(agent, &with, &question).await {
            Ok(answer) => answer,
            Err(error) => {
                log::debug!("gossip: {error}");
                act(agent, |engine, now, book| engine.handle(now, book, Input::Failed { from: with }));
                return;
            }
        };
        let (more, others) = step(agent, |engine, now, book| engine.handle(now, book, Input::Answered { from: with, answer }))
            .into_iter()
            .partition::<Vec<_>, _>(|(to, _)| *to == with);
        begin(agent, others);
        let room = QUESTIONS_MAX.saturating_sub(asked);
        asked += more.len();
        questions.extend(more.into_iter().take(room).map(|(_, question)| question));
        if agent.exchange.is_back(&with) {
            agent.touch();
        }
    }
}

async fn ask(agent: &Agent, to: &Key, question: &Question) -> Result<Answer, ApiError> {
    let unknown = || ApiError::not_found("host", &to.short(), "rebec host ls");
    let peer = agent.peer(to).ok_or_else(unknown)?;
    let bytes = agent.mesh.ask_bytes(&peer, PATH, question.to_bytes(), MESSAGE_BYTES_MAX, ANSWER_TIME).await?;
    let answer = Answer::from_bytes(&bytes).ok().filter(|answer| question.is_answered_by(answer));
    answer.ok_or_else(|| peer.silent("an answer that makes no sense"))
}
