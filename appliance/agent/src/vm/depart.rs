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
    vm::{MoveVm, STREAM_UPGRADE},
};
use rebec_book::{
    Signed,
    key::{Id, Name},
    record::VmPrivate,
    view,
};
use rebec_host::{
    life::{Goal, Input},
    release,
};
use rebec_pool::lease::Stance;
use rebec_vmm_api::{
    MoveReport, Outcome,
    control::{Command, MigrateOptions, Progress},
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    LocalVm, Vms,
    clock::{self, Reading},
    control::Control,
    failed, lease, look,
};
use crate::{
    chance::{now_ms, random},
    errand,
    jobs::Reporter,
    mesh::{Peer, read_answer},
};

/// Streams of a move where nobody says otherwise.
const STREAMS: u8 = 2;
/// Buffered on a stream, each way, beside the sockets' own.
const RELAY_BYTES: usize = 256 << 10;
/// How long the end of a move waits for the word of the other side's agent.
const TOLD_TIME: Duration = Duration::from_secs(3);

/// `POST /internal/arrivals`: a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Offer {
    /// The VM.
    pub vm: Id,
    /// Its ownership counter at the host that sends it.
    pub epoch: u64,
    /// Records it needs here.
    pub records: Vec<Signed>,
    /// What others are not told of it.
    #[serde(with = "rebec_book::record::as_text")]
    pub private: VmPrivate,
    /// The order's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Id>,
}

/// An attempt to move a VM, whose life waits for how it ended: also if it ends in no way that was thought of.
struct Attempt {
    vm: Arc<LocalVm>,
    to: String,
    outcome: Option<Outcome>,
    why: Option<String>,
}

impl Attempt {
    fn begin(vm: &Arc<LocalVm>, to: String) -> Self {
        Self { vm: vm.clone(), to, outcome: None, why: None }
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
        self.vm.learn(Input::Moved { outcome: self.outcome, why });
    }
}

/// Moves a VM that runs here.
pub async fn depart(vms: &Arc<Vms>, vm: &Arc<LocalVm>, to: &Peer, wish: &MoveVm, reporter: &Reporter) -> Result<MoveReport, ApiError> {
    let goal = Goal::Depart { to: to.key };
    vm.require(&goal)?;
    let streams = wish.streams.unwrap_or(STREAMS);
    if !(1..=MigrateOptions::STREAMS_MAX).contains(&streams) {
        return Err(ApiError::new(ErrorCode::BadRequest, format!("streams {streams}: from 1 to {}", MigrateOptions::STREAMS_MAX)));
    }
    // On its way it needs room no more than before: it is what makes room.
    vm.go_on().await.map_err(|error| failed(&error))?;
    // No epoch is passed that the keeper has not promised the one before.
    look::at(vm).await;
    vm.leased_until(lease::require(vms, &vm.kept(), Stance::Runs).await?);
    lease::tell(vm).await;
    vm.hear(Input::Want(goal))?;
    let attempt = Attempt::begin(vm, to.name.clone());
    make_ready(vms, vm, to, reporter).await?;
    let options = MigrateOptions {
        streams,
        downtime_ms_max: wish.downtime_ms_max.unwrap_or_else(MigrateOptions::default_downtime_ms),
        bandwidth_mbit_max: wish.bandwidth_mbit_max,
        clock_ahead_ms: 0,
    };
    let report = async {
        let (ends, clock_ahead_ms) = open_streams(vms, vm, to, streams).await?;
        if clock_ahead_ms != 0 {
            log::warn!("host {}: its clock is {clock_ahead_ms} ms ahead of this one's; set one of them right (rebec.ntp=)", to.name);
        }
        let options = MigrateOptions { clock_ahead_ms, ..options };
        vm.hear(Input::Want(Goal::SetOut))?;
        drive(vm, ends, options, reporter).await
    };
    let report = report.await;
    attempt.end(&report);
    if report.as_ref().is_ok_and(|report| report.outcome == Outcome::Moved) {
        // Whoever asks next should hear where it is now.
        let id = vm.id();
        let there = || vms.knowledge.read(|book| view::seen(book, id).is_some_and(|seen| seen.holder == to.key)) == Some(true);
        vms.knowledge.until(TOLD_TIME, there).await;
    } else {
        look::at(vm).await;
    }
    report.map_err(|error| failed(&error))
}

/// The other side gathers what the VM needs and starts a VMM that waits.
async fn make_ready(vms: &Arc<Vms>, vm: &LocalVm, to: &Peer, reporter: &Reporter) -> Result<(), ApiError> {
    reporter.progress(format!("host {} makes ready", to.name), 0, 0);
    let (id, kept) = (vm.id(), vm.kept());
    let offer =
        Offer { vm: id, epoch: kept.epoch, records: vms.knowledge.records_of(id)?, private: kept.private, order: Some(Name(random())) };
    let ports = errand::order(&vms.peers, to, "/internal/arrivals", &offer, reporter).await?;
    // A host of a version before says nothing of them.
    vm.ahead(serde_json::from_value(ports).unwrap_or_default());
    Ok(())
}

/// The streams of a move and one for control, to the other side: the ends that the VMM gets, and how far the other side's clock is ahead.
async fn open_streams(vms: &Arc<Vms>, vm: &LocalVm, to: &Peer, streams: u8) -> Result<(Vec<UnixStream>, i64)> {
    let (mut ends, mut readings) = (vec![], vec![]);
    for _ in 0..=streams {
        let (end, reading) = open_stream(vms, vm, to).await?;
        ends.push(end);
        readings.extend(reading);
    }
    Ok((ends, clock::ahead_ms(&readings)))
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
async fn open_stream(vms: &Arc<Vms>, vm: &LocalVm, to: &Peer) -> Result<(UnixStream, Option<Reading>)> {
    let request = Request::get(format!("/internal/arrivals/{}/stream", vm.id()))
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, STREAM_UPGRADE)
        .body(Body::empty())?;
    let asked_ms = now_ms();
    let mut response = vms.peers.mesh.request_bulk(to, request).await?;
    // A host of a version before does not say.
    let told_ms = response.headers().get(clock::HEADER).and_then(|told| told.to_str().ok()?.parse().ok());
    let reading = told_ms.map(|told_ms| Reading::new(asked_ms, now_ms(), told_ms));
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let _: serde_json::Value = read_answer(to, response).await?;
        anyhow::bail!("host {} did not open a stream", to.name);
    }
    let upgraded = hyper::upgrade::on(&mut response).await.context("open a stream of the move")?;
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut ours = tokio::net::UnixStream::from_std(ours)?;
    tokio::spawn(async move { carry(&mut ours, upgraded).await });
    Ok((theirs, reading))
}

/// Carries the bytes of one stream of a move between a VMM and the mesh, to its end.
pub async fn carry(vmm: &mut (impl AsyncRead + AsyncWrite + Unpin), mesh: Upgraded) {
    let mut mesh = TokioIo::new(mesh);
    if let Err(error) = tokio::io::copy_bidirectional_with_sizes(vmm, &mut mesh, RELAY_BYTES, RELAY_BYTES).await {
        log::debug!("a stream of a move ended: {error}");
    }
}

/// Brings the right to run a VM to the other side once, or has the VMM go on here because the other side was declared dead.
pub async fn bring(vms: Arc<Vms>, vm: Arc<LocalVm>, is_dead: bool, reporter: Arc<Reporter>) {
    let to = vm.kept().to;
    let attempt = Attempt::begin(&vm, to.map_or_else(|| "?".to_owned(), |to| vms.knowledge.name_of(&to)));
    let options =
        MigrateOptions { streams: 1, downtime_ms_max: MigrateOptions::default_downtime_ms(), bandwidth_mbit_max: None, clock_ahead_ms: 0 };
    let report = if is_dead {
        give_back(&vm, options, &reporter).await
    } else {
        let again = async {
            let to = to.and_then(|to| vms.knowledge.peer(&to)).context("it is not known here")?;
            drive(&vm, open_streams(&vms, &vm, &to, options.streams).await?.0, options, &reporter).await
        };
        again.await
    };
    if let Err(error) = &report {
        log::debug!("vm {}: {error:#}", vm.name());
    }
    attempt.end(&report);
    if report.is_ok_and(|report| report.outcome != Outcome::Waiting) {
        look::at(&vm).await;
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
