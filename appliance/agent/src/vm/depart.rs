//! A VM leaves for another host. The agent makes the other side ready, opens the streams and passes their ends to the VMM;
//! from then on the two VMMs talk, and the agents only carry bytes. A right to run that waits for the other side is
//! brought there again and again, as long as this agent and its VMM live.

use std::{os::unix::net::UnixStream, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rebec_api::{
    ApiError, ErrorCode,
    job::{Job, JobState},
    vm::{MoveVm, STREAM_UPGRADE},
};
use rebec_book::{key::Name, view};
use rebec_host::life::{Goal, Input};
use rebec_pool::lease::Stance;
use rebec_vmm_api::{
    MoveReport, Outcome,
    control::{Command, MigrateOptions, Progress},
};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{LocalVm, arrive::Offer, control::Control, failed, lease, release, start, watch};
use crate::{
    agent::{Agent, random},
    jobs::Reporter,
    mesh::{Peer, read_answer},
};

/// Streams of a move where nobody says otherwise.
const STREAMS: u8 = 2;
/// Buffered on a stream, each way, beside the sockets' own.
const RELAY_BYTES: usize = 256 << 10;
/// How long the end of a move waits for the word of the other side's agent.
const TOLD_TIME: Duration = Duration::from_secs(3);
/// A host whose job is followed may be silent for so long.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// So often an order is given again whose host ended while it was at it.
const INTERRUPTED_MAX: u32 = 3;
/// Between two questions about a job of a host that does not answer.
const RETRY: Duration = Duration::from_secs(2);

/// An attempt to move a VM, whose life waits for how it ended: also if it ends in no way that was thought of.
struct Attempt {
    agent: Arc<Agent>,
    vm: Arc<LocalVm>,
    to: String,
    outcome: Option<Outcome>,
    why: Option<String>,
}

impl Attempt {
    fn begin(agent: &Arc<Agent>, vm: &Arc<LocalVm>, to: String) -> Self {
        Self { agent: agent.clone(), vm: vm.clone(), to, outcome: None, why: None }
    }

    fn end(mut self, report: &Result<MoveReport>) {
        match report {
            Ok(report) => (self.outcome, self.why) = (Some(report.outcome), report.reason.clone()),
            Err(error) => self.why = Some(format!("{error:#}")),
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let why = self.why.take().unwrap_or_else(|| "it has not answered".to_owned());
        let why = format!("the right to run it waits for host {}: {why}", self.to);
        self.vm.learn(&self.agent, Input::Moved { outcome: self.outcome, why });
    }
}

/// Moves a VM that runs here.
pub async fn depart(agent: &Arc<Agent>, vm: &Arc<LocalVm>, to: &Peer, wish: &MoveVm, reporter: &Reporter) -> Result<MoveReport, ApiError> {
    let goal = Goal::Depart { to: to.key };
    vm.require(&goal)?;
    let streams = wish.streams.unwrap_or(STREAMS);
    if !(1..=MigrateOptions::STREAMS_MAX).contains(&streams) {
        return Err(ApiError::new(ErrorCode::BadRequest, format!("streams {streams}: from 1 to {}", MigrateOptions::STREAMS_MAX)));
    }
    // On its way it needs room no more than before: it is what makes room.
    vm.go_on().await.map_err(|error| failed(&error))?;
    // No epoch is passed that the keeper has not promised the one before.
    watch::look(agent, vm).await;
    vm.leased_until(lease::require(agent, &vm.kept(), Stance::Runs).await?);
    lease::tell(vm).await;
    vm.hear(agent, Input::Want(goal))?;
    let attempt = Attempt::begin(agent, vm, to.name.clone());
    make_ready(agent, vm, to, reporter).await?;
    let options = MigrateOptions {
        streams,
        downtime_ms_max: wish.downtime_ms_max.unwrap_or_else(MigrateOptions::default_downtime_ms),
        bandwidth_mbit_max: wish.bandwidth_mbit_max,
    };
    let report = async {
        let ends = open_streams(agent, vm, to, streams).await?;
        vm.hear(agent, Input::Want(Goal::SetOut))?;
        drive(vm, ends, options, reporter).await
    };
    let report = report.await;
    attempt.end(&report);
    if report.as_ref().is_ok_and(|report| report.outcome == Outcome::Moved) {
        // Whoever asks next should hear where it is now.
        let id = vm.id();
        let there = || agent.book(|book| view::seen(book, id).is_some_and(|seen| seen.holder == to.key)) == Some(true);
        agent.until(TOLD_TIME, there).await;
    } else {
        watch::look(agent, vm).await;
    }
    report.map_err(|error| failed(&error))
}

/// The other side gathers what the VM needs and starts a VMM that waits.
async fn make_ready(agent: &Arc<Agent>, vm: &LocalVm, to: &Peer, reporter: &Reporter) -> Result<(), ApiError> {
    reporter.progress(format!("host {} makes ready", to.name), 0, 0);
    let (id, kept) = (vm.id(), vm.kept());
    let offer =
        Offer { vm: id, epoch: kept.epoch, records: start::records(agent, id)?, private: kept.private, order: Some(Name(random())) };
    order(agent, to, "/internal/arrivals", &offer, reporter).await.map(|_| ())
}

/// Orders a job of another host and waits for its end; its progress becomes this one's. A lost answer says nothing about the job, nor does
/// the end of the agent that was at it: the order, which has a name, is given again and is the same.
pub async fn order(
    agent: &Arc<Agent>,
    host: &Peer,
    path: &str,
    order: &impl Serialize,
    reporter: &Reporter,
) -> Result<serde_json::Value, ApiError> {
    for _ in 0..=INTERRUPTED_MAX {
        let asked = tokio::time::Instant::now();
        // A host that was silent before has not heard the order.
        let patient = || asked.elapsed() < SILENCE_MAX && agent.answers(&host.key);
        let job: Option<Job> = again(|| agent.mesh.ask(host, path, order), patient).await?;
        // An older host answers some orders once they are carried out.
        let Some(job) = job else { return Ok(serde_json::Value::Null) };
        let job = follow(agent, host, job, reporter).await?;
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
async fn follow(agent: &Arc<Agent>, host: &Peer, job: Job, reporter: &Reporter) -> Result<Job, ApiError> {
    let mut job = job;
    while job.state == JobState::Running {
        let progress = job.progress.clone();
        reporter.progress(progress.phase, progress.done_bytes, progress.total_bytes);
        let seen = serde_json::json!({ "id": job.id, "seen": job.progress });
        let asked = tokio::time::Instant::now();
        job = again(|| agent.mesh.ask(host, "/internal/jobs/wait", &seen), || asked.elapsed() < SILENCE_MAX).await?;
    }
    Ok(job)
}

/// The streams of a move and one for control, to the other side: the ends that the VMM gets.
async fn open_streams(agent: &Arc<Agent>, vm: &LocalVm, to: &Peer, streams: u8) -> Result<Vec<UnixStream>> {
    let mut ends = vec![];
    for _ in 0..=streams {
        ends.push(open_stream(agent, vm, to).await?);
    }
    Ok(ends)
}

/// Has the VMM move over these streams.
async fn drive(vm: &Arc<LocalVm>, ends: Vec<UnixStream>, options: MigrateOptions, reporter: &Reporter) -> Result<MoveReport> {
    let path = vm.control();
    let (told, mut heard) = tokio::sync::watch::channel(None::<Progress>);
    let moving = tokio::task::spawn_blocking(move || {
        use std::os::fd::AsFd;
        let passed: Vec<_> = ends.iter().map(AsFd::as_fd).collect();
        Control::connect(&path)?.migrate(Command::Migrate(options), &passed, |progress| {
            told.send_replace(Some(progress.clone()));
        })
    });
    while heard.changed().await.is_ok() {
        if let Some(progress) = heard.borrow_and_update().clone() {
            let done = progress.total_units.saturating_sub(progress.remaining_units) * 4096;
            reporter.progress(words(&progress), done, progress.total_units * 4096);
        }
    }
    moving.await?
}

fn words(progress: &Progress) -> String {
    format!(
        "{}, round {}: {:.1} MiB sent, {} Mbit/s, pause {} ms if it were now",
        progress.phase,
        progress.round,
        progress.wire_bytes as f64 / 1048576.0,
        progress.applied_mbit,
        progress.predicted_ms
    )
}

/// One stream: a socket for the VMM, whose other end is carried over the mesh to the VMM that waits.
async fn open_stream(agent: &Arc<Agent>, vm: &LocalVm, to: &Peer) -> Result<UnixStream> {
    let request = Request::get(format!("/internal/arrivals/{}/stream", vm.id()))
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, STREAM_UPGRADE)
        .body(Body::empty())?;
    let mut response = agent.mesh.request_bulk(to, request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let _: serde_json::Value = read_answer(to, response).await?;
        anyhow::bail!("host {} did not open a stream", to.name);
    }
    let upgraded = hyper::upgrade::on(&mut response).await.context("open a stream of the move")?;
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut ours = tokio::net::UnixStream::from_std(ours)?;
    tokio::spawn(async move { carry(&mut ours, upgraded).await });
    Ok(theirs)
}

/// Carries the bytes of one stream of a move between a VMM and the mesh, to its end.
pub async fn carry(vmm: &mut (impl AsyncRead + AsyncWrite + Unpin), mesh: Upgraded) {
    let mut mesh = TokioIo::new(mesh);
    if let Err(error) = tokio::io::copy_bidirectional_with_sizes(vmm, &mut mesh, RELAY_BYTES, RELAY_BYTES).await {
        log::debug!("a stream of a move ended: {error}");
    }
}

/// Brings the right to run a VM to the other side once, or has the VMM go on here because the other side was declared dead.
pub async fn bring(agent: Arc<Agent>, vm: Arc<LocalVm>, is_dead: bool, reporter: Arc<Reporter>) {
    let to = vm.kept().to;
    let attempt = Attempt::begin(&agent, &vm, to.map_or_else(|| "?".to_owned(), |to| agent.name_of(&to)));
    let options = MigrateOptions { streams: 1, downtime_ms_max: MigrateOptions::default_downtime_ms(), bandwidth_mbit_max: None };
    let report = if is_dead {
        give_back(&vm, options, &reporter).await
    } else {
        let again = async {
            let to = to.and_then(|to| agent.peer(&to)).context("it is not known here")?;
            drive(&vm, open_streams(&agent, &vm, &to, options.streams).await?, options, &reporter).await
        };
        again.await
    };
    if let Err(error) = &report {
        log::debug!("vm {}: {error:#}", vm.name());
    }
    attempt.end(&report);
    if report.is_ok_and(|report| report.outcome != Outcome::Waiting) {
        watch::look(&agent, &vm).await;
    }
}

/// Has the VMM go on here, because the host that it waits for was declared dead.
async fn give_back(vm: &Arc<LocalVm>, options: MigrateOptions, reporter: &Reporter) -> Result<MoveReport> {
    log::warn!("vm {}: the host that it was granted to was declared dead: it goes on here", vm.name());
    let (control, theirs) = UnixStream::pair()?;
    let (_stream, their_stream) = UnixStream::pair()?;
    let answering = tokio::task::spawn_blocking(move || release::answer_for_the_dead(control));
    let report = drive(vm, vec![theirs, their_stream], options, reporter).await;
    if let Err(error) = answering.await? {
        log::warn!("vm {}: {error:#}", vm.name());
    }
    report
}
