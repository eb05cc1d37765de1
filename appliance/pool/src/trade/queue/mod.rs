//! What a scheduler says of its queue, as JSON, becomes demand in machines.
//!
//! | answer | of |
//! |---|---|
//! | `{"jobs": [...]}` | Slurm's `squeue --json`, in the forms of Debian 12 and 13 (`slurm`) |
//! | `[...]` | HTCondor's `condor_q -json` (`condor`) |
//! | `{"queued": N, "running": N, "widest": N}` | any program |
//!
//! Jobs are counted while they are read and none is kept, so that a queue of a million costs no more than its text.

mod condor;
mod slurm;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::demand::Demand;

/// Longest answer that is looked at.
pub const BYTES_MAX: usize = 64 << 20;
/// Jobs of one answer.
const JOBS_MAX: usize = 1_000_000;
/// Of what a scheduler says is wrong, so much is told.
const WORDS_MAX: usize = 200;

/// What of a queue counts, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// Processors of a machine that jobs share; 0 where each job has machines for itself.
    pub cpus: u32,
    /// Only jobs that may run in this partition.
    pub partition: Option<String>,
}

/// Reads an answer in which each job has machines for itself.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn read(text: &str) -> Result<Demand, String> {
    read_as(text, &Shape::default())
}

/// Reads an answer.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn read_as(text: &str, shape: &Shape) -> Result<Demand, String> {
    if text.len() > BYTES_MAX {
        return Err(format!("an answer of {} MiB: at most {} MiB", text.len() >> 20, BYTES_MAX >> 20));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let answer = Top(shape).deserialize(&mut reader).and_then(|found| reader.end().map(|()| found));
    let found = answer.map_err(|error| if error.is_data() { told(&error) } else { format!("no JSON: {error}") })?;
    if let Some(why) = found.wrong {
        return Err(format!("the scheduler says: {why}"));
    }
    match (found.tally, found.numbers) {
        (Some(tally), _) => Ok(tally.demand(shape)),
        (None, Demand { queued: 0, running: 0, widest: 0 }) if !found.has_numbers => {
            Err("neither `jobs`, as squeue says them, nor `queued` and `running`".into())
        }
        (None, numbers) => Ok(numbers),
    }
}

/// The words of a fault that was found here, without the place that the parser adds.
fn told(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(words, _)| words.to_owned())
}

/// What jobs want, as it is added up.
#[derive(Debug, Default)]
struct Tally {
    queued: u32,
    running: u32,
    widest: u32,
    /// Processors of jobs that take less than a machine.
    queued_cpus: u64,
    running_cpus: u64,
}

/// What one entry of a queue wants.
struct Want {
    is_queued: bool,
    /// So many jobs of this kind.
    jobs: u32,
    /// Machines of each.
    machines: u32,
    /// Processors of each.
    cpus: u32,
}

impl Tally {
    fn add(&mut self, shape: &Shape, want: &Want) {
        if want.jobs == 0 || want.machines == 0 {
            return;
        }
        let shares = want.machines == 1 && want.cpus < shape.cpus;
        if want.is_queued {
            self.widest = self.widest.max(want.machines);
        }
        let (machines, cpus) =
            if want.is_queued { (&mut self.queued, &mut self.queued_cpus) } else { (&mut self.running, &mut self.running_cpus) };
        if shares {
            *cpus = cpus.saturating_add(u64::from(want.jobs) * u64::from(want.cpus.max(1)));
        } else {
            *machines = machines.saturating_add(want.jobs.saturating_mul(want.machines));
        }
    }

    /// Jobs that share machines fill up what those that run have left before others are wanted.
    fn demand(&self, shape: &Shape) -> Demand {
        let machines = |cpus: u64| u32::try_from(cpus.div_ceil(u64::from(shape.cpus.max(1)))).unwrap_or(u32::MAX);
        let (all, running) = (machines(self.queued_cpus.saturating_add(self.running_cpus)), machines(self.running_cpus));
        Demand {
            queued: self.queued.saturating_add(all - running.min(all)),
            running: self.running.saturating_add(running),
            widest: self.widest,
        }
    }
}

/// All that an answer said.
#[derive(Default)]
struct Found {
    tally: Option<Tally>,
    numbers: Demand,
    has_numbers: bool,
    wrong: Option<String>,
}

/// The answer's outermost value.
struct Top<'a>(&'a Shape);

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an answer of a scheduler, that is an object or a list of jobs")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Found::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "jobs" => found.tally = Some(map.next_value_seed(Jobs { shape: self.0, one: slurm::want })?),
                "errors" => found.wrong = wrong(&map.next_value::<Value>()?),
                "queued" | "running" | "widest" => {
                    let number = map.next_value::<Value>()?.as_u64().and_then(|number| u32::try_from(number).ok());
                    let number = number.ok_or_else(|| de::Error::custom(format!("`{key}` is no number of machines")))?;
                    match key.as_str() {
                        "queued" => found.numbers.queued = number,
                        "running" => found.numbers.running = number,
                        _ => found.numbers.widest = number,
                    }
                    found.has_numbers |= key != "widest";
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Found, A::Error> {
        let tally = Jobs { shape: self.0, one: condor::want }.visit_seq(list)?;
        Ok(Found { tally: Some(tally), ..Found::default() })
    }
}

/// What Slurm says went wrong: a controller that does not answer is told so, beside a list of no jobs.
fn wrong(errors: &Value) -> Option<String> {
    let first = errors.as_array()?.first()?;
    let word = |name: &str| first.get(name).and_then(Value::as_str).unwrap_or_default();
    let words = [word("description"), word("error")].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(": ");
    let words: String = words.chars().filter(|letter| !letter.is_control()).take(WORDS_MAX).collect();
    Some(if words.is_empty() { "something went wrong".to_owned() } else { words })
}

/// A list of jobs of one scheduler's form.
struct Jobs<'a, Job> {
    shape: &'a Shape,
    /// What a job wants; none if it wants nothing now.
    one: fn(&Job, &Shape) -> Result<Option<Want>, String>,
}

impl<'de, Job: serde::Deserialize<'de>> DeserializeSeed<'de> for Jobs<'_, Job> {
    type Value = Tally;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tally, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, Job: serde::Deserialize<'de>> Visitor<'de> for Jobs<'_, Job> {
    type Value = Tally;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of jobs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tally, A::Error> {
        let mut tally = Tally::default();
        let mut number = 0;
        while let Some(job) = list.next_element::<Job>()? {
            if number == JOBS_MAX {
                return Err(de::Error::custom(format!("more than {JOBS_MAX} jobs")));
            }
            let want = (self.one)(&job, self.shape).map_err(|why| de::Error::custom(format!("job {number} of the answer {why}")))?;
            if let Some(want) = want {
                tally.add(self.shape, &want);
            }
            number += 1;
        }
        Ok(tally)
    }
}
