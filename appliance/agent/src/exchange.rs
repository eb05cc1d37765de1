//! The periodic exchange of records: every host asks each of the others whether their books are equal, and where they are not
//! both get what they lack. It is also how a host knows who answers. Changes do not wait for it: their writer sends them to
//! everybody at once; the exchange mends what that misses, after a partition above all.
//!
//! Hosts that answer are asked in turn, going on where the last round stopped. Those that are silent have places of their own and are
//! asked ever less often, so that however many there are, nobody waits for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use rebec_api::ApiError;
use rebec_book::{
    Key, Signed,
    book::{Came, Mark},
    key::{Digest, Id},
    record::VmPrivate,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    agent::{Agent, random},
    mesh::Peer,
};

/// Between two exchanges with one host.
pub const PERIOD: Duration = Duration::from_secs(2);
/// Records sent in one message.
const BYTES_MAX: usize = 1 << 20;
/// Hosts talked to at a time: that answered last, and that did not.
const AT_ONCE: usize = 16;
const SILENT_AT_ONCE: usize = 8;
/// A silent host is asked again after its period, doubled each time, at most this many times.
const DOUBLINGS_MAX: u32 = 2;

/// `POST /internal/exchange`: is your book like mine? With marks once it was not.
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    digest: Digest,
    marks: Option<Vec<Mark>>,
}

/// Its answer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    same: bool,
    /// What the asker lacks.
    #[serde(default)]
    records: Vec<Signed>,
    /// How far the answerer is, where it lacks something: the asker sends it.
    #[serde(default)]
    wants: Option<Vec<Mark>>,
    /// Set alone: the record that declares the asker dead.
    #[serde(default)]
    dead: Option<Signed>,
}

/// `POST /internal/records`: news.
#[derive(Debug, Serialize, Deserialize)]
pub struct News {
    /// In the order of authority.
    pub records: Vec<Signed>,
    /// Whether they are all that the receiver lacks of their logs up to the last of each.
    #[serde(default)]
    pub whole: bool,
    /// To the keeper of VMs: what others are not told of them.
    #[serde(default)]
    pub private: Vec<(Id, Private)>,
}

/// What others are not told of a VM.
#[derive(Debug, Serialize, Deserialize)]
pub struct Private(#[serde(with = "rebec_book::record::as_text")] pub VmPrivate);

impl From<VmPrivate> for Private {
    fn from(private: VmPrivate) -> Self {
        Self(private)
    }
}

impl News {
    /// How its records come.
    pub fn came(&self) -> Came {
        if self.whole { Came::InTurn } else { Came::Alone }
    }
}

/// When each host is asked next.
#[derive(Default)]
struct Turns {
    due: BTreeMap<Key, (Instant, u32)>,
    asked: BTreeMap<Key, bool>,
}

impl Turns {
    /// The host that has waited longest, of those that are due and have a place.
    fn next(&mut self, peers: &[Peer], now: Instant) -> Option<Peer> {
        let known: BTreeSet<Key> = peers.iter().map(|peer| peer.key).collect();
        self.due.retain(|key, _| known.contains(key));
        for key in known {
            self.due.entry(key).or_insert((now, 0));
        }
        let busy = |silent| self.asked.values().filter(|was| **was == silent).count();
        let (room, room_silent) = (busy(false) < AT_ONCE, busy(true) < SILENT_AT_ONCE);
        let free = self
            .due
            .iter()
            .filter(|(key, (due, tries))| *due <= now && !self.asked.contains_key(*key) && if *tries == 0 { room } else { room_silent });
        let (key, (_, tries)) = free.min_by_key(|(_, (due, _))| *due)?;
        self.asked.insert(*key, *tries > 0);
        let key = *key;
        peers.iter().find(|peer| peer.key == key).cloned()
    }

    fn done(&mut self, key: Key, answered: bool, now: Instant) {
        self.asked.remove(&key);
        if let Some((due, tries)) = self.due.get_mut(&key) {
            *tries = if answered { 0 } else { (*tries + 1).min(DOUBLINGS_MAX) };
            *due = now + PERIOD * 2u32.pow(*tries);
        }
    }
}

/// Exchanges with every host of the pool, again and again.
pub async fn run(agent: Arc<Agent>) {
    let mut period = tokio::time::interval(PERIOD / 4);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut turns, mut underway) = (Turns::default(), FuturesUnordered::new());
    let mut peers = vec![];
    loop {
        tokio::select! {
            _ = period.tick() => peers = agent.peers(),
            Some((key, answered)) = underway.next() => turns.done(key, answered, Instant::now()),
        }
        while let Some(peer) = turns.next(&peers, Instant::now()) {
            let agent = &agent;
            underway.push(async move { (peer.key, exchange(agent, peer).await) });
        }
    }
}

/// One exchange with one host; whether it answered.
pub async fn exchange(agent: &Arc<Agent>, peer: Peer) -> bool {
    let outcome = attempt(agent, &peer).await;
    match &outcome {
        Ok(()) => agent.heard(peer.key),
        Err(error) => {
            if agent.unheard(peer.key) {
                log::info!("host {} is silent: {error}", peer.name);
                agent.touch();
            }
        }
    }
    outcome.is_ok()
}

async fn attempt(agent: &Arc<Agent>, peer: &Peer) -> Result<(), ApiError> {
    let Some(digest) = agent.book(|book| book.digest()) else { return Ok(()) };
    let first: Answer = agent.mesh.ask(peer, "/internal/exchange", &Question { digest, marks: None }).await?;
    if let Some(dead) = first.dead {
        agent.knowledge.take_in(vec![dead], Came::Alone);
        return Ok(());
    }
    if first.same {
        return Ok(());
    }
    let Some((digest, marks)) = agent.book(|book| (book.digest(), book.marks())) else { return Ok(()) };
    let answer: Answer = agent.mesh.ask(peer, "/internal/exchange", &Question { digest, marks: Some(marks) }).await?;
    agent.knowledge.take_in(answer.records, Came::InTurn);
    let Some(wants) = answer.wants else { return Ok(()) };
    let records = agent.book(|book| book.above(&wants, BYTES_MAX, chance())).unwrap_or_default();
    if !records.is_empty() {
        let () = agent.mesh.ask(peer, "/internal/records", &News { records, whole: true, private: vec![] }).await?;
    }
    Ok(())
}

fn chance() -> u64 {
    u64::from_be_bytes(random())
}

/// Answers another host's question.
pub fn answer(agent: &Agent, question: &Question) -> Option<Answer> {
    agent.book(|book| {
        let same = book.digest() == question.digest;
        let Some(marks) = question.marks.as_ref().filter(|_| !same) else { return Answer { same, ..Answer::default() } };
        let wants = book.is_behind(marks).then(|| book.marks());
        Answer { records: book.above(marks, BYTES_MAX, chance()), wants, ..Answer::default() }
    })
}

/// What a host hears that was declared dead: the record that says so, before anything else.
pub fn dead(proof: Signed) -> Answer {
    Answer { dead: Some(proof), ..Answer::default() }
}

/// Sends news to every host that answers; the exchange mends what fails.
pub fn spread(agent: &Arc<Agent>, records: Vec<Signed>) {
    let agent = agent.clone();
    tokio::spawn(async move {
        let peers = agent.peers().into_iter().filter(|peer| agent.answers(&peer.key));
        let news = News { records, whole: false, private: vec![] };
        futures_util::stream::iter(peers)
            .for_each_concurrent(AT_ONCE, |peer| {
                let (agent, news) = (&agent, &news);
                async move {
                    if let Err(error) = agent.mesh.ask::<_, ()>(&peer, "/internal/records", news).await {
                        log::debug!("news to host {}: {error}", peer.name);
                    }
                }
            })
            .await;
    });
}
