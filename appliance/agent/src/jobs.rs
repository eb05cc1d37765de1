//! Jobs: long work that a caller watches. A job goes on without its caller.
//!
//! What was ordered has a row on the disk before its first effect, under an id that whoever ordered it chose: an order that comes a second
//! time, because its answer was lost, is answered with the job that the first began, also by an agent that has started anew since. Work that
//! ended with its agent is taken on again by the second order; until that comes the job says that it was interrupted.
//!
//! ```text
//! order ── row (begun) ── work ── row (outcome)
//!            └ agent killed ── interrupted ── the same order again ── work
//! ```

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use rebec_api::{
    ApiError, ErrorCode,
    job::{Job, JobProgress, JobState},
};
use rebec_book::{
    authority::Asker,
    key::{Id, Key, Name},
    warrant::Signer,
};
use rebec_host::lock;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    chance::{now_s, random},
    store::Store,
};

/// Jobs that are remembered. Those that have ended go first.
const KEPT_MAX: usize = 256;
/// Of a result that is longer nothing is written down.
const RESULT_BYTES_MAX: usize = 64 << 10;
/// How the name of a host begins that asked for itself.
const HOST: &str = "host ";
/// What orders are hashed for, with who gave them: nobody gives or hears of another's.
const PURPOSE: &str = "rebec order v1";
/// Digits of a job's id behind those of its host.
const ID_DIGITS: usize = 12;

/// What is on the disk of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Who ordered it: the key that signed for it, or `host ` and the key of a host that asked for itself.
    pub by: String,
    /// Grows from job to job.
    pub number: u64,
    /// In words.
    pub what: String,
    /// Seconds since 1970.
    pub began: u64,
    /// How it ended; none of one that is under way, or was when its agent ended.
    pub outcome: Option<Outcome>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// What it made.
    Done(serde_json::Value),
    /// Why it failed.
    Failed(ApiError),
}

/// All jobs that this host remembers.
pub struct Jobs {
    own: Key,
    store: Arc<Store>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    jobs: VecDeque<Known>,
}

#[derive(Clone)]
struct Known {
    /// Of the order; none of what the host does by itself.
    order: Option<Id>,
    by: Asker,
    job: watch::Receiver<Job>,
}

/// The worker's end of a job.
pub struct Reporter {
    sender: watch::Sender<Job>,
    row: Option<(Arc<Store>, Id, Row)>,
}

/// What an order led to.
pub enum Begun {
    /// Work that is to be done now.
    Taken {
        /// The job.
        job: Box<Job>,
        /// For whoever does it.
        reporter: Reporter,
        /// Whether an agent that has ended was at it before.
        again: bool,
    },
    /// It was ordered before.
    Known(Box<Job>),
}

impl Jobs {
    /// Jobs of a host; their names begin with its key's first digits, so that any host can find whom to ask.
    pub fn open(own: Key, store: Arc<Store>) -> Result<Self> {
        let mut rows = store.jobs::<Row>()?;
        rows.sort_by_key(|(_, row)| row.number);
        let mut inner = Inner { last: rows.last().map_or(0, |(_, row)| row.number), jobs: VecDeque::new() };
        inner.jobs.extend(rows.into_iter().map(|(order, row)| {
            let by = asker(&row.by);
            let job = remembered(id(&own, &order), row);
            Known { order: Some(order), by, job: watch::channel(job).1 }
        }));
        Ok(Self { own, store, inner: Mutex::new(inner) })
    }

    /// Begins what was ordered, or says what became of it. It is on the disk then.
    pub fn begin(&self, by: Asker, order: Option<Id>, what: String) -> Result<Begun, ApiError> {
        let order = of(by, &order.unwrap_or_else(|| Name(random())));
        let mut inner = lock(&self.inner);
        let known = inner.jobs.iter().position(|known| known.order == Some(order));
        if let Some(at) = known {
            let job = inner.jobs[at].job.borrow().clone();
            if !job.interrupted {
                return Ok(Begun::Known(job.into()));
            }
            inner.jobs.remove(at);
        }
        let dropped = make_room(&mut inner)?;
        inner.last += 1;
        let row = Row { by: name(by), number: inner.last, what: what.clone(), began: now_s(), outcome: None };
        let (job, sender, receiver) = fresh(id(&self.own, &order), what);
        inner.jobs.push_back(Known { order: Some(order), by, job: receiver });
        drop(inner);
        if let Err(error) = self.store.put_job(&order, &row, dropped.as_ref()) {
            lock(&self.inner).jobs.retain(|known| known.order != Some(order));
            return Err(ApiError::new(ErrorCode::Failed, format!("{what}: nothing was begun: {error:#}", what = row.what)));
        }
        let reporter = Reporter { sender, row: Some((self.store.clone(), order, row)) };
        Ok(Begun::Taken { job: job.into(), reporter, again: known.is_some() })
    }

    /// Whether somebody has given an order of this name.
    pub fn is_known(&self, by: Asker, order: &Id) -> bool {
        let order = of(by, order);
        lock(&self.inner).jobs.iter().any(|known| known.order == Some(order))
    }

    /// Begins what nobody ordered: this host does it by itself, and will again.
    pub fn begin_own(&self, what: String) -> Reporter {
        let order = Name(random());
        let (_, sender, receiver) = fresh(id(&self.own, &order), what);
        let mut inner = lock(&self.inner);
        // What there is no room to show is done all the same.
        if make_room(&mut inner).is_ok() {
            inner.jobs.push_back(Known { order: None, by: Asker::Host(self.own), job: receiver });
        }
        Reporter { sender, row: None }
    }

    /// What was ordered came to nothing before it had an effect: the same order may come again, and is new then.
    pub fn forget(&self, reporter: Reporter) {
        let Some((store, order, _)) = &reporter.row else { return };
        lock(&self.inner).jobs.retain(|known| known.order != Some(*order));
        if let Err(error) = store.forget_job(order) {
            log::error!("{error:#}");
        }
    }

    /// One of them, to watch, and who asked for it.
    pub fn get(&self, id: &str) -> Option<(Asker, watch::Receiver<Job>)> {
        let inner = lock(&self.inner);
        inner.jobs.iter().find(|known| known.job.borrow().id == id).map(|known| (known.by, known.job.clone()))
    }

    /// All that are remembered, the newest last.
    pub fn all(&self) -> Vec<Job> {
        lock(&self.inner).jobs.iter().map(|known| known.job.borrow().clone()).collect()
    }
}

/// Drops the oldest that has ended; says which row goes with it.
fn make_room(inner: &mut Inner) -> Result<Option<Id>, ApiError> {
    if inner.jobs.len() < KEPT_MAX {
        return Ok(None);
    }
    let ended = inner.jobs.iter().position(|known| known.job.borrow().state != JobState::Running);
    let full = || ApiError::new(ErrorCode::Refused, format!("{KEPT_MAX} jobs are under way on this host; wait until one has ended"));
    Ok(inner.jobs.remove(ended.ok_or_else(full)?).and_then(|known| known.order))
}

fn fresh(id: String, what: String) -> (Job, watch::Sender<Job>, watch::Receiver<Job>) {
    let job = Job { id, what, state: JobState::Running, progress: JobProgress::default(), error: None, result: None, interrupted: false };
    let (sender, receiver) = watch::channel(job.clone());
    (job, sender, receiver)
}

/// A job as its row tells.
fn remembered(id: String, row: Row) -> Job {
    let interrupted = row.outcome.is_none();
    let (state, error, result) = match row.outcome {
        Some(Outcome::Done(result)) => (JobState::Done, None, Some(result)),
        Some(Outcome::Failed(error)) => (JobState::Failed, Some(error), None),
        None => {
            let message = format!("{}: the agent ended while it was at it; order it again, or look at what it was about", row.what);
            (JobState::Failed, Some(ApiError::new(ErrorCode::Failed, message)), None)
        }
    };
    Job { id, what: row.what, state, progress: JobProgress::default(), error, result, interrupted }
}

/// The name of an order as whoever gave it means it.
fn of(by: Asker, order: &Id) -> Id {
    let hash = blake3::derive_key(PURPOSE, &[name(by).as_bytes(), &order.0].concat());
    Name(std::array::from_fn(|at| hash[at]))
}

fn id(own: &Key, order: &Id) -> String {
    format!("{}-{}", own.short(), &order.to_string()[..ID_DIGITS])
}

fn name(by: Asker) -> String {
    match by {
        Asker::Host(key) => format!("{HOST}{key}"),
        Asker::Signer(signer) => signer.key().to_string(),
        Asker::Nobody => String::new(),
    }
}

fn asker(name: &str) -> Asker {
    let host = name.strip_prefix(HOST).and_then(|key| key.parse().ok()).map(Asker::Host);
    host.or_else(|| name.parse().ok().map(|key| Asker::Signer(Signer::root(key)))).unwrap_or(Asker::Nobody)
}

impl Reporter {
    /// How far it is.
    pub fn progress(&self, phase: impl Into<String>, done_bytes: u64, total_bytes: u64) {
        let progress = JobProgress { phase: phase.into(), done_bytes, total_bytes };
        self.sender.send_modify(|job| job.progress = progress);
    }

    /// In words, once that is known better.
    pub fn is_about(&self, what: String) -> Job {
        self.sender.send_modify(|job| job.what = what);
        self.sender.borrow().clone()
    }

    /// How it ended.
    pub fn end(&self, outcome: Result<serde_json::Value, ApiError>) {
        let outcome = match outcome {
            Ok(result) => Outcome::Done(result),
            Err(error) => Outcome::Failed(error),
        };
        self.sender.send_modify(|job| match outcome.clone() {
            Outcome::Done(result) => {
                job.state = JobState::Done;
                job.result = Some(result);
            }
            Outcome::Failed(error) => {
                log::warn!("{}: {error}", job.what);
                job.state = JobState::Failed;
                job.error = Some(error);
            }
        });
        // If the agent ends before this is written, the order is taken on again, and finds that it has been carried out.
        if let Some((store, order, row)) = &self.row {
            let outcome = match outcome {
                Outcome::Done(result) if result.to_string().len() > RESULT_BYTES_MAX => Outcome::Done(serde_json::Value::Null),
                other => other,
            };
            let row = Row { what: self.sender.borrow().what.clone(), outcome: Some(outcome), ..row.clone() };
            if let Err(error) = store.put_job(order, &row, None) {
                log::error!("{error:#}");
            }
        }
    }
}

/// A worker that ended without a word has failed.
impl Drop for Reporter {
    fn drop(&mut self) {
        self.sender.send_if_modified(|job| {
            let silent = job.state == JobState::Running;
            if silent {
                job.state = JobState::Failed;
                job.error = Some(ApiError::new(ErrorCode::Failed, format!("{}: the work ended early; see the agent's log", job.what)));
            }
            silent
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Asker = Asker::Host(Name([1; 32]));
    const OTHER: Asker = Asker::Host(Name([2; 32]));
    const ORDER: Option<Id> = Some(Name([7; 16]));

    fn open(folder: &tempfile::TempDir) -> Jobs {
        Jobs::open(Name([3; 32]), Arc::new(Store::open(folder.path()).unwrap())).unwrap()
    }

    fn taken(jobs: &Jobs, by: Asker, order: Option<Id>) -> (Box<Job>, Reporter, bool) {
        match jobs.begin(by, order, "start VM web".into()).unwrap() {
            Begun::Taken { job, reporter, again } => (job, reporter, again),
            Begun::Known(job) => panic!("it is known: {job:?}"),
        }
    }

    fn known(jobs: &Jobs) -> Job {
        match jobs.begin(HOST, ORDER, "start VM web".into()).unwrap() {
            Begun::Known(job) => *job,
            Begun::Taken { job, .. } => panic!("it is begun a second time: {job:?}"),
        }
    }

    #[test]
    fn an_order_that_comes_twice_is_carried_out_once_by_whichever_agent() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = open(&folder);
        let (job, reporter, again) = taken(&jobs, HOST, ORDER);
        assert!(!again);
        assert_eq!(known(&jobs), *job);
        // What another calls the same is something else.
        let (others, other_reporter, _) = taken(&jobs, OTHER, ORDER);
        assert_ne!(others.id, job.id);
        reporter.end(Ok(7.into()));
        let ended = known(&jobs);
        assert_eq!((ended.state, ended.result.clone()), (JobState::Done, Some(7.into())));

        // Killed: nothing is said to anybody any more.
        std::mem::forget(other_reporter);
        drop((jobs, reporter));
        let jobs = open_when_free(&folder);
        assert_eq!(known(&jobs), ended);
        let left = jobs.get(&others.id).unwrap();
        assert_eq!((left.0, left.1.borrow().state, left.1.borrow().interrupted), (OTHER, JobState::Failed, true));
        let (job, reporter, again) = taken(&jobs, OTHER, ORDER);
        assert!(again && job.id == others.id && job.state == JobState::Running);
        reporter.end(Err(ApiError::new(ErrorCode::Refused, "no room")));
        assert!(
            matches!(jobs.begin(OTHER, ORDER, String::new()).unwrap(), Begun::Known(job) if job.error.as_ref().unwrap().message == "no room")
        );
        // Without an id each order is one of its own.
        assert_ne!(taken(&jobs, HOST, None).0.id, taken(&jobs, HOST, None).0.id);
    }

    /// The forgotten reporter holds the store of the agent that was killed: a copy of its file stands for what is on the disk.
    fn open_when_free(folder: &tempfile::TempDir) -> Jobs {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(folder.path().join("records.redb"), copy.path().join("records.redb")).unwrap();
        open(&copy)
    }

    #[test]
    fn old_jobs_go_and_those_under_way_stay() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = open(&folder);
        let (first, _reporter, _) = taken(&jobs, HOST, None);
        for _ in 0..KEPT_MAX + 5 {
            let (_, reporter, _) = taken(&jobs, OTHER, None);
            reporter.end(Ok(serde_json::Value::Null));
        }
        assert_eq!((jobs.all().len(), jobs.store.jobs::<Row>().unwrap().len()), (KEPT_MAX, KEPT_MAX));
        assert!(jobs.get(&first.id).is_some(), "one that is under way was forgotten");
        let held: Vec<_> = (1..KEPT_MAX).map(|_| taken(&jobs, OTHER, None)).collect();
        let refused = jobs.begin(HOST, None, "x".into());
        assert!(matches!(refused, Err(ApiError { code: ErrorCode::Refused, .. })), "{} under way", held.len());
    }

    #[test]
    fn what_had_no_effect_may_be_ordered_anew() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = open(&folder);
        let (_, reporter, _) = taken(&jobs, HOST, ORDER);
        jobs.forget(reporter);
        assert!(jobs.all().is_empty() && jobs.store.jobs::<Row>().unwrap().is_empty());
        assert!(!taken(&jobs, HOST, ORDER).2);
    }
}
