//! `rebec job`, and how a job is followed to its end.

use std::time::Duration;

use rebec_api::{
    ErrorCode,
    job::{Job, JobState},
};
use tokio::time::sleep;

use super::{progress::Meter, session::Session};
use crate::{
    args::JobCommand,
    client::{Answer, Client, ClientError, path, sse},
    failure::Failure,
    text::{lists, shows},
};

/// How often a job is asked for again after its events broke off: an agent that restarts is back in seconds.
const ATTEMPTS_MAX: u32 = 20;
/// So often an order is given again whose agent ended while it was at it.
const INTERRUPTED_MAX: u32 = 3;
/// Between two attempts.
const ATTEMPT_PERIOD: Duration = Duration::from_millis(500);

/// `rebec job ...`
pub async fn run(session: &Session, command: JobCommand) -> Result<(), Failure> {
    match command {
        JobCommand::Ls => {
            let jobs: Vec<Job> = session.client.get(&path(&["jobs"])).await?;
            session.list(&jobs, "no jobs; moves, starts and imports show up here while they last", lists::jobs)
        }
        JobCommand::Show { id } => session.show(&session.client.get::<Job>(&path(&["jobs", &id])).await?, shows::job),
    }
}

/// Waits for the end of a job and shows how far it is. Interrupting the wait does not interrupt the job.
pub async fn follow(client: &Client, begun: Job) -> Result<Job, Failure> {
    let id = begun.id.clone();
    let mut meter = Meter::new();
    let ended = tokio::select! {
        ended = ordered(client, begun, &mut meter) => ended,
        _ = tokio::signal::ctrl_c() => Err(Failure::LeftAlone(id)),
    };
    meter.end();
    let job = ended?;
    if job.state == JobState::Done { Ok(job) } else { Err(Failure::of_job(job)) }
}

/// Follows a job; one whose agent ended while it was at it is ordered again.
async fn ordered(client: &Client, begun: Job, meter: &mut Meter) -> Result<Job, Failure> {
    let mut job = to_the_end(client, begun, meter).await?;
    for _ in 0..INTERRUPTED_MAX {
        if !job.interrupted {
            break;
        }
        match client.again().await {
            Some(Ok(Answer::Job(begun))) => job = to_the_end(client, begun, meter).await?,
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(Answer::Done(_))) | None => break,
        }
    }
    Ok(job)
}

/// Events first; where they break off, the job is asked for again, and its events after that.
async fn to_the_end(client: &Client, mut job: Job, meter: &mut Meter) -> Result<Job, Failure> {
    let at = path(&["jobs", &job.id]);
    let mut silent = 0;
    loop {
        meter.show(&job.what, &job.progress);
        if job.state != JobState::Running {
            return Ok(job);
        }
        let mut heard = false;
        let broke = events(client, &at, |now| {
            heard = true;
            meter.show(&now.what, &now.progress);
            job = now;
        })
        .await;
        if job.state != JobState::Running {
            return Ok(job);
        }
        silent = if heard { 0 } else { silent + 1 };
        match broke {
            Err(error) if !error.unreachable() || silent >= ATTEMPTS_MAX => return Err(ended(error, &job)),
            _ if silent >= ATTEMPTS_MAX => return Err(Failure::LeftAlone(job.id)),
            _ => sleep(ATTEMPT_PERIOD).await,
        }
        match client.get(&at).await {
            Ok(now) => job = now,
            Err(error) if error.unreachable() => {}
            Err(error) => return Err(ended(error, &job)),
        }
    }
}

/// Why a job cannot be followed any more. Jobs live as long as the agent that does them.
fn ended(error: ClientError, job: &Job) -> Failure {
    match &error {
        ClientError::Refused(refusal) if refusal.code == ErrorCode::NotFound => Failure::Here(format!(
            "{}: the agent has started anew since and does not know job {} any more; look at what it was about",
            job.what, job.id
        )),
        _ => error.into(),
    }
}

async fn events(client: &Client, at: &str, mut heard: impl FnMut(Job)) -> Result<(), ClientError> {
    let mut body = client.open(&format!("{at}/events")).await?;
    let mut parser = sse::Parser::default();
    while let Some(bytes) = client.next(&mut body).await? {
        let events = parser.push(&bytes).map_err(|error| client.strange(at, &error.to_string()))?;
        for event in events.into_iter().filter(|event| event.name == "job") {
            let job: Job = client.parse(at, event.data.as_bytes())?;
            let ended = job.state != JobState::Running;
            heard(job);
            if ended {
                return Ok(());
            }
        }
    }
    Ok(())
}
