//! `/v1/audit`: what was decided on this host.

use std::sync::Arc;

use axum::extract::{Query, State};
use rebec_api::{
    ApiError, ErrorCode,
    audit::{AuditMark, AuditRow, AuditVerdict, TAIL, TAIL_MAX},
};
use serde::Deserialize;

use super::answer::Answer;
use crate::{
    agent::Agent,
    audit::{Entry, Head, Row},
};

/// `?tail=ROWS`
#[derive(Debug, Deserialize)]
pub struct Wish {
    tail: Option<u32>,
}

/// `GET /v1/audit`
pub async fn show(State(agent): State<Arc<Agent>>, Query(wish): Query<Wish>) -> Answer<Vec<AuditRow>> {
    let tail = wish.tail.unwrap_or(TAIL);
    if tail > TAIL_MAX {
        return Err(ApiError::new(ErrorCode::BadRequest, format!("{tail} rows: at most {TAIL_MAX} at once; the files have all")).into());
    }
    let rows = agent.audit.tail(tail as usize).await?;
    Ok(axum::Json(rows.into_iter().map(shown).collect()))
}

fn shown(row: Row) -> AuditRow {
    let entry = row.entry;
    AuditRow {
        seq: row.seq,
        time: row.time,
        host: entry.who.host.map(|key| key.to_string()),
        role: entry.who.role,
        token: entry.who.token,
        user: entry.who.user,
        via: entry.who.via.map(|key| key.to_string()),
        asked: entry.asked,
        about: entry.about.map(|id| id.to_string()),
        refused: entry.refused,
        times: entry.times,
        before: row.before.to_string(),
    }
}

/// Who knows the row that is in this host's record.
const TOLD: &str = "the pool was told of";

/// The row of which the pool was told.
fn told(agent: &Agent) -> Option<Head> {
    let told = agent.knowledge.read(|book| book.host(&agent.knowledge.key()).and_then(|host| host.audit)).flatten();
    told.map(|told| Head { seq: told.seq, hash: told.hash })
}

/// At the agent's start: a log that was changed meanwhile says so itself from then on, whatever the pool is told later.
pub async fn look_back(agent: &Agent) -> anyhow::Result<()> {
    let (_, judged) = agent.audit.verify(told(agent).map(|told| (told, TOLD)).into_iter().collect()).await?;
    if let Err(wrong) = judged {
        log::error!("audit: the log was changed while this agent did not run: {wrong}; keep a copy of the folder `audit`");
        agent.audit.note(Entry::changed(&wrong)).await;
    }
    Ok(())
}

/// `?known=ROW:HASH`
#[derive(Debug, Deserialize)]
pub struct Known {
    known: Option<String>,
}

/// `GET /v1/audit/verify`
pub async fn verify(State(agent): State<Arc<Agent>>, Query(given): Query<Known>) -> Answer<AuditVerdict> {
    let bad = |error: String| ApiError::new(ErrorCode::BadRequest, format!("`known`: {error}"));
    let given = given.known.map(|text| text.parse::<AuditMark>().map_err(bad)).transpose()?;
    let given = given
        .map(|mark| mark.hash.parse().map(|hash| Head { seq: mark.seq, hash }).map_err(|error| bad(format!("{error}"))))
        .transpose()?;
    let told = told(&agent);
    let known = told.map(|told| (told, TOLD)).into_iter().chain(given.map(|given| (given, "was given to compare with")));
    let (before, judged) = agent.audit.verify(known.collect()).await?;
    let (last, wrong) = match judged {
        Ok(head) => (Some(head).filter(|head| head.seq > 0), None),
        Err(wrong) => (None, Some(wrong.to_string())),
    };
    Ok(axum::Json(AuditVerdict { first: before + 1, last: last.map(mark), told: told.map(mark), wrong }))
}

fn mark(head: Head) -> AuditMark {
    AuditMark { seq: head.seq, hash: head.hash.to_string() }
}
