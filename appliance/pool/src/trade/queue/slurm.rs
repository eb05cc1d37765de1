//! A job as `squeue --json` says it.
//!
//! | | Debian 12 (Slurm 22.05, plugin v0.0.38) | Debian 13 (24.11, v0.0.42) |
//! |---|---|---|
//! | `job_state` | `"PENDING"` | `["PENDING"]` |
//! | `node_count`, `cpus` | `2` | `{"set": true, "infinite": false, "number": 2}` |
//! | `array_task_string` | `"1-7%3"` for tasks that wait | the same |

use serde::Deserialize;
use serde_json::Value;

use super::{Shape, Want};

/// States of jobs that have machines.
const RUNNING: [&str; 4] = ["RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED"];
/// A job that waits for one of these would not run if there were more machines: it is held, its time has not come, it depends on another, or what it
/// asks for is not there and will not be.
const NO_MACHINE_HELPS: [&str; 13] = [
    "JobHeldUser",
    "JobHeldAdmin",
    "BeginTime",
    "Dependency",
    "DependencyNeverSatisfied",
    "JobArrayTaskLimit",
    "PartitionDown",
    "PartitionInactive",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "Licenses",
    "Reservation",
];
/// Limits of accounts and classes of jobs begin so.
const LIMITS: [&str; 4] = ["Assoc", "QOS", "MaxMem", "AccountNot"];

/// What is looked at of a job.
#[derive(Debug, Deserialize)]
pub struct Job {
    job_state: Option<Value>,
    node_count: Option<Value>,
    cpus: Option<Value>,
    #[serde(default)]
    array_task_string: Value,
    #[serde(default)]
    state_reason: Value,
    #[serde(default)]
    partition: Value,
}

/// What it wants of the machines.
pub fn want(job: &Job, shape: &Shape) -> Result<Option<Want>, String> {
    let states = job.job_state.as_ref().and_then(states).ok_or("has no `job_state`")?;
    let machines = job.node_count.as_ref().and_then(number).ok_or("has no `node_count`")?;
    let cpus = job.cpus.as_ref().and_then(number).unwrap_or(0);
    if let (Some(wanted), Some(partitions)) = (&shape.partition, job.partition.as_str())
        && !partitions.split(',').any(|partition| partition == wanted)
    {
        return Ok(None);
    }
    let is_queued = states.contains(&"PENDING");
    if is_queued && waits_for_other_things(job.state_reason.as_str().unwrap_or_default()) {
        return Ok(None);
    }
    if !is_queued && !states.iter().any(|state| RUNNING.contains(state)) {
        return Ok(None);
    }
    let tasks = job.array_task_string.as_str().filter(|text| is_queued && !text.is_empty()).map_or(1, tasks);
    Ok(Some(Want { is_queued, jobs: tasks, machines, cpus }))
}

fn waits_for_other_things(reason: &str) -> bool {
    NO_MACHINE_HELPS.contains(&reason) || LIMITS.iter().any(|beginning| reason.starts_with(beginning))
}

fn states(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(state) => Some(vec![state]),
        Value::Array(states) => states.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// A number of either form; none where it is not set.
fn number(value: &Value) -> Option<u32> {
    let number = match value {
        Value::Object(object) if object.get("set") == Some(&Value::Bool(false)) => None,
        Value::Object(object) => object.get("number")?.as_u64(),
        value => value.as_u64(),
    };
    u32::try_from(number?).ok()
}

/// How many tasks of an array may run at once: `1-7%3`, `1,4-9:2`. A long list is cut off by Slurm (`...`); what is there counts.
fn tasks(text: &str) -> u32 {
    let (list, most) = text.split_once('%').unwrap_or((text, ""));
    let range = |range: &str| {
        let (range, step) = range.split_once(':').unwrap_or((range, "1"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last, step): (u32, u32, u32) = (first.parse().ok()?, last.parse().ok()?, step.parse().ok()?);
        Some((last.checked_sub(first)?.checked_div(step)?).saturating_add(1))
    };
    let count = list.split(',').map_while(range).fold(0, u32::saturating_add).max(1);
    most.parse().ok().filter(|most| *most > 0).map_or(count, |most| count.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_of_an_array_are_counted_without_being_listed() {
        let counts = ["1-7%3", "1-7", "5", "1,4-9:2,20", "1-4294967295", "1-3,...", "x", "9-1", "1-9:0", "1-4%0", ""].map(tasks);
        assert_eq!(counts, [3, 7, 1, 5, u32::MAX, 3, 1, 1, 1, 4, 1]);
    }
}
