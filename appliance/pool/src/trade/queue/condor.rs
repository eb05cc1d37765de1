//! A job as `condor_q -json` says it: a ClassAd, of which an expression that is not a number is a text.

use serde::Deserialize;
use serde_json::Value;

use super::{Shape, Want};

/// Numbers of `JobStatus`.
const IDLE: u64 = 1;
const RUNNING: [u64; 3] = [2, 6, 7];
/// The universe of jobs that run on several machines at once.
const PARALLEL: u64 = 11;

/// What is looked at of a job.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Job {
    job_status: Option<Value>,
    #[serde(default)]
    request_cpus: Value,
    #[serde(default)]
    job_universe: Value,
    #[serde(default)]
    max_hosts: Value,
}

/// What it wants of the machines.
pub fn want(job: &Job, _: &Shape) -> Result<Option<Want>, String> {
    let status = job.job_status.as_ref().and_then(Value::as_u64).ok_or("has no `JobStatus`")?;
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0).unwrap_or(1);
    let machines = if job.job_universe.as_u64() == Some(PARALLEL) { number(&job.max_hosts) } else { 1 };
    let want = |is_queued| Some(Want { is_queued, jobs: 1, machines, cpus: number(&job.request_cpus) });
    Ok(match status {
        IDLE => want(true),
        status if RUNNING.contains(&status) => want(false),
        _ => None,
    })
}
