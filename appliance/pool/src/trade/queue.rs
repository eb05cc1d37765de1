//! What a scheduler says of its queue, as JSON, becomes demand: of Slurm's `squeue --json` in the forms of Debian 12 and 13, and of any program that
//! says `{"queued": N, "running": N, "widest": N}`.
//!
//! | | Debian 12 (Slurm 22.05) | Debian 13 (24.11) |
//! |---|---|---|
//! | `job_state` | `"PENDING"` | `["PENDING"]` |
//! | `node_count` | `2` | `{"set": true, "infinite": false, "number": 2}` |

use serde_json::Value;

use super::demand::Demand;

/// Longest answer that is looked at.
pub const BYTES_MAX: usize = 64 << 20;
/// Jobs of one answer.
const JOBS_MAX: usize = 1_000_000;
/// States of jobs that have machines.
const RUNNING: [&str; 4] = ["RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED"];

/// Reads it.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn read(text: &str) -> Result<Demand, String> {
    if text.len() > BYTES_MAX {
        return Err(format!("an answer of {} MiB: at most {} MiB", text.len() >> 20, BYTES_MAX >> 20));
    }
    let value: Value = serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
    match value.get("jobs") {
        Some(Value::Array(jobs)) if jobs.len() <= JOBS_MAX => of_jobs(jobs),
        Some(Value::Array(jobs)) => Err(format!("{} jobs: at most {JOBS_MAX}", jobs.len())),
        Some(_) => Err("`jobs` is no list".into()),
        None => of_numbers(&value),
    }
}

fn of_numbers(value: &Value) -> Result<Demand, String> {
    let number = |name: &str| match value.get(name) {
        None => Ok(None),
        Some(number) => match number.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("`{name}` is no number of machines")),
        },
    };
    let (queued, running, widest) = (number("queued")?, number("running")?, number("widest")?);
    if queued.is_none() && running.is_none() {
        return Err("neither `jobs`, as squeue says them, nor `queued` and `running`".into());
    }
    Ok(Demand { queued: queued.unwrap_or(0), running: running.unwrap_or(0), widest: widest.unwrap_or(0) })
}

fn of_jobs(jobs: &[Value]) -> Result<Demand, String> {
    let mut demand = Demand::default();
    for (at, job) in jobs.iter().enumerate() {
        let states = states(&job["job_state"]).ok_or_else(|| format!("job {at} of the answer has no `job_state`"))?;
        let nodes = nodes(&job["node_count"]).ok_or_else(|| format!("job {at} of the answer has no `node_count`"))?;
        if states.contains(&"PENDING") {
            demand.queued = demand.queued.saturating_add(nodes);
            demand.widest = demand.widest.max(nodes);
        } else if states.iter().any(|state| RUNNING.contains(state)) {
            demand.running = demand.running.saturating_add(nodes);
        }
    }
    Ok(demand)
}

fn states(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(state) => Some(vec![state]),
        Value::Array(states) => states.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

fn nodes(value: &Value) -> Option<u32> {
    let number = value.as_u64().or_else(|| value.get("number")?.as_u64())?;
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_squeue_say_the_same() {
        let old = r#"{"meta": {}, "jobs": [{"job_id": 1, "job_state": "PENDING", "node_count": 2}, {"job_state": "RUNNING", "node_count": 1}, {"job_state": "COMPLETED", "node_count": 9}]}"#;
        let new = r#"{"jobs": [{"job_state": ["PENDING"], "node_count": {"set": true, "infinite": false, "number": 2}}, {"job_state": ["RUNNING", "COMPLETING"], "node_count": {"number": 1}}]}"#;
        let expected = Ok(Demand { queued: 2, running: 1, widest: 2 });
        assert_eq!((read(old), read(new)), (expected.clone(), expected));
        assert_eq!(read(r#"{"queued": 3, "widest": 2}"#), Ok(Demand { queued: 3, running: 0, widest: 2 }));
    }

    #[test]
    fn garbage_is_told_as_such() {
        for (text, says) in [
            ("", "no JSON"),
            ("slurm_load_jobs error: Unable to contact slurm controller", "no JSON"),
            ("{}", "neither `jobs`"),
            ("[]", "neither `jobs`"),
            (r#"{"jobs": 7}"#, "`jobs` is no list"),
            (r#"{"jobs": [{"node_count": 1}]}"#, "job 0 of the answer has no `job_state`"),
            (r#"{"jobs": [{"job_state": "PENDING", "node_count": -1}]}"#, "has no `node_count`"),
            (r#"{"queued": -1}"#, "`queued` is no number"),
            (r#"{"queued": 4294967296}"#, "`queued` is no number"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(says) && !told.contains('\n'), "{text}: {told}");
        }
    }
}
