//! Jobs: long work that a caller watches. A job goes on without its caller; the last ones are remembered.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use rebec_api::{
    ApiError,
    job::{Job, JobProgress, JobState},
};
use rebec_book::authority::Asker;
use tokio::sync::watch;

/// Jobs that are remembered.
const KEPT_MAX: usize = 256;

/// All jobs of this host since it started.
pub struct Jobs {
    prefix: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    jobs: VecDeque<(Asker, watch::Receiver<Job>)>,
}

/// The worker's end of a job.
pub struct Reporter {
    sender: watch::Sender<Job>,
}

impl Jobs {
    /// Jobs of a host; their names begin with its key's first digits, so that any host can find whom to ask.
    pub fn new(prefix: String) -> Self {
        Self { prefix, inner: Mutex::default() }
    }

    /// Begins one, for whoever asked for it.
    pub fn begin(&self, by: Asker, what: String) -> (Job, Reporter) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last += 1;
        let id = format!("{}-{}", self.prefix, inner.last);
        let job = Job { id, what, state: JobState::Running, progress: JobProgress::default(), error: None, result: None };
        let (sender, receiver) = watch::channel(job.clone());
        if inner.jobs.len() == KEPT_MAX {
            inner.jobs.pop_front();
        }
        inner.jobs.push_back((by, receiver));
        (job, Reporter { sender })
    }

    /// One of them, to watch, and who asked for it.
    pub fn get(&self, id: &str) -> Option<(Asker, watch::Receiver<Job>)> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.jobs.iter().find(|(_, job)| job.borrow().id == id).cloned()
    }

    /// All that are remembered, the newest last.
    pub fn all(&self) -> Vec<Job> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.jobs.iter().map(|(_, job)| job.borrow().clone()).collect()
    }
}

impl Reporter {
    /// How far it is.
    pub fn progress(&self, phase: impl Into<String>, done_bytes: u64, total_bytes: u64) {
        let progress = JobProgress { phase: phase.into(), done_bytes, total_bytes };
        self.sender.send_modify(|job| job.progress = progress);
    }

    /// How it ended.
    pub fn end(&self, outcome: Result<serde_json::Value, ApiError>) {
        self.sender.send_modify(|job| match outcome {
            Ok(result) => {
                job.state = JobState::Done;
                job.result = Some(result);
            }
            Err(error) => {
                log::warn!("{}: {error}", job.what);
                job.state = JobState::Failed;
                job.error = Some(error);
            }
        });
    }
}

/// A worker that ended without a word has failed.
impl Drop for Reporter {
    fn drop(&mut self) {
        self.sender.send_if_modified(|job| {
            let silent = job.state == JobState::Running;
            if silent {
                job.state = JobState::Failed;
                job.error =
                    Some(ApiError::new(rebec_api::ErrorCode::Failed, format!("{}: the work ended early; see the agent's log", job.what)));
            }
            silent
        });
    }
}
