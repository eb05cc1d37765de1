//! The periodic exchange of records: every host asks each of the others whether their books are equal, and where they are not
//! both get what they lack. It is also how a host knows who answers. Changes do not wait for it: their writer sends them to
//! everybody at once; the exchange mends what that misses, after a partition above all.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use rebec_api::ApiError;
use rebec_book::{
    Signed,
    book::{Stamp, Summary},
    record::RecordKey,
};
use serde::{Deserialize, Serialize};

use crate::{agent::Agent, mesh::Peer};

/// Between two exchanges with one host.
pub const PERIOD: Duration = Duration::from_secs(2);
/// Records sent in one message.
const BYTES_MAX: usize = 1 << 20;
/// Hosts talked to at a time.
const AT_ONCE: usize = 16;

/// `POST /internal/exchange`: is your book like mine? With `summary` once it was not.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    hash: rebec_book::key::Digest,
    stamps: Option<Vec<(RecordKey, Stamp)>>,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    same: bool,
    /// What the asker lacks.
    records: Vec<Signed>,
    /// What the asker should send.
    wanted: Vec<RecordKey>,
}

/// `POST /internal/records`: news.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct News {
    /// In the order of authority.
    pub records: Vec<Signed>,
}

/// Exchanges with every host of the pool, again and again.
pub async fn run(agent: Arc<Agent>) {
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A host that does not answer keeps its place for seconds; the others are asked in their time.
    let (mut asked, mut underway) = (BTreeSet::new(), FuturesUnordered::new());
    let mut waiting = VecDeque::new();
    loop {
        tokio::select! {
            _ = period.tick() => waiting = agent.peers().into(),
            Some(key) = underway.next() => { asked.remove(&key); }
        }
        while underway.len() < AT_ONCE
            && let Some(peer) = waiting.pop_front()
        {
            let (key, agent) = (peer.key, &agent);
            if asked.insert(key) {
                underway.push(async move {
                    exchange(agent, peer).await;
                    key
                });
            }
        }
    }
}

/// One exchange with one host.
pub async fn exchange(agent: &Arc<Agent>, peer: Peer) {
    match attempt(agent, &peer).await {
        Ok(()) => agent.heard(peer.key),
        Err(error) => {
            if agent.unheard(peer.key) {
                log::warn!("exchange with host {}: {error}", peer.name);
            }
        }
    }
}

async fn attempt(agent: &Arc<Agent>, peer: &Peer) -> Result<(), ApiError> {
    let Some(hash) = agent.book(|book| book.hash()) else { return Ok(()) };
    let first: Answer = agent.mesh.ask(peer, "/internal/exchange", &Question { hash, stamps: None }).await?;
    if first.same {
        return Ok(());
    }
    let Some(Summary { hash, stamps }) = agent.book(|book| book.summary()) else { return Ok(()) };
    let answer: Answer = agent.mesh.ask(peer, "/internal/exchange", &Question { hash, stamps: Some(stamps) }).await?;
    agent.merge(answer.records);
    let records = agent.book(|book| book.pick(&answer.wanted, BYTES_MAX)).unwrap_or_default();
    if !records.is_empty() {
        let () = agent.mesh.ask(peer, "/internal/records", &News { records }).await?;
    }
    Ok(())
}

/// Answers another host's question.
pub fn answer(agent: &Agent, question: &Question) -> Option<Answer> {
    agent.book(|book| {
        let same = book.hash() == question.hash;
        let (records, wanted) = match &question.stamps {
            Some(stamps) if !same => book.compare(stamps, BYTES_MAX),
            _ => (vec![], vec![]),
        };
        Answer { same, records, wanted }
    })
}

/// Sends news to every host that answers; the exchange mends what fails.
pub fn spread(agent: &Arc<Agent>, records: Vec<Signed>) {
    let agent = agent.clone();
    tokio::spawn(async move {
        let peers = agent.peers().into_iter().filter(|peer| agent.answers(&peer.key));
        let news = News { records };
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
