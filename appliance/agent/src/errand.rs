//! A job of another host: ordered, followed, and ordered again where that host ended while it was at it.

use std::time::Duration;

use rebec_api::{
    ApiError, ErrorCode,
    job::{Job, JobState},
};
use serde::Serialize;

use crate::{jobs::Reporter, mesh::Peer, peers::Peers};

/// A host whose job is followed may be silent for so long.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// So often an order is given again whose host ended while it was at it.
const INTERRUPTED_MAX: u32 = 3;
/// Between two questions about a job of a host that does not answer.
const RETRY: Duration = Duration::from_secs(2);

/// Orders a job of another host and waits for its end; its progress becomes this one's. A lost answer says nothing about the job, nor does
/// the end of the agent that was at it: the order, which has a name, is given again and is the same.
pub async fn order(
    peers: &Peers,
    host: &Peer,
    path: &str,
    order: &impl Serialize,
    reporter: &Reporter,
) -> Result<serde_json::Value, ApiError> {
    for _ in 0..=INTERRUPTED_MAX {
        let asked = tokio::time::Instant::now();
        // A host that was silent before has not heard the order.
        let patient = || asked.elapsed() < SILENCE_MAX && peers.answers(&host.key);
        let job: Option<Job> = again(|| peers.mesh.ask(host, path, order), patient).await?;
        // An older host answers some orders once they are carried out.
        let Some(job) = job else { return Ok(serde_json::Value::Null) };
        let job = follow(peers, host, job, reporter).await?;
        match job.state {
            JobState::Done => return Ok(job.result.unwrap_or_default()),
            _ if job.interrupted => tokio::time::sleep(RETRY).await,
            _ => return Err(job.error.unwrap_or_else(|| ApiError::new(ErrorCode::Failed, format!("host {}: the job failed", host.name)))),
        }
    }
    Err(ApiError::new(ErrorCode::Unreachable, format!("host {}: its agent ended {INTERRUPTED_MAX} times while it was at it", host.name)))
}

/// Asks until there is an answer, as long as that is worth the while.
async fn again<T, F: Future<Output = Result<T, ApiError>>>(ask: impl Fn() -> F, patient: impl Fn() -> bool) -> Result<T, ApiError> {
    loop {
        match ask().await {
            Err(error) if error.code == ErrorCode::Unreachable && patient() => tokio::time::sleep(RETRY).await,
            answer => return answer,
        }
    }
}

/// Waits for the end of a job of another host.
async fn follow(peers: &Peers, host: &Peer, job: Job, reporter: &Reporter) -> Result<Job, ApiError> {
    let mut job = job;
    while job.state == JobState::Running {
        let progress = job.progress.clone();
        reporter.progress(progress.phase, progress.done_bytes, progress.total_bytes);
        let seen = serde_json::json!({ "id": job.id, "seen": job.progress });
        let asked = tokio::time::Instant::now();
        job = again(|| peers.mesh.ask(host, "/internal/jobs/wait", &seen), || asked.elapsed() < SILENCE_MAX).await?;
    }
    Ok(job)
}
